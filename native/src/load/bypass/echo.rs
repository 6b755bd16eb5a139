//! The server ends of TCP over a host of our own: whole messages of a stream go back as they came.
//!
//! Memory is bounded per connection: nothing is read from a peer that does not take its replies.

use super::ANSWERS;
use crate::stack::Host;
use crate::stack::tcp::{TcpEvent, TcpId};

struct Peer {
    /// `None`: the place is free.
    id: Option<TcpId>,
    size: usize,
    /// Replies not yet taken by the host: `out[sent..]`.
    out: Vec<u8>,
    sent: usize,
    /// The beginning of a message.
    partial: Vec<u8>,
}

#[derive(Default)]
pub struct Echo {
    pub echoed: u64,
    pub accepted: u64,
    /// Bytes of a message, by listener.
    pub sizes: Vec<usize>,
    peers: Vec<Peer>,
    free: Vec<u32>,
    /// What was read last.
    read: Vec<u8>,
}

impl Peer {
    /// Queues `bytes` behind what waits; keeps what the host does not take.
    #[inline]
    fn send(&mut self, id: TcpId, bytes: &[u8], host: &mut Host) {
        let taken = if self.out.is_empty() { host.tcp_send(id, bytes) } else { 0 };
        self.out.extend_from_slice(&bytes[taken..]);
    }

    /// `false`: the peer takes no more now.
    #[inline]
    fn flush(&mut self, id: TcpId, host: &mut Host) -> bool {
        if self.sent < self.out.len() {
            self.sent += host.tcp_send(id, &self.out[self.sent..]);
        }
        let done = self.sent == self.out.len();
        if done {
            self.out.clear();
            self.sent = 0;
        }
        done
    }

    /// Sends back the whole messages that `read` completes; how many those are.
    #[inline]
    fn answer(&mut self, id: TcpId, mut read: &[u8], host: &mut Host) -> usize {
        let mut count = 0;
        if !self.partial.is_empty() {
            let (end, after) = read.split_at(read.len().min(self.size - self.partial.len()));
            self.partial.extend_from_slice(end);
            read = after;
            if self.partial.len() == self.size {
                let mut message = std::mem::take(&mut self.partial);
                self.send(id, &message, host);
                message.clear();
                self.partial = message;
                count = 1;
            }
        }
        let whole = read.len() / self.size * self.size;
        if whole > 0 {
            self.send(id, &read[..whole], host);
        }
        self.partial.extend_from_slice(&read[whole..]);
        count + whole / self.size
    }
}

impl Echo {
    /// Connections now.
    pub fn open(&self) -> usize {
        self.peers.len() - self.free.len()
    }

    #[inline]
    pub fn on_event(&mut self, event: TcpEvent, host: &mut Host) {
        match event {
            TcpEvent::Accepted { id, listener } => self.accept(id, listener, host),
            TcpEvent::Readable { id, owner } | TcpEvent::Writable { id, owner } => {
                self.serve(owner & !ANSWERS, id, host)
            }
            TcpEvent::Closed { id, owner, .. } => self.drop_peer(owner & !ANSWERS, id),
            TcpEvent::Connected { .. } => {}
        }
    }

    fn accept(&mut self, id: TcpId, listener: u32, host: &mut Host) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.peers.push(Peer { id: None, size: 1, out: Vec::new(), sent: 0, partial: Vec::new() });
            self.peers.len() as u32 - 1
        });
        if !host.tcp_adopt(id, ANSWERS | number) {
            self.free.push(number);
            return;
        }
        let peer = &mut self.peers[number as usize];
        (peer.id, peer.size) = (Some(id), self.sizes[listener as usize]);
        self.accepted += 1;
        self.serve(number, id, host);
    }

    fn drop_peer(&mut self, number: u32, id: TcpId) {
        if let Some(peer) = self.peers.get_mut(number as usize).filter(|peer| peer.id == Some(id)) {
            peer.id = None;
            peer.out.clear();
            peer.sent = 0;
            peer.partial.clear();
            self.free.push(number);
        }
    }

    /// Sends what waits, then echoes what has come, and ends when the peer has.
    #[inline]
    fn serve(&mut self, number: u32, id: TcpId, host: &mut Host) {
        let Some(peer) = self.peers.get_mut(number as usize).filter(|peer| peer.id == Some(id)) else { return };
        while peer.flush(id, host) {
            let read = &mut self.read;
            read.clear();
            let mut take = |bytes: &[u8]| {
                read.extend_from_slice(bytes);
                (bytes.len(), bytes.len())
            };
            // Twice: the ring may wrap. What comes after that is a turn of its own.
            let shown = host.tcp_receive(id, &mut take);
            if shown.is_some_and(|bytes| bytes > 0) {
                host.tcp_receive(id, &mut take);
            }
            if self.read.is_empty() {
                if host.tcp_ended(id) {
                    host.tcp_close(id);
                    self.drop_peer(number, id);
                }
                return;
            }
            self.echoed += peer.answer(id, &self.read, host) as u64;
        }
    }

    /// The run is over: every peer is told.
    pub fn close_all(&mut self, host: &mut Host) {
        for number in 0..self.peers.len() as u32 {
            if let Some(id) = self.peers[number as usize].id {
                host.tcp_close(id);
                self.drop_peer(number, id);
            }
        }
    }
}
