//! What the demultiplexer needs of a protocol engine: segments and the time in, segments out, one connection at a time.
//!
//! Behind this trait a connection has no addresses, no checksums and no neighbours: its ports, its bytes and the time are
//! all it knows. So another engine could take the place of the one in `smoltcp.rs`.

use std::time::Duration;

use super::arena::{Arena, Pair};

/// Bytes in front of a segment that belong to the engine while it works on it.
pub(super) const HEADROOM: usize = 20;

/// RFC 9293 §3.3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    Listen,
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
}

impl State {
    /// Past the handshake, and not over.
    pub fn is_synchronized(self) -> bool {
        !matches!(self, Self::Closed | Self::Listen | Self::SynSent | Self::SynReceived)
    }
}

/// How a connection is begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    pub local_port: u16,
    pub remote_port: u16,
    /// The largest packet, with an IPv4 header.
    pub mtu: u16,
    pub keep_alive: Option<Duration>,
}

/// Times are microseconds since any one moment.
pub(super) trait Protocol {
    type Connection: Send;

    /// Waits for a SYN. The rings are the connection's until it is dropped or begun again.
    fn listen(&mut self, old: Option<Self::Connection>, rings: (&Arena, &Pair), begin: Begin) -> Self::Connection;

    /// Has a SYN to send.
    fn connect(&mut self, old: Option<Self::Connection>, rings: (&Arena, &Pair), begin: Begin) -> Self::Connection;

    /// Takes a segment that is for this connection (never a reset). `bytes` is the segment with `HEADROOM` bytes before
    /// it. Returns what is to be sent at once: challenges, acknowledgements of what is out of order.
    fn receive(&mut self, connection: &mut Self::Connection, mtu: u16, bytes: &mut [u8], now: u64)
    -> Option<&mut [u8]>;

    /// The next segment to be sent, if any is due.
    fn transmit(&mut self, connection: &mut Self::Connection, mtu: u16, now: u64) -> Option<&mut [u8]>;

    /// When `transmit` will have something; not before `now`.
    fn deadline(&mut self, connection: &Self::Connection, mtu: u16, now: u64) -> Option<u64>;

    fn state(connection: &Self::Connection) -> State;

    /// Bytes that have come and were not taken; bytes that are queued or unacknowledged; room for more.
    fn unread(connection: &Self::Connection) -> usize;
    fn unacknowledged(connection: &Self::Connection) -> usize;
    fn room(connection: &Self::Connection) -> usize;
    /// The most that can be unacknowledged.
    fn capacity(connection: &Self::Connection) -> usize;

    fn queue(connection: &mut Self::Connection, bytes: &[u8]) -> usize;
    fn take<R>(connection: &mut Self::Connection, take: impl FnOnce(&[u8]) -> (usize, R)) -> R;

    /// A FIN after what is queued.
    fn close(connection: &mut Self::Connection);
    /// A reset, at the next `transmit`.
    fn abort(connection: &mut Self::Connection);
}
