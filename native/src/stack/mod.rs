//! One host on a port: ARP, NDP, IPv4, IPv6, ICMP, UDP and TCP. Sans-I/O; the time is an argument.
//!
//! A frame's way in: [`Host::receive`] (Ethernet, IP, `host`) → `reassembly` if it is a fragment → `udp` (the flow or
//! listener it is for), `icmp` (echo, errors) or `link` (ARP and NDP, which feed `neighbours`). A datagram's way out:
//! [`Host::send`] (`udp`) copies the flow's prebuilt header (`flows`); what does not fit the MTU takes the way through
//! `output`, what has no link address yet waits in `neighbours`. `path` is what a flow, of either protocol, knows of its
//! way there. TCP has a map of its own ([`tcp`]). `transit` is for packets of others that leave by its port.
//!
//! Not supported, and dropped with a count: multicast and broadcast datagrams, VLAN tags, source routes and jumbograms,
//! redirects and router advertisements (routes are configured). Nothing is sent of duplicate address detection, MLD or
//! "reassembly time exceeded", and a lowered path MTU lasts as long as its flow.

mod addresses;
#[doc(hidden)]
pub mod bench;
mod counters;
mod flows;
pub mod fuzzing;
mod host;
mod icmp;
mod link;
mod neighbours;
mod output;
mod path;
pub(crate) mod random;
mod reassembly;
pub mod tcp;
#[cfg(test)]
mod tests;
mod transit;
mod udp;

use std::net::{IpAddr, SocketAddr};

use crate::packet::Slot;

pub use host::Host;
pub use transit::{NextHop, Stopped};

/// An address and the length of its network prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

/// What a host is told once.
#[derive(Clone, Debug)]
pub struct HostConfig {
    pub mac: [u8; 6],
    /// The host's own addresses: answered for in ARP/NDP, and the sources of what it sends.
    pub addresses: Vec<Cidr>,
    /// Shared addresses: datagrams to them are accepted, and replies leave from them; neither answered for in ARP/NDP
    /// nor the source of a new flow.
    pub virtual_addresses: Vec<IpAddr>,
    /// At most one per address family: where packets for other networks go.
    pub gateways: Vec<IpAddr>,
    /// What holds for its TCP.
    pub tcp: tcp::TcpConfig,
    /// The largest IP packet; longer datagrams are fragmented. At least 576 (RFC 791), 1280 with IPv6 (RFC 8200 §5).
    pub mtu: usize,
}

/// A flow's place in the host's slab, as `open` and `adopt` return it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId(pub u32);

/// To whom a datagram is addressed; the numbers are the owner's, as given to `open`, `adopt` and `listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    Flow(u32),
    Listener(u32),
}

/// A UDP datagram for the owner. `payload` is the slot of the frame, narrowed.
#[derive(Debug)]
pub struct Datagram {
    pub to: To,
    pub payload: Slot,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The link address it came from; `adopt` remembers it, so that a reply needs no ARP.
    pub source_mac: [u8; 6],
}

/// Why a flow cannot be reached (ICMP, or no answer to ARP/NDP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Port,
    Host,
    Network,
    Other,
}

/// What a frame meant to the owner.
#[derive(Debug)]
pub enum Input {
    /// Answered, remembered, or dropped and counted.
    Consumed,
    Datagram(Datagram),
    /// Tell the flow with this owner number.
    Unreachable {
        to: u32,
        reason: Unreachable,
    },
}

/// Why nothing listens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindError {
    /// Another listener has this address and port.
    InUse,
    /// Not one of the host's addresses.
    NotLocal,
}

/// Why no flow and no connection could be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// No address of that family, no gateway for that network, or nobody can have the address.
    NoRoute,
    /// Every ephemeral port towards that remote address and port is taken.
    PortsExhausted,
    /// The 5-tuple exists already.
    InUse,
    /// As many connections as there may be.
    TooMany,
}
