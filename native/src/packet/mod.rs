//! Packets: the pool they live in and checked views of their headers.
//!
//! Each header has a module: a view whose `new_checked` proves every length it later relies on, and an `emit` that
//! writes the header into an array. Nothing here keeps state or does I/O.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod fuzzing;
pub mod gtpu;
pub mod headers;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod layers;
pub mod ndp;
pub mod pool;
pub mod prefetch;
pub mod tcp;
pub mod udp;
pub mod vlan;

pub use pool::{Pool, PoolConfig, Slot};

/// IANA protocol numbers, shared by IPv4's protocol and IPv6's next header.
pub mod protocol {
    pub const ICMP: u8 = 1;
    /// IPv4 in IP (RFC 2003).
    pub const IPV4: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: u8 = 41;
    pub const ICMPV6: u8 = 58;
    pub const NO_NEXT_HEADER: u8 = 59;
    pub const UDP_LITE: u8 = 136;
}

/// Why bytes are not the header they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than its header, or than the length it states.
    Truncated,
    /// Another version of IP than the Ethernet type said.
    Version,
    Checksum,
    /// A field has a value its specification forbids.
    Field,
}

/// The `N` bytes at `at`. The caller's `new_checked` has proved that they are there.
#[inline]
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..at + N].first_chunk().expect("new_checked has proved the length")
}

#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}
