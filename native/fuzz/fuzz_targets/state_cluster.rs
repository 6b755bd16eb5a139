//! Nodes that answer anything, at any moment, and connections that come and go: whatever they say, every call is answered
//! exactly once, and in time.
#![no_main]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use libvnf_native::state::cluster::{Cluster, Key, LANES, Order};
use libvnf_native::state::request::{Octets, Request, Writes};
use libvnf_native::state::settings::Settings;
use libvnf_native::state::slots::Table;
use libvnf_native::state::topology::Address;

/// More than it takes to be told that nobody has answered, a step of a scan included.
const PATIENCE: Duration = Duration::from_secs(11);

struct World {
    /// How many answers each of a node's connections begins with.
    greetings: [usize; LANES],
    cluster: Cluster,
    now: Instant,
    open: Vec<(Key, u32)>,
    asked: u64,
    answered: HashSet<u64>,
}

impl World {
    fn ask(&mut self, what: u8) {
        let keys = |keys: &[&[u8]]| keys.iter().copied().collect::<Octets>();
        let key = b"\xa1k".to_vec();
        let write = |update, replicas, guard: bool| Request::Write {
            table: 0,
            writes: Box::new(Writes {
                keys: keys(&[b"\xa1k", b"\xa1l"]),
                expected: Some(vec![1 << 40, 0]),
                first: 7 << 40 | 1,
                payloads: keys(&[b"x", b"y"]),
                update,
                replicas,
                guard: guard.then(|| (b"\xa1k".to_vec(), 9)),
                ..Writes::default()
            }),
        };
        let request = match what % 10 {
            0 => Request::Read { table: 0, keys: keys(&[b"\xa1k", b"\xa1l", b"\xa1m"]) },
            1 => Request::Read { table: 1, keys: keys(&[b"\xa1k"]) },
            2 => write(true, 0, false),
            3 => write(false, 1, false),
            4 => write(false, 0, true),
            5 => Request::Scan { table: 0, cursor: None, count: 10 },
            6 => Request::Drop { table: 1 },
            7 => Request::Claim { table: 1, now_ms: 1000, claim_ms: 1000, most: 10 },
            8 => Request::Lock { table: 0, key, owner: 9, lease_ms: 1000, hold_ms: 0 },
            _ => Request::Unlock { table: 0, key, owner: 9 },
        };
        self.asked += 1;
        self.cluster.submit(self.asked, request, self.now);
    }

    fn hear(&mut self, at: u8, bytes: &[u8]) {
        let Some(&(key, generation)) = self.open.get(usize::from(at) % self.open.len().max(1)) else { return };
        for piece in bytes.chunks(4096) {
            let Some(room) = self.cluster.room(key, generation) else { return };
            let count = piece.len().min(room.len());
            room[..count].copy_from_slice(&piece[..count]);
            self.cluster.received(key, generation, count, self.now);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.cluster.tick(self.now);
        for order in self.cluster.take_orders() {
            match order {
                Order::Connect(key, generation, _) => {
                    self.cluster.opened(key, generation, self.now);
                    self.open.push((key, generation));
                    let at = self.open.len() - 1;
                    self.hear(at as u8, &b"+OK\r\n".repeat(self.greetings[key % LANES]));
                }
                Order::Close(key, generation) => self.open.retain(|&it| it != (key, generation)),
            }
        }
        for key in self.cluster.take_dirty() {
            while let Some((generation, bytes)) = self.cluster.unsent(key) {
                let count = bytes.len();
                self.cluster.wrote(key, generation, count);
            }
        }
        for (id, _) in self.cluster.done.drain(..) {
            assert!((1..=self.asked).contains(&id) && self.answered.insert(id), "answered twice, or never asked");
        }
        self.cluster.news.stale.clear();
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&kind, mut rest)) = input.split_first() else { return };
    let now = Instant::now();
    let seeds = vec![Address::new("10.0.0.1", 1), Address::new("10.0.0.2", 2)];
    let settings = Settings { seeds, cluster: kind & 1 != 0, longest_reply: 1 << 16, ..Settings::default() };
    let greetings = [true, false].map(|tables| settings.greetings(tables).len());
    let mut cluster = Cluster::new(settings, 1, now);
    for (name, keeps) in [("t", false), ("u", true)] {
        cluster.tables.add(Table::new("v", name, 2, keeps).expect("a table")).expect("a handle");
    }
    let mut world = World { greetings, cluster, now, open: Vec::new(), asked: 0, answered: HashSet::new() };
    world.pass(Duration::ZERO);
    while let [what, argument, more @ ..] = rest {
        rest = more;
        match what % 8 {
            0 => world.ask(*argument),
            1 => world.pass(Duration::from_millis((*argument).into())),
            2 => {
                let at = usize::from(*argument) % world.open.len().max(1);
                if let Some(&(key, generation)) = world.open.get(at) {
                    world.cluster.lost(key, generation, "pulled".to_owned(), world.now);
                }
            }
            _ => {
                // A line or so, to where the next is told apart.
                let end = more.iter().position(|&octet| octet == 0xfe).unwrap_or(more.len());
                let (said, after) = more.split_at(end);
                world.hear(*argument, said);
                rest = after.get(1..).unwrap_or_default();
                world.pass(Duration::ZERO);
            }
        }
    }
    for _ in 0..4 {
        world.pass(PATIENCE);
    }
    assert_eq!(world.answered.len() as u64, world.asked, "not every call was answered");
});
