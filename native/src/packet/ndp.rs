//! Neighbour solicitations and advertisements (RFC 4861 §4.3, §4.4): what follows the first eight bytes of the ICMPv6
//! message.

use std::net::Ipv6Addr;

use super::ethernet::Mac;
use super::{Malformed, array};

/// The target address and one link-layer address option.
pub const BODY: usize = 24;
pub const HOP_LIMIT: u8 = 255;

pub const SOURCE_LINK_ADDRESS: u8 = 1;
pub const TARGET_LINK_ADDRESS: u8 = 2;

/// Flags of an advertisement, in the first byte after the checksum.
pub const SOLICITED: u8 = 0x40;
pub const OVERRIDE: u8 = 0x20;

pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The group of all nodes whose address ends like this one (RFC 4291 §2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

/// What a solicitation or an advertisement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    pub target: Ipv6Addr,
    pub link_address: Option<Mac>,
}

impl Body {
    /// `option` is the type of the option wanted; the others are skipped. One of length 0 condemns the whole message
    /// (RFC 4861 §4.6).
    pub fn parse(bytes: &[u8], option: u8) -> Result<Self, Malformed> {
        if bytes.len() < 16 {
            return Err(Malformed::Truncated);
        }
        let target = Ipv6Addr::from(array::<16>(bytes, 0));
        if target.is_multicast() {
            return Err(Malformed::Field);
        }
        let mut link_address = None;
        let mut options = &bytes[16..];
        while let [kind, units, ..] = *options {
            let len = usize::from(units) * 8;
            if len == 0 {
                return Err(Malformed::Field);
            }
            if len > options.len() {
                return Err(Malformed::Truncated);
            }
            if kind == option && units == 1 {
                link_address = Some(array(options, 2));
            }
            options = &options[len..];
        }
        if options.is_empty() { Ok(Self { target, link_address }) } else { Err(Malformed::Truncated) }
    }
}

pub fn emit(target: Ipv6Addr, option: u8, mac: Mac) -> [u8; BODY] {
    let mut body = [0; BODY];
    body[..16].copy_from_slice(&target.octets());
    body[16..18].copy_from_slice(&[option, 1]);
    body[18..].copy_from_slice(&mac);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn target() -> Ipv6Addr {
        "fd00::12:3456".parse().unwrap()
    }

    #[test]
    fn the_solicited_node_group_keeps_the_last_24_bits() {
        assert_eq!(solicited_node(target()), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn what_is_emitted_is_read_back() {
        let bytes = emit(target(), SOURCE_LINK_ADDRESS, MAC);
        let body = Body { target: target(), link_address: Some(MAC) };
        assert_eq!(Body::parse(&bytes, SOURCE_LINK_ADDRESS), Ok(body));
        assert_eq!(Body::parse(&bytes, TARGET_LINK_ADDRESS), Ok(Body { link_address: None, ..body }));
    }

    #[test]
    fn options_are_walked_within_bounds() {
        let bytes = emit(target(), SOURCE_LINK_ADDRESS, MAC);
        for (options, expected) in [
            (&[][..], Ok(None)),
            (&[14, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1], Ok(Some(MAC))),
            (&[1, 2, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], Ok(None)),
            (&[1, 0, 2, 0, 0, 0, 0, 1], Err(Malformed::Field)),
            (&[1, 2, 2, 0, 0, 0, 0, 1], Err(Malformed::Truncated)),
            (&[1], Err(Malformed::Truncated)),
        ] {
            let message = [&bytes[..16], options].concat();
            let parsed = Body::parse(&message, SOURCE_LINK_ADDRESS).map(|body| body.link_address);
            assert_eq!(parsed, expected, "{options:?}");
        }
        assert_eq!(Body::parse(&bytes[..15], SOURCE_LINK_ADDRESS), Err(Malformed::Truncated));
    }

    #[test]
    fn a_multicast_target_is_refused() {
        let bytes = emit(ALL_NODES, SOURCE_LINK_ADDRESS, MAC);
        assert_eq!(Body::parse(&bytes, SOURCE_LINK_ADDRESS), Err(Malformed::Field));
    }
}
