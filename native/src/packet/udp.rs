//! UDP headers (RFC 768).

use super::checksum::Sum;
use super::{Malformed, u16_at};

pub const HEADER: usize = 8;

/// A datagram cut to its length, its checksum right.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a>(&'a [u8]);

impl<'a> Datagram<'a> {
    /// `pseudo` is the pseudo-header's sum without the length. A checksum of 0 means "none" over IPv4 and is forbidden
    /// over IPv6 (RFC 8200 §8.1).
    #[inline]
    pub fn new_checked(bytes: &'a [u8], pseudo: Sum, may_lack_checksum: bool) -> Result<Self, Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed::Truncated);
        }
        let length = u16_at(bytes, 4);
        if usize::from(length) > bytes.len() {
            return Err(Malformed::Truncated);
        }
        if usize::from(length) < HEADER {
            return Err(Malformed::Field);
        }
        let bytes = &bytes[..usize::from(length)];
        let right = match u16_at(bytes, 6) {
            0 => may_lack_checksum,
            _ => pseudo.word(length).bytes(bytes).finish() == 0,
        };
        if right { Ok(Self(bytes)) } else { Err(Malformed::Checksum) }
    }

    #[inline]
    pub fn source_port(&self) -> u16 {
        u16_at(self.0, 0)
    }

    #[inline]
    pub fn destination_port(&self) -> u16 {
        u16_at(self.0, 2)
    }

    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.0[HEADER..]
    }
}

/// The checksum as sent: 0 would mean "none", so its other ones' complement form stands for it (RFC 768).
#[inline]
pub fn checksum(sum: Sum) -> u16 {
    match sum.finish() {
        0 => 0xffff,
        checksum => checksum,
    }
}

pub fn emit(source_port: u16, destination_port: u16, pseudo: Sum, payload: &[u8]) -> [u8; HEADER] {
    let length = (HEADER + payload.len()) as u16;
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&source_port.to_be_bytes());
    header[2..4].copy_from_slice(&destination_port.to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    let checksum = checksum(pseudo.word(length).bytes(&header).bytes(payload));
    header[6..].copy_from_slice(&checksum.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::packet::checksum::pseudo_v4;

    fn pseudo() -> Sum {
        pseudo_v4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), 17)
    }

    fn datagram(payload: &[u8]) -> Vec<u8> {
        [&emit(1000, 53, pseudo(), payload)[..], payload].concat()
    }

    #[test]
    fn what_is_emitted_is_read_back() {
        let bytes = datagram(b"abc");
        let datagram = Datagram::new_checked(&bytes, pseudo(), true).unwrap();
        assert_eq!((datagram.source_port(), datagram.destination_port()), (1000, 53));
        assert_eq!(datagram.payload(), b"abc");
        // 0a00+0001+0a00+0002+0011+000b + 03e8+0035+000b + 6162+6300 = dca9
        assert_eq!(bytes[..8], [0x03, 0xe8, 0, 53, 0, 11, 0x23, 0x56]);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let bytes = datagram(b"some payload");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Datagram::new_checked(&flipped, pseudo(), true).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_missing_checksum_is_for_ipv4_only() {
        let mut bytes = datagram(b"abc");
        bytes[6..8].fill(0);
        assert!(Datagram::new_checked(&bytes, pseudo(), true).is_ok());
        assert_eq!(Datagram::new_checked(&bytes, pseudo(), false).err(), Some(Malformed::Checksum));
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_ffff() {
        let payload = (0..=u16::MAX)
            .map(u16::to_be_bytes)
            .find(|word| pseudo().word(10).word(1000).word(53).word(10).bytes(word).finish() == 0)
            .unwrap();
        let bytes = datagram(&payload);
        assert_eq!(bytes[6..8], [0xff, 0xff]);
        assert!(Datagram::new_checked(&bytes, pseudo(), false).is_ok());
    }

    #[test]
    fn a_length_beyond_the_packet_or_below_the_header_is_refused() {
        let mut bytes = datagram(b"abc");
        bytes[5] = 12;
        assert_eq!(Datagram::new_checked(&bytes, pseudo(), true).err(), Some(Malformed::Truncated));
        bytes[5] = 7;
        assert_eq!(Datagram::new_checked(&bytes, pseudo(), true).err(), Some(Malformed::Field));
        assert_eq!(Datagram::new_checked(&bytes[..7], pseudo(), true).err(), Some(Malformed::Truncated));
    }

    #[test]
    fn bytes_after_the_length_are_not_payload() {
        let mut bytes = datagram(b"abc");
        bytes.push(9);
        assert_eq!(Datagram::new_checked(&bytes, pseudo(), true).unwrap().payload(), b"abc");
    }
}
