//! Any bytes as frames: no panic, no buffer lost.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| libvnf_native::stack::fuzzing::headers(data));
