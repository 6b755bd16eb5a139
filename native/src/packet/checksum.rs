//! The Internet checksum (RFC 1071): a ones' complement sum of 16-bit words.
//!
//! The sum is kept in the machine's own byte order, which the ones' complement allows (RFC 1071 §2(B)), and in 64 bits,
//! so that whole 32-bit words are added and carries are folded once. Parts are added in any order, but each part except
//! the last must have an even length.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An unfolded sum. Room for 2^32 words of 32 bits: no packet can overflow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    pub const ZERO: Self = Self(0);

    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum = self.0 + words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>();
        if !rest.is_empty() {
            // A missing byte counts as zero (RFC 1071 §4.1).
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            sum += u64::from(u32::from_ne_bytes(last));
        }
        Self(sum)
    }

    #[inline]
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// The checksum as it stands in a header. Over data that includes a right checksum it is 0.
    #[inline]
    pub fn finish(self) -> u16 {
        // Both halves are added to each other, so that the carry of the lower sum is what the upper one lacks.
        let sum = (self.0.wrapping_add(self.0.rotate_left(32)) >> 32) as u32;
        let sum = (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16;
        !u16::from_be(sum)
    }
}

/// What changed of the data under a checksum (RFC 1624 §3). Fields have an even length, and lie at even offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub old: Sum,
    pub new: Sum,
}

impl Change {
    /// Puts `value` where `field` was.
    #[inline]
    pub fn replace(&mut self, field: &mut [u8], value: &[u8]) {
        (self.old, self.new) = (self.old.bytes(field), self.new.bytes(value));
        field.copy_from_slice(value);
    }

    /// Brings the checksum at the beginning of `bytes` up to date: RFC 1624's equation 3, which never turns a right one
    /// into the other form of zero.
    #[inline]
    pub fn apply(self, bytes: &mut [u8]) {
        /// A form of zero from which the sum of any packet can be taken away.
        const ZERO: u64 = 0xffff << 32;
        let checksum = bytes.first_chunk_mut::<2>().expect("a checksum has two bytes");
        let new = self.new.word(!u16::from_be_bytes(*checksum));
        *checksum = Sum(new.0 + (ZERO - self.old.0)).finish().to_be_bytes();
    }
}

/// The pseudo-header of RFC 768, without the length.
#[inline]
pub fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> Sum {
    Sum::ZERO.bytes(&source.octets()).bytes(&destination.octets()).word(u16::from(protocol))
}

/// The pseudo-header of RFC 8200 §8.1, without the length (whose upper half is 0 for all we carry).
#[inline]
pub fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8) -> Sum {
    Sum::ZERO.bytes(&source.octets()).bytes(&destination.octets()).word(u16::from(protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 §4.1, word by word.
    fn oracle(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        assert_eq!(Sum::ZERO.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).finish(), !0xddf2);
    }

    #[test]
    fn every_length_and_every_even_split_agrees_with_the_oracle() {
        let mut state = 0x9e37_79b9_7f4a_7c15;
        for len in 0..300 {
            let bytes: Vec<u8> = (0..len).map(|_| random(&mut state) as u8).collect();
            let expected = oracle(&bytes);
            assert_eq!(Sum::ZERO.bytes(&bytes).finish(), expected, "{len} bytes");
            let split = random(&mut state) as usize % (len / 2 + 1) * 2;
            let (head, tail) = bytes.split_at(split);
            assert_eq!(Sum::ZERO.bytes(head).bytes(tail).finish(), expected, "{len} bytes split at {split}");
        }
    }

    #[test]
    fn carries_of_the_largest_packet_are_folded() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(Sum::ZERO.bytes(&bytes).finish(), oracle(&bytes));
        assert_eq!(Sum(u64::MAX).finish(), 0);
    }

    #[test]
    fn words_and_bytes_are_the_same_sum() {
        assert_eq!(Sum::ZERO.word(0x1234).word(0xfedc).finish(), Sum::ZERO.bytes(&[0x12, 0x34, 0xfe, 0xdc]).finish());
    }

    #[test]
    fn the_example_of_rfc_1624_section_4() {
        let (mut field, mut checksum) = ([0x55, 0x55], [0xdd, 0x2f]);
        let mut change = Change::default();
        change.replace(&mut field, &[0x32, 0x85]);
        change.apply(&mut checksum);
        assert_eq!((field, checksum), ([0x32, 0x85], [0, 0]));
    }
}
