//! smoltcp's protocol code as the engine of one connection.
//!
//! It is shown one socket at a time: each connection owns a set of one, so nothing is searched. It lives in a network of
//! its own, between two invented IPv4 addresses; the real addresses, checksums and link addresses are put on outside,
//! which also lets one interface serve all connections of an MTU, IPv6 included. Its clock runs as much faster than ours
//! as makes the least retransmission timeout, a second in smoltcp, what the port is configured for.
#![allow(unsafe_code)]

use std::time::Duration;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::arena::{Arena, Pair};
use super::micros;
use super::protocol::{Begin, HEADROOM, Protocol, State};

const LOCAL: [u8; 4] = [10, 0, 0, 1];
const REMOTE: [u8; 4] = [10, 0, 0, 2];
/// The longest acknowledgement delay: well below the 500 ms of RFC 9293 §3.8.6.3, and below the least timeout.
const ACK_DELAY: Duration = Duration::from_millis(10);
const LARGEST: usize = 65_535;
/// Interfaces kept. Of other MTUs one is made anew when it is wanted: a peer that makes up routers can tell thousands.
const MOST_INTERFACES: usize = 16;
/// The first ones are the port's own.
const OWN_INTERFACES: usize = 2;

pub(super) struct Smoltcp {
    /// One per MTU that was used of late. They remember nothing of a connection.
    interfaces: Vec<(u16, Interface)>,
    device: Tap,
    /// smoltcp's second, in milliseconds of ours.
    second: u64,
    /// The time that was asked for last, on our clock and on smoltcp's.
    seen: (u64, time::Instant),
    ack_delay: Duration,
}

impl Smoltcp {
    /// `rto`: the first and the least retransmission timeout, 5 ms or more.
    pub fn new(rto: Duration) -> Self {
        let second = (micros(rto) / 1_000).max(5);
        let device = Tap { buffer: vec![0; LARGEST].into(), output: None, mtu: 1500 };
        let ack_delay = ACK_DELAY.min(Duration::from_millis(second) / 2);
        Self { interfaces: Vec::new(), device, second, seen: (0, time::Instant::ZERO), ack_delay }
    }

    /// For a place whose connection is being replaced.
    pub fn nothing() -> SocketSet<'static> {
        SocketSet::new(Vec::new())
    }

    fn time(&mut self, now: u64) -> time::Instant {
        if self.seen.0 != now {
            self.seen = (now, time::Instant::from_micros((now * 1_000 / self.second) as i64));
        }
        self.seen.1
    }

    fn scaled(&self, duration: Duration) -> time::Duration {
        time::Duration::from_micros(micros(duration) * 1_000 / self.second)
    }

    fn interface(interfaces: &mut Vec<(u16, Interface)>, device: &mut Tap, mtu: u16) -> usize {
        device.mtu = mtu;
        if let Some(index) = interfaces.iter().position(|(of, _)| *of == mtu) {
            return index;
        }
        if interfaces.len() == MOST_INTERFACES {
            interfaces.remove(OWN_INTERFACES);
        }
        // The seed goes into initial sequence numbers, which are replaced outside.
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), device, time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let own = IpCidr::new(IpAddress::from(std::net::Ipv4Addr::from(LOCAL)), 8);
            // A list of one has room for it.
            let _ = addresses.push(own);
        });
        interfaces.push((mtu, interface));
        interfaces.len() - 1
    }

    /// How many MTUs are in use.
    #[cfg(test)]
    pub fn mtus(&self) -> usize {
        self.interfaces.len()
    }

    fn begin(
        &mut self,
        old: Option<SocketSet<'static>>,
        (arena, pair): (&Arena, &Pair),
        begin: Begin,
    ) -> SocketSet<'static> {
        // SAFETY: this socket is the only one that uses the rings while the pair is taken. Given back, they may become
        // another's, though this one keeps its slices until its place has a new connection or the arena goes: by then
        // nothing looks into it, since neither its key nor its serial leads there (`Flows::remove`), and dropping it
        // touches no byte. The arena outlives all of them (the order of fields in `Flows`).
        let [rx, tx] = unsafe { arena.rings(pair) };
        let mut socket = tcp::Socket::new(tcp::SocketBuffer::new(rx), tcp::SocketBuffer::new(tx));
        // What a batch sends is sent at its end: there is nothing for Nagle's algorithm to collect.
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        socket.set_ack_delay(Some(self.scaled(self.ack_delay)));
        socket.set_keep_alive(begin.keep_alive.map(|every| self.scaled(every)));
        match old {
            Some(mut set) => {
                *only_mut(&mut set) = socket;
                set
            }
            None => {
                let mut set = SocketSet::new(Vec::with_capacity(1));
                set.add(socket);
                set
            }
        }
    }
}

/// The handle of the only socket of a set.
fn only<'a>(set: &'a SocketSet<'static>) -> &'a tcp::Socket<'static> {
    match set.iter().next() {
        Some((_, smoltcp::socket::Socket::Tcp(socket))) => socket,
        None => unreachable!("a set has its socket from `begin` on"),
    }
}

fn only_mut<'a>(set: &'a mut SocketSet<'static>) -> &'a mut tcp::Socket<'static> {
    match set.iter_mut().next() {
        Some((_, smoltcp::socket::Socket::Tcp(socket))) => socket,
        None => unreachable!("a set has its socket from `begin` on"),
    }
}

impl Protocol for Smoltcp {
    type Connection = SocketSet<'static>;

    fn listen(&mut self, old: Option<Self::Connection>, rings: (&Arena, &Pair), begin: Begin) -> Self::Connection {
        let mut set = self.begin(old, rings, begin);
        // A fresh socket listens on any port but 0, which no segment has.
        let _ = only_mut(&mut set).listen(begin.local_port);
        set
    }

    fn connect(&mut self, old: Option<Self::Connection>, rings: (&Arena, &Pair), begin: Begin) -> Self::Connection {
        let mut set = self.begin(old, rings, begin);
        let index = Self::interface(&mut self.interfaces, &mut self.device, begin.mtu);
        let remote = (IpAddress::from(std::net::Ipv4Addr::from(REMOTE)), begin.remote_port);
        let local = (IpAddress::from(std::net::Ipv4Addr::from(LOCAL)), begin.local_port);
        // A fresh socket connects from and to any port but 0.
        let _ = only_mut(&mut set).connect(self.interfaces[index].1.context(), remote, local);
        set
    }

    fn receive(
        &mut self,
        connection: &mut Self::Connection,
        mtu: u16,
        bytes: &mut [u8],
        now: u64,
    ) -> Option<&mut [u8]> {
        let total = bytes.len().min(LARGEST) as u16;
        bytes[..HEADROOM].copy_from_slice(&[
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, REMOTE[0], REMOTE[1], REMOTE[2], REMOTE[3], LOCAL[0], LOCAL[1],
            LOCAL[2], LOCAL[3],
        ]);
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        let time = self.time(now);
        let index = Self::interface(&mut self.interfaces, &mut self.device, mtu);
        let mut device = Input { bytes: Some(bytes), tap: &mut self.device };
        let PollIngressSingleResult::SocketStateChanged =
            self.interfaces[index].1.poll_ingress_single(time, &mut device, connection)
        else {
            return None;
        };
        self.device.take()
    }

    fn transmit(&mut self, connection: &mut Self::Connection, mtu: u16, now: u64) -> Option<&mut [u8]> {
        let time = self.time(now);
        let index = Self::interface(&mut self.interfaces, &mut self.device, mtu);
        match self.interfaces[index].1.poll_egress(time, &mut self.device, connection) {
            PollResult::SocketStateChanged => self.device.take(),
            PollResult::None => None,
        }
    }

    fn deadline(&mut self, connection: &Self::Connection, mtu: u16, now: u64) -> Option<u64> {
        let time = self.time(now);
        let index = Self::interface(&mut self.interfaces, &mut self.device, mtu);
        let at = self.interfaces[index].1.poll_at(time, connection)?;
        Some(if at <= time { now } else { (at.total_micros() as u64 * self.second).div_ceil(1_000) })
    }

    fn state(connection: &Self::Connection) -> State {
        match only(connection).state() {
            tcp::State::Closed => State::Closed,
            tcp::State::Listen => State::Listen,
            tcp::State::SynSent => State::SynSent,
            tcp::State::SynReceived => State::SynReceived,
            tcp::State::Established => State::Established,
            tcp::State::FinWait1 => State::FinWait1,
            tcp::State::FinWait2 => State::FinWait2,
            tcp::State::CloseWait => State::CloseWait,
            tcp::State::Closing => State::Closing,
            tcp::State::LastAck => State::LastAck,
            tcp::State::TimeWait => State::TimeWait,
        }
    }

    fn unread(connection: &Self::Connection) -> usize {
        only(connection).recv_queue()
    }

    fn unacknowledged(connection: &Self::Connection) -> usize {
        only(connection).send_queue()
    }

    fn room(connection: &Self::Connection) -> usize {
        let socket = only(connection);
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    fn capacity(connection: &Self::Connection) -> usize {
        only(connection).send_capacity()
    }

    fn queue(connection: &mut Self::Connection, bytes: &[u8]) -> usize {
        only_mut(connection).send_slice(bytes).unwrap_or(0)
    }

    fn take<R>(connection: &mut Self::Connection, take: impl FnOnce(&[u8]) -> (usize, R)) -> R {
        let socket = only_mut(connection);
        if !socket.can_recv() {
            return take(&[]).1;
        }
        let mut take = Some(take);
        let taken = socket.recv(|bytes| {
            let (count, result) = match take.take() {
                Some(take) => take(bytes),
                None => unreachable!("the ring is shown once"),
            };
            (count.min(bytes.len()), result)
        });
        match taken {
            Ok(result) => result,
            Err(_) => unreachable!("can_recv has said so"),
        }
    }

    fn close(connection: &mut Self::Connection) {
        only_mut(connection).close();
    }

    fn abort(connection: &mut Self::Connection) {
        only_mut(connection).abort();
    }
}

/// A device that holds at most one packet on its way out.
struct Tap {
    buffer: Box<[u8]>,
    output: Option<usize>,
    mtu: u16,
}

impl Tap {
    /// The segment of the packet that was sent.
    fn take(&mut self) -> Option<&mut [u8]> {
        let len = self.output.take()?;
        Some(&mut self.buffer[HEADROOM..len])
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

impl Device for Tap {
    type RxToken<'a> = Nothing;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(Nothing, Out<'_>)> {
        None
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Out<'_>> {
        Some(Out(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities()
    }
}

/// The same with one packet on its way in.
struct Input<'d> {
    bytes: Option<&'d mut [u8]>,
    tap: &'d mut Tap,
}

impl Device for Input<'_> {
    type RxToken<'a>
        = In<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Out<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: time::Instant) -> Option<(In<'_>, Out<'_>)> {
        let bytes = self.bytes.take()?;
        Some((In(bytes), Out(self.tap)))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Out<'_>> {
        Some(Out(self.tap))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.tap.capabilities()
    }
}

struct Nothing;

impl phy::RxToken for Nothing {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&[])
    }
}

struct In<'a>(&'a [u8]);

impl phy::RxToken for In<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Out<'a>(&'a mut Tap);

impl phy::TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let result = f(&mut self.0.buffer[..len]);
        self.0.output = Some(len);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_timeout_and_the_next_are_what_was_asked_for() {
        for rto in [5, 7, 200, 300, 2_000] {
            let mut protocol = Smoltcp::new(Duration::from_millis(rto));
            let mut arena = Arena::new(&[(1024, 1)]);
            let pair = arena.take().unwrap();
            let begin = Begin { local_port: 1, remote_port: 2, mtu: 1_500, keep_alive: None };
            let mut connection = protocol.connect(None, (&arena, &pair), begin);
            let mut now = 7;
            for wait in [rto, 2 * rto] {
                assert!(protocol.transmit(&mut connection, 1_500, now).is_some());
                let at = protocol.deadline(&connection, 1_500, now).expect("a timeout");
                assert!((at - now).abs_diff(wait * 1_000) <= rto, "{} µs, not {wait} ms", at - now);
                now = at;
            }
        }
    }

    #[test]
    fn of_many_mtus_few_interfaces_are_kept_and_the_first_always() {
        let mut protocol = Smoltcp::new(Duration::from_millis(200));
        let mut arena = Arena::new(&[(1024, 1)]);
        let pair = arena.take().unwrap();
        let begin = Begin { local_port: 1, remote_port: 2, mtu: 1_500, keep_alive: None };
        let mut connection = protocol.connect(None, (&arena, &pair), begin);
        for mtu in (576..1_500).rev() {
            assert_eq!(protocol.deadline(&connection, mtu, 7), Some(7));
        }
        let syn = protocol.transmit(&mut connection, 576, 7).expect("a SYN");
        assert_eq!(syn[20..24], [2, 4, 2, 24], "an MSS of 536");
        let known: Vec<_> = protocol.interfaces.iter().map(|(mtu, _)| *mtu).collect();
        assert_eq!((known.len(), known[0]), (MOST_INTERFACES, 1_500));
    }
}
