//! IPv4 headers (RFC 791).

use std::net::Ipv4Addr;

use super::checksum::Sum;
use super::{Malformed, array, u16_at};

/// A header without options: all we send.
pub const HEADER: usize = 20;
/// Recommended by IANA for new packets (RFC 1700).
pub const TTL: u8 = 64;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

/// A packet whose header, checksum and lengths are right, cut to its total length.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    header_len: usize,
}

impl<'a> Packet<'a> {
    /// Bytes after the packet's total length are the link's padding and cut off.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let packet = Self::new_quoted(bytes)?;
        let total_length = usize::from(u16_at(bytes, 2));
        if total_length > bytes.len() {
            return Err(Malformed::Truncated);
        }
        if total_length < packet.header_len {
            return Err(Malformed::Field);
        }
        if Sum::ZERO.bytes(&bytes[..packet.header_len]).finish() != 0 {
            return Err(Malformed::Checksum);
        }
        Ok(Self { bytes: &bytes[..total_length], ..packet })
    }

    /// The beginning of a packet, as an ICMP error quotes it: its end is missing and routers have altered its header.
    #[inline]
    pub fn new_quoted(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed::Truncated);
        }
        if bytes[0] >> 4 != 4 {
            return Err(Malformed::Version);
        }
        let header_len = usize::from(bytes[0] & 15) * 4;
        if header_len < HEADER {
            return Err(Malformed::Field);
        }
        if header_len > bytes.len() {
            return Err(Malformed::Truncated);
        }
        Ok(Self { bytes, header_len })
    }

    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Header and payload.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.bytes.len()
    }

    pub fn identification(&self) -> u16 {
        u16_at(self.bytes, 4)
    }

    #[inline]
    pub fn is_fragment(&self) -> bool {
        u16_at(self.bytes, 6) & !(DONT_FRAGMENT | 0x8000) != 0
    }

    pub fn more_fragments(&self) -> bool {
        u16_at(self.bytes, 6) & MORE_FRAGMENTS != 0
    }

    /// In bytes.
    pub fn fragment_offset(&self) -> usize {
        usize::from(u16_at(self.bytes, 6) & 0x1fff) * 8
    }

    #[inline]
    pub fn protocol(&self) -> u8 {
        self.bytes[9]
    }

    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        array::<4>(self.bytes, 12).into()
    }

    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        array::<4>(self.bytes, 16).into()
    }

    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }

    /// Does it carry a source route, which a host refuses (RFC 7126 §4.3, §4.4)? So does it refuse options that
    /// cannot be told apart.
    pub fn has_source_route(&self) -> bool {
        let mut options = &self.bytes[HEADER..self.header_len];
        loop {
            match *options {
                [] | [0, ..] => return false,
                [1, ..] => options = &options[1..],
                [131 | 137, ..] => return true,
                [_, len, ..] if len >= 2 && usize::from(len) <= options.len() => options = &options[usize::from(len)..],
                _ => return true,
            }
        }
    }
}

/// Where a fragment lies in its datagram; [`Fragment::WHOLE`] for one that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub identification: u16,
    /// In bytes, a multiple of 8.
    pub offset: usize,
    pub more: bool,
    pub dont_fragment: bool,
}

impl Fragment {
    /// An atomic datagram: its identification means nothing (RFC 6864 §4.1).
    pub const WHOLE: Self = Self { identification: 0, offset: 0, more: false, dont_fragment: true };
}

pub fn emit(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    payload_len: usize,
    fragment: Fragment,
) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((HEADER + payload_len) as u16).to_be_bytes());
    header[4..6].copy_from_slice(&fragment.identification.to_be_bytes());
    let flags = if fragment.dont_fragment { DONT_FRAGMENT } else { 0 } | if fragment.more { MORE_FRAGMENTS } else { 0 };
    header[6..8].copy_from_slice(&(flags | (fragment.offset / 8) as u16).to_be_bytes());
    header[8] = TTL;
    header[9] = protocol;
    header[12..16].copy_from_slice(&source.octets());
    header[16..].copy_from_slice(&destination.octets());
    let checksum = Sum::ZERO.bytes(&header).finish();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const PACKET: [u8; 24] = [
        0x45, 0, 0, 24, 0, 7, 0x20, 3,       // 24 bytes, identification 7, more fragments, offset 24
        64, 17, 0x46, 0xc9, 10, 0, 0, 1,     // TTL, UDP, checksum, source
        10, 0, 0, 2, 1, 2, 3, 4,             // destination, payload
    ];

    fn with_options(options: &[u8]) -> Vec<u8> {
        let mut bytes = PACKET[..HEADER].to_vec();
        bytes.extend_from_slice(options);
        bytes[0] = 0x40 | (bytes.len() / 4) as u8;
        bytes[3] = bytes.len() as u8;
        bytes[10..12].fill(0);
        let checksum = Sum::ZERO.bytes(&bytes).finish();
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    #[test]
    fn octets_and_values_are_the_same() {
        let packet = Packet::new_checked(&PACKET).unwrap();
        assert_eq!((packet.source(), packet.destination()), (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!((packet.protocol(), packet.identification()), (17, 7));
        assert!(packet.is_fragment() && packet.more_fragments());
        assert_eq!(packet.fragment_offset(), 24);
        assert_eq!(packet.payload(), [1, 2, 3, 4]);
        let fragment = Fragment { identification: 7, offset: 24, more: true, dont_fragment: false };
        assert_eq!(emit(packet.source(), packet.destination(), 17, 4, fragment), PACKET[..HEADER]);
    }

    #[test]
    fn padding_after_the_total_length_is_cut() {
        let mut padded = PACKET.to_vec();
        padded.extend_from_slice(&[0; 22]);
        assert_eq!(Packet::new_checked(&padded).unwrap().payload(), [1, 2, 3, 4]);
    }

    #[test]
    fn every_short_length_is_truncated() {
        for len in 0..PACKET.len() {
            assert_eq!(Packet::new_checked(&PACKET[..len]).err(), Some(Malformed::Truncated), "{len} bytes");
        }
    }

    #[test]
    fn wrong_fields_are_told_apart() {
        for (at, value, expected) in [
            (0, 0x65, Malformed::Version),
            (0, 0x44, Malformed::Field),
            (0, 0x4f, Malformed::Truncated),
            (3, 19, Malformed::Field),
            (3, 25, Malformed::Truncated),
            (8, 63, Malformed::Checksum),
        ] {
            let mut bytes = PACKET;
            bytes[at] = value;
            assert_eq!(Packet::new_checked(&bytes).err(), Some(expected), "byte {at} = {value}");
        }
    }

    #[test]
    fn source_routes_and_broken_options_are_seen() {
        for (options, refused) in [
            (&[1, 1, 1, 0][..], false),
            (&[148, 4, 0, 0], false),
            (&[131, 3, 4, 0], true),
            (&[1, 137, 3, 4], true),
            (&[148, 1, 0, 0], true),
            (&[148, 5, 0, 0], true),
            (&[1, 1, 1, 148], true),
        ] {
            let bytes = with_options(options);
            assert_eq!(Packet::new_checked(&bytes).unwrap().has_source_route(), refused, "{options:?}");
        }
    }
}
