//! Segments on their way in: whose they are, and what must not reach a connection.
//!
//! Resets and SYNs are judged here by RFC 5961: only a reset at exactly the next sequence number ends a connection, one
//! elsewhere in the window and any SYN are challenged. Urgent data is ordinary data (RFC 6093).

use std::net::IpAddr;
use std::time::Instant;

use super::egress::put;
use super::flows::{Birth, NEVER, Stage};
use super::protocol::{HEADROOM, Protocol, State};
use super::recovery::Heard;
use super::smoltcp::Smoltcp;
use super::{Gone, Knock, Welcome};
use crate::packet::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::packet::tcp::{self, Bare, Segment, before, flags};
use crate::packet::{Malformed, Slot, protocol};
use crate::port::Port;
use crate::stack::Input;
use crate::stack::flows::{Key, bits};
use crate::stack::host::{Envelope, Host, Link};
use crate::stack::path::Path;

/// A connection is challenged at most once in so many microseconds (RFC 5961 §7), or two ends out of step would
/// acknowledge each other for ever.
const CHALLENGE_EVERY: u64 = 20_000;

/// What the demultiplexer needs of a segment.
#[derive(Clone, Copy, Debug)]
struct Head {
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    /// Of a SYN.
    scale: Option<u8>,
    span: u32,
    payload: usize,
    /// How many bytes beyond the acknowledgement it reports, and one past the last of them (RFC 2018).
    selective: Option<(u32, u32)>,
}

impl Head {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// What a segment reports beyond its acknowledgement. What it reports below is of no interest (RFC 2883).
#[cold]
fn selective(segment: &Segment) -> Option<(u32, u32)> {
    let from = segment.acknowledgement();
    segment
        .selective()
        .filter(|&(first, end)| before(from, first) && before(first, end))
        .map(|(first, end)| (end.wrapping_sub(first), end))
        .reduce(|(bytes, last), (more, end)| (bytes.saturating_add(more), if before(last, end) { end } else { last }))
}

impl Host {
    #[inline]
    pub(in crate::stack) fn tcp(
        &mut self,
        mut packet: Slot,
        envelope: Envelope,
        link: Link,
        now: Instant,
        port: &mut dyn Port,
    ) -> Input {
        let pseudo = match (envelope.source, envelope.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => pseudo_v4(source, destination, protocol::TCP),
            (IpAddr::V6(source), IpAddr::V6(destination)) => pseudo_v6(source, destination, protocol::TCP),
            _ => return Input::Consumed,
        };
        let segment = match Segment::new_checked(&packet[envelope.at..envelope.end], pseudo) {
            Ok(segment) => segment,
            Err(malformed) => return self.drop_tcp(malformed),
        };
        let key = Key {
            local: bits(envelope.destination),
            remote: bits(envelope.source),
            ports: u32::from(segment.destination_port()) << 16 | u32::from(segment.source_port()),
        };
        let head = Head {
            sequence: segment.sequence(),
            acknowledgement: segment.acknowledgement(),
            flags: segment.flags(),
            window: segment.window(),
            scale: if segment.has(flags::SYN) { segment.window_scale() } else { None },
            span: segment.span(),
            payload: segment.payload_len(),
            selective: if segment.header_len() > tcp::HEADER { selective(&segment) } else { None },
        };
        self.tcp.see(now);
        let found = self.tcp.flows.find(&key);
        let found = if head.has(flags::SYN) { self.make_way(found, now, port) } else { found };
        match found {
            // The connection's addresses were checked when it was made. Where a frame was sent was not.
            Some(index) if link.destination == self.mac || self.is_for_us(&envelope, link) => {
                self.counters.rx_tcp += 1;
                let bytes = &mut packet[envelope.at - HEADROOM..envelope.end];
                self.segment(index, head, bytes, link, now, port);
            }
            Some(_) => {}
            None => {
                if self.is_for_us(&envelope, link) {
                    self.counters.rx_tcp += 1;
                    let bytes = &mut packet[envelope.at - HEADROOM..envelope.end];
                    self.stranger(key, head, bytes, link, now, port);
                }
            }
        }
        Input::Consumed
    }

    /// Where a connection is over and only waits to be swept up, a SYN is for the next one: its port is used again.
    fn make_way(&mut self, found: Option<u32>, now: Instant, port: &mut dyn Port) -> Option<u32> {
        let index = found?;
        let flow = self.tcp.flows.at(index);
        let has_ended = matches!(Smoltcp::state(&flow.engine), State::Closed | State::TimeWait);
        if flow.stage != Stage::Dead && !(flow.stage == Stage::Orphan && has_ended) {
            return found;
        }
        let key = flow.key;
        let id = self.tcp.flows.id(index);
        self.send_from(id, &mut port.room(), now, port);
        self.tcp.flows.find(&key)
    }

    #[cold]
    fn drop_tcp(&mut self, malformed: Malformed) -> Input {
        if malformed == Malformed::Checksum {
            self.counters.drop_tcp_checksum += 1;
            return Input::Consumed;
        }
        self.drop_malformed(malformed)
    }

    /// A segment for a connection that exists.
    fn segment(&mut self, index: u32, mut head: Head, bytes: &mut [u8], link: Link, now: Instant, port: &mut dyn Port) {
        let flow = self.tcp.flows.at(index);
        let state = Smoltcp::state(&flow.engine);
        let window_before = flow.window_in;
        // Wholly before what is expected: the engine answers it, and believes nothing that it says (RFC 9293 §3.10.7.4).
        let mut is_old = false;
        if head.has(flags::RST) {
            return self.reset(index, state, head, port);
        }
        if matches!(flow.stage, Stage::Lost(_) | Stage::Dead) {
            return;
        }
        // Over, and not swept up yet: its owner still holds it, or the port is full. The engine would refuse a SYN for the
        // next connection; unanswered, it comes again.
        if state == State::Closed {
            self.counters.drop_tcp_time_wait += 1;
            return;
        }
        if state.is_synchronized() {
            if head.has(flags::SYN) {
                self.counters.drop_tcp_syn += 1;
                return self.challenge(index, port);
            }
            if !head.has(flags::ACK) {
                self.counters.drop_tcp_flags += 1;
                return;
            }
            let next = flow.receive_next();
            let last = head.sequence.wrapping_add(head.span);
            // Neither old nor beyond the window (RFC 9293 §3.10.7.4). What is old is acknowledged again by the engine.
            if before(flow.edge, head.sequence)
                || (head.span > 0 && !before(head.sequence, flow.edge) && flow.edge != next)
            {
                self.counters.drop_tcp_window += 1;
                return self.challenge(index, port);
            }
            is_old = before(head.sequence, next) && !before(next, last);
            if head.span > 0 && !before(next, last) {
                self.counters.rx_tcp_duplicate += 1;
            }
            // RFC 5961 §5.2: what acknowledges what was never sent is challenged, and what is behind by more than can have
            // been on its way.
            let behind = flow.ack_in.wrapping_sub(head.acknowledgement);
            let is_ancient =
                before(head.acknowledgement, flow.ack_in) && behind as usize > Smoltcp::capacity(&flow.engine);
            if before(flow.sent_end, head.acknowledgement) || is_ancient {
                self.counters.drop_tcp_ack += 1;
                return self.challenge(index, port);
            }
            if before(head.acknowledgement, flow.ack_in) {
                if head.payload == 0 && !head.has(flags::FIN) {
                    return;
                }
                // Overtaken on its way: its bytes are good, what it says of ours is out of date.
                head.acknowledgement = flow.ack_in;
                tcp::set_window(&mut bytes[HEADROOM..], flow.window_in);
            } else if !is_old {
                flow.window_in = head.window;
            }
        } else if head.has(flags::SYN) {
            if head.has(flags::ACK) && state != State::SynSent {
                let answers_ours = head.sequence == flow.irs && head.acknowledgement == flow.sent_end && head.span == 1;
                if flow.stage != Stage::Connecting || !answers_ours {
                    return;
                }
                // Both opened at once (RFC 9293 §3.5, figure 8): the SYN is known, the acknowledgement is what counts.
                flow.window_in = head.window >> flow.peer_shift;
                let segment = &mut bytes[HEADROOM..];
                tcp::set_sequence(segment, flow.irs.wrapping_add(1));
                tcp::set_window(segment, flow.window_in);
                tcp::clear_syn(segment);
            }
            if state == State::SynSent && (!head.has(flags::ACK) || head.acknowledgement == flow.sent_end) {
                flow.irs = head.sequence;
                // Until now it was the window of our SYN.
                flow.edge = flow.irs.wrapping_add(flow.edge);
                flow.shift = if head.scale.is_some() { flow.offered_shift } else { 0 };
                tcp::clamp_mss(&mut bytes[HEADROOM..], flow.mss());
                // That of a SYN is not scaled (RFC 7323 §2.2).
                flow.peer_shift = head.scale.unwrap_or(0);
                flow.window_in = head.window >> flow.peer_shift;
            }
        } else if head.has(flags::ACK) && head.acknowledgement == flow.sent_end {
            flow.window_in = head.window;
        }
        flow.path.heard(link.source, &mut self.neighbours, now);
        flow.heard_at = self.tcp.now;
        let progress = !is_old && before(flow.ack_in, head.acknowledgement);
        // RFC 5681 §2; with a report of what came behind a hole it is one whatever its window says (RFC 6675 §2).
        let is_duplicate = !is_old
            && head.acknowledgement == flow.ack_in
            && head.span == 0
            && before(flow.ack_in, flow.sent_end)
            && (head.window == window_before || head.selective.is_some());
        let heard = match (progress, is_duplicate) {
            (true, _) => Some(Heard::Progress),
            (false, true) => Some(Heard::Duplicate(head.selective)),
            (false, false) => None,
        };
        if head.has(flags::ACK) && progress && !before(flow.sent_end, head.acknowledgement) {
            flow.ack_in = head.acknowledgement;
            flow.recovery.time(flow.ack_in, flow.ack_in, self.tcp.now);
        }
        // What is unacknowledged counts, not silence; but a peer may keep its window shut for as long as it says so and has
        // a living counterpart (RFC 1122 §4.2.2.17).
        let is_shut = flow.window_in == 0 && flow.stage != Stage::Orphan;
        if state.is_synchronized() && (progress || is_shut) {
            flow.give_up_at = NEVER;
        }
        // While only the FIN is unacknowledged: the engine would take the third repetition for a loss, find no bytes to send
        // again, and forget its retransmission timer over it.
        let only_fin = matches!(state, State::FinWait1 | State::Closing | State::LastAck)
            && Smoltcp::unacknowledged(&flow.engine) == 0;
        // Into a window smaller than a segment it would send again more than the window holds.
        let is_narrow = flow.peer_window() < u32::from(flow.mss()) && flow.window_in == window_before;
        let repeats = !progress && head.span == 0 && head.has(flags::ACK) && head.sequence == flow.receive_next();
        if state.is_synchronized() && repeats && (only_fin || is_narrow && flow.window_in != 0) {
            return;
        }
        let (mtu, delta) = (flow.engine_mtu(), flow.delta);
        tcp::set_acknowledgement(&mut bytes[HEADROOM..], head.acknowledgement.wrapping_sub(delta));
        let answer = self.tcp.protocol.receive(&mut flow.engine, mtu, bytes, self.tcp.now);
        if let Some(answer) = answer {
            put(flow, answer, self.mac, &mut self.counters, port);
        }
        if state.is_synchronized()
            && let Some(heard) = heard
            && flow.recovery.heard(heard, head.acknowledgement, flow.sent_end)
        {
            self.send_again(index, port);
        }
        self.tcp.flows.touch(index);
        self.tcp.flows.soil(index);
    }

    /// Has the engine send the first unacknowledged segment again, by the only means it has: a third duplicate. Two changes
    /// of the window before make it count from nothing. A FIN alone it does not send again so: that is done here.
    #[cold]
    pub(super) fn send_again(&mut self, index: u32, port: &mut dyn Port) {
        let flow = self.tcp.flows.at(index);
        let has_fin = matches!(Smoltcp::state(&flow.engine), State::FinWait1 | State::Closing | State::LastAck);
        if has_fin && Smoltcp::unacknowledged(&flow.engine) == 0 {
            self.counters.tx_tcp_retransmission += 1;
            return self.put_own(index, flags::FIN | flags::ACK, port);
        }
        let window = flow.window_in;
        // Without a window nothing is sent; the engine probes.
        if window == 0 {
            return;
        }
        let other = if window > 1 { window - 1 } else { 2 };
        let mtu = flow.engine_mtu();
        for window in [other, window, window, window, window] {
            let bare = Bare {
                source_port: flow.key.remote().port(),
                destination_port: flow.key.local().port(),
                sequence: flow.receive_next(),
                acknowledgement: flow.ack_in.wrapping_sub(flow.delta),
                flags: flags::ACK,
                window,
            };
            let mut bytes = [0; HEADROOM + tcp::HEADER];
            bytes[HEADROOM..].copy_from_slice(&bare.emit(Sum::ZERO));
            // A segment in order and without data is not answered.
            let _ = self.tcp.protocol.receive(&mut flow.engine, mtu, &mut bytes, self.tcp.now);
        }
    }

    /// A segment that belongs to no connection.
    fn stranger(&mut self, key: Key, head: Head, bytes: &mut [u8], link: Link, now: Instant, port: &mut dyn Port) {
        let is_syn = head.flags & (flags::SYN | flags::ACK | flags::RST | flags::FIN) == flags::SYN;
        let mut isn = self.tcp.isn(&key);
        if let Some(waiting) = self.tcp.time_wait.get(&key) {
            if head.has(flags::RST) {
                self.counters.drop_tcp_time_wait += 1;
                return;
            }
            if !is_syn || !before(waiting.receive_next, head.sequence) {
                if head.span > 0 {
                    let answer = Bare {
                        source_port: key.local().port(),
                        destination_port: key.remote().port(),
                        sequence: waiting.send_next,
                        acknowledgement: waiting.receive_next,
                        flags: flags::ACK,
                        window: 0,
                    };
                    self.put_bare(&key, &answer, link.source, port);
                    if head.has(flags::FIN) {
                        let Self { tcp, counters, .. } = self;
                        let evicted = tcp.time_wait.begin(key, waiting, tcp.now);
                        counters.tcp_time_wait_evicted += u64::from(evicted);
                    }
                }
                self.counters.drop_tcp_time_wait += 1;
                return;
            }
            if before(isn, waiting.send_next) {
                isn = waiting.send_next.wrapping_add(1 << 16);
            }
        }
        if !is_syn {
            return self.refuse_tcp(&key, head, link, port);
        }
        let (local, remote) = (key.local(), key.remote());
        let named = self.tcp.listeners.get(&(Some(local.ip()), local.port()));
        let Some(&listener) = named.or_else(|| self.tcp.listeners.get(&(None, local.port()))) else {
            self.counters.drop_tcp_no_listener += 1;
            return self.refuse_tcp(&key, head, link, port);
        };
        let welcome = match &mut self.tcp.hook {
            Some(hook) => hook(&Knock { listener, local, remote }),
            None => Welcome::Accept,
        };
        match welcome {
            Welcome::Accept => {}
            Welcome::Refuse => {
                self.counters.drop_tcp_hook += 1;
                return self.refuse_tcp(&key, head, link, port);
            }
            Welcome::Ignore => {
                self.counters.drop_tcp_hook += 1;
                return;
            }
        }
        if self.tcp.half_open.from(remote.ip()) >= self.tcp.config.half_open_per_source {
            self.counters.drop_tcp_source += 1;
            return;
        }
        while self.tcp.half_open.of(listener) >= self.tcp.config.half_open_per_listener {
            let Some(id) = self.tcp.half_open.oldest(listener) else { break };
            if self.tcp.flows.get(id).is_some_and(|flow| flow.stage == Stage::HalfOpen) {
                self.counters.tcp_half_open_evicted += 1;
                self.forget(id.index);
            }
        }
        let path = Path::server(link.source, self.addresses.route(remote.ip()));
        let give_up_at = self.tcp.after(self.tcp.config.handshake_timeout);
        let mtu = self.path_mtu(remote.ip());
        let birth = Birth { key, path, stage: Stage::HalfOpen, owner: 0, listener, mtu, isn, give_up_at };
        let Some(index) = self.tcp.flows.insert(birth, &mut self.tcp.protocol) else {
            self.counters.drop_tcp_full += 1;
            return;
        };
        self.tcp.time_wait.remove(&key);
        let id = self.tcp.flows.id(index);
        self.tcp.half_open.begin(id, listener, remote.ip());
        let flow = self.tcp.flows.at(index);
        flow.path.heard(link.source, &mut self.neighbours, now);
        flow.irs = head.sequence;
        flow.peer_shift = head.scale.unwrap_or(0);
        flow.heard_at = self.tcp.now;
        let mtu = flow.engine_mtu();
        tcp::clamp_mss(&mut bytes[HEADROOM..], flow.mss());
        self.tcp.protocol.receive(&mut flow.engine, mtu, bytes, self.tcp.now);
        if Smoltcp::state(&flow.engine) == State::SynReceived {
            self.tcp.flows.soil(index);
        } else {
            self.counters.drop_malformed += 1;
            self.forget(index);
        }
    }

    /// RFC 9293 §3.10.7, RFC 5961 §3.2.
    fn reset(&mut self, index: u32, state: State, head: Head, port: &mut dyn Port) {
        let flow = self.tcp.flows.at(index);
        // Both sides have ended: what the owner has not read yet is its own (RFC 1337).
        if matches!(state, State::TimeWait | State::Closed) {
            self.counters.drop_tcp_time_wait += 1;
            return;
        }
        let is_exact = match state {
            State::SynSent => head.has(flags::ACK) && flow.synced && head.acknowledgement == flow.sent_end,
            _ => head.sequence == flow.receive_next() || head.sequence == flow.ack_sent,
        };
        if !is_exact {
            self.counters.drop_tcp_reset += 1;
            let next = flow.receive_next();
            let is_in_window = !before(head.sequence, next) && before(head.sequence, flow.edge);
            if state.is_synchronized() && is_in_window {
                self.challenge(index, port);
            }
            return;
        }
        self.counters.rx_tcp_reset += 1;
        match flow.stage {
            Stage::Connecting => self.lose(index, Gone::Refused),
            Stage::Accepted | Stage::Open => self.lose(index, Gone::Reset),
            Stage::HalfOpen | Stage::Orphan => self.forget(index),
            Stage::Lost(_) | Stage::Dead => {}
        }
    }

    /// Tells the peer where we are: an honest one that has lost count will reset at the right place.
    fn challenge(&mut self, index: u32, port: &mut dyn Port) {
        let now = self.tcp.now;
        let flow = self.tcp.flows.at(index);
        if now < flow.challenge_at {
            return;
        }
        flow.challenge_at = now + CHALLENGE_EVERY;
        self.counters.tx_tcp_challenge += 1;
        self.acknowledge(index, port);
    }

    /// Says what has come, without the engine.
    pub(super) fn acknowledge(&mut self, index: u32, port: &mut dyn Port) {
        self.put_own(index, flags::ACK, port);
    }

    /// A segment without bytes, and without the engine: the next one, or the FIN again that was the last.
    fn put_own(&mut self, index: u32, with: u8, port: &mut dyn Port) {
        let flow = self.tcp.flows.at(index);
        let next = flow.receive_next();
        let window = (flow.edge.wrapping_sub(next) >> flow.shift).min(0xffff) as u16;
        let bare = Bare {
            source_port: flow.key.local().port(),
            destination_port: flow.key.remote().port(),
            sequence: flow.sent_end.wrapping_sub(u32::from(with & flags::FIN != 0)),
            acknowledgement: next,
            flags: with,
            window: if before(flow.edge, next) { 0 } else { window },
        };
        flow.ack_sent = next;
        let (key, mac) = (flow.key, flow.path.mac);
        self.put_bare(&key, &bare, mac, port);
    }

    /// Nobody is here for this segment (RFC 9293 §3.10.7.1).
    fn refuse_tcp(&mut self, key: &Key, head: Head, link: Link, port: &mut dyn Port) {
        if head.has(flags::RST) {
            self.counters.drop_tcp_no_connection += 1;
            return;
        }
        if !head.has(flags::SYN) {
            self.counters.drop_tcp_no_connection += 1;
        }
        let with_ack = head.has(flags::ACK);
        let bare = Bare {
            source_port: key.local().port(),
            destination_port: key.remote().port(),
            sequence: if with_ack { head.acknowledgement } else { 0 },
            acknowledgement: if with_ack { 0 } else { head.sequence.wrapping_add(head.span) },
            flags: if with_ack { flags::RST } else { flags::RST | flags::ACK },
            window: 0,
        };
        self.counters.tx_tcp_reset += 1;
        self.put_bare(key, &bare, link.source, port);
    }
}
