//! Runs over ports: an in-memory pair, and memif. Datagrams; streams are in `streams`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::*;
use super::{drive, hundreds_of_requests, until};
use crate::packet::PoolConfig;
use crate::port::memif::{Memif, MemifConfig, Role};
use crate::port::pair::pair;
use crate::stack::{Cidr, HostConfig, Input, To};

pub(super) fn host(last: u8, addresses: &[&str]) -> Host {
    let addresses = addresses.iter().map(|address| Cidr { address: address.parse().unwrap(), prefix: 24 }).collect();
    Host::new(HostConfig {
        mac: [2, 0, 0, 0, 0, last],
        addresses,
        virtual_addresses: vec![],
        gateways: vec![],
        mtu: 1500,
        tcp: Default::default(),
    })
}

pub(super) fn pool() -> Pool {
    Pool::new(&PoolConfig { classes: vec![(2_048, 8_192)] }).unwrap()
}

pub(super) fn on(port: impl Port + 'static, host: Host) -> Transport {
    Transport::Port(Box::new(PortTransport { port: Box::new(port), host, pool: pool() }))
}

fn udp(address: &str) -> Endpoint {
    Endpoint::Udp(address.parse().unwrap())
}

fn measure(transport: Transport, drive: Drive, respond: Vec<Respond>) -> Result<Report, LoadError> {
    until(transport, drive, respond, hundreds_of_requests)
}

/// Something that runs on a thread until this is dropped.
pub(super) struct Running<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Running<T> {
    pub(super) fn new(work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        Self { stop, thread: Some(std::thread::spawn(move || work(&stopping))) }
    }

    pub(super) fn end(mut self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn responder(port: impl Port + 'static) -> Running<Report> {
    Running::new(move |stop| {
        let respond = vec![Respond { endpoint: udp("10.0.0.3:5000"), size: 64 }];
        let transport = on(port, host(3, &["10.0.0.3"]));
        run(LoadConfig { respond, transport, ..LoadConfig::default() }, stop, &mut |_| ()).unwrap()
    })
}

/// B: what comes to port 5000 of 10.0.0.2 goes to 10.0.0.3, each peer's by a flow of its own, and back; of every
/// `lossy` requests one is lost.
fn forwarder(mut port: impl Port + 'static, lossy: u64) -> Running<()> {
    Running::new(move |stop| {
        let (mut host, pool, mut frames) = (host(2, &["10.0.0.2"]), pool(), Vec::new());
        host.listen(None, 5000, 0).unwrap();
        let (mut ways, mut count) = (Vec::new(), 0);
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            port.service(now);
            port.receive(&pool, &mut frames, 64);
            for frame in frames.drain(..) {
                let Input::Datagram(datagram) = host.receive(frame, now, &pool, &mut port) else { continue };
                count += 1;
                let flow = match datagram.to {
                    To::Listener(_) => {
                        let owner = ways.len() as u32;
                        let (local, remote) = (datagram.destination, datagram.source);
                        let front = host.adopt(local, remote, datagram.source_mac, owner).unwrap();
                        let back = host.open("10.0.0.3:5000".parse::<SocketAddr>().unwrap(), owner + 1).unwrap();
                        // To whom a datagram goes that came by the front, and by the back.
                        ways.extend([back, front]);
                        back
                    }
                    To::Flow(owner) => ways[owner as usize],
                };
                if count % lossy != 0 {
                    host.send(flow, &datagram.payload, now, &mut port);
                }
            }
            if host.deadline().is_some_and(|deadline| deadline <= now) {
                host.on_timer(now, &mut port, &mut Vec::new());
            }
            port.flush();
        }
    })
}

#[test]
fn two_runs_on_a_pair_of_ports_serve_each_other() {
    let (left, right) = pair(1500, 4096);
    let server = responder(right);
    let report = measure(on(left, host(1, &["10.0.0.1"])), drive(udp("10.0.0.3:5000")), vec![]).unwrap();
    let echoed = server.end().echoed;
    assert_eq!(report.errors.named().next(), None);
    assert!(report.requests > 0 && echoed >= report.requests, "{report:?}");
    assert_eq!(report.connections_opened, 4);
}

#[test]
fn one_host_plays_both_ends_of_a_chain() {
    let (left, right) = pair(1500, 4096);
    let forwarder = forwarder(right, u64::MAX);
    let ends = on(left, host(1, &["10.0.0.1", "10.0.0.3"]));
    let respond = vec![Respond { endpoint: udp("10.0.0.3:5000"), size: 64 }];
    let report = measure(ends, drive(udp("10.0.0.2:5000")), respond).unwrap();
    forwarder.end();
    assert_eq!(report.errors.named().next(), None);
    assert!(report.requests > 0 && report.echoed >= report.requests, "{report:?}");
}

#[test]
fn a_lossy_chain_costs_timeouts_and_goes_on() {
    let (left, right) = pair(1500, 4096);
    let forwarder = forwarder(right, 50);
    let ends = on(left, host(1, &["10.0.0.1", "10.0.0.3"]));
    let respond = vec![Respond { endpoint: udp("10.0.0.3:5000"), size: 64 }];
    let lossy = Drive { timeout: Duration::from_millis(50), ..drive(udp("10.0.0.2:5000")) };
    let report = until(ends, lossy, respond, |told| told.errors > 20 && told.requests > 20).unwrap();
    forwarder.end();
    assert!(report.errors.of(Failure::Timeout) > 16 && report.requests > 16, "{report:?}");
    assert_eq!(report.errors.of(Failure::Mismatch), 0);
}

#[test]
fn flows_carry_no_more_requests_than_they_may() {
    let (left, right) = pair(1500, 4096);
    let server = responder(right);
    let mut short = drive(udp("10.0.0.3:5000"));
    short.requests_per_connection = Some(3);
    let report = measure(on(left, host(1, &["10.0.0.1"])), short, vec![]).unwrap();
    server.end();
    assert_eq!(report.errors.named().next(), None);
    assert!(report.connections_opened * 3 >= report.requests && report.requests > 0, "{report:?}");
}

#[test]
fn a_schedule_is_kept_on_a_port() {
    let (left, right) = pair(1500, 4096);
    let server = responder(right);
    let open = Drive { rate: Some(2000.0), duration: Duration::from_millis(150), ..drive(udp("10.0.0.3:5000")) };
    let report = until(on(left, host(1, &["10.0.0.1"])), open, vec![], |_| false).unwrap();
    server.end();
    assert_eq!((report.requests + report.unsent, report.errors.total()), (300, 0), "{report:?}");
}

#[test]
fn a_closed_port_is_refused_and_a_strange_network_is_unreachable_at_once() {
    let (left, right) = pair(1500, 4096);
    let server = responder(right);
    let error = measure(on(left, host(1, &["10.0.0.1"])), drive(udp("10.0.0.3:9")), vec![]).unwrap_err();
    server.end();
    assert_eq!(error.to_string(), "udp://10.0.0.3:9: connection refused");

    let (left, _right) = pair(1500, 16);
    let error = measure(on(left, host(1, &["10.0.0.1"])), drive(udp("10.9.0.3:9")), vec![]).unwrap_err();
    assert!(matches!(error, LoadError::Unreached { failure: Failure::Unreachable, .. }), "{error}");
}

#[test]
fn a_port_has_no_unix_sockets_and_answers_at_its_own_addresses_only() {
    let refused = |drive: Endpoint, respond: &str| {
        let (left, _right) = pair(1500, 16);
        let respond = vec![Respond { endpoint: udp(respond), size: 64 }];
        measure(on(left, host(1, &["10.0.0.1"])), super::drive(drive), respond).unwrap_err().to_string()
    };
    assert!(refused(Endpoint::Unix("/x".into()), "10.0.0.1:5000").starts_with("unix:///x: expected tcp:// or udp://"));
    assert!(refused(udp("10.0.0.3:5000"), "10.0.0.4:5000").contains("not an address of the port"));
}

#[test]
fn a_run_over_memif_serves_another() {
    let path = std::env::temp_dir().join(format!("load-memif-{}.sock", std::process::id()));
    let server = responder(Memif::new(MemifConfig::new("server", &path, Role::Server)).unwrap());
    let client = Memif::new(MemifConfig::new("client", &path, Role::Client)).unwrap();
    let report = measure(on(client, host(1, &["10.0.0.1"])), drive(udp("10.0.0.3:5000")), vec![]).unwrap();
    let echoed = server.end().echoed;
    assert_eq!(report.errors.named().next(), None);
    assert!(report.requests > 0 && echoed >= report.requests, "{report:?}");
}
