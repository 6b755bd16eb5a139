//! What most rewritings are, address translation: other addresses and ports for TCP and UDP over IPv4. A word of each with
//! its mask, put in at once: a third of what it takes field by field. It does what [`edit::rewrite`](super::edit::rewrite)
//! does, which has all other packets.

use std::net::{IpAddr, Ipv4Addr};

use super::{Action, Head, Rewrite};
use crate::packet::checksum::Change;
use crate::packet::headers::{Headers, has};
use crate::packet::{array, ipv4, protocol};

/// Source and destination, as on the wire; bits that are not in the masks stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Translation {
    addresses: u64,
    address_mask: u64,
    ports: u32,
    port_mask: u32,
}

impl Translation {
    /// None: it is no rewriting, or one of something else.
    pub fn of(action: &Action) -> Option<Self> {
        let Action::Rewrite(to) = *action else { return None };
        let Rewrite { source, destination, source_port, destination_port, .. } = to;
        let asked = Rewrite { source, destination, source_port, destination_port, ..Rewrite::default() };
        if to != asked || to == Rewrite::default() {
            return None;
        }
        let address = |address: Option<IpAddr>| match address {
            None => Some((0, 0)),
            Some(IpAddr::V4(address)) => Some((u64::from(address.to_bits()), u64::from(u32::MAX))),
            Some(IpAddr::V6(_)) => None,
        };
        let port = |port: Option<u16>| port.map_or((0, 0), |port| (u32::from(port), u32::from(u16::MAX)));
        let ((source, source_mask), (destination, destination_mask)) = (address(source)?, address(destination)?);
        let (addresses, address_mask) = (source << 32 | destination, source_mask << 32 | destination_mask);
        let ((source, source_mask), (destination, destination_mask)) = (port(source_port), port(destination_port));
        let (ports, port_mask) = (source << 16 | destination, source_mask << 16 | destination_mask);
        Some(Self {
            addresses: addresses.to_be(),
            address_mask: address_mask.to_be(),
            ports: ports.to_be(),
            port_mask: port_mask.to_be(),
        })
    }

    /// The rewriting that it was made of.
    pub fn whole(&self) -> Rewrite {
        let (addresses, address_mask) = (u64::from_be(self.addresses), u64::from_be(self.address_mask));
        let (ports, port_mask) = (u32::from_be(self.ports), u32::from_be(self.port_mask));
        let address =
            |at: u32| (address_mask >> at & 1 != 0).then(|| IpAddr::V4(Ipv4Addr::from_bits((addresses >> at) as u32)));
        let port = |at: u32| (port_mask >> at & 1 != 0).then_some((ports >> at) as u16);
        Rewrite {
            source: address(32),
            destination: address(0),
            source_port: port(16),
            destination_port: port(0),
            ..Rewrite::default()
        }
    }

    /// False: it is another kind of packet, to which nothing was done.
    #[inline]
    pub fn apply(&self, head: &mut Head, headers: &Headers) -> bool {
        const WANTED: u8 = has::V4 | has::PORTS;
        let is_udp = headers.protocol == protocol::UDP;
        if headers.has & WANTED != WANTED || !(is_udp || headers.protocol == protocol::TCP) {
            return false;
        }
        let packet = &mut head.bytes_mut()[usize::from(headers.network)..];
        let (ip, segment) = packet.split_at_mut(usize::from(headers.transport - headers.network));
        let ip = ip.first_chunk_mut::<{ ipv4::HEADER }>().expect("the headers were read");
        let mut change = Change::default();
        if self.address_mask != 0 {
            let addresses = u64::from_ne_bytes(array(ip, 12)) & !self.address_mask | self.addresses;
            change.replace(&mut ip[12..], &addresses.to_ne_bytes());
            change.apply(&mut ip[10..]);
        }
        let ports = u32::from_ne_bytes(array(segment, 0)) & !self.port_mask | self.ports;
        change.replace(&mut segment[..4], &ports.to_ne_bytes());
        let at = if is_udp { 6 } else { 16 };
        let checksum = &mut segment[at..at + 2];
        // 0 means none (RFC 768).
        if is_udp && checksum == [0, 0] {
            return true;
        }
        change.apply(checksum);
        if is_udp && checksum == [0, 0] {
            checksum.fill(0xff);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::edit;
    use crate::packet::fuzzing::{Random, frames};
    use crate::port::lent::Lent;

    /// Often 0 and all ones, where ones' complement has its corners.
    fn word(random: &mut Random) -> u16 {
        [0, 0xffff, random.number() as u16][random.below(3)]
    }

    fn address(random: &mut Random) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(u32::from(word(random)) << 16 | u32::from(word(random))))
    }

    fn maybe<T>(random: &mut Random, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
        (random.below(2) == 0).then(|| value(random))
    }

    #[test]
    fn it_does_what_is_done_field_by_field_or_nothing() {
        let (seeds, mut random, mut done) = (frames(), Random::new(), 0);
        for _ in 0..100_000 {
            let to = Rewrite {
                source: maybe(&mut random, address),
                destination: maybe(&mut random, address),
                source_port: maybe(&mut random, word),
                destination_port: maybe(&mut random, word),
                ..Rewrite::default()
            };
            let Some(translation) = Translation::of(&Action::Rewrite(to)) else {
                assert_eq!(to, Rewrite::default());
                continue;
            };
            assert_eq!(translation.whole(), to);
            let mut frame = seeds[random.below(seeds.len())].clone();
            for _ in 0..random.below(3) {
                random.mutate(&mut frame);
            }
            let mut head = Head::default();
            head.take(Lent::of(&frame));
            let (headers, mut other) = (Headers::read(head.bytes(), frame.len()), head.clone());
            if translation.apply(&mut head, &headers) {
                assert_eq!(edit::rewrite(&mut other, &headers, &to), Ok(()));
                done += 1;
            }
            assert_eq!(head.bytes(), other.bytes(), "{to:?} {frame:02x?}");
        }
        assert!(done > 10_000, "{done}");
    }

    #[test]
    fn other_rewritings_are_none() {
        let v4 = Rewrite { source: Some([10, 0, 0, 1].into()), ..Rewrite::default() };
        assert!(Translation::of(&Action::Rewrite(v4)).is_some());
        for other in [
            Action::Decapsulate,
            Action::Rewrite(Rewrite::default()),
            Action::Rewrite(Rewrite { ttl: Some(9), ..v4 }),
            Action::Rewrite(Rewrite { vlan: Some(0), ..v4 }),
            Action::Rewrite(Rewrite { source_mac: Some([2; 6]), ..v4 }),
            Action::Rewrite(Rewrite { destination: Some([0; 16].into()), ..v4 }),
        ] {
            assert_eq!(Translation::of(&other), None);
        }
    }
}
