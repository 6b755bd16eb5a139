//! Any sequence of fragments: no panic, no buffer lost.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| libvnf_native::stack::fuzzing::fragments(data));
