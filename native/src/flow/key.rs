//! Packets and matches as words that a mask and one comparison decide by.
//!
//! A [`Shape`] is what matches of one kind have in common: which fields they name, and how long their prefixes are. All
//! rules of a shape are found by one look-up, of the packet's words under the shape's mask.
//!
//! | word | from the upper end on                                               |
//! | ---- | ------------------------------------------------------------------- |
//! | 0    | port 16, ethertype 16, VLAN 16, protocol 8, the shape's number 8     |
//! | 1    | source port 16, destination port 16, TEID 32                        |
//! | 2    | IPv4 source 32, IPv4 destination 32; IPv6 destination, its lower half |
//! | 3    | IPv6 destination, its upper half                                    |
//! | 4, 5 | IPv6 source                                                         |
//! | 6, 7 | destination and source link address 48                              |

use std::net::IpAddr;

use super::{Match, PortIndex, Refused};
use crate::packet::ethernet::Mac;
use crate::packet::headers::{Headers, kind};
use crate::packet::{array, icmp};
use crate::stack::Cidr;

/// What nearly every match is told apart by, and the others need besides.
pub(super) const NARROW: usize = 3;
pub(super) const WORDS: usize = 8;
pub(super) type Words = [u64; WORDS];

/// What a packet has, and a shape asks for.
pub(super) mod has {
    pub const LINK: u8 = 1;
    pub const V4: u8 = 2;
    pub const V6: u8 = 4;
    pub const PROTOCOL: u8 = 8;
    pub const PORTS: u8 = 16;
    pub const TEID: u8 = 32;
    /// An ICMP error: no shape asks for it.
    pub const QUOTE: u8 = 64;
}

const PORT: u64 = 0xffff << 48;
const ETHERTYPE: u64 = 0xffff << 32;
const VLAN: u64 = 0xffff << 16;
const PROTOCOL: u64 = 0xff << 8;
const SOURCE_PORT: u64 = 0xffff << 48;
const DESTINATION_PORT: u64 = 0xffff << 32;
const TEID: u64 = 0xffff_ffff;
const MAC: u64 = 0xffff_ffff_ffff;

/// A packet, as matches see it.
#[derive(Clone, Copy, Default)]
pub(super) struct Facts {
    pub words: Words,
    /// Bits of [`has`].
    pub has: u8,
}

impl Facts {
    /// Of the frame that `bytes` is the beginning of, and `headers` were read from.
    #[inline]
    pub fn read(port: PortIndex, bytes: &[u8], headers: &Headers) -> Self {
        let mut words = [0; WORDS];
        let mut has = 0;
        if let Some(link) = bytes.first_chunk::<12>() {
            has |= has::LINK;
            words[6] = mac_word(array(link, 0));
            words[7] = mac_word(array(link, 6));
        }
        let at = usize::from(headers.network);
        if headers.is(kind::IPV4) {
            has |= has::V4;
            words[2] = u64::from_be_bytes(array(bytes, at + 12));
        } else if headers.is(kind::IPV6) {
            has |= has::V6;
            words[2] = u64::from_be_bytes(array(bytes, at + 32));
            words[3] = u64::from_be_bytes(array(bytes, at + 24));
            words[4] = u64::from_be_bytes(array(bytes, at + 8));
            words[5] = u64::from_be_bytes(array(bytes, at + 16));
        }
        let kinds = headers.kinds;
        if kinds & (kind::IPV4 | kind::IPV6) != 0 && kinds & kind::MALFORMED == 0 {
            has |= has::PROTOCOL;
            if kinds & kind::FRAGMENT == 0 {
                has |= transport(bytes, headers);
            }
        }
        let ports = if has & has::PORTS != 0 { (headers.source_port, headers.destination_port) } else { (0, 0) };
        words[0] = link_word(port, headers.ethertype, headers.vlan, headers.protocol);
        words[1] = transport_word(ports.0, ports.1, headers.teid);
        Self { words, has }
    }

    /// A packet of the flow's other direction.
    pub fn reversed(mut self) -> Self {
        let (source, destination) = (self.words[1] >> 48, self.words[1] >> 32 & 0xffff);
        self.words[1] = destination << 48 | source << 32;
        if self.has & has::V4 != 0 {
            self.words[2] = self.words[2].rotate_left(32);
        } else {
            self.words.swap(2, 5);
            self.words.swap(3, 4);
        }
        self
    }
}

/// Ports are those of TCP, UDP and ICMP queries.
#[inline]
fn transport(bytes: &[u8], headers: &Headers) -> u8 {
    if headers.is(kind::TCP) {
        return has::PORTS;
    }
    if headers.is(kind::UDP) {
        return if headers.is(kind::GTPU) { has::PORTS | has::TEID } else { has::PORTS };
    }
    if !headers.is(kind::ICMP) {
        return 0;
    }
    let message = bytes[usize::from(headers.transport)];
    if icmp::asks(headers.protocol, message).is_some() {
        has::PORTS
    } else if icmp::is_error(headers.protocol, message) {
        has::QUOTE
    } else {
        0
    }
}

/// Two matches of one shape differ in their values, or their priority, alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub mask: Words,
    /// Bits of [`has`] that a packet must have.
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
            words[word] |= value << bits.trailing_zeros();
            requires |= needs;
        };
        if m.vlan.is_some_and(|id| id > 4_095) {
            return Err(Refused::Vlan);
        }
        field(0, PORT, m.port.map(u64::from), 0);
        field(0, ETHERTYPE, m.ethertype.map(u64::from), has::LINK);
        field(0, VLAN, m.vlan.map(u64::from), has::LINK);
        field(0, PROTOCOL, m.protocol.map(u64::from), has::PROTOCOL);
        field(1, SOURCE_PORT, m.source_port.map(u64::from), has::PORTS);
        field(1, DESTINATION_PORT, m.destination_port.map(u64::from), has::PORTS);
        field(1, TEID, m.teid.map(u64::from), has::TEID);
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
        let mac = |value: u64| -> Mac { array(&value.to_be_bytes(), 2) };
        let (source, destination) = if self.requires & has::V6 != 0 {
            let wide = |high: u64, low: u64| IpAddr::from((u128::from(high) << 64 | u128::from(low)).to_be_bytes());
            (wide(words[4], words[5]), wide(words[3], words[2]))
        } else {
            let [a, b, c, d, e, f, g, h] = words[2].to_be_bytes();
            ([a, b, c, d].into(), [e, f, g, h].into())
        };
        Match {
            port: field(0, PORT).map(|value| value as u16),
            source_mac: field(7, MAC).map(mac),
            destination_mac: field(6, MAC).map(mac),
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

#[inline]
fn mac_word(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
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
            words[2] = u64::from(u32::from(source)) << 32 | u64::from(u32::from(destination));
            words[3..6].fill(0);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (source, destination) = (u128::from(source), u128::from(destination));
            (words[2], words[3]) = (destination as u64, (destination >> 64) as u64);
            (words[4], words[5]) = ((source >> 64) as u64, source as u64);
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
