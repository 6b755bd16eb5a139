//! The client end of TCP over a host of our own, with the semantics of the one on kernel sockets (`kernel::client`).
//!
//! A connection is opened when the first request needs it, unless it is to be kept: those are opened before the clock
//! starts, a few hundred at a time, because a server's room for handshakes is limited. Where they are not kept, one is
//! tried at a time until the first is established: then the clock starts. What failed rests for a millisecond.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::super::ledger::Ledger;
use super::super::{Drive, Failure, LoadError};
use super::{BATCH, Moment, no_way, reach_ns, unreached};
use crate::port::Link;
use crate::stack::Host;
use crate::stack::tcp::{Gone, TcpEvent, TcpId};

const OPENING_AT_ONCE: usize = 256;
const REST_NS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// From the start, after the last request, after a timeout, and after a rest.
    Closed,
    /// From Closed: the host is shaking hands.
    Connecting(TcpId),
    /// From Connecting.
    Open(TcpId),
    /// After a failure; tried again when the rest is over.
    Resting,
}

struct Line {
    state: State,
    /// Requests not yet taken by the host: `out[sent..]`.
    out: Vec<u8>,
    sent: usize,
    /// The beginning of a reply.
    partial: Vec<u8>,
}

impl Line {
    fn id(&self) -> Option<TcpId> {
        match self.state {
            State::Connecting(id) | State::Open(id) => Some(id),
            State::Closed | State::Resting => None,
        }
    }
}

pub struct Client<'a> {
    pub drive: &'a Drive,
    pub ledger: Ledger,
    /// Connections established so far.
    pub opened: u64,
    remote: SocketAddr,
    patience: Duration,
    lines: Vec<Line>,
    /// When the rest of which line is over; ascending.
    resting: VecDeque<(u64, u32)>,
    /// Lines opened ahead so far, and how many are connecting and open now.
    ahead: usize,
    pub connecting: usize,
    open: usize,
    /// When a connection was last established, before the clock started.
    progress_at: u64,
    /// The peer was there once: a failure is counted, no longer the end of the run.
    reached: bool,
    /// The clock runs.
    started: bool,
}

impl<'a> Client<'a> {
    pub fn new(drive: &'a Drive, remote: SocketAddr) -> Result<Self, LoadError> {
        let line = || Line { state: State::Closed, out: Vec::new(), sent: 0, partial: Vec::new() };
        Ok(Self {
            drive,
            ledger: Ledger::new(drive)?,
            opened: 0,
            remote,
            patience: Duration::from_nanos(reach_ns(drive)),
            lines: std::iter::repeat_with(line).take(drive.connections).collect(),
            resting: VecDeque::new(),
            ahead: 0,
            connecting: 0,
            open: 0,
            progress_at: 0,
            reached: false,
            started: false,
        })
    }

    /// Connections are kept, and so opened before the clock starts.
    fn keeps(&self) -> bool {
        self.drive.requests_per_connection.is_none()
    }

    pub fn begin(&mut self) {
        if !self.keeps() {
            (0..self.lines.len() as u32).for_each(|number| self.ledger.renew(number));
            self.ledger.pace.rehearse(0);
        }
    }

    pub fn next_rest_over(&self) -> Option<u64> {
        self.resting.front().map(|&(time, _)| time)
    }

    /// Rests that are over, requests that are too old, and whether the peer is there at all.
    pub fn on_time(&mut self, moment: Moment, link: Link, host: &mut Host) -> Result<(), LoadError> {
        let now = moment.now;
        while let Some(&(time, number)) = self.resting.front()
            && time <= now
        {
            self.resting.pop_front();
            self.lines[number as usize].state = State::Closed;
            if self.keeps() && !self.started {
                self.open(number, moment, host)?;
            } else {
                self.ledger.renew(number);
            }
        }
        while let Some(number) = self.ledger.expire(now) {
            let line = &self.lines[number as usize];
            // Where order tells replies apart, a late one would be taken for the next; and requests that the peer does
            // not even take must not pile up.
            if !self.ledger.by_id() || line.sent < line.out.len() {
                self.ledger.hold(number);
                self.ledger.fail_all(number, Failure::Timeout);
                self.close(number, host);
                self.ledger.renew(number);
            } else {
                self.end_if_spent(number, host);
            }
        }
        if !self.started && now - self.progress_at > reach_ns(self.drive) {
            let detail = match link {
                Link::Down(why) => format!("the port is down: {why}"),
                Link::Up if self.keeps() => {
                    format!("{} of {} connections opened, no other in time", self.open, self.lines.len())
                }
                Link::Up => "no answer".into(),
            };
            return Err(unreached(self.drive, Failure::Timeout, detail));
        }
        Ok(())
    }

    fn open(&mut self, number: u32, moment: Moment, host: &mut Host) -> Result<(), LoadError> {
        match host.tcp_open(self.remote, number, self.patience, moment.instant) {
            Ok(id) => {
                self.lines[number as usize].state = State::Connecting(id);
                self.connecting += 1;
                Ok(())
            }
            Err(error) => {
                let (failure, detail) = no_way(error, self.opened);
                if !self.started {
                    return Err(unreached(self.drive, failure, detail));
                }
                self.fail(number, failure, &detail, moment.now, host)
            }
        }
    }

    fn opened(&mut self, number: u32, id: TcpId, now: u64, host: &mut Host) {
        self.connecting -= 1;
        self.open += 1;
        self.opened += 1;
        self.progress_at = now;
        self.reached = true;
        self.lines[number as usize].state = State::Open(id);
        if self.ledger.in_flight_on(number) == 0 {
            self.ledger.renew(number);
        }
        self.flush(number, host);
        if !self.started && (!self.keeps() || self.open == self.lines.len()) {
            self.started = true;
            self.ledger.pace.begin(now);
        }
    }

    fn close(&mut self, number: u32, host: &mut Host) {
        let line = &mut self.lines[number as usize];
        match line.state {
            State::Connecting(id) => {
                self.connecting -= 1;
                host.tcp_abort(id);
            }
            State::Open(id) => {
                self.open -= 1;
                if self.drive.reset { host.tcp_abort(id) } else { host.tcp_close(id) }
            }
            State::Closed | State::Resting => {}
        }
        line.state = State::Closed;
        line.out.clear();
        line.sent = 0;
        line.partial.clear();
    }

    /// The connection is lost, and what is in flight on it.
    fn fail(
        &mut self,
        number: u32,
        failure: Failure,
        detail: &str,
        now: u64,
        host: &mut Host,
    ) -> Result<(), LoadError> {
        if !self.reached {
            return Err(unreached(self.drive, failure, detail.into()));
        }
        self.ledger.hold(number);
        self.ledger.fail_all(number, failure);
        self.close(number, host);
        self.lines[number as usize].state = State::Resting;
        self.resting.push_back((now + REST_NS, number));
        Ok(())
    }

    #[inline]
    fn end_if_spent(&mut self, number: u32, host: &mut Host) {
        if self.ledger.spent(number) {
            self.close(number, host);
            self.ledger.renew(number);
        }
    }

    /// Opens what is to be kept, and issues what is due, a batch at most.
    #[inline]
    pub fn pump(&mut self, moment: Moment, host: &mut Host) -> Result<(), LoadError> {
        if !self.started && self.keeps() {
            while self.ahead < self.lines.len() && self.connecting < OPENING_AT_ONCE {
                self.ahead += 1;
                self.open(self.ahead as u32 - 1, moment, host)?;
            }
            return Ok(());
        }
        for _ in 0..BATCH {
            if !self.started && self.ledger.in_flight() > 0 {
                break;
            }
            let Some(issued) = self.ledger.issue(moment.now) else { break };
            let (number, message) = (issued.connection, self.ledger.message(issued.place));
            let line = &mut self.lines[number as usize];
            let taken = match line.state {
                State::Open(id) if line.out.is_empty() => host.tcp_send(id, message),
                _ => 0,
            };
            line.out.extend_from_slice(&message[taken..]);
            if line.state == State::Closed {
                self.open(number, moment, host)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn flush(&mut self, number: u32, host: &mut Host) {
        let line = &mut self.lines[number as usize];
        let State::Open(id) = line.state else { return };
        if line.sent < line.out.len() {
            line.sent += host.tcp_send(id, &line.out[line.sent..]);
        }
        if line.sent == line.out.len() {
            line.out.clear();
            line.sent = 0;
        }
    }

    #[inline]
    pub fn on_event(&mut self, event: TcpEvent, now: u64, host: &mut Host) -> Result<(), LoadError> {
        let (TcpEvent::Connected { id, owner }
        | TcpEvent::Readable { id, owner }
        | TcpEvent::Writable { id, owner }
        | TcpEvent::Closed { id, owner, .. }) = event
        else {
            return Ok(());
        };
        // Of a connection that was closed in the meantime.
        if self.lines[owner as usize].id() != Some(id) {
            return Ok(());
        }
        match event {
            TcpEvent::Connected { .. } => self.opened(owner, id, now, host),
            TcpEvent::Readable { .. } => return self.read(owner, id, now, host),
            TcpEvent::Writable { .. } => self.flush(owner, host),
            TcpEvent::Closed { reason, .. } => {
                let (failure, detail) = match reason {
                    Gone::Refused => (Failure::Refused, "connection refused"),
                    Gone::Reset => (Failure::Reset, "connection reset by the peer"),
                    Gone::TimedOut => (Failure::Timeout, "the peer does not answer"),
                    Gone::Unreachable(_) => (Failure::Unreachable, "the host is unreachable"),
                };
                return self.fail(owner, failure, detail, now, host);
            }
            TcpEvent::Accepted { .. } => {}
        }
        Ok(())
    }

    #[inline]
    fn read(&mut self, number: u32, id: TcpId, now: u64, host: &mut Host) -> Result<(), LoadError> {
        let (ledger, partial) = (&mut self.ledger, &mut self.lines[number as usize].partial);
        let size = self.drive.size;
        let mut take = |bytes: &[u8]| {
            let mut rest = bytes;
            if !partial.is_empty() {
                let (end, after) = rest.split_at(rest.len().min(size - partial.len()));
                partial.extend_from_slice(end);
                rest = after;
                if partial.len() == size {
                    ledger.reply(number, partial, now);
                    partial.clear();
                }
            }
            let mut messages = rest.chunks_exact(size);
            for message in messages.by_ref() {
                ledger.reply(number, message, now);
            }
            partial.extend_from_slice(messages.remainder());
            (bytes.len(), bytes.len())
        };
        while host.tcp_receive(id, &mut take).is_some_and(|taken| taken > 0) {}
        if self.ledger.spent(number) {
            self.end_if_spent(number, host);
        } else if host.tcp_ended(id) {
            let detail = "the peer closed the connection before it answered";
            return self.fail(number, Failure::Closed, detail, now, host);
        }
        Ok(())
    }

    /// The run is over: the peer is told of every connection.
    pub fn close_all(&mut self, host: &mut Host) {
        (0..self.lines.len() as u32).for_each(|number| self.close(number, host));
    }
}
