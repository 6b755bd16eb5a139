//! The way from a flow to its next hop: whose link address it has, for how long that is good, who is asked.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::addresses::Route;
use super::neighbours::{Lookup, Neighbours, REACHABLE, Solicit};
use crate::packet::ethernet::Mac;

/// How often a flow tells the neighbour table that its neighbour is alive.
const CONFIRM_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Path {
    /// When traffic from the neighbour is next worth telling the neighbour table.
    confirm_at: Option<Instant>,
    /// `mac` holds until then, unless the neighbours' epoch has changed.
    fresh_until: Option<Instant>,
    epoch: u32,
    pub mac: Mac,
    /// Opened by the peer: the peer's frames say where replies go.
    is_server: bool,
    /// The neighbour and the address of ours that asks for it. `None`: no route, replies go where the peer's frames come
    /// from.
    pub next_hop: Option<(IpAddr, IpAddr)>,
}

/// What [`Path::resolve`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// `mac` may be used; if there is a question, it is to be sent too.
    Known(Option<Solicit>),
    Unknown,
}

impl Path {
    pub fn client(route: Route) -> Self {
        Self {
            confirm_at: None,
            fresh_until: None,
            epoch: 0,
            mac: [0; 6],
            is_server: false,
            next_hop: Some((route.next_hop, route.source)),
        }
    }

    pub fn server(mac: Mac, route: Option<Route>) -> Self {
        Self {
            confirm_at: None,
            fresh_until: None,
            epoch: 0,
            mac,
            is_server: true,
            next_hop: route.map(|route| (route.next_hop, route.source)),
        }
    }

    #[inline]
    pub fn is_fresh(&self, epoch: u32, now: Instant) -> bool {
        self.epoch == epoch && self.fresh_until.is_some_and(|until| now < until)
    }

    /// A frame came for the flow: its neighbour is alive; a server flow follows its peer to another link address.
    #[inline]
    pub fn heard(&mut self, source: Mac, neighbours: &mut Neighbours, now: Instant) {
        if self.mac == source {
            if self.confirm_at.is_none_or(|at| now >= at) {
                self.confirm_at = Some(now + CONFIRM_EVERY);
                self.fresh_until = Some(now + REACHABLE);
                if let Some((next_hop, _)) = self.next_hop {
                    neighbours.confirm(next_hop, source, now);
                }
            }
        } else if self.is_server {
            self.mac = source;
            self.fresh_until = Some(now + REACHABLE);
            self.epoch = neighbours.epoch();
        }
    }

    /// Finds the next hop's link address.
    pub fn resolve(&mut self, neighbours: &mut Neighbours, now: Instant) -> Resolved {
        let epoch = neighbours.epoch();
        if self.is_fresh(epoch, now) {
            return Resolved::Known(None);
        }
        // A server flow's own word is the younger one until the table has changed; it never asks, since its peer's frames
        // tell, and a virtual address has no right to ask.
        if self.is_server {
            if let Some((next_hop, _)) = self.next_hop
                && self.fresh_until.is_some()
                && let Some((mac, until)) = neighbours.reachable(next_hop, now)
            {
                self.mac = mac;
                self.fresh_until = Some(until);
            } else {
                self.fresh_until = Some(now + REACHABLE);
            }
            self.epoch = epoch;
            return Resolved::Known(None);
        }
        let Some((next_hop, _)) = self.next_hop else { return Resolved::Unknown };
        let (mac, until, solicit) = match neighbours.lookup(next_hop, now) {
            Lookup::Known(mac, until) => (mac, until, None),
            // Asked about: look again soon.
            Lookup::Doubtful(mac, solicit) => (mac, now + CONFIRM_EVERY, solicit),
            Lookup::Unknown => return Resolved::Unknown,
        };
        self.mac = mac;
        self.fresh_until = Some(until);
        self.epoch = epoch;
        Resolved::Known(solicit)
    }
}
