//! Two hosts, a network between them and what their owners do, in virtual time. All of it follows from a seed.
//!
//! The oracle: bytes arrive in order and unchanged; events come in the order of the model's table; a connection ends on
//! both sides, or with a reason; at the end nothing of it is left.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::model::{Life, Step};
use super::network::{Network, Weather};
use super::random::Random;
use crate::stack::bench::segment::{self, Segment};
use crate::stack::bench::{Bench, station};
use crate::stack::tcp::{Gone, TcpConfig, TcpEvent, TcpId};
use crate::stack::{HostConfig, Input};

pub const LISTENS: u16 = 80;
pub const REFUSES: u16 = 81;
/// After so long everything must be over.
const LIMIT: Duration = Duration::from_secs(1_800);

#[derive(Clone, Copy, Debug)]
pub enum Appetite {
    Greedy,
    /// So many bytes, then a pause.
    Sips(usize, Duration),
    /// Nothing before that time.
    Fasts(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Half-closes when all is queued, closes when the peer has ended too.
    End,
    /// Closes when all is queued and the peer has ended.
    AfterPeer,
    /// Closes when all is queued.
    Close,
    /// Aborts after so many bytes in both directions, or when there is nothing else to do.
    Abort(usize),
}

/// What one side does with a connection.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub bytes: usize,
    /// How far it may be ahead of what it has received: 0 echoes, one message plays ping-pong.
    pub lead: usize,
    /// At most so many per call.
    pub write: usize,
    pub appetite: Appetite,
    pub finish: Finish,
    /// Asks for room or data instead of trying.
    pub asks: bool,
}

impl Script {
    pub const fn sending(bytes: usize) -> Self {
        Self {
            bytes,
            lead: usize::MAX,
            write: usize::MAX,
            appetite: Appetite::Greedy,
            finish: Finish::End,
            asks: false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub begin: Duration,
    /// The station that opens.
    pub client: usize,
    pub port: u16,
    /// By station.
    pub scripts: [Script; 2],
    /// The other side aborts it when it is offered.
    pub is_turned_away: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Change {
    Cut,
    Join,
    Mtu(usize),
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub is_v4: bool,
    pub mtu: [usize; 2],
    pub weather: Weather,
    pub changes: Vec<(Duration, Change)>,
    pub ends_after: Option<(usize, Option<usize>)>,
    pub tcp: [TcpConfig; 2],
    /// The first initial sequence number of each station.
    pub isn: [u32; 2],
    /// How seldom a station looks at its port.
    pub poll: [Duration; 2],
    /// The chance that a port has little room, in ten thousand flushes.
    pub full: u32,
    pub plans: Vec<Plan>,
}

/// How a side's part in a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Closed after the peer's end, with every byte of it.
    Finished,
    Closed,
    Aborted,
    Gone(Gone),
}

#[derive(Debug)]
pub struct End {
    script: Script,
    life: Life,
    id: Option<TcpId>,
    pub queued: usize,
    pub received: usize,
    pub has_seen_end: bool,
    is_blocked: bool,
    rests: bool,
    /// The burst of events in which its owner gave it back.
    left_in: Option<usize>,
    pub outcome: Option<Outcome>,
}

#[derive(Debug)]
enum Task {
    Frame(usize, Vec<u8>),
    Open(usize),
    Act(usize, usize),
    Flush(usize),
    Change(Change),
}

struct Station {
    bench: Bench,
    ids: HashMap<TcpId, usize>,
    /// Every id it ever had.
    all: HashSet<TcpId>,
    inbox: Vec<Vec<u8>>,
    acts: Vec<usize>,
    opens: Vec<usize>,
    is_woken: bool,
}

pub struct World {
    scenario: Scenario,
    base: Instant,
    pub now: Duration,
    pub network: Network,
    random: Random,
    stations: [Station; 2],
    pub connections: Vec<[End; 2]>,
    by_address: HashMap<SocketAddr, usize>,
    agenda: BTreeMap<(Duration, u64), Task>,
    number: u64,
    traces: bool,
    turns: usize,
    busiest: usize,
    /// Segments across the end of the sequence space.
    pub wraps: usize,
    /// By sender and receiver: the shift of the windows it states, and the right edge of the furthest.
    edges: HashMap<(SocketAddr, SocketAddr), (u8, Option<u32>)>,
}

/// Prints the seed of a run that panics.
pub struct Witness<'a>(pub &'a Scenario);

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("LIBVNF_SEED={} fails: {:#?}", self.0.seed, self.0);
        }
    }
}

/// What a stream carries at `offset`: no shift of it looks like it.
fn byte(stream: usize, offset: usize) -> u8 {
    let mixed = (offset as u32 ^ (stream as u32) << 20).wrapping_mul(0x9e37_79b1);
    (mixed >> 24) as u8 ^ (mixed >> 13) as u8
}

pub fn address(is_v4: bool, side: usize) -> IpAddr {
    let last = side as u8 + 2;
    if is_v4 { [10, 0, 0, last].into() } else { [0xfd00, 0, 0, 0, 0, 0, 0, last.into()].into() }
}

impl World {
    pub fn new(scenario: Scenario) -> Self {
        let stations = [0, 1].map(|side| {
            let config =
                HostConfig { mtu: scenario.mtu[side], tcp: scenario.tcp[side].clone(), ..station(side as u8 + 2) };
            let mut bench = Bench::of(config, vec![(2_048, 64), (16_384, 64)]);
            bench.know(scenario.seed, scenario.isn[side]);
            bench.host.tcp_listen(None, LISTENS, 7).expect("the first listener");
            Station {
                bench,
                ids: HashMap::new(),
                all: HashSet::new(),
                inbox: Vec::new(),
                acts: Vec::new(),
                opens: Vec::new(),
                is_woken: false,
            }
        });
        let end = |script| End {
            script,
            life: Life::Nothing,
            id: None,
            queued: 0,
            received: 0,
            has_seen_end: false,
            is_blocked: false,
            rests: false,
            left_in: None,
            outcome: None,
        };
        let mut network = Network::new(scenario.seed ^ 0x5eed, scenario.weather);
        network.ends_after = scenario.ends_after;
        let mut world = Self {
            base: stations[0].bench.now,
            now: Duration::ZERO,
            network,
            random: Random(scenario.seed ^ 0xac75),
            connections: scenario.plans.iter().map(|plan| plan.scripts.map(end)).collect(),
            stations,
            by_address: HashMap::new(),
            agenda: BTreeMap::new(),
            number: 0,
            traces: std::env::var_os("LIBVNF_TRACE").is_some(),
            turns: 0,
            busiest: 0,
            wraps: 0,
            edges: HashMap::new(),
            scenario,
        };
        for index in 0..world.connections.len() {
            world.plan(world.scenario.plans[index].begin, Task::Open(index));
        }
        for index in 0..world.scenario.changes.len() {
            let (at, change) = world.scenario.changes[index];
            world.plan(at, Task::Change(change));
        }
        world
    }

    /// Runs a scenario to its end and proves that nothing is left.
    pub fn run(scenario: &Scenario) -> Self {
        let mut world = Self::new(scenario.clone());
        while world.step() {}
        world.check_the_end();
        world
    }

    fn plan(&mut self, at: Duration, task: Task) {
        let at = match &task {
            Task::Frame(side, _) => {
                let poll = self.scenario.poll[*side].as_nanos().max(1);
                Duration::from_nanos((at.as_nanos().div_ceil(poll) * poll) as u64)
            }
            _ => at,
        };
        self.number += 1;
        self.agenda.insert((at, self.number), task);
    }

    fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// Goes on to the next thing that happens. `false`: nothing does.
    fn step(&mut self) -> bool {
        let task = self.agenda.first_key_value().map(|(key, _)| key.0);
        let timers = self.stations.iter().filter_map(|station| station.bench.host.deadline());
        let timer = timers.min().map(|at| at.saturating_duration_since(self.base));
        let Some(next) = [task, timer].into_iter().flatten().min() else { return false };
        assert!(next < LIMIT, "not over after {LIMIT:?}: {:#?}", self.unfinished());
        self.busiest = if next > self.now { 0 } else { self.busiest + 1 };
        assert!(self.busiest < 1_000, "time stands still at {:?}: {:#?}", self.now, self.unfinished());
        self.now = self.now.max(next);
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            match entry.remove() {
                Task::Frame(side, frame) => self.stations[side].inbox.push(frame),
                Task::Open(index) => self.stations[self.scenario.plans[index].client].opens.push(index),
                Task::Act(side, index) => self.stations[side].acts.push(index),
                Task::Flush(side) => {
                    self.stations[side].bench.port.room = usize::MAX;
                    self.stations[side].is_woken = true;
                }
                Task::Change(Change::Cut) => self.network.is_cut = true,
                Task::Change(Change::Join) => self.network.is_cut = false,
                Task::Change(Change::Mtu(mtu)) => self.network.mtu = mtu,
            }
        }
        for side in [0, 1] {
            self.turn(side);
        }
        true
    }

    /// One turn of an owner's loop.
    fn turn(&mut self, side: usize) {
        let now = self.instant();
        let station = &mut self.stations[side];
        station.bench.now = now;
        let is_due = station.bench.host.deadline().is_some_and(|at| at <= now);
        let is_idle = station.inbox.is_empty() && station.acts.is_empty() && station.opens.is_empty();
        if !is_due && is_idle && !std::mem::take(&mut station.is_woken) {
            return;
        }
        for frame in std::mem::take(&mut station.inbox) {
            let input = station.bench.receive(&frame);
            assert!(matches!(input, Input::Consumed), "{input:?}");
        }
        if is_due {
            station.bench.pass(Duration::ZERO);
        }
        self.turns += 1;
        let mut events = Vec::new();
        station.bench.host.tcp_events(&mut events);
        for event in events {
            self.react(side, event);
        }
        for index in std::mem::take(&mut self.stations[side].acts) {
            self.connections[index][side].rests = false;
            self.progress(side, index);
        }
        for index in std::mem::take(&mut self.stations[side].opens) {
            self.open(side, index);
        }
        let is_full = self.random.in_ten_thousand(self.scenario.full);
        let few = self.random.between(0, 3);
        let host = &mut self.stations[side].bench;
        if is_full && host.port.room == usize::MAX {
            host.port.room = few;
            self.plan(self.now + Duration::from_millis(1), Task::Flush(side));
        }
        let Bench { host, port, .. } = &mut self.stations[side].bench;
        host.tcp_flush(now, port);
        let mut arrivals = Vec::new();
        for frame in std::mem::take(&mut self.stations[side].bench.port.sent) {
            self.check_frame(side, &frame);
            self.network.carry(frame, 1 - side, self.now, &mut arrivals);
        }
        for (at, to, frame) in arrivals {
            self.plan(at, Task::Frame(to, frame));
        }
    }

    fn open(&mut self, side: usize, index: usize) {
        let remote = SocketAddr::new(address(self.scenario.is_v4, 1 - side), self.scenario.plans[index].port);
        let (now, owner) = (self.instant(), index as u32);
        let timeout = self.scenario.tcp[side].handshake_timeout;
        let host = &mut self.stations[side].bench.host;
        let id = host.tcp_open(remote, owner, timeout, now).expect("a free port");
        let local = host.tcp_local(id).expect("the address of a new connection");
        assert_eq!((local.ip(), host.tcp_remote(id)), (address(self.scenario.is_v4, side), Some(remote)));
        self.by_address.insert(local, index);
        self.begin(side, index, id, Step::Open);
    }

    fn begin(&mut self, side: usize, index: usize, id: TcpId, step: Step) {
        assert!(self.stations[side].all.insert(id), "{id:?} is used twice");
        self.stations[side].ids.insert(id, index);
        let end = &mut self.connections[index][side];
        end.id = Some(id);
        end.life = end.life.after(step);
    }

    fn react(&mut self, side: usize, event: TcpEvent) {
        if self.traces {
            eprintln!("{:>12.6} {side} {event:?}", self.now.as_secs_f64());
        }
        let (id, owner) = match event {
            TcpEvent::Accepted { id, listener } => {
                assert_eq!(listener, 7);
                return self.accept(side, id);
            }
            TcpEvent::Connected { id, owner }
            | TcpEvent::Readable { id, owner }
            | TcpEvent::Writable { id, owner }
            | TcpEvent::Closed { id, owner, .. } => (id, owner),
        };
        let Some(&index) = self.stations[side].ids.get(&id) else { panic!("{event:?} of an unknown connection") };
        assert_eq!(owner as usize, index, "{event:?} of another's connection");
        let end = &mut self.connections[index][side];
        if end.left_in == Some(self.turns) {
            // Told before the owner, who has just heard of the burst's first events, had given it back.
            return;
        }
        end.life = end.life.after(Step::from(&event));
        match event {
            TcpEvent::Closed { reason, .. } => {
                end.outcome = Some(Outcome::Gone(reason));
                self.check_stale(side, index);
            }
            TcpEvent::Writable { .. } => {
                assert!(end.is_blocked, "room that nobody asked for");
                end.is_blocked = false;
                self.progress(side, index);
            }
            _ => self.progress(side, index),
        }
    }

    fn accept(&mut self, side: usize, id: TcpId) {
        let host = &mut self.stations[side].bench.host;
        let remote = host.tcp_remote(id).expect("the address of an accepted connection");
        let index = self.by_address[&remote];
        assert_eq!(host.tcp_local(id), Some(SocketAddr::new(address(self.scenario.is_v4, side), LISTENS)));
        self.begin(side, index, id, Step::Accepted);
        if self.scenario.plans[index].is_turned_away {
            return self.finish(side, index, Step::Abort, Outcome::Aborted);
        }
        assert!(self.stations[side].bench.host.tcp_adopt(id, index as u32), "gone before it was adopted");
        let end = &mut self.connections[index][side];
        end.life = end.life.after(Step::Adopt);
        self.progress(side, index);
    }

    /// Reads, writes and ends as the script says.
    fn progress(&mut self, side: usize, index: usize) {
        let end = &self.connections[index][side];
        if !matches!(end.life, Life::Open | Life::Ended) {
            return;
        }
        self.read(side, index);
        self.write(side, index);
        let end = &self.connections[index][side];
        let peer = &self.connections[index][1 - side];
        let Script { bytes, finish, .. } = end.script;
        let is_done = end.queued == bytes;
        match finish {
            Finish::End if is_done && end.life == Life::Open => {
                let id = end.id.expect("open");
                self.connections[index][side].life = Life::Open.after(Step::End);
                self.stations[side].bench.host.tcp_end(id);
                self.progress(side, index);
            }
            Finish::End | Finish::AfterPeer if is_done && end.has_seen_end => {
                self.finish(side, index, Step::Close, Outcome::Finished);
            }
            Finish::Close if is_done => {
                let outcome = if end.has_seen_end { Outcome::Finished } else { Outcome::Closed };
                self.finish(side, index, Step::Close, outcome);
            }
            Finish::Abort(after)
                if end.queued + end.received >= after.min(bytes + peer.script.bytes) || end.has_seen_end && is_done =>
            {
                self.finish(side, index, Step::Abort, Outcome::Aborted);
            }
            _ => {}
        }
    }

    fn finish(&mut self, side: usize, index: usize, step: Step, outcome: Outcome) {
        let end = &mut self.connections[index][side];
        end.life = end.life.after(step);
        end.outcome = Some(outcome);
        end.left_in = Some(self.turns);
        let id = end.id.expect("open");
        let host = &mut self.stations[side].bench.host;
        if step == Step::Close {
            host.tcp_close(id)
        } else {
            host.tcp_abort(id)
        }
        self.check_stale(side, index);
    }

    fn read(&mut self, side: usize, index: usize) {
        let now = self.now;
        let end = &mut self.connections[index][side];
        let (id, host) = (end.id.expect("open"), &mut self.stations[side].bench.host);
        let (mut most, again) = match end.script.appetite {
            Appetite::Greedy => (usize::MAX, None),
            Appetite::Sips(bytes, pause) if !end.rests => (bytes, Some(now + pause)),
            Appetite::Fasts(until) if now >= until => (usize::MAX, None),
            Appetite::Fasts(until) if !end.rests => (0, Some(until)),
            _ => return,
        };
        let stream = index * 2 + 1 - side;
        let before = end.received;
        loop {
            let received = end.received;
            let taken = host.tcp_receive(id, |bytes| {
                let taken = bytes.len().min(most);
                for (place, &found) in bytes[..taken].iter().enumerate() {
                    assert_eq!(found, byte(stream, received + place), "byte {} of stream {stream}", received + place);
                }
                (taken, taken)
            });
            let taken = taken.expect("an open connection");
            end.received += taken;
            most -= taken;
            if taken == 0 {
                break;
            }
        }
        if host.tcp_ended(id) && !end.has_seen_end {
            end.has_seen_end = true;
            let sent = self.connections[index][1 - side].queued;
            let end = &self.connections[index][side];
            assert_eq!(end.received, sent, "an end before the last byte");
        }
        let end = &mut self.connections[index][side];
        if let Some(again) = again
            && (end.received != before || most == 0)
            && !end.has_seen_end
        {
            end.rests = true;
            if end.script.asks {
                self.stations[side].bench.host.tcp_want_data(id);
            }
            self.plan(again, Task::Act(side, index));
        }
    }

    fn write(&mut self, side: usize, index: usize) {
        let end = &mut self.connections[index][side];
        if end.life != Life::Open || end.is_blocked {
            return;
        }
        let (id, host) = (end.id.expect("open"), &mut self.stations[side].bench.host);
        let Script { bytes, lead, write, asks, .. } = end.script;
        let stream = index * 2 + side;
        loop {
            let allowed = bytes.min(end.received.saturating_add(lead)) - end.queued;
            let mut count = allowed.min(write);
            if count == 0 {
                return;
            }
            if asks {
                count = count.min(host.tcp_room(id));
                if count == 0 {
                    host.tcp_want_room(id);
                    end.is_blocked = true;
                    return;
                }
            }
            let message: Vec<u8> = (end.queued..end.queued + count).map(|offset| byte(stream, offset)).collect();
            let room = host.tcp_room(id);
            let taken = host.tcp_send(id, &message);
            assert_eq!(taken, count.min(room), "of {count} bytes with room for {room}");
            end.queued += taken;
            if taken < count {
                end.is_blocked = true;
                return;
            }
        }
    }

    /// Nothing can be sent on a connection that its owner has given back.
    fn check_stale(&mut self, side: usize, index: usize) {
        let id = self.connections[index][side].id.expect("it was there");
        let host = &mut self.stations[side].bench.host;
        assert_eq!((host.tcp_room(id), host.tcp_send(id, b"x"), host.tcp_adopt(id, 9)), (0, 0, false));
    }

    /// What every frame of a host must keep to.
    fn check_frame(&mut self, side: usize, frame: &[u8]) {
        let (mtu, is_v4) = (self.scenario.mtu, self.scenario.is_v4);
        let segment = Segment::parse(frame);
        if self.traces {
            let text = segment.as_ref().map_or("(not TCP)".into(), |segment| {
                let names = ["F", "S", "R", "P", "A", "U"];
                let flags: String = (0..6).filter(|bit| segment.flags >> bit & 1 != 0).map(|bit| names[bit]).collect();
                format!(
                    "{} > {} {flags} {} ack {} win {} len {}",
                    segment.from.port(),
                    segment.to.port(),
                    segment.seq,
                    segment.ack,
                    segment.window,
                    segment.payload.len()
                )
            });
            eprintln!("{:>12.6} {side} sends {text}", self.now.as_secs_f64());
        }
        assert!(frame.len() <= 14 + mtu[side], "{} bytes on a link of {}", frame.len(), mtu[side]);
        let Some(segment) = segment else { return };
        self.wraps += usize::from(segment.next() < segment.seq);
        self.check_window(&segment);
        assert!(frame.len() <= 14 + mtu[1 - side].max(576), "{} bytes to a peer of {}", frame.len(), mtu[1 - side]);
        if segment.has(segment::SYN) {
            let mss = (mtu[side] - if is_v4 { 40 } else { 60 }) as u16;
            // Less where the path is known to carry less.
            let stated = segment.option(2).and_then(|bytes| Some(u16::from_be_bytes(bytes.try_into().ok()?)));
            assert!(stated.is_some_and(|stated| stated <= mss), "the MSS of {segment:?}");
        }
        assert!(is_v4 == segment.from.is_ipv4() && (!is_v4 || frame[20] & 0x40 != 0), "may be fragmented");
    }

    /// Nothing is sent beyond what the peer has ever offered, but one byte to see whether it is closed still.
    fn check_window(&mut self, segment: &Segment) {
        let (there, back) = ((segment.from, segment.to), (segment.to, segment.from));
        if segment.has(segment::SYN) {
            let shift = segment.option(3).map_or(0, |bytes| bytes[0]);
            let edge = segment.has(segment::ACK).then(|| segment.ack.wrapping_add(segment.window.into()));
            self.edges.insert(there, (shift, edge));
            return;
        }
        if segment.has(segment::RST) {
            return;
        }
        if let Some(&(_, Some(edge))) = self.edges.get(&back)
            && !segment.payload.is_empty()
        {
            let beyond = segment.seq.wrapping_add(segment.payload.len() as u32).wrapping_sub(edge) as i32;
            assert!(beyond <= 1, "{beyond} bytes beyond the window: {segment:?}");
        }
        if let Some((shift, edge)) = self.edges.get_mut(&there) {
            let stated = segment.ack.wrapping_add(u32::from(segment.window) << *shift);
            if edge.is_none_or(|edge| stated.wrapping_sub(edge) as i32 > 0) {
                *edge = Some(stated);
            }
        }
    }

    fn unfinished(&self) -> Vec<&[End; 2]> {
        self.connections.iter().filter(|ends| ends.iter().any(|end| end.outcome.is_none())).collect()
    }

    fn check_the_end(&mut self) {
        for (index, ends) in self.connections.iter().enumerate() {
            for (side, end) in ends.iter().enumerate() {
                let is_over = end.outcome.is_some() || end.life == Life::Nothing;
                assert!(is_over, "connection {index} is stuck at station {side}: {ends:#?}");
                assert!(end.received <= ends[1 - side].queued);
                if end.outcome == Some(Outcome::Finished) {
                    assert_eq!(end.received, ends[1 - side].queued, "connection {index}: bytes are missing");
                }
            }
        }
        for station in &mut self.stations {
            let host = &mut station.bench.host;
            for &id in &station.all {
                // Of a connection that is gone nothing answers.
                assert_eq!((host.tcp_send(id, b"x"), host.tcp_room(id), host.tcp_ended(id)), (0, 0, false));
                assert_eq!(host.tcp_receive(id, |bytes| (bytes.len(), bytes.len())), None);
                assert_eq!((host.tcp_local(id), host.tcp_remote(id), host.tcp_adopt(id, 9)), (None, None, false));
                host.tcp_end(id);
                host.tcp_close(id);
                host.tcp_abort(id);
                host.tcp_want_data(id);
                host.tcp_want_room(id);
            }
            assert_eq!(host.deadline(), None, "nothing is there that could be due");
        }
        for (side, station) in self.stations.iter().enumerate() {
            let counters = station.bench.host.counters();
            let left: Vec<_> = counters.iter().filter(|(name, count)| GAUGES.contains(name) && *count != 0).collect();
            assert!(left.is_empty(), "station {side} keeps {left:?}: {:#?}", self.unfinished());
            assert!(GAUGES.iter().all(|gauge| counters.iter().any(|counter| counter.0 == *gauge)), "no {GAUGES:?}");
            assert!(station.bench.has_all_buffers(), "a buffer was kept");
        }
    }

    /// Both outcomes of a connection, by station.
    pub fn outcomes(&self, index: usize) -> [Option<Outcome>; 2] {
        [0, 1].map(|side| self.connections[index][side].outcome)
    }

    pub fn counter(&self, side: usize, name: &str) -> u64 {
        let counters = self.stations[side].bench.host.counters();
        counters.iter().find(|counter| counter.0 == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }
}

/// What a host counts up and down.
pub const GAUGES: [&str; 4] = ["tcp_connections", "tcp_half_open", "tcp_time_wait", "tcp_buffers"];
