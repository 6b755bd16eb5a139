//! The neighbour table: link addresses by IP address, for ARP and NDP alike, and what waits for them.
//!
//! Pure: it says what to solicit, the host sends it. An address is asked for three times, a second apart
//! (RFC 1122 §2.3.2.1, RFC 4861 §10). An answer holds for a minute, or as long as traffic comes from it; after that it
//! is used on while it is asked again, at its own link address (RFC 1122 §2.3.2.1 "unicast poll", RFC 4861 §7.3).
//! Entries arise only from questions of ours and from questions addressed to us: an answer nobody asked for changes
//! at most what is known already (RFC 826).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use foldhash::fast::SeedableRandomState;
use hashbrown::HashMap;

use super::counters::Counters;
use super::random::Random;
use crate::packet::ethernet::Mac;

pub(super) const RETRY: Duration = Duration::from_secs(1);
pub(super) const TRIES: u8 = 3;
pub(super) const REACHABLE: Duration = Duration::from_secs(60);

const MAX_NEIGHBOURS: usize = 1_024;
const MAX_PENDING_PER_NEIGHBOUR: usize = 16;
const MAX_PENDING: usize = 512;
const MAX_PENDING_BYTES: usize = 1 << 20;

/// A datagram that waits: its frames, complete but for the destination's link address.
#[derive(Debug)]
pub(super) struct Pending {
    /// The flow it was sent on, and that flow's serial number; `NO_FLOW` for what is not the host's own.
    pub flow: (u32, u64),
    pub frames: Vec<Vec<u8>>,
}

impl Pending {
    pub const NO_FLOW: (u32, u64) = (u32::MAX, 0);

    fn bytes(&self) -> usize {
        self.frames.iter().map(Vec::len).sum()
    }
}

#[derive(Debug)]
enum State {
    /// From nothing, when a datagram wants to leave.
    Incomplete(Vec<Pending>),
    /// From any state, when the neighbour has spoken.
    Reachable { mac: Mac, until: Instant },
    /// From `Reachable`, when its time is up and a datagram wants to leave.
    Probing { mac: Mac },
}

#[derive(Debug)]
struct Neighbour {
    /// The address of ours that asks.
    source: IpAddr,
    state: State,
    /// Solicitations sent, and when the next is due; meaningful while `Incomplete` or `Probing`.
    tries: u8,
    next: Instant,
}

/// A question to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Solicit {
    pub target: IpAddr,
    pub source: IpAddr,
    /// To this link address, or to all.
    pub to: Option<Mac>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Good until then.
    Known(Mac, Instant),
    /// Use it, and send this if it is there.
    Doubtful(Mac, Option<Solicit>),
    Unknown,
}

/// How an address came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Its owner asked for us: it will want an answer, so it may be new.
    Question,
    /// An answer to us.
    Answer,
    /// Said to all: only changes what is known.
    Gossip,
}

#[derive(Debug)]
pub(super) struct Neighbours {
    table: HashMap<IpAddr, Neighbour, SeedableRandomState>,
    pending: usize,
    pending_bytes: usize,
    deadline: Option<Instant>,
    /// Changes whenever a link address that was told to someone is no longer right.
    epoch: u32,
}

impl Neighbours {
    pub fn new(random: &mut Random) -> Self {
        let table = HashMap::with_hasher(random.hasher());
        Self { table, pending: 0, pending_bytes: 0, deadline: None, epoch: 0 }
    }

    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub fn lookup(&mut self, address: IpAddr, now: Instant) -> Lookup {
        let Some(neighbour) = self.table.get_mut(&address) else { return Lookup::Unknown };
        match neighbour.state {
            State::Incomplete(_) => Lookup::Unknown,
            State::Reachable { mac, until } if now < until => Lookup::Known(mac, until),
            State::Reachable { mac, .. } => {
                neighbour.state = State::Probing { mac };
                neighbour.tries = 1;
                neighbour.next = now + RETRY;
                let solicit = Solicit { target: address, source: neighbour.source, to: Some(mac) };
                self.wake_at(now + RETRY);
                Lookup::Doubtful(mac, Some(solicit))
            }
            State::Probing { mac } => Lookup::Doubtful(mac, None),
        }
    }

    /// The link address, however doubtful.
    pub fn link_address(&self, address: IpAddr) -> Option<Mac> {
        match self.table.get(&address)?.state {
            State::Incomplete(_) => None,
            State::Reachable { mac, .. } | State::Probing { mac } => Some(mac),
        }
    }

    /// The link address and how long it is good, if it is beyond doubt.
    pub fn reachable(&self, address: IpAddr, now: Instant) -> Option<(Mac, Instant)> {
        match self.table.get(&address)?.state {
            State::Reachable { mac, until } if now < until => Some((mac, until)),
            _ => None,
        }
    }

    /// Keeps a datagram for a neighbour whose `lookup` was `Unknown`. `Err`: there is no room, counted. The first one
    /// asks for the neighbour.
    pub fn wait(
        &mut self,
        address: IpAddr,
        source: IpAddr,
        pending: Pending,
        now: Instant,
        counters: &mut Counters,
    ) -> Result<Option<Solicit>, ()> {
        let bytes = pending.bytes();
        if self.pending >= MAX_PENDING || self.pending_bytes + bytes > MAX_PENDING_BYTES {
            counters.drop_neighbour_pending_full += 1;
            return Err(());
        }
        let solicit = self.ask(address, source, now, counters)?;
        match self.table.get_mut(&address).map(|neighbour| &mut neighbour.state) {
            Some(State::Incomplete(waiting)) if waiting.len() < MAX_PENDING_PER_NEIGHBOUR => {
                waiting.push(pending);
                self.pending += 1;
                self.pending_bytes += bytes;
                Ok(solicit)
            }
            _ => {
                counters.drop_neighbour_pending_full += 1;
                Err(())
            }
        }
    }

    /// Asks for a neighbour whose `lookup` was `Unknown`, unless that is being done. `Err`: there is no room, counted.
    pub fn ask(
        &mut self,
        address: IpAddr,
        source: IpAddr,
        now: Instant,
        counters: &mut Counters,
    ) -> Result<Option<Solicit>, ()> {
        if self.table.contains_key(&address) {
            return Ok(None);
        }
        self.make_room(counters)?;
        let state = State::Incomplete(Vec::new());
        self.table.insert(address, Neighbour { source, state, tries: 1, next: now + RETRY });
        self.wake_at(now + RETRY);
        Ok(Some(Solicit { target: address, source, to: None }))
    }

    /// Evicts the resolved neighbour that has been silent for longest.
    fn make_room(&mut self, counters: &mut Counters) -> Result<(), ()> {
        if self.table.len() < MAX_NEIGHBOURS {
            return Ok(());
        }
        let age = |neighbour: &Neighbour| match neighbour.state {
            State::Incomplete(_) => None,
            State::Reachable { until, .. } => Some(until),
            State::Probing { .. } => Some(neighbour.next),
        };
        let oldest = self.table.iter().filter_map(|(&address, neighbour)| Some((age(neighbour)?, address))).min();
        let Some((_, address)) = oldest else {
            counters.drop_neighbour_table_full += 1;
            return Err(());
        };
        self.table.remove(&address);
        counters.neighbour_evicted += 1;
        self.epoch = self.epoch.wrapping_add(1);
        Ok(())
    }

    /// A neighbour's link address was heard. Returns what waited for it; `source` is the address of ours it knows.
    pub fn learn(&mut self, address: IpAddr, mac: Mac, source: IpAddr, heard: Heard, now: Instant) -> Vec<Pending> {
        let until = now + REACHABLE;
        let Some(neighbour) = self.table.get_mut(&address) else {
            // A full table is for those we ask: strangers' questions push nobody out.
            if heard == Heard::Question && self.table.len() < MAX_NEIGHBOURS {
                let state = State::Reachable { mac, until };
                self.table.insert(address, Neighbour { source, state, tries: 0, next: now });
            }
            return Vec::new();
        };
        match std::mem::replace(&mut neighbour.state, State::Reachable { mac, until }) {
            State::Incomplete(waiting) => {
                self.pending -= waiting.len();
                self.pending_bytes -= waiting.iter().map(Pending::bytes).sum::<usize>();
                waiting
            }
            State::Reachable { mac: old, .. } | State::Probing { mac: old } => {
                if old != mac {
                    self.epoch = self.epoch.wrapping_add(1);
                }
                Vec::new()
            }
        }
    }

    /// Traffic came from a neighbour, at the link address it is known by.
    pub fn confirm(&mut self, address: IpAddr, mac: Mac, now: Instant) {
        if let Some(neighbour) = self.table.get_mut(&address)
            && let State::Reachable { mac: known, .. } | State::Probing { mac: known } = neighbour.state
            && known == mac
        {
            neighbour.state = State::Reachable { mac, until: now + REACHABLE };
        }
    }

    /// The link was down: whoever was known may be someone else now. Those who are waited for are asked again in time.
    pub fn forget(&mut self) {
        self.table.retain(|_, neighbour| matches!(neighbour.state, State::Incomplete(_)));
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Asks again, gives up. Who never answered is appended to `lost`, what waited in vain for him to `failed`.
    pub fn on_timer(
        &mut self,
        now: Instant,
        lost: &mut Vec<IpAddr>,
        failed: &mut Vec<Pending>,
        counters: &mut Counters,
    ) -> Vec<Solicit> {
        let mut solicits = Vec::new();
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return solicits;
        }
        let mut deadline: Option<Instant> = None;
        let (pending, pending_bytes, epoch) = (&mut self.pending, &mut self.pending_bytes, &mut self.epoch);
        self.table.retain(|&target, neighbour| {
            let to = match neighbour.state {
                State::Reachable { .. } => return true,
                State::Incomplete(_) => None,
                State::Probing { mac } => Some(mac),
            };
            if now >= neighbour.next {
                if neighbour.tries == TRIES {
                    counters.neighbour_failed += 1;
                    if let State::Incomplete(waiting) = &mut neighbour.state {
                        *pending -= waiting.len();
                        *pending_bytes -= waiting.iter().map(Pending::bytes).sum::<usize>();
                        failed.append(waiting);
                        lost.push(target);
                    } else {
                        *epoch = epoch.wrapping_add(1);
                    }
                    return false;
                }
                neighbour.tries += 1;
                neighbour.next = now + RETRY;
                solicits.push(Solicit { target, source: neighbour.source, to });
            }
            deadline = Some(deadline.map_or(neighbour.next, |deadline| deadline.min(neighbour.next)));
            true
        });
        self.deadline = deadline;
        solicits
    }

    fn wake_at(&mut self, at: Instant) {
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
    }
}
