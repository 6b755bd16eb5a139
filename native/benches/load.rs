//! How fast the load generator is itself, so that no measurement with it measures it: `cargo bench --bench load`.
//!
//! The mirror's rows are one thread: what a request costs the generator. The others are two threads, one per cpu,
//! generator and responder, and need two cpus to themselves.
//! The cores' distance stands beside each row: on virtual machines it changes, and the figures with it.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libvnf_native::load::{Drive, Endpoint, LoadConfig, PortTransport, Report, Respond, Transport, core_distance, run};
use libvnf_native::packet::{Pool, PoolConfig, Slot};
use libvnf_native::port::memif::{Memif, MemifConfig, Role};
use libvnf_native::port::pair::pair;
use libvnf_native::port::{Link, Port, Sent};
use libvnf_native::stack::Host;
use libvnf_native::stack::bench::station;

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

/// Sends every datagram back at once, in the same thread: what is left is the generator's own cost.
struct Mirror {
    /// A ring of frames; `next` is the oldest of `waiting`.
    frames: Vec<Vec<u8>>,
    next: usize,
    waiting: usize,
}

impl Mirror {
    fn new() -> Self {
        Self { frames: vec![Vec::new(); 4096], next: 0, waiting: 0 }
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
        answer(frame);
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
            transport: on(Mirror::new(), 1),
            ..LoadConfig::default()
        };
        let report = run(config, &AtomicBool::new(false), &mut |_| ()).expect("a report");
        row(&format!("UDP, mirror, {outstanding} in flight"), &report);
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
