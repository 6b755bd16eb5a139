//! IPv6 headers and the walk over extension headers (RFC 8200).

use std::net::Ipv6Addr;

use super::{Malformed, array, u16_at};

pub const HEADER: usize = 40;
pub const FRAGMENT_HEADER: usize = 8;
pub const HOP_LIMIT: u8 = 64;
/// No link may carry less (RFC 8200 §5).
pub const MINIMUM_MTU: usize = 1280;

/// Extension headers followed before a packet is refused; real ones have two or three.
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// A packet whose fixed header and length are right, cut to its payload length.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a>(&'a [u8]);

/// What the chain of extension headers leads to. Offsets count from the packet's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    Transport {
        protocol: u8,
        at: usize,
        /// Where the field stands that names the protocol.
        named_at: usize,
    },
    Fragment {
        next_header: u8,
        identification: u32,
        /// In bytes.
        offset: usize,
        more: bool,
        /// Where the fragment's data begins.
        at: usize,
    },
}

impl<'a> Packet<'a> {
    /// Bytes after the payload length are the link's padding and cut off. Jumbograms are refused: the length 0 they
    /// carry leaves nothing.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Self(bytes) = Self::new_quoted(bytes)?;
        bytes.get(..HEADER + usize::from(u16_at(bytes, 4))).map(Self).ok_or(Malformed::Truncated)
    }

    /// The beginning of a packet, as an ICMPv6 error quotes it.
    #[inline]
    pub fn new_quoted(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed::Truncated);
        }
        if bytes[0] >> 4 != 6 { Err(Malformed::Version) } else { Ok(Self(bytes)) }
    }

    /// Header and payload.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    pub fn hop_limit(&self) -> u8 {
        self.0[7]
    }

    #[inline]
    pub fn source(&self) -> Ipv6Addr {
        array::<16>(self.0, 8).into()
    }

    #[inline]
    pub fn destination(&self) -> Ipv6Addr {
        array::<16>(self.0, 24).into()
    }

    /// Follows the extension headers to the first thing that is none, or to a fragment.
    #[inline]
    pub fn upper(&self) -> Result<Upper, Malformed> {
        let (mut header, mut named_at, mut at) = (self.0[6], 6, HEADER);
        for _ in 0..=MAX_EXTENSIONS {
            match header {
                HOP_BY_HOP if at != HEADER => return Err(Malformed::Field),
                HOP_BY_HOP | DESTINATION_OPTIONS => check_options(extension(self.0, at)?)?,
                ROUTING => check_routing(extension(self.0, at)?)?,
                FRAGMENT => {
                    let bytes = self.0.get(at..at + FRAGMENT_HEADER).ok_or(Malformed::Truncated)?;
                    let (offset, more) = (usize::from(u16_at(bytes, 2) & !7), bytes[3] & 1 != 0);
                    // An atomic fragment is a whole packet (RFC 8200 §4.5): go on behind its header.
                    if offset != 0 || more {
                        let identification = u32::from_be_bytes(array(bytes, 4));
                        let (next_header, at) = (bytes[0], at + FRAGMENT_HEADER);
                        return Ok(Upper::Fragment { next_header, identification, offset, more, at });
                    }
                }
                protocol => return Ok(Upper::Transport { protocol, at, named_at }),
            }
            named_at = at;
            let len = if header == FRAGMENT { FRAGMENT_HEADER } else { extension(self.0, at)?.len() };
            header = self.0[at];
            at += len;
        }
        Err(Malformed::Field)
    }
}

/// Is it one of the extension headers that are followed?
pub fn is_extension(header: u8) -> bool {
    matches!(header, HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING | FRAGMENT)
}

/// For those who pass a packet on: the protocol behind the extension headers, where that begins, and the fragment's
/// offset in bytes if it is one. Options are for the receiver to judge.
#[inline]
pub fn skip_extensions(packet: &[u8]) -> Option<(u8, usize, Option<usize>)> {
    let (mut header, mut at, mut fragment) = (packet[6], HEADER, None);
    for _ in 0..=MAX_EXTENSIONS {
        match header {
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => {
                let bytes = packet.get(at..at + 2)?;
                header = bytes[0];
                at += 8 + usize::from(bytes[1]) * 8;
            }
            FRAGMENT => {
                let bytes = packet.get(at..at + FRAGMENT_HEADER)?;
                let field = u16_at(bytes, 2);
                header = bytes[0];
                at += FRAGMENT_HEADER;
                if field & 0xfff9 != 0 {
                    fragment = Some(usize::from(field & !7));
                    break;
                }
            }
            _ => return Some((header, at, fragment)),
        }
    }
    fragment.map(|_| (header, at, fragment))
}

/// Is a source route on its way? Then the header's destination is not the last one (RFC 8200 §4.4).
pub fn has_segments_left(packet: &[u8]) -> bool {
    let (mut header, mut at) = (packet[6], HEADER);
    for _ in 0..=MAX_EXTENSIONS {
        let Some(&[next, units, _, segments_left]) = packet.get(at..).and_then(|rest| rest.first_chunk()) else {
            return false;
        };
        at += match header {
            ROUTING if segments_left != 0 => return true,
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => 8 + usize::from(units) * 8,
            FRAGMENT => FRAGMENT_HEADER,
            _ => return false,
        };
        header = next;
    }
    false
}

/// `class` is DSCP and ECN (RFC 8200 §7).
pub fn set_traffic_class(packet: &mut [u8], class: u8) {
    packet[0] = packet[0] & 0xf0 | class >> 4;
    packet[1] = class << 4 | packet[1] & 0x0f;
}

/// The extension header at `at`, whose second byte counts its 8-byte units after the first.
fn extension(bytes: &[u8], at: usize) -> Result<&[u8], Malformed> {
    let units = *bytes.get(at + 1).ok_or(Malformed::Truncated)?;
    bytes.get(at..at + 8 + usize::from(units) * 8).ok_or(Malformed::Truncated)
}

/// Options we do not know are skipped when their type's two upper bits allow it (RFC 8200 §4.2); we know none.
fn check_options(header: &[u8]) -> Result<(), Malformed> {
    let mut options = &header[2..];
    loop {
        match *options {
            [] => return Ok(()),
            [0, ..] => options = &options[1..],
            [kind, len, ..] if kind >> 6 == 0 => {
                options = options.get(2 + usize::from(len)..).ok_or(Malformed::Truncated)?;
            }
            _ => return Err(Malformed::Field),
        }
    }
}

/// Type 0 is abolished (RFC 5095); of the others those that have nothing left to visit are skipped (RFC 8200 §4.4).
fn check_routing(header: &[u8]) -> Result<(), Malformed> {
    let (kind, segments_left) = (header[2], header[3]);
    if kind == 0 || segments_left != 0 { Err(Malformed::Field) } else { Ok(()) }
}

pub fn emit(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next_header: u8,
    payload_len: usize,
    hop_limit: u8,
) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
    header[6] = next_header;
    header[7] = hop_limit;
    header[8..24].copy_from_slice(&source.octets());
    header[24..].copy_from_slice(&destination.octets());
    header
}

/// `offset` in bytes, a multiple of 8.
pub fn emit_fragment(next_header: u8, offset: usize, more: bool, identification: u32) -> [u8; FRAGMENT_HEADER] {
    let mut header = [0; FRAGMENT_HEADER];
    header[0] = next_header;
    header[2..4].copy_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
    header[4..].copy_from_slice(&identification.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let source = "fd00::1".parse().unwrap();
        let destination = "fd00::2".parse().unwrap();
        [&emit(source, destination, next_header, payload.len(), HOP_LIMIT)[..], payload].concat()
    }

    #[test]
    fn what_is_emitted_is_read_back() {
        let bytes = packet(17, b"abcd");
        assert_eq!(bytes[..8], [0x60, 0, 0, 0, 0, 4, 17, 64]);
        let packet = Packet::new_checked(&bytes).unwrap();
        assert_eq!(packet.source(), "fd00::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(packet.destination(), "fd00::2".parse::<Ipv6Addr>().unwrap());
        assert_eq!(packet.upper(), Ok(Upper::Transport { protocol: 17, at: 40, named_at: 6 }));
    }

    #[test]
    fn lengths_and_version_are_checked_and_padding_is_cut() {
        let mut bytes = packet(17, b"abcd");
        assert_eq!(Packet::new_checked(&bytes[..43]).err(), Some(Malformed::Truncated));
        assert_eq!(Packet::new_checked(&bytes[..39]).err(), Some(Malformed::Truncated));
        bytes.push(0);
        assert_eq!(Packet::new_checked(&bytes).unwrap().bytes().len(), 44);
        bytes[0] = 0x45;
        assert_eq!(Packet::new_checked(&bytes).err(), Some(Malformed::Version));
    }

    #[test]
    fn the_chain_of_extension_headers_is_followed_or_refused() {
        let transport = |at, named_at| Ok(Upper::Transport { protocol: 17, at, named_at });
        for (what, first, payload, expected) in [
            ("hop-by-hop with padding", 0, &[17, 0, 1, 4, 0, 0, 0, 0][..], transport(48, 40)),
            ("destination options", 60, &[17, 0, 0, 0, 0, 0, 0, 0], transport(48, 40)),
            ("an option to be skipped", 60, &[17, 0, 0x1e, 4, 0, 0, 0, 0], transport(48, 40)),
            ("an option to be refused", 60, &[17, 0, 0x9e, 4, 0, 0, 0, 0], Err(Malformed::Field)),
            ("an option beyond its header", 60, &[17, 0, 1, 5, 0, 0, 0, 0], Err(Malformed::Truncated)),
            ("a header beyond the packet", 60, &[17, 1, 1, 4, 0, 0, 0, 0], Err(Malformed::Truncated)),
            ("a lone next header", 60, &[17], Err(Malformed::Truncated)),
            ("hop-by-hop after another", 60, &[0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0], Err(Malformed::Field)),
            ("routing type 0", 43, &[17, 0, 0, 0, 0, 0, 0, 0], Err(Malformed::Field)),
            ("routing type 2, done", 43, &[17, 0, 2, 0, 0, 0, 0, 0], transport(48, 40)),
            ("routing type 2, not done", 43, &[17, 0, 2, 1, 0, 0, 0, 0], Err(Malformed::Field)),
            ("an atomic fragment", 44, &[17, 0, 0, 0, 0, 0, 0, 9], transport(48, 40)),
            ("half a fragment header", 44, &[17, 0, 0, 1], Err(Malformed::Truncated)),
        ] {
            let bytes = packet(first, payload);
            assert_eq!(Packet::new_checked(&bytes).unwrap().upper(), expected, "{what}");
        }
    }

    #[test]
    fn a_fragment_is_octets_and_values() {
        let header = emit_fragment(17, 1448, true, 0x0102_0304);
        assert_eq!(header, [17, 0, 0x05, 0xa9, 1, 2, 3, 4]);
        let bytes = packet(FRAGMENT, &header);
        assert_eq!(
            Packet::new_checked(&bytes).unwrap().upper(),
            Ok(Upper::Fragment { next_header: 17, identification: 0x0102_0304, offset: 1448, more: true, at: 48 })
        );
    }

    #[test]
    fn an_endless_chain_is_refused() {
        let mut payload = [60, 0, 1, 4, 0, 0, 0, 0].repeat(100);
        assert_eq!(Packet::new_checked(&packet(60, &payload)).unwrap().upper(), Err(Malformed::Field));
        payload.truncate(8 * 8);
        payload[7 * 8] = 17;
        assert!(Packet::new_checked(&packet(60, &payload)).unwrap().upper().is_ok());
    }
}
