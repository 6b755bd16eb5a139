//! The server ends on kernel sockets: whole messages of a stream, and datagrams, go back as they came.
//!
//! Memory is bounded per connection: nothing is read from a peer that does not take its replies.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::super::sys::{self, Datagrams, Epoll, Event};
use super::super::{Endpoint, LoadError, Respond};
use super::{READS_IN_A_ROW, Read, SERVER};

/// With [`SERVER`]: the token's number is a door's, not a peer's.
const DOOR: u64 = 1 << 62;
const BUFFER_BYTES: usize = 256 * 1024;

/// Where peers come in.
struct Door {
    socket: OwnedFd,
    kind: Kind,
    size: usize,
}

enum Kind {
    Tcp,
    /// Removed when the run ends.
    Unix(PathBuf),
    Udp,
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Kind::Unix(path) = &self.kind {
            // Somebody else may have removed it: then that is done.
            let _ = std::fs::remove_file(path);
        }
    }
}

struct Peer {
    socket: OwnedFd,
    size: usize,
    /// Replies not yet taken by the kernel: `out[sent..]`.
    out: Vec<u8>,
    sent: usize,
    /// The beginning of a message.
    partial: Vec<u8>,
}

pub struct Server {
    pub echoed: u64,
    pub accepted: u64,
    doors: Vec<Door>,
    /// With the number of the peer that was last there, so that its events are told apart.
    peers: Vec<(u32, Option<Peer>)>,
    free: Vec<u32>,
    /// No descriptor was left for a waiting connection: accept again when one is closed.
    starved: bool,
    datagrams: Option<Datagrams>,
    buffer: Box<[u8]>,
}

/// Binds a path, also where a dead server left its socket behind.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match UnixStream::connect(path) {
            Err(gone) if gone.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            _ => Err(error),
        },
        bound => bound,
    }
}

fn open(endpoint: &Endpoint) -> io::Result<(OwnedFd, Kind)> {
    Ok(match endpoint {
        Endpoint::Tcp(address) => {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let socket = OwnedFd::from(listener);
            sys::deepen_backlog(&socket)?;
            (socket, Kind::Tcp)
        }
        Endpoint::Unix(path) => {
            let listener = bind_unix(path)?;
            listener.set_nonblocking(true)?;
            let socket = OwnedFd::from(listener);
            sys::deepen_backlog(&socket)?;
            (socket, Kind::Unix(path.clone()))
        }
        Endpoint::Udp(address) => {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            let socket = OwnedFd::from(socket);
            sys::widen(&socket);
            (socket, Kind::Udp)
        }
    })
}

impl Server {
    pub fn new(respond: &[Respond], epoll: &Epoll) -> Result<Self, LoadError> {
        let mut doors = Vec::with_capacity(respond.len());
        for Respond { endpoint, size } in respond {
            let datagrams = matches!(endpoint, Endpoint::Udp(_));
            if !datagrams && !(1..=1 << 20).contains(size) {
                return Err(LoadError::Config(format!("size {size}: expected 1 to {} bytes for {endpoint}", 1 << 20)));
            }
            let failed = |error| LoadError::Listen { endpoint: endpoint.clone(), error };
            let (socket, kind) = open(endpoint).map_err(failed)?;
            epoll.add(&socket, SERVER | DOOR | doors.len() as u64).map_err(failed)?;
            doors.push(Door { socket, kind, size: *size });
        }
        let any_udp = doors.iter().any(|door| matches!(door.kind, Kind::Udp));
        Ok(Self {
            echoed: 0,
            accepted: 0,
            doors,
            peers: Vec::new(),
            free: Vec::new(),
            starved: false,
            datagrams: any_udp.then(|| Datagrams::new(u16::MAX.into())),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
        })
    }

    pub fn on_event(&mut self, event: Event, epoll: &Epoll) -> Read {
        let number = event.token as u32;
        if event.token & DOOR != 0 {
            return match self.doors[number as usize].kind {
                Kind::Udp => self.echo_datagrams(number),
                _ => {
                    self.accept(number, epoll);
                    Read::Dry
                }
            };
        }
        let epoch = (event.token >> 32) as u32 & 0x3fff_ffff;
        let (current, Some(peer)) = &mut self.peers[number as usize] else { return Read::Dry };
        if *current != epoch {
            return Read::Dry;
        }
        peer.echo(&mut self.buffer, event.ended, &mut self.echoed).unwrap_or_else(|_| {
            // The peer has ended or reset: either way it wants no more replies.
            self.peers[number as usize].1 = None;
            self.free.push(number);
            if std::mem::take(&mut self.starved) {
                (0..self.doors.len() as u32).for_each(|door| self.accept(door, epoll));
            }
            Read::Dry
        })
    }

    /// Takes in whoever waits.
    fn accept(&mut self, number: u32, epoll: &Epoll) {
        let Door { socket, kind, size } = &self.doors[number as usize];
        if matches!(kind, Kind::Udp) {
            return;
        }
        loop {
            let accepted = match sys::accept(socket, matches!(kind, Kind::Tcp)) {
                Ok(accepted) => accepted,
                Err(error) => match error.raw_os_error() {
                    // It left again before it was taken in.
                    Some(libc::ECONNABORTED | libc::EINTR) => continue,
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        self.starved = true;
                        return;
                    }
                    _ => return,
                },
            };
            let slot = self.free.pop().unwrap_or_else(|| {
                self.peers.push((0, None));
                (self.peers.len() - 1) as u32
            });
            let (epoch, place) = &mut self.peers[slot as usize];
            *epoch = (*epoch + 1) & 0x3fff_ffff;
            if epoll.add(&accepted, SERVER | u64::from(*epoch) << 32 | u64::from(slot)).is_err() {
                self.free.push(slot);
                continue;
            }
            *place = Some(Peer { socket: accepted, size: *size, out: Vec::new(), sent: 0, partial: Vec::new() });
            self.accepted += 1;
        }
    }

    fn echo_datagrams(&mut self, number: u32) -> Read {
        let (Some(datagrams), socket) = (&mut self.datagrams, &self.doors[number as usize].socket) else {
            return Read::Dry;
        };
        for _ in 0..READS_IN_A_ROW {
            let received = match datagrams.receive(socket, true) {
                Ok(received) => received,
                // An ICMP error for an earlier reply: there may be datagrams behind it.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => continue,
                Err(_) => return Read::Dry,
            };
            let mut sent = 0;
            while sent < received {
                match datagrams.send(socket, sent..received, true) {
                    Ok(count) => {
                        sent += count;
                        self.echoed += count as u64;
                    }
                    // No room, or no way to that peer: a datagram may be lost, the next is tried.
                    Err(_) => sent += 1,
                }
            }
            if received < Datagrams::MOST {
                return Read::Dry;
            }
        }
        Read::Flood
    }
}

impl Peer {
    /// Sends what waits, then echoes what comes. An error: the connection is over.
    fn echo(&mut self, buffer: &mut [u8], ended: bool, echoed: &mut u64) -> io::Result<Read> {
        for _ in 0..READS_IN_A_ROW {
            if !self.flush()? {
                return Ok(Read::Dry);
            }
            let received = match sys::receive(&self.socket, buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Dry),
                Err(error) => return Err(error),
            };
            let before = self.partial.len();
            let whole = (before + received) / self.size * self.size;
            *echoed += (whole / self.size) as u64;
            if before == 0 {
                self.send(&buffer[..whole])?;
                self.partial.extend_from_slice(&buffer[whole..received]);
            } else {
                self.partial.extend_from_slice(&buffer[..received]);
                let rest = self.partial.split_off(whole);
                let messages = std::mem::replace(&mut self.partial, rest);
                self.send(&messages)?;
            }
            if received < buffer.len() && !ended && self.out.is_empty() {
                return Ok(Read::Dry);
            }
        }
        Ok(Read::Flood)
    }

    /// Sends what the kernel takes and keeps the rest. Nothing may be waiting before.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let sent = match sys::send(&self.socket, bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.out.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// `false`: the peer takes no more now.
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.out.len() {
            match sys::send(&self.socket, &self.out[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(true)
    }
}
