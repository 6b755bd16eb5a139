//! What the host costs per UDP datagram, apart from the port: `cargo bench --bench stack`.
//!
//! Each figure is the best of several rounds, in nanoseconds per datagram. "slot" is the pool's part of receiving (take,
//! copy, give back), measured alone and taken off.

use std::hint::black_box;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use libvnf_native::packet::{Pool, PoolConfig, Slot};
use libvnf_native::port::{Link, Port, Sent};
use libvnf_native::stack::{Cidr, Host, HostConfig, Input};

const US: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Keeps the last frame, as a peer host would see it.
struct Last(Vec<u8>, bool);

impl Port for Last {
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
    fn receive(&mut self, _: &Pool, _: &mut Vec<Slot>, _: usize) -> usize {
        0
    }
    #[inline(never)]
    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        if self.1 {
            self.0 = parts.concat();
        }
        black_box(parts);
        Sent::Queued
    }
    fn flush(&mut self) {}
    fn arm(&mut self) -> bool {
        true
    }
    fn disarm(&mut self) {}
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

fn host(mac: [u8; 6], last: u8) -> Host {
    let cidr = |address: String, prefix| Cidr { address: address.parse().unwrap(), prefix };
    Host::new(HostConfig {
        mac,
        addresses: vec![cidr(format!("10.0.0.{last}"), 8), cidr(format!("fd00::{last}"), 64)],
        virtual_addresses: Vec::new(),
        gateways: Vec::new(),
        mtu: 1_500,
        tcp: Default::default(),
    })
}

/// The best of several rounds, in nanoseconds per call of `step`.
fn best(calls: usize, mut step: impl FnMut(usize)) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..15 {
        let start = Instant::now();
        for call in 0..calls {
            step(call);
        }
        best = best.min(start.elapsed());
    }
    best.as_nanos() as f64 / calls as f64
}

fn main() {
    let pool = Pool::new(&PoolConfig::default()).unwrap();
    let now = Instant::now();
    println!("{:>6} {:>8} {:>6} {:>10} {:>10} {:>10}", "family", "payload", "flows", "slot", "receive", "send");
    for (is_v4, len, flows) in [
        (true, 128, 1),
        (true, 128, 1_000),
        (true, 128, 50_000),
        (true, 1_400, 1),
        (false, 128, 1),
        (false, 128, 50_000),
    ] {
        let (mut ours, mut theirs) = (host(US, 2), host(PEER, 7));
        let mut port = Last(Vec::new(), true);
        let payload = vec![0x5a; len];
        let (mut frames, mut ids) = (Vec::new(), Vec::new());
        for flow in 0..flows {
            let text = |last: u8, port: u16| {
                if is_v4 { format!("10.0.0.{last}:{port}") } else { format!("[fd00::{last}]:{port}") }
            };
            let (us, them): (SocketAddr, SocketAddr) =
                (text(2, 5000).parse().unwrap(), text(7, 1 + flow as u16).parse().unwrap());
            ids.push(ours.adopt(us, them, PEER, flow as u32).unwrap());
            let id = theirs.adopt(them, us, US, 0).unwrap();
            theirs.send(id, &payload, now, &mut port);
            frames.push(port.0.clone());
        }
        port.1 = false;
        let calls = 100_000;
        let fill = |call: usize| {
            let frame = &frames[call.wrapping_mul(7_919) % flows];
            let mut slot = pool.take(frame.len()).unwrap();
            slot.copy_from_slice(frame);
            slot
        };
        let slot = best(calls, |call| drop(black_box(fill(call))));
        let receive = best(calls, |call| {
            let input = ours.receive(fill(call), now, &pool, &mut port);
            assert!(matches!(black_box(&input), Input::Datagram(_)));
        });
        let send = best(calls, |call| {
            black_box(ours.send(ids[call.wrapping_mul(7_919) % flows], &payload, now, &mut port));
        });
        let family = if is_v4 { "IPv4" } else { "IPv6" };
        println!("{family:>6} {len:>8} {flows:>6} {slot:>7.1} ns {:>7.1} ns {send:>7.1} ns", receive - slot);
    }
}
