//! What a host does for packets that are not its own: the next hop's link address for those that leave by its port, and
//! ICMP errors to those who sent what goes no further (RFC 1812 §4.3, RFC 4443 §3).

use std::net::IpAddr;
use std::time::Instant;

use super::Host;
use super::host::{Envelope, Link};
use super::neighbours::{Lookup, Pending};
use crate::packet::ethernet::{self, Mac};
use crate::packet::icmp::{v4, v6};
use crate::packet::{ipv4, ipv6, protocol};
use crate::port::Port;

/// Where the next packet to some destination goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    Known(Mac),
    /// Nobody knows its link address yet: [`Host::wait_for`] keeps the packet.
    Unknown,
    /// No address of the host, and no gateway, leads there.
    NoRoute,
}

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    HopLimit,
    /// Longer than this, and not to be fragmented.
    TooBig(usize),
    NoRoute,
}

impl Host {
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The largest IP packet that its port carries.
    pub fn mtu(&self) -> usize {
        self.mtu.into()
    }

    /// Questions that this raises leave by `port`.
    #[inline]
    pub fn next_hop(&mut self, destination: IpAddr, now: Instant, port: &mut dyn Port) -> NextHop {
        let Some(route) = self.way_to(destination) else { return NextHop::NoRoute };
        match self.neighbours.lookup(route.next_hop, now) {
            Lookup::Known(mac, _) | Lookup::Doubtful(mac, None) => NextHop::Known(mac),
            Lookup::Doubtful(mac, Some(solicit)) => {
                self.solicit(solicit, port);
                NextHop::Known(mac)
            }
            Lookup::Unknown => NextHop::Unknown,
        }
    }

    /// Keeps a frame until the next hop's link address is known, which it gets as its destination. Dropped and counted
    /// when there are too many, or nobody answers.
    pub fn wait_for(&mut self, destination: IpAddr, frame: Vec<u8>, now: Instant, port: &mut dyn Port) {
        let Some(route) = self.way_to(destination) else { return };
        let pending = Pending { flow: Pending::NO_FLOW, frames: vec![frame] };
        let asked = self.neighbours.wait(route.next_hop, route.source, pending, now, &mut self.counters);
        if let Ok(Some(solicit)) = asked {
            self.solicit(solicit, port);
        }
    }

    fn way_to(&self, destination: IpAddr) -> Option<super::addresses::Route> {
        // What is ours, or nobody's, has no next hop.
        if self.addresses.is_local(destination) || self.addresses.is_martian(destination) {
            return None;
        }
        self.addresses.route(destination)
    }

    /// Tells the sender of `frame`, which came in by this host's port: the beginning of it, as it came. Nobody is told
    /// of what was sent to many, of fragments but the first, and of other errors (RFC 1812 §4.3.2.7).
    pub fn stop(&mut self, frame: &[u8], why: Stopped, now: Instant, port: &mut dyn Port) {
        let Ok(view) = ethernet::Frame::new_checked(frame) else { return };
        let link = Link { source: view.source(), destination: view.destination() };
        if !ethernet::is_unicast(link.source) || !ethernet::is_unicast(link.destination) {
            return;
        }
        let packet = view.payload();
        let envelope = match view.ethertype() {
            ethernet::IPV4 => transit_v4(packet),
            ethernet::IPV6 => transit_v6(packet),
            _ => None,
        };
        let possible = |address| !self.addresses.is_martian(address);
        let envelope = envelope.filter(|envelope| possible(envelope.source) && possible(envelope.destination));
        let Some(mut envelope) = envelope else { return };
        // A router speaks from its own address (RFC 1812 §4.3.2.4).
        let Some(route) = self.addresses.route(envelope.source) else { return };
        envelope.destination = route.source;
        let (kind, code, rest) = match (why, envelope.source) {
            (Stopped::HopLimit, IpAddr::V4(_)) => (v4::TIME_EXCEEDED, 0, 0),
            (Stopped::TooBig(mtu), IpAddr::V4(_)) => (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, mtu.min(0xffff)),
            (Stopped::NoRoute, IpAddr::V4(_)) => (v4::UNREACHABLE, 0, 0),
            (Stopped::HopLimit, IpAddr::V6(_)) => (v6::TIME_EXCEEDED, 0, 0),
            (Stopped::TooBig(mtu), IpAddr::V6(_)) => (v6::TOO_BIG, 0, mtu.max(ipv6::MINIMUM_MTU)),
            (Stopped::NoRoute, IpAddr::V6(_)) => (v6::UNREACHABLE, 0, 0),
        };
        self.refuse(kind, code, (rest as u32).to_be_bytes(), packet, envelope, link, now, port);
    }
}

fn transit_v4(packet: &[u8]) -> Option<Envelope> {
    let header = ipv4::Packet::new_quoted(packet).ok()?;
    let destination = header.destination();
    if header.fragment_offset() != 0 || destination.is_multicast() || destination.is_broadcast() {
        return None;
    }
    let at = header.header_len();
    // Queries and their answers are no errors (RFC 1122 §3.2.2).
    if header.protocol() == protocol::ICMP && !matches!(packet.get(at), Some(0 | 8 | 13..=18)) {
        return None;
    }
    Some(Envelope {
        source: header.source().into(),
        destination: destination.into(),
        protocol: header.protocol(),
        hop_limit: 0,
        at,
        end: usize::from(u16::from_be_bytes([packet[2], packet[3]])).min(packet.len()),
        named_at: 9,
    })
}

fn transit_v6(packet: &[u8]) -> Option<Envelope> {
    let header = ipv6::Packet::new_quoted(packet).ok()?;
    let (next, at, offset) = match header.upper().ok()? {
        ipv6::Upper::Transport { protocol, at, .. } => (protocol, at, 0),
        ipv6::Upper::Fragment { next_header, offset, at, .. } => (next_header, at, offset),
    };
    // Types below 128 are errors (RFC 4443 §2.1).
    let is_error = next == protocol::ICMPV6 && packet.get(at).is_none_or(|&kind| kind < 128);
    if offset != 0 || is_error || header.destination().is_multicast() {
        return None;
    }
    Some(Envelope {
        source: header.source().into(),
        destination: header.destination().into(),
        protocol: next,
        hop_limit: header.hop_limit(),
        at,
        end: packet.len(),
        named_at: 6,
    })
}
