//! TCP over ports, both ends in this process on an in-memory pair of ports.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::super::*;
use super::bypass::{Running, host, on, pool};
use super::{HOUR, drive, hundreds_of_requests, until};
use crate::port::pair::{PairPort, pair};
use crate::stack::tcp::{TcpEvent, TcpId};

const SERVER: &str = "10.0.0.3:5000";

fn tcp(address: &str) -> Endpoint {
    Endpoint::Tcp(address.parse().unwrap())
}

fn responder(port: PairPort, size: usize) -> Running<Report> {
    Running::new(move |stop: &AtomicBool| {
        let respond = vec![Respond { endpoint: tcp(SERVER), size }];
        let transport = on(port, host(3, &["10.0.0.3"]));
        run(LoadConfig { respond, transport, ..LoadConfig::default() }, stop, &mut |_| ()).unwrap()
    })
}

/// A run against a responder; what both report.
fn both(drive: Drive, enough: impl Fn(&Progress) -> bool) -> (Report, Report) {
    let (left, right) = pair(1500, 4096);
    let server = responder(right, drive.size);
    let report = until(on(left, host(1, &["10.0.0.1"])), drive, vec![], enough).unwrap();
    (report, server.end())
}

/// A server of the test's own: `react` is told everything that happens to a connection.
fn server(port: PairPort, mut react: impl FnMut(&mut Host, TcpEvent) + Send + 'static) -> Running<()> {
    Running::new(move |stop| {
        let (mut port, mut host, pool) = (port, host(3, &["10.0.0.3"]), pool());
        let (mut frames, mut events) = (Vec::new(), Vec::new());
        host.tcp_listen(None, 5000, 0).unwrap();
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let now = Instant::now();
            port.service(now);
            port.receive(&pool, &mut frames, 64);
            for frame in frames.drain(..) {
                host.receive(frame, now, &pool, &mut port);
            }
            if host.deadline().is_some_and(|deadline| deadline <= now) {
                host.on_timer(now, &mut port, &mut Vec::new());
            }
            host.tcp_events(&mut events);
            events.drain(..).for_each(|event| react(&mut host, event));
            host.tcp_flush(now, &mut port);
            port.flush();
        }
    })
}

fn read(host: &mut Host, id: TcpId) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let shown = host.tcp_receive(id, |shown| {
            bytes.extend_from_slice(shown);
            (shown.len(), shown.len())
        });
        if shown.is_none_or(|shown| shown == 0) {
            return bytes;
        }
    }
}

#[test]
fn kept_connections_are_opened_first_and_carry_all_requests() {
    let (report, answered) = both(drive(tcp(SERVER)), hundreds_of_requests);
    assert_eq!(report.errors.named().next(), None);
    assert_eq!((report.connections_opened, answered.connections_accepted), (4, 4));
    assert!(report.requests > 0 && answered.echoed >= report.requests, "{report:?}");
}

#[test]
fn a_connection_carries_no_more_requests_than_it_may() {
    for (requests, reset) in [(1, false), (1, true), (3, false)] {
        let short = Drive { requests_per_connection: Some(requests), reset, ..drive(tcp(SERVER)) };
        let (report, answered) = both(short, hundreds_of_requests);
        assert_eq!(report.errors.named().next(), None);
        let carried = report.connections_opened * requests;
        assert!((report.requests..report.requests + 16 + 4 * requests).contains(&carried), "{report:?}");
        assert!(answered.connections_accepted >= report.requests / requests, "{answered:?}");
    }
}

#[test]
fn more_connections_than_handshakes_at_once_are_opened_before_the_clock_starts() {
    let many = Drive { connections: 2000, outstanding: 64, ..drive(tcp(SERVER)) };
    let (report, answered) = both(many, |progress| progress.requests > 4000);
    assert_eq!(report.errors.named().next(), None);
    assert_eq!((report.connections_opened, answered.connections_accepted), (2000, 2000));
}

#[test]
fn messages_larger_than_every_window_and_as_small_as_one_byte_come_back_whole() {
    for (size, connections, enough) in [(1, 1, 300), (1 << 20, 1, 3), (300_000, 3, 9)] {
        let large = Drive { size, connections, outstanding: connections, ..drive(tcp(SERVER)) };
        let (report, answered) = both(large, move |progress| progress.requests >= enough);
        assert_eq!(report.errors.named().next(), None, "{size}");
        assert!(answered.echoed >= report.requests && report.requests > 0, "{size}");
    }
}

#[test]
fn a_schedule_is_kept() {
    let open = Drive { rate: Some(2000.0), duration: Duration::from_millis(150), ..drive(tcp(SERVER)) };
    let (report, _) = both(open, |_| false);
    assert_eq!((report.requests + report.unsent, report.errors.total()), (300, 0), "{report:?}");
}

#[test]
fn one_host_plays_both_ends_of_a_chain() {
    let (left, right) = pair(1500, 4096);
    // B: what comes on one connection leaves on another, each way.
    let mut twins: Vec<(TcpId, TcpId)> = Vec::new();
    let chain = server(right, move |host, event| match event {
        TcpEvent::Accepted { id, .. } => {
            let far = host.tcp_open("10.0.0.2:6000".parse().unwrap(), 0, HOUR, Instant::now()).unwrap();
            host.tcp_adopt(id, 0);
            twins.push((id, far));
        }
        TcpEvent::Readable { id, .. } | TcpEvent::Connected { id, .. } => {
            let &(near, far) = twins.iter().find(|(near, far)| *near == id || *far == id).unwrap();
            for (from, to) in [(near, far), (far, near)] {
                // Before `far` is connected its bytes wait: it has no room then.
                if host.tcp_room(to) >= 1024 {
                    let bytes = read(host, from);
                    assert_eq!(host.tcp_send(to, &bytes), bytes.len());
                }
                if host.tcp_ended(from) {
                    host.tcp_end(to);
                }
            }
        }
        TcpEvent::Writable { .. } | TcpEvent::Closed { .. } => {}
    });
    let ends = on(left, host(1, &["10.0.0.1", "10.0.0.2"]));
    let respond = vec![Respond { endpoint: tcp("10.0.0.2:6000"), size: 64 }];
    let short = Drive { requests_per_connection: Some(1), outstanding: 4, ..drive(tcp(SERVER)) };
    let report = until(ends, short, respond, hundreds_of_requests).unwrap();
    chain.end();
    assert_eq!(report.errors.named().next(), None);
    assert!(report.requests > 0 && report.echoed >= report.requests, "{report:?}");
    assert!(report.connections_accepted >= report.requests);
}

#[test]
fn a_closed_port_is_refused_and_a_strange_network_is_unreachable_before_the_clock() {
    for requests_per_connection in [None, Some(1)] {
        let (left, right) = pair(1500, 4096);
        let server = responder(right, 64);
        let wrong = Drive { requests_per_connection, ..drive(tcp("10.0.0.3:9")) };
        let error = until(on(left, host(1, &["10.0.0.1"])), wrong, vec![], |_| false).unwrap_err();
        server.end();
        assert!(matches!(error, LoadError::Unreached { failure: Failure::Refused, .. }), "{error}");
        assert_eq!(error.to_string(), "tcp://10.0.0.3:9: connection refused");

        let (left, _right) = pair(1500, 16);
        let strange = Drive { requests_per_connection, ..drive(tcp("10.9.0.3:9")) };
        let error = until(on(left, host(1, &["10.0.0.1"])), strange, vec![], |_| false).unwrap_err();
        assert!(matches!(error, LoadError::Unreached { failure: Failure::Unreachable, .. }), "{error}");
    }
}

/// Echoes on every connection until `count` messages have been; then does what `then` says with each.
fn failing(port: PairPort, count: u64, mut then: impl FnMut(&mut Host, TcpId) + Send + 'static) -> Running<()> {
    let mut seen = 0;
    server(port, move |host, event| match event {
        TcpEvent::Accepted { id, .. } => {
            host.tcp_adopt(id, 0);
        }
        TcpEvent::Readable { id, .. } => {
            let bytes = read(host, id);
            seen += bytes.len() as u64 / 64;
            if seen % count == 0 && !bytes.is_empty() {
                return then(host, id);
            }
            host.tcp_send(id, &bytes);
            if host.tcp_ended(id) {
                host.tcp_close(id);
            }
        }
        _ => {}
    })
}

#[test]
fn a_server_that_resets_or_closes_costs_what_was_in_flight_and_the_run_goes_on() {
    for failure in [Failure::Reset, Failure::Closed] {
        let (left, right) = pair(1500, 4096);
        let server = failing(right, 10, move |host, id| match failure {
            Failure::Reset => host.tcp_abort(id),
            _ => host.tcp_close(id),
        });
        let one = Drive { outstanding: 4, ..drive(tcp(SERVER)) };
        let enough = |told: &Progress| told.errors > 5 && told.requests > 50;
        let report = until(on(left, host(1, &["10.0.0.1"])), one, vec![], enough).unwrap();
        server.end();
        assert!(report.errors.of(failure) > 5 && report.errors.total() == report.errors.of(failure), "{report:?}");
        assert!(report.connections_opened > 4, "{report:?}");
    }
}

#[test]
fn a_reply_that_never_comes_is_a_timeout_and_its_connection_is_opened_anew() {
    let (left, right) = pair(1500, 4096);
    let server = failing(right, 20, |_, _| ());
    let short = Drive { timeout: Duration::from_millis(50), outstanding: 4, ..drive(tcp(SERVER)) };
    let enough = |told: &Progress| told.errors > 3 && told.requests > 50;
    let report = until(on(left, host(1, &["10.0.0.1"])), short, vec![], enough).unwrap();
    server.end();
    assert!(report.errors.of(Failure::Timeout) > 3 && report.errors.of(Failure::Mismatch) == 0, "{report:?}");
    assert!(report.connections_opened > 4, "{report:?}");
}

#[test]
fn a_peer_that_does_not_take_its_replies_is_not_read_from_and_loses_nothing() {
    const MUCH: usize = 64 << 20;
    let (mut port, right) = pair(1500, 4096);
    let responder = responder(right, 64);
    let (mut host, pool) = (host(1, &["10.0.0.1"]), pool());
    let id = host.tcp_open(SERVER.parse().unwrap(), 0, HOUR, Instant::now()).unwrap();
    let (mut frames, mut events) = (Vec::new(), Vec::new());
    let mut turn = |host: &mut Host| {
        let now = Instant::now();
        port.receive(&pool, &mut frames, 64);
        for frame in frames.drain(..) {
            host.receive(frame, now, &pool, &mut port);
        }
        if host.deadline().is_some_and(|deadline| deadline <= now) {
            host.on_timer(now, &mut port, &mut Vec::new());
        }
        host.tcp_events(&mut events);
        events.clear();
        host.tcp_flush(now, &mut port);
        port.flush();
        std::thread::yield_now();
    };
    let byte = |at: usize| (at / 64 % 251) as u8;
    let (mut sent, mut in_vain) = (0, 0);
    while sent < MUCH && in_vain < 5_000 {
        let bytes: Vec<u8> = (sent..sent + 16_384).map(byte).collect();
        let taken = host.tcp_send(id, &bytes);
        in_vain = if taken > 0 || sent == 0 { 0 } else { in_vain + 1 };
        sent += taken;
        turn(&mut host);
    }
    // Four windows and what a message may have been cut at, not all that there was.
    assert!(sent < MUCH, "{sent} bytes");
    let mut back = 0;
    while back < sent / 64 * 64 {
        for found in read(&mut host, id) {
            assert_eq!(found, byte(back));
            back += 1;
        }
        turn(&mut host);
    }
    host.tcp_close(id);
    turn(&mut host);
    assert_eq!(responder.end().echoed as usize, sent / 64);
}
