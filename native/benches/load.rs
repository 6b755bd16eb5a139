//! How fast the load generator is itself, so that no measurement with it measures it: `cargo bench --bench load`.
//!
//! The mirror's rows are one thread: what a request costs the generator; of TCP, without what the far host costs, which
//! runs in the same thread. The others are two threads, one per cpu, generator and responder, and need two cpus to
//! themselves. The cores' distance stands beside each row: on virtual machines it changes, and the figures with it.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libvnf_native::load::{Drive, Endpoint, LoadConfig, PortTransport, Report, Respond, Transport, core_distance, run};
use libvnf_native::packet::{Pool, PoolConfig, Slot};
use libvnf_native::port::lent::Burst;
use libvnf_native::port::memif::{Memif, MemifConfig, Role};
use libvnf_native::port::pair::pair;
use libvnf_native::port::{Link, Port, Sent};
use libvnf_native::stack::Host;
use libvnf_native::stack::bench::station;
use libvnf_native::stack::tcp::TcpEvent;

fn drive(endpoint: Endpoint, connections: usize, outstanding: usize) -> Drive {
    Drive {
        endpoint,
        connections,
        requests_per_connection: None,
        outstanding,
        rate: None,
        size: 64,
        request_id: None,
        verify: true,
        duration: Duration::from_secs(2),
        warmup: Duration::from_millis(300),
        timeout: Duration::from_secs(1),
        reset: false,
    }
}

fn on(port: impl Port + 'static, last: u8) -> Transport {
    let host = Host::new(station(last));
    let pool = Pool::new(&PoolConfig::default()).expect("memory for the pool");
    Transport::Port(Box::new(PortTransport { port: Box::new(port), host, pool }))
}

/// A run against a responder on a thread of its own, on the other cpu.
fn against(here: Transport, there: Transport, drive: Drive) -> Report {
    let stop = Arc::new(AtomicBool::new(false));
    let ready = Arc::new(AtomicBool::new(false));
    let respond = vec![Respond { endpoint: drive.endpoint.clone(), size: drive.size }];
    let responder = std::thread::spawn({
        let (stop, ready) = (stop.clone(), ready.clone());
        move || {
            let config = LoadConfig { drive: None, respond, transport: there, cpu: Some(1) };
            run(config, &stop, &mut |_| ready.store(true, Ordering::Relaxed))
        }
    });
    // The first progress says that the responder listens.
    while !ready.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    let config = LoadConfig { drive: Some(drive), respond: vec![], transport: here, cpu: Some(0) };
    let report = run(config, &AtomicBool::new(false), &mut |_| ()).expect("a report");
    stop.store(true, Ordering::Relaxed);
    responder.join().expect("the responder's thread").expect("its report");
    report
}

/// Sends every datagram back at once, in the same thread: what is left is the generator's own cost. Without `answers`
/// frames come out as they went in.
struct Mirror {
    answers: bool,
    /// A ring of frames; `next` is the oldest of `waiting`.
    frames: Vec<Vec<u8>>,
    next: usize,
    waiting: usize,
}

impl Mirror {
    fn new(answers: bool) -> Self {
        Self { answers, frames: vec![Vec::new(); 4096], next: 0, waiting: 0 }
    }
}

/// The frame as its receiver answers it: an ARP request by the station asked for, a datagram by its receiver. Swapping
/// addresses and ports changes no checksum.
fn answer(frame: &mut [u8]) {
    const STATION: [u8; 6] = [2, 0, 0, 0, 0, 3];
    let (to, from) = frame[..12].split_at_mut(6);
    to.copy_from_slice(from);
    from.copy_from_slice(&STATION);
    if frame[12..14] == [0x08, 0x06] {
        // RFC 826: the operation becomes "reply", sender and target change places.
        frame[21] = 2;
        let (sender, target) = frame[22..42].split_at_mut(10);
        sender.swap_with_slice(target);
        sender[..6].copy_from_slice(&STATION);
    } else {
        let (source, destination) = frame[26..34].split_at_mut(4);
        source.swap_with_slice(destination);
        let (source, destination) = frame[34..38].split_at_mut(2);
        source.swap_with_slice(destination);
    }
}

impl Port for Mirror {
    fn link(&self) -> Link {
        Link::Up
    }

    fn generation(&self) -> u64 {
        1
    }

    fn wake_fd(&self) -> RawFd {
        -1
    }

    fn service(&mut self, _: Instant) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn lend(&mut self, _max: usize) -> Burst<'_> {
        Burst::EMPTY
    }

    fn give_back(&mut self, _dropped: usize) {}

    fn receive(&mut self, pool: &Pool, frames: &mut Vec<Slot>, max: usize) -> usize {
        let count = self.waiting.min(max);
        for _ in 0..count {
            let frame = &self.frames[self.next];
            if let Some(mut slot) = pool.take(frame.len()) {
                slot.copy_from_slice(frame);
                frames.push(slot);
            }
            self.next = (self.next + 1) % self.frames.len();
        }
        self.waiting -= count;
        count
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        if self.waiting == self.frames.len() {
            return Sent::Full;
        }
        let place = (self.next + self.waiting) % self.frames.len();
        let frame = &mut self.frames[place];
        frame.clear();
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        if self.answers {
            answer(frame);
        }
        self.waiting += 1;
        Sent::Queued
    }

    fn flush(&mut self) {}

    fn arm(&mut self) -> bool {
        self.waiting == 0
    }

    fn disarm(&mut self) {}

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// A host that echoes TCP behind the port, in the same thread. How long it takes for that is told in `spent_ns`.
struct Far {
    host: Host,
    pool: Pool,
    there: Mirror,
    back: Mirror,
    frames: Vec<Slot>,
    events: Vec<TcpEvent>,
    bytes: Vec<u8>,
    spent_ns: Arc<AtomicU64>,
}

impl Far {
    fn new(spent_ns: &Arc<AtomicU64>) -> Self {
        let mut host = Host::new(station(3));
        host.tcp_listen(None, 5000, 0).expect("a free port");
        let pool = Pool::new(&PoolConfig::default()).expect("memory for the pool");
        let (there, back) = (Mirror::new(false), Mirror::new(false));
        Self { host, pool, there, back, frames: vec![], events: vec![], bytes: vec![], spent_ns: spent_ns.clone() }
    }

    fn react(&mut self, event: TcpEvent) {
        match event {
            TcpEvent::Accepted { id, .. } => {
                self.host.tcp_adopt(id, 0);
            }
            TcpEvent::Readable { id, .. } => {
                let bytes = &mut self.bytes;
                bytes.clear();
                let mut take = |shown: &[u8]| {
                    bytes.extend_from_slice(shown);
                    (shown.len(), shown.len())
                };
                while self.host.tcp_receive(id, &mut take).is_some_and(|shown| shown > 0) {}
                self.host.tcp_send(id, &self.bytes);
                if self.host.tcp_ended(id) {
                    self.host.tcp_close(id);
                }
            }
            _ => {}
        }
    }
}

impl Port for Far {
    fn link(&self) -> Link {
        Link::Up
    }

    fn generation(&self) -> u64 {
        1
    }

    fn wake_fd(&self) -> RawFd {
        -1
    }

    fn service(&mut self, now: Instant) {
        if self.host.deadline().is_some_and(|deadline| deadline <= now) {
            self.host.on_timer(now, &mut self.back, &mut Vec::new());
        }
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn lend(&mut self, _max: usize) -> Burst<'_> {
        Burst::EMPTY
    }

    fn give_back(&mut self, _dropped: usize) {}

    fn receive(&mut self, pool: &Pool, frames: &mut Vec<Slot>, max: usize) -> usize {
        self.back.receive(pool, frames, max)
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        self.there.send(parts)
    }

    fn flush(&mut self) {
        if self.there.waiting == 0 {
            return;
        }
        let begun = Instant::now();
        self.there.receive(&self.pool, &mut self.frames, usize::MAX);
        for frame in std::mem::take(&mut self.frames) {
            self.host.receive(frame, begun, &self.pool, &mut self.back);
        }
        let mut events = std::mem::take(&mut self.events);
        // Once more: what has just been adopted may be readable.
        for _ in 0..2 {
            self.host.tcp_events(&mut events);
            events.drain(..).for_each(|event| self.react(event));
        }
        self.events = events;
        self.host.tcp_flush(begun, &mut self.back);
        self.spent_ns.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    fn arm(&mut self) -> bool {
        self.back.waiting == 0
    }

    fn disarm(&mut self) {}

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// What one request of `drive` costs the generator itself.
fn by_itself(name: &str, drive: Drive) {
    let spent_ns = Arc::new(AtomicU64::new(0));
    let per_connection = drive.requests_per_connection.is_some();
    let config = LoadConfig { drive: Some(drive), transport: on(Far::new(&spent_ns), 1), ..LoadConfig::default() };
    let begun = Instant::now();
    let report = run(config, &AtomicBool::new(false), &mut |_| ()).expect("a report");
    // By the share of the time: whoever else runs on this cpu takes it from both.
    let spent = spent_ns.load(Ordering::Relaxed) as f64 / begun.elapsed().as_nanos() as f64;
    let own_s = report.cpu_seconds * (1.0 - spent);
    let all = if per_connection {
        report.connections_opened as f64
    } else {
        report.requests as f64 * (report.seconds + 0.3) / report.seconds
    };
    let (cost, errors) = (own_s * 1e9 / all, report.errors.total());
    println!("{name:52} {cost:>5.0} ns/request of the generator: {:>9.0} /s by itself  errors {errors}", 1e9 / cost);
}

fn row(name: &str, report: &Report) {
    println!(
        "{name:36} {:>10.0} /s  p50 {:>7.1}  p99 {:>7.1}  p99.9 {:>8.1} µs  cpu {:>5.0} ns/request  errors {}  cores {:.0} ns",
        report.rate,
        report.latency_us(0.5),
        report.latency_us(0.99),
        report.latency_us(0.999),
        report.cpu_seconds * 1e9 * report.seconds / (report.seconds + 0.3) / report.requests as f64,
        report.errors.total(),
        core_distance((0, 1)).unwrap_or(f64::NAN),
    );
}

fn main() {
    let far = Endpoint::Udp("10.0.0.3:5000".parse().expect("an address"));
    for outstanding in [1, 64, 512] {
        let config = LoadConfig {
            drive: Some(drive(far.clone(), 4, outstanding)),
            transport: on(Mirror::new(true), 1),
            ..LoadConfig::default()
        };
        let report = run(config, &AtomicBool::new(false), &mut |_| ()).expect("a report");
        row(&format!("UDP, mirror, {outstanding} in flight"), &report);
    }
    let stream = |connections, outstanding| {
        drive(Endpoint::Tcp("10.0.0.3:5000".parse().expect("an address")), connections, outstanding)
    };
    for (connections, outstanding) in [(64, 64), (16, 256), (1024, 1024), (40_000, 1024)] {
        let name = format!("TCP, {connections} connections, {outstanding} in flight");
        by_itself(&name, stream(connections, outstanding));
    }
    for reset in [false, true] {
        let name = format!("TCP, connection per request, 64 at once, {}", if reset { "reset" } else { "closed" });
        by_itself(&name, Drive { requests_per_connection: Some(1), reset, ..stream(64, 64) });
    }
    for outstanding in [64, 256, 1024] {
        let (left, right) = pair(1500, 4096);
        let report = against(on(left, 1), on(right, 3), drive(far.clone(), 4, outstanding));
        row(&format!("UDP, in-memory pair, {outstanding} in flight"), &report);
    }
    let path = std::env::temp_dir().join(format!("bench-load-{}.sock", std::process::id()));
    for outstanding in [1, 64, 256, 512] {
        let server = Memif::new(MemifConfig::new("server", &path, Role::Server)).expect("a memif server");
        let client = Memif::new(MemifConfig::new("client", &path, Role::Client)).expect("a memif client");
        let report = against(on(client, 1), on(server, 3), drive(far.clone(), 4, outstanding));
        row(&format!("UDP, memif, {outstanding} in flight"), &report);
    }
    let here: SocketAddr = "127.0.0.1:15999".parse().expect("an address");
    let kernel = || (Transport::Kernel, Transport::Kernel);
    let cases = [
        ("kernel UDP, 1 socket, 64 in flight", drive(Endpoint::Udp(here), 1, 64)),
        ("kernel TCP, 100 connections", drive(Endpoint::Tcp(here), 100, 100)),
        ("kernel TCP, 4 × 64 in flight", drive(Endpoint::Tcp(here), 4, 256)),
        (
            "kernel TCP, connection per request",
            Drive { requests_per_connection: Some(1), ..drive(Endpoint::Tcp(here), 20, 20) },
        ),
        ("Unix, 4 × 64 in flight", drive(Endpoint::Unix(path), 4, 256)),
    ];
    for (name, drive) in cases {
        let (near, far) = kernel();
        row(name, &against(near, far, drive));
    }
}
