//! What `state` says, said to a real Redis: its scripts are Lua, which nothing here could check otherwise.
//!
//! Every test has a server of its own. Without a `redis-server` they say so and are done, unless CI is set.

mod server;

use std::collections::BTreeMap;

use libvnf_native::state::command::{Asked, Entry, MOST_WRITTEN, Outcome, Piece, Write, claimed, scanned};
use libvnf_native::state::header::Stored;
use libvnf_native::state::resp::Reply;
use libvnf_native::state::script;
use libvnf_native::state::slots::{self, Found, Table, Tables};

use self::server::{Connection, Server};

/// Far enough that no test lives to see it.
const LATER_MS: u64 = 4_000_000_000_000;

fn table(name: &str) -> Table {
    Table::new("vnf", name, 1, false).unwrap()
}

fn version(writer: u64, sequence: u64) -> u64 {
    writer << 40 | sequence
}

fn put<'a>(key: &'a [u8], expected: u64, payload: &'a [u8]) -> Entry<'a> {
    Entry { key, payload: Some(payload), expected, deadline_ms: 0, recent: &[] }
}

fn delete(key: &[u8], expected: u64) -> Entry<'_> {
    Entry { key, payload: None, expected, deadline_ms: 0, recent: &[] }
}

fn conditional<'a>(entries: &'a [Entry<'a>], first: u64) -> Write<'a> {
    Write { entries, first, conditional: true, update: false, guard: None }
}

fn unconditional<'a>(entries: &'a [Entry<'a>], first: u64) -> Write<'a> {
    Write { conditional: false, ..conditional(entries, first) }
}

/// What was not simply stored: index, and the outcome by its name and the payload that stands there.
fn outcomes(connection: &mut Connection, pieces: &[Piece], resent: bool) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for piece in pieces {
        let Asked::Written(written) = &piece.asked else { panic!("{:?}", piece.asked) };
        connection.call(piece, |reply| {
            let each = |index, outcome: Outcome<'_>| {
                let text = match outcome {
                    Outcome::Conflict(None) => "nothing".into(),
                    Outcome::Conflict(Some(raw)) => payload(raw),
                    other => format!("{other:?}"),
                };
                found.push((index, text));
            };
            written.read(reply, resent, each).unwrap_or_else(|why| panic!("{why}: {}", server::text(reply)));
        });
    }
    found.sort();
    found
}

fn write(connection: &mut Connection, table: &Table, write: &Write<'_>) -> Vec<(u32, String)> {
    outcomes(connection, &table.write(write).unwrap(), false)
}

fn payload(raw: &[u8]) -> String {
    Stored::parse(raw).map_or("unreadable".into(), |stored| String::from_utf8_lossy(stored.payload).into_owned())
}

fn read(connection: &mut Connection, table: &Table, keys: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
    let mut found = vec![None; keys.len()];
    for piece in table.read(keys) {
        let Asked::Values(values) = &piece.asked else { panic!("{:?}", piece.asked) };
        let each = |index, raw: Option<&[u8]>| found[index as usize] = raw.map(<[u8]>::to_vec);
        connection.call(&piece, |reply| values.read(reply, each).unwrap());
    }
    found
}

fn payloads(connection: &mut Connection, table: &Table, keys: &[&[u8]]) -> Vec<Option<String>> {
    read(connection, table, keys).iter().map(|raw| raw.as_deref().map(payload)).collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.into())
}

fn none() -> Vec<(u32, String)> {
    Vec::new()
}

#[test]
fn slots_are_those_of_cluster_keyslot() {
    let Some(server) = Server::clustered() else { return };
    let mut connection = server.connect();
    let mut keys: Vec<Vec<u8>> = Table::new("vnf", "a table", 64, false)
        .unwrap()
        .partitions
        .iter()
        .map(|partition| [&partition.prefix, &b"\x93{}}"[..]].concat())
        .collect();
    let mut seed = 1_u32;
    for length in 0..200 {
        let octets = (0..length % 23).map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"{}abc\0\xff"[(seed >> 16) as usize % 7]
        });
        keys.push(octets.collect());
    }
    for key in keys {
        let theirs = connection.ask(&[b"CLUSTER", b"KEYSLOT", &key]);
        assert_eq!(slots::slot(&key).to_string(), theirs, "{}", key.escape_ascii());
    }
}

#[test]
fn every_script_works_within_one_slot_of_a_cluster() {
    let Some(server) = Server::clustered() else { return };
    let mut connection = server.connect();
    let table = Table::new("vnf", "t", 8, true).unwrap();
    let keys: Vec<[u8; 2]> = (0..100).map(|key| [0xa1, key]).collect();
    let entries: Vec<_> = keys.iter().map(|key| Entry { deadline_ms: 1000, ..put(key, 0, b"x") }).collect();
    assert_eq!(write(&mut connection, &table, &conditional(&entries, 1)), none());
    let mut seen = Vec::new();
    for piece in table.claim_expired(2000, 3000, 1000) {
        connection.call(&piece, |reply| claimed(reply, |key, _| seen.push(key.to_vec())).unwrap());
    }
    seen.sort();
    assert!(seen.iter().eq(&keys), "each due key once, wherever it is");
    let names: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    let deleted = table.expired(&names, &(1..=100).collect::<Vec<_>>());
    assert_eq!(deleted.iter().map(|piece| connection.integer(piece)).sum::<i64>(), 100);
    let (key, owner) = (&keys[7], 99);
    assert_eq!(connection.integer(&table.lock(key, owner, 60_000)), 1);
    let entry = [put(key, 0, b"y")];
    let guarded = Write { guard: Some((key, owner)), ..conditional(&entry, 1) };
    assert_eq!(write(&mut connection, &table, &guarded), none());
    assert_eq!(connection.integer(&table.renew(key, owner, 60_000)), 1);
    assert_eq!(connection.integer(&table.unlock(key, owner)), 1);
    let plain = Table::new("vnf", "plain", 8, false).unwrap();
    assert_eq!(write(&mut connection, &plain, &unconditional(&entry, 2)), none());
    assert_eq!(write(&mut connection, &plain, &conditional(&[put(key, 2, b"z")], 3)), none());
    let others: Vec<_> = keys.iter().filter(|&other| other != key).map(|other| put(other, 0, b"z")).collect();
    assert_eq!(write(&mut connection, &plain, &conditional(&others, 4)), none());
    assert_eq!(connection.integer(&table.drop(&[&key[..]])[0]), 1);
    assert_eq!(connection.ask(&[b"DBSIZE"]), "101", "a hundred entries, and a counter of owners");
    let digests: Vec<&[u8]> = script::ALL.iter().map(|script| script.digest()).collect();
    let known = connection.ask(&[&[&b"SCRIPT"[..], b"EXISTS"], &digests[..]].concat());
    assert_eq!(known, "[1 1 1 1 1 1 1 1 1 1]", "all of them were used");
}

#[test]
fn a_write_on_another_version_is_a_conflict_and_shows_what_stands_there() {
    let Some(server) = Server::start(&[]) else { return };
    let (mut connection, table) = (server.connect(), table("t"));
    let (a, b, c) = (&b"\xa1a"[..], &b"\xa1b"[..], &b"\xa1c"[..]);
    let three = [put(a, 0, b"a1"), put(b, 0, b"b1"), put(c, 7, b"c1")];
    assert_eq!(write(&mut connection, &table, &conditional(&three, 11)), [(2, "nothing".into())]);
    let three = [put(a, 11, b"a2"), put(b, 11, b"b2"), put(c, 0, b"c2")];
    assert_eq!(write(&mut connection, &table, &conditional(&three, 21)), [(1, "b1".into())]);
    assert_eq!(payloads(&mut connection, &table, &[c, b, a]), [some("c2"), some("b1"), some("a2")]);
    assert_eq!(payloads(&mut connection, &table, &[b"\xa1d"]), [None]);
    let three = [delete(a, 11), delete(b, 12), delete(c, 0)];
    let expected = [(0, "a2".into()), (2, "c2".into())];
    assert_eq!(write(&mut connection, &table, &conditional(&three, 31)), expected);
    assert_eq!(payloads(&mut connection, &table, &[a, b, c]), [some("a2"), None, some("c2")]);
}

#[test]
fn a_write_that_is_sent_again_is_applied_once() {
    let Some(server) = Server::start(&[]) else { return };
    let (mut connection, table) = (server.connect(), table("t"));
    let long_ago = Entry { deadline_ms: LATER_MS, ..put(b"\xa1b", 0, b"b") };
    for entries in [[put(b"\xa1a", 0, b"a")], [long_ago], [delete(b"\xa1a", 1)]] {
        let pieces = table.write(&conditional(&entries, 1)).unwrap();
        for resent in [false, true, true] {
            assert_eq!(outcomes(&mut connection, &pieces, resent), none());
        }
    }
    assert_eq!(payloads(&mut connection, &table, &[b"\xa1a", b"\xa1b"]), [None, some("b")]);
}

#[test]
fn the_list_tells_whether_a_lost_update_was_applied() {
    let Some(server) = Server::start(&[]) else { return };
    let (mut connection, table) = (server.connect(), table("t"));
    let key = &b"\xa1k"[..];
    let base = version(1, 1);
    assert_eq!(write(&mut connection, &table, &conditional(&[put(key, 0, b"0")], base)), none());

    // Two updates of the same value: the first is applied, its answer lost.
    let [mine, theirs] = [version(2, 1), version(3, 1)];
    let update =
        |entry: &[Entry<'_>], first| table.write(&Write { update: true, ..conditional(&[entry[0]], first) }).unwrap();
    let lost = update(&[put(key, base, b"mine")], mine);
    let late = update(&[put(key, base, b"theirs")], theirs);
    assert_eq!(outcomes(&mut connection, &lost, false), none());
    // Others carry the list on, by a put and by an update.
    let stands = read(&mut connection, &table, &[key]).remove(0).unwrap();
    let over = [Entry { recent: Stored::parse(&stands).unwrap().recent, ..put(key, mine, b"over") }];
    assert_eq!(write(&mut connection, &table, &conditional(&over, version(4, 1))), none());
    assert_eq!(outcomes(&mut connection, &lost, true), none(), "it is in the list");
    assert_eq!(outcomes(&mut connection, &late, true), [(0, "over".into())], "it is not, and there is room");
    assert_eq!(payloads(&mut connection, &table, &[key]), [some("over")]);

    // Eight other writers push it out.
    let mut before = version(4, 1);
    for writer in 10..18 {
        let stands = read(&mut connection, &table, &[key]).remove(0).unwrap();
        let entry = [Entry { recent: Stored::parse(&stands).unwrap().recent, ..put(key, before, b"more") }];
        before = version(writer, 1);
        assert_eq!(outcomes(&mut connection, &update(&entry, before), false), none());
    }
    assert_eq!(outcomes(&mut connection, &lost, true), [(0, "Unknown".into())]);
    assert_eq!(outcomes(&mut connection, &lost, false), [(0, "more".into())], "never sent before: a conflict");
    let gone = table.write(&Write { update: true, ..conditional(&[delete(key, before)], version(2, 9)) }).unwrap();
    assert_eq!(outcomes(&mut connection, &gone, false), none());
    assert_eq!(outcomes(&mut connection, &gone, true), [(0, "Unknown".into())], "who has deleted it?");
    assert_eq!(outcomes(&mut connection, &gone, false), [(0, "nothing".into())]);
}

#[test]
fn a_deadline_removes_an_entry_and_a_write_without_one_keeps_it() {
    let Some(server) = Server::start(&[]) else { return };
    let (mut connection, table) = (server.connect(), table("t"));
    let key = &b"\xa1k"[..];
    let name = [&table.partitions[0].prefix, key].concat();
    let with = |deadline_ms, expected| [Entry { deadline_ms, ..put(key, expected, b"x") }];
    assert_eq!(write(&mut connection, &table, &conditional(&with(LATER_MS, 0), 1)), none());
    assert_eq!(connection.ask(&[b"PEXPIRETIME", &name]), LATER_MS.to_string());
    let stands = read(&mut connection, &table, &[key]).remove(0).unwrap();
    assert_eq!(Stored::parse(&stands).unwrap().deadline_ms, LATER_MS);
    assert_eq!(write(&mut connection, &table, &conditional(&with(0, 1), 2)), none());
    assert_eq!(connection.ask(&[b"PEXPIRETIME", &name]), "-1");
    assert_eq!(write(&mut connection, &table, &unconditional(&with(1, 0), 3)), none());
    assert_eq!(payloads(&mut connection, &table, &[key]), [None], "it was past already");
}

#[test]
fn a_table_that_keeps_what_expired_hands_it_out_once_per_claim() {
    let Some(server) = Server::start(&[]) else { return };
    let mut connection = server.connect();
    let table = Table::new("vnf", "t", 1, true).unwrap();
    let keys = [&b"\xa1a"[..], b"\xa1b", b"\xa1c", b"\xa1d"];
    let due = |key, deadline_ms| Entry { deadline_ms, ..put(key, 0, b"x") };
    let four = [due(keys[0], 1000), due(keys[1], 2000), due(keys[2], 1500), due(keys[3], 0)];
    assert_eq!(write(&mut connection, &table, &conditional(&four, 1)), none());
    let claim = |connection: &mut Connection, now_ms, until_ms, most| {
        let mut seen = Vec::new();
        for piece in table.claim_expired(now_ms, until_ms, most) {
            let each = |key: &[u8], raw: &[u8]| seen.push((key[1] as char, Stored::parse(raw).unwrap().version));
            connection.call(&piece, |reply| claimed(reply, each).unwrap());
        }
        seen
    };
    assert_eq!(claim(&mut connection, 999, 5000, 10), []);
    assert_eq!(claim(&mut connection, 1600, 5000, 1), [('a', 1)]);
    assert_eq!(claim(&mut connection, 1600, 5000, 10), [('c', 3)], "the other one is claimed");
    assert_eq!(claim(&mut connection, 5000, 9000, 10), [('b', 2), ('a', 1), ('c', 3)], "nobody has handled it");

    // While handlers ran: b was written with a deadline, c without, a not at all.
    let newer = [Entry { deadline_ms: 7000, ..put(keys[1], 2, b"b2") }, put(keys[2], 3, b"c2")];
    assert_eq!(write(&mut connection, &table, &conditional(&newer, 11)), none());
    let handled = table.expired(&keys[..3], &[1, 2, 3]);
    assert_eq!(connection.integer(&handled[0]), 1);
    assert_eq!(connection.integer(&handled[0]), 0, "again");
    assert_eq!(payloads(&mut connection, &table, &keys), [None, some("b2"), some("c2"), some("x")]);
    assert_eq!(claim(&mut connection, 6999, 9000, 10), []);
    assert_eq!(claim(&mut connection, 7000, 9000, 10), [('b', 11)]);
    let gone = [delete(keys[1], 11), delete(keys[2], 12), delete(keys[3], 4)];
    assert_eq!(write(&mut connection, &table, &conditional(&gone, 21)), none());
    assert_eq!(connection.ask(&[b"DBSIZE"]), "0");
}

#[test]
fn a_lock_has_one_owner_and_each_owner_a_higher_fence() {
    let Some(server) = Server::start(&[]) else { return };
    let (mut connection, table) = (server.connect(), table("t"));
    let key = &b"\xa1k"[..];
    assert_eq!(connection.integer(&table.lock(key, 1, 60_000)), 1);
    assert!((-60_000..0).contains(&connection.integer(&table.lock(key, 2, 60_000))));
    assert_eq!(connection.integer(&table.lock(key, 1, 60_000)), 1, "again, for its answer was lost");
    assert_eq!(connection.integer(&table.renew(key, 2, 1)), 0);
    assert_eq!(connection.integer(&table.unlock(key, 2)), 0);

    let entries = [put(key, 0, b"guarded")];
    let guarded = |owner, first| Write { guard: Some((key, owner)), ..conditional(&entries, first) };
    assert_eq!(write(&mut connection, &table, &guarded(2, 5)), [(0, "NotOwner".into())]);
    let late = table.write(&guarded(2, 5)).unwrap();
    assert_eq!(
        outcomes(&mut connection, &late, true),
        [(0, "Unknown".into())],
        "the first sending may have been in time"
    );
    assert_eq!(write(&mut connection, &table, &guarded(1, 6)), none());
    assert_eq!(connection.integer(&table.unlock(key, 1)), 1);
    assert_eq!(write(&mut connection, &table, &guarded(1, 7)), [(0, "NotOwner".into())], "nobody's");
    assert_eq!(connection.integer(&table.renew(key, 1, 60_000)), 0);
    assert_eq!(connection.integer(&table.lock(key, 2, 60_000)), 2);
}

#[test]
fn others_changes_are_told_after_every_kind_of_write_and_read() {
    let Some(server) = Server::start(&[]) else { return };
    let (mut mine, mut theirs) = (server.connect(), server.connect());
    let (plain, keeps) = (table("plain"), Table::new("vnf", "keeps", 1, true).unwrap());
    let mut tables = Tables::default();
    tables.add(plain.clone()).unwrap();
    tables.add(keeps.clone()).unwrap();
    let key = &b"\xa1k"[..];
    let with = |deadline_ms| [Entry { deadline_ms, ..put(key, 0, b"x") }];
    let mut first = 0;
    for (handle, table) in [(0, &plain), (1, &keeps)] {
        for kind in 0..5 {
            first += 100;
            theirs.ask(&[b"FLUSHALL"]);
            match kind {
                0 => assert_eq!(write(&mut mine, table, &conditional(&with(0), first)), none()),
                1 => assert_eq!(write(&mut mine, table, &unconditional(&with(0), first)), none()),
                2 => assert_eq!(write(&mut mine, table, &conditional(&with(LATER_MS), first)), none()),
                3 => assert_eq!(read(&mut mine, table, &[key, b"\xa1z"]), [None, None]),
                _ => assert_eq!(read(&mut mine, table, &[key]), [None]),
            }
            mine.pushes.clear();
            assert_eq!(write(&mut theirs, table, &unconditional(&with(0), first + 1)), none());
            mine.ask(&[b"PING"]);
            let found = mine.pushes.iter().filter_map(|name| tables.find(name)).collect::<Vec<_>>();
            assert_eq!(found, [Found::Entry { table: handle, key }], "kind {kind}");
        }
        assert!(mine.integer(&table.lock(key, 1, 60_000)) > 0 && theirs.integer(&table.lock(key, 2, 60_000)) < 0);
        theirs.pushes.clear();
        assert_eq!(mine.integer(&table.unlock(key, 1)), 1);
        theirs.ask(&[b"PING"]);
        assert_eq!(tables.find(&theirs.pushes[0]), Some(Found::Lock { table: handle, key }), "who waits is told");
    }
}

#[test]
fn conflicts_beyond_what_an_answer_may_hold_are_not_told() {
    let Some(server) = Server::start(&[]) else { return };
    let (mut connection, table) = (server.connect(), table("t"));
    let megabyte = vec![b'x'; 1 << 20];
    let keys: Vec<[u8; 2]> = (0..40).map(|key| [0xa1, key]).collect();
    let long: Vec<_> = keys.iter().map(|key| put(key, 0, &megabyte)).collect();
    assert_eq!(write(&mut connection, &table, &conditional(&long, 1)), none());
    for deadline_ms in [0, LATER_MS] {
        let short: Vec<_> = keys.iter().map(|key| Entry { deadline_ms, ..put(key, 0, b"y") }).collect();
        let found = write(&mut connection, &table, &conditional(&short, 101));
        assert_eq!(found.len(), 40);
        let untold = found.iter().filter(|(_, outcome)| outcome == "Untold").count();
        assert!((5..20).contains(&untold), "{untold} of 40 megabytes are more than 32");
    }
}

#[test]
fn a_foreign_value_is_a_conflict_that_cannot_be_read_and_hurts_no_other_key() {
    let Some(server) = Server::start(&[]) else { return };
    let (mut connection, table) = (server.connect(), table("t"));
    let name = |key: &[u8]| [&table.partitions[0].prefix, key].concat();
    connection.ask(&[b"SET", &name(b"\xa1a"), b"short"]);
    connection.ask(&[b"SET", &name(b"\xa1b"), &[b'x'; 100]]);
    connection.ask(&[b"RPUSH", &name(b"\xa1c"), b"a list"]);
    for deadline_ms in [0, LATER_MS] {
        let keys = [&b"\xa1a"[..], b"\xa1b", b"\xa1c", b"\xa1d"];
        let four = keys.map(|key| Entry { deadline_ms, ..put(key, 5, b"y") });
        let unreadable = |index| (index, "unreadable".to_owned());
        let expected = [unreadable(0), unreadable(1), (2, "nothing".into()), (3, "nothing".into())];
        assert_eq!(write(&mut connection, &table, &conditional(&four, 100)), expected);
    }
}

#[test]
fn a_table_is_scanned_and_dropped_and_its_neighbours_are_not() {
    let Some(server) = Server::start(&[]) else { return };
    let mut connection = server.connect();
    let (mine, neighbour) = (Table::new("v*", "t", 8, true).unwrap(), Table::new("v*", "t?", 8, false).unwrap());
    let mut tables = Tables::default();
    tables.add(mine.clone()).unwrap();
    tables.add(neighbour.clone()).unwrap();
    let keys: Vec<[u8; 2]> = (0..200).map(|key| [0xcc, key]).collect();
    let entries: Vec<_> = keys.iter().map(|key| Entry { deadline_ms: LATER_MS, ..put(key, 0, b"x") }).collect();
    for table in [&mine, &neighbour] {
        assert_eq!(write(&mut connection, table, &conditional(&entries, 1)), none());
    }
    assert!(connection.integer(&mine.lock(&keys[0], 1, 60_000)) > 0);
    let (mut cursor, mut names) = (0, Vec::new());
    loop {
        connection.send(&mine.scan(cursor, 50));
        cursor = connection.answer(|reply| {
            let (cursor, found) = scanned(reply).unwrap();
            names.extend(found.map(|name| if let Reply::Data(name) = name { name.to_vec() } else { panic!() }));
            cursor
        });
        if cursor == 0 {
            break;
        }
    }
    let entry = |name: &Vec<u8>| match tables.find(name) {
        Some(Found::Entry { table: 0, key }) => Some(key.to_vec()),
        _ => None,
    };
    let mut found: Vec<_> = names.iter().filter_map(entry).collect();
    found.sort();
    found.dedup();
    assert!(found.iter().eq(&keys));
    let found: Vec<&[u8]> = found.iter().map(Vec::as_slice).collect();
    let dropped: i64 = mine.drop(&found).iter().map(|piece| connection.integer(piece)).sum();
    assert_eq!(dropped, 200);
    assert_eq!(connection.ask(&[b"DBSIZE"]), "202", "the neighbour's, the lock and its fence");
}

/// The same writes to a map: versions and payloads, by key.
type Model = BTreeMap<u8, (u64, u8)>;

#[test]
fn batches_do_what_they_do_to_a_map() {
    let Some(server) = Server::start(&[]) else { return };
    let mut connection = server.connect();
    let table = Table::new("vnf", "t", 3, false).unwrap();
    let (mut model, mut seed, mut first) = (Model::new(), 7_u64, 1);
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..300 {
        let conditional = draw(4) > 0;
        let has_more = draw(2) > 0;
        // Each key at most once, with what it would be written on: mostly what stands there.
        let keys: Vec<[u8; 2]> = (0..40).filter(|_| draw(3) > 0).map(|key| [0xcc, key]).collect();
        let payloads: Vec<[u8; 1]> = keys.iter().map(|_| [draw(256) as u8]).collect();
        let mut entries = Vec::new();
        for (key, payload) in keys.iter().zip(&payloads) {
            let stands = model.get(&key[1]).map_or(0, |stored| stored.0);
            entries.push(Entry {
                key,
                payload: (!has_more || draw(4) > 0).then_some(payload),
                expected: if draw(5) > 0 { stands } else { draw(first) },
                deadline_ms: if has_more && draw(4) == 0 { LATER_MS } else { 0 },
                recent: &[],
            });
        }
        let mut expected = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let (key, stands) = (entry.key[1], model.get(&entry.key[1]).copied());
            let is_gone = entry.payload.is_none() && stands.is_none();
            if !conditional || is_gone || stands.map_or(0, |stored| stored.0) == entry.expected {
                match entry.payload {
                    Some(payload) => model.insert(key, (first + index as u64, payload[0])),
                    None => model.remove(&key),
                };
            } else {
                expected.push((index as u32, stands.map(|stored| stored.1)));
            }
        }
        let pieces = table.write(&Write { entries: &entries, first, conditional, update: false, guard: None }).unwrap();
        let mut found = Vec::new();
        for piece in &pieces {
            let Asked::Written(written) = &piece.asked else { panic!("{:?}", piece.asked) };
            let each = |index, outcome: Outcome<'_>| {
                let Outcome::Conflict(raw) = outcome else { panic!("{outcome:?}") };
                found.push((index, raw.map(|raw| Stored::parse(raw).unwrap().payload[0])));
            };
            connection.call(piece, |reply| written.read(reply, false, each).unwrap());
        }
        found.sort();
        assert_eq!(found, expected);
        first += entries.len() as u64;
    }
    let keys: Vec<[u8; 2]> = (0..40).map(|key| [0xcc, key]).collect();
    let names: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    for (key, raw) in keys.iter().zip(read(&mut connection, &table, &names)) {
        let stands = raw.as_deref().map(|raw| Stored::parse(raw).unwrap()).map(|s| (s.version, s.payload[0]));
        assert_eq!(stands, model.get(&key[1]).copied());
    }
}

#[test]
fn the_longest_piece_fits_into_luas_stack() {
    let Some(server) = Server::start(&[]) else { return };
    let mut connection = server.connect();
    let keys: Vec<[u8; 3]> = (0..MOST_WRITTEN as u16).map(|key| [0xcd, (key >> 8) as u8, key as u8]).collect();
    for (name, keeps_expired) in [("plain", false), ("keeps", true)] {
        let table = Table::new("vnf", name, 1, keeps_expired).unwrap();
        for conditional in [true, false] {
            let entries: Vec<_> = keys.iter().map(|key| put(key, 0, b"x")).collect();
            let all = Write { entries: &entries, first: 1, conditional, update: false, guard: None };
            let pieces = table.write(&all).unwrap();
            assert_eq!(pieces.len(), 1);
            assert_eq!(outcomes(&mut connection, &pieces, false), none());
        }
    }
}
