//! Any edit of any frame: no panic, and checksums stay what they were, right or wrong.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| libvnf_native::flow::fuzzing::edits(data));
