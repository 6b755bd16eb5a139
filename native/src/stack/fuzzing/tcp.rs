//! What a hostile peer, in league with a careless owner, can do to TCP. Whatever it is, the host is idle and empty in the
//! end, and every segment it sent was well formed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{OWN_V4, OWN_V6, PEER, PEER_V4, PEER_V6, US};
use crate::packet::ethernet;
use crate::stack::HostConfig;
use crate::stack::bench::segment::{self, ACK, FIN, SYN, Segment};
use crate::stack::bench::{Bench, station};
use crate::stack::tcp::{TcpConfig, TcpEvent, TcpId};

const LISTENER: u16 = 80;
const MOST: usize = 12;

/// A connection as the peer sees it.
#[derive(Clone, Copy)]
struct Talk {
    peer: SocketAddr,
    own: SocketAddr,
    /// What the host expects next, and what it will send next, as far as its segments tell.
    seq: u32,
    ack: u32,
}

struct Stage {
    bench: Bench,
    talks: Vec<Talk>,
    ids: Vec<TcpId>,
}

impl Stage {
    /// Two listeners' worth of connections: one established in each family, one that is being opened.
    fn new(isn: u32) -> Self {
        let tcp = TcpConfig {
            buffers: vec![(2_048, 4), (512, usize::MAX)],
            max_connections: MOST,
            half_open_per_listener: 6,
            half_open_per_source: 4,
            max_time_wait: 4,
            keep_alive: (isn & 1 != 0).then(|| Duration::from_secs(3)),
            ..TcpConfig::default()
        };
        let mut bench = Bench::of(HostConfig { tcp, ..station(2) }, vec![(2_048, 8)]);
        bench.know(u64::from(isn), isn);
        bench.host.tcp_listen(None, LISTENER, 1).expect("the first listener");
        let mut stage = Self { bench, talks: Vec::new(), ids: Vec::new() };
        let hosts: [(IpAddr, IpAddr); 2] = [(PEER_V4.into(), OWN_V4.into()), (PEER_V6.into(), OWN_V6.into())];
        for (number, (peer, own)) in hosts.into_iter().enumerate() {
            let (peer, own) = (SocketAddr::new(peer, 4_000), SocketAddr::new(own, LISTENER));
            stage.talks.push(Talk { peer, own, seq: isn.wrapping_add(7), ack: 0 });
            for flags in [SYN, ACK] {
                let Talk { seq, ack, .. } = stage.talks[number];
                let segment = Segment::new(peer, own, flags, seq, ack);
                stage.frame(&segment.frame(US, PEER));
            }
        }
        assert_eq!(stage.ids.len(), 2, "two connections");
        stage.open();
        stage
    }

    fn open(&mut self) {
        let now = self.bench.now;
        let peer = SocketAddr::new(PEER_V4.into(), 9);
        if let Ok(id) = self.bench.host.tcp_open(peer, 7, Duration::from_secs(3), now) {
            self.ids.push(id);
        }
        self.turn();
    }

    fn frame(&mut self, frame: &[u8]) {
        self.bench.receive(frame);
        self.turn();
    }

    /// The owner's turn: takes what it is offered, and gives back what is gone.
    fn turn(&mut self) {
        let mut events = Vec::new();
        self.bench.host.tcp_events(&mut events);
        for event in events {
            match event {
                TcpEvent::Accepted { id, .. } => {
                    assert!(self.bench.host.tcp_adopt(id, 7), "an offer that is gone");
                    self.ids.push(id);
                }
                TcpEvent::Closed { id, .. } => self.ids.retain(|&known| known != id),
                _ => {}
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        let Bench { host, port, now, .. } = &mut self.bench;
        host.tcp_flush(*now, port);
        for frame in std::mem::take(&mut port.sent) {
            assert!(frame.len() <= ethernet::HEADER + 1_500);
            let Some(segment) = Segment::parse(&frame) else {
                self.answer_arp(&frame);
                continue;
            };
            let is_it = |talk: &Talk| (talk.peer, talk.own) == (segment.to, segment.from);
            if let Some(talk) = self.talks.iter_mut().find(|talk| is_it(talk)) {
                if segment.has(ACK) {
                    talk.seq = segment.ack;
                }
                talk.ack = segment.next();
            } else if self.talks.len() < 2 * MOST {
                let (peer, own) = (segment.to, segment.from);
                self.talks.push(Talk { peer, own, seq: segment.ack, ack: segment.next() });
            }
        }
    }

    /// The neighbour that a client looks for is the peer.
    fn answer_arp(&mut self, frame: &[u8]) {
        if frame[12..14] == ethernet::ARP.to_be_bytes() && frame[21] == 1 {
            let mut answer = frame.to_vec();
            answer[..6].copy_from_slice(&US);
            answer[6..12].copy_from_slice(&PEER);
            answer[21] = 2;
            answer.copy_within(22..32, 32);
            answer[22..28].copy_from_slice(&PEER);
            answer[28..32].copy_from_slice(&frame[38..42]);
            self.bench.receive(&answer);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.bench.pass(time);
        self.turn();
    }

    /// What an owner may do to a connection, also to one that is gone.
    fn command(&mut self, verb: u8, id: TcpId, count: usize) {
        let host = &mut self.bench.host;
        match verb {
            0 => {
                let room = host.tcp_room(id);
                assert_eq!(host.tcp_send(id, &vec![0x5a; count]), count.min(room));
            }
            1 => {
                host.tcp_receive(id, |bytes| (count.min(bytes.len()), ()));
            }
            2 => host.tcp_end(id),
            3 => host.tcp_close(id),
            4 => host.tcp_abort(id),
            5 => host.tcp_want_room(id),
            6 => host.tcp_want_data(id),
            _ => {
                let known = host.tcp_local(id).is_some();
                assert_eq!(known, host.tcp_remote(id).is_some());
                assert!(known || !host.tcp_ended(id) && host.tcp_room(id) == 0);
            }
        }
        self.turn();
    }

    fn gauge(&self, name: &str) -> u64 {
        let counters = self.bench.host.counters();
        counters.iter().find(|counter| counter.0 == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    fn check(&self) {
        assert!(self.gauge("tcp_connections") <= MOST as u64 && self.gauge("tcp_buffers") <= MOST as u64);
        assert!(self.gauge("tcp_half_open") <= 6 && self.gauge("tcp_time_wait") <= 4);
    }

    /// The owner leaves, the peer is silent: in time nothing is left.
    fn end(mut self) {
        self.check();
        for id in std::mem::take(&mut self.ids) {
            self.bench.host.tcp_close(id);
        }
        self.turn();
        for _ in 0..2_000 {
            let Some(at) = self.bench.host.deadline() else { break };
            let time = at.saturating_duration_since(self.bench.now);
            self.pass(time);
            for id in std::mem::take(&mut self.ids) {
                self.bench.host.tcp_abort(id);
            }
        }
        assert_eq!(self.bench.host.deadline(), None, "never idle");
        for gauge in ["tcp_connections", "tcp_half_open", "tcp_time_wait", "tcp_buffers"] {
            assert_eq!(self.gauge(gauge), 0, "{gauge}");
        }
        assert!(self.bench.has_all_buffers(), "a buffer was kept");
    }
}

/// Segments as they come, each behind two bytes: whose ports it gets and whether its checksum is put right; its length.
pub fn tcp_segment(mut data: &[u8]) {
    let mut stage = Stage::new(0);
    while let [how, len, rest @ ..] = data {
        let (bytes, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        data = rest;
        let mut bytes = bytes.to_vec();
        let Talk { peer, own, seq, ack } = stage.talks[usize::from(how & 15) % stage.talks.len()];
        if how & 0x10 != 0
            && let [head, ..] = bytes.as_chunks_mut::<4>().0
        {
            head[..2].copy_from_slice(&peer.port().to_be_bytes());
            head[2..].copy_from_slice(&own.port().to_be_bytes());
        }
        if how & 0x20 != 0 && bytes.len() >= 12 {
            let add = |bytes: &mut [u8], base: u32| {
                let offset = i32::from(i16::from_be_bytes([bytes[2], bytes[3]]));
                bytes[..4].copy_from_slice(&base.wrapping_add_signed(offset).to_be_bytes());
            };
            add(&mut bytes[4..8], seq);
            add(&mut bytes[8..12], ack);
        }
        if how & 0x40 != 0 && bytes.len() >= 20 {
            bytes[16..18].fill(0);
            let sum = segment::pseudo(peer.ip(), own.ip()).word(bytes.len() as u16).bytes(&bytes);
            bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
        }
        stage.frame(&segment::frame(peer.ip(), own.ip(), &bytes, US, PEER));
        if how & 0x80 != 0 {
            stage.pass(Duration::from_millis(u64::from(*len)));
        }
    }
    stage.end();
}

/// Segments that nearly fit their connection, the owner's calls and time, six bytes each; the first four are the initial
/// sequence number.
pub fn tcp_talk(data: &[u8]) {
    let Some((isn, data)) = data.split_first_chunk::<4>() else { return };
    let mut stage = Stage::new(u32::from_be_bytes(*isn));
    let (commands, _) = data.as_chunks::<6>();
    for &[verb, which, a, b, c, d] in commands {
        match verb {
            0..0xa0 => {
                let talk = stage.talks[usize::from(which) % stage.talks.len()];
                // Near ones mostly; 0x80 is where half the sequence space is away.
                let offset = |byte: u8| match byte {
                    0x80 => i32::MIN,
                    0x81..0x90 => -(1 << (byte & 15)),
                    0x70..0x80 => 1 << (byte & 15),
                    near => i32::from(near as i8),
                };
                let (seq, ack) = (talk.seq.wrapping_add_signed(offset(a)), talk.ack.wrapping_add_signed(offset(b)));
                let mut segment = Segment::new(talk.peer, talk.own, c & 0x3f, seq, ack);
                segment.window = match verb & 7 {
                    0 => 0,
                    1 => 1,
                    2 => u16::from(d),
                    _ => 65_535,
                };
                segment.payload = vec![d; usize::from(d) * usize::from(verb >> 3 & 3)];
                if c & 0x40 != 0 {
                    // MSS, window scale, SACK permitted, timestamps: values from the input.
                    segment.options = vec![2, 4, d, a, 3, 3, b, 4, 2, 8, 10, a, b, c, d, 0, 0, 0, 0];
                    segment.options.truncate(usize::from(d) % 20);
                }
                if c & 0x80 != 0 {
                    segment.offset = Some(d >> 4);
                }
                stage.frame(&segment.frame(US, PEER));
            }
            0xa0..0xd0 if !stage.ids.is_empty() => {
                let id = stage.ids[usize::from(which) % stage.ids.len()];
                stage.command(a & 7, id, usize::from(u16::from_be_bytes([b & 15, c])));
                if a & 7 == 3 || a & 7 == 4 {
                    stage.ids.retain(|&known| known != id);
                }
            }
            0xd0..0xe0 => {
                // A stranger's SYN, and how the port does.
                let peer = SocketAddr::new([10, 0, 0, which | 8].into(), u16::from(a) + 1);
                let own = SocketAddr::new(OWN_V4.into(), LISTENER);
                let mut segment = Segment::new(peer, own, SYN | c & FIN, u32::from(b) << 24, 0);
                segment.options = vec![2, 4, d, d];
                stage.bench.port.room = if d & 1 == 0 { usize::MAX } else { usize::from(d) };
                stage.frame(&segment.frame(US, PEER));
            }
            0xe0..0xe4 => stage.open(),
            0xf0.. => stage.pass(Duration::from_secs(u64::from(a & 31))),
            _ => stage.pass(Duration::from_millis(u64::from(a))),
        }
        stage.check();
        if stage.bench.port.room == 0 {
            stage.bench.port.room = usize::MAX;
        }
    }
    stage.bench.port.room = usize::MAX;
    stage.end();
}
