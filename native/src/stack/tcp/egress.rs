//! Segments on their way out: real sequence numbers, checksum, headers; and when to look at a connection again.

use std::net::SocketAddr;
use std::time::Instant;

use super::flows::{Flow, NEVER, Stage};
use super::protocol::{Protocol, State};
use super::smoltcp::Smoltcp;
use super::{Gone, TcpId, micros};
use crate::packet::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::packet::ethernet::{self, Mac};
use crate::packet::tcp::{self, Bare, Segment, before, flags};
use crate::packet::{ipv4, ipv6, protocol};
use crate::port::{Port, Sent};
use crate::stack::counters::Counters;
use crate::stack::flows::Key;
use crate::stack::host::Host;
use crate::stack::path::Resolved;

/// A port that was full is tried again after as many microseconds as it has been, within these: no peer says that it has
/// taken something, and one that takes nothing shall not keep us awake.
const FULL_AGAIN: (u64, u64) = (200, 10_000);
/// A connection that sends nothing but acknowledgements at once is tried again after so many microseconds.
const EMPTY_AGAIN: u64 = 200_000;
/// Bytes are unacknowledged and the engine waits for nothing (it forgets its timer when it has probed a window that was
/// shut): after so many timeouts it is made to send again.
const STRANDED_RTOS: u64 = 2;
/// How many times longer an owner's peer may be silent whose window is shut.
const SHUT_PATIENCE: u64 = 4;
/// Probes without an answer before a silent peer is given up.
const PROBES: u64 = 4;

impl Host {
    /// Every touched connection sends what it has to.
    pub fn tcp_flush(&mut self, now: Instant, port: &mut dyn Port) {
        self.tcp.see(now);
        self.tcp.again_at = None;
        if self.tcp.flows.dirty.is_empty() {
            return;
        }
        let mut dirty = std::mem::take(&mut self.tcp.flows.dirty);
        let (mut done, mut room) = (0, port.room());
        for &id in &dirty {
            if self.tcp.flows.get(id).is_some() && !self.send_from(id, &mut room, now, port) {
                let now = self.tcp.now;
                let since = if done > 0 { now } else { self.tcp.full_since.unwrap_or(now) };
                self.tcp.full_since = Some(since);
                self.tcp.again_at = Some(now + (now - since).clamp(FULL_AGAIN.0, FULL_AGAIN.1));
                break;
            }
            done += 1;
        }
        if self.tcp.again_at.is_none() {
            self.tcp.full_since = None;
        }
        dirty.drain(..done);
        // What was soiled meanwhile comes after what was not reached.
        dirty.append(&mut self.tcp.flows.dirty);
        self.tcp.flows.dirty = dirty;
        self.tcp.flows.tidy_dirty();
    }

    /// `false`: the port is full, the connection stays dirty.
    pub(super) fn send_from(&mut self, id: TcpId, room: &mut usize, now: Instant, port: &mut dyn Port) -> bool {
        let index = id.index;
        let Self { tcp, neighbours, .. } = self;
        let flow = tcp.flows.at(index);
        match flow.stage {
            Stage::Dead => {
                self.forget(index);
                return true;
            }
            // The peer has reset it: nothing is sent any more.
            Stage::Lost(_) if Smoltcp::state(&flow.engine) != State::Closed => {
                flow.dirty = false;
                return true;
            }
            _ => {}
        }
        match flow.path.resolve(neighbours, now) {
            Resolved::Known(None) => {}
            Resolved::Known(Some(solicit)) => self.solicit(solicit, port),
            Resolved::Unknown => {
                flow.dirty = false;
                if let Some((next_hop, source)) = flow.path.next_hop
                    && let Ok(solicit) = neighbours.ask(next_hop, source, now, &mut self.counters)
                {
                    tcp.unresolved.push(id);
                    if let Some(solicit) = solicit {
                        self.solicit(solicit, port);
                    }
                }
                self.schedule(index, None);
                return true;
            }
        }
        let Self { tcp, .. } = self;
        let flow = tcp.flows.at(index);
        let mtu = flow.engine_mtu();
        let mut empty = 0;
        let next = loop {
            // The engine's TIME-WAIT would end without regard to what is unread; ours begins when the owner has closed.
            if Smoltcp::state(&flow.engine) == State::TimeWait {
                break None;
            }
            if !has_room(room, port) {
                return false;
            }
            let sent = tcp.protocol.transmit(&mut flow.engine, mtu, tcp.now);
            let has_sent = sent.is_some();
            if let Some(segment) = sent {
                *room -= 1;
                empty += u32::from(Segment::new_own(segment).span() == 0);
                put(flow, segment, self.mac, &mut self.counters, port);
            }
            match tcp.protocol.deadline(&flow.engine, mtu, tcp.now) {
                // A peer that shrinks its window can make the engine see bytes to send and send none, for ever.
                Some(at) if at <= tcp.now && empty > 1 => break Some(tcp.now + EMPTY_AGAIN),
                Some(at) if at <= tcp.now && has_sent => {}
                // What is due turned out to be nothing: it can wait.
                Some(at) if at <= tcp.now => break Some(tcp.now + 1_000),
                _ if flow.ends_now() => {}
                next => break next,
            }
        };
        let state = Smoltcp::state(&flow.engine);
        let is_orphan = flow.stage == Stage::Orphan;
        // The engine puts off the acknowledgement of a last segment with data.
        if state == State::TimeWait && flow.ack_sent != flow.receive_next() {
            if !has_room(room, port) {
                return false;
            }
            *room -= 1;
            self.acknowledge(index, port);
        }
        self.tcp.flows.at(index).dirty = false;
        if is_orphan && matches!(state, State::Closed | State::TimeWait) {
            self.retire(index);
            return true;
        }
        self.schedule(index, next);
        true
    }

    /// When the connection must be looked at again: `next` says the engine, or earlier when the peer is given up.
    fn schedule(&mut self, index: u32, next: Option<u64>) {
        let Self { tcp, .. } = self;
        let flow = tcp.flows.at(index);
        let state = Smoltcp::state(&flow.engine);
        let waits = match state {
            State::SynSent | State::SynReceived | State::FinWait1 | State::Closing | State::LastAck => true,
            State::FinWait2 => flow.stage == Stage::Orphan,
            State::TimeWait | State::Closed | State::Listen => false,
            State::Established | State::CloseWait => Smoltcp::unacknowledged(&flow.engine) > 0,
        };
        if !waits {
            flow.give_up_at = NEVER;
        } else if flow.give_up_at == NEVER {
            // Probes of a shut window are far apart, and some of them may be lost.
            let patience = if flow.window_in == 0 && flow.stage == Stage::Open { SHUT_PATIENCE } else { 1 };
            flow.give_up_at = tcp.now + patience * micros(tcp.config.user_timeout);
        }
        // A TIME-WAIT of the engine is not waited for: it ends with its owner.
        let is_over = matches!(state, State::TimeWait | State::Closed);
        let has_fin = matches!(state, State::FinWait1 | State::Closing | State::LastAck);
        flow.is_stranded = next.is_none() && (has_fin || !is_over && Smoltcp::unacknowledged(&flow.engine) > 0);
        let next = match next {
            None if flow.is_stranded => tcp.now + STRANDED_RTOS * micros(tcp.config.rto),
            next => next.filter(|_| !is_over).unwrap_or(NEVER),
        };
        let ask_at = if waits && state.is_synchronized() {
            flow.recovery.time(flow.ack_in, flow.sent_end, tcp.now);
            flow.recovery.wait(flow.ack_in, flow.sent_end, tcp.now)
        } else {
            None
        };
        let next = next.min(flow.give_up_at).min(ask_at.unwrap_or(NEVER));
        if next < flow.wheel_at {
            let id = TcpId { index, serial: flow.serial };
            flow.wheel_at = tcp.wheel.insert(id, next);
        }
    }

    /// Retransmissions, acknowledgements that were put off, probes; peers and neighbours that are given up.
    pub(in crate::stack) fn tcp_on_timer(&mut self, now: Instant, port: &mut dyn Port) {
        let mut due = std::mem::take(&mut self.tcp.due);
        self.tcp.see(now);
        let time = self.tcp.now;
        self.tcp.wheel.fire(time, &mut due);
        let silence = self.tcp.config.keep_alive.map(|every| micros(every) * PROBES);
        for id in due.drain(..) {
            let Some(flow) = self.tcp.flows.get_mut(id) else { continue };
            if flow.wheel_at > time {
                continue;
            }
            flow.wheel_at = NEVER;
            let is_silent = silence.is_some_and(|silence| {
                Smoltcp::state(&flow.engine).is_synchronized() && time >= flow.heard_at + silence
            });
            if time >= flow.give_up_at || is_silent {
                self.counters.tcp_timeout += 1;
                self.give_up(id.index);
            } else {
                if flow.is_stranded || flow.recovery.asks(flow.ack_in, flow.sent_end, time) {
                    self.send_again(id.index, port);
                }
                self.tcp.flows.soil(id.index);
            }
        }
        self.tcp.due = due;
        self.tcp.time_wait.expire(time);
        self.tcp_flush(now, port);
    }

    /// The peer took too long: it gets a reset if it ever was there, the owner a reason.
    fn give_up(&mut self, index: u32) {
        let flow = self.tcp.flows.at(index);
        match flow.stage {
            Stage::HalfOpen => return self.forget(index),
            Stage::Connecting => self.lose(index, Gone::TimedOut),
            Stage::Accepted | Stage::Open => {
                Smoltcp::abort(&mut flow.engine);
                self.lose(index, Gone::TimedOut);
            }
            Stage::Orphan => Smoltcp::abort(&mut flow.engine),
            Stage::Lost(_) | Stage::Dead => {}
        }
        self.tcp.flows.soil(index);
    }

    /// A segment of our own making, not of a connection's engine.
    pub(super) fn put_bare(&mut self, key: &Key, bare: &Bare, to: Mac, port: &mut dyn Port) {
        let segment = bare.emit(pseudo(key));
        count(send(key, true, to, self.mac, &segment, port), &mut self.counters);
    }
}

/// Whether the port takes a segment: `room` is what it was known to take, and less what it took since.
#[inline]
fn has_room(room: &mut usize, port: &mut dyn Port) -> bool {
    if *room == 0 {
        *room = port.room();
    }
    *room > 0
}

/// Sends one segment of a connection's engine.
pub(super) fn put(flow: &mut Flow, segment: &mut [u8], mac: Mac, counters: &mut Counters, port: &mut dyn Port) {
    let head = Segment::new_own(segment);
    let has = |flag| head.has(flag);
    let (is_syn, is_reset, has_ack) = (has(flags::SYN), has(flags::RST), has(flags::ACK));
    let (span, acknowledgement, window) = (head.span(), head.acknowledgement(), head.window());
    if is_syn {
        if !flow.synced {
            flow.synced = true;
            flow.delta = flow.isn.wrapping_sub(head.sequence());
        }
        flow.offered_shift = head.window_scale().unwrap_or(0);
        if has_ack && head.window_scale().is_none() {
            flow.shift = 0;
        } else if has_ack {
            flow.shift = flow.offered_shift;
        }
    }
    let sequence = match span {
        // RFC 9293 §3.10.7.4: SND.NXT, also while the engine sends again what was lost. Two ends that both do would else
        // refuse each other's acknowledgements, as old, for ever; and so a reset (§3.10.5). What was sent beyond the peer's
        // window does not count.
        0 if has_ack => {
            let edge = flow.ack_in.wrapping_add(flow.peer_window());
            if before(edge, flow.sent_end) { edge } else { flow.sent_end }
        }
        _ => head.sequence().wrapping_add(flow.delta),
    };
    let is_again = span > 0 && before(sequence, flow.sent_end);
    // The number of a reset that answers a stranger is the stranger's: what takes no number moves none.
    if span > 0 {
        let end = sequence.wrapping_add(span);
        counters.tx_tcp_retransmission += u64::from(is_again);
        if before(flow.sent_end, end) {
            flow.sent_end = end;
        }
    }
    flow.recovery.sent(span, is_again && sequence == flow.ack_in, flow.sent_end);
    if has_ack && !is_reset {
        flow.ack_sent = acknowledgement;
        let shift = if is_syn { 0 } else { flow.shift };
        let edge = acknowledgement.wrapping_add(u32::from(window) << shift);
        if before(flow.edge, edge) || is_syn {
            flow.edge = edge;
        }
    } else if is_syn {
        // Of no use before the peer's first sequence number is known, which is added to it then.
        flow.edge = u32::from(window);
    }
    counters.tx_tcp_reset += u64::from(is_reset);
    tcp::set_sequence(segment, sequence);
    tcp::fill_checksum(segment, pseudo(&flow.key));
    count(send(&flow.key, flow.dont_fragment, flow.path.mac, mac, segment, port), counters);
}

fn count(sent: Sent, counters: &mut Counters) {
    match sent {
        Sent::Queued => counters.tx_tcp += 1,
        Sent::Full | Sent::TooLong | Sent::Down => counters.drop_port += 1,
    }
}

fn send(key: &Key, dont_fragment: bool, to: Mac, mac: Mac, segment: &[u8], port: &mut dyn Port) -> Sent {
    match (key.local(), key.remote()) {
        (SocketAddr::V4(local), SocketAddr::V4(remote)) => {
            let fragment = ipv4::Fragment { dont_fragment, ..ipv4::Fragment::WHOLE };
            let mut header = [0; ethernet::HEADER + ipv4::HEADER];
            header[..14].copy_from_slice(&ethernet::emit(to, mac, ethernet::IPV4));
            let ip = ipv4::emit(*local.ip(), *remote.ip(), protocol::TCP, segment.len(), fragment);
            header[14..].copy_from_slice(&ip);
            port.send(&[&header, segment])
        }
        (SocketAddr::V6(local), SocketAddr::V6(remote)) => {
            let mut header = [0; ethernet::HEADER + ipv6::HEADER];
            header[..14].copy_from_slice(&ethernet::emit(to, mac, ethernet::IPV6));
            let ip = ipv6::emit(*local.ip(), *remote.ip(), protocol::TCP, segment.len(), ipv6::HOP_LIMIT);
            header[14..].copy_from_slice(&ip);
            port.send(&[&header, segment])
        }
        _ => Sent::TooLong,
    }
}

/// The pseudo-header of what we send.
fn pseudo(key: &Key) -> Sum {
    match (key.local(), key.remote()) {
        (SocketAddr::V4(local), SocketAddr::V4(remote)) => pseudo_v4(*local.ip(), *remote.ip(), protocol::TCP),
        (SocketAddr::V6(local), SocketAddr::V6(remote)) => pseudo_v6(*local.ip(), *remote.ip(), protocol::TCP),
        _ => Sum::ZERO,
    }
}
