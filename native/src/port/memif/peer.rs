//! A connected peer: its queues as one. Bursts are taken from the receiving ones in turn; a frame is sent by the queue of
//! its flow, so that the frames of a flow stay in order.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::half_open::{HalfOpen, Machine};
use super::receiver::Receiver;
use super::sender::{Outcome, Sender};
use super::socket::Control;
use super::spread;
use super::traffic::{Buffers, Counters};
use crate::port::lent::{Burst, Lent};

pub struct Peer {
    pub token: u64,
    pub control: Control,
    pub receive_eventfds: Vec<Arc<OwnedFd>>,
    receivers: Vec<Receiver>,
    /// The receiver that lent last.
    turn: usize,
    /// Each with the eventfd that wakes who receives from it.
    senders: Vec<(Sender, Arc<OwnedFd>)>,
    named: String,
}

impl Peer {
    /// Of a connection whose handshake is done. `armed`: a wake-up is wanted for the first frame.
    pub fn new(half: HalfOpen, max_frame: usize, armed: bool) -> Self {
        let HalfOpen { token, control, machine, regions, layout, rings: [c2s, s2c], named, .. } = half;
        let is_server = matches!(machine, Machine::Server(_));
        let (receive, send) = if is_server { (c2s, s2c) } else { (s2c, c2s) };
        let regions: Arc<[_]> = regions.into();
        let own = |client_to_server, queue| Buffers::own(&regions[0], layout, client_to_server, queue);
        let (mut receivers, mut receive_eventfds, mut senders) = (Vec::new(), Vec::new(), Vec::new());
        for (queue, (ring, eventfd)) in (0..).zip(receive) {
            ring.set_wants_kick(armed);
            receivers.push(if is_server {
                Receiver::of_server(ring, regions.clone(), max_frame)
            } else {
                Receiver::of_client(ring, own(false, queue), max_frame)
            });
            receive_eventfds.push(eventfd);
        }
        for (queue, (ring, eventfd)) in (0..).zip(send) {
            let sender = if is_server {
                Sender::of_server(ring, regions.clone())
            } else {
                Sender::of_client(ring, own(true, queue))
            };
            senders.push((sender, eventfd));
        }
        Self { token, control, receive_eventfds, receivers, turn: 0, senders, named }
    }

    /// For people.
    pub fn describe(&self) -> String {
        let name = if self.named.is_empty() { "a peer without a name" } else { &self.named };
        match (self.receivers.len(), self.senders.len()) {
            (1, 1) => name.into(),
            (receive, send) => format!("{name}, {receive} + {send} queues"),
        }
    }

    /// Finds the queue whose turn it is to lend up to `max` frames. `Err`: the peer broke the rules; the reason.
    #[inline]
    pub fn choose(&mut self, max: usize) -> Result<(), String> {
        if let [only] = &mut self.receivers[..] {
            return only.refresh(max);
        }
        for _ in 0..self.receivers.len() {
            self.turn = if self.turn + 1 < self.receivers.len() { self.turn + 1 } else { 0 };
            let receiver = &mut self.receivers[self.turn];
            receiver.refresh(max)?;
            if receiver.available() > 0 {
                break;
            }
        }
        Ok(())
    }

    /// Lends from the queue chosen.
    #[inline]
    pub fn lend(&mut self, max: usize, counters: &mut Counters) -> Burst<'_> {
        self.receivers[self.turn].lend(max, counters)
    }

    #[inline]
    pub fn give_back(&mut self) {
        self.receivers[self.turn].give_back();
    }

    /// `Err`: the peer broke the rules; the reason.
    #[inline(always)]
    pub fn send(&mut self, parts: &[Lent<'_>], total: usize) -> Result<Outcome, String> {
        let queue = if self.senders.len() == 1 { 0 } else { spread::queue(parts, self.senders.len()) };
        self.senders[queue].0.send(parts, total)
    }

    /// Frames that can be sent whatever their flows, if each fits one buffer. `Err`: as above.
    pub fn free(&mut self) -> Result<usize, String> {
        let mut least = usize::MAX;
        for (sender, _) in &mut self.senders {
            least = least.min(sender.free()?);
        }
        Ok(least)
    }

    /// As [`crate::port::Port::expect`]; with several queues nobody knows yet which.
    #[inline]
    pub fn expect(&mut self, count: usize, len: usize) {
        if let [(only, _)] = &mut self.senders[..] {
            only.expect(count, len);
        }
    }

    /// Frames that no flush has handed over yet.
    pub fn queued(&self) -> u64 {
        self.senders.iter().map(|(sender, _)| sender.queued()).sum()
    }

    /// Hands over what is queued; `wake` is called with the eventfd of each queue whose receiver sleeps.
    #[inline]
    pub fn flush(&mut self, counters: &mut Counters, mut wake: impl FnMut(&Arc<OwnedFd>, &mut Counters)) {
        for (sender, eventfd) in &mut self.senders {
            if sender.flush(counters) {
                wake(eventfd, counters);
            }
        }
    }

    /// As [`Sender::hand_over`].
    pub fn hand_over(&self) -> bool {
        self.senders.iter().fold(false, |asleep, (sender, _)| sender.hand_over() || asleep)
    }

    /// As [`Receiver::arm`], of all queues.
    pub fn arm(&self) -> bool {
        self.receivers.iter().all(Receiver::arm)
    }

    pub fn disarm(&self) {
        self.receivers.iter().for_each(Receiver::disarm);
    }
}
