//! TCP as its peers and its owner see it: two hosts on a bad network and in virtual time (`world`), and one host against
//! frames made by hand (`puppet`).

mod attacks;
mod hoards;
mod model;
mod network;
mod puppet;
mod random;
mod scenarios;
mod world;
