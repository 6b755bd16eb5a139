//! The wire between two stations, and a router in it: what it does to frames is drawn from a seed.
//!
//! Pure: a frame and the time in, frames and the times of their arrival out.

use std::time::Duration;

use super::random::Random;
use crate::packet::checksum::{Sum, pseudo_v6};
use crate::packet::ethernet::{self, Mac};
use crate::packet::{icmp, ipv4, ipv6, protocol};
use crate::stack::bench::mac;

/// Chances are in ten thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub loss: u32,
    pub duplication: u32,
    /// A frame that takes up to four times as long as the others, which overtake it.
    pub reordering: u32,
    /// One bit flipped behind the Ethernet header: any checksum finds it.
    pub corruption: u32,
    pub delay: Duration,
    pub jitter: Duration,
    /// Per byte, with frames that would wait longer than 20 ms dropped.
    pub nanoseconds_per_byte: u32,
}

pub struct Network {
    pub random: Random,
    pub weather: Weather,
    /// The largest packet the link in the middle carries.
    pub mtu: usize,
    pub is_cut: bool,
    /// After so many frames nothing passes any more, to either side or to one.
    pub ends_after: Option<(usize, Option<usize>)>,
    pub carried: usize,
    /// Until when the wire to each side is busy.
    busy: [Duration; 2],
    /// When the last frame that kept the order arrives at each side.
    last: [Duration; 2],
    pub lost: usize,
    pub too_big: usize,
}

/// A frame, where it goes and when it is there.
pub type Arrival = (Duration, usize, Vec<u8>);

const QUEUE: Duration = Duration::from_millis(20);

impl Network {
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self {
            random: Random(seed),
            weather,
            mtu: usize::from(u16::MAX),
            is_cut: false,
            ends_after: None,
            carried: 0,
            busy: [Duration::ZERO; 2],
            last: [Duration::ZERO; 2],
            lost: 0,
            too_big: 0,
        }
    }

    fn passes(&self, to: usize) -> bool {
        let is_over =
            self.ends_after.is_some_and(|(frames, side)| self.carried > frames && side.is_none_or(|side| side == to));
        !self.is_cut && !is_over
    }

    /// A frame that the side other than `to` has sent.
    pub fn carry(&mut self, frame: Vec<u8>, to: usize, now: Duration, arrivals: &mut Vec<Arrival>) {
        self.carried += 1;
        let weather = self.weather;
        if !self.passes(to) || self.random.in_ten_thousand(weather.loss) {
            self.lost += 1;
            return;
        }
        if frame.len() > ethernet::HEADER + self.mtu {
            self.too_big += 1;
            let answer = too_big(&frame, self.mtu);
            arrivals.push((now + weather.delay, 1 - to, answer));
            return;
        }
        let begin = self.busy[to].max(now);
        if begin > now + QUEUE {
            self.lost += 1;
            return;
        }
        self.busy[to] = begin + Duration::from_nanos(u64::from(weather.nanoseconds_per_byte) * frame.len() as u64);
        let mut frame = frame;
        let is_ip = frame[12..14] != ethernet::ARP.to_be_bytes();
        if is_ip && self.random.in_ten_thousand(weather.corruption) {
            let at = self.random.between(ethernet::HEADER, frame.len() - 1);
            frame[at] ^= 1 << self.random.between(0, 7);
        }
        if self.random.in_ten_thousand(weather.duplication) {
            arrivals.push((self.arrival(to), to, frame.clone()));
        }
        arrivals.push((self.arrival(to), to, frame));
    }

    fn arrival(&mut self, to: usize) -> Duration {
        let Weather { delay, jitter, reordering, .. } = self.weather;
        let jitter = Duration::from_nanos(self.random.up_to(jitter.as_nanos().max(1) as usize) as u64);
        let due = self.busy[to] + delay + jitter;
        if self.random.in_ten_thousand(reordering) {
            return due + delay * self.random.between(1, 3) as u32;
        }
        self.last[to] = due.max(self.last[to]);
        self.last[to]
    }
}

/// The router's answer to a packet that does not fit (RFC 1191 §4, RFC 4443 §3.2): from the gateway, to the sender.
pub fn too_big(frame: &[u8], mtu: usize) -> Vec<u8> {
    let sender: Mac = frame[6..12].try_into().expect("six bytes");
    let packet = &frame[ethernet::HEADER..];
    if let Ok(header) = ipv4::Packet::new_checked(packet) {
        assert_ne!(packet[6] & 0x40, 0, "a packet that may be fragmented on its way");
        let body = &packet[..packet.len().min(28)];
        let rest = (mtu as u32).to_be_bytes();
        let head = icmp::emit(icmp::v4::UNREACHABLE, icmp::v4::FRAGMENTATION_NEEDED, rest, Sum::ZERO, body);
        let len = head.len() + body.len();
        let ip = ipv4::emit([10, 0, 0, 1].into(), header.source(), protocol::ICMP, len, ipv4::Fragment::WHOLE);
        return [&ethernet::emit(sender, mac(1), ethernet::IPV4)[..], &ip, &head, body].concat();
    }
    let header = ipv6::Packet::new_checked(packet).expect("IPv4 or IPv6");
    let (router, to) = ([0xfd00, 0, 0, 0, 0, 0, 0, 1].into(), header.source());
    let body = &packet[..packet.len().min(ipv6::MINIMUM_MTU - ipv6::HEADER - icmp::HEADER)];
    let pseudo = pseudo_v6(router, to, protocol::ICMPV6);
    let head = icmp::emit(icmp::v6::TOO_BIG, 0, (mtu as u32).to_be_bytes(), pseudo, body);
    let ip = ipv6::emit(router, to, protocol::ICMPV6, head.len() + body.len(), ipv6::HOP_LIMIT);
    [&ethernet::emit(sender, mac(1), ethernet::IPV6)[..], &ip, &head, body].concat()
}
