//! What a frame says of itself, read once from its beginning: where its headers are and what flows are told apart by.
//! A snapshot of the first bytes is enough, as long as the headers lie within it.
//!
//! Nothing is verified but what is needed to read on: no checksum, no length beyond the snapshot. Who answers a frame,
//! rather than passing it on, asks the views of its protocols.

use std::net::IpAddr;

use super::{array, ethernet, ipv6, protocol, u16_at};

/// 802.1Q and 802.1ad tags (IEEE 802.1Q §9.6).
pub const VLAN: u16 = 0x8100;
pub const SERVICE_VLAN: u16 = 0x88a8;
/// Tags that are read; a frame with more has no network header.
const MOST_TAGS: u8 = 2;
/// GTP-U's port and G-PDU message type (3GPP TS 29.281 §4.4.2, §6.1).
pub const GTP_PORT: u16 = 2152;
const G_PDU: u8 = 255;

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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Bits of [`kind`].
    pub kinds: u16,
    /// What follows the tags.
    pub ethertype: u16,
    /// The outermost tag's VLAN id; 0 without one.
    pub vlan: u16,
    pub tags: u8,
    pub protocol: u8,
    /// Where the network header begins; 0: there is none that is known.
    pub network: u16,
    /// Where the transport header begins; 0: none, as in all fragments but the first.
    pub transport: u16,
    /// Where the IP packet ends: what follows is padding.
    pub end: u16,
    /// Of TCP and UDP. Of an ICMP echo, the identifier stands as the port of the side that asks.
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
        if headers.link(bytes).and_then(|()| headers.network(bytes, len)).is_none() {
            headers.kinds |= kind::MALFORMED;
            headers.transport = 0;
        }
        headers
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

    #[inline]
    fn link(&mut self, bytes: &[u8]) -> Option<()> {
        if bytes.len() < ethernet::HEADER {
            return None;
        }
        let (mut ethertype, mut at) = (u16_at(bytes, 12), ethernet::HEADER);
        while (ethertype == VLAN || ethertype == SERVICE_VLAN) && self.tags < MOST_TAGS {
            let tag = bytes.get(at..at + 4)?;
            if self.tags == 0 {
                self.vlan = u16_at(tag, 0) & 0x0fff;
            }
            ethertype = u16_at(tag, 2);
            self.tags += 1;
            at += 4;
        }
        self.ethertype = ethertype;
        self.network = at as u16;
        Some(())
    }

    #[inline]
    fn network(&mut self, bytes: &[u8], len: usize) -> Option<()> {
        let at = usize::from(self.network);
        let packet = bytes.get(at..)?;
        match self.ethertype {
            ethernet::IPV4 => {
                if packet.len() < 20 || packet[0] >> 4 != 4 {
                    return None;
                }
                let (header, total) = (usize::from(packet[0] & 15) * 4, usize::from(u16_at(packet, 2)));
                if header < 20 || packet.len() < header || total < header || at + total > len {
                    return None;
                }
                self.kinds |= kind::IPV4;
                self.end = (at + total) as u16;
                self.protocol = packet[9];
                let fragment = u16_at(packet, 6);
                if fragment & 0x3fff != 0 {
                    self.kinds |= kind::FRAGMENT;
                }
                if fragment & 0x1fff == 0 { self.transport(bytes, at + header) } else { Some(()) }
            }
            ethernet::IPV6 => {
                if packet.len() < 40 || packet[0] >> 4 != 6 {
                    return None;
                }
                let end = at + 40 + usize::from(u16_at(packet, 4));
                if end > len {
                    return None;
                }
                self.kinds |= kind::IPV6;
                self.end = end as u16;
                let (next, offset, fragment) = ipv6::skip_extensions(packet)?;
                self.protocol = next;
                if fragment.is_some() {
                    self.kinds |= kind::FRAGMENT;
                }
                if fragment.unwrap_or(0) == 0 { self.transport(bytes, at + offset) } else { Some(()) }
            }
            ethernet::ARP => {
                self.kinds |= kind::ARP;
                Some(())
            }
            _ => {
                self.network = if self.ethertype == VLAN || self.ethertype == SERVICE_VLAN { 0 } else { self.network };
                Some(())
            }
        }
    }

    #[inline]
    fn transport(&mut self, bytes: &[u8], at: usize) -> Option<()> {
        let end = usize::from(self.end);
        let least = match self.protocol {
            protocol::TCP => 20,
            protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
            _ => {
                self.transport = at as u16;
                return Some(());
            }
        };
        if at + least > end || at + least > bytes.len() {
            return None;
        }
        self.transport = at as u16;
        match self.protocol {
            protocol::ICMP | protocol::ICMPV6 => {
                self.kinds |= kind::ICMP;
                // Echo request and reply: RFC 792, RFC 4443 §4.
                match (self.protocol, bytes[at]) {
                    (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => self.source_port = u16_at(bytes, at + 4),
                    (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => self.destination_port = u16_at(bytes, at + 4),
                    _ => {}
                }
            }
            transport => {
                (self.source_port, self.destination_port) = (u16_at(bytes, at), u16_at(bytes, at + 2));
                if transport == protocol::TCP {
                    self.kinds |= kind::TCP;
                } else {
                    self.kinds |= kind::UDP;
                    self.gtp(bytes, at + 8);
                }
            }
        }
        Some(())
    }

    /// 3GPP TS 29.281 §5.1: version 1, protocol type GTP, and the message type of user data.
    #[inline]
    fn gtp(&mut self, bytes: &[u8], at: usize) {
        if self.destination_port == GTP_PORT
            && at + 8 <= usize::from(self.end)
            && let Some(header) = bytes.get(at..at + 8)
            && header[0] >> 4 == 0b0011
            && header[1] == G_PDU
        {
            self.kinds |= kind::GTPU;
            self.teid = u32::from_be_bytes(array(header, 4));
        }
    }
}
