//! The client's state machine: operations in, answers out, across nodes that fail, move slots and come back. Without I/O
//! and clock: `client/thread.rs` moves the bytes and tells the time.
//!
//! Every operation is cut into pieces, each a command for one slot. A piece is at any moment in exactly one place: on a
//! link (`Expected::Piece`), with a node whose link is not up (`waiting`), among those nobody serves (`orphans`), or put
//! off (`later`). It leaves by an answer, by a failure that nothing cures, or when its operation's time is over. Places
//! hold numbers; a number whose piece is gone means nothing.
//!
//! Call order: [`Cluster::submit`], [`Cluster::opened`], [`Cluster::received`] and [`Cluster::lost`] as things happen,
//! [`Cluster::tick`] at [`Cluster::wake`]; after any of them, [`Cluster::take_orders`] and what is unsent of
//! [`Cluster::take_dirty`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::answer::{Answer, Failure};
use super::counters::Counters;
use super::lease::{Lapsed, Leases, Lock};
use super::link::{Expected, Link, Phase};
use super::news::News;
use super::operation::{Operation, Piece, Target};
use super::request::Request;
use super::resp::{self, Reply};
use super::settings::Settings;
use super::slots::{SLOTS, Tables};
use super::topology::{Address, MAX_NODES, Owners, Range, Remedy, SlotSet, ranges, remedy};

/// Which connection of which node: `node * LANES + lane`.
pub type Key = usize;
pub const LANES: usize = 2;
const MAIN: usize = 0;
/// `WAIT` stalls what comes behind it: it has a connection of its own.
const WAITING: usize = 1;

/// Redirections that are followed at once; further ones are put off.
const REDIRECTIONS: u32 = 8;
/// Times that nodes are told a piece's script.
const SCRIPT_LOADS: u32 = 3;
const TRY_AGAIN: Duration = Duration::from_millis(5);
const PUT_OFF: Duration = Duration::from_millis(25);
/// Between two questions for the topology, while something is wrong.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// While nothing is wrong, or seems so: a master on the lesser side of a partition does not know.
const ASK_ANYWAY: Duration = Duration::from_secs(2);
const ASK_SOON: Duration = Duration::from_millis(20);
/// Another node is asked when one has not said in that time who serves what.
const ASK_ANOTHER: Duration = Duration::from_millis(250);
/// `WAIT`s of a node under way at once, and pieces that share one.
const WAITS: usize = 2;
const SHARE_A_WAIT: usize = 256;

/// What the owner of the sockets is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    Connect(Key, u32, Address),
    Close(Key, u32),
}

struct Sending {
    operation: u64,
    piece: Piece,
    /// It was given to a connection that was lost before it answered: it may have been carried out.
    doubtful: bool,
    /// It is on a connection now.
    sent: bool,
    redirections: u32,
    script_loads: u32,
    /// The generation of the node's second connection when it was sent.
    lane: u32,
    /// Why it is not done yet.
    why: String,
}

/// An operation, its pieces that are not done, and when it was asked for, as leases count ([`Cluster::suspended`]).
struct UnderWay {
    operation: Operation,
    pieces: Vec<u64>,
    since: Instant,
}

struct Node {
    address: Address,
    links: [Link; LANES],
    is_seed: bool,
    /// Owns slots.
    serves: bool,
    /// Somebody asked for `replicas`.
    waits: bool,
    /// Pieces for when the link is up; whether each is to follow `ASKING`.
    waiting: VecDeque<(u64, bool)>,
    /// Pieces that are written here and shall reach replicas.
    written: VecDeque<u64>,
    /// The mark before a `WAIT` was refused: that `WAIT` says nothing.
    unmarked: bool,
    /// Slots that this connection has answered for: of these, and no others, it tells what changes.
    answered: SlotSet,
}

pub struct Cluster {
    settings: Settings,
    pub tables: Tables,
    nodes: Vec<Option<Node>>,
    by_address: HashMap<Address, usize>,
    owners: Owners,
    /// How often they have changed.
    epoch: u64,
    /// Some slot has no master.
    incomplete: bool,
    operations: HashMap<u64, UnderWay>,
    deadlines: VecDeque<(Instant, u64)>,
    pieces: HashMap<u64, Sending>,
    next_piece: u64,
    orphans: Vec<u64>,
    later: BinaryHeap<Reverse<(Instant, u64)>>,
    /// When the topology is to be asked for, and who is being asked since when.
    ask_at: Option<Instant>,
    asked: Option<(Key, Instant)>,
    ask_next: usize,
    orders: Vec<Order>,
    dirty: Vec<Key>,
    wake: Option<Instant>,
    random: u32,
    leases: Leases,
    renewals: u64,
    beat: Instant,
    suspended: Duration,
    pub done: Vec<(u64, Answer)>,
    pub news: News,
    /// Locks lost without having been given back.
    pub lapsed: Vec<Lapsed>,
    pub counters: Counters,
}

impl Cluster {
    /// `random`: any number, other ones for other clients.
    pub fn new(settings: Settings, random: u32, now: Instant) -> Self {
        let seeds = settings.seeds.clone();
        let mut cluster = Self {
            settings,
            tables: Tables::default(),
            nodes: Vec::new(),
            by_address: HashMap::new(),
            owners: Owners::default(),
            epoch: 0,
            incomplete: true,
            operations: HashMap::new(),
            deadlines: VecDeque::new(),
            pieces: HashMap::new(),
            next_piece: 0,
            orphans: Vec::new(),
            later: BinaryHeap::new(),
            ask_at: None,
            asked: None,
            ask_next: random as usize,
            orders: Vec::new(),
            dirty: Vec::new(),
            wake: Some(now),
            random: random | 1,
            leases: Leases::default(),
            renewals: 0,
            beat: now,
            suspended: Duration::ZERO,
            done: Vec::new(),
            news: News::default(),
            lapsed: Vec::new(),
            counters: Counters::default(),
        };
        for address in seeds {
            if let Some(node) = cluster.node(&address, now) {
                cluster.node_mut(node).is_seed = true;
            }
        }
        if !cluster.settings.cluster {
            cluster.owners.set(0, SLOTS - 1, 0);
            cluster.node_mut(0).serves = true;
            cluster.incomplete = false;
        }
        cluster
    }

    // --- what is asked of it ------------------------------------------------------------------------------------------

    pub fn submit(&mut self, id: u64, request: Request, now: Instant) {
        let deadline = now + self.settings.timeout;
        if let Request::Unlock { table, key, owner } = &request {
            self.leases.gone(&Lock { table: *table, key: key.clone(), owner: *owner });
        }
        let masters = self.masters();
        let (operation, pieces) = Operation::begin(request, &self.tables, &masters, self.epoch);
        if self.deadlines.len() > 1024 + 2 * self.operations.len() {
            self.deadlines.retain(|(_, id)| self.operations.contains_key(id));
        }
        self.deadlines.push_back((deadline, id));
        self.wake_at(self.deadlines[0].0);
        let since = now + self.suspended;
        let under_way = UnderWay { operation, pieces: Vec::with_capacity(pieces.len()), since };
        self.operations.insert(id, under_way);
        self.add(id, pieces, now);
        self.finish_if_over(id);
    }

    /// The nodes that serve slots, as [`Target::Node`] names them.
    fn masters(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].as_ref().is_some_and(|node| node.serves)).collect()
    }

    fn add(&mut self, id: u64, pieces: Vec<Piece>, now: Instant) {
        for piece in pieces {
            let number = self.next_piece;
            self.next_piece += 1;
            let sending = Sending {
                operation: id,
                piece,
                doubtful: false,
                sent: false,
                redirections: 0,
                script_loads: 0,
                lane: 0,
                why: String::new(),
            };
            self.pieces.insert(number, sending);
            if let Some(under_way) = self.operations.get_mut(&id) {
                under_way.pieces.push(number);
            }
            self.route(number, now);
        }
    }

    fn route(&mut self, number: u64, now: Instant) {
        let Some(sending) = self.pieces.get_mut(&number) else { return };
        let node = match sending.piece.target {
            Target::Slot(slot) => self.owners.of(slot),
            Target::Node(node) if self.nodes.get(node).is_some_and(Option::is_some) => Some(node),
            Target::Node(_) => return self.fail(number, Failure::Unavailable("its node is gone".to_owned())),
        };
        match node {
            Some(node) => self.give(node, number, false, now),
            None => {
                "no node serves its slot".clone_into(&mut sending.why);
                self.orphans.push(number);
                self.ask(ASK_AGAIN, now);
            }
        }
    }

    /// Puts a piece on the node's link, or with what waits for that.
    fn give(&mut self, at: usize, number: u64, asking: bool, now: Instant) {
        let Some(sending) = self.pieces.get_mut(&number) else { return };
        let Some(node) = self.nodes[at].as_mut() else { return };
        let replicas = sending.piece.replicas > 0;
        if replicas && !node.waits {
            node.waits = true;
            self.wake = Some(now);
        }
        if !node.links[MAIN].is_up() || replicas && !node.links[WAITING].is_up() {
            node.waiting.push_back((number, asking));
            self.wake_if_resting(at, now);
            return;
        }
        sending.sent = true;
        sending.lane = node.links[WAITING].generation;
        let link = &mut node.links[MAIN];
        if asking {
            link.push_words(Expected::Anything, &[b"ASKING"], now);
        }
        link.push(Expected::Piece(number), &sending.piece.command, now);
        self.touched(at * LANES + MAIN, now);
    }

    fn wake_if_resting(&mut self, at: usize, now: Instant) {
        let resting = self.nodes[at]
            .as_ref()
            .is_some_and(|node| node.links.iter().any(|link| link.phase == (Phase::Resting { until: None })));
        if resting {
            self.wake_at(now);
        }
    }

    /// There is something to send; then it is seen to that it is answered, and after that that somebody still is there.
    fn touched(&mut self, key: Key, now: Instant) {
        if self.dirty.last() != Some(&key) {
            self.dirty.push(key);
        }
        self.wake_at(now + self.settings.silence / 2);
    }

    // --- what connections tell ----------------------------------------------------------------------------------------

    /// The connection of that generation is there.
    pub fn opened(&mut self, key: Key, generation: u32, now: Instant) {
        let greetings = self.settings.greetings(key % LANES == MAIN);
        if let Some(link) = self.link(key, generation) {
            link.connected(&greetings, now);
            self.touched(key, now);
        }
    }

    /// Where to read what the connection has; nothing when it is not wanted any more.
    pub fn room(&mut self, key: Key, generation: u32) -> Option<&mut [u8]> {
        self.link(key, generation).map(|link| link.reader.room())
    }

    /// So many bytes were read into the room.
    pub fn received(&mut self, key: Key, generation: u32, count: usize, now: Instant) {
        let Some(link) = self.link(key, generation) else { return };
        link.heard(now);
        link.reader.filled(count);
        // Taken out, because replies borrow from it and everything else is changed by them.
        let mut reader = std::mem::replace(&mut link.reader, resp::Reader::new(0));
        loop {
            let why = match reader.next() {
                Ok(Some(reply)) => match self.replied(key, generation, reply, now) {
                    Ok(()) => continue,
                    Err(why) => why,
                },
                Ok(None) => break,
                Err(malformed) => {
                    self.counters.garbage += 1;
                    if malformed == resp::TOO_LONG {
                        self.answer_too_long(key, generation, now);
                    }
                    // Whoever greets like that is no store.
                    self.news.hopeless |= self.link(key, generation).is_some_and(|link| !link.is_up());
                    format!("answered what is not RESP3: {malformed}")
                }
            };
            return self.lost(key, generation, why, now);
        }
        if let Some(link) = self.link(key, generation) {
            link.reader = reader;
        }
    }

    /// An error ends the connection.
    fn replied(&mut self, key: Key, generation: u32, reply: Reply<'_>, now: Instant) -> Result<(), String> {
        if let Reply::Push(push) = reply {
            self.news.pushed(push, &self.tables, &mut self.counters);
            return Ok(());
        }
        let Some(link) = self.link(key, generation) else { return Ok(()) };
        let Some(expected) = link.expected.pop_front() else {
            self.counters.garbage += 1;
            return Err("answered what nobody had asked".to_owned());
        };
        match expected {
            Expected::Piece(number) => self.piece_replied(key, number, reply, now),
            Expected::Greeting => {
                if let Reply::Error(error) = reply {
                    let text = words(error);
                    // Who may only read has no use for scripts; who writes is refused by the write.
                    let phase = self.link_mut(key).phase;
                    if key % LANES == MAIN && Settings::is_script(phase) && text.starts_with("NOPERM") {
                        return self.agreed(key, generation, now);
                    }
                    let will_pass = ["LOADING", "BUSY", "ERR max number of clients"];
                    self.news.hopeless |= !will_pass.iter().any(|begins| text.starts_with(begins));
                    return Err(format!("refused: {text}"));
                }
                self.settings.fits(reply).inspect_err(|_| self.news.hopeless = true)?;
                return self.agreed(key, generation, now);
            }
            Expected::Slots => {
                self.asked = None;
                if let Reply::Error(error) = reply
                    && error.starts_with(b"NOPERM")
                {
                    self.news.hopeless = true;
                    return Err(format!("refused: {}", words(error)));
                }
                let address = self.node_mut(key / LANES).address.clone();
                match ranges(reply, &address) {
                    Some(ranges) => self.learn(&ranges, now),
                    None => self.ask(ASK_AGAIN, now),
                }
            }
            Expected::Mark => self.node_mut(key / LANES).unmarked = matches!(reply, Reply::Error(_)),
            Expected::Wait(numbers) => self.waited(key / LANES, numbers, reply, now),
            Expected::Anything => {}
        }
        Ok(())
    }

    /// One greeting is done with.
    fn agreed(&mut self, key: Key, generation: u32, now: Instant) -> Result<(), String> {
        if self.link(key, generation).is_some_and(Link::greeted) {
            self.up(key, now);
        }
        Ok(())
    }

    fn up(&mut self, key: Key, now: Instant) {
        let at = key / LANES;
        let waiting = std::mem::take(&mut self.node_mut(at).waiting);
        for (number, asking) in waiting {
            self.give(at, number, asking, now);
        }
        self.counters.connects += 1;
        self.wake_at(now);
        if self.settings.cluster && self.incomplete {
            self.ask(Duration::ZERO, now);
        }
    }

    /// The connection of that generation is gone, did not come about, or is of no use.
    pub fn lost(&mut self, key: Key, generation: u32, why: String, now: Instant) {
        let spread = self.spread();
        let Some(link) = self.link(key, generation) else { return };
        let was_up = link.is_up();
        let expected = link.lost(why, spread, now);
        self.orders.push(Order::Close(key, generation));
        self.counters.disconnects += u64::from(was_up);
        self.dropped(key, was_up, expected, now);
    }

    /// Not the server that was meant: waiting does not help.
    pub fn distrust(&mut self, key: Key, generation: u32, why: String, now: Instant) {
        self.news.hopeless |= self.link(key, generation).is_some();
        self.lost(key, generation, why, now);
    }

    /// Everything that was expected of a connection goes its way again.
    fn dropped(&mut self, key: Key, was_up: bool, expected: VecDeque<Expected>, now: Instant) {
        if was_up && key % LANES == MAIN {
            self.deaf(key / LANES);
        }
        if self.asked.is_some_and(|(asked, _)| asked == key) {
            self.asked = None;
        }
        let mut again: Vec<u64> = Vec::new();
        for expected in expected {
            match expected {
                Expected::Piece(number) => again.push(number),
                Expected::Wait(numbers) => again.extend(numbers),
                _ => {}
            }
        }
        if key % LANES == WAITING {
            again.extend(std::mem::take(&mut self.node_mut(key / LANES).written));
        }
        let why = self.link_mut(key).why.clone();
        for number in again {
            self.again(number, &why, now);
        }
        self.ask(ASK_SOON, now);
        self.wake_at(now);
    }

    /// Invalidations by this node's connection are missed from now on.
    fn deaf(&mut self, at: usize) {
        let answered = std::mem::take(&mut self.node_mut(at).answered);
        self.news.slots_stale(&self.tables, |slot| answered.has(slot));
    }

    /// A piece whose connection was lost.
    fn again(&mut self, number: u64, why: &str, now: Instant) {
        let Some(sending) = self.pieces.get_mut(&number) else { return };
        sending.sent = false;
        sending.doubtful |= sending.piece.writes;
        why.clone_into(&mut sending.why);
        self.counters.retries += 1;
        self.route(number, now);
    }

    // --- the end of pieces and operations -----------------------------------------------------------------------------

    fn forget(&mut self, number: u64) -> Option<Sending> {
        let sending = self.pieces.remove(&number)?;
        if let Some(under_way) = self.operations.get_mut(&sending.operation) {
            under_way.pieces.retain(|&other| other != number);
        }
        Some(sending)
    }

    fn fail(&mut self, number: u64, failure: Failure) {
        let Some(sending) = self.forget(number) else { return };
        let failure = match failure {
            // An earlier attempt may have gone through.
            Failure::Refused(why) if sending.doubtful => Failure::Unknown(why),
            failure => failure,
        };
        if let Some(under_way) = self.operations.get_mut(&sending.operation) {
            under_way.operation.failed(&sending.piece, failure);
        }
        self.finish_if_over(sending.operation);
    }

    /// An outdated operation is not over when its pieces are.
    fn begin_again(&mut self, id: u64, now: Instant) {
        let masters = self.masters();
        let under_way = self.operations.get_mut(&id).filter(|under_way| under_way.pieces.is_empty());
        if let Some(UnderWay { operation, .. }) = under_way {
            let pieces = operation.begin_again(&self.tables, &masters, self.epoch);
            self.add(id, pieces, now);
        }
    }

    fn finish_if_over(&mut self, id: u64) {
        if self.operations.get(&id).is_some_and(|under_way| under_way.pieces.is_empty())
            && let Some(UnderWay { operation, since, .. }) = self.operations.remove(&id)
        {
            let (request, answer) = operation.finish();
            match (request, &answer) {
                (Request::Lock { table, key, owner, lease_ms, hold_ms }, Answer::Fence(Some(_))) => {
                    let lock = Lock { table, key, owner };
                    let hold = (hold_ms > 0).then(|| Duration::from_millis(hold_ms));
                    self.leases.held(lock, Duration::from_millis(lease_ms), hold, since);
                    self.next_lease().into_iter().for_each(|at| self.wake_at(at));
                }
                (Request::Renew { table, key, owner, .. }, _) => {
                    return self.renewed(Lock { table, key, owner }, &answer, since);
                }
                _ => {}
            }
            self.done.push((id, answer));
        }
    }
}

mod members;
mod replies;
#[cfg(test)]
mod tests;
mod time;

pub use members::Gauges;

fn words(error: &[u8]) -> String {
    // Enough for a person; a store may say anything.
    String::from_utf8_lossy(&error[..error.len().min(300)]).into_owned()
}
