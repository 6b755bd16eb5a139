//! Fragments put together again, within bounds: each datagram is assembled in place in one slot of the pool.
//!
//! A datagram any of whose fragments overlap is dropped as a whole, and so is what still comes of it (RFC 5722 §4; we do
//! so for IPv4 too, as RFC 8200's reasons hold there as well). Only a repeated fragment with the same bytes is no overlap
//! (RFC 8200 §4.5). It is put together within 30 s, Linux's time; RFC 791 and RFC 8200 §4.5 allow up to 60.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::counters::Counters;
use crate::packet::{Pool, Slot, ipv4, ipv6};

pub(super) const LIFETIME: Duration = Duration::from_secs(30);
pub(super) const MAX_DATAGRAMS: usize = 64;
/// Header included, for both families.
const MAX_BYTES: usize = 65_535;
/// Separate runs of bytes remembered per datagram: the longest datagram in fragments for 576-byte links arrives in at
/// most 60 of them, whatever the order.
const MAX_PIECES: usize = 64;

/// What makes fragments belong together (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub identification: u32,
    /// 0 for IPv6, whose fragments may differ in it.
    pub protocol: u8,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment<'a> {
    pub key: Key,
    /// What the datagram carries; only the first fragment's word counts (RFC 8200 §4.5).
    pub protocol: u8,
    pub offset: usize,
    pub more: bool,
    pub data: &'a [u8],
}

struct Partial {
    key: Key,
    protocol: u8,
    expires: Instant,
    /// `None` when the datagram is condemned and only kept so that its other fragments are known.
    buffer: Option<Slot>,
    /// What has arrived, ascending, neither overlapping nor touching.
    pieces: Vec<(usize, usize)>,
    /// The datagram's length, once its last fragment is here.
    end: Option<usize>,
}

/// The datagrams under way, the oldest first.
pub(super) struct Reassembly {
    partials: Vec<Partial>,
}

/// Where the data begins in the buffer: behind room for a header.
fn header_len(key: &Key) -> usize {
    if key.source.is_ipv4() { ipv4::HEADER } else { ipv6::HEADER }
}

impl Reassembly {
    pub fn new() -> Self {
        Self { partials: Vec::new() }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.partials.first().map(|partial| partial.expires)
    }

    pub fn on_timer(&mut self, now: Instant, counters: &mut Counters) {
        let expired = self.partials.iter().take_while(|partial| partial.expires <= now).count();
        for partial in self.partials.drain(..expired) {
            counters.drop_fragment_timeout += u64::from(partial.buffer.is_some());
        }
    }

    /// Takes one fragment in; returns the datagram it completes as an IP packet without options or extension headers.
    pub fn add(&mut self, fragment: Fragment<'_>, now: Instant, pool: &Pool, counters: &mut Counters) -> Option<Slot> {
        let Fragment { key, protocol, offset, more, data } = fragment;
        self.on_timer(now, counters);
        if data.is_empty() || more && !data.len().is_multiple_of(8) {
            counters.drop_malformed += 1;
            return None;
        }
        if header_len(&key) + offset + data.len() > MAX_BYTES {
            counters.drop_fragment_too_long += 1;
            return None;
        }
        let index = match self.partials.iter().position(|partial| partial.key == key) {
            Some(index) => index,
            None => self.begin(key, now, pool, counters)?,
        };
        let partial = &mut self.partials[index];
        if offset == 0 {
            partial.protocol = protocol;
        }
        match partial.add(offset, more, data) {
            Ok(false) => None,
            Ok(true) => {
                counters.rx_reassembled += 1;
                self.partials.remove(index).finish()
            }
            Err(Refused::Duplicate) => {
                counters.drop_fragment_duplicate += 1;
                None
            }
            Err(Refused::Overlap) => {
                counters.drop_fragment_overlap += 1;
                partial.condemn();
                None
            }
            Err(Refused::Pieces) => {
                counters.drop_fragment_pieces += 1;
                partial.condemn();
                None
            }
        }
    }

    fn begin(&mut self, key: Key, now: Instant, pool: &Pool, counters: &mut Counters) -> Option<usize> {
        if self.partials.len() == MAX_DATAGRAMS {
            let oldest = self.partials.remove(0);
            counters.drop_reassembly_full += u64::from(oldest.buffer.is_some());
        }
        let Some(buffer) = pool.take(MAX_BYTES) else {
            counters.drop_reassembly_no_buffer += 1;
            return None;
        };
        let (buffer, expires) = (Some(buffer), now + LIFETIME);
        self.partials.push(Partial { key, protocol: 0, expires, buffer, pieces: Vec::new(), end: None });
        Some(self.partials.len() - 1)
    }
}

enum Refused {
    Duplicate,
    Overlap,
    Pieces,
}

impl Partial {
    /// `Ok(true)`: complete.
    fn add(&mut self, offset: usize, more: bool, data: &[u8]) -> Result<bool, Refused> {
        let Some(buffer) = &mut self.buffer else { return Err(Refused::Overlap) };
        let end = offset + data.len();
        let place = header_len(&self.key) + offset;
        let place = place..place + data.len();
        // The first piece that reaches up to or beyond this fragment's beginning.
        let at = self.pieces.partition_point(|piece| piece.1 < offset);
        let touched = self.pieces[at..].iter().take_while(|piece| piece.0 <= end).count();
        let overlapped = self.pieces[at..at + touched].iter().find(|piece| piece.0 < end && offset < piece.1);
        if let Some(piece) = overlapped {
            let repeated = piece.0 <= offset && end <= piece.1 && (more || self.end == Some(end));
            return Err(if repeated && buffer[place] == *data { Refused::Duplicate } else { Refused::Overlap });
        }
        if self.end.is_some_and(|known| if more { end >= known } else { end != known })
            || !more && self.pieces.last().is_some_and(|piece| piece.1 > end)
        {
            return Err(Refused::Overlap);
        }
        if touched == 0 && self.pieces.len() == MAX_PIECES {
            return Err(Refused::Pieces);
        }
        buffer[place].copy_from_slice(data);
        if !more {
            self.end = Some(end);
        }
        let joined = self.pieces[at..at + touched]
            .iter()
            .fold((offset, end), |joined, piece| (joined.0.min(piece.0), joined.1.max(piece.1)));
        self.pieces.splice(at..at + touched, [joined]);
        Ok(self.end.is_some_and(|end| self.pieces == [(0, end)]))
    }

    fn condemn(&mut self) {
        self.buffer = None;
        self.pieces = Vec::new();
    }

    /// Puts a header of its own before the data.
    fn finish(self) -> Option<Slot> {
        let (mut buffer, end) = (self.buffer?, self.end?);
        let header_len = header_len(&self.key);
        match (self.key.source, self.key.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = ipv4::emit(source, destination, self.protocol, end, ipv4::Fragment::WHOLE);
                buffer[..header_len].copy_from_slice(&header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = ipv6::emit(source, destination, self.protocol, end, ipv6::HOP_LIMIT);
                buffer[..header_len].copy_from_slice(&header);
            }
            _ => return None,
        }
        buffer.narrow(0, header_len + end);
        Some(buffer)
    }
}
