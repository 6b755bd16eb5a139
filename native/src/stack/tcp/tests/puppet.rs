//! A peer whose every segment is written by hand, and a host that echoes what its listener on port 80 gets.

use std::net::SocketAddr;
use std::time::Duration;

use crate::packet::ethernet::{self, Mac};
use crate::stack::bench::segment::{ACK, FIN, PSH, SYN, Segment};
use crate::stack::bench::{Bench, mac, station};
use crate::stack::tcp::{TcpConfig, TcpEvent, TcpId};
use crate::stack::{HostConfig, Input};

pub const US: Mac = mac(2);
pub const PEER: Mac = mac(9);
pub const SECOND: Duration = Duration::from_secs(1);

pub struct Stage {
    pub bench: Bench,
    /// All that was told.
    pub events: Vec<TcpEvent>,
    /// What the owner has read, while it does not echo.
    pub read: Vec<u8>,
    pub echoes: bool,
}

/// One connection as the puppet keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    pub peer: SocketAddr,
    pub own: SocketAddr,
    /// What the host expects next, and what is expected of it.
    pub seq: u32,
    pub ack: u32,
    pub id: TcpId,
}

impl Talk {
    pub fn segment(&self, flags: u8) -> Segment {
        Segment::new(self.peer, self.own, flags, self.seq, self.ack)
    }

    pub fn data(&self, text: &[u8]) -> Segment {
        Segment { payload: text.to_vec(), ..self.segment(ACK | PSH) }
    }
}

pub fn own(is_v4: bool) -> SocketAddr {
    if is_v4 { "10.0.0.2:80" } else { "[fd00::2]:80" }.parse().unwrap()
}

/// The puppet's address with this port.
pub fn peer(is_v4: bool, port: u16) -> SocketAddr {
    SocketAddr::new(if is_v4 { "10.0.0.9" } else { "fd00::9" }.parse().unwrap(), port)
}

impl Stage {
    pub fn new() -> Self {
        Self::with(TcpConfig { buffers: vec![(4_096, usize::MAX)], ..TcpConfig::default() })
    }

    pub fn with(tcp: TcpConfig) -> Self {
        let mut bench = Bench::of(HostConfig { tcp, ..station(2) }, vec![(2_048, 64)]);
        bench.know(1, 1_000);
        bench.host.tcp_listen(None, 80, 1).unwrap();
        Self { bench, events: Vec::new(), read: Vec::new(), echoes: true }
    }

    /// A frame, the owner's turn, and the segments that leave.
    pub fn frame(&mut self, frame: &[u8]) -> Vec<Segment> {
        let input = self.bench.receive(frame);
        assert!(matches!(input, Input::Consumed), "{input:?}");
        self.turn()
    }

    pub fn say(&mut self, segment: &Segment) -> Vec<Segment> {
        self.frame(&segment.frame(US, PEER))
    }

    pub fn say_one(&mut self, segment: &Segment) -> Segment {
        let mut answers = self.say(segment);
        assert_eq!(answers.len(), 1, "answers to {segment:?}: {answers:?}");
        answers.remove(0)
    }

    pub fn turn(&mut self) -> Vec<Segment> {
        let mut events = Vec::new();
        self.bench.host.tcp_events(&mut events);
        for &event in &events {
            match event {
                TcpEvent::Accepted { id, .. } => assert!(self.bench.host.tcp_adopt(id, 5)),
                TcpEvent::Readable { id, .. } => self.read(id),
                _ => {}
            }
        }
        self.events.append(&mut events);
        self.flush()
    }

    fn read(&mut self, id: TcpId) {
        let host = &mut self.bench.host;
        let mut bytes = Vec::new();
        while host.tcp_receive(id, |shown| {
            bytes.extend_from_slice(shown);
            (shown.len(), shown.len())
        }) != Some(0)
        {}
        if self.echoes {
            host.tcp_send(id, &bytes);
        } else {
            self.read.append(&mut bytes);
        }
        if host.tcp_ended(id) {
            host.tcp_close(id);
        }
    }

    pub fn flush(&mut self) -> Vec<Segment> {
        let Bench { host, port, now, .. } = &mut self.bench;
        host.tcp_flush(*now, port);
        let mut segments = Vec::new();
        for frame in std::mem::take(&mut port.sent) {
            match Segment::parse(&frame) {
                Some(segment) => segments.push(segment),
                None => self.answer_arp(&frame, &mut segments),
            }
        }
        segments
    }

    /// The puppet is whoever is asked for.
    fn answer_arp(&mut self, frame: &[u8], segments: &mut Vec<Segment>) {
        if frame[12..14] == ethernet::ARP.to_be_bytes() && frame[21] == 1 {
            let asked = &frame[38..42];
            let head = ethernet::emit(US, PEER, ethernet::ARP);
            let answer = [&head[..], &frame[14..21], &[2], &PEER, asked, &US, &frame[28..32]].concat();
            segments.append(&mut self.frame(&answer));
        }
    }

    /// Lets time pass, timers firing on the way.
    pub fn pass(&mut self, time: Duration) -> Vec<Segment> {
        let end = self.bench.now + time;
        let mut segments = Vec::new();
        for _ in 0..100_000 {
            let Some(at) = self.bench.host.deadline().filter(|&at| at <= end) else {
                self.bench.now = end;
                return segments;
            };
            let step = at.saturating_duration_since(self.bench.now);
            self.bench.pass(step);
            segments.append(&mut self.turn());
        }
        panic!("time stands still: {:?}", self.counted());
    }

    /// A handshake by the puppet.
    pub fn open(&mut self, peer: SocketAddr, own: SocketAddr, isn: u32) -> Talk {
        let mss = if peer.is_ipv4() { 1_460_u16 } else { 1_440 }.to_be_bytes();
        let options = vec![2, 4, mss[0], mss[1]];
        let answer = self.say_one(&Segment { options, ..Segment::new(peer, own, SYN, isn, 0) });
        assert!(answer.has(SYN | ACK) && answer.ack == isn.wrapping_add(1), "{answer:?}");
        let (seq, ack) = (isn.wrapping_add(1), answer.next());
        assert!(self.say(&Segment::new(peer, own, ACK, seq, ack)).is_empty());
        let Some(&TcpEvent::Accepted { id, .. }) = self.events.last() else { panic!("{:?}", self.events) };
        Talk { peer, own, seq, ack, id }
    }

    /// The connection lives: what is said comes back.
    pub fn converse(&mut self, talk: &mut Talk, text: &[u8]) {
        let answer = self.say_one(&talk.data(text));
        talk.seq = talk.seq.wrapping_add(text.len() as u32);
        assert_eq!((answer.seq, answer.ack, &answer.payload[..]), (talk.ack, talk.seq, text), "{:?}", self.counted());
        talk.ack = answer.next();
        assert!(self.say(&talk.segment(ACK)).is_empty());
    }

    /// Both ends end, the host last.
    pub fn end(&mut self, talk: &mut Talk) {
        let answer = self.say_one(&talk.segment(FIN | ACK));
        talk.seq = talk.seq.wrapping_add(1);
        assert!(answer.has(FIN | ACK) && answer.ack == talk.seq, "{answer:?}");
        talk.ack = answer.next();
        assert!(self.say(&talk.segment(ACK)).is_empty());
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.bench.host.counters();
        counters.iter().find(|counter| counter.0 == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    pub fn counted(&self) -> Vec<(&'static str, u64)> {
        self.bench.host.counters().into_iter().filter(|counter| counter.1 != 0).collect()
    }

    /// What is said leaves this count behind, and `answers` segments.
    pub fn counts(&mut self, what: &str, frame: &[u8], counter: &str, answers: usize) -> Vec<Segment> {
        let before = self.counter(counter);
        let segments = self.frame(frame);
        assert_eq!(self.counter(counter), before + 1, "{what}: {counter} in {:?}", self.counted());
        assert_eq!(segments.len(), answers, "{what}: {segments:?}");
        segments
    }

    pub fn is_empty(&self) -> bool {
        super::world::GAUGES.iter().all(|gauge| self.counter(gauge) == 0)
    }
}
