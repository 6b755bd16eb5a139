//! What the host costs per UDP datagram, apart from the port: `cargo bench --bench stack`.
//!
//! Each figure is the best of several rounds, in nanoseconds per datagram. "slot" is the pool's part of receiving (take,
//! copy, give back), measured alone and taken off.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libvnf_native::packet::{Pool, PoolConfig};
use libvnf_native::stack::bench::{Recorder, mac, station};
use libvnf_native::stack::{Host, Input};

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
        let (mut ours, mut theirs) = (Host::new(station(2)), Host::new(station(7)));
        let mut port = Recorder::default();
        let payload = vec![0x5a; len];
        let (mut frames, mut ids) = (Vec::new(), Vec::new());
        for flow in 0..flows {
            let text = |last: u8, port: u16| {
                if is_v4 { format!("10.0.0.{last}:{port}") } else { format!("[fd00::{last}]:{port}") }
            };
            let (us, them): (SocketAddr, SocketAddr) =
                (text(2, 5000).parse().unwrap(), text(7, 1 + flow as u16).parse().unwrap());
            ids.push(ours.adopt(us, them, mac(7), flow as u32).unwrap());
            let id = theirs.adopt(them, us, mac(2), 0).unwrap();
            theirs.send(id, &payload, now, &mut port);
            frames.append(&mut port.sent);
        }
        port.keeps = false;
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
