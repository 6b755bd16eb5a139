//! The way of frames from port to port: by rules, bridges and routes, without Python.
//!
//! A burst is lent by the port it came by. Where no rule can match and the port is bridged it is passed on unseen
//! ([`bridge`]); else the beginning of every frame is copied and read, the table decides about the whole burst, and each
//! frame goes where it said: its changed beginning, and the rest from where it was received. What nobody here decides
//! is copied into the pool, for the port's handler or host.
//!
//! A port that lends can do nothing else meanwhile, so what goes back out of it is copied aside until it has its frames
//! back. Nothing reaches a peer before its port's `flush`: [`Place::sent`] tells who has to see to that.

pub mod bridge;
pub mod run;
#[cfg(test)]
mod tests;

use std::time::Instant;

use self::bridge::Bridge;
use crate::flow::Table;
use crate::flow::{Expiry, Head, Match, PortIndex, Refused, Rule, Statistics, Verdict, edit};
use crate::packet::headers::{Headers, kind};
use crate::packet::{Pool, Slot, ethernet};
use crate::port::Port;
use crate::port::lent::{BURST, Lent};
use crate::port::watched;
use crate::stack::{Host, NextHop, Stopped};

/// How much of a packet that goes no further its sender is told.
const QUOTED: usize = 1_280 + ethernet::HEADER;

/// A port and the host on it, as their owner keeps them.
pub trait Place {
    fn parts(&mut self) -> (&mut dyn Port, &mut Host);

    /// Where frames go that no rule matches; else to the handler of the port, else to its host.
    fn bridge(&self) -> Option<PortIndex>;

    /// Whether it has a `@vnf.frames` handler.
    fn has_handler(&self) -> bool;

    /// Something was sent, and its port is to be flushed.
    fn sent(&mut self);

    /// A frame for its host, though the port has a handler.
    fn accept(&mut self, frame: Slot);

    fn counters(&mut self) -> &mut Counters;
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Of frames that came by one port.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            fn add(&mut self, more: Self) {
                $(self.$name += more.$name;)*
            }
        }
    };
}

counters! {
    /// Frames that rules or a bridge sent on, to a port that may still have dropped and counted them.
    forwarded,
    /// By a rule: `drop`, over its limit, or an action that was not possible.
    drop_flow,
    /// For the handler of a port that has none.
    drop_no_handler,
    /// Routed, and the hop limit was used up.
    drop_route_hop_limit,
    /// Routed, and longer than the MTU.
    drop_route_too_long,
    /// Routed, and nothing leads there.
    drop_route_no_way,
    /// Routed, and not an IP packet to one station.
    drop_route_not_ip,
}

/// What comes of a frame that goes out of the port it came by.
#[derive(Clone, Copy)]
enum Back {
    Send,
    Route,
    Stop(Stopped),
}

/// Frames for the port that lends, until it does not any more.
#[derive(Default)]
struct Aside {
    bytes: Vec<u8>,
    frames: Vec<(usize, Back)>,
}

impl Aside {
    fn put(&mut self, head: &[u8], rest: Lent<'_>, back: Back) {
        self.bytes.extend_from_slice(head);
        let at = self.bytes.len();
        self.bytes.resize(at + rest.len(), 0);
        rest.copy_to(0, &mut self.bytes[at..]);
        self.frames.push((head.len() + rest.len(), back));
    }
}

/// What came of a frame that went through the rules again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    Finished,
    /// Its host is to have it.
    Accepted,
    /// No rule decides, and the handler has had its turn.
    Undecided,
}

/// A burst, and what was found out about it.
struct Work {
    heads: Vec<Head>,
    headers: [Headers; BURST],
    verdicts: Vec<Verdict>,
    aside: Aside,
    /// Where the last frame of the last burst went.
    likely: Option<PortIndex>,
}

/// Forwards for all ports of one owner.
pub struct Forwarder {
    table: Table,
    /// Rules that can match frames of each port alone, and of all.
    rules_of: Vec<usize>,
    rules_of_all: usize,
    bridges: Vec<Bridge>,
    work: Work,
}

impl Forwarder {
    pub fn new(table: Table) -> Self {
        let work = Work {
            heads: vec![Head::default(); BURST],
            headers: [Headers::default(); BURST],
            verdicts: Vec::with_capacity(BURST),
            aside: Aside::default(),
            likely: None,
        };
        Self { table, rules_of: Vec::new(), rules_of_all: 0, bridges: Vec::new(), work }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// See [`Table::install`].
    pub fn install(&mut self, matching: Match, rule: Rule, now: Instant) -> Result<bool, Refused> {
        let replaced = self.table.install(matching, rule, now)?;
        if !replaced {
            *self.rules(&matching) += 1;
        }
        Ok(replaced)
    }

    /// See [`Table::remove`].
    pub fn remove(&mut self, matching: &Match, now: Instant) -> Option<Statistics> {
        let statistics = self.table.remove(matching, now)?;
        *self.rules(matching) -= 1;
        Some(statistics)
    }

    /// See [`Table::expire`].
    pub fn expire(&mut self, now: Instant, most: usize, ended: &mut Vec<(Match, Expiry, Statistics)>) {
        let before = ended.len();
        self.table.expire(now, most, ended);
        for (matching, ..) in &ended[before..] {
            *self.rules(matching) -= 1;
        }
    }

    /// How many rules there are for the port of this one.
    fn rules(&mut self, matching: &Match) -> &mut usize {
        let Some(port) = matching.port.map(usize::from) else { return &mut self.rules_of_all };
        if self.rules_of.len() <= port {
            self.rules_of.resize(port + 1, 0);
        }
        &mut self.rules_of[port]
    }

    /// Whether frames of a port may go anywhere else than to its handler or host.
    #[inline]
    pub fn decides<P: Place>(&self, place: &P, index: usize) -> bool {
        self.may_match(index) || place.bridge().is_some()
    }

    #[inline]
    pub fn may_match(&self, index: usize) -> bool {
        self.rules_of_all > 0 || self.rules_of.get(index).is_some_and(|rules| *rules > 0)
    }

    /// Takes up to `most` frames of one port; how many there were. Those that are for its handler, or where it has none
    /// for its host, are appended to `frames`.
    #[inline]
    pub fn take<P: Place>(
        &mut self,
        places: &mut [P],
        index: usize,
        now: Instant,
        pool: &Pool,
        frames: &mut Vec<Slot>,
        most: usize,
    ) -> usize {
        let Some((place, mut others)) = apart(places, index) else { return 0 };
        if self.may_match(index) {
            return self.decide(place, &mut others, now, pool, frames, most);
        }
        let Some(other) = place.bridge().and_then(|to| others.get(to)) else {
            return place.parts().0.receive(pool, frames, most);
        };
        if self.bridges.len() <= index {
            self.bridges.resize(index + 1, Bridge::default());
        }
        let count = self.bridges[index].pass(place.parts().0, other.parts().0, now, most);
        if count > 0 {
            watched::note(|| "bridge".into());
            other.sent();
            place.counters().forwarded += count as u64;
        }
        count
    }

    /// The way of frames that rules may match.
    fn decide<P: Place>(
        &mut self,
        place: &mut P,
        others: &mut Others<'_, P>,
        now: Instant,
        pool: &Pool,
        frames: &mut Vec<Slot>,
        most: usize,
    ) -> usize {
        let Work { heads, headers, verdicts, aside, likely } = &mut self.work;
        let (bridge, has_handler) = (place.bridge(), place.has_handler());
        let (mut counts, mut dry, mut accepted) = (Counters::default(), 0, Vec::new());
        let burst = place.parts().0.lend(most.min(BURST));
        let count = burst.len();
        // Whoever had the last burst will have this one: its memory comes while that of the heads does.
        if let (Some(to), Some(first)) = (*likely, burst.first())
            && let Some(other) = others.get(to)
        {
            other.parts().0.expect(count, first.len());
        }
        for ((head, headers), frame) in heads.iter_mut().zip(headers.iter_mut()).zip(burst.in_turn()) {
            head.take(frame);
            headers.read_in_place(head.bytes(), frame.len());
        }
        verdicts.clear();
        self.table.process(others.index, &mut heads[..count], &headers[..count], now, verdicts);
        // Most bursts go one way as a whole.
        let one_way = match verdicts[..] {
            [Verdict::Forward(to), ..] if verdicts.iter().all(|verdict| *verdict == Verdict::Forward(to)) => {
                others.get(to)
            }
            _ => None,
        };
        if let Some(other) = one_way {
            let port = other.parts().0;
            for (head, frame) in heads.iter().zip(burst.iter()) {
                watched::note(|| format!("flows: {}", verdicts[0]));
                port.send_lent(head.bytes(), head.rest(*frame));
            }
            other.sent();
            counts.forwarded += count as u64;
        } else {
            for (((head, came), verdict), frame) in heads.iter_mut().zip(&*headers).zip(&*verdicts).zip(burst.iter()) {
                watched::note(|| format!("flows: {verdict}"));
                match *verdict {
                    Verdict::Miss if bridge.is_none() => keep(head, *frame, pool, frames, &mut dry),
                    Verdict::ToPython if has_handler => keep(head, *frame, pool, frames, &mut dry),
                    Verdict::ToPython => counts.drop_no_handler += 1,
                    Verdict::Accept if has_handler => keep(head, *frame, pool, &mut accepted, &mut dry),
                    Verdict::Accept => keep(head, *frame, pool, frames, &mut dry),
                    verdict => send_on(verdict, bridge, head, came, *frame, others, now, aside, &mut counts),
                }
            }
        }
        *likely = match verdicts.last() {
            Some(Verdict::Forward(to) | Verdict::Route(to)) => Some(*to),
            Some(Verdict::Miss) => bridge,
            _ => None,
        };
        place.parts().0.give_back(dry);
        accepted.into_iter().for_each(|frame| place.accept(frame));
        go_back(aside, &mut heads[0], place, now, &mut counts);
        place.counters().add(counts);
        count
    }

    /// Runs a frame that came by port `index`, and that its handler has, through the rules again.
    pub fn again<P: Place>(&mut self, places: &mut [P], index: usize, frame: &[u8], now: Instant) -> Again {
        let Some((place, mut others)) = apart(places, index) else { return Again::Finished };
        let Work { heads, headers, verdicts, aside, .. } = &mut self.work;
        let (frame, head, mut counts) = (Lent::of(frame), &mut heads[..1], Counters::default());
        head[0].take(frame);
        headers[0] = Headers::read(head[0].bytes(), frame.len());
        verdicts.clear();
        self.table.process(others.index, head, &headers[..1], now, verdicts);
        match (verdicts[0], place.bridge()) {
            (Verdict::Miss, None) | (Verdict::ToPython, _) => return Again::Undecided,
            (Verdict::Accept, _) => return Again::Accepted,
            (verdict, bridge) => {
                send_on(verdict, bridge, &mut head[0], &headers[0], frame, &mut others, now, aside, &mut counts);
            }
        }
        go_back(aside, &mut heads[0], place, now, &mut counts);
        place.counters().add(counts);
        Again::Finished
    }
}

/// What is done with a frame that goes out of a port, or nowhere.
#[expect(clippy::too_many_arguments, reason = "a frame, what is known of it, and who is told")]
#[inline]
fn send_on<P: Place>(
    verdict: Verdict,
    bridge: Option<PortIndex>,
    head: &mut Head,
    came: &Headers,
    frame: Lent<'_>,
    others: &mut Others<'_, P>,
    now: Instant,
    aside: &mut Aside,
    counts: &mut Counters,
) {
    let rest = head.rest(frame);
    match (verdict, bridge) {
        (Verdict::Forward(to), _) | (Verdict::Miss, Some(to)) => {
            counts.forwarded += 1;
            let Some(other) = others.get(to) else { return aside.put(head.bytes(), rest, Back::Send) };
            other.parts().0.send_lent(head.bytes(), rest);
            other.sent();
        }
        (Verdict::Reply, _) => match edit::reply(head) {
            Ok(()) => {
                counts.forwarded += 1;
                aside.put(head.bytes(), rest, Back::Send);
            }
            Err(_) => counts.drop_flow += 1,
        },
        (Verdict::Route(to), _) => {
            let Some(other) = others.get(to) else { return aside.put(head.bytes(), rest, Back::Route) };
            if let Some(why) = route(head, rest, came, other, now, counts) {
                aside.put(&[], frame.first(QUOTED), Back::Stop(why));
            }
        }
        _ => counts.drop_flow += 1,
    }
}

/// Copies a frame into the pool.
fn keep(head: &Head, frame: Lent<'_>, pool: &Pool, frames: &mut Vec<Slot>, dry: &mut usize) {
    let Some(mut slot) = pool.take(head.frame_len()) else {
        *dry += 1;
        return;
    };
    let (front, back) = slot.split_at_mut(head.bytes().len());
    front.copy_from_slice(head.bytes());
    head.rest(frame).copy_to(0, back);
    frames.push(slot);
}

/// Sends a frame out of `to` as a router does (RFC 1812 §5.2, RFC 8200 §3). What its sender is to be told when it stops.
fn route<P: Place>(
    head: &mut Head,
    rest: Lent<'_>,
    came: &Headers,
    to: &mut P,
    now: Instant,
    counts: &mut Counters,
) -> Option<Stopped> {
    let headers = Headers::read(head.bytes(), head.frame_len());
    // Who sent the tunnel's inner packet is not told of it by the outer one.
    let told = |why| (!came.is(kind::GTPU) || headers.is(kind::GTPU)).then_some(why);
    let is_to_one = head.bytes().first().is_some_and(|first| first & 1 == 0);
    let destination = headers.addresses(head.bytes()).map(|(_, destination)| destination);
    let Some(destination) = destination.filter(|to| is_to_one && !to.is_multicast() && !headers.is(kind::MALFORMED))
    else {
        counts.drop_route_not_ip += 1;
        return None;
    };
    if edit::hop(head, &headers).is_err() {
        counts.drop_route_hop_limit += 1;
        return told(Stopped::HopLimit);
    }
    let (port, host) = to.parts();
    let (len, mtu) = (usize::from(headers.end - headers.network), host.mtu());
    if len > mtu {
        counts.drop_route_too_long += 1;
        // What a tunnel adds is not the sender's.
        let added = len.saturating_sub(usize::from(came.end.saturating_sub(came.network)));
        let at = usize::from(headers.network);
        let may_be_cut = headers.is(kind::IPV4) && head.bytes()[at + 6] & 0x40 == 0;
        return if may_be_cut { None } else { told(Stopped::TooBig(mtu - added.min(mtu))) };
    }
    match host.next_hop(destination, now, port) {
        NextHop::Known(mac) => {
            let (own, bytes) = (host.mac(), head.bytes_mut());
            bytes[..6].copy_from_slice(&mac);
            bytes[6..12].copy_from_slice(&own);
            port.send_lent(head.bytes(), rest);
        }
        NextHop::Unknown => {
            let mut frame = vec![0; head.frame_len()];
            let (front, back) = frame.split_at_mut(head.bytes().len());
            front.copy_from_slice(head.bytes());
            front[6..12].copy_from_slice(&host.mac());
            rest.copy_to(0, back);
            host.wait_for(destination, frame, now, port);
        }
        NextHop::NoRoute => {
            counts.drop_route_no_way += 1;
            return told(Stopped::NoRoute);
        }
    }
    counts.forwarded += 1;
    to.sent();
    None
}

/// What was put aside leaves by the port it came by.
#[inline]
fn go_back<P: Place>(aside: &mut Aside, head: &mut Head, place: &mut P, now: Instant, counts: &mut Counters) {
    if aside.frames.is_empty() {
        return;
    }
    let mut at = 0;
    for (len, back) in aside.frames.drain(..) {
        let bytes = &aside.bytes[at..at + len];
        at += len;
        let stopped = match back {
            Back::Send => {
                place.parts().0.send(&[bytes]);
                None
            }
            Back::Stop(why) => Some(why),
            Back::Route => {
                let frame = Lent::of(bytes);
                head.take(frame);
                let came = Headers::read(head.bytes(), len);
                let rest = head.rest(frame);
                route(head, rest, &came, place, now, counts)
            }
        };
        if let Some(why) = stopped {
            let (port, host) = place.parts();
            host.stop(&bytes[..len.min(QUOTED)], why, now, port);
        }
    }
    aside.bytes.clear();
    place.sent();
}

/// All places but one.
struct Others<'a, P> {
    before: &'a mut [P],
    after: &'a mut [P],
    index: PortIndex,
}

impl<P> Others<'_, P> {
    /// None for that one.
    #[inline]
    fn get(&mut self, at: PortIndex) -> Option<&mut P> {
        let (at, own) = (usize::from(at), usize::from(self.index));
        if at < own { self.before.get_mut(at) } else { self.after.get_mut(at.checked_sub(own + 1)?) }
    }
}

/// None when there is no place `index` (any more).
fn apart<P>(places: &mut [P], index: usize) -> Option<(&mut P, Others<'_, P>)> {
    let (before, rest) = places.split_at_mut_checked(index)?;
    let (place, after) = rest.split_first_mut()?;
    Some((place, Others { before, after, index: index as PortIndex }))
}
