//! Ethernet II frames without a VLAN tag; the port is untagged.

use std::net::Ipv6Addr;

use super::{Malformed, array, u16_at};

pub const HEADER: usize = 14;
pub const BROADCAST: Mac = [0xff; 6];

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;

pub type Mac = [u8; 6];

/// Six bytes of two hexadecimal digits each, with colons between.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let byte = |text: &str| {
        // A sign would be taken as well.
        let is_hex = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u8::from_str_radix(text, 16).ok().filter(|_| is_hex)
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes?.try_into().ok()
}

pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Can a station have this address? Neither a group address nor all zeros.
pub fn is_unicast(mac: Mac) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}

/// The group address an IPv6 multicast address maps to (RFC 2464 §7).
pub fn multicast(address: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = address.octets();
    [0x33, 0x33, a, b, c, d]
}

#[derive(Clone, Copy, Debug)]
pub struct Frame<'a>(&'a [u8]);

impl<'a> Frame<'a> {
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() < HEADER { Err(Malformed::Truncated) } else { Ok(Self(bytes)) }
    }

    #[inline]
    pub fn destination(&self) -> Mac {
        array(self.0, 0)
    }

    #[inline]
    pub fn source(&self) -> Mac {
        array(self.0, 6)
    }

    #[inline]
    pub fn ethertype(&self) -> u16 {
        u16_at(self.0, 12)
    }

    pub fn payload(&self) -> &'a [u8] {
        &self.0[HEADER..]
    }
}

pub fn emit(destination: Mac, source: Mac, ethertype: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..6].copy_from_slice(&destination);
    header[6..12].copy_from_slice(&source);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_is_read_back() {
        let header = emit(BROADCAST, [2, 0, 0, 0, 0, 1], ARP);
        assert_eq!(header, [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6]);
        let frame = Frame::new_checked(&header).unwrap();
        assert_eq!((frame.destination(), frame.source(), frame.ethertype()), (BROADCAST, [2, 0, 0, 0, 0, 1], ARP));
        assert!(frame.payload().is_empty());
    }

    #[test]
    fn thirteen_bytes_are_no_frame() {
        assert_eq!(Frame::new_checked(&[0; 13]).err(), Some(Malformed::Truncated));
    }

    #[test]
    fn group_and_zero_addresses_are_not_unicast() {
        assert!(is_unicast([2, 0, 0, 0, 0, 1]));
        assert!(!is_unicast(BROADCAST) && !is_unicast([1, 0, 0x5e, 0, 0, 1]) && !is_unicast([0; 6]));
    }

    #[test]
    fn a_solicited_node_address_maps_to_its_group() {
        assert_eq!(multicast("ff02::1:ff28:9c5a".parse().unwrap()), [0x33, 0x33, 0xff, 0x28, 0x9c, 0x5a]);
    }
}
