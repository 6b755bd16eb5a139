//! Any bytes as TCP segments: no panic, nothing left behind.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| libvnf_native::stack::fuzzing::tcp_segment(data));
