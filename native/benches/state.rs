//! What a batch costs before it is sent: `cargo bench --bench state`.
//!
//! 20,000 entries of 200 octets over 64 partitions, each allocated on its own and drawn in another order than they were
//! made, as a cache's are. Nanoseconds of processor time per entry, the best and the median of many rounds: "slots" is the
//! partition alone, "write" all of a batch, "answers" reading what comes back when everything was stored, and when nothing
//! was; "values" an MGET of as many.

#![allow(unsafe_code)]

use std::hint::black_box;

use libvnf_native::state::command::{Asked, Entry, Write};
use libvnf_native::state::header;
use libvnf_native::state::resp::{self, Reader};
use libvnf_native::state::slots::Table;

const ROUNDS: usize = 60;
const ENTRIES: usize = 20_000;

fn cpu_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer to a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn measure(name: &str, mut what: impl FnMut()) {
    let mut rounds: Vec<u64> = (0..ROUNDS)
        .map(|_| {
            let begun = cpu_ns();
            what();
            cpu_ns() - begun
        })
        .collect();
    rounds.sort_unstable();
    let each = |ns: u64| ns as f64 / ENTRIES as f64;
    println!("{name:24} {:6.1} {:6.1}", each(rounds[0]), each(rounds[ROUNDS / 2]));
}

fn replies(octets: &[u8], mut each: impl FnMut(resp::Reply<'_>)) {
    let mut reader = Reader::new(64 << 20);
    for part in octets.chunks(64 * 1024) {
        let mut part = part;
        while !part.is_empty() {
            let room = reader.room();
            let taken = part.len().min(room.len());
            room[..taken].copy_from_slice(&part[..taken]);
            reader.filled(taken);
            part = &part[taken..];
        }
        while let Some(reply) = reader.next().expect("RESP") {
            each(reply);
        }
    }
}

fn main() {
    let table = Table::new("vnf", "sessions", 64, false).expect("a table");
    let mut made: Vec<(Vec<u8>, Vec<u8>)> =
        (0..ENTRIES).map(|number| (format!("user{number:010}").into_bytes(), vec![number as u8; 200])).collect();
    // Multiples of a number without a common factor: every entry once, far from its neighbour.
    let order = (0..ENTRIES).map(|at| at * 7_919 % ENTRIES);
    let drawn: Vec<_> = order.map(|at| std::mem::take(&mut made[at])).collect();
    let entry = |(key, payload)| Entry { key, payload: Some(payload), expected: 0, deadline_ms: 0, recent: &[] };
    let entries: Vec<_> = drawn.iter().map(|(key, payload)| entry((key, payload))).collect();
    let dated: Vec<_> = entries.iter().map(|entry| Entry { deadline_ms: 1, ..*entry }).collect();
    let write = |entries| Write { entries, first: 1 << 40, conditional: true, update: false, guard: None };

    println!("{:24} {:>6} {:>6}", "ns per entry", "best", "median");
    measure("slots", || entries.iter().for_each(|entry| _ = black_box(table.partition(entry.key))));
    measure("write", || _ = black_box(table.write(black_box(&write(&entries)))));
    measure("write, with deadlines", || _ = black_box(table.write(black_box(&write(&dated)))));
    let updates = Write { update: true, ..write(&entries) };
    measure("write, updates", || _ = black_box(table.write(black_box(&updates))));
    let keys: Vec<&[u8]> = entries.iter().map(|entry| entry.key).collect();
    measure("read", || _ = black_box(table.read(black_box(&keys))));
    measure("read, one by one", || keys.iter().for_each(|key| _ = black_box(table.read(&[key]))));
    measure("write, one by one", || {
        entries.iter().for_each(|entry| _ = black_box(table.write(&write(std::slice::from_ref(entry)))));
    });

    let pieces = table.write(&write(&entries)).expect("a batch");
    let mut value = Vec::new();
    header::write(&mut value, 7, 0, &[], &[1; 200]);
    let (mut stored, mut conflicts) = (Vec::new(), Vec::new());
    for piece in &pieces {
        let Asked::Written(written) = &piece.asked else { unreachable!() };
        stored.extend_from_slice(b":0\r\n");
        resp_list(&mut conflicts, 2 * written.indexes.len());
        for place in 1..=written.indexes.len() {
            conflicts.extend_from_slice(format!(":{place}\r\n").as_bytes());
            resp::bulk(&mut conflicts, &value);
        }
    }
    for (name, octets) in [("answers: stored", &stored), ("answers: conflicts", &conflicts)] {
        measure(name, || {
            let mut asked = pieces.iter();
            replies(octets, |reply| {
                let Some(Asked::Written(written)) = asked.next().map(|piece| &piece.asked) else { unreachable!() };
                written.read(reply, false, |index, outcome| _ = black_box((index, outcome))).expect("an answer");
            });
        });
    }
    let pieces = table.read(&keys);
    let mut values = Vec::new();
    for piece in &pieces {
        let Asked::Values(asked) = &piece.asked else { unreachable!() };
        resp_list(&mut values, asked.indexes.len());
        asked.indexes.iter().for_each(|_| resp::bulk(&mut values, &value));
    }
    measure("answers: values", || {
        let mut asked = pieces.iter();
        replies(&values, |reply| {
            let Some(Asked::Values(values)) = asked.next().map(|piece| &piece.asked) else { unreachable!() };
            values.read(reply, |index, raw| _ = black_box((index, raw.map(header::Stored::parse)))).expect("values");
        });
    });
}

fn resp_list(out: &mut Vec<u8>, elements: usize) {
    resp::arguments_follow(out, elements);
}
