//! Segments that nearly fit, an owner's calls and time in any order: no panic, nothing left behind.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| libvnf_native::stack::fuzzing::tcp_talk(data));
