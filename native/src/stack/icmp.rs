//! ICMP and ICMPv6: echo, errors about our flows, and the errors we send.
//!
//! Answers leave to the link address the question came from: no neighbour is looked up for a stranger. An error is sent
//! only about a packet that was for us alone, and never about another error (RFC 1122 §3.2.2, RFC 4443 §2.4(e)); at most
//! so many in a second.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::flows::{Key, bits};
use super::host::{Envelope, Host, Link};
use super::output::{self, Envelope as Out};
use super::{Input, Unreachable};
use crate::packet::checksum::{Sum, pseudo_v6};
use crate::packet::ethernet;
use crate::packet::icmp::{self, v4, v6};
use crate::packet::ipv6::Upper;
use crate::packet::{Malformed, ipv4, ipv6, ndp, protocol};
use crate::port::{Port, Sent};

/// A token bucket (RFC 4443 §2.4(f)), with Linux's figures.
#[derive(Debug, Default)]
pub(super) struct ErrorBudget {
    full_at: Option<Instant>,
}

impl ErrorBudget {
    const BURST: u32 = 50;
    const INTERVAL: Duration = Duration::from_millis(1);

    fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        let is_allowed = full_at + Self::INTERVAL <= now + Self::INTERVAL * Self::BURST;
        if is_allowed {
            self.full_at = Some(full_at + Self::INTERVAL);
        }
        is_allowed
    }
}

/// What an error says of a flow.
enum Verdict {
    Unreachable(Unreachable),
    /// The MTU of the next link, as far as the router knows.
    TooBig(usize),
}

impl Host {
    /// The caller has proved that the packet is for us.
    pub(super) fn icmp_v4(&mut self, packet: &[u8], envelope: Envelope, link: Link, port: &mut dyn Port) -> Input {
        let message = match icmp::Message::new_checked(&packet[envelope.at..envelope.end], Sum::ZERO) {
            Ok(message) => message,
            Err(malformed) => return self.drop_icmp(malformed),
        };
        let [.., high, low] = message.rest();
        let verdict = match (message.kind(), message.code()) {
            (v4::ECHO_REQUEST, 0) => {
                self.echo(message, v4::ECHO_REPLY, envelope.destination, Sum::ZERO, envelope, link, port);
                return Input::Consumed;
            }
            (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED) => {
                Verdict::TooBig(usize::from(u16::from_be_bytes([high, low])))
            }
            (v4::UNREACHABLE, code) => Verdict::Unreachable(match code {
                v4::PORT => Unreachable::Port,
                0 | 6 | 9 | 11 => Unreachable::Network,
                1 | 7 | 8 | 10 | 12 => Unreachable::Host,
                _ => Unreachable::Other,
            }),
            (v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM, _) => Verdict::Unreachable(Unreachable::Other),
            _ => {
                self.counters.drop_icmp_ignored += 1;
                return Input::Consumed;
            }
        };
        self.judge(quoted_v4(message.body()), verdict)
    }

    pub(super) fn icmp_v6(
        &mut self,
        packet: &[u8],
        envelope: Envelope,
        link: Link,
        now: Instant,
        port: &mut dyn Port,
    ) -> Input {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (envelope.source, envelope.destination) else {
            return Input::Consumed;
        };
        // Neighbours are asked for in groups; echo is answered in the group of all nodes too (RFC 4443 §4.2).
        let is_group = destination.is_multicast();
        if is_group {
            let is_ours = destination == ndp::ALL_NODES
                || self
                    .addresses
                    .own()
                    .any(|own| matches!(own, IpAddr::V6(own) if ndp::solicited_node(own) == destination));
            if !is_ours || link.destination != ethernet::multicast(destination) && link.destination != self.mac {
                self.counters.drop_not_for_us += 1;
                return Input::Consumed;
            }
            if !source.is_unspecified() && self.addresses.is_martian(source) {
                self.counters.drop_martian += 1;
                return Input::Consumed;
            }
        } else if !self.is_for_us(&envelope, link) {
            return Input::Consumed;
        }
        let pseudo = pseudo_v6(source, destination, protocol::ICMPV6);
        let message = match icmp::Message::new_checked(&packet[envelope.at..envelope.end], pseudo) {
            Ok(message) => message,
            Err(malformed) => return self.drop_icmp(malformed),
        };
        let kind = message.kind();
        if kind == v6::NEIGHBOUR_SOLICITATION || kind == v6::NEIGHBOUR_ADVERTISEMENT {
            self.ndp(message, envelope, link, now, port);
            return Input::Consumed;
        }
        if source.is_unspecified() {
            self.counters.drop_martian += 1;
            return Input::Consumed;
        }
        let verdict = match (kind, message.code()) {
            (v6::ECHO_REQUEST, 0) => {
                let own = if is_group { self.addresses.route(source.into()).map(|route| route.source) } else { None };
                let from = own.unwrap_or(envelope.destination);
                if let IpAddr::V6(from_v6) = from
                    && !from_v6.is_multicast()
                {
                    let pseudo = pseudo_v6(from_v6, source, protocol::ICMPV6);
                    self.echo(message, v6::ECHO_REPLY, from, pseudo, envelope, link, port);
                } else {
                    self.counters.drop_icmp_ignored += 1;
                }
                return Input::Consumed;
            }
            (v6::TOO_BIG, _) if !is_group => Verdict::TooBig(u32::from_be_bytes(message.rest()) as usize),
            (v6::UNREACHABLE, code) if !is_group => Verdict::Unreachable(match code {
                v6::PORT => Unreachable::Port,
                0 => Unreachable::Network,
                3 => Unreachable::Host,
                _ => Unreachable::Other,
            }),
            (v6::TIME_EXCEEDED | v6::PARAMETER_PROBLEM, _) if !is_group => Verdict::Unreachable(Unreachable::Other),
            _ => {
                self.counters.drop_icmp_ignored += 1;
                return Input::Consumed;
            }
        };
        self.judge(quoted_v6(message.body()), verdict)
    }

    fn drop_icmp(&mut self, malformed: Malformed) -> Input {
        if malformed == Malformed::Checksum {
            self.counters.drop_icmp_checksum += 1;
            return Input::Consumed;
        }
        self.drop_malformed(malformed)
    }

    #[expect(clippy::too_many_arguments, reason = "the two families share it")]
    fn echo(
        &mut self,
        message: icmp::Message<'_>,
        kind: u8,
        from: IpAddr,
        pseudo: Sum,
        envelope: Envelope,
        link: Link,
        port: &mut dyn Port,
    ) {
        self.counters.rx_icmp_echo += 1;
        let head = icmp::emit(kind, 0, message.rest(), pseudo, message.body());
        let sent = self.reply(from, &head, message.body(), envelope, link, port);
        self.counters.tx_icmp_echo += u64::from(sent == Sent::Queued);
    }

    /// An ICMP message to the sender of a packet, by the way it came.
    fn reply(
        &mut self,
        from: IpAddr,
        head: &[u8; 8],
        body: &[u8],
        envelope: Envelope,
        link: Link,
        port: &mut dyn Port,
    ) -> Sent {
        let out = Out {
            mac: self.mac,
            to_mac: link.source,
            source: from,
            destination: envelope.source,
            protocol: if from.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 },
            hop_limit: ipv6::HOP_LIMIT,
            identification: self.random.next() as u32,
            dont_fragment: false,
            mtu: self.mtu.into(),
        };
        let mut frames = 0;
        let sent = output::emit(&out, head, body, &mut frames, &mut |parts| port.send(parts));
        if frames > 1 {
            self.counters.tx_fragment += frames;
        }
        if sent != Sent::Queued {
            self.counters.drop_port += 1;
        }
        sent
    }

    /// An error about a flow of ours, if it quotes one.
    fn judge(&mut self, quoted: Option<Quoted>, verdict: Verdict) -> Input {
        let index = match quoted {
            Some(Quoted { protocol: protocol::UDP, key, .. }) => self.flows.find(&key),
            Some(Quoted { key, sequence, .. }) => {
                let is_ours = match verdict {
                    Verdict::Unreachable(reason) => self.tcp_unreachable(&key, sequence, reason),
                    Verdict::TooBig(mtu) => self.tcp_too_big(&key, sequence, mtu),
                };
                self.counters.rx_icmp_error += u64::from(is_ours);
                self.counters.drop_icmp_ignored += u64::from(!is_ours);
                return Input::Consumed;
            }
            None => None,
        };
        let Some(index) = index else {
            self.counters.drop_icmp_ignored += 1;
            return Input::Consumed;
        };
        let Some(flow) = self.flows.get_mut(super::FlowId(index)) else { return Input::Consumed };
        self.counters.rx_icmp_error += 1;
        match verdict {
            Verdict::Unreachable(reason) => Input::Unreachable { to: flow.owner, reason },
            Verdict::TooBig(mtu) => {
                if flow.lower_mtu(mtu) {
                    self.counters.flow_path_mtu_lowered += 1;
                }
                Input::Consumed
            }
        }
    }

    /// Nobody listens at the port of this datagram.
    pub(super) fn refuse_port(
        &mut self,
        packet: &[u8],
        envelope: Envelope,
        link: Link,
        now: Instant,
        port: &mut dyn Port,
    ) {
        let (kind, code) =
            if envelope.source.is_ipv4() { (v4::UNREACHABLE, v4::PORT) } else { (v6::UNREACHABLE, v6::PORT) };
        self.refuse(kind, code, [0; 4], packet, envelope, link, now, port);
    }

    /// We do not speak this protocol (RFC 1122 §3.2.2.1, RFC 8200 §4).
    pub(super) fn refuse_protocol(
        &mut self,
        packet: &[u8],
        envelope: Envelope,
        link: Link,
        now: Instant,
        port: &mut dyn Port,
    ) {
        if envelope.source.is_ipv4() {
            self.refuse(v4::UNREACHABLE, v4::PROTOCOL, [0; 4], packet, envelope, link, now, port);
        } else if envelope.protocol != protocol::NO_NEXT_HEADER {
            let pointer = (envelope.named_at as u32).to_be_bytes();
            let code = v6::UNRECOGNIZED_NEXT_HEADER;
            self.refuse(v6::PARAMETER_PROBLEM, code, pointer, packet, envelope, link, now, port);
        }
    }

    /// An error about a packet, from the address that `envelope` has as its destination.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message and what it is about")]
    pub(super) fn refuse(
        &mut self,
        kind: u8,
        code: u8,
        rest: [u8; 4],
        packet: &[u8],
        envelope: Envelope,
        link: Link,
        now: Instant,
        port: &mut dyn Port,
    ) {
        if !self.errors.take(now) {
            self.counters.drop_icmp_rate += 1;
            return;
        }
        // As much of the packet as fits the smallest MTU (RFC 1812 §4.3.2.3, RFC 4443 §2.4(c)).
        let (most, pseudo) = match (envelope.destination, envelope.source) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                (ipv6::MINIMUM_MTU - ipv6::HEADER - icmp::HEADER, pseudo_v6(from, to, protocol::ICMPV6))
            }
            _ => (576 - ipv4::HEADER - icmp::HEADER, Sum::ZERO),
        };
        let quoted = &packet[..envelope.end.min(most)];
        let head = icmp::emit(kind, code, rest, pseudo, quoted);
        let sent = self.reply(envelope.destination, &head, quoted, envelope, link, port);
        self.counters.tx_icmp_error += u64::from(sent == Sent::Queued);
    }
}

/// The flow a quoted packet was sent on: the 5-tuple at least must be one of ours, of TCP the sequence number be one that
/// is on its way (RFC 5927 §4).
struct Quoted {
    protocol: u8,
    key: Key,
    /// What stands after the ports: of TCP the sequence number.
    sequence: u32,
}

fn quoted(protocol: u8, source: IpAddr, destination: IpAddr, transport: &[u8]) -> Option<Quoted> {
    if protocol != protocol::UDP && protocol != protocol::TCP {
        return None;
    }
    let (ports, rest) = transport.split_first_chunk()?;
    let key = Key { local: bits(source), remote: bits(destination), ports: u32::from_be_bytes(*ports) };
    Some(Quoted { protocol, key, sequence: u32::from_be_bytes(*rest.first_chunk()?) })
}

fn quoted_v4(bytes: &[u8]) -> Option<Quoted> {
    let packet = ipv4::Packet::new_quoted(bytes).ok()?;
    if packet.fragment_offset() != 0 {
        return None;
    }
    quoted(packet.protocol(), packet.source().into(), packet.destination().into(), packet.payload())
}

fn quoted_v6(bytes: &[u8]) -> Option<Quoted> {
    let packet = ipv6::Packet::new_quoted(bytes).ok()?;
    let (protocol, at) = match packet.upper().ok()? {
        Upper::Transport { protocol, at, .. } => (protocol, at),
        Upper::Fragment { next_header, offset: 0, at, .. } => (next_header, at),
        Upper::Fragment { .. } => return None,
    };
    quoted(protocol, packet.source().into(), packet.destination().into(), bytes.get(at..)?)
}
