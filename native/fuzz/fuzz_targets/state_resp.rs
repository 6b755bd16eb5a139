//! A store that answers anything: replies are the same however they are cut, memory stays within what was sent, and what
//! reads them refuses them or says only what was asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libvnf_native::state::command::{Asked, Entry, Write, claimed, scanned};
use libvnf_native::state::resp::{List, Malformed, Reader, Reply};
use libvnf_native::state::slots::Table;

const MOST: usize = 1 << 16;

fn walk(reply: Reply<'_>, out: &mut Vec<u8>) {
    let mut all = |first: u8, list: List<'_>| {
        out.push(first);
        let length = list.len();
        assert_eq!(list.map(|reply| walk(reply, out)).count(), length);
        out.push(b'.');
    };
    match reply {
        Reply::Nil => out.push(b'_'),
        Reply::Integer(value) => out.extend(value.to_be_bytes()),
        Reply::Data(data) => out.extend(data),
        Reply::Error(why) => out.extend(why),
        Reply::List(list) => all(b'*', list),
        Reply::Push(list) => all(b'>', list),
    }
}

fn read(input: &[u8], step: usize, mut each: impl FnMut(Reply<'_>)) -> (Vec<u8>, Option<Malformed>) {
    let (mut reader, mut seen) = (Reader::new(MOST), Vec::new());
    for mut part in input.chunks(step) {
        while !part.is_empty() {
            let room = reader.room();
            assert!(!room.is_empty() && room.len() <= 4 * input.len() + (1 << 16));
            let taken = part.len().min(room.len());
            room[..taken].copy_from_slice(&part[..taken]);
            reader.filled(taken);
            part = &part[taken..];
        }
        loop {
            match reader.next() {
                Ok(Some(reply)) => {
                    walk(reply, &mut seen);
                    each(reply);
                }
                Ok(None) => break,
                Err(why) => return (seen, Some(why)),
            }
        }
    }
    (seen, None)
}

fuzz_target!(|input: &[u8]| {
    let table = Table::new("v", "t", 1, false).expect("a table");
    let keys: Vec<[u8; 1]> = (0..5).map(|key| [key]).collect();
    let entry = |key| Entry { key, payload: Some(b""), expected: 0, deadline_ms: 0, recent: &[] };
    let entries: Vec<_> = keys.iter().map(|key| entry(&key[..])).collect();
    let write = Write { entries: &entries, first: 1 << 40, conditional: true, update: true, guard: None };
    let mut pieces = table.write(&write).expect("a batch");
    pieces.extend(table.read(&entries.iter().map(|entry| entry.key).collect::<Vec<_>>()));
    let whole = read(input, usize::MAX, |reply| {
        let _ = claimed(reply, |_, _| {});
        let _ = scanned(reply).map(|(_, names)| names.count());
        for piece in &pieces {
            match &piece.asked {
                Asked::Written(written) => {
                    for resent in [false, true] {
                        let _ = written.read(reply, resent, |index, _| assert!(index < 5));
                    }
                }
                Asked::Values(values) => _ = values.read(reply, |index, _| assert!(index < 5)),
                _ => {}
            }
        }
    });
    for step in [1, 3, 100] {
        let (seen, why) = read(input, step, |_| {});
        assert_eq!((&seen, why.is_some()), (&whole.0, whole.1.is_some()));
    }
});
