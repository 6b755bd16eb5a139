//! The host as its peers see it: frames in, frames out.

mod echo_and_errors;
mod fragments;
mod link;
mod tcp;
mod udp;
mod wire;
