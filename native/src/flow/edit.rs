//! What actions do to the beginning of a frame. Each function takes the headers that were read from the head as it is;
//! those that put in or take out bytes ([`set_vlan`], [`rewrite`] with a VLAN, [`encapsulate`], [`decapsulate`]) leave
//! these headers behind: read them again.
//!
//! Most of a packet is not here, so checksums follow by difference (RFC 1624). One that was wrong stays wrong, and the
//! receiver drops it. A head whose edit failed may be half changed: drop it.

use std::net::IpAddr;

use super::{Encapsulate, Head, Rewrite};
use crate::packet::checksum::{Change, Sum};
use crate::packet::headers::{GTP_PORT, Headers, kind};
use crate::packet::{ethernet, gtpu, icmp, ipv4, ipv6, protocol, u16_at, udp, vlan};

/// Why an edit is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Too short for an Ethernet header.
    NoEthernet,
    /// Neither IPv4 nor IPv6, or malformed.
    NoIp,
    /// An IPv4 address for an IPv6 packet or the reverse, or tunnel ends of different families.
    OtherVersion,
    /// Its protocol has no ports, or an ICMP message not this one.
    NoPort,
    /// An IPv6 source route is not at its end: checksums cover a destination that is not in the header (RFC 8200 §8.1).
    SourceRoute,
    /// The hop limit is used up.
    HopLimit,
    /// Not an ICMP error, or what it quotes cannot be told.
    NoQuote,
    /// Not a whole G-PDU, or not of an IP packet, or with an extension that only its receiver may judge.
    NoGPdu,
    /// Congestion was experienced by a packet that cannot say so (RFC 6040 §4.2).
    Congestion,
    /// There is no room before the frame, or it would be longer than IP allows.
    NoRoom,
    /// A group address would become the source.
    GroupSource,
}

/// Gives header fields new values. Of fragments but the first ports are not there, and not asked for.
pub fn rewrite(head: &mut Head, headers: &Headers, to: &Rewrite) -> Result<(), Failed> {
    let bytes = head.bytes_mut();
    let link = bytes.first_chunk_mut::<12>().ok_or(Failed::NoEthernet)?;
    if let Some(mac) = to.destination_mac {
        link[..6].copy_from_slice(&mac);
    }
    if let Some(mac) = to.source_mac {
        link[6..].copy_from_slice(&mac);
    }
    if to.touches_ip() {
        let addresses = network(bytes, headers, to)?;
        transport(bytes, headers, to, addresses)?;
    }
    to.vlan.map_or(Ok(()), |id| set_vlan(head, headers, id))
}

/// Sets the outermost tag's id, putting a tag on where there is none; 0 takes the outermost tag off.
pub fn set_vlan(head: &mut Head, headers: &Headers, id: u16) -> Result<(), Failed> {
    // Behind the addresses.
    const AT: usize = 12;
    match (headers.tags, id) {
        (0, 0) => Ok(()),
        (0, id) => {
            if !head.insert(AT, vlan::TAG) {
                return Err(Failed::NoRoom);
            }
            head.bytes_mut()[AT..][..vlan::TAG].copy_from_slice(&vlan::emit_before(vlan::CUSTOMER, 0, id));
            Ok(())
        }
        (_, 0) => head.remove(AT, vlan::TAG).then_some(()).ok_or(Failed::NoEthernet),
        (_, id) => {
            vlan::set_id(&mut head.bytes_mut()[AT + 2..], id);
            Ok(())
        }
    }
}

/// One hop further, as a router does it (RFC 1812 §5.3.1, RFC 8200 §3).
pub fn hop(head: &mut Head, headers: &Headers) -> Result<(), Failed> {
    let packet = &mut head.bytes_mut()[ip(headers)?..];
    let is_v4 = headers.is(kind::IPV4);
    let ttl = packet[if is_v4 { 8 } else { 7 }];
    if ttl <= 1 {
        return Err(Failed::HopLimit);
    }
    set_ttl(packet, is_v4, ttl - 1);
    Ok(())
}

/// Link addresses exchanged.
pub fn reply(head: &mut Head) -> Result<(), Failed> {
    let link = head.bytes_mut().first_chunk_mut::<12>().ok_or(Failed::NoEthernet)?;
    if link[0] & 1 != 0 {
        return Err(Failed::GroupSource);
    }
    let (destination, source) = link.split_at_mut(6);
    destination.swap_with_slice(source);
    Ok(())
}

/// Rewrites an ICMP error about a packet of the flow whose other direction `to` belongs to (RFC 5508 §4.2, §4.3): the
/// outer header as any packet of that direction, so that a router behind the translation is not seen either, and the packet
/// quoted back to what its sender sent. `quoted` is [`Headers::quoted`].
pub fn translate_quoted(head: &mut Head, headers: &Headers, quoted: &Headers, to: &Rewrite) -> Result<(), Failed> {
    let bytes = head.bytes_mut();
    let (error, end) = (usize::from(headers.transport), usize::from(headers.end).min(bytes.len()));
    if error == 0 || !headers.is(kind::ICMP) || usize::from(quoted.network) != error + 8 {
        return Err(Failed::NoQuote);
    }
    let mirrored = Rewrite {
        source: to.destination,
        destination: to.source,
        source_port: to.destination_port,
        destination_port: to.source_port,
        ..Rewrite::default()
    };
    // Everything that changes: the quoted header, and TCP's up to its checksum, if that is quoted.
    let part = error + 8..end.min(usize::from(quoted.transport) + 20);
    let old = Sum::ZERO.bytes(&bytes[part.clone()]);
    let message = &mut bytes[..end];
    let addresses = network(message, quoted, &mirrored)?;
    transport(message, quoted, &mirrored, addresses)?;
    Change { old, new: Sum::ZERO.bytes(&bytes[part]) }.apply(&mut bytes[error + 2..]);
    rewrite(head, headers, &Rewrite { source_port: None, destination_port: None, ..*to })
}

/// Puts a packet into a GTP-U tunnel (3GPP TS 29.281 §4.4.2, §5.1), under the Ethernet header it has.
///
/// The UDP checksum is 0, as it covers what is not here: allowed over IPv6, too, for tunnels whose inner packets have
/// checksums of their own (RFC 6935 §5, RFC 6936). DSCP is copied (RFC 2983 §3), ECN is not, since nobody knows of the other
/// end whether it would bring it back (RFC 6040 §4.3).
pub fn encapsulate(head: &mut Head, headers: &Headers, tunnel: &Encapsulate) -> Result<(), Failed> {
    const UPPER: usize = udp::HEADER + gtpu::HEADER;
    let at = ip(headers)?;
    let inner = usize::from(headers.end) - at;
    let class = traffic_class(&head.bytes()[at..], headers) & !ECN;
    let len = UPPER + inner;
    let outer = if tunnel.source.is_ipv4() { ipv4::HEADER } else { ipv6::HEADER };
    if outer + len > usize::from(u16::MAX) || !head.insert(at, outer + UPPER) {
        return Err(Failed::NoRoom);
    }
    let bytes = &mut head.bytes_mut()[at - 2..];
    let ethertype = match (tunnel.source, tunnel.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = ipv4::emit(source, destination, protocol::UDP, len, ipv4::Fragment::WHOLE);
            bytes[2..][..ipv4::HEADER].copy_from_slice(&header);
            let mut change = Change::default();
            change.replace(&mut bytes[2..4], &[header[0], class]);
            change.apply(&mut bytes[2 + 10..]);
            ethernet::IPV4
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = ipv6::emit(source, destination, protocol::UDP, len, ipv6::HOP_LIMIT);
            ipv6::set_traffic_class(&mut header, class);
            bytes[2..][..ipv6::HEADER].copy_from_slice(&header);
            ethernet::IPV6
        }
        _ => return Err(Failed::OtherVersion),
    };
    bytes[..2].copy_from_slice(&ethertype.to_be_bytes());
    let (udp, gtp) = bytes[2 + outer..][..UPPER].split_at_mut(udp::HEADER);
    udp[..2].copy_from_slice(&tunnel.source_port.to_be_bytes());
    udp[2..4].copy_from_slice(&GTP_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    udp[6..].fill(0);
    gtp.copy_from_slice(&gtpu::emit(gtpu::G_PDU, tunnel.teid, inner));
    Ok(())
}

/// Takes the outer IP, UDP and GTP-U headers off a G-PDU, which the Ethernet header then carries. What the outer header
/// says of congestion goes into the inner one (RFC 6040 §4.2). The outer UDP checksum is not verified: most of what it covers
/// is not here, and has checksums of its own.
pub fn decapsulate(head: &mut Head, headers: &Headers) -> Result<(), Failed> {
    let at = ip(headers)?;
    if !headers.is(kind::GTPU) || headers.is(kind::FRAGMENT) {
        return Err(Failed::NoGPdu);
    }
    let bytes = head.bytes_mut();
    let udp = usize::from(headers.transport);
    if headers.is(kind::IPV4) && Sum::ZERO.bytes(&bytes[at..udp]).finish() != 0 {
        return Err(Failed::NoGPdu);
    }
    // As long as UDP says, unless IP says less.
    let end = usize::from(headers.end).min(udp + usize::from(u16_at(bytes, udp + 4)));
    let gtp = udp + udp::HEADER;
    let seen = end.min(bytes.len());
    let Ok(message) = gtpu::Message::new_partial(bytes.get(gtp..seen).ok_or(Failed::NoGPdu)?, end - gtp) else {
        return Err(Failed::NoGPdu);
    };
    if message.needs_comprehension() {
        return Err(Failed::NoGPdu);
    }
    let (inner, len) = (gtp + message.payload_at(), message.payload_len());
    let outer = traffic_class(&bytes[at..], headers);
    let packet = bytes.get_mut(inner..).ok_or(Failed::NoGPdu)?;
    let (ethertype, stated) = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= ipv4::HEADER => (ethernet::IPV4, u16_at(packet, 2).into()),
        Some(6) if packet.len() >= ipv6::HEADER => (ethernet::IPV6, ipv6::HEADER + usize::from(u16_at(packet, 4))),
        _ => return Err(Failed::NoGPdu),
    };
    if stated > len {
        return Err(Failed::NoGPdu);
    }
    carry_congestion(packet, ethertype == ethernet::IPV4, outer & ECN)?;
    bytes[at - 2..at].copy_from_slice(&ethertype.to_be_bytes());
    head.remove(at, inner - at).then_some(()).ok_or(Failed::NoGPdu)
}

/// The lower bits of the traffic class (RFC 3168 §5).
const ECN: u8 = 0b11;
const CONGESTION_EXPERIENCED: u8 = 0b11;
const CAPABLE_1: u8 = 0b01;
const CAPABLE_0: u8 = 0b10;

/// RFC 6040 §4.2, figure 4.
fn carry_congestion(packet: &mut [u8], is_v4: bool, outer: u8) -> Result<(), Failed> {
    let class = if is_v4 { packet[1] } else { packet[0] << 4 | packet[1] >> 4 };
    let ecn = match (class & ECN, outer) {
        (0, CONGESTION_EXPERIENCED) => return Err(Failed::Congestion),
        (1.., CONGESTION_EXPERIENCED) => CONGESTION_EXPERIENCED,
        (CAPABLE_0, CAPABLE_1) => CAPABLE_1,
        _ => return Ok(()),
    };
    set_traffic_class(packet, is_v4, class & !ECN | ecn);
    Ok(())
}

/// Where the IP header is.
fn ip(headers: &Headers) -> Result<usize, Failed> {
    let is_ip = headers.kinds & (kind::IPV4 | kind::IPV6) != 0 && !headers.is(kind::MALFORMED);
    if is_ip { Ok(usize::from(headers.network)) } else { Err(Failed::NoIp) }
}

fn traffic_class(packet: &[u8], headers: &Headers) -> u8 {
    if headers.is(kind::IPV4) { packet[1] } else { packet[0] << 4 | packet[1] >> 4 }
}

fn set_traffic_class(packet: &mut [u8], is_v4: bool, class: u8) {
    if is_v4 {
        let mut change = Change::default();
        let first = packet[0];
        change.replace(&mut packet[..2], &[first, class]);
        change.apply(&mut packet[10..]);
    } else {
        ipv6::set_traffic_class(packet, class);
    }
}

fn set_ttl(packet: &mut [u8], is_v4: bool, ttl: u8) {
    if is_v4 {
        let mut change = Change::default();
        let protocol = packet[9];
        change.replace(&mut packet[8..10], &[ttl, protocol]);
        change.apply(&mut packet[10..]);
    } else {
        packet[7] = ttl;
    }
}

impl Rewrite {
    fn touches_ip(&self) -> bool {
        self.source.is_some()
            || self.destination.is_some()
            || self.source_port.is_some()
            || self.destination_port.is_some()
            || self.ttl.is_some()
            || self.dscp.is_some()
    }
}

/// Rewrites the IP header; what that changes of the pseudo-header.
fn network(bytes: &mut [u8], headers: &Headers, to: &Rewrite) -> Result<Change, Failed> {
    let at = ip(headers)?;
    let is_v4 = headers.is(kind::IPV4);
    let has_extensions = !is_v4 && usize::from(headers.transport) != at + ipv6::HEADER;
    if to.destination.is_some() && has_extensions && ipv6::has_segments_left(&bytes[at..]) {
        return Err(Failed::SourceRoute);
    }
    let packet = &mut bytes[at..];
    let mut addresses = Change::default();
    for (address, v4, v6) in [(to.source, 12, 8), (to.destination, 16, 24)] {
        match address {
            None => {}
            Some(IpAddr::V4(address)) if is_v4 => addresses.replace(&mut packet[v4..v4 + 4], &address.octets()),
            Some(IpAddr::V6(address)) if !is_v4 => addresses.replace(&mut packet[v6..v6 + 16], &address.octets()),
            Some(_) => return Err(Failed::OtherVersion),
        }
    }
    if let Some(dscp) = to.dscp {
        let class = dscp << 2 | traffic_class(packet, headers) & ECN;
        set_traffic_class(packet, is_v4, class);
    }
    if let Some(ttl) = to.ttl {
        set_ttl(packet, is_v4, ttl);
    }
    if is_v4 && addresses != Change::default() {
        addresses.apply(&mut packet[10..]);
    }
    Ok(addresses)
}

/// Rewrites ports, and the checksum for them and the pseudo-header. `bytes` may end before the checksum, when they are a
/// quotation.
fn transport(bytes: &mut [u8], headers: &Headers, to: &Rewrite, pseudo: Change) -> Result<(), Failed> {
    let at = usize::from(headers.transport);
    if at == 0 {
        let is_asked = to.source_port.is_some() || to.destination_port.is_some();
        return if is_asked && !headers.is(kind::FRAGMENT) { Err(Failed::NoPort) } else { Ok(()) };
    }
    let segment = &mut bytes[at..];
    let has_ports = headers.kinds & (kind::TCP | kind::UDP) != 0;
    let asks = if headers.is(kind::ICMP) { icmp::asks(headers.protocol, segment[0]) } else { None };
    let (source_at, destination_at) = match asks {
        _ if has_ports => (Some(0), Some(2)),
        Some(true) => (Some(4), None),
        Some(false) => (None, Some(4)),
        None => (None, None),
    };
    let mut change = if headers.protocol == protocol::ICMP { Change::default() } else { pseudo };
    for (port, place) in [(to.source_port, source_at), (to.destination_port, destination_at)] {
        if let Some(port) = port {
            let place = place.ok_or(Failed::NoPort)?;
            change.replace(&mut segment[place..place + 2], &port.to_be_bytes());
        }
    }
    if change == Change::default() {
        return Ok(());
    }
    let checksum_at = match headers.protocol {
        protocol::TCP => 16,
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => 6,
        protocol::ICMP | protocol::ICMPV6 => 2,
        _ => return Ok(()),
    };
    let Some(field) = segment.get_mut(checksum_at..checksum_at + 2) else { return Ok(()) };
    let is_udp = headers.protocol == protocol::UDP;
    // 0 means none, over IPv6 too, where tunnels may go without (RFC 768, RFC 6935 §5).
    if is_udp && field == [0, 0] {
        return Ok(());
    }
    change.apply(field);
    if is_udp && field == [0, 0] {
        field.fill(0xff);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
