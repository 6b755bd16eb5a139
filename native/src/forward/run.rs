//! A loop for ports that are only joined: `vnf bridge`. It polls while frames come, and sleeps when they do not, as the
//! engine of a VNF does (`port/polling.rs`).

use std::time::{Duration, Instant};

use super::bridge::Bridge;
use crate::port::lent::BURST;
use crate::port::polling::{self, Polling};
use crate::port::{Link, Port};

/// Rounds in a row that find frames, before a sleeping peer is woken and the clock is read again.
const ROUNDS: u32 = 16;
/// How often ports are served, and by the way `tick` is asked, while there is no end of frames.
const SERVICE: Duration = Duration::from_millis(1);
/// How often `tick` is called.
pub const TICK: Duration = Duration::from_millis(100);

pub type Ports = Vec<Box<dyn Port>>;

/// Passes frames between the two ports of each pair, once both have been up, until `tick` says false.
pub fn run(ports: &mut Ports, pairs: &[(usize, usize)], tick: &mut dyn FnMut(&Ports) -> bool) {
    let directions: Vec<_> = pairs.iter().flat_map(|&(one, two)| [(one, two), (two, one)]).collect();
    let mut bridges = vec![Bridge::default(); directions.len()];
    let mut unflushed = vec![false; ports.len()];
    // A port is not taken from before there is somebody to take it: a capture would be read to nobody.
    let mut begun = vec![false; ports.len()];
    let mut now = Instant::now();
    let mut polling = Polling::new(polling::LONGEST, now);
    let (mut next_service, mut next_tick, mut rounds, mut silent) = (now, now + TICK, 0, true);
    loop {
        let mut count = 0;
        for (bridge, &(from, to)) in bridges.iter_mut().zip(&directions).filter(|(_, way)| begun[way.0]) {
            let Ok([from, port]) = ports.get_disjoint_mut([from, to]) else { continue };
            let passed = bridge.pass(from.as_mut(), port.as_mut(), now, BURST);
            if passed > 0 {
                unflushed[to] = true;
                port.hand_over();
                count += passed;
            }
        }
        if count > 0 && std::mem::take(&mut silent) {
            polling.worked(Instant::now());
        }
        rounds += 1;
        if count > 0 && rounds < ROUNDS {
            continue;
        }
        rounds = 0;
        for (port, unflushed) in ports.iter_mut().zip(&mut unflushed) {
            if std::mem::take(unflushed) {
                port.flush();
            }
        }
        now = Instant::now();
        polling.begin(now);
        if !silent {
            polling.busy_until(now);
            silent = count == 0;
        }
        if now >= next_service {
            ports.iter_mut().for_each(|port| port.service(now));
            for &(one, two) in pairs {
                if !begun[one] && ports[one].link() == Link::Up && ports[two].link() == Link::Up {
                    (begun[one], begun[two]) = (true, true);
                }
            }
            next_service = now + SERVICE;
        }
        if now >= next_tick {
            if !tick(ports) {
                return;
            }
            next_tick = now + TICK;
        }
        if count > 0 {
            continue;
        }
        if polling.goes_on(now) {
            (0..16).for_each(|_| std::hint::spin_loop());
            continue;
        }
        if ports.iter_mut().zip(&begun).all(|(port, begun)| !begun || port.arm()) {
            let deadlines = ports.iter().filter_map(|port| port.deadline());
            let until = deadlines.fold(next_tick, Instant::min);
            let fds: Vec<_> = ports.iter().map(|port| port.wake_fd()).collect();
            polling::sleep_on(&fds, until.saturating_duration_since(now));
            next_service = now;
        }
        ports.iter_mut().for_each(|port| port.disarm());
    }
}
