//! IP datagrams on their way out: fragmented when they are longer than the MTU.

use std::net::IpAddr;

use crate::packet::ethernet::{self, Mac};
use crate::packet::{ipv4, ipv6};
use crate::port::Sent;

/// Where the frames of a datagram go: a port, or the queue for a neighbour.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[&[u8]]) -> Sent;

/// All of a datagram but what it carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    pub mac: Mac,
    pub to_mac: Mac,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Of IPv6 only; all our IPv4 packets have the same TTL.
    pub hop_limit: u8,
    /// Tells the fragments of this datagram from those of others: not to be foreseen (RFC 7739).
    pub identification: u32,
    pub dont_fragment: bool,
    pub mtu: usize,
}

/// Sends a datagram of `head` (a transport header of 8 bytes) and `body`. Counts the frames in `frames`.
pub(super) fn emit(envelope: &Envelope, head: &[u8; 8], body: &[u8], frames: &mut u64, sink: Sink<'_>) -> Sent {
    let len = head.len() + body.len();
    match (envelope.source, envelope.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            if ipv4::HEADER + len > usize::from(u16::MAX) {
                return Sent::TooLong;
            }
            let mut frame = [0; ethernet::HEADER + ipv4::HEADER];
            frame[..14].copy_from_slice(&ethernet::emit(envelope.to_mac, envelope.mac, ethernet::IPV4));
            let whole = ipv4::HEADER + len <= envelope.mtu;
            pieces(len, envelope.mtu - ipv4::HEADER, head, body, &mut |offset, more, parts| {
                let fragment = ipv4::Fragment {
                    identification: envelope.identification as u16,
                    offset,
                    more,
                    dont_fragment: whole && envelope.dont_fragment,
                };
                let len = parts[0].len() + parts[1].len();
                frame[14..].copy_from_slice(&ipv4::emit(source, destination, envelope.protocol, len, fragment));
                *frames += 1;
                sink(&[&frame, parts[0], parts[1]])
            })
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            if len > usize::from(u16::MAX) {
                return Sent::TooLong;
            }
            let mut frame = [0; ethernet::HEADER + ipv6::HEADER + ipv6::FRAGMENT_HEADER];
            frame[..14].copy_from_slice(&ethernet::emit(envelope.to_mac, envelope.mac, ethernet::IPV6));
            if ipv6::HEADER + len <= envelope.mtu {
                let ip = ipv6::emit(source, destination, envelope.protocol, len, envelope.hop_limit);
                frame[14..54].copy_from_slice(&ip);
                *frames += 1;
                return sink(&[&frame[..54], head, body]);
            }
            let room = envelope.mtu - ipv6::HEADER - ipv6::FRAGMENT_HEADER;
            pieces(len, room, head, body, &mut |offset, more, parts| {
                let len = ipv6::FRAGMENT_HEADER + parts[0].len() + parts[1].len();
                let ip = ipv6::emit(source, destination, ipv6::FRAGMENT, len, envelope.hop_limit);
                frame[14..54].copy_from_slice(&ip);
                let fragment = ipv6::emit_fragment(envelope.protocol, offset, more, envelope.identification);
                frame[54..].copy_from_slice(&fragment);
                *frames += 1;
                sink(&[&frame, parts[0], parts[1]])
            })
        }
        _ => Sent::TooLong,
    }
}

/// Takes a piece's offset, whether more follow, and its bytes in two parts.
type SendPiece<'a> = &'a mut dyn FnMut(usize, bool, [&[u8]; 2]) -> Sent;

/// Cuts `head` and `body` into pieces of at most `room` bytes, all but the last a multiple of 8. The first that is not
/// taken ends it: what follows would be of no use.
fn pieces(len: usize, room: usize, head: &[u8; 8], body: &[u8], send: SendPiece<'_>) -> Sent {
    if len <= room {
        return send(0, false, [head, body]);
    }
    let step = room & !7;
    let mut offset = 0;
    loop {
        let end = (offset + step).min(len);
        let first: &[u8] = if offset == 0 { head } else { &[] };
        let sent = send(offset, end < len, [first, &body[offset.saturating_sub(8)..end - 8]]);
        if sent != Sent::Queued || end == len {
            return sent;
        }
        offset = end;
    }
}
