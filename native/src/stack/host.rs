//! The host: what is common to all its protocols, and a frame's way through Ethernet and IP.
//!
//! What is not for us, or cannot be true, ends here with a count. The payload stays in the slot it came in: views tell
//! where it lies, and the slot is narrowed to it at the end.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Instant;

use foldhash::fast::SeedableRandomState;
use hashbrown::HashMap;

use super::addresses::Addresses;
use super::counters::Counters;
use super::flows::Flows;
use super::icmp::ErrorBudget;
use super::neighbours::Neighbours;
use super::random::Random;
use super::reassembly::{Fragment, Key, Reassembly};
use super::tcp::Tcp;
use super::{Cidr, HostConfig, Input, Unreachable};
use crate::packet::ethernet::{self, Mac};
use crate::packet::ipv6::Upper;
use crate::packet::{Malformed, Pool, Slot, ipv4, ipv6, protocol};
use crate::port::Port;

/// One host on one port.
pub struct Host {
    pub(super) mac: Mac,
    pub(super) mtu: u16,
    pub(super) addresses: Addresses,
    pub(super) neighbours: Neighbours,
    pub(super) flows: Flows,
    pub(super) listeners: HashMap<(Option<IpAddr>, u16), u32, SeedableRandomState>,
    /// Whether one of them ever was on an ephemeral port.
    pub(super) listens_on_ephemeral: bool,
    pub(super) counters: Counters,
    pub(super) random: Random,
    pub(super) errors: ErrorBudget,
    pub(super) tcp: Tcp,
    reassembly: Reassembly,
}

/// What the link layer said of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub source: Mac,
    pub destination: Mac,
}

/// What an IP packet says of itself. The offsets count from the packet's first byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub hop_limit: u8,
    /// Where the transport's bytes are.
    pub at: usize,
    pub end: usize,
    /// Where the field stands that names the protocol (of IPv6).
    pub named_at: usize,
}

impl Host {
    pub fn new(config: HostConfig) -> Self {
        Self::with_random(config, Random::new())
    }

    /// For tests: equal seeds, frames and times make equal hosts, byte for byte.
    pub fn seeded(config: HostConfig, seed: u64) -> Self {
        Self::with_random(config, Random::seeded(seed))
    }

    fn with_random(config: HostConfig, mut random: Random) -> Self {
        Self {
            mac: config.mac,
            mtu: config.mtu.clamp(576, usize::from(u16::MAX)) as u16,
            addresses: Addresses::new(&config),
            neighbours: Neighbours::new(&mut random),
            flows: Flows::new(&mut random),
            listeners: HashMap::with_hasher(random.hasher()),
            listens_on_ephemeral: false,
            counters: Counters::default(),
            errors: ErrorBudget::default(),
            tcp: Tcp::new(config.tcp, &mut random),
            reassembly: Reassembly::new(),
            random,
        }
    }

    /// One more own address; `announce` tells the others.
    pub fn add_address(&mut self, own: Cidr) {
        self.addresses.add(own);
    }

    /// One frame in; at most one datagram out. Answers leave through `port`.
    #[inline]
    pub fn receive(&mut self, mut frame: Slot, now: Instant, pool: &Pool, port: &mut dyn Port) -> Input {
        let Ok(ethernet) = ethernet::Frame::new_checked(&frame) else {
            self.counters.drop_truncated += 1;
            return Input::Consumed;
        };
        let link = Link { source: ethernet.source(), destination: ethernet.destination() };
        let ethertype = ethernet.ethertype();
        if !ethernet::is_unicast(link.source) || link.source == self.mac {
            self.counters.drop_martian += 1;
            return Input::Consumed;
        }
        let len = frame.len() - ethernet::HEADER;
        match ethertype {
            ethernet::IPV4 => {
                frame.narrow(ethernet::HEADER, len);
                self.ipv4(frame, link, now, pool, port)
            }
            ethernet::IPV6 => {
                frame.narrow(ethernet::HEADER, len);
                self.ipv6(frame, link, now, pool, port)
            }
            ethernet::ARP => {
                self.arp(&frame[ethernet::HEADER..], link, now, port);
                Input::Consumed
            }
            _ => {
                self.counters.drop_ethertype += 1;
                Input::Consumed
            }
        }
    }

    fn ipv4(&mut self, packet: Slot, link: Link, now: Instant, pool: &Pool, port: &mut dyn Port) -> Input {
        let header = match ipv4::Packet::new_checked(&packet) {
            Ok(header) => header,
            Err(malformed) => return self.drop_malformed(malformed),
        };
        let (source, destination) = (header.source(), header.destination());
        let mut envelope = Envelope {
            source: source.into(),
            destination: destination.into(),
            protocol: header.protocol(),
            hop_limit: 0,
            at: header.header_len(),
            end: header.total_len(),
            named_at: 9,
        };
        if header.header_len() != ipv4::HEADER && header.has_source_route() {
            self.counters.drop_source_route += 1;
            return Input::Consumed;
        }
        if !header.is_fragment() {
            return self.transport(packet, envelope, link, now, port);
        }
        if !self.is_for_us(&envelope, link) {
            return Input::Consumed;
        }
        let key = Key {
            source: envelope.source,
            destination: envelope.destination,
            identification: header.identification().into(),
            protocol: envelope.protocol,
        };
        let fragment = Fragment {
            key,
            protocol: envelope.protocol,
            offset: header.fragment_offset(),
            more: header.more_fragments(),
            data: header.payload(),
        };
        self.counters.rx_fragment += 1;
        let Some(whole) = self.reassembly.add(fragment, now, pool, &mut self.counters) else { return Input::Consumed };
        (envelope.at, envelope.end) = (ipv4::HEADER, whole.len());
        self.transport(whole, envelope, link, now, port)
    }

    fn ipv6(&mut self, packet: Slot, link: Link, now: Instant, pool: &Pool, port: &mut dyn Port) -> Input {
        let (envelope, upper) = match read_ipv6(&packet) {
            Ok(read) => read,
            Err(malformed) => return self.drop_malformed(malformed),
        };
        let Upper::Fragment { next_header, identification, offset, more, at } = upper else {
            return self.transport(packet, envelope, link, now, port);
        };
        if !self.is_for_us(&envelope, link) {
            return Input::Consumed;
        }
        let key = Key { source: envelope.source, destination: envelope.destination, identification, protocol: 0 };
        let fragment = Fragment { key, protocol: next_header, offset, more, data: &packet[at..envelope.end] };
        self.counters.rx_fragment += 1;
        let Some(whole) = self.reassembly.add(fragment, now, pool, &mut self.counters) else { return Input::Consumed };
        match read_ipv6(&whole) {
            Ok((envelope, Upper::Transport { .. })) => self.transport(whole, envelope, link, now, port),
            // Fragments within fragments.
            Ok((_, Upper::Fragment { .. })) => self.drop_malformed(Malformed::Field),
            Err(malformed) => self.drop_malformed(malformed),
        }
    }

    #[inline]
    fn transport(&mut self, packet: Slot, envelope: Envelope, link: Link, now: Instant, port: &mut dyn Port) -> Input {
        match envelope.protocol {
            protocol::UDP => self.udp(packet, envelope, link, now, port),
            protocol::TCP => self.tcp(packet, envelope, link, now, port),
            protocol::ICMP if envelope.source.is_ipv4() => {
                if !self.is_for_us(&envelope, link) {
                    return Input::Consumed;
                }
                self.icmp_v4(&packet, envelope, link, port)
            }
            protocol::ICMPV6 if envelope.source.is_ipv6() => self.icmp_v6(&packet, envelope, link, now, port),
            _ => {
                if self.is_for_us(&envelope, link) {
                    self.counters.drop_protocol += 1;
                    self.refuse_protocol(&packet, envelope, link, now, port);
                }
                Input::Consumed
            }
        }
    }

    /// Is the packet for this host, from a possible sender, and not said to many? Counted if not. A virtual address is
    /// steered here by frames that were sent to the balancer's link address: any will do for it.
    pub(super) fn is_for_us(&mut self, envelope: &Envelope, link: Link) -> bool {
        let is_for_us = if link.destination == self.mac {
            self.addresses.is_local(envelope.destination)
        } else {
            ethernet::is_unicast(link.destination) && self.addresses.is_shared(envelope.destination)
        };
        if !is_for_us {
            self.counters.drop_not_for_us += 1;
            return false;
        }
        if self.addresses.is_martian(envelope.source) {
            self.counters.drop_martian += 1;
            return false;
        }
        true
    }

    #[cold]
    pub(super) fn drop_malformed(&mut self, malformed: Malformed) -> Input {
        match malformed {
            Malformed::Truncated => self.counters.drop_truncated += 1,
            Malformed::Version => self.counters.drop_bad_version += 1,
            Malformed::Field => self.counters.drop_malformed += 1,
            Malformed::Checksum => self.counters.drop_ip_checksum += 1,
        }
        Input::Consumed
    }

    /// Retries, expiry. Flows whose neighbour never answered are appended to `unreachable` by their owner numbers.
    pub fn on_timer(&mut self, now: Instant, port: &mut dyn Port, unreachable: &mut Vec<(u32, Unreachable)>) {
        self.reassembly.on_timer(now, &mut self.counters);
        let (mut lost, mut failed) = (Vec::new(), Vec::new());
        for solicit in self.neighbours.on_timer(now, &mut lost, &mut failed, &mut self.counters) {
            self.solicit(solicit, port);
        }
        self.counters.drop_unreachable += failed.len() as u64;
        let mut told = HashSet::new();
        for (index, serial) in failed.into_iter().map(|pending| pending.flow) {
            if let Some(flow) = self.flows.get(super::FlowId(index))
                && flow.serial == serial
                && told.insert(serial)
            {
                unreachable.push((flow.owner, Unreachable::Host));
            }
        }
        self.tcp_neighbours_lost(&lost);
        self.tcp_on_timer(now, port);
    }

    /// When `on_timer` wants to be called next.
    pub fn deadline(&self) -> Option<Instant> {
        [self.neighbours.deadline(), self.reassembly.deadline(), self.tcp.deadline()].into_iter().flatten().min()
    }

    /// Every counter by its name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.counters.list();
        counters.push(("flows_open", self.flows.len() as u64));
        counters.extend(self.tcp.gauges());
        counters
    }
}

#[inline]
fn read_ipv6(packet: &[u8]) -> Result<(Envelope, Upper), Malformed> {
    let header = ipv6::Packet::new_checked(packet)?;
    let upper = header.upper()?;
    let (protocol, at, named_at) = match upper {
        Upper::Transport { protocol, at, named_at } => (protocol, at, named_at),
        Upper::Fragment { next_header, at, .. } => (next_header, at, 0),
    };
    let envelope = Envelope {
        source: header.source().into(),
        destination: header.destination().into(),
        protocol,
        hop_limit: header.hop_limit(),
        at,
        end: header.bytes().len(),
        named_at,
    };
    Ok((envelope, upper))
}
