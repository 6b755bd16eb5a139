//! What a frame says of itself, read once from its beginning: where its headers are and what flows are told apart by.
//! A snapshot of the first bytes is enough, as long as the headers lie within it.
//!
//! Nothing is verified but what is needed to read on: no checksum, no length beyond the snapshot. Who answers a frame,
//! rather than passing it on, asks the views of its protocols.

use std::net::IpAddr;

use super::{array, ethernet, gtpu, icmp, ipv4, ipv6, protocol, tcp, u16_at, udp, vlan};

/// Tags that are read; a frame with more has no network header.
const MOST_TAGS: u8 = 2;
/// GTP-U's port (3GPP TS 29.281 §4.4.2).
pub const GTP_PORT: u16 = 2152;

/// The kinds of [`Headers::kinds`].
pub mod kind {
    pub const IPV4: u16 = 1;
    pub const IPV6: u16 = 2;
    pub const ARP: u16 = 4;
    pub const TCP: u16 = 8;
    pub const UDP: u16 = 16;
    /// ICMP or ICMPv6.
    pub const ICMP: u16 = 32;
    /// A fragment, the first one too.
    pub const FRAGMENT: u16 = 64;
    /// A G-PDU of GTP-U (with TCP, UDP … not of the inner packet).
    pub const GTPU: u16 = 128;
    /// Headers that contradict themselves, or end before they should.
    pub const MALFORMED: u16 = 256;
}

/// What flows may be told apart by, as far as a frame has it: the bits of [`Headers::has`].
pub mod has {
    /// An Ethernet header.
    pub const LINK: u8 = 1;
    pub const V4: u8 = 2;
    pub const V6: u8 = 4;
    /// IP that does not contradict itself.
    pub const PROTOCOL: u8 = 8;
    /// Of TCP, UDP, and ICMP queries. Fragments have none.
    pub const PORTS: u8 = 16;
    pub const TEID: u8 = 32;
    /// It is an ICMP error: what it quotes may be of a flow.
    pub const QUOTE: u8 = 64;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Bits of [`kind`].
    pub kinds: u16,
    /// Bits of [`has`].
    pub has: u8,
    pub tags: u8,
    pub protocol: u8,
    /// What follows the tags.
    pub ethertype: u16,
    /// The outermost tag's VLAN id; 0 without one.
    pub vlan: u16,
    /// Where what the tags are put on begins: the network header, if its type is known. 0: it has too many tags.
    pub network: u16,
    /// Where the transport header begins; 0: none, as in all fragments but the first.
    pub transport: u16,
    /// Where the IP packet ends: what follows is padding.
    pub end: u16,
    /// Of TCP and UDP. Of an ICMP query, the identifier stands as the port of the side that asks.
    pub source_port: u16,
    pub destination_port: u16,
    /// Of a G-PDU.
    pub teid: u32,
}

impl Headers {
    /// Reads a frame of `len` bytes, of which `bytes` is the beginning.
    #[inline]
    pub fn read(bytes: &[u8], len: usize) -> Self {
        let mut headers = Self::default();
        headers.read_in_place(bytes, len);
        headers
    }

    /// As `read`, field by field into its place: a copy would have to wait for the single stores, which takes as long as the
    /// reading.
    #[inline]
    pub fn read_in_place(&mut self, bytes: &[u8], len: usize) {
        if !self.read_usual(bytes, len) {
            self.read_any(bytes, len);
        }
    }

    /// Reads what most frames are, whose fields all have one place: a whole TCP segment or UDP datagram (but G-PDUs) behind
    /// an IPv4 header without options and no tag. False: it is something else, or not right.
    #[inline]
    fn read_usual(&mut self, bytes: &[u8], len: usize) -> bool {
        const AT: usize = ethernet::HEADER + ipv4::HEADER;
        let Some(first) = bytes.first_chunk::<{ AT + udp::HEADER }>() else { return false };
        let (start, rest) = (u32::from_be_bytes(array(first, 12)) >> 8, u32::from_be_bytes(array(first, 20)));
        let (protocol, end) = (rest as u8, ethernet::HEADER + usize::from(u16_at(first, 16)));
        let (kind, least) = match protocol {
            protocol::UDP => (kind::UDP, udp::HEADER),
            protocol::TCP => (kind::TCP, tcp::HEADER),
            _ => return false,
        };
        let (source_port, destination_port) = (u16_at(first, AT), u16_at(first, AT + 2));
        let is_plain = start == 0x08_00_45 && rest & 0x3fff_0000 == 0 && destination_port != GTP_PORT;
        if !is_plain || end.min(bytes.len()) < AT + least || end > len.min(u16::MAX.into()) {
            return false;
        }
        *self = Self {
            kinds: kind::IPV4 | kind,
            has: has::LINK | has::V4 | has::PROTOCOL | has::PORTS,
            tags: 0,
            protocol,
            ethertype: ethernet::IPV4,
            vlan: 0,
            network: ethernet::HEADER as u16,
            transport: AT as u16,
            end: end as u16,
            source_port,
            destination_port,
            teid: 0,
        };
        true
    }

    fn read_any(&mut self, bytes: &[u8], len: usize) {
        *self = Self::default();
        if self.link(bytes).and_then(|()| self.network(bytes, len)).is_none() {
            self.kinds |= kind::MALFORMED;
            self.transport = 0;
        }
        self.has = self.having(bytes);
    }

    /// What [`Headers::has`] says, by all the rest.
    fn having(&self, bytes: &[u8]) -> u8 {
        let mut has = if bytes.len() < ethernet::HEADER { 0 } else { has::LINK };
        has |= match self.kinds & (kind::IPV4 | kind::IPV6) {
            kind::IPV4 => has::V4,
            kind::IPV6 => has::V6,
            _ => return has,
        };
        if self.is(kind::MALFORMED) {
            return has;
        }
        has |= has::PROTOCOL;
        if self.is(kind::FRAGMENT) {
            return has;
        }
        if self.kinds & (kind::TCP | kind::UDP) != 0 {
            has |= has::PORTS;
        }
        if self.is(kind::GTPU) {
            has |= has::TEID;
        }
        if self.is(kind::ICMP) {
            let message = bytes[usize::from(self.transport)];
            if icmp::asks(self.protocol, message).is_some() {
                has |= has::PORTS;
            } else if icmp::is_error(self.protocol, message) {
                has |= has::QUOTE;
            }
        }
        has
    }

    #[inline]
    pub fn is(&self, kinds: u16) -> bool {
        self.kinds & kinds == kinds
    }

    /// Addresses of the IP packet in `bytes`, which are those that were read.
    pub fn addresses(&self, bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
        let at = usize::from(self.network);
        if self.is(kind::IPV4) {
            Some((array::<4>(bytes, at + 12).into(), array::<4>(bytes, at + 16).into()))
        } else if self.is(kind::IPV6) {
            Some((array::<16>(bytes, at + 8).into(), array::<16>(bytes, at + 24).into()))
        } else {
            None
        }
    }

    /// What an ICMP error says of the packet that it quotes (RFC 792, RFC 4443 §3), whose end is missing: where that
    /// packet's headers are in `bytes`, and its ports. None: it is no such error, or too little is quoted.
    pub fn quoted(&self, bytes: &[u8]) -> Option<Self> {
        let error = usize::from(self.transport);
        if !self.is(kind::ICMP) || error == 0 || !icmp::is_error(self.protocol, *bytes.get(error)?) {
            return None;
        }
        let (at, end) = (error + icmp::HEADER, usize::from(self.end).min(bytes.len()));
        let packet = bytes.get(at..end)?;
        let mut quoted = Self { ethertype: self.ethertype, network: at as u16, end: end as u16, ..Self::default() };
        let upper = if self.is(kind::IPV4) { quoted.ipv4(packet)?.0 } else { quoted.ipv6(packet)?.0 };
        // A fragment but the first: nothing tells whose it is.
        let segment = packet.get(upper?..)?.first_chunk::<8>()?;
        quoted.transport = (at + upper?) as u16;
        quoted.ports(segment);
        quoted.has = quoted.having(bytes);
        Some(quoted)
    }

    #[inline]
    fn link(&mut self, bytes: &[u8]) -> Option<()> {
        if bytes.len() < ethernet::HEADER {
            return None;
        }
        let (mut ethertype, mut at) = (u16_at(bytes, 12), ethernet::HEADER);
        while vlan::is_tag(ethertype) && self.tags < MOST_TAGS {
            let tag = bytes.get(at..at + vlan::TAG)?;
            if self.tags == 0 {
                self.vlan = u16_at(tag, 0) & vlan::ID;
            }
            ethertype = u16_at(tag, 2);
            self.tags += 1;
            at += vlan::TAG;
        }
        self.ethertype = ethertype;
        self.network = if vlan::is_tag(ethertype) { 0 } else { at as u16 };
        Some(())
    }

    #[inline]
    fn network(&mut self, bytes: &[u8], len: usize) -> Option<()> {
        let at = usize::from(self.network);
        let packet = bytes.get(at..)?;
        let (upper, stated) = match self.ethertype {
            ethernet::IPV4 => self.ipv4(packet)?,
            ethernet::IPV6 => self.ipv6(packet)?,
            ethernet::ARP => {
                self.kinds |= kind::ARP;
                return Some(());
            }
            _ => return Some(()),
        };
        let end = at + stated;
        if end > len {
            return None;
        }
        // No port carries frames that long.
        self.end = u16::try_from(end).ok()?;
        upper.map_or(Some(()), |upper| self.transport(bytes, at + upper))
    }

    /// Where the transport header begins, unless this is a later fragment, and the length that the packet states.
    #[inline]
    fn ipv4(&mut self, packet: &[u8]) -> Option<(Option<usize>, usize)> {
        if packet.len() < ipv4::HEADER || packet[0] >> 4 != 4 {
            return None;
        }
        let (header, total) = (usize::from(packet[0] & 15) * 4, usize::from(u16_at(packet, 2)));
        if header < ipv4::HEADER || header > packet.len().min(total) {
            return None;
        }
        self.kinds |= kind::IPV4;
        self.protocol = packet[9];
        let fragment = u16_at(packet, 6);
        if fragment & 0x3fff != 0 {
            self.kinds |= kind::FRAGMENT;
        }
        Some(((fragment & 0x1fff == 0).then_some(header), total))
    }

    /// The same. Jumbograms (RFC 2675) are not known.
    #[inline]
    fn ipv6(&mut self, packet: &[u8]) -> Option<(Option<usize>, usize)> {
        if packet.len() < ipv6::HEADER || packet[0] >> 4 != 6 {
            return None;
        }
        self.kinds |= kind::IPV6;
        let (next, offset, fragment) = ipv6::skip_extensions(packet)?;
        let stated = ipv6::HEADER + usize::from(u16_at(packet, 4));
        if offset > stated {
            return None;
        }
        self.protocol = next;
        if fragment.is_some() {
            self.kinds |= kind::FRAGMENT;
        }
        Some(((fragment.unwrap_or(0) == 0).then_some(offset), stated))
    }

    #[inline]
    fn transport(&mut self, bytes: &[u8], at: usize) -> Option<()> {
        let end = usize::from(self.end).min(bytes.len());
        let least = if self.protocol == protocol::TCP { tcp::HEADER } else { 8 };
        let segment = bytes.get(at..end)?;
        self.transport = at as u16;
        match segment.first_chunk::<8>() {
            Some(first) if segment.len() >= least => {
                self.ports(first);
                if self.is(kind::UDP) {
                    self.gtp(&segment[8..]);
                }
                Some(())
            }
            // Too short for ports: right only for what has none.
            _ => (!self.has_known_header()).then_some(()),
        }
    }

    /// Is the protocol one whose header is read?
    #[inline]
    fn has_known_header(&self) -> bool {
        match self.protocol {
            protocol::TCP | protocol::UDP => true,
            protocol::ICMP => self.is(kind::IPV4),
            protocol::ICMPV6 => self.is(kind::IPV6),
            _ => false,
        }
    }

    /// Reads the first bytes of the transport header.
    #[inline]
    fn ports(&mut self, segment: &[u8; 8]) {
        match self.protocol {
            _ if !self.has_known_header() => {}
            protocol::ICMP | protocol::ICMPV6 => {
                self.kinds |= kind::ICMP;
                match icmp::asks(self.protocol, segment[0]) {
                    Some(true) => self.source_port = u16_at(segment, 4),
                    Some(false) => self.destination_port = u16_at(segment, 4),
                    None => {}
                }
            }
            transport => {
                (self.source_port, self.destination_port) = (u16_at(segment, 0), u16_at(segment, 2));
                self.kinds |= if transport == protocol::TCP { kind::TCP } else { kind::UDP };
            }
        }
    }

    /// 3GPP TS 29.281 §5.1: version 1, protocol type GTP, and the message type of user data.
    #[inline]
    fn gtp(&mut self, message: &[u8]) {
        if self.destination_port == GTP_PORT
            && let Some(header) = message.first_chunk::<{ gtpu::HEADER }>()
            && header[0] & 0xf0 == gtpu::VERSION
            && header[1] == gtpu::G_PDU
        {
            self.kinds |= kind::GTPU;
            self.teid = u32::from_be_bytes(array(header, 4));
        }
    }
}

#[cfg(test)]
mod tests;
