//! ICMP (RFC 792) and ICMPv6 (RFC 4443): they share the form of their messages.
//!
//! ICMPv6's checksum covers a pseudo-header, ICMP's does not: its `pseudo` is [`Sum::ZERO`].

use super::checksum::Sum;
use super::protocol::{ICMP, ICMPV6};
use super::{Malformed, array};

pub const HEADER: usize = 8;

/// Message types and codes of ICMP for IPv4.
pub mod v4 {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const ECHO_REQUEST: u8 = 8;
    pub const TIMESTAMP_REQUEST: u8 = 13;
    pub const TIMESTAMP_REPLY: u8 = 14;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Codes of `UNREACHABLE`.
    pub const PROTOCOL: u8 = 2;
    pub const PORT: u8 = 3;
    pub const FRAGMENTATION_NEEDED: u8 = 4;
}

/// Message types and codes of ICMPv6.
pub mod v6 {
    pub const UNREACHABLE: u8 = 1;
    pub const TOO_BIG: u8 = 2;
    pub const TIME_EXCEEDED: u8 = 3;
    pub const PARAMETER_PROBLEM: u8 = 4;
    pub const ECHO_REQUEST: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Code of `UNREACHABLE`.
    pub const PORT: u8 = 4;
    /// Code of `PARAMETER_PROBLEM`.
    pub const UNRECOGNIZED_NEXT_HEADER: u8 = 1;
}

/// A query has an identifier in its fifth and sixth byte, by which one that asks knows its answers (RFC 5508 §3): echo and
/// timestamp. Does a message of that type ask? None: it is no query.
#[inline]
pub fn asks(protocol: u8, kind: u8) -> Option<bool> {
    match (protocol, kind) {
        (ICMP, v4::ECHO_REQUEST | v4::TIMESTAMP_REQUEST) | (ICMPV6, v6::ECHO_REQUEST) => Some(true),
        (ICMP, v4::ECHO_REPLY | v4::TIMESTAMP_REPLY) | (ICMPV6, v6::ECHO_REPLY) => Some(false),
        _ => None,
    }
}

/// Does a message of that type quote the packet that it is about? Source quench and redirect, which do, are not meant for
/// who sent that (RFC 6633, RFC 1812 §5.2.7.2).
#[inline]
pub fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        ICMP => matches!(kind, v4::UNREACHABLE | v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM),
        ICMPV6 => (v6::UNREACHABLE..=v6::PARAMETER_PROBLEM).contains(&kind),
        _ => false,
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    /// `pseudo` without the length.
    pub fn new_checked(bytes: &'a [u8], pseudo: Sum) -> Result<Self, Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed::Truncated);
        }
        let pseudo = if pseudo == Sum::ZERO { pseudo } else { pseudo.word(bytes.len() as u16) };
        if pseudo.bytes(bytes).finish() == 0 { Ok(Self(bytes)) } else { Err(Malformed::Checksum) }
    }

    pub fn kind(&self) -> u8 {
        self.0[0]
    }

    pub fn code(&self) -> u8 {
        self.0[1]
    }

    /// The four bytes after the checksum, whose meaning depends on the type.
    pub fn rest(&self) -> [u8; 4] {
        array(self.0, 4)
    }

    pub fn body(&self) -> &'a [u8] {
        &self.0[HEADER..]
    }
}

pub fn emit(kind: u8, code: u8, rest: [u8; 4], pseudo: Sum, body: &[u8]) -> [u8; HEADER] {
    let [a, b, c, d] = rest;
    let mut header = [kind, code, 0, 0, a, b, c, d];
    let pseudo = if pseudo == Sum::ZERO { pseudo } else { pseudo.word((HEADER + body.len()) as u16) };
    let checksum = pseudo.bytes(&header).bytes(body).finish();
    header[2..4].copy_from_slice(&checksum.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::packet::checksum::pseudo_v6;

    #[test]
    fn an_echo_request_is_octets_and_values() {
        let header = emit(v4::ECHO_REQUEST, 0, [0, 1, 0, 2], Sum::ZERO, b"ab");
        // 0800 + 0001 + 0002 + 6162 = 6965
        assert_eq!(header, [8, 0, 0x96, 0x9a, 0, 1, 0, 2]);
        let bytes = [&header[..], b"ab"].concat();
        let message = Message::new_checked(&bytes, Sum::ZERO).unwrap();
        assert_eq!((message.kind(), message.code(), message.rest()), (8, 0, [0, 1, 0, 2]));
        assert_eq!(message.body(), b"ab");
    }

    #[test]
    fn icmpv6_covers_its_pseudo_header() {
        let pseudo = pseudo_v6(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 58);
        let header = emit(v6::ECHO_REQUEST, 0, [0; 4], pseudo, b"");
        assert!(Message::new_checked(&header, pseudo).is_ok());
        assert_eq!(Message::new_checked(&header, Sum::ZERO).err(), Some(Malformed::Checksum));
    }

    #[test]
    fn short_and_altered_messages_are_refused() {
        let mut header = emit(v4::ECHO_REPLY, 0, [0; 4], Sum::ZERO, b"");
        assert_eq!(Message::new_checked(&header[..7], Sum::ZERO).err(), Some(Malformed::Truncated));
        header[7] = 1;
        assert_eq!(Message::new_checked(&header, Sum::ZERO).err(), Some(Malformed::Checksum));
    }
}
