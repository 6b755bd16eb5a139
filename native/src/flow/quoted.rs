//! The packet quoted in an ICMP error (RFC 792, RFC 4443 §3): which flow the error is about.

use std::net::IpAddr;

use crate::packet::headers::Headers;
use crate::packet::{array, ipv6, protocol, u16_at};

/// Of the quoted packet, as it was sent.
pub(super) struct Quoted {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub ports: (u16, u16),
}

/// `None`: it tells of no flow (a fragment, another protocol, or cut off before its ports). `bytes` begin the frame of an
/// ICMP error.
pub(super) fn read(bytes: &[u8], headers: &Headers) -> Option<Quoted> {
    let end = usize::from(headers.end).min(bytes.len());
    let packet = bytes.get(usize::from(headers.transport) + 8..end)?;
    let (source, destination, protocol, at): (IpAddr, IpAddr, u8, usize) = match (headers.protocol, packet.first()? >> 4) {
        (protocol::ICMP, 4) => {
            let header = usize::from(packet[0] & 15) * 4;
            if header < 20 || packet.len() < header || u16_at(packet, 6) & 0x3fff != 0 {
                return None;
            }
            (array::<4>(packet, 12).into(), array::<4>(packet, 16).into(), packet[9], header)
        }
        (protocol::ICMPV6, 6) => {
            if packet.len() < ipv6::HEADER {
                return None;
            }
            let (next, offset, fragment) = ipv6::skip_extensions(packet)?;
            if fragment.is_some() {
                return None;
            }
            (array::<16>(packet, 8).into(), array::<16>(packet, 24).into(), next, offset)
        }
        _ => return None,
    };
    let transport = packet.get(at..)?;
    let ports = match protocol {
        protocol::TCP | protocol::UDP if transport.len() >= 4 => (u16_at(transport, 0), u16_at(transport, 2)),
        protocol::ICMP | protocol::ICMPV6 if transport.len() >= 6 => match (protocol, transport[0]) {
            (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => (u16_at(transport, 4), 0),
            (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => (0, u16_at(transport, 4)),
            _ => return None,
        },
        _ => return None,
    };
    Some(Quoted { source, destination, protocol, ports })
}
