//! Whole frames as values: layers from the outside in, and what they carry. [`build`] fills in types, lengths and checksums,
//! [`parse`] reads them back.
//!
//! This is for frames that are made or taken apart one by one; what passes by the million is read by
//! [`super::headers`].

mod build;
mod parse;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ethernet::Mac;
use super::{arp, gtpu, ipv4, ipv6};
pub use build::{Refused, build};
pub use parse::{Parsed, parse};

/// Where [`parse`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Ethernet,
    /// IPv4 or IPv6, as the packet itself says.
    Ip,
    /// The same, of which the end may be missing, as in an ICMP error.
    Quoted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    Ethernet(Ethernet),
    Vlan(Vlan),
    Arp(arp::Message),
    Ipv4(Ipv4),
    Ipv6(Ipv6),
    Icmp(Icmp),
    Udp(Udp),
    Tcp(Tcp),
    Gtpu(Gtpu),
}

/// Types and protocols that are `None` are those of the next layer. A checksum that is `None` is right; any other is
/// as it says, also when that is wrong. In a packet that is quoted, nobody can tell of TCP's, UDP's and ICMP's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ethernet {
    pub destination: Mac,
    pub source: Mac,
    pub ethertype: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlan {
    pub id: u16,
    pub priority: u8,
    pub drop_eligible: bool,
    pub ethertype: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: Option<u8>,
    pub ttl: u8,
    pub dscp: u8,
    pub ecn: u8,
    pub identification: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In bytes, a multiple of 8.
    pub fragment_offset: u16,
    /// As they stand in the header, padded to a multiple of 4.
    pub options: Vec<u8>,
    pub checksum: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    /// Of what follows the extensions.
    pub next_header: Option<u8>,
    pub hop_limit: u8,
    pub dscp: u8,
    pub ecn: u8,
    pub flow_label: u32,
    /// Each extension header's number, and its bytes behind next header and length (a fragment's reserved byte).
    pub extensions: Vec<(u8, Vec<u8>)>,
}

/// Of the version that the IP layer below has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    /// Identifier and sequence number, MTU or pointer: as the type says.
    pub data: u32,
    pub checksum: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    pub source_port: u16,
    pub destination_port: u16,
    pub checksum: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub source_port: u16,
    pub destination_port: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// As they stand in the header, padded to a multiple of 4.
    pub options: Vec<u8>,
    pub checksum: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gtpu {
    pub teid: u32,
    pub kind: u8,
    pub sequence: Option<u16>,
    pub n_pdu: Option<u8>,
    /// Each extension header's type and content: 2 bytes, or 4 more, or …
    pub extensions: Vec<(u8, Vec<u8>)>,
}

impl Ethernet {
    pub fn new(destination: Mac, source: Mac) -> Self {
        Self { destination, source, ethertype: None }
    }
}

impl Vlan {
    pub fn new(id: u16) -> Self {
        Self { id, priority: 0, drop_eligible: false, ethertype: None }
    }
}

impl Ipv4 {
    pub fn new(source: impl Into<Ipv4Addr>, destination: impl Into<Ipv4Addr>) -> Self {
        Self {
            source: source.into(),
            destination: destination.into(),
            protocol: None,
            ttl: ipv4::TTL,
            dscp: 0,
            ecn: 0,
            identification: 0,
            dont_fragment: false,
            more_fragments: false,
            fragment_offset: 0,
            options: Vec::new(),
            checksum: None,
        }
    }
}

impl Ipv6 {
    pub fn new(source: impl Into<Ipv6Addr>, destination: impl Into<Ipv6Addr>) -> Self {
        Self {
            source: source.into(),
            destination: destination.into(),
            next_header: None,
            hop_limit: ipv6::HOP_LIMIT,
            dscp: 0,
            ecn: 0,
            flow_label: 0,
            extensions: Vec::new(),
        }
    }
}

impl Icmp {
    pub fn new(kind: u8, code: u8, data: u32) -> Self {
        Self { kind, code, data, checksum: None }
    }
}

impl Udp {
    pub fn new(source_port: u16, destination_port: u16) -> Self {
        Self { source_port, destination_port, checksum: None }
    }
}

impl Tcp {
    pub fn new(source_port: u16, destination_port: u16) -> Self {
        Self {
            source_port,
            destination_port,
            sequence: 0,
            acknowledgement: 0,
            flags: 0,
            window: u16::MAX,
            urgent: 0,
            options: Vec::new(),
            checksum: None,
        }
    }
}

impl Gtpu {
    /// Of a G-PDU without options.
    pub fn new(teid: u32) -> Self {
        Self { teid, kind: gtpu::G_PDU, sequence: None, n_pdu: None, extensions: Vec::new() }
    }
}

macro_rules! layers {
    ($($name:ident)*) => {$(
        impl From<$name> for Layer {
            fn from(layer: $name) -> Self {
                Self::$name(layer)
            }
        }
    )*};
}
layers!(Ethernet Vlan Ipv4 Ipv6 Icmp Udp Tcp Gtpu);
