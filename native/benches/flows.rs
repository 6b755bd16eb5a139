//! What flows cost per packet, apart from ports: `cargo bench --bench flows`.
//!
//! Bursts of 32 UDP packets of flows drawn at random. "head" is what must be done to look at a packet at all (copy its
//! beginning, read its headers); "table" is the look-up and the actions on top of it; each is the best of many rounds,
//! taken in turns, in nanoseconds of processor time per packet. "install" is the mean and the longest of all, in microseconds; memory is in bytes per flow.

#![allow(unsafe_code)]

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libvnf_native::flow::table::AT_ONCE;
use libvnf_native::flow::{Action, Head, Match, Rewrite, Rule, Table};
use libvnf_native::packet::headers::Headers;
use libvnf_native::packet::{ethernet, ipv4, protocol, udp};
use libvnf_native::port::lent::{BURST, Lent};
use libvnf_native::stack::Cidr;

const ROUNDS: usize = 40;
const BURSTS: usize = 4_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A flow's source address; its source port is the lower half of that.
fn source(flow: u32) -> [u8; 4] {
    (0x0a00_0000 | flow).to_be_bytes()
}

fn exact(flow: u32) -> Match {
    let host = |address: [u8; 4]| Some(Cidr { address: address.into(), prefix: 32 });
    Match {
        source: host(source(flow)),
        destination: host([192, 0, 2, 1]),
        protocol: Some(protocol::UDP),
        source_port: Some(flow as u16),
        destination_port: Some(9),
        ..Match::default()
    }
}

fn rewrite(flow: u32) -> Action {
    Action::Rewrite(Rewrite {
        source: Some(IpAddr::from([198, 51, 100, 1])),
        source_port: Some(flow as u16 ^ 0x5555),
        ..Rewrite::default()
    })
}

fn forward() -> Vec<Action> {
    vec![Action::Forward(1)]
}

/// Frames of which only the flow changes.
struct Traffic {
    frames: Vec<Vec<u8>>,
    heads: Vec<Head>,
    headers: Vec<Headers>,
    flows: u32,
    random: Random,
}

impl Traffic {
    fn new(flows: u32, len: usize) -> Self {
        let (upper, payload) = (udp::HEADER, len - 42);
        let destination = [192, 0, 2, 1].into();
        let ip = ipv4::emit(source(0).into(), destination, protocol::UDP, upper + payload, ipv4::Fragment::WHOLE);
        let udp_len = ((upper + payload) as u16).to_be_bytes();
        let udp = [0, 0, 0, 9, udp_len[0], udp_len[1], 0x12, 0x34];
        let link = ethernet::emit([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], ethernet::IPV4);
        let frame = [&link[..], &ip[..], &udp[..], &vec![0; payload][..]].concat();
        Self {
            frames: vec![frame; BURST],
            heads: vec![Head::default(); BURST],
            headers: vec![Headers::default(); BURST],
            flows,
            random: Random(1),
        }
    }

    #[inline]
    fn burst(&mut self) {
        for ((frame, head), headers) in self.frames.iter_mut().zip(&mut self.heads).zip(&mut self.headers) {
            let flow = ((u64::from(self.flows) * (self.random.next() >> 32)) >> 32) as u32;
            frame[26..30].copy_from_slice(&source(flow));
            frame[34..36].copy_from_slice(&(flow as u16).to_be_bytes());
            head.take(Lent::of(black_box(frame)));
            *headers = Headers::read(head.bytes(), head.frame_len());
        }
    }
}

/// Of this thread alone: other processes make it no longer, but for the caches they share.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to `time`, which is as it asks for.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// One round, in nanoseconds per packet.
fn round(mut burst: impl FnMut()) -> f64 {
    let start = cpu_time();
    (0..BURSTS).for_each(|_| burst());
    (cpu_time() - start).as_nanos() as f64 / (BURSTS * BURST) as f64
}

/// A table, and how long the installs took: all of them, and the longest.
fn filled(flows: u32, actions: impl Fn(u32) -> Vec<Action>, idle: Option<Duration>) -> (Table, Duration, Duration) {
    let mut table = Table::seeded(flows as usize + 1_000, 1);
    let (mut all, mut longest) = (Duration::ZERO, Duration::ZERO);
    for flow in 0..flows {
        let (m, rule) = (exact(flow), Rule { actions: actions(flow), idle, hard: None });
        let (start, now) = (cpu_time(), Instant::now());
        table.install(m, rule, now).expect("there is room");
        let took = cpu_time() - start;
        all += took;
        longest = longest.max(took);
    }
    (table, all, longest)
}

fn row(name: &str, flows: u32, table: &mut Table, installs: Option<(Duration, Duration)>) {
    let mut traffic = Traffic::new(flows.max(1), 60);
    let (mut verdicts, now) = (Vec::with_capacity(BURST), Instant::now());
    let (mut head, mut both) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        head = head.min(round(|| {
            traffic.burst();
            black_box((&traffic.heads, &traffic.headers));
        }));
        both = both.min(round(|| {
            traffic.burst();
            verdicts.clear();
            table.process(0, &mut traffic.heads, &traffic.headers, now, &mut verdicts);
            black_box((&traffic.heads, &verdicts));
        }));
    }
    let (mean, longest) = installs.map_or((f64::NAN, f64::NAN), |(all, longest)| {
        (all.as_nanos() as f64 / 1e3 / f64::from(flows), longest.as_nanos() as f64 / 1e3)
    });
    let bytes = table.bytes() as f64 / f64::from(flows);
    println!(
        "{name:>28} {flows:>9} {head:>6.1} {:>6.1} {both:>6.1} {mean:>9.2} {longest:>9.0} {bytes:>7.0}",
        both - head
    );
}

fn main() {
    println!(
        "{:>28} {:>9} {:>6} {:>6} {:>6} {:>9} {:>9} {:>7}",
        "", "flows", "head", "table", "both", "install", "longest", "bytes"
    );
    row("no rule", 1, &mut Table::seeded(1, 1), None);
    for flows in [1, 1_000, 100_000, 1_000_000] {
        let (mut table, all, longest) = filled(flows, |_| forward(), None);
        row("forward", flows, &mut table, Some((all, longest)));
    }
    for flows in [1_000, 1_000_000] {
        let actions = |flow| vec![rewrite(flow), Action::Forward(1)];
        let (mut table, all, longest) = filled(flows, actions, Some(Duration::from_secs(300)));
        row("rewrite and forward, idle", flows, &mut table, Some((all, longest)));
    }
    for (name, prefixes) in [("behind 4 other shapes", 4), ("behind 16 other shapes", 16)] {
        let (mut table, ..) = filled(1_000, |_| forward(), None);
        for prefix in 1..=prefixes {
            let source = Some(Cidr { address: [172, 16, 0, 0].into(), prefix: 8 + prefix });
            let m = Match { source, priority: 1, ..Match::default() };
            table.install(m, Rule { actions: forward(), idle: None, hard: None }, Instant::now()).expect("room");
        }
        row(name, 1_000, &mut table, None);
    }
    let (mut table, ..) = filled(1_000, |_| forward(), None);
    for flow in 0..1_000 {
        table.remove(&exact(flow), Instant::now()).expect("it was there");
        let m = Match { destination_port: Some(10), ..exact(flow) };
        table.install(m, Rule { actions: forward(), idle: None, hard: None }, Instant::now()).expect("room");
    }
    row("none of them matches", 1_000, &mut table, None);
    expiry(1_000_000);
}

/// All end at once: what it takes, and the longest call.
fn expiry(flows: u32) {
    let (mut table, ..) = filled(flows, |_| forward(), Some(Duration::from_secs(60)));
    let end = Instant::now() + Duration::from_secs(61);
    let (mut ended, mut all, mut longest) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    while !table.is_empty() {
        ended.clear();
        let start = cpu_time();
        table.expire(end, AT_ONCE, &mut ended);
        let took = cpu_time() - start;
        all += took;
        longest = longest.max(took);
    }
    let (mean, longest) = (all.as_nanos() as f64 / f64::from(flows), longest.as_nanos() as f64 / 1e3);
    println!("{flows} flows end together: {mean:.0} ns each, the longest call {longest:.0} µs");
}
