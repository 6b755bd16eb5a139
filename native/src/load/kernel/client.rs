//! The client end on kernel sockets: one socket per connection, TCP, UDP or Unix.
//!
//! A connection is opened when the first request needs it, unless it is to be kept: those are opened before the clock
//! starts, 64 at a time, because a server's accept queue is short. What failed rests for a millisecond.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use super::super::ledger::Ledger;
use super::super::sys::{self, Datagrams, Epoll, Event};
use super::super::{Drive, Endpoint, Failure, LoadError, REACH_NS, SPIN_NS};
use super::{READS_IN_A_ROW, Read};

const OPENING_AT_ONCE: usize = 64;
const REST_NS: u64 = 1_000_000;
const BUFFER_BYTES: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// From the start, after the last request, after a timeout, and after a rest.
    Closed,
    /// From Closed and Resting: the kernel is shaking hands.
    Connecting,
    /// From Connecting.
    Open,
    /// After a failure, and when a Unix socket's queue was full; tried again when the rest is over.
    Resting,
}

struct Link {
    state: State,
    socket: Option<OwnedFd>,
    /// Counts the sockets this link had, so that an event of an earlier one is told apart.
    epoch: u32,
    /// Requests not yet taken by the kernel: `out[sent..]`.
    out: Vec<u8>,
    sent: usize,
    /// The beginning of a reply.
    partial: Vec<u8>,
    /// Waits to be flushed.
    dirty: bool,
}

pub struct Client<'a> {
    pub ledger: Ledger,
    /// Sockets connected so far.
    pub opened: u64,
    drive: &'a Drive,
    datagrams: Option<Datagrams>,
    links: Vec<Link>,
    dirty: Vec<u32>,
    /// When the rest of which link is over; ascending.
    resting: VecDeque<(u64, u32)>,
    /// Links opened ahead so far, those among them now connecting, and when the last connected.
    ahead: usize,
    connecting: usize,
    open: usize,
    last_opened: Option<u64>,
    /// The peer was there once: a failure is counted, no longer the end of the run.
    reached: bool,
    buffer: Box<[u8]>,
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl<'a> Client<'a> {
    pub fn new(drive: &'a Drive) -> Result<Self, LoadError> {
        let link = || Link {
            state: State::Closed,
            socket: None,
            epoch: 0,
            out: Vec::new(),
            sent: 0,
            partial: Vec::new(),
            dirty: false,
        };
        let is_udp = matches!(drive.endpoint, Endpoint::Udp(_));
        Ok(Self {
            ledger: Ledger::new(drive)?,
            opened: 0,
            drive,
            datagrams: is_udp.then(|| Datagrams::new(drive.size.max(2048))),
            links: std::iter::repeat_with(link).take(drive.connections).collect(),
            dirty: Vec::new(),
            resting: VecDeque::new(),
            ahead: 0,
            connecting: 0,
            open: 0,
            last_opened: None,
            reached: false,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
        })
    }

    /// Connections are kept, and so opened before the clock starts.
    fn keeps(&self) -> bool {
        self.drive.requests_per_connection.is_none()
    }

    pub fn finished(&self, now: u64) -> bool {
        self.ledger.pace.begun() && now >= self.ledger.pace.end() && self.ledger.in_flight() == 0
    }

    /// When something is to be done even if no socket tells anything.
    pub fn next_wake(&self, now: u64) -> u64 {
        let pace = &self.ledger.pace;
        let scheduled = if self.ledger.may_issue() { pace.next_due(now) } else { None };
        let begins = if pace.begun() { None } else { Some(now + REST_NS) };
        let ends = (pace.begun() && now < pace.end()).then_some(pace.end());
        let rested = self.resting.front().map(|&(time, _)| time);
        [scheduled.map(|due| due.saturating_sub(SPIN_NS)), begins, ends, rested, self.ledger.next_timeout()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Rests that are over, requests that are too old, and connections to be opened ahead.
    pub fn on_time(&mut self, now: u64, epoll: &Epoll) -> Result<(), LoadError> {
        while let Some(&(time, number)) = self.resting.front()
            && time <= now
        {
            self.resting.pop_front();
            if self.links[number as usize].state != State::Resting {
                continue;
            }
            self.links[number as usize].state = State::Closed;
            if !self.ledger.pace.begun() || self.ledger.in_flight_on(number) > 0 {
                self.open(number, now, epoll)?;
            } else {
                self.ledger.renew(number);
            }
        }
        while let Some(number) = self.ledger.expire(now) {
            let link = &self.links[number as usize];
            // Where order tells replies apart, a late one would be taken for the next; and requests that the peer
            // does not even take must not pile up.
            if !self.ledger.by_id() || link.sent < link.out.len() {
                self.ledger.hold(number);
                self.ledger.fail_all(number, Failure::Timeout);
                self.close(number);
                self.ledger.renew(number);
            } else {
                self.end_if_spent(number);
            }
        }
        if !self.ledger.pace.begun() {
            self.open_ahead(now, epoll)?;
        }
        Ok(())
    }

    fn open_ahead(&mut self, now: u64, epoll: &Epoll) -> Result<(), LoadError> {
        if !self.keeps() {
            (0..self.links.len() as u32).for_each(|number| self.ledger.renew(number));
            self.ledger.pace.begin(now);
            return Ok(());
        }
        while self.ahead < self.links.len() && self.connecting < OPENING_AT_ONCE {
            let number = self.ahead as u32;
            self.ahead += 1;
            self.open(number, now, epoll)?;
        }
        if self.open == self.links.len() {
            self.ledger.pace.begin(now);
        } else if now - *self.last_opened.get_or_insert(now) > REACH_NS.max(self.drive.timeout.as_nanos() as u64) {
            let detail = format!("{} of {} connections opened, no other in time", self.open, self.links.len());
            return Err(self.unreached(Failure::Timeout, detail));
        }
        Ok(())
    }

    fn unreached(&self, failure: Failure, detail: String) -> LoadError {
        LoadError::Unreached { endpoint: self.drive.endpoint.clone(), failure, detail }
    }

    fn open(&mut self, number: u32, now: u64, epoll: &Epoll) -> Result<(), LoadError> {
        let connected = sys::connect(&self.drive.endpoint).and_then(|(socket, connected)| {
            if matches!(self.drive.endpoint, Endpoint::Udp(_)) {
                sys::widen(&socket);
            }
            let link = &mut self.links[number as usize];
            link.epoch = (link.epoch + 1) & 0x7fff_ffff;
            epoll.add(&socket, u64::from(link.epoch) << 32 | u64::from(number))?;
            link.socket = Some(socket);
            Ok(connected)
        });
        match connected {
            Ok(true) => self.opened(number, now),
            Ok(false) => {
                self.links[number as usize].state = State::Connecting;
                self.connecting += 1;
            }
            // The queue of a Unix socket is full: the requests wait with us instead.
            Err(error) if would_block(&error) => self.rest(number, now),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                return Err(LoadError::System { what: "cannot open so many connections", error });
            }
            Err(error) => return self.fail(number, &error, now),
        }
        Ok(())
    }

    fn opened(&mut self, number: u32, now: u64) {
        let link = &mut self.links[number as usize];
        if link.state == State::Connecting {
            self.connecting -= 1;
        }
        link.state = State::Open;
        self.opened += 1;
        self.open += 1;
        self.last_opened = Some(now);
        // A datagram socket is "connected" whether or not anybody listens.
        self.reached |= self.datagrams.is_none();
        if self.ledger.in_flight_on(number) == 0 {
            self.ledger.renew(number);
        }
    }

    fn rest(&mut self, number: u32, now: u64) {
        self.links[number as usize].state = State::Resting;
        self.resting.push_back((now + REST_NS, number));
    }

    fn close(&mut self, number: u32) {
        let link = &mut self.links[number as usize];
        match link.state {
            State::Connecting => self.connecting -= 1,
            State::Open => self.open -= 1,
            State::Closed | State::Resting => {}
        }
        link.state = State::Closed;
        link.out.clear();
        link.sent = 0;
        link.partial.clear();
        if let Some(socket) = link.socket.take()
            && self.drive.reset
        {
            sys::reset_on_close(&socket);
        }
    }

    /// The connection is lost, and what is in flight on it.
    fn fail(&mut self, number: u32, error: &io::Error, now: u64) -> Result<(), LoadError> {
        let failure = match error.kind() {
            io::ErrorKind::UnexpectedEof => Failure::Closed,
            _ => Failure::of(error),
        };
        if !self.reached {
            return Err(self.unreached(failure, error.to_string()));
        }
        self.ledger.hold(number);
        self.ledger.fail_all(number, failure);
        self.close(number);
        self.rest(number, now);
        Ok(())
    }

    fn end_if_spent(&mut self, number: u32) {
        if self.ledger.spent(number) {
            self.close(number);
            self.ledger.renew(number);
        }
    }

    /// Issues and sends what is due.
    pub fn pump(&mut self, now: u64, epoll: &Epoll) -> Result<(), LoadError> {
        while let Some(issued) = self.ledger.issue(now) {
            let link = &mut self.links[issued.connection as usize];
            link.out.extend_from_slice(self.ledger.message(issued.place));
            if !std::mem::replace(&mut link.dirty, true) {
                self.dirty.push(issued.connection);
            }
        }
        while let Some(number) = self.dirty.pop() {
            self.links[number as usize].dirty = false;
            if self.links[number as usize].state == State::Closed {
                self.open(number, now, epoll)?;
            }
            self.flush(number, now)?;
        }
        Ok(())
    }

    fn flush(&mut self, number: u32, now: u64) -> Result<(), LoadError> {
        let link = &mut self.links[number as usize];
        let (State::Open, Some(socket)) = (link.state, &link.socket) else { return Ok(()) };
        while link.sent < link.out.len() {
            let waiting = &link.out[link.sent..];
            let sent = match &mut self.datagrams {
                Some(datagrams) if waiting.len() > self.drive.size => {
                    let messages = waiting.chunks(self.drive.size).take(Datagrams::MOST).enumerate();
                    let count = messages.map(|(index, message)| datagrams.set(index, message)).count();
                    datagrams.send(socket, 0..count, false).map(|taken| taken * self.drive.size)
                }
                _ => sys::send(socket, waiting),
            };
            match sent {
                Ok(bytes) => link.sent += bytes,
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) => return self.fail(number, &error, now),
            }
        }
        link.out.clear();
        link.sent = 0;
        Ok(())
    }

    pub fn on_event(&mut self, event: Event, now: u64, epoll: &Epoll) -> Result<Read, LoadError> {
        let (number, epoch) = (event.token as u32, (event.token >> 32) as u32);
        let link = &self.links[number as usize];
        let Some(socket) = link.socket.as_ref().filter(|_| link.epoch == epoch) else { return Ok(Read::Dry) };
        if link.state == State::Connecting {
            if let Err(error) = sys::take_error(socket) {
                self.fail(number, &error, now)?;
                return Ok(Read::Dry);
            }
            if !event.writable {
                return Ok(Read::Dry);
            }
            self.opened(number, now);
            if !self.ledger.pace.begun() {
                self.open_ahead(now, epoll)?;
            }
        }
        if event.writable {
            self.flush(number, now)?;
        }
        if !event.readable {
            return Ok(Read::Dry);
        }
        let read =
            if self.datagrams.is_some() { self.read_datagrams(number, now) } else { self.read(number, event, now) };
        match read {
            Ok(read) => {
                self.end_if_spent(number);
                Ok(read)
            }
            Err(error) => self.fail(number, &error, now).map(|()| Read::Dry),
        }
    }

    fn read(&mut self, number: u32, event: Event, now: u64) -> io::Result<Read> {
        let size = self.drive.size;
        for _ in 0..READS_IN_A_ROW {
            let Link { socket: Some(socket), partial, .. } = &mut self.links[number as usize] else {
                return Ok(Read::Dry);
            };
            let received = match sys::receive(socket, &mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => received,
                Err(error) if would_block(&error) => return Ok(Read::Dry),
                Err(error) => return Err(error),
            };
            let mut bytes = &self.buffer[..received];
            if !partial.is_empty() {
                let (rest, after) = bytes.split_at(bytes.len().min(size - partial.len()));
                partial.extend_from_slice(rest);
                bytes = after;
                if partial.len() == size {
                    self.ledger.reply(number, partial, now);
                    partial.clear();
                }
            }
            let mut messages = bytes.chunks_exact(size);
            for message in messages.by_ref() {
                self.ledger.reply(number, message, now);
            }
            partial.extend_from_slice(messages.remainder());
            if self.ledger.spent(number) || (received < self.buffer.len() && !event.ended) {
                return Ok(Read::Dry);
            }
        }
        Ok(Read::Flood)
    }

    fn read_datagrams(&mut self, number: u32, now: u64) -> io::Result<Read> {
        let Some(datagrams) = &mut self.datagrams else { return Ok(Read::Dry) };
        for _ in 0..READS_IN_A_ROW {
            let Some(socket) = &self.links[number as usize].socket else { return Ok(Read::Dry) };
            let received = match datagrams.receive(socket, false) {
                Ok(received) => received,
                Err(error) if would_block(&error) => return Ok(Read::Dry),
                Err(error) => return Err(error),
            };
            self.reached = true;
            for index in 0..received {
                self.ledger.reply(number, datagrams.get(index), now);
            }
            if received < Datagrams::MOST {
                return Ok(Read::Dry);
            }
        }
        Ok(Read::Flood)
    }
}
