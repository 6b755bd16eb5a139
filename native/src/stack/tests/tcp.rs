//! TCP between two hosts on a wire that loses nothing.

use std::time::{Duration, Instant};

use crate::packet::checksum::pseudo_v4;
use crate::packet::tcp::{Segment, fill_checksum, flags, set_sequence};
use crate::packet::{Pool, PoolConfig, ipv4, protocol};
use crate::stack::Host;
use crate::stack::bench::{Recorder, station};
use crate::stack::tcp::{Gone, TcpEvent, TcpId};

struct End {
    host: Host,
    port: Recorder,
    pool: Pool,
    events: Vec<TcpEvent>,
}

impl End {
    fn new(number: u8) -> Self {
        let pool = Pool::new(&PoolConfig { classes: vec![(2_048, 4_096)] }).unwrap();
        Self { host: Host::new(station(number)), port: Recorder::default(), pool, events: Vec::new() }
    }

    fn turn(&mut self, frames: Vec<Vec<u8>>, now: Instant) {
        for frame in frames {
            let mut slot = self.pool.take(frame.len()).unwrap();
            slot.copy_from_slice(&frame);
            self.host.receive(slot, now, &self.pool, &mut self.port);
        }
        if self.host.deadline().is_some_and(|at| at <= now) {
            self.host.on_timer(now, &mut self.port, &mut Vec::new());
        }
        self.host.tcp_events(&mut self.events);
    }

    fn read(&mut self, id: TcpId) -> Vec<u8> {
        let mut all = Vec::new();
        while self.host.tcp_receive(id, |bytes| {
            all.extend_from_slice(bytes);
            (bytes.len(), bytes.len())
        }) != Some(0)
        {}
        all
    }
}

struct Wire {
    client: End,
    server: End,
    now: Instant,
}

impl Wire {
    fn new() -> Self {
        Self { client: End::new(1), server: End::new(2), now: Instant::now() }
    }

    /// Frames go to and fro until there are none.
    fn settle(&mut self) {
        for _ in 0..50 {
            self.client.host.tcp_flush(self.now, &mut self.client.port);
            self.server.host.tcp_flush(self.now, &mut self.server.port);
            let forth = std::mem::take(&mut self.client.port.sent);
            let back = std::mem::take(&mut self.server.port.sent);
            if forth.is_empty() && back.is_empty() {
                break;
            }
            self.now += Duration::from_micros(10);
            self.server.turn(forth, self.now);
            self.client.turn(back, self.now);
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(1);
            self.client.turn(Vec::new(), self.now);
            self.server.turn(Vec::new(), self.now);
            self.settle();
        }
    }

    fn connect(&mut self, to: &str) -> (TcpId, TcpId) {
        let id = self.client.host.tcp_open(to.parse().unwrap(), 7, Duration::from_secs(1), self.now).unwrap();
        self.settle();
        assert_eq!(self.client.events.drain(..).collect::<Vec<_>>(), [TcpEvent::Connected { id, owner: 7 }]);
        let Some(TcpEvent::Accepted { id: accepted, listener: 3 }) = self.server.events.pop() else {
            panic!("not accepted")
        };
        assert!(self.server.host.tcp_adopt(accepted, 9));
        (id, accepted)
    }
}

#[test]
fn a_connection_carries_bytes_both_ways_and_ends_well() {
    for to in ["10.0.0.2:80", "[fd00::2]:80"] {
        let mut wire = Wire::new();
        wire.server.host.tcp_listen(None, 80, 3).unwrap();
        let (client, server) = wire.connect(to);
        assert_eq!(wire.client.host.tcp_send(client, b"hello"), 5);
        wire.settle();
        assert!(wire.server.events.contains(&TcpEvent::Readable { id: server, owner: 9 }), "{:?}", wire.server.events);
        assert_eq!(wire.server.read(server), b"hello");
        assert_eq!(wire.server.host.tcp_send(server, b"world"), 5);
        wire.settle();
        assert_eq!(wire.client.read(client), b"world");
        wire.client.host.tcp_close(client);
        wire.settle();
        assert!(wire.server.host.tcp_ended(server));
        wire.server.host.tcp_close(server);
        wire.settle();
        let gauge = |end: &End, name: &str| end.host.counters().iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!((gauge(&wire.client, "tcp_connections"), gauge(&wire.client, "tcp_time_wait")), (0, 1));
        assert_eq!((gauge(&wire.server, "tcp_connections"), gauge(&wire.server, "tcp_time_wait")), (0, 0));
        wire.wait(Duration::from_secs(11));
        assert_eq!(gauge(&wire.client, "tcp_time_wait"), 0);
    }
}

#[test]
fn nobody_listening_is_refused_and_a_megabyte_arrives() {
    let mut wire = Wire::new();
    let id = wire.client.host.tcp_open("10.0.0.2:81".parse().unwrap(), 7, Duration::from_secs(1), wire.now).unwrap();
    wire.settle();
    assert_eq!(wire.client.events, [TcpEvent::Closed { id, owner: 7, reason: Gone::Refused }]);
    wire.client.events.clear();
    wire.server.host.tcp_listen(None, 80, 3).unwrap();
    let (client, server) = wire.connect("10.0.0.2:80");
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n * 7 + n / 251) as u8).collect();
    let (mut sent, mut got) = (0, Vec::new());
    for _ in 0..10_000 {
        sent += wire.client.host.tcp_send(client, &data[sent..]);
        wire.settle();
        got.extend(wire.server.read(server));
        wire.wait(Duration::from_millis(1));
        if got.len() == data.len() {
            break;
        }
    }
    assert!(got == data);
    wire.server.host.tcp_abort(server);
    wire.settle();
    assert!(wire.client.events.contains(&TcpEvent::Closed { id: client, owner: 7, reason: Gone::Reset }));
}

/// The last acknowledgement and the SYN of the next connection of the same ports come in one burst.
#[test]
fn a_port_used_again_at_once_is_no_stranger() {
    let mut wire = Wire::new();
    wire.server.host.tcp_listen(None, 80, 3).unwrap();
    let id = wire.client.host.tcp_open("10.0.0.2:80".parse().unwrap(), 7, Duration::from_secs(1), wire.now).unwrap();
    wire.client.host.tcp_flush(wire.now, &mut wire.client.port);
    // The first frame asks for the link address.
    wire.server.turn(std::mem::take(&mut wire.client.port.sent), wire.now);
    wire.client.turn(std::mem::take(&mut wire.server.port.sent), wire.now);
    wire.client.host.tcp_flush(wire.now, &mut wire.client.port);
    let mut syn = wire.client.port.sent.last().unwrap().clone();
    wire.settle();
    let Some(TcpEvent::Accepted { id: server, .. }) = wire.server.events.pop() else { panic!("not accepted") };
    assert!(wire.server.host.tcp_adopt(server, 9));
    wire.client.host.tcp_close(id);
    wire.settle();
    wire.server.host.tcp_close(server);
    wire.server.host.tcp_flush(wire.now, &mut wire.server.port);
    wire.client.turn(std::mem::take(&mut wire.server.port.sent), wire.now);
    wire.client.host.tcp_flush(wire.now, &mut wire.client.port);
    let mut burst = std::mem::take(&mut wire.client.port.sent);
    assert_eq!(burst.len(), 1);

    let at = 14 + ipv4::HEADER;
    let pseudo = pseudo_v4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), protocol::TCP);
    let sequence = Segment::new_own(&syn[at..]).sequence();
    set_sequence(&mut syn[at..], sequence.wrapping_add(100_000));
    fill_checksum(&mut syn[at..], pseudo);
    burst.push(syn);
    wire.server.turn(burst, wire.now);
    wire.server.host.tcp_flush(wire.now, &mut wire.server.port);
    let [answer] = &wire.server.port.sent[..] else { panic!("{} answers", wire.server.port.sent.len()) };
    assert_eq!(Segment::new_own(&answer[at..]).flags(), flags::SYN | flags::ACK);
}
