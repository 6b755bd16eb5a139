//! TCP headers (RFC 9293 §3.1).

use super::checksum::Sum;
use super::{Malformed, array, u16_at};

pub const HEADER: usize = 20;

pub mod flags {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
}

mod option {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const MSS: u8 = 2;
    pub const WINDOW_SCALE: u8 = 3;
    pub const SACK: u8 = 5;
}

/// A segment whose header, options and checksum are right.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a>(&'a [u8]);

impl<'a> Segment<'a> {
    /// `pseudo` is the pseudo-header's sum without the length.
    #[inline]
    pub fn new_checked(bytes: &'a [u8], pseudo: Sum) -> Result<Self, Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed::Truncated);
        }
        let segment = Self(bytes);
        let header = segment.header_len();
        if header < HEADER {
            return Err(Malformed::Field);
        }
        if header > bytes.len() {
            return Err(Malformed::Truncated);
        }
        if segment.source_port() == 0 || segment.destination_port() == 0 {
            return Err(Malformed::Field);
        }
        if header > HEADER && !options_are_whole(&bytes[HEADER..header]) {
            return Err(Malformed::Field);
        }
        if pseudo.word(bytes.len() as u16).bytes(bytes).finish() != 0 {
            return Err(Malformed::Checksum);
        }
        Ok(segment)
    }

    /// One of our own making.
    #[inline]
    pub fn new_own(bytes: &'a [u8]) -> Self {
        debug_assert!(bytes.len() >= HEADER);
        Self(bytes)
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
    pub fn sequence(&self) -> u32 {
        u32::from_be_bytes(array(self.0, 4))
    }

    #[inline]
    pub fn acknowledgement(&self) -> u32 {
        u32::from_be_bytes(array(self.0, 8))
    }

    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[12] >> 4) * 4
    }

    /// The flags of RFC 9293; those of ECN are left out.
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0[13] & 0x3f
    }

    #[inline]
    pub fn has(&self, flag: u8) -> bool {
        self.0[13] & flag != 0
    }

    #[inline]
    pub fn window(&self) -> u16 {
        u16_at(self.0, 14)
    }

    #[inline]
    pub fn payload_len(&self) -> usize {
        self.0.len() - self.header_len()
    }

    /// What it takes of the sequence space: its bytes, SYN and FIN.
    #[inline]
    pub fn span(&self) -> u32 {
        self.payload_len() as u32 + u32::from(self.has(flags::SYN)) + u32::from(self.has(flags::FIN))
    }

    /// RFC 7323 §2.2.
    pub fn window_scale(&self) -> Option<u8> {
        match self.option(option::WINDOW_SCALE)? {
            [shift] => Some((*shift).min(14)),
            _ => None,
        }
    }

    /// The reports of what has come behind a hole, as (first, one past the last) (RFC 2018 §3); nothing is said of their
    /// order or sense.
    pub fn selective(&self) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        let blocks = self.option(option::SACK).unwrap_or_default();
        blocks.chunks_exact(8).map(|block| (u32::from_be_bytes(array(block, 0)), u32::from_be_bytes(array(block, 4))))
    }

    /// The value of the first option of that kind.
    fn option(&self, wanted: u8) -> Option<&'a [u8]> {
        let mut options = &self.0[HEADER..self.header_len()];
        while let [kind, rest @ ..] = options {
            options = match (*kind, rest) {
                (option::END, _) => return None,
                (option::NOP, rest) => rest,
                (kind, [len, ..]) if usize::from(*len) >= 2 => {
                    if kind == wanted {
                        return options.get(2..usize::from(*len));
                    }
                    options.get(usize::from(*len)..)?
                }
                _ => return None,
            };
        }
        None
    }
}

/// Does every option lie within the header?
fn options_are_whole(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        options = match (*kind, rest) {
            (option::END, _) => return true,
            (option::NOP, rest) => rest,
            (_, [len, ..]) if (2..=options.len()).contains(&usize::from(*len)) => &options[usize::from(*len)..],
            _ => return false,
        };
    }
    true
}

/// Puts the checksum into a segment.
#[inline]
pub fn fill_checksum(segment: &mut [u8], pseudo: Sum) {
    segment[16..18].fill(0);
    let checksum = pseudo.word(segment.len() as u16).bytes(segment).finish();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
}

#[inline]
pub fn set_sequence(segment: &mut [u8], sequence: u32) {
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
}

#[inline]
pub fn set_acknowledgement(segment: &mut [u8], acknowledgement: u32) {
    segment[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
}

/// Lowers the MSS that a SYN states to `most`.
pub fn clamp_mss(segment: &mut [u8], most: u16) {
    let header = Segment(segment).header_len();
    let mut options = &mut segment[HEADER..header];
    while let [kind, rest @ ..] = options {
        options = match (*kind, rest) {
            (option::NOP, rest) => rest,
            (option::MSS, [4, high, low, ..]) => {
                [*high, *low] = u16::from_be_bytes([*high, *low]).min(most).to_be_bytes();
                return;
            }
            (kind, rest) if kind != option::END => {
                let len = rest.first().map_or(0, |&len| usize::from(len));
                // `rest` begins one behind the kind, and the length counts it.
                let Some(next) = len.checked_sub(1).filter(|&skip| skip > 0).and_then(|skip| rest.get_mut(skip..))
                else {
                    return;
                };
                next
            }
            _ => return,
        };
    }
}

pub fn clear_syn(segment: &mut [u8]) {
    segment[13] &= !flags::SYN;
}

#[inline]
pub fn set_window(segment: &mut [u8], window: u16) {
    segment[14..16].copy_from_slice(&window.to_be_bytes());
}

/// A header without options or payload.
#[derive(Clone, Copy, Debug)]
pub struct Bare {
    pub source_port: u16,
    pub destination_port: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
}

impl Bare {
    pub fn emit(&self, pseudo: Sum) -> [u8; HEADER] {
        let mut segment = [0; HEADER];
        segment[..2].copy_from_slice(&self.source_port.to_be_bytes());
        segment[2..4].copy_from_slice(&self.destination_port.to_be_bytes());
        set_sequence(&mut segment, self.sequence);
        set_acknowledgement(&mut segment, self.acknowledgement);
        segment[12] = (HEADER as u8 / 4) << 4;
        segment[13] = self.flags;
        set_window(&mut segment, self.window);
        fill_checksum(&mut segment, pseudo);
        segment
    }
}

/// `a < b` on the circle of sequence numbers (RFC 9293 §3.4).
#[inline]
pub fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::packet::checksum::pseudo_v4;

    fn pseudo() -> Sum {
        pseudo_v4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), 6)
    }

    fn syn(options: &[u8]) -> Vec<u8> {
        let bare = Bare {
            source_port: 40_000,
            destination_port: 80,
            sequence: 7,
            acknowledgement: 0,
            flags: flags::SYN,
            window: 1024,
        };
        let mut segment = bare.emit(pseudo()).to_vec();
        segment.extend_from_slice(options);
        segment[12] = (segment.len() as u8 / 4) << 4;
        fill_checksum(&mut segment, pseudo());
        segment
    }

    #[test]
    fn what_is_emitted_is_read_back() {
        let bytes = syn(&[2, 4, 5, 180, 1, 3, 3, 7]);
        let segment = Segment::new_checked(&bytes, pseudo()).unwrap();
        assert_eq!((segment.source_port(), segment.destination_port(), segment.sequence()), (40_000, 80, 7));
        assert_eq!((segment.flags(), segment.window(), segment.payload_len()), (flags::SYN, 1024, 0));
        assert_eq!((segment.span(), segment.window_scale()), (1, Some(7)));
    }

    #[test]
    fn a_scale_beyond_the_limit_counts_as_fourteen() {
        let bytes = syn(&[3, 3, 200, 0]);
        assert_eq!(Segment::new_checked(&bytes, pseudo()).unwrap().window_scale(), Some(14));
    }

    #[test]
    fn reports_of_what_came_out_of_order_are_read() {
        let mut options = vec![1, 1, 5, 18];
        for edge in [100_u32, 200, 400, 500] {
            options.extend_from_slice(&edge.to_be_bytes());
        }
        let bytes = syn(&options);
        let segment = Segment::new_checked(&bytes, pseudo()).unwrap();
        assert_eq!(segment.selective().collect::<Vec<_>>(), [(100, 200), (400, 500)]);
        let bytes = syn(&[1, 1, 5, 6, 0, 0, 0, 1]);
        assert_eq!(Segment::new_checked(&bytes, pseudo()).unwrap().selective().count(), 0);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let good = syn(&[]);
        let mut bad = good.clone();
        bad[20 - 1] ^= 1;
        assert_eq!(Segment::new_checked(&bad, pseudo()).unwrap_err(), Malformed::Checksum);
        assert_eq!(Segment::new_checked(&good[..19], pseudo()).unwrap_err(), Malformed::Truncated);
        for (offset, malformed) in [(4, Malformed::Field), (6, Malformed::Truncated), (15, Malformed::Truncated)] {
            let mut bad = good.clone();
            bad[12] = offset << 4;
            fill_checksum(&mut bad, pseudo());
            assert_eq!(Segment::new_checked(&bad, pseudo()).unwrap_err(), malformed, "offset {offset}");
        }
        for options in [[2, 0, 0, 0], [2, 1, 0, 0], [2, 5, 0, 0], [1, 1, 1, 2]] {
            assert_eq!(Segment::new_checked(&syn(&options), pseudo()).unwrap_err(), Malformed::Field, "{options:?}");
        }
        let mut bad = good;
        bad[..2].fill(0);
        fill_checksum(&mut bad, pseudo());
        assert_eq!(Segment::new_checked(&bad, pseudo()).unwrap_err(), Malformed::Field);
    }

    #[test]
    fn an_mss_is_lowered_and_never_raised_wherever_it_stands() {
        for (options, expected) in [
            (&[2, 4, 5, 0xb4][..], &[2, 4, 2, 24][..]),
            (&[1, 1, 2, 4, 35, 0, 0, 0], &[1, 1, 2, 4, 2, 24, 0, 0]),
            (&[3, 3, 7, 2, 4, 5, 0xb4, 0], &[3, 3, 7, 2, 4, 2, 24, 0]),
            (&[2, 4, 0, 99], &[2, 4, 0, 99]),
            (&[0, 2, 4, 5, 0xb4, 0, 0, 0], &[0, 2, 4, 5, 0xb4, 0, 0, 0]),
            // What is not whole is let alone.
            (&[2, 4, 5], &[2, 4, 5]),
            (&[3, 0, 2, 4], &[3, 0, 2, 4]),
            (&[8, 9, 2, 4], &[8, 9, 2, 4]),
            (&[1, 1, 1, 8], &[1, 1, 1, 8]),
        ] {
            let mut segment = [&[0; HEADER][..], options, &[2, 4, 5, 0xb4]].concat();
            segment[12] = ((HEADER + options.len()) / 4) as u8 * 16;
            clamp_mss(&mut segment, 536);
            let whole = options.len() / 4 * 4;
            assert_eq!(&segment[HEADER..][..whole], &expected[..whole], "{options:?}");
        }
    }

    #[test]
    fn sequence_numbers_are_on_a_circle() {
        assert!(before(1, 2) && !before(2, 2) && before(u32::MAX, 0) && !before(0, u32::MAX));
    }
}
