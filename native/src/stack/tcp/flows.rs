//! The connections of a host: their places, the look-up by 5-tuple, and who is to be looked at next.
//!
//! A place keeps its protocol engine when its connection ends, so that the next one there allocates nothing.

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::fast::SeedableRandomState;
use hashbrown::{HashMap, HashTable};

use super::arena::{Arena, Pair};
use super::protocol::{Begin, Protocol, State};
use super::recovery::Recovery;
use super::smoltcp::Smoltcp;
use super::{Gone, TcpId};
use crate::stack::flows::Key;
use crate::stack::path::Path;
use crate::stack::random::Random;

/// No time at all.
pub(super) const NEVER: u64 = u64::MAX;

/// Who a connection belongs to. Entered: HalfOpen by a SYN; Accepted when its handshake is done; Connecting by
/// `tcp_open`; Open by `tcp_adopt` or when connected; Orphan by `tcp_close` and `tcp_abort`; Lost when it broke, until its
/// owner has been told; Dead then, until it is swept up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    HalfOpen,
    Accepted,
    Connecting,
    Open,
    Orphan,
    Lost(Gone),
    Dead,
}

pub(super) struct Flow {
    pub key: Key,
    pub serial: u32,
    pub owner: u32,
    pub stage: Stage,
    /// In `touched`, in `dirty`.
    pub touched: bool,
    pub dirty: bool,
    /// Wants to hear of room.
    pub blocked: bool,
    /// The engine waits for nothing, though bytes are unacknowledged.
    pub is_stranded: bool,
    /// The engine is to send a FIN when everything before it has left (see `end`).
    pub ends: bool,
    /// Opened here: its port is one of ours.
    pub is_client: bool,
    /// A SYN of ours has left: `delta` holds.
    pub synced: bool,
    /// The shift of the windows we state: ours if both sides scale.
    pub shift: u8,
    pub offered_shift: u8,
    /// The largest packet on the way.
    pub mtu: u16,
    pub dont_fragment: bool,
    /// The engine's sequence numbers plus this are those on the wire.
    pub delta: u32,
    pub isn: u32,
    /// The peer's first sequence number, and bytes taken since.
    pub irs: u32,
    pub taken: u32,
    /// The latest acknowledgement and window of the peer.
    pub ack_in: u32,
    pub window_in: u16,
    /// How the peer scales it.
    pub peer_shift: u8,
    /// One past what we sent last; what we acknowledged last; the right edge of the window we stated.
    pub sent_end: u32,
    pub ack_sent: u32,
    pub edge: u32,
    /// Microseconds on TCP's clock: when the wheel fires, when the peer was last heard, when we give up, when it may be challenged again.
    pub wheel_at: u64,
    pub heard_at: u64,
    pub give_up_at: u64,
    pub challenge_at: u64,
    pub listener: u32,
    pub recovery: Recovery,
    pub path: Path,
    pub pair: Option<Pair>,
    pub engine: <Smoltcp as Protocol>::Connection,
}

impl Flow {
    /// The next sequence number we expect.
    pub fn receive_next(&self) -> u32 {
        let state = Smoltcp::state(&self.engine);
        let ended = matches!(state, State::CloseWait | State::Closing | State::LastAck | State::TimeWait);
        let unread = Smoltcp::unread(&self.engine) as u32;
        self.irs.wrapping_add(1).wrapping_add(self.taken).wrapping_add(unread).wrapping_add(u32::from(ended))
    }

    pub fn ip_overhead(&self) -> u16 {
        if self.key.is_v4() { 20 } else { 40 }
    }

    /// The most that goes into a segment. The engine shall not think of larger ones: it counts by them when it puts off an
    /// acknowledgement, and in its congestion window.
    pub fn mss(&self) -> u16 {
        self.engine_mtu() - 40
    }

    /// The MTU as the engine counts it, whose packets are all IPv4.
    pub fn engine_mtu(&self) -> u16 {
        self.mtu - self.ip_overhead() + 20
    }

    /// What the peer takes beyond what it has acknowledged.
    pub fn peer_window(&self) -> u32 {
        u32::from(self.window_in) << self.peer_shift
    }

    /// A FIN after what is queued. In LAST-ACK the engine takes no window update, so it shall not be there while bytes
    /// wait for the window.
    pub fn end(&mut self) {
        self.ends = Smoltcp::state(&self.engine) == State::CloseWait && !self.has_sent_all();
        if !self.ends {
            Smoltcp::close(&mut self.engine);
        }
    }

    pub fn has_sent_all(&self) -> bool {
        let unacknowledged = Smoltcp::unacknowledged(&self.engine);
        let in_flight = self.sent_end.wrapping_sub(self.ack_in) as usize;
        // What went into a closed window was a probe.
        unacknowledged == 0 || self.window_in != 0 && unacknowledged <= in_flight
    }

    /// Has everything left that a FIN waited for? Then the engine has one to send.
    pub fn ends_now(&mut self) -> bool {
        let is_due = self.ends && self.has_sent_all();
        if is_due {
            self.ends = false;
            Smoltcp::close(&mut self.engine);
        }
        is_due
    }

    pub fn has_owner(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Open)
    }
}

/// What a new connection begins with.
pub(super) struct Birth {
    pub key: Key,
    pub path: Path,
    pub stage: Stage,
    pub owner: u32,
    pub listener: u32,
    pub mtu: u16,
    pub isn: u32,
    pub give_up_at: u64,
}

pub(super) struct Flows {
    // In this order: flows use the arena's memory.
    slab: Vec<Flow>,
    arena: Arena,
    free: Vec<u32>,
    table: HashTable<u32>,
    hasher: SeedableRandomState,
    limit: usize,
    keep_alive: Option<Duration>,
    /// Connections that were closed here, oldest first; those that are over are out of date. And how many are not.
    orphans: VecDeque<TcpId>,
    orphan_count: usize,
    /// Connections opened here, by local address, remote address and remote port.
    pub outgoing: HashMap<(u128, u128, u16), usize, SeedableRandomState>,
    /// To be told about, and to be sent from.
    pub touched: Vec<TcpId>,
    pub dirty: Vec<TcpId>,
}

impl Flows {
    pub fn new(buffers: &[(usize, usize)], limit: usize, keep_alive: Option<Duration>, random: &mut Random) -> Self {
        Self {
            slab: Vec::new(),
            arena: Arena::new(buffers),
            free: Vec::new(),
            table: HashTable::new(),
            hasher: random.hasher(),
            limit,
            keep_alive,
            orphans: VecDeque::new(),
            orphan_count: 0,
            outgoing: HashMap::with_hasher(random.hasher()),
            touched: Vec::new(),
            dirty: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn buffers_in_use(&self) -> usize {
        self.arena.in_use()
    }

    pub fn is_full(&self) -> bool {
        self.table.len() >= self.limit
    }

    #[inline]
    pub fn find(&self, key: &Key) -> Option<u32> {
        self.table.find(key.hash_with(&self.hasher), |&index| self.slab[index as usize].key == *key).copied()
    }

    #[inline]
    pub fn at(&mut self, index: u32) -> &mut Flow {
        &mut self.slab[index as usize]
    }

    #[inline]
    pub fn id(&self, index: u32) -> TcpId {
        TcpId { index, serial: self.slab[index as usize].serial }
    }

    #[inline]
    pub fn get(&self, id: TcpId) -> Option<&Flow> {
        self.slab.get(id.index as usize).filter(|flow| flow.serial == id.serial)
    }

    #[inline]
    pub fn get_mut(&mut self, id: TcpId) -> Option<&mut Flow> {
        self.slab.get_mut(id.index as usize).filter(|flow| flow.serial == id.serial)
    }

    /// As `get_mut`, for a connection that its owner still has.
    #[inline]
    pub fn owned(&mut self, id: TcpId) -> Option<&mut Flow> {
        self.get_mut(id).filter(|flow| flow.has_owner())
    }

    /// The owner is to be told what has become of it.
    #[inline]
    pub fn touch(&mut self, index: u32) {
        let flow = &mut self.slab[index as usize];
        if !std::mem::replace(&mut flow.touched, true) {
            self.touched.push(TcpId { index, serial: flow.serial });
        }
    }

    /// It may have something to send.
    #[inline]
    pub fn soil(&mut self, index: u32) {
        let flow = &mut self.slab[index as usize];
        if !std::mem::replace(&mut flow.dirty, true) {
            self.dirty.push(TcpId { index, serial: flow.serial });
        }
    }

    /// Forgets who is not there any more. While nothing can be sent nobody else does, and peers may come and go.
    pub fn tidy_dirty(&mut self) {
        if self.dirty.len() > 64 + 2 * self.len() {
            let slab = &self.slab;
            self.dirty.retain(|id| slab[id.index as usize].serial == id.serial);
        }
    }

    /// The owner has closed it; it goes on until the peer has taken everything.
    pub fn orphan(&mut self, index: u32) {
        let flow = &mut self.slab[index as usize];
        if std::mem::replace(&mut flow.stage, Stage::Orphan) == Stage::Orphan {
            return;
        }
        self.orphans.push_back(TcpId { index, serial: flow.serial });
        self.orphan_count += 1;
        if self.orphans.len() > 64 + 2 * self.orphan_count {
            let slab = &self.slab;
            self.orphans.retain(|id| slab[id.index as usize].serial == id.serial);
        }
    }

    pub fn orphans(&self) -> usize {
        self.orphan_count
    }

    /// The one that was closed longest ago. It is not told again.
    pub fn oldest_orphan(&mut self) -> Option<u32> {
        while let Some(id) = self.orphans.pop_front() {
            if self.get(id).is_some() {
                return Some(id.index);
            }
        }
        None
    }

    /// A place for a connection whose key is not there yet. `None`: there is no room, or no buffer.
    pub fn insert(&mut self, birth: Birth, protocol: &mut Smoltcp) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let pair = self.arena.take()?;
        let Birth { key, path, stage, owner, listener, mtu, isn, give_up_at } = birth;
        let is_client = stage == Stage::Connecting;
        let overhead = if key.is_v4() { 20 } else { 40 };
        let begin = Begin {
            local_port: key.local().port(),
            remote_port: key.remote().port(),
            mtu: mtu - overhead + 20,
            keep_alive: self.keep_alive,
        };
        let mut start = |old| match is_client {
            true => protocol.connect(old, (&self.arena, &pair), begin),
            false => protocol.listen(old, (&self.arena, &pair), begin),
        };
        let (index, serial, engine) = match self.free.pop() {
            Some(index) => {
                let old = &mut self.slab[index as usize];
                let engine = std::mem::replace(&mut old.engine, Smoltcp::nothing());
                (index, old.serial, start(Some(engine)))
            }
            None => (self.slab.len() as u32, 0, start(None)),
        };
        let flow = Flow {
            key,
            serial,
            owner,
            stage,
            touched: false,
            dirty: false,
            blocked: false,
            is_stranded: false,
            ends: false,
            is_client,
            synced: false,
            shift: 0,
            offered_shift: 0,
            mtu,
            dont_fragment: true,
            delta: 0,
            isn,
            irs: 0,
            taken: 0,
            ack_in: isn,
            window_in: 0,
            peer_shift: 0,
            sent_end: isn,
            ack_sent: 0,
            edge: 0,
            wheel_at: NEVER,
            heard_at: 0,
            give_up_at,
            challenge_at: 0,
            listener,
            recovery: Recovery::default(),
            path,
            pair: Some(pair),
            engine,
        };
        if is_client {
            *self.outgoing.entry(key.pair()).or_default() += 1;
        }
        if index as usize == self.slab.len() {
            self.slab.push(flow);
        } else {
            self.slab[index as usize] = flow;
        }
        let Self { slab, hasher, table, .. } = self;
        table.insert_unique(key.hash_with(hasher), index, |&index| slab[index as usize].key.hash_with(hasher));
        Some(index)
    }

    /// The connection's place, buffers and port are free again. Its engine stays until the place is taken, with rings that
    /// may be another's by then: from here on only its state may be asked.
    pub fn remove(&mut self, index: u32) {
        let flow = &mut self.slab[index as usize];
        let Some(pair) = flow.pair.take() else { return };
        flow.serial = flow.serial.wrapping_add(1);
        self.orphan_count -= usize::from(flow.stage == Stage::Orphan);
        flow.stage = Stage::Dead;
        let key = flow.key;
        if flow.is_client
            && let Some(count) = self.outgoing.get_mut(&key.pair())
        {
            *count -= 1;
            if *count == 0 {
                self.outgoing.remove(&key.pair());
            }
        }
        self.arena.give_back(pair);
        if let Ok(entry) = self.table.find_entry(key.hash_with(&self.hasher), |&found| found == index) {
            entry.remove();
        }
        self.free.push(index);
    }
}
