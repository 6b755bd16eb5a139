//! A TCP segment as a value, also one that may not be: what tests and fuzzers write on the wire and read from it.
//!
//! Written apart from the host's own codec, whose oracle it is.

use std::net::{IpAddr, SocketAddr};

use crate::packet::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::packet::ethernet::{self, Mac};
use crate::packet::ipv6::Upper;
use crate::packet::{ipv4, ipv6};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const URG: u8 = 32;

const TCP: u8 = 6;
const HEADER: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// Filled up with zeros to whole words.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    /// The data offset to lie about, in words.
    pub offset: Option<u8>,
}

impl Segment {
    /// A segment with nothing in it.
    pub const fn new(from: SocketAddr, to: SocketAddr, flags: u8, seq: u32, ack: u32) -> Self {
        Self {
            from,
            to,
            seq,
            ack,
            flags,
            window: 65_535,
            urgent: 0,
            options: Vec::new(),
            payload: Vec::new(),
            offset: None,
        }
    }

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// What it takes of the sequence space.
    pub fn span(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// The sequence number after it.
    pub fn next(&self) -> u32 {
        self.seq.wrapping_add(self.span())
    }

    /// The value of the option of this kind.
    pub fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut options = &self.options[..];
        loop {
            match *options {
                [] | [0, ..] => return None,
                [1, ..] => options = &options[1..],
                [found, len, ..] if found == kind => return options.get(2..usize::from(len)),
                [_, len, ..] if len >= 2 => options = options.get(usize::from(len)..)?,
                _ => return None,
            }
        }
    }

    /// Header, options and payload with their checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let options = self.options.len().next_multiple_of(4);
        let mut bytes = vec![0; HEADER + options];
        bytes[..2].copy_from_slice(&self.from.port().to_be_bytes());
        bytes[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        bytes[4..8].copy_from_slice(&self.seq.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.ack.to_be_bytes());
        bytes[12] = self.offset.unwrap_or((bytes.len() / 4) as u8) << 4;
        bytes[13] = self.flags;
        bytes[14..16].copy_from_slice(&self.window.to_be_bytes());
        bytes[18..20].copy_from_slice(&self.urgent.to_be_bytes());
        bytes[HEADER..][..self.options.len()].copy_from_slice(&self.options);
        bytes.extend_from_slice(&self.payload);
        let checksum = pseudo(self.from.ip(), self.to.ip()).word(bytes.len() as u16).bytes(&bytes).finish();
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    pub fn frame(&self, to: Mac, from: Mac) -> Vec<u8> {
        frame(self.from.ip(), self.to.ip(), &self.bytes(), to, from)
    }

    /// The segment in a frame. `None`: it carries none. Panics when lengths or checksums are wrong.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let ethernet = ethernet::Frame::new_checked(frame).expect("a frame");
        let (source, destination, bytes): (IpAddr, IpAddr, _) = match ethernet.ethertype() {
            ethernet::IPV4 => {
                let packet = ipv4::Packet::new_checked(ethernet.payload()).expect("an IPv4 packet");
                if packet.protocol() != TCP {
                    return None;
                }
                (packet.source().into(), packet.destination().into(), packet.payload())
            }
            ethernet::IPV6 => {
                let packet = ipv6::Packet::new_checked(ethernet.payload()).expect("an IPv6 packet");
                let Ok(Upper::Transport { protocol: TCP, at, .. }) = packet.upper() else { return None };
                (packet.source().into(), packet.destination().into(), &packet.bytes()[at..])
            }
            _ => return None,
        };
        let sum = pseudo(source, destination).word(bytes.len() as u16).bytes(bytes).finish();
        assert_eq!(sum, 0, "the checksum of {bytes:x?}");
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
        let start = usize::from(bytes[12] >> 4) * 4;
        assert!(start >= HEADER && start <= bytes.len(), "a data offset of {start} in {} bytes", bytes.len());
        Some(Self {
            from: SocketAddr::new(source, word(0)),
            to: SocketAddr::new(destination, word(2)),
            seq: long(4),
            ack: long(8),
            flags: bytes[13],
            window: word(14),
            urgent: word(18),
            options: bytes[HEADER..start].to_vec(),
            payload: bytes[start..].to_vec(),
            offset: None,
        })
    }
}

/// A frame with whatever bytes in the place of a segment.
pub fn frame(source: IpAddr, destination: IpAddr, bytes: &[u8], to: Mac, from: Mac) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ip = ipv4::emit(source, destination, TCP, bytes.len(), ipv4::Fragment::WHOLE);
            [&ethernet::emit(to, from, ethernet::IPV4)[..], &ip, bytes].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = ipv6::emit(source, destination, TCP, bytes.len(), ipv6::HOP_LIMIT);
            [&ethernet::emit(to, from, ethernet::IPV6)[..], &ip, bytes].concat()
        }
        _ => panic!("two families"),
    }
}

pub fn pseudo(source: IpAddr, destination: IpAddr) -> Sum {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => pseudo_v4(source, destination, TCP),
        (IpAddr::V6(source), IpAddr::V6(destination)) => pseudo_v6(source, destination, TCP),
        _ => panic!("two families"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_octets_and_values() {
        let mut segment =
            Segment::new("10.0.0.1:258".parse().unwrap(), "10.0.0.2:80".parse().unwrap(), SYN | ACK, 1, 2);
        segment.options = vec![2, 4, 5, 0xb4];
        segment.payload = b"ab".to_vec();
        #[rustfmt::skip]
        assert_eq!(segment.bytes(), [
            1, 2, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2,     // ports, sequence, acknowledgement
            0x60, 0x12, 0xff, 0xff, 0x21, 0x5b, 0, 0, // 6 words, SYN and ACK, window, checksum, urgent
            2, 4, 5, 0xb4, b'a', b'b',               // MSS 1460, payload
        ]);
        let read = Segment::parse(&segment.frame([2; 6], [4; 6])).unwrap();
        assert_eq!(read, segment);
        assert_eq!((read.option(2), read.option(3), read.next()), (Some(&[5, 0xb4][..]), None, 4));
    }
}
