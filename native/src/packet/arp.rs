//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::ethernet::Mac;
use super::{Malformed, array, u16_at};

pub const LENGTH: usize = 28;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request,
    Reply,
}

/// One ARP message as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub operation: Operation,
    pub sender_mac: Mac,
    pub sender: Ipv4Addr,
    pub target_mac: Mac,
    pub target: Ipv4Addr,
}

impl Message {
    /// Bytes after the message are padding.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() < LENGTH {
            return Err(Malformed::Truncated);
        }
        // Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
        if bytes[..6] != [0, 1, 8, 0, 6, 4] {
            return Err(Malformed::Field);
        }
        let operation = match u16_at(bytes, 6) {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(Malformed::Field),
        };
        Ok(Self {
            operation,
            sender_mac: array(bytes, 8),
            sender: array::<4>(bytes, 14).into(),
            target_mac: array(bytes, 18),
            target: array::<4>(bytes, 24).into(),
        })
    }

    pub fn emit(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        bytes[7] = if self.operation == Operation::Request { 1 } else { 2 };
        bytes[8..14].copy_from_slice(&self.sender_mac);
        bytes[14..18].copy_from_slice(&self.sender.octets());
        bytes[18..24].copy_from_slice(&self.target_mac);
        bytes[24..].copy_from_slice(&self.target.octets());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const REQUEST: [u8; LENGTH] = [
        0, 1, 8, 0, 6, 4, 0, 1,         // Ethernet, IPv4, 6, 4, request
        2, 0, 0, 0, 0, 1, 10, 0, 0, 1,  // sender
        0, 0, 0, 0, 0, 0, 10, 0, 0, 2,  // target
    ];

    #[test]
    fn octets_and_value_are_the_same() {
        let message = Message {
            operation: Operation::Request,
            sender_mac: [2, 0, 0, 0, 0, 1],
            sender: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: [0; 6],
            target: Ipv4Addr::new(10, 0, 0, 2),
        };
        assert_eq!(Message::parse(&REQUEST), Ok(message));
        assert_eq!(message.emit(), REQUEST);
    }

    #[test]
    fn other_hardware_lengths_and_operations_are_refused() {
        for (at, value) in [(1, 6), (2, 0x86), (4, 8), (5, 16), (7, 3), (7, 0)] {
            let mut bytes = REQUEST;
            bytes[at] = value;
            assert_eq!(Message::parse(&bytes), Err(Malformed::Field), "byte {at}");
        }
        assert_eq!(Message::parse(&REQUEST[..27]), Err(Malformed::Truncated));
    }
}
