//! UDP over a host of our own: a flow per connection, and at the server end a flow per peer.
//!
//! Before the clock starts, one request at a time is sent until one is answered: it finds the link address, and shows
//! that somebody is there.

use std::net::SocketAddr;

use super::super::ledger::Ledger;
use super::super::{Drive, Failure, LoadError};
use super::{ANSWERS, BATCH, Moment, no_way, reach_ns, unreached};
use crate::port::{Link, Port, Sent};
use crate::stack::{Datagram, FlowId, Host, Unreachable};

/// Flows the server end keeps; with more peers the longest known one is forgotten, and adopted anew when it sends.
const KEPT_FLOWS: usize = 65_536;

pub struct Client<'a> {
    pub drive: &'a Drive,
    pub ledger: Ledger,
    pub opened: u64,
    remote: SocketAddr,
    flows: Vec<Option<FlowId>>,
    /// A request was answered: the clock runs.
    reached: bool,
}

impl<'a> Client<'a> {
    pub fn new(drive: &'a Drive, remote: SocketAddr) -> Result<Self, LoadError> {
        let flows = vec![None; drive.connections];
        Ok(Self { drive, ledger: Ledger::new(drive)?, opened: 0, remote, flows, reached: false })
    }

    /// All flows that are to be kept exist before the first request: a wrong address is an error now.
    pub fn begin(&mut self, host: &mut Host) -> Result<(), LoadError> {
        let ahead = if self.drive.requests_per_connection.is_none() { self.flows.len() } else { 1 };
        for connection in 0..ahead {
            self.flow(connection as u32, host)?;
        }
        (0..self.flows.len()).for_each(|connection| self.ledger.renew(connection as u32));
        self.ledger.pace.rehearse(0);
        Ok(())
    }

    fn flow(&mut self, connection: u32, host: &mut Host) -> Result<FlowId, LoadError> {
        if let Some(flow) = self.flows[connection as usize] {
            return Ok(flow);
        }
        let flow = host.open(self.remote, connection).map_err(|error| {
            let (failure, detail) = no_way(error, self.opened);
            unreached(self.drive, failure, detail)
        })?;
        self.flows[connection as usize] = Some(flow);
        self.opened += 1;
        Ok(flow)
    }

    fn close(&mut self, connection: u32, host: &mut Host) {
        if let Some(flow) = self.flows[connection as usize].take() {
            host.close(flow);
        }
        self.ledger.renew(connection);
    }

    #[inline]
    pub fn reply(&mut self, connection: u32, bytes: &[u8], now: u64, host: &mut Host) {
        self.ledger.reply(connection, bytes, now);
        if !self.reached && self.ledger.answered > 0 {
            self.reached = true;
            self.ledger.pace.begin(now);
        }
        if self.ledger.spent(connection) {
            self.close(connection, host);
        }
    }

    /// Issues what is due, a batch at most. `false`: the link is down.
    #[inline]
    pub fn pump(&mut self, moment: Moment, host: &mut Host, port: &mut dyn Port) -> Result<bool, LoadError> {
        for _ in 0..BATCH {
            if !self.reached && self.ledger.in_flight() > 0 {
                break;
            }
            let Some(issued) = self.ledger.issue(moment.now) else { break };
            let flow = self.flow(issued.connection, host)?;
            match host.send(flow, self.ledger.message(issued.place), moment.instant, port) {
                Sent::Queued => {}
                Sent::TooLong => {
                    let detail = format!("{} bytes are too long for the port", self.drive.size);
                    return Err(unreached(self.drive, Failure::Down, detail));
                }
                sent => {
                    self.ledger.take_back(issued);
                    return Ok(sent == Sent::Full);
                }
            }
        }
        Ok(true)
    }

    pub fn failed(&mut self, connection: u32, reason: Unreachable) -> Result<(), LoadError> {
        let (failure, detail) = match reason {
            Unreachable::Port => (Failure::Refused, "connection refused"),
            Unreachable::Host | Unreachable::Network | Unreachable::Other => {
                (Failure::Unreachable, "the host is unreachable")
            }
        };
        if !self.reached {
            return Err(unreached(self.drive, failure, detail.into()));
        }
        self.ledger.fail_all(connection, failure);
        Ok(())
    }

    pub fn on_time(&mut self, now: u64, link: Link, host: &mut Host) -> Result<(), LoadError> {
        while let Some(connection) = self.ledger.expire(now) {
            // Where order tells replies apart, a late one would be taken for the next: another port hears none.
            if !self.ledger.by_id() || self.ledger.spent(connection) {
                self.close(connection, host);
            }
        }
        if !self.reached && now > reach_ns(self.drive) {
            let detail = match link {
                Link::Up => "no reply".into(),
                Link::Down(why) => format!("the port is down: {why}"),
            };
            return Err(unreached(self.drive, Failure::Timeout, detail));
        }
        Ok(())
    }
}

/// The server ends: datagrams go back as they came.
#[derive(Default)]
pub struct Echo {
    pub echoed: u64,
    /// Adopted flows, the oldest overwritten first once all places are taken.
    flows: Vec<Option<FlowId>>,
    next: usize,
}

impl Echo {
    #[inline]
    pub fn known(&mut self, owner: u32, payload: &[u8], moment: Moment, host: &mut Host, port: &mut dyn Port) {
        if let Some(&Some(flow)) = self.flows.get((owner & !ANSWERS) as usize) {
            self.echo(flow, payload, moment, host, port);
        }
    }

    #[inline]
    fn echo(&mut self, flow: FlowId, payload: &[u8], moment: Moment, host: &mut Host, port: &mut dyn Port) {
        if host.send(flow, payload, moment.instant, port) == Sent::Queued {
            self.echoed += 1;
        }
    }

    /// The first datagram of a peer.
    pub fn adopt(&mut self, datagram: &Datagram, moment: Moment, host: &mut Host, port: &mut dyn Port) {
        let place = self.next;
        if place == self.flows.len() {
            self.flows.push(None);
        }
        if let Some(oldest) = self.flows[place].take() {
            host.close(oldest);
        }
        let owner = ANSWERS | place as u32;
        // A peer to whom no way leads back gets no answer.
        if let Ok(flow) = host.adopt(datagram.destination, datagram.source, datagram.source_mac, owner) {
            self.flows[place] = Some(flow);
            self.next = (place + 1) % KEPT_FLOWS;
            self.echo(flow, &datagram.payload, moment, host, port);
        }
    }
}
