//! Runs against real kernel sockets. Every test has a loopback address of its own, so that ports never clash.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::*;
use super::{drive, hundreds_of_requests, until};

fn here(port: u16) -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, high, low, NEXT.fetch_add(1, Ordering::Relaxed) as u8);
    (address, port).into()
}

fn respond(drive: &Drive) -> Vec<Respond> {
    vec![Respond { endpoint: drive.endpoint.clone(), size: drive.size }]
}

fn measure(drive: Drive, respond: Vec<Respond>) -> Result<Report, LoadError> {
    until(Transport::Kernel, drive, respond, hundreds_of_requests)
}

fn socket_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("load-{name}-{}.sock", std::process::id()))
}

/// A server of the test's own: `answer` says what to do with the n-th datagram.
struct Datagrams {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Datagrams {
    fn new(mut answer: impl FnMut(u64, &mut [u8]) -> bool + Send + 'static) -> Self {
        let socket = UdpSocket::bind(here(5000)).unwrap();
        let (address, stop) = (socket.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            for number in 0.. {
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
                if answer(number, &mut buffer[..length]) {
                    socket.send_to(&buffer[..length], from).unwrap();
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"end", self.address).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A listener whose connections are served one after the other by `serve`, for as many as `count`.
fn streams(count: usize, mut serve: impl FnMut(std::net::TcpStream) + Send + 'static) -> (Endpoint, JoinHandle<()>) {
    let listener = TcpListener::bind(here(5000)).unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        for _ in 0..count {
            serve(listener.accept().unwrap().0);
        }
    });
    (endpoint, thread)
}

#[test]
fn both_ends_in_one_process_over_every_kind_of_socket() {
    let tcp6 = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let endpoints = [
        Endpoint::Tcp(here(5000)),
        Endpoint::Tcp(tcp6),
        Endpoint::Udp(here(5000)),
        Endpoint::Udp(tcp6),
        Endpoint::Unix(socket_path("both")),
    ];
    for endpoint in endpoints {
        let drive = drive(endpoint);
        let name = drive.endpoint.to_string();
        let report = measure(drive.clone(), respond(&drive)).unwrap();
        assert_eq!(report.errors.named().next(), None, "{name}");
        assert!(report.requests > 0 && report.echoed >= report.requests, "{name}: {report:?}");
        assert_eq!(report.connections_opened, 4, "{name}");
        assert_eq!(report.latency.count(), report.requests, "{name}");
        assert!(report.cpu_seconds > 0.0, "{name}");
    }
    assert!(!socket_path("both").exists());
}

#[test]
fn the_measured_time_is_the_duration_without_the_warmup() {
    let (duration, warmup) = (Duration::from_millis(50), Duration::from_millis(20));
    let drive = Drive { duration, warmup, ..drive(Endpoint::Udp(here(5000))) };
    let report = measure(drive.clone(), respond(&drive)).unwrap();
    assert!((report.seconds - 0.05).abs() < 1e-9 && report.echoed >= report.requests, "{report:?}");
}

#[test]
fn messages_larger_than_every_buffer_and_as_small_as_one_byte_come_back_whole() {
    for size in [1, 7, 300_000, 1 << 20] {
        let drive = Drive { size, connections: 2, outstanding: 6, ..drive(Endpoint::Tcp(here(5000))) };
        let report = until(Transport::Kernel, drive.clone(), respond(&drive), |told| told.requests >= 10).unwrap();
        assert_eq!(report.errors.named().next(), None, "{size} bytes");
        assert!(report.requests > 0, "{size} bytes");
    }
    let drive = Drive { size: 60_000, outstanding: 8, ..drive(Endpoint::Udp(here(5000))) };
    let report = measure(drive.clone(), respond(&drive)).unwrap();
    assert!(report.requests > 0 && report.errors.of(Failure::Mismatch) == 0);
}

#[test]
fn a_connection_carries_no_more_requests_than_it_may() {
    for (per_connection, reset) in [(1, false), (1, true), (5, false)] {
        let mut drive = drive(Endpoint::Tcp(here(5000)));
        (drive.requests_per_connection, drive.reset) = (Some(per_connection), reset);
        let report = measure(drive.clone(), respond(&drive)).unwrap();
        assert_eq!(report.errors.named().next(), None);
        assert!(report.requests > 0);
        assert!(report.connections_opened * per_connection >= report.requests);
        assert!(report.connections_opened * per_connection <= report.echoed + 4 * per_connection, "{report:?}");
    }
}

#[test]
fn replies_with_ids_may_overtake_each_other_on_a_stream() {
    let (endpoint, server) = streams(1, |mut stream| {
        let mut pair = [0; 64];
        while stream.read_exact(&mut pair).is_ok() {
            pair.rotate_left(32);
            if stream.write_all(&pair).is_err() {
                return;
            }
        }
    });
    let id = Some(IdField { offset: 30, size: 2 });
    let swapped = Drive { connections: 1, outstanding: 2, size: 32, request_id: id, ..drive(endpoint) };
    // The schedule always sends a second request; a closed loop would start with both and go on in pairs as well.
    let report = measure(swapped, vec![]).unwrap();
    assert!(report.requests > 0);
    assert_eq!((report.errors.of(Failure::Mismatch), report.errors.of(Failure::Unexpected)), (0, 0));
    server.join().unwrap();
}

#[test]
fn a_lost_datagram_is_counted_and_its_place_is_used_again() {
    let server = Datagrams::new(|number, _| number % 10 != 9);
    let lossy = Drive { timeout: Duration::from_millis(20), outstanding: 8, ..drive(Endpoint::Udp(server.address)) };
    // More than twice as many are lost as there are places, and still there are requests.
    let report = until(Transport::Kernel, lossy, vec![], |told| told.errors > 20 && told.requests > 20).unwrap();
    assert!(report.errors.of(Failure::Timeout) > 16 && report.errors.of(Failure::Mismatch) == 0, "{report:?}");
}

#[test]
fn a_datagram_socket_without_ids_does_not_take_a_late_reply_for_the_next() {
    // Each reply is the request before it: late by one.
    let mut kept = vec![0; 64];
    let server = Datagrams::new(move |number, bytes| {
        let before = std::mem::replace(&mut kept, bytes.to_vec());
        bytes.copy_from_slice(&before);
        number % 2 == 1
    });
    let late = Drive {
        connections: 1,
        outstanding: 1,
        timeout: Duration::from_millis(5),
        ..drive(Endpoint::Udp(server.address))
    };
    let report = until(Transport::Kernel, late, vec![], |told| told.errors > 2).unwrap();
    assert!(report.connections_opened > 2 && report.errors.of(Failure::Timeout) > 0, "{report:?}");
}

#[test]
fn a_wrong_byte_in_a_reply_is_a_mismatch() {
    let server = Datagrams::new(|number, bytes| {
        bytes[63] ^= u8::from(number % 5 == 0);
        true
    });
    let report = measure(drive(Endpoint::Udp(server.address)), vec![]).unwrap();
    let wrong = report.errors.of(Failure::Mismatch);
    assert!(wrong > 0 && report.errors.total() == wrong, "{report:?}");
    assert!((wrong * 4).abs_diff(report.requests) < 100, "{report:?}");
}

#[test]
fn an_open_loop_charges_a_stall_to_every_request_it_delayed() {
    let stall = Duration::from_millis(200);
    let server = Datagrams::new(move |number, _| {
        if number == 100 {
            std::thread::sleep(stall);
        }
        true
    });
    let open = Drive {
        rate: Some(1000.0),
        connections: 1,
        outstanding: 1,
        duration: Duration::from_secs(1),
        warmup: Duration::ZERO,
        ..drive(Endpoint::Udp(server.address))
    };
    let report = until(Transport::Kernel, open, vec![], |_| false).unwrap();
    // Only one request was in flight during the stall; the 200 that were due meanwhile waited too.
    assert!(report.latency.max() >= 200_000_000, "{report:?}");
    assert!(report.latency.quantile(0.999) >= 190_000_000, "{report:?}");
    assert!(report.latency.quantile(0.92) >= 100_000_000, "{report:?}");
    assert_eq!(report.requests + report.unsent + report.errors.total(), 1000);
}

#[test]
fn an_open_loop_issues_exactly_what_is_scheduled() {
    let open = Drive { rate: Some(2000.0), duration: Duration::from_millis(500), ..drive(Endpoint::Tcp(here(5000))) };
    let report = until(Transport::Kernel, open.clone(), respond(&open), |_| false).unwrap();
    assert_eq!(report.requests + report.unsent, 1000, "{report:?}");
    assert_eq!(report.errors.total(), 0);
}

#[test]
fn an_endpoint_where_nobody_listens_is_refused_at_once() {
    let nobody = [Endpoint::Tcp(here(9)), Endpoint::Udp(here(9)), Endpoint::Unix(socket_path("nobody"))];
    for endpoint in nobody {
        let name = endpoint.to_string();
        match measure(drive(endpoint), vec![]) {
            Err(LoadError::Unreached { failure: Failure::Refused, .. }) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    let error = measure(drive(Endpoint::Tcp("127.0.0.1:9".parse().unwrap())), vec![]).unwrap_err();
    assert_eq!(error.to_string(), "tcp://127.0.0.1:9: Connection refused (os error 111)");
}

#[test]
fn an_address_in_use_cannot_be_listened_at() {
    let endpoint = Endpoint::Udp(here(5000));
    let two = Respond { endpoint: endpoint.clone(), size: 64 };
    let error = measure(drive(endpoint), vec![two.clone(), two]).unwrap_err();
    assert!(matches!(error, LoadError::Listen { .. }), "{error}");
}

#[test]
fn a_server_that_closes_early_costs_its_requests_and_the_run_goes_on() {
    let (endpoint, server) = streams(50, |mut stream| {
        let mut message = [0; 64];
        for _ in 0..10 {
            if stream.read_exact(&mut message).is_err() || stream.write_all(&message).is_err() {
                return;
            }
        }
        // One more is taken, and never answered.
        let _ = stream.read_exact(&mut message);
    });
    let drive = Drive { connections: 1, outstanding: 2, ..drive(endpoint) };
    // When all its connections are spent the server goes away, and refused requests are all there is.
    let report = until(Transport::Kernel, drive, vec![], |told| told.errors > 100).unwrap();
    server.join().unwrap();
    let lost = report.errors.of(Failure::Closed) + report.errors.of(Failure::Reset);
    assert!(lost >= 50 && report.connections_opened == 50 && report.requests == 500, "{report:?}");
    assert!(report.errors.of(Failure::Refused) > 0, "{report:?}");
}

#[test]
fn a_server_that_never_answers_or_never_reads_ends_in_timeouts() {
    for (id, size) in [(None, 64), (Some(IdField { offset: 0, size: 4 }), 1 << 20)] {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let listener = TcpListener::bind(here(5000)).unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            // Connections wait in the accept queue for ever.
            let _ = ended.recv();
            drop(listener);
        });
        let silent = Drive { request_id: id, size, timeout: Duration::from_millis(20), ..drive(endpoint) };
        let report = until(Transport::Kernel, silent, vec![], |told| told.errors > 10).unwrap();
        assert!(report.requests == 0 && report.errors.of(Failure::Timeout) > 0, "{report:?}");
        drop(end);
        server.join().unwrap();
    }
}

#[test]
fn a_responder_alone_answers_until_it_is_stopped() {
    let (endpoint, stop) = (Endpoint::Udp(here(5000)), Arc::new(AtomicBool::new(false)));
    let alone = LoadConfig { respond: vec![Respond { endpoint, size: 0 }], ..LoadConfig::default() };
    let stopping = stop.clone();
    let mut told = 0;
    let report = run(alone, &stop, &mut |progress| {
        assert_eq!(progress.phase, Phase::Responding);
        told += 1;
        stopping.store(told == 2, Ordering::Relaxed);
    });
    assert_eq!(report.unwrap().requests, 0);
}

#[test]
fn stopping_reports_what_was_measured_until_then() {
    let endless = drive(Endpoint::Tcp(here(5000)));
    let respond = respond(&endless);
    let report = until(Transport::Kernel, endless, respond, |told| told.phase == Phase::Measuring).unwrap();
    assert!(report.seconds > 0.0 && report.seconds < 3600.0, "{report:?}");
}

/// A-B-C with both ends in one run, B a forwarder.
#[test]
fn one_run_plays_both_ends_of_a_chain() {
    let (front, back) = (here(5000), here(5000));
    let forwarder = UdpSocket::bind(front).unwrap();
    let behind = UdpSocket::bind("127.0.0.1:0").unwrap();
    behind.connect(back).unwrap();
    behind.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let forward = std::thread::spawn(move || {
        let mut message = [0; 2048];
        loop {
            let (length, from) = forwarder.recv_from(&mut message).unwrap();
            if length == 3 {
                return;
            }
            // At the end of the run the responder goes away, and perhaps a last request with it.
            if behind.send(&message[..length]).is_ok()
                && let Ok(length) = behind.recv(&mut message)
            {
                forwarder.send_to(&message[..length], from).unwrap();
            }
        }
    });
    let report =
        measure(drive(Endpoint::Udp(front)), vec![Respond { endpoint: Endpoint::Udp(back), size: 64 }]).unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"end", front).unwrap();
    forward.join().unwrap();
    assert_eq!(report.errors.named().next(), None);
    assert!(report.requests > 0 && report.echoed >= report.requests);
}

#[test]
fn a_run_with_nothing_to_do_is_refused() {
    let error = run(LoadConfig::default(), &AtomicBool::new(false), &mut |_| ()).unwrap_err();
    assert!(matches!(error, LoadError::Config(_)));
}
