//! The state machine against nodes that say what a test has them say. Links are keys: node 0 has 0 and 1, node 1 has 2…

use super::*;
use crate::state::header;
use crate::state::request::{Cursor, Octets, Writes};
use crate::state::slots::Table;

const WRITER: u64 = 7 << 40;

struct Bed {
    cluster: Cluster,
    now: Instant,
    next: u64,
}

fn keys(keys: &[&[u8]]) -> Octets {
    keys.iter().copied().collect()
}

fn bulk(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    resp::bulk(&mut out, value);
    out
}

/// A table with one partition, whose slot is 1,297.
impl Bed {
    fn new(cluster: bool) -> Self {
        let now = Instant::now();
        let seeds = vec![Address::new("10.0.0.1", 1)];
        let mut cluster = Cluster::new(Settings { seeds, cluster, ..Settings::default() }, 1, now);
        cluster.tables.add(Table::new("vnf", "u", 1, false).unwrap()).unwrap();
        let mut bed = Self { cluster, now, next: 0 };
        bed.after(0);
        bed
    }

    /// A single server that is up.
    fn up() -> Self {
        let mut bed = Self::new(false);
        assert_eq!(bed.open(), [0]);
        bed
    }

    /// Two masters of half the slots each, up.
    fn two() -> Self {
        let mut bed = Self::new(true);
        assert_eq!(bed.open(), [0]);
        bed.after(0);
        assert_eq!(bed.said(0), [["CLUSTER", "SLOTS"]]);
        bed.hears(0, "*2\r\n*3\r\n:0\r\n:8191\r\n*2\r\n$8\r\n10.0.0.1\r\n:1\r\n*3\r\n:8192\r\n:16383\r\n*2\r\n$8\r\n10.0.0.2\r\n:2\r\n");
        bed.after(0);
        assert_eq!(bed.open(), [2]);
        bed.after(0);
        bed
    }

    fn after(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        if self.cluster.wake().is_some_and(|at| at <= self.now) {
            self.cluster.tick(self.now);
        }
    }

    fn generation(&mut self, key: Key) -> u32 {
        self.cluster.link_mut(key).generation
    }

    /// Lets all connections come about that are on their way, and all greetings be agreed to; which these were.
    fn open(&mut self) -> Vec<Key> {
        let mut opened = Vec::new();
        for order in self.cluster.take_orders() {
            let Order::Connect(key, generation, _) = order else { continue };
            self.cluster.opened(key, generation, self.now);
            for _ in self.said(key) {
                self.hears(key, "+OK\r\n");
            }
            opened.push(key);
        }
        opened
    }

    /// The commands sent since, by their words.
    fn said(&mut self, key: Key) -> Vec<Vec<String>> {
        let Some((generation, bytes)) = self.cluster.unsent(key) else { return Vec::new() };
        let (bytes, mut reader) = (bytes.to_vec(), resp::Reader::new(1 << 20));
        self.cluster.wrote(key, generation, bytes.len());
        let mut commands = Vec::new();
        for piece in bytes.chunks(1000) {
            reader.room()[..piece.len()].copy_from_slice(piece);
            reader.filled(piece.len());
            while let Some(Reply::List(command)) = reader.next().unwrap() {
                let word = |word| if let Reply::Data(word) = word { words(word) } else { panic!("{word:?}") };
                commands.push(command.map(word).collect());
            }
        }
        commands
    }

    fn hears(&mut self, key: Key, bytes: impl AsRef<[u8]>) {
        let generation = self.generation(key);
        for piece in bytes.as_ref().chunks(1000) {
            let Some(room) = self.cluster.room(key, generation) else { return };
            room[..piece.len()].copy_from_slice(piece);
            self.cluster.received(key, generation, piece.len(), self.now);
        }
    }

    fn lost(&mut self, key: Key) {
        let generation = self.generation(key);
        self.cluster.lost(key, generation, "pulled".into(), self.now);
    }

    fn asks(&mut self, request: Request) -> u64 {
        self.next += 1;
        self.cluster.submit(self.next, request, self.now);
        self.next
    }

    fn reads(&mut self) -> u64 {
        self.asks(Request::Read { table: 0, keys: keys(&[b"k"]) })
    }

    fn scans(&mut self, cursor: Option<Cursor>) -> u64 {
        self.asks(Request::Scan { table: 0, cursor, count: 10 })
    }

    fn updates(&mut self, expected: u64, replicas: u32) -> u64 {
        let writes = Writes {
            keys: keys(&[b"k"]),
            expected: Some(vec![expected]),
            first: WRITER | 9,
            payloads: keys(&[b"new"]),
            update: true,
            replicas,
            ..Writes::default()
        };
        self.asks(Request::Write { table: 0, writes: Box::new(writes) })
    }

    fn answer(&mut self) -> Option<(u64, Answer)> {
        assert!(self.cluster.done.len() < 2);
        self.cluster.done.pop()
    }

    fn failure(&mut self) -> Failure {
        match self.answer() {
            Some((_, Answer::Values(mut values))) => values.remove(0).unwrap_err(),
            Some((_, Answer::Written { mut failed, .. })) => failed.remove(0).1,
            Some((_, Answer::Failed(failure))) => failure,
            other => panic!("{other:?}"),
        }
    }

    fn stored(&mut self) {
        let nothing = Answer::Written { conflicts: vec![], failed: vec![] };
        assert!(self.answer().is_some_and(|(_, answer)| answer == nothing));
    }
}

fn value(version: u64, recent: &[u64]) -> Vec<u8> {
    let recent: Vec<u8> = recent.iter().flat_map(|version| version.to_be_bytes()).collect();
    let mut out = Vec::new();
    header::write(&mut out, version, 0, &recent, b"payload");
    out
}

fn conflict(value: &[u8]) -> Vec<u8> {
    [b"*2\r\n:1\r\n", &bulk(value)[..]].concat()
}

#[test]
fn a_reply_is_the_answer_to_what_was_asked_first() {
    let mut bed = Bed::up();
    let (first, second) = (bed.reads(), bed.reads());
    assert_eq!(bed.said(0), [["GET", "{vnf:u:0}k"], ["GET", "{vnf:u:0}k"]]);
    bed.hears(0, "_\r\n");
    assert_eq!(bed.answer(), Some((first, Answer::Values(vec![Ok(None)]))));
    bed.hears(0, bulk(&value(5, &[])));
    assert_eq!(bed.answer(), Some((second, Answer::Values(vec![Ok(Some(value(5, &[])))]))));
}

#[test]
fn what_was_asked_on_a_lost_connection_is_asked_on_the_next() {
    let mut bed = Bed::up();
    bed.reads();
    bed.said(0);
    bed.lost(0);
    bed.after(0);
    assert_eq!(bed.cluster.take_orders().len(), 1, "closed; and connected again only after a pause");
    bed.after(40);
    assert_eq!(bed.open(), [0]);
    assert_eq!(bed.said(0), [["GET", "{vnf:u:0}k"]]);
}

#[test]
fn an_update_whose_answer_was_lost_is_applied_once() {
    let eight: Vec<u64> = (10..18).map(|writer| writer << 40).collect();
    let others = 3 << 40 | 1;
    for (stands, expected) in [
        (value(WRITER | 9, &[WRITER | 9]), Some(true)),
        (value(others, &[WRITER | 9]), Some(true)),
        (value(others, &[WRITER | 8]), Some(false)),
        (value(others, &[]), Some(false)),
        (value(others, &eight), None),
    ] {
        let mut bed = Bed::up();
        bed.updates(5, 0);
        bed.said(0);
        bed.lost(0);
        bed.after(40);
        bed.open();
        assert_eq!(bed.said(0).len(), 1);
        bed.hears(0, conflict(&stands));
        match expected {
            Some(true) => bed.stored(),
            Some(false) => {
                let conflicts = vec![(0, Some(stands))];
                assert_eq!(bed.answer().unwrap().1, Answer::Written { conflicts, failed: vec![] });
            }
            None => assert!(matches!(bed.failure(), Failure::Unknown(_))),
        }
    }
}

#[test]
fn a_conflict_of_what_was_sent_once_is_one_whatever_the_list_says() {
    let mut bed = Bed::up();
    bed.updates(5, 0);
    bed.hears(0, conflict(&value(3 << 40, &[WRITER | 10])));
    assert!(matches!(bed.answer().unwrap().1, Answer::Written { conflicts, .. } if conflicts.len() == 1));
}

#[test]
fn a_moved_slot_is_followed_and_remembered() {
    let mut bed = Bed::two();
    bed.cluster.news.stale.clear();
    bed.reads();
    assert_eq!(bed.said(0).len(), 1);
    bed.hears(0, "-MOVED 1297 10.0.0.2:2\r\n");
    assert_eq!(bed.said(2).len(), 1);
    bed.reads();
    assert_eq!(bed.said(2).len(), 1, "asked there at once");
    assert_eq!(bed.cluster.news.stale.len(), 1);
    bed.after(20);
    assert!([0, 2].iter().any(|&key| bed.said(key).contains(&vec!["CLUSTER".into(), "SLOTS".into()])));
}

#[test]
fn a_key_that_went_ahead_is_asked_for_once() {
    let mut bed = Bed::two();
    bed.reads();
    bed.said(0);
    bed.hears(0, "-ASK 1297 10.0.0.2:2\r\n");
    assert_eq!(bed.said(2), [vec!["ASKING"], vec!["GET", "{vnf:u:0}k"]]);
    bed.hears(2, "+OK\r\n_\r\n");
    assert!(bed.answer().is_some());
    bed.reads();
    assert_eq!(bed.said(0).len(), 1, "the slot has not moved");
}

#[test]
fn a_circle_of_redirections_is_left() {
    let mut bed = Bed::two();
    bed.reads();
    let mut sent = 0;
    for _ in 0..20 {
        for (key, there) in [(0, "-MOVED 1297 10.0.0.2:2\r\n"), (2, "-MOVED 1297 10.0.0.1:1\r\n")] {
            let asked = bed.said(key).iter().filter(|words| words[0] == "GET").count();
            sent += asked;
            if asked == 1 {
                bed.hears(key, there);
            }
        }
    }
    assert_eq!(sent, 1 + REDIRECTIONS as usize);
    bed.after(25);
    assert_eq!(
        [0, 2].iter().map(|&key| bed.said(key).iter().filter(|words| words[0] == "GET").count()).sum::<usize>(),
        1
    );
}

#[test]
fn what_a_node_cannot_do_yet_is_asked_again_later() {
    for (error, ms) in
        [("TRYAGAIN x", 5), ("CLUSTERDOWN x", 25), ("LOADING x", 25), ("READONLY x", 25), ("MASTERDOWN x", 25)]
    {
        let mut bed = Bed::up();
        bed.reads();
        bed.said(0);
        bed.hears(0, format!("-{error}\r\n"));
        bed.after(ms - 1);
        assert!(bed.said(0).is_empty());
        bed.after(1);
        assert_eq!(bed.said(0).len(), 1, "{error}");
    }
}

#[test]
fn a_forgotten_script_is_loaded_and_called_again_but_not_for_ever() {
    let mut bed = Bed::up();
    bed.updates(5, 0);
    assert_eq!(bed.said(0).len(), 1);
    for _ in 0..SCRIPT_LOADS {
        bed.hears(0, "-NOSCRIPT x\r\n");
        let said = bed.said(0);
        assert_eq!(said.iter().map(|words| &words[0][..]).collect::<Vec<_>>(), ["SCRIPT", "EVALSHA"]);
        bed.hears(0, "-ERR no\r\n");
    }
    bed.hears(0, "-NOSCRIPT x\r\n");
    assert_eq!(bed.failure(), Failure::Refused("NOSCRIPT x".into()));
}

#[test]
fn a_script_of_somebody_else_is_not_ours_to_load() {
    let mut bed = Bed::up();
    bed.asks(Request::Call { words: keys(&[b"EVALSHA", b"x"]) });
    bed.hears(0, "-NOSCRIPT x\r\n");
    assert_eq!(bed.failure(), Failure::Refused("NOSCRIPT x".into()));
}

#[test]
fn a_node_that_says_what_nobody_asked_or_understands_is_left() {
    for wrong in ["+unasked\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "*1\r\n>1\r\n:1\r\n", "$99999999999\r\n"] {
        let mut bed = Bed::up();
        let generation = bed.generation(0);
        bed.hears(0, wrong);
        assert_eq!(bed.cluster.take_orders(), [Order::Close(0, generation)], "{wrong}");
        assert_eq!(bed.cluster.counters.garbage, 1, "{wrong}");
    }
}

#[test]
fn an_answer_to_another_question_is_an_error_of_that_operation() {
    for wrong in [":7\r\n", "*0\r\n", "*2\r\n_\r\n_\r\n", "$3\r\nabc\r\n"] {
        let mut bed = Bed::up();
        bed.reads();
        bed.hears(0, wrong);
        assert!(matches!(bed.failure(), Failure::Refused(_) | Failure::NoEntry), "{wrong}");
    }
    for wrong in
        [":1\r\n", "+OK\r\n", "*1\r\n:1\r\n", "*2\r\n:2\r\n_\r\n", "*2\r\n:0\r\n_\r\n", "*2\r\n:1\r\n$1\r\nx\r\n"]
    {
        let mut bed = Bed::up();
        bed.updates(5, 0);
        bed.hears(0, wrong);
        assert!(matches!(bed.failure(), Failure::Refused(_) | Failure::NoEntry), "{wrong}");
    }
}

#[test]
fn what_was_not_sent_in_time_has_not_happened_and_what_was_may_have() {
    let mut bed = Bed::new(false);
    bed.updates(5, 0);
    bed.after(10_000);
    assert!(matches!(bed.failure(), Failure::Unavailable(_)));

    let mut bed = Bed::up();
    bed.cluster.settings.silence = Duration::from_secs(60);
    bed.updates(5, 0);
    bed.said(0);
    bed.after(10_000);
    assert!(matches!(bed.failure(), Failure::Unknown(_)));
    let read = bed.reads();
    bed.hears(0, ":0\r\n_\r\n");
    assert_eq!(bed.cluster.counters.late, 1);
    assert_eq!(
        bed.answer(),
        Some((read, Answer::Values(vec![Ok(None)]))),
        "the late answer was not taken for this one's"
    );
}

#[test]
fn silence_ends_a_connection_and_an_idle_one_is_asked() {
    let mut bed = Bed::up();
    bed.after(500);
    assert_eq!(bed.said(0), [["PING"]]);
    bed.hears(0, "+PONG\r\n");
    bed.after(500);
    assert_eq!(bed.said(0), [["PING"]]);
    bed.after(1000);
    assert_eq!(bed.cluster.counters.silences, 1);
    assert!(matches!(bed.cluster.take_orders()[0], Order::Close(0, _)));
}

#[test]
fn an_answer_that_is_too_long_is_an_error_of_its_key_alone() {
    let mut bed = Bed::up();
    let both = bed.asks(Request::Read { table: 0, keys: keys(&[b"k", b"l"]) });
    let other = bed.reads();
    assert_eq!(bed.said(0), [vec!["MGET", "{vnf:u:0}k", "{vnf:u:0}l"], vec!["GET", "{vnf:u:0}k"]]);
    bed.hears(0, "*2\r\n_\r\n$999999999\r\n");
    bed.after(40);
    assert_eq!(bed.open(), [0]);
    assert_eq!(bed.said(0), [["GET", "{vnf:u:0}k"], ["GET", "{vnf:u:0}k"], ["GET", "{vnf:u:0}l"]]);
    bed.hears(0, "_\r\n_\r\n$999999999\r\n");
    let answers = [(other, vec![Ok(None)]), (both, vec![Ok(None), Err(Failure::NoEntry)])];
    assert_eq!(std::mem::take(&mut bed.cluster.done), answers.map(|(id, values)| (id, Answer::Values(values))));
}

#[test]
fn a_key_of_another_kind_is_as_good_as_absent() {
    let mut bed = Bed::up();
    let read = bed.reads();
    bed.hears(0, "-WRONGTYPE x\r\n");
    assert_eq!(bed.answer(), Some((read, Answer::Values(vec![Ok(None)]))));
    bed.updates(5, 0);
    bed.hears(0, "-WRONGTYPE x\r\n");
    assert_eq!(bed.failure(), Failure::Refused("WRONGTYPE x".into()));
}

#[test]
fn who_may_not_tell_scripts_may_read() {
    let mut bed = Bed::new(false);
    let Some(&Order::Connect(0, generation, _)) = bed.cluster.take_orders().first() else { panic!() };
    bed.cluster.opened(0, generation, bed.now);
    for command in bed.said(0) {
        bed.hears(0, if command[0] == "SCRIPT" { "-NOPERM x\r\n" } else { "+OK\r\n" });
    }
    bed.reads();
    assert_eq!(bed.said(0), [["GET", "{vnf:u:0}k"]]);
}

#[test]
fn a_lost_connection_makes_stale_what_it_has_answered_for() {
    let mut bed = Bed::up();
    bed.cluster.tables.add(Table::new("vnf", "other", 8, false).unwrap()).unwrap();
    bed.reads();
    bed.hears(0, "_\r\n");
    bed.lost(0);
    let stale = std::mem::take(&mut bed.cluster.news.stale);
    assert_eq!(stale.into_iter().map(|(table, it)| (table, it.partitions.len())).collect::<Vec<_>>(), [(0, 1)]);
    bed.after(40);
    bed.open();
    bed.lost(0);
    assert!(bed.cluster.news.stale.is_empty(), "it has told nothing since");
}

#[test]
fn what_is_refused_tells_so_and_what_passes_is_not_hopeless() {
    for (error, hopeless) in [("WRONGPASS x", true), ("NOPERM x", true), ("LOADING x", false)] {
        let mut bed = Bed::new(false);
        let Some(Order::Connect(key, generation, _)) = bed.cluster.take_orders().pop() else { panic!("no order") };
        bed.cluster.opened(key, generation, bed.now);
        bed.hears(0, format!("-{error}\r\n"));
        bed.after(0);
        let state = bed.cluster.news.state.take().unwrap();
        assert_eq!(state.hopeless, hopeless, "{error}");
        assert_eq!(state.down.unwrap(), format!("10.0.0.1:1: refused: {error}"));
    }
}

// --- scans and drops --------------------------------------------------------------------------------------------------

/// The answer to a scan that is over and has found these.
fn names(names: &[&[u8]]) -> Vec<u8> {
    let head = format!("*2\r\n$1\r\n0\r\n*{}\r\n", names.len()).into_bytes();
    names.iter().fold(head, |out, name| [out, bulk(&[b"{vnf:u:0}", *name].concat())].concat())
}

/// Another node has the slot, as somebody hears who reads.
fn moves(bed: &mut Bed) {
    bed.reads();
    bed.said(0);
    bed.hears(0, "-MOVED 1297 10.0.0.2:2\r\n");
}

#[test]
fn a_drop_takes_entries_with_their_deadlines_and_nothing_else() {
    let mut bed = Bed::up();
    bed.asks(Request::Drop { table: 0 });
    bed.said(0);
    bed.hears(0, names(&[b"k", b"\xfffence", b"\xffttl", b"\xfflockk", b"\xffwait"]));
    let said = bed.said(0);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0][0], "EVALSHA");
    assert_eq!(said[0][2..], ["2", "{vnf:u:0}k", "{vnf:u:0}\u{fffd}ttl"]);
    bed.hears(0, ":1\r\n");
    assert_eq!(bed.answer().unwrap().1, Answer::Done);
}

#[test]
fn a_scan_begins_again_when_a_slot_has_moved() {
    let found = |bed: &mut Bed| match bed.answer() {
        Some((_, Answer::Found { cursor, .. })) => cursor,
        other => panic!("{other:?}"),
    };
    let mut bed = Bed::two();
    bed.scans(None);
    assert_eq!(bed.said(0)[0][..2], ["SCAN", "0"]);
    bed.hears(0, names(&[]));
    let cursor = found(&mut bed);
    bed.scans(cursor);
    assert_eq!(bed.said(2)[0][..2], ["SCAN", "0"], "the next node");
    moves(&mut bed);
    bed.hears(2, names(&[]));
    let cursor = found(&mut bed);
    assert!(cursor.is_some(), "what has moved may have been on its way from the one to the other");
    bed.hears(2, "_\r\n");
    bed.answer();
    bed.scans(cursor);
    assert_eq!(bed.said(0)[0][..2], ["SCAN", "0"]);
    bed.hears(0, names(&[]));
    let cursor = found(&mut bed);
    bed.scans(cursor);
    bed.hears(2, names(&[]));
    assert_eq!(found(&mut bed), None);
}

#[test]
fn a_drop_looks_again_when_a_slot_has_moved() {
    let mut bed = Bed::two();
    let id = bed.asks(Request::Drop { table: 0 });
    let scans = |bed: &mut Bed, key| bed.said(key).iter().filter(|words| words[0] == "SCAN").count();
    assert_eq!((scans(&mut bed, 0), scans(&mut bed, 2)), (1, 1));
    bed.hears(0, names(&[]));
    moves(&mut bed);
    bed.hears(2, names(&[]));
    assert!(bed.answer().is_none(), "what has moved may have been on its way from the one to the other");
    assert_eq!((scans(&mut bed, 0), scans(&mut bed, 2)), (1, 1));
    bed.hears(2, "_\r\n");
    bed.answer();
    bed.hears(0, names(&[]));
    bed.hears(2, names(&[]));
    assert_eq!(bed.answer(), Some((id, Answer::Done)));
}

// --- replicas ---------------------------------------------------------------------------------------------------------

/// A single server that is up, and an update that two replicas shall have, sent.
fn replicated() -> Bed {
    let mut bed = Bed::up();
    bed.updates(5, 2);
    assert!(bed.said(0).is_empty(), "before the connection for WAIT is up, nothing is written");
    bed.after(0);
    assert_eq!(bed.open(), [1]);
    assert_eq!(bed.said(0).len(), 1);
    bed
}

#[test]
fn replicas_are_waited_for_on_the_other_connection_after_a_mark() {
    let mut bed = replicated();
    bed.hears(0, ":0\r\n");
    let said = bed.said(1);
    assert_eq!(said[0][..2], ["SET", "{vnf:u:0}\u{fffd}wait"]);
    assert_eq!(said[1], ["WAIT", "2", "1000"]);
    bed.hears(1, "+OK\r\n:2\r\n");
    bed.stored();
}

#[test]
fn too_few_replicas_leave_it_unknown() {
    let mut bed = replicated();
    bed.hears(0, ":0\r\n");
    bed.hears(1, "+OK\r\n:1\r\n");
    assert_eq!(bed.failure(), Failure::Unknown("1 of 2 replicas have it".into()));
}

#[test]
fn a_conflict_stays_one_however_many_replicas_there_are() {
    let mut bed = replicated();
    bed.hears(0, conflict(&value(4 << 40, &[])));
    bed.hears(1, "+OK\r\n:0\r\n");
    let conflicts = vec![(0, Some(value(4 << 40, &[])))];
    assert_eq!(bed.answer().unwrap().1, Answer::Written { conflicts, failed: vec![] });
}

#[test]
fn a_mark_that_is_refused_or_lost_has_it_written_again() {
    let mut bed = replicated();
    bed.hears(0, ":0\r\n");
    bed.hears(1, "-READONLY x\r\n:2\r\n");
    assert_eq!(bed.said(0).len(), 1);
    bed.hears(0, ":0\r\n");
    bed.said(1);
    bed.lost(1);
    bed.after(40);
    assert_eq!(bed.open(), [1]);
    assert_eq!(bed.said(0).len(), 1, "replicas may have missed what an earlier server said");
}

#[test]
fn a_wait_is_shared_by_what_was_written_meanwhile() {
    let mut bed = replicated();
    for _ in 0..99 {
        bed.updates(5, 2);
    }
    (0..100).for_each(|_| bed.hears(0, ":0\r\n"));
    let count = |said: Vec<Vec<String>>| said.iter().filter(|words| words[0] == "WAIT").count();
    assert_eq!(count(bed.said(1)), WAITS);
    bed.hears(1, "+OK\r\n:2\r\n");
    assert_eq!(count(bed.said(1)), 1, "all the others");
    bed.hears(1, "+OK\r\n:2\r\n+OK\r\n:2\r\n");
    assert_eq!(bed.cluster.done.len(), 100);
}

// --- topology ---------------------------------------------------------------------------------------------------------

#[test]
fn an_answer_that_is_no_topology_changes_nothing() {
    for wrong in [
        "*0\r\n",
        "-ERR x\r\n",
        "*1\r\n:1\r\n",
        "*1\r\n*3\r\n:0\r\n:16384\r\n*2\r\n$1\r\na\r\n:1\r\n",
        "*1\r\n*3\r\n:5\r\n:4\r\n*2\r\n$1\r\na\r\n:1\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\na\r\n:0\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\n \r\n:1\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$2\r\n/x\r\n:1\r\n",
    ] {
        let mut bed = Bed::two();
        bed.after(2000);
        let asked = [0, 2].into_iter().find(|&key| bed.said(key).iter().any(|words| words[0] == "CLUSTER")).unwrap();
        bed.hears(asked, wrong);
        bed.reads();
        assert_eq!(bed.cluster.owners.of(1297), Some(0), "{wrong}");
        assert_eq!(bed.cluster.nodes.len(), 2, "{wrong}");
    }
}

#[test]
fn nodes_that_a_liar_makes_up_are_few_and_forgotten() {
    let mut bed = Bed::two();
    for number in 0..3000 {
        bed.reads();
        bed.hears(0, format!("-ASK 1297 10.1.{}.{}:7\r\n", number / 250, number % 250));
    }
    assert_eq!(bed.cluster.nodes.len(), MAX_NODES);
    bed.after(0);
    bed.cluster.take_orders();
    for _ in 0..40 {
        bed.after(1000);
        bed.cluster.take_orders();
    }
    assert_eq!(bed.cluster.done.len(), 3000);
    assert!(bed.cluster.pieces.is_empty() && bed.cluster.operations.is_empty());
}

#[test]
fn without_an_owner_a_piece_waits_for_one() {
    let mut bed = Bed::new(true);
    bed.reads();
    bed.open();
    bed.after(0);
    assert_eq!(bed.said(0), [["CLUSTER", "SLOTS"]]);
    bed.hears(0, "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$0\r\n\r\n:1\r\n");
    assert_eq!(bed.said(0), [["GET", "{vnf:u:0}k"]], "no host is the host of who says it");
}

#[test]
fn what_waits_for_a_dead_master_goes_to_its_successor() {
    let mut bed = Bed::two();
    bed.lost(0);
    bed.reads();
    bed.after(20);
    assert_eq!(bed.said(2), [["CLUSTER", "SLOTS"]]);
    bed.hears(2, "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$8\r\n10.0.0.2\r\n:2\r\n");
    assert_eq!(bed.said(2), [["GET", "{vnf:u:0}k"]]);
}

#[test]
fn a_node_that_falls_silent_when_asked_is_not_the_only_one_asked() {
    let mut bed = Bed::two();
    bed.after(2000);
    let of = |bed: &mut Bed, key| bed.said(key).iter().any(|words| words[0] == "CLUSTER");
    let first = if of(&mut bed, 0) { 0 } else { 2 };
    bed.lost(2 - first);
    bed.after(45);
    bed.open();
    (0..5).for_each(|_| bed.after(100));
    assert!(of(&mut bed, 2 - first));
}

#[test]
fn a_lease_runs_on_while_the_machine_is_suspended() {
    let lock = Lock { table: 0, key: b"k".to_vec(), owner: WRITER | 1 };
    for (slept_ms, lapsed) in [(1000, vec![]), (9000, vec![lock.clone()])] {
        let mut bed = Bed::up();
        // What it has slept before does not count.
        bed.cluster.suspended(Duration::from_secs(3600));
        let Lock { table, key, owner } = lock.clone();
        bed.asks(Request::Lock { table, key, owner, lease_ms: 9000, hold_ms: 0 });
        assert_eq!(bed.said(0).len(), 1);
        bed.hears(0, ":1\r\n");
        assert!(matches!(bed.answer(), Some((_, Answer::Fence(Some(1))))));
        bed.after(3000);
        let renews = |bed: &mut Bed| bed.said(0).iter().any(|words| words[0] == "EVALSHA");
        assert!(renews(&mut bed));
        // The renewal was sent before, its answer comes after.
        bed.cluster.suspended(Duration::from_secs(3600) + Duration::from_millis(slept_ms));
        bed.hears(0, ":1\r\n");
        bed.after(3000);
        assert_eq!(bed.cluster.lapsed, lapsed);
    }
}
