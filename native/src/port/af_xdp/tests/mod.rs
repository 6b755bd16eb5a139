//! What needs no privilege: the program, run by an interpreter of our own, and the rings, both ends of them ours. The rest
//! is in tests/integration/test_af_xdp*.py, where there are interfaces.

mod machine;
mod program;
mod rings;
