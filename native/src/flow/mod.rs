//! Flows: what is done with packets that match, decided once, and then without Python.
//!
//! A packet's way: its port lends it; [`Head`] takes a copy of its beginning; [`crate::packet::headers`] reads that;
//! the table finds the most important rule that matches and runs its actions on the head; the rest of the frame goes, unread,
//! from port to port. What is decided by is what is sent on, whatever a peer writes meanwhile.
//!
//! Sans-I/O; the time is an argument.

mod act;
mod alone;
pub mod edit;
mod expiry;
pub mod fuzzing;
pub mod head;
mod index;
mod key;
mod limit;
mod program;
mod refused;
mod rules;
mod search;
pub mod table;
#[cfg(test)]
mod tests;
mod translation;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

pub use edit::Failed;
pub use head::Head;
pub use refused::Refused;
pub use table::{Counters, Listed, Table};

use crate::packet::ethernet::Mac;
use crate::stack::Cidr;

/// A port's place in the engine.
pub type PortIndex = u16;

/// What a packet must be like. What is `None` may be anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    pub port: Option<PortIndex>,
    pub source_mac: Option<Mac>,
    pub destination_mac: Option<Mac>,
    /// The outermost tag's id; 0: untagged.
    pub vlan: Option<u16>,
    pub ethertype: Option<u16>,
    pub source: Option<Cidr>,
    pub destination: Option<Cidr>,
    pub protocol: Option<u8>,
    /// Of TCP and UDP; an ICMP query's identifier is the port of the side that asks. Fragments have none.
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    /// Of a GTP-U G-PDU.
    pub teid: Option<u32>,
    /// Of several that match the highest counts; of equals the one that says more, then the older one.
    pub priority: i32,
}

/// New values of header fields; checksums follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    pub source_mac: Option<Mac>,
    pub destination_mac: Option<Mac>,
    /// 0: the outermost tag is taken off.
    pub vlan: Option<u16>,
    pub source: Option<IpAddr>,
    pub destination: Option<IpAddr>,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    pub ttl: Option<u8>,
    /// DSCP, 0 to 63.
    pub dscp: Option<u8>,
}

/// The tunnel that a packet is put into: IPv4 or IPv6, UDP, GTP-U (3GPP TS 29.281). The Ethernet header stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encapsulate {
    pub teid: u32,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
}

/// A token bucket: so many bits a second on average, so many bytes at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    pub bits_per_s: f64,
    pub burst_bytes: f64,
}

/// One step. `Forward`, `Route`, `Reply`, `Drop`, `Accept` and `ToPython` end the list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    Count,
    Rewrite(Rewrite),
    Encapsulate(Encapsulate),
    /// Takes the outer IP, UDP and GTP-U headers off a G-PDU.
    Decapsulate,
    Limit(Limit),
    Drop,
    /// Out of that port as it is.
    Forward(PortIndex),
    /// Out of that port as a router does it: hop limit one less, link addresses of the port and the next hop.
    Route(PortIndex),
    /// Back out of the port it came by, link addresses exchanged.
    Reply,
    /// To the port's own host: ARP, TCP, UDP …
    Accept,
    /// To the port's `@vnf.frames` handler.
    ToPython,
}

/// What is installed for a match.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub actions: Vec<Action>,
    /// Ends when no packet matched for so long.
    pub idle: Option<Duration>,
    /// Ends so long after it was installed.
    pub hard: Option<Duration>,
}

/// Why a rule ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    Idle,
    Hard,
}

/// Of one rule, since it was installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub packets: u64,
    pub bytes: u64,
    /// Of these, dropped by its token bucket.
    pub limited: u64,
    /// Of these, dropped because an action was not possible (no room, no G-PDU, other IP version, hop limit …).
    pub failed: u64,
    /// Since the last packet; since the installation, when there was none.
    pub idle: Duration,
}

/// What became of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No rule: the port's bridge, handler or host decides.
    Miss,
    /// Dropped, and counted.
    Drop,
    Forward(PortIndex),
    Route(PortIndex),
    Reply,
    Accept,
    ToPython,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Miss => "no rule",
            Self::Drop => "drop",
            Self::Forward(_) => "forward",
            Self::Route(_) => "route",
            Self::Reply => "reply",
            Self::Accept => "accept",
            Self::ToPython => "to python",
        })
    }
}
