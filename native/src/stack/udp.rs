//! UDP (RFC 768): whose a datagram is, and the flows that send.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::flows::{EPHEMERAL, Key, bits};
use super::host::{Envelope, Host, Link};
use super::neighbours::Pending;
use super::output::{self, Envelope as Out};
use super::path::{Path, Resolved};
use super::{BindError, Datagram, FlowId, Input, OpenError, To};
use crate::packet::checksum::{pseudo_v4, pseudo_v6};
use crate::packet::ethernet::Mac;
use crate::packet::{Malformed, Slot, ipv6, protocol, udp};
use crate::port::{Port, Sent};

impl Host {
    /// Datagrams to this address (`None`: to every one of ours) and port are for `listener`, unless they belong to a flow.
    /// A listener with an address comes before one without.
    pub fn listen(&mut self, address: Option<IpAddr>, port: u16, listener: u32) -> Result<(), BindError> {
        if port == 0 || address.is_some_and(|address| !self.addresses.is_local(address)) {
            return Err(BindError::NotLocal);
        }
        if self.listeners.contains_key(&(address, port)) {
            return Err(BindError::InUse);
        }
        self.listeners.insert((address, port), listener);
        self.listens_on_ephemeral |= EPHEMERAL.contains(&port);
        Ok(())
    }

    pub fn unlisten(&mut self, address: Option<IpAddr>, port: u16) {
        self.listeners.remove(&(address, port));
    }

    /// A client flow to `remote`: from the own address that is nearest to it, and an ephemeral port that is free towards
    /// it.
    pub fn open(&mut self, remote: SocketAddr, owner: u32) -> Result<FlowId, OpenError> {
        if remote.port() == 0 || self.addresses.is_martian(remote.ip()) {
            return Err(OpenError::NoRoute);
        }
        let route = self.addresses.route(remote.ip()).ok_or(OpenError::NoRoute)?;
        let key = Key::new(SocketAddr::new(route.source, *EPHEMERAL.start()), remote);
        let Self { flows, random, listeners, listens_on_ephemeral, .. } = self;
        // Few hosts listen on ephemeral ports at all, and then the tables need not be asked.
        let is_listening = |port| {
            *listens_on_ephemeral
                && (listeners.contains_key(&(None, port)) || listeners.contains_key(&(Some(route.source), port)))
        };
        let port = flows.ephemeral_port(key, random, is_listening)?;
        let key = Key::new(SocketAddr::new(route.source, port), remote);
        Ok(flows.insert_new(key, Path::client(route), owner, self.mac, self.mtu))
    }

    /// A server flow for the peer of a datagram that came to a listener: `local` and `remote` are its destination and
    /// source, `mac` its source link address, where replies go until the peer's frames come from another.
    pub fn adopt(&mut self, local: SocketAddr, remote: SocketAddr, mac: Mac, owner: u32) -> Result<FlowId, OpenError> {
        if local.is_ipv4() != remote.is_ipv4()
            || !self.addresses.is_local(local.ip())
            || self.addresses.is_martian(remote.ip())
        {
            return Err(OpenError::NoRoute);
        }
        let path = Path::server(mac, self.addresses.route(remote.ip()));
        self.flows.insert(Key::new(local, remote), path, owner, self.mac, self.mtu)
    }

    /// Forgets the flow. What already waits for its neighbour is still sent.
    pub fn close(&mut self, flow: FlowId) {
        self.flows.remove(flow);
    }

    /// `None`: the flow is closed.
    pub fn local_address(&self, flow: FlowId) -> Option<SocketAddr> {
        self.flows.get(flow).map(|flow| flow.key.local())
    }

    /// `None`: the flow is closed.
    pub fn remote_address(&self, flow: FlowId) -> Option<SocketAddr> {
        self.flows.get(flow).map(|flow| flow.key.remote())
    }

    #[inline]
    pub(super) fn udp(
        &mut self,
        mut packet: Slot,
        envelope: Envelope,
        link: Link,
        now: Instant,
        port: &mut dyn Port,
    ) -> Input {
        let (pseudo, is_v4) = match (envelope.source, envelope.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => (pseudo_v4(source, destination, protocol::UDP), true),
            (IpAddr::V6(source), IpAddr::V6(destination)) => (pseudo_v6(source, destination, protocol::UDP), false),
            _ => return Input::Consumed,
        };
        let datagram = match udp::Datagram::new_checked(&packet[envelope.at..envelope.end], pseudo, is_v4) {
            Ok(datagram) => datagram,
            Err(malformed) => return self.drop_udp(malformed),
        };
        let (source_port, destination_port) = (datagram.source_port(), datagram.destination_port());
        let len = datagram.payload().len();
        let key = Key {
            local: bits(envelope.destination),
            remote: bits(envelope.source),
            ports: u32::from(destination_port) << 16 | u32::from(source_port),
        };
        let to = match self.flows.find(&key) {
            // The flow's addresses were checked when it was made. Where a frame was sent was not.
            Some(index) if link.destination == self.mac || self.is_for_us(&envelope, link) => {
                self.refresh(FlowId(index), link.source, now)
            }
            Some(_) => return Input::Consumed,
            None => {
                if !self.is_for_us(&envelope, link) {
                    return Input::Consumed;
                }
                let named = self.listeners.get(&(Some(envelope.destination), destination_port));
                match named.or_else(|| self.listeners.get(&(None, destination_port))) {
                    Some(&listener) => To::Listener(listener),
                    None => {
                        self.counters.drop_no_listener += 1;
                        self.refuse_port(&packet, envelope, link, now, port);
                        return Input::Consumed;
                    }
                }
            }
        };
        self.counters.rx_udp += 1;
        packet.narrow(envelope.at + udp::HEADER, len);
        Input::Datagram(Datagram {
            to,
            payload: packet,
            source: SocketAddr::new(envelope.source, source_port),
            destination: SocketAddr::new(envelope.destination, destination_port),
            source_mac: link.source,
        })
    }

    #[inline]
    fn refresh(&mut self, id: FlowId, source: Mac, now: Instant) -> To {
        let Some(flow) = self.flows.get_mut(id) else { return To::Flow(0) };
        flow.path.heard(source, &mut self.neighbours, now);
        To::Flow(flow.owner)
    }

    #[cold]
    fn drop_udp(&mut self, malformed: Malformed) -> Input {
        if malformed == Malformed::Checksum {
            self.counters.drop_udp_checksum += 1;
            return Input::Consumed;
        }
        self.drop_malformed(malformed)
    }

    /// One datagram out. `Queued` also when it waits for its neighbour; whatever else becomes of it is counted.
    #[inline]
    pub fn send(&mut self, id: FlowId, payload: &[u8], now: Instant, port: &mut dyn Port) -> Sent {
        if let Some(flow) = self.flows.get(id)
            && flow.path.is_fresh(self.neighbours.epoch(), now)
            && flow.ip_overhead() + udp::HEADER + payload.len() <= usize::from(flow.mtu)
            && flow.dont_fragment
        {
            let (header, len) = flow.whole_header(payload);
            let sent = port.send(&[&header[..len], payload]);
            self.count_udp(sent, 1);
            return sent;
        }
        self.send_slowly(id, payload, now, port)
    }

    /// The neighbour must be looked up, or the datagram be fragmented.
    fn send_slowly(&mut self, id: FlowId, payload: &[u8], now: Instant, port: &mut dyn Port) -> Sent {
        let Some(flow) = self.flows.get(id) else {
            self.counters.drop_no_flow += 1;
            return Sent::Down;
        };
        let limit =
            usize::from(u16::MAX) - udp::HEADER - if flow.key.local().is_ipv4() { flow.ip_overhead() } else { 0 };
        if payload.len() > limit {
            self.counters.drop_too_long += 1;
            return Sent::TooLong;
        }
        let is_resolved = self.resolve(id, now, port);
        let Some(flow) = self.flows.get(id) else { return Sent::Down };
        let out = Out {
            mac: self.mac,
            to_mac: flow.path.mac,
            source: flow.key.local().ip(),
            destination: flow.key.remote().ip(),
            protocol: protocol::UDP,
            hop_limit: ipv6::HOP_LIMIT,
            identification: self.random.next() as u32,
            dont_fragment: flow.dont_fragment,
            mtu: flow.mtu.into(),
        };
        let head = flow.udp_header(payload);
        let mut frames = 0;
        if is_resolved {
            let sent = output::emit(&out, &head, payload, &mut frames, &mut |parts| port.send(parts));
            self.count_udp(sent, frames);
            return sent;
        }
        let Some((next_hop, source)) = flow.path.next_hop else {
            self.counters.drop_no_flow += 1;
            return Sent::Down;
        };
        let mut pending = Pending { flow: (id.0, flow.serial), frames: Vec::new() };
        output::emit(&out, &head, payload, &mut frames, &mut |parts| {
            pending.frames.push(parts.concat());
            Sent::Queued
        });
        match self.neighbours.wait(next_hop, source, pending, now, &mut self.counters) {
            Ok(solicit) => {
                if let Some(solicit) = solicit {
                    self.solicit(solicit, port);
                }
                Sent::Queued
            }
            Err(()) => Sent::Full,
        }
    }

    /// Finds the next hop's link address. `false`: it is not known.
    fn resolve(&mut self, id: FlowId, now: Instant, port: &mut dyn Port) -> bool {
        let Some(flow) = self.flows.get_mut(id) else { return false };
        match flow.path.resolve(&mut self.neighbours, now) {
            Resolved::Known(solicit) => {
                if let Some(solicit) = solicit {
                    self.solicit(solicit, port);
                }
                true
            }
            Resolved::Unknown => false,
        }
    }

    #[inline]
    pub(super) fn count_udp(&mut self, sent: Sent, frames: u64) {
        if sent == Sent::Queued {
            self.counters.tx_udp += 1;
        } else {
            self.counters.drop_port += 1;
        }
        if frames > 1 {
            self.counters.tx_fragment += frames;
        }
    }
}
