//! Captures that say anything: whatever is read is within bounds and comes to an end, and what is read and written again
//! is read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libvnf_native::port::pcap::read::{LONGEST_RECORD, Next, Reader, Record};
use libvnf_native::port::pcap::write::{self, Direction};

fuzz_target!(|input: &[u8]| {
    let mut reader = match Reader::new(input) {
        Ok(reader) => reader,
        Err(why) => {
            assert!(!why.is_empty() && !why.contains('\n'));
            return;
        }
    };
    let (mut frame, mut seen, mut bytes) = (Vec::new(), Vec::new(), 0);
    loop {
        match reader.next(&mut frame) {
            Next::Frame(Record { at, .. }) => {
                assert!(frame.len() <= LONGEST_RECORD);
                bytes += frame.len();
                seen.push((at, frame.clone()));
            }
            Next::Foreign | Next::Nothing => {}
            Next::End | Next::Truncated => break,
            Next::Malformed(why) => {
                assert!(!why.contains('\n'));
                break;
            }
        }
    }
    assert!(bytes <= input.len(), "more frames than there are bytes");
    let mut copy = Vec::new();
    write::section(&mut copy);
    write::interface(&mut copy, "fuzz");
    for (at, frame) in &seen {
        write::packet(&mut copy, 0, *at, Direction::In, frame.len(), |to| to.extend_from_slice(frame));
    }
    let mut again = Reader::new(&copy[..]).expect("what was written");
    for (at, bytes) in &seen {
        let Next::Frame(record) = again.next(&mut frame) else { panic!("a frame was lost") };
        assert_eq!((record.original, &frame), (bytes.len(), bytes));
        // Nanoseconds fill 64 bits in the year 2554.
        assert!(record.at == *at || at.as_nanos() > u128::from(u64::MAX));
    }
    assert_eq!(again.next(&mut frame), Next::End);
});
