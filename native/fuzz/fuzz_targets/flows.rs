//! Any play of installs, removals, packets and time: the table of flows agrees with a list of rules.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| libvnf_native::flow::fuzzing::flows(data));
