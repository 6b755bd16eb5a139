//! Packets and matches as words that a mask and one comparison decide by.
//!
//! A [`Shape`] is what matches of one kind have in common: which fields they name, and how long their prefixes are. All
//! rules of a shape are found by one look-up, of the packet's words under the shape's mask.
//!
//! | word | from the upper end on                                            |
//! | ---- | ---------------------------------------------------------------- |
//! | 0    | port 16, ethertype 16, VLAN 16, protocol 8, the shape's number 8 |
//! | 1    | source port 16, destination port 16, TEID 32                     |
//!
//! The others are as they were on the wire, in the machine's own order:
//!
//! | word | octets                                                        |
//! | ---- | ------------------------------------------------------------- |
//! | 2    | IPv4 source and destination; IPv6 destination, its upper half |
//! | 3    | IPv6 destination, its lower half                              |
//! | 4, 5 | IPv6 source                                                   |
//! | 6, 7 | destination and source link address, and two more             |

use std::net::IpAddr;

use super::{Match, PortIndex, Refused};
use crate::packet::array;
use crate::packet::ethernet::{self, Mac};
use crate::packet::headers::{Headers, has};
use crate::stack::Cidr;

/// What nearly every match is told apart by, and the others need besides.
pub(super) const NARROW: usize = 3;
pub(super) const WORDS: usize = 8;
pub(super) type Words = [u64; WORDS];

const PORT: u64 = 0xffff << 48;
const ETHERTYPE: u64 = 0xffff << 32;
const VLAN: u64 = 0xffff << 16;
const PROTOCOL: u64 = 0xff << 8;
const SOURCE_PORT: u64 = 0xffff << 48;
const DESTINATION_PORT: u64 = 0xffff << 32;
const TEID: u64 = 0xffff_ffff;
const MAC: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);

/// The first words of the frame that `bytes` is the beginning of, and `headers` were read from. Those of what it has not
/// mean nothing.
#[inline(always)]
pub(super) fn narrow(port: PortIndex, bytes: &[u8], headers: &Headers) -> [u64; NARROW] {
    let at = usize::from(headers.network);
    let addresses = if headers.has & has::V4 != 0 {
        word(bytes, at + 12)
    } else if headers.has & has::V6 != 0 {
        word(bytes, at + 24)
    } else {
        0
    };
    [
        link_word(port, headers.ethertype, headers.vlan, headers.protocol),
        transport_word(headers.source_port, headers.destination_port, headers.teid),
        addresses,
    ]
}

/// All words. Word for word into its place: a copy would have to wait for the single stores.
#[inline(always)]
pub(super) fn read(words: &mut Words, port: PortIndex, bytes: &[u8], headers: &Headers) {
    [words[0], words[1], words[2]] = narrow(port, bytes, headers);
    if headers.has & has::V6 != 0 {
        let at = usize::from(headers.network);
        for (place, from) in [(3, 32), (4, 8), (5, 16)] {
            words[place] = word(bytes, at + from);
        }
    }
    if let Some(link) = bytes.first_chunk::<{ ethernet::HEADER }>() {
        words[6] = word(link, 0);
        words[7] = word(link, 6);
    }
}

/// Those of a packet of the flow's other direction.
pub(super) fn reversed(mut words: Words, headers: &Headers) -> Words {
    let (source, destination) = (words[1] >> 48, words[1] >> 32 & 0xffff);
    words[1] = destination << 48 | source << 32;
    if headers.has & has::V4 != 0 {
        words[2] = words[2].rotate_left(32);
    } else {
        words.swap(2, 4);
        words.swap(3, 5);
    }
    words
}

/// Two matches of one shape differ in their values, or their priority, alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub mask: Words,
    /// Bits of [`has`](crate::packet::headers::has) that a packet must have.
    pub requires: u8,
    source_prefix: Option<u8>,
    destination_prefix: Option<u8>,
}

impl Shape {
    /// The shape of a match, and its words.
    pub fn of(m: &Match) -> Result<(Self, Words), Refused> {
        let (mut mask, mut words) = ([0; WORDS], [0; WORDS]);
        let mut requires = 0;
        let mut field = |word: usize, bits: u64, value: Option<u64>, needs: u8| {
            let Some(value) = value else { return };
            mask[word] |= bits;
            words[word] |= value;
            requires |= needs;
        };
        let at = |bits: u64| move |value: u64| value << bits.trailing_zeros();
        if m.vlan.is_some_and(|id| id > 4_095) {
            return Err(Refused::Vlan);
        }
        field(0, PORT, m.port.map(u64::from).map(at(PORT)), 0);
        field(0, ETHERTYPE, m.ethertype.map(u64::from).map(at(ETHERTYPE)), has::LINK);
        field(0, VLAN, m.vlan.map(u64::from).map(at(VLAN)), has::LINK);
        field(0, PROTOCOL, m.protocol.map(u64::from).map(at(PROTOCOL)), has::PROTOCOL);
        field(1, SOURCE_PORT, m.source_port.map(u64::from).map(at(SOURCE_PORT)), has::PORTS);
        field(1, DESTINATION_PORT, m.destination_port.map(u64::from).map(at(DESTINATION_PORT)), has::PORTS);
        field(1, TEID, m.teid.map(u64::from).map(at(TEID)), has::TEID);
        field(6, MAC, m.destination_mac.map(mac_word), has::LINK);
        field(7, MAC, m.source_mac.map(mac_word), has::LINK);
        let any = |of: IpAddr| if of.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let (source, destination) = match (m.source, m.destination) {
            (Some(source), Some(destination)) => (source, destination),
            (Some(source), None) => (source, Cidr { address: any(source.address), prefix: 0 }),
            (None, Some(destination)) => (Cidr { address: any(destination.address), prefix: 0 }, destination),
            (None, None) => return Ok((Self { mask, requires, source_prefix: None, destination_prefix: None }, words)),
        };
        requires |= if source.address.is_ipv4() { has::V4 } else { has::V6 };
        address_words(&mut mask, netmask(source)?, netmask(destination)?).ok_or(Refused::Family)?;
        address_words(&mut words, source.address, destination.address).ok_or(Refused::Family)?;
        for (word, mask) in words[2..6].iter_mut().zip(&mask[2..6]) {
            *word &= mask;
        }
        let source_prefix = m.source.map(|cidr| cidr.prefix);
        let destination_prefix = m.destination.map(|cidr| cidr.prefix);
        Ok((Self { mask, requires, source_prefix, destination_prefix }, words))
    }

    /// The match that has these words; of the addresses, what is behind the prefix is 0.
    pub fn matching(&self, words: &Words, priority: i32) -> Match {
        let field = |word: usize, bits: u64| {
            (self.mask[word] & bits != 0).then_some((words[word] & bits) >> bits.trailing_zeros())
        };
        let mac = |place: usize| (self.mask[place] != 0).then(|| array(&words[place].to_ne_bytes(), 0));
        let (source, destination) = if self.requires & has::V6 != 0 {
            let wide = |at: usize| {
                let mut octets = [0; 16];
                octets[..8].copy_from_slice(&words[at].to_ne_bytes());
                octets[8..].copy_from_slice(&words[at + 1].to_ne_bytes());
                IpAddr::from(octets)
            };
            (wide(4), wide(2))
        } else {
            let [a, b, c, d, e, f, g, h] = words[2].to_ne_bytes();
            ([a, b, c, d].into(), [e, f, g, h].into())
        };
        Match {
            port: field(0, PORT).map(|value| value as u16),
            source_mac: mac(7),
            destination_mac: mac(6),
            vlan: field(0, VLAN).map(|value| value as u16),
            ethertype: field(0, ETHERTYPE).map(|value| value as u16),
            source: self.source_prefix.map(|prefix| Cidr { address: source, prefix }),
            destination: self.destination_prefix.map(|prefix| Cidr { address: destination, prefix }),
            protocol: field(0, PROTOCOL).map(|value| value as u8),
            source_port: field(1, SOURCE_PORT).map(|value| value as u16),
            destination_port: field(1, DESTINATION_PORT).map(|value| value as u16),
            teid: field(1, TEID).map(|value| value as u32),
            priority,
        }
    }

    /// Are the first words all that it looks at?
    pub fn is_narrow(&self) -> bool {
        self.mask[NARROW..].iter().all(|&word| word == 0)
    }

    /// One flow of TCP, UDP or ICMP echoes, so that a packet quoted in an ICMP error can be one of it.
    pub fn is_exact(&self) -> bool {
        let whole = Some(if self.requires & has::V4 != 0 { 32 } else { 128 });
        self.source_prefix == whole
            && self.destination_prefix == whole
            && self.mask[0] & PROTOCOL != 0
            && self.mask[1] == SOURCE_PORT | DESTINATION_PORT
    }

    /// How much it says: the bits that a packet must have, and one for the version of IP.
    pub fn bits(&self) -> u32 {
        let family = u32::from(self.requires & (has::V4 | has::V6) != 0);
        self.mask.iter().map(|word| word.count_ones()).sum::<u32>() + family
    }
}

/// Eight octets.
#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(array(bytes, at))
}

fn mac_word(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

#[inline]
fn link_word(port: PortIndex, ethertype: u16, vlan: u16, protocol: u8) -> u64 {
    u64::from(port) << 48 | u64::from(ethertype) << 32 | u64::from(vlan) << 16 | u64::from(protocol) << 8
}

#[inline]
fn transport_word(source: u16, destination: u16, teid: u32) -> u64 {
    u64::from(source) << 48 | u64::from(destination) << 32 | u64::from(teid)
}

/// `None`: they are of two families.
fn address_words(words: &mut Words, source: IpAddr, destination: IpAddr) -> Option<()> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ([a, b, c, d], [e, f, g, h]) = (source.octets(), destination.octets());
            words[2] = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            for (place, octets) in [(2, destination.octets()), (4, source.octets())] {
                (words[place], words[place + 1]) = (word(&octets, 0), word(&octets, 8));
            }
        }
        _ => return None,
    }
    Some(())
}

fn netmask(cidr: Cidr) -> Result<IpAddr, Refused> {
    let prefix = u32::from(cidr.prefix);
    match cidr.address {
        IpAddr::V4(_) if prefix <= 32 => Ok(u32::MAX.checked_shl(32 - prefix).unwrap_or(0).to_be_bytes().into()),
        IpAddr::V6(_) if prefix <= 128 => Ok(u128::MAX.checked_shl(128 - prefix).unwrap_or(0).to_be_bytes().into()),
        _ => Err(Refused::Prefix),
    }
}
