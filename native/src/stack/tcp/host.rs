//! What an owner calls: listening, connecting, bytes, closing, events.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::flows::{Birth, Stage};
use super::protocol::{Protocol, State};
use super::smoltcp::Smoltcp;
use super::time_wait::Waiting;
use super::{AcceptHook, Gone, MAX_PATHS, PATH_MTU_FOR, TcpEvent, TcpId};
use crate::packet::tcp::before;
use crate::stack::flows::Key;
use crate::stack::host::Host;
use crate::stack::path::Path;
use crate::stack::{BindError, OpenError, Unreachable};

/// Ports of connections we open: as many as there can be below the well-known ones (RFC 6056 §3.2).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 16_384..=65_535;
const EPHEMERAL_PORTS: u32 = 49_152;
/// `Writable` waits for so much of the ring.
const WRITABLE_PART: usize = 4;

impl Host {
    /// Connections to this address (`None`: to every one of ours) and port are for `listener`. One with an address comes
    /// before one without.
    pub fn tcp_listen(&mut self, address: Option<IpAddr>, port: u16, listener: u32) -> Result<(), BindError> {
        if port == 0 || address.is_some_and(|address| !self.addresses.is_local(address)) {
            return Err(BindError::NotLocal);
        }
        if self.tcp.listeners.contains_key(&(address, port)) {
            return Err(BindError::InUse);
        }
        self.tcp.listeners.insert((address, port), listener);
        self.tcp.listens_on_ephemeral |= EPHEMERAL.contains(&port);
        Ok(())
    }

    /// No new handshakes; those that have begun may still end well.
    pub fn tcp_unlisten(&mut self, address: Option<IpAddr>, port: u16) {
        self.tcp.listeners.remove(&(address, port));
    }

    /// `hook` is asked at each SYN for a listener from now on. Without one every SYN is welcome.
    pub fn tcp_accept_hook(&mut self, hook: Option<AcceptHook>) {
        self.tcp.hook = hook;
    }

    /// Begins connecting from an own address that leads to `remote`: the nearest first, any that has a port left.
    /// `Connected` or `Closed` is told; after `timeout` the latter.
    pub fn tcp_open(
        &mut self,
        remote: SocketAddr,
        owner: u32,
        timeout: Duration,
        now: Instant,
    ) -> Result<TcpId, OpenError> {
        self.tcp.see(now);
        if remote.port() == 0 || self.addresses.is_martian(remote.ip()) {
            return Err(OpenError::NoRoute);
        }
        if self.tcp.flows.is_full() {
            return Err(OpenError::TooMany);
        }
        let mut failed = OpenError::NoRoute;
        for route in self.addresses.routes(remote.ip()) {
            let key = Key::new(SocketAddr::new(route.source, 0), remote);
            let Some((key, isn)) = self.ephemeral(key) else {
                failed = OpenError::PortsExhausted;
                continue;
            };
            let give_up_at = self.tcp.after(timeout);
            let (path, mtu) = (Path::client(route), self.path_mtu(remote.ip()));
            let birth = Birth { key, path, stage: Stage::Connecting, owner, listener: 0, mtu, isn, give_up_at };
            let index = self.tcp.flows.insert(birth, &mut self.tcp.protocol).ok_or(OpenError::TooMany)?;
            self.tcp.flows.soil(index);
            return Ok(self.tcp.flows.id(index));
        }
        Err(failed)
    }

    /// A local port for `key`, and the first sequence number. Ports are taken in turn from a start that only we know of
    /// each remote address and port (RFC 6056 §3.3.3), so the next one is the one that was used longest ago. If it is
    /// still in TIME-WAIT it is used again beyond its old sequence numbers: the peer, which ended first or has our last
    /// acknowledgement, knows by them that it is a new connection.
    fn ephemeral(&mut self, key: Key) -> Option<(Key, u32)> {
        let Self { tcp, counters, .. } = self;
        let taken = tcp.flows.outgoing.get(&key.pair()).copied().unwrap_or(0);
        if taken >= EPHEMERAL_PORTS as usize {
            return None;
        }
        let start = tcp.secret.keyed(key.pair()) as u32;
        let source = key.local().ip();
        let key = (0..EPHEMERAL_PORTS).find_map(|_| {
            tcp.next_port = tcp.next_port.wrapping_add(1);
            let port = EPHEMERAL.start() + (start.wrapping_add(tcp.next_port) % EPHEMERAL_PORTS) as u16;
            let listens = tcp.listens_on_ephemeral
                && (tcp.listeners.contains_key(&(None, port)) || tcp.listeners.contains_key(&(Some(source), port)));
            Some(key.with_local_port(port)).filter(|key| !listens && tcp.flows.find(key).is_none())
        })?;
        let mut isn = tcp.isn(&key);
        if let Some(old) = tcp.time_wait.remove(&key) {
            counters.tcp_time_wait_reused += 1;
            if before(isn, old.send_next) {
                isn = old.send_next.wrapping_add(1 << 16);
            }
        }
        Some((key, isn))
    }

    /// The owner number of an accepted connection: later events carry it. `false`: it is gone already.
    pub fn tcp_adopt(&mut self, id: TcpId, owner: u32) -> bool {
        let Some(flow) = self.tcp.flows.get_mut(id).filter(|flow| flow.stage == Stage::Accepted) else {
            return false;
        };
        (flow.stage, flow.owner) = (Stage::Open, owner);
        self.tcp.flows.touch(id.index);
        true
    }

    /// Queues bytes; how many were taken. When fewer than all, `Writable` is told later. 0: the connection is gone.
    #[inline]
    pub fn tcp_send(&mut self, id: TcpId, bytes: &[u8]) -> usize {
        let Some(flow) = self.tcp.flows.owned(id) else { return 0 };
        let taken = if flow.ends { 0 } else { Smoltcp::queue(&mut flow.engine, bytes) };
        flow.blocked = taken < bytes.len();
        if taken > 0 {
            self.tcp.flows.soil(id.index);
        }
        taken
    }

    /// How much `tcp_send` would take now.
    pub fn tcp_room(&self, id: TcpId) -> usize {
        self.tcp
            .flows
            .get(id)
            .filter(|flow| flow.has_owner() && !flow.ends)
            .map_or(0, |flow| Smoltcp::room(&flow.engine))
    }

    /// `Writable` is told when there is room.
    pub fn tcp_want_room(&mut self, id: TcpId) {
        if let Some(flow) = self.tcp.flows.owned(id) {
            flow.blocked = true;
            self.tcp.flows.touch(id.index);
        }
    }

    /// Shows the first contiguous bytes that have come (none, if so); `take` returns how many it takes, and a result. The
    /// ring may wrap: call it until nothing is shown. What is not taken keeps the window from opening. `None`: the
    /// connection is gone.
    #[inline]
    pub fn tcp_receive<R>(&mut self, id: TcpId, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        let flow = self.tcp.flows.get_mut(id)?;
        let before = Smoltcp::unread(&flow.engine);
        let result = Smoltcp::take(&mut flow.engine, take);
        let taken = before - Smoltcp::unread(&flow.engine);
        if taken > 0 {
            flow.taken = flow.taken.wrapping_add(taken as u32);
            // The window has grown; whether that is worth telling is the engine's to say.
            self.tcp.flows.soil(id.index);
        }
        Some(result)
    }

    /// `Readable` is told again if there is anything to read.
    pub fn tcp_want_data(&mut self, id: TcpId) {
        if self.tcp.flows.get(id).is_some() {
            self.tcp.flows.touch(id.index);
        }
    }

    /// The peer has ended, and every byte before its end has been taken.
    #[inline]
    pub fn tcp_ended(&self, id: TcpId) -> bool {
        self.tcp.flows.get(id).is_some_and(|flow| {
            let state = Smoltcp::state(&flow.engine);
            matches!(state, State::CloseWait | State::Closing | State::LastAck | State::TimeWait | State::Closed)
                && Smoltcp::unread(&flow.engine) == 0
        })
    }

    /// Half-close: a FIN after what is queued.
    pub fn tcp_end(&mut self, id: TcpId) {
        if let Some(flow) = self.tcp.flows.owned(id) {
            flow.end();
            self.tcp.flows.soil(id.index);
        }
    }

    /// Orderly close after what is queued. Unread bytes make it a reset: the peer shall not believe that they were read
    /// (RFC 1122 §4.2.2.13).
    pub fn tcp_close(&mut self, id: TcpId) {
        let Some(flow) = self.tcp.flows.get_mut(id) else { return };
        // What was queued before leaves first; see `tcp_events`.
        if Smoltcp::unread(&flow.engine) > 0 && flow.has_sent_all() {
            return self.tcp_abort(id);
        }
        if matches!(flow.stage, Stage::Lost(_) | Stage::Dead) {
            flow.stage = Stage::Dead;
        } else {
            flow.give_up_at = super::flows::NEVER;
            flow.end();
            self.tcp.flows.orphan(id.index);
        }
        self.tcp.flows.soil(id.index);
    }

    /// A newcomer is in. Who was closed here and does not end has no owner any more, so nobody else counts these.
    fn make_room(&mut self) {
        if self.tcp.flows.orphans() > self.tcp.config.max_orphans
            && let Some(oldest) = self.tcp.flows.oldest_orphan()
        {
            self.counters.tcp_orphans_evicted += 1;
            Smoltcp::abort(&mut self.tcp.flows.at(oldest).engine);
            self.tcp.flows.soil(oldest);
        }
    }

    /// Resets the connection, unless its peer has not answered at all.
    pub fn tcp_abort(&mut self, id: TcpId) {
        let Some(flow) = self.tcp.flows.get_mut(id) else { return };
        let has_peer = Smoltcp::state(&flow.engine) != State::SynSent;
        if has_peer && !matches!(flow.stage, Stage::Lost(_) | Stage::Dead) {
            Smoltcp::abort(&mut flow.engine);
            self.tcp.flows.orphan(id.index);
        } else {
            flow.stage = Stage::Dead;
        }
        self.tcp.flows.soil(id.index);
    }

    /// `None`: the connection is gone.
    pub fn tcp_local(&self, id: TcpId) -> Option<SocketAddr> {
        self.tcp.flows.get(id).map(|flow| flow.key.local())
    }

    /// `None`: the connection is gone.
    pub fn tcp_remote(&self, id: TcpId) -> Option<SocketAddr> {
        self.tcp.flows.get(id).map(|flow| flow.key.remote())
    }

    /// Appends what has become of the touched connections.
    pub fn tcp_events(&mut self, events: &mut Vec<TcpEvent>) {
        if self.tcp.flows.touched.is_empty() {
            return;
        }
        let mut touched = std::mem::take(&mut self.tcp.flows.touched);
        for id in touched.drain(..) {
            let Some(flow) = self.tcp.flows.get_mut(id) else { continue };
            flow.touched = false;
            let state = Smoltcp::state(&flow.engine);
            match flow.stage {
                Stage::HalfOpen if state.is_synchronized() => {
                    flow.stage = Stage::Accepted;
                    let (listener, remote) = (flow.listener, flow.key.remote().ip());
                    let Self { tcp, counters, .. } = self;
                    let flows = &tcp.flows;
                    let still = |id| flows.get(id).is_some_and(|flow| flow.stage == Stage::HalfOpen);
                    tcp.half_open.end(listener, remote, still);
                    counters.tcp_accepted += 1;
                    events.push(TcpEvent::Accepted { id, listener });
                    self.make_room();
                    continue;
                }
                Stage::HalfOpen if matches!(state, State::Closed | State::Listen) => {
                    self.forget(id.index);
                    continue;
                }
                Stage::Connecting if state.is_synchronized() => {
                    flow.stage = Stage::Open;
                    self.counters.tcp_connected += 1;
                    events.push(TcpEvent::Connected { id, owner: flow.owner });
                }
                _ => {}
            }
            let Some(flow) = self.tcp.flows.get_mut(id) else { continue };
            let owner = flow.owner;
            match flow.stage {
                Stage::Open => {
                    let ended = !matches!(state, State::Established | State::FinWait1 | State::FinWait2);
                    if ended || Smoltcp::unread(&flow.engine) > 0 {
                        events.push(TcpEvent::Readable { id, owner });
                    }
                    if flow.blocked
                        && Smoltcp::room(&flow.engine) >= (Smoltcp::unacknowledged(&flow.engine) / WRITABLE_PART).max(1)
                    {
                        flow.blocked = false;
                        events.push(TcpEvent::Writable { id, owner });
                    }
                }
                Stage::Lost(reason) => {
                    if Smoltcp::unread(&flow.engine) > 0 {
                        events.push(TcpEvent::Readable { id, owner });
                    }
                    events.push(TcpEvent::Closed { id, owner, reason });
                    flow.stage = Stage::Dead;
                    self.tcp.flows.soil(id.index);
                }
                Stage::Orphan => match state {
                    State::Closed | State::TimeWait => self.tcp.flows.soil(id.index),
                    _ if Smoltcp::unread(&flow.engine) > 0 && flow.has_sent_all() => {
                        // Nobody will read it: the peer must not believe that somebody does.
                        self.counters.tcp_closed_with_data += 1;
                        Smoltcp::abort(&mut flow.engine);
                        self.tcp.flows.soil(id.index);
                    }
                    _ => {}
                },
                Stage::HalfOpen | Stage::Accepted | Stage::Connecting | Stage::Dead => {}
            }
        }
        if self.tcp.flows.touched.is_empty() {
            self.tcp.flows.touched = touched;
        }
    }

    /// The connection broke: its owner is to be told.
    pub(super) fn lose(&mut self, index: u32, reason: Gone) {
        let flow = self.tcp.flows.at(index);
        flow.stage = Stage::Lost(reason);
        self.tcp.flows.touch(index);
    }

    /// The connection is over, and nobody is to be told.
    pub(super) fn forget(&mut self, index: u32) {
        let Self { tcp, .. } = self;
        let flow = tcp.flows.at(index);
        let half_open = (flow.stage == Stage::HalfOpen).then(|| (flow.listener, flow.key.remote().ip()));
        tcp.flows.remove(index);
        if let Some((listener, remote)) = half_open {
            let flows = &tcp.flows;
            tcp.half_open.end(listener, remote, |id| flows.get(id).is_some_and(|flow| flow.stage == Stage::HalfOpen));
        }
    }

    /// The connection has ended well; TIME-WAIT may follow.
    pub(super) fn retire(&mut self, index: u32) {
        let Self { tcp, counters, .. } = self;
        let flow = tcp.flows.at(index);
        if Smoltcp::state(&flow.engine) == State::TimeWait {
            let next = flow.receive_next();
            let waiting = Waiting { send_next: flow.sent_end, receive_next: next };
            let evicted = tcp.time_wait.begin(flow.key, waiting, tcp.now);
            counters.tcp_time_wait_evicted += u64::from(evicted);
        }
        self.forget(index);
    }

    /// A neighbour's link address became known: whoever waits for one looks again.
    pub(in crate::stack) fn tcp_neighbour_heard(&mut self) {
        for id in std::mem::take(&mut self.tcp.unresolved) {
            if self.tcp.flows.get(id).is_some() {
                self.tcp.flows.soil(id.index);
            }
        }
    }

    /// These never answered.
    pub(in crate::stack) fn tcp_neighbours_lost(&mut self, lost: &[IpAddr]) {
        if lost.is_empty() {
            return;
        }
        for id in std::mem::take(&mut self.tcp.unresolved) {
            let Some(flow) = self.tcp.flows.get(id) else { continue };
            let is_lost = flow.path.next_hop.is_none_or(|(next_hop, _)| lost.contains(&next_hop));
            if is_lost && flow.stage == Stage::Connecting {
                self.counters.drop_unreachable += 1;
                self.lose(id.index, Gone::Unreachable(Unreachable::Host));
            } else {
                // It asks again while it has something to send.
                self.tcp.flows.soil(id.index);
            }
        }
    }

    /// A router said "too big" of a segment that was on its way (RFC 5927 §7.2): the connection sends shorter ones, and
    /// so do new ones to that address.
    pub(in crate::stack) fn tcp_too_big(&mut self, key: &Key, sequence: u32, mtu: usize) -> bool {
        let Some(index) = self.tcp.flows.find(key) else { return false };
        let flow = self.tcp.flows.at(index);
        let in_flight = !before(sequence, flow.ack_in) && before(sequence, flow.sent_end);
        if !in_flight {
            return false;
        }
        // Where links carry even less than every host must take, IPv4 routers may fragment.
        let least = if key.is_v4() { 576 } else { crate::packet::ipv6::MINIMUM_MTU };
        flow.dont_fragment &= mtu >= least;
        let mtu = plateau(mtu.max(least));
        if mtu < usize::from(flow.mtu) {
            flow.mtu = mtu as u16;
            self.counters.flow_path_mtu_lowered += 1;
            self.tcp.flows.soil(index);
            if self.tcp.paths.len() >= MAX_PATHS {
                let now = self.tcp.now;
                self.tcp.paths.retain(|_, &mut (_, until)| until > now);
            }
            if self.tcp.paths.len() < MAX_PATHS {
                self.tcp.paths.insert(key.remote().ip(), (mtu as u16, self.tcp.after(PATH_MTU_FOR)));
            }
        }
        true
    }

    /// An ICMP error about a connection that is being made ends it; later ones are not believed (RFC 5461).
    pub(in crate::stack) fn tcp_unreachable(&mut self, key: &Key, sequence: u32, reason: Unreachable) -> bool {
        let Some(index) = self.tcp.flows.find(key) else { return false };
        let flow = self.tcp.flows.at(index);
        if flow.stage != Stage::Connecting || sequence != flow.isn {
            return false;
        }
        self.lose(index, Gone::Unreachable(reason));
        true
    }

    pub(super) fn path_mtu(&self, remote: IpAddr) -> u16 {
        if self.tcp.paths.is_empty() {
            return self.mtu;
        }
        let known = self.tcp.paths.get(&remote).filter(|&&(_, until)| until > self.tcp.now);
        known.map_or(self.mtu, |&(mtu, _)| mtu.min(self.mtu))
    }
}

/// The largest MTU of a few that is not above this one: peers shall not make us tell apart as many as there are
/// (RFC 1191 §7). What every host must take is one of them.
const fn plateau(mtu: usize) -> usize {
    mtu & !((1 << (usize::BITS - mtu.leading_zeros()).saturating_sub(6)) - 1)
}
