//! Any bytes as a frame: no panic, offsets within it, and both readers say the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| libvnf_native::packet::fuzzing::views(data));
