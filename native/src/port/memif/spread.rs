//! Which of several queues a frame goes by: a hash of its flow, so that the frames of one flow stay in order.
//!
//! IPv4 and IPv6 are told apart by addresses, protocol and, of TCP, UDP and SCTP that are no fragments, ports; fragments
//! by their addresses alone, for only the first has the ports. Everything else goes by its Ethernet addresses. This is
//! read from memory that a peer may still write: a frame whose flow changes meanwhile is out of order, and no more.

use crate::port::lent::Lent;

/// Ethernet, two VLAN tags, IPv6 and the ports.
const HEAD: usize = 14 + 2 * 4 + 40 + 4;

/// The queue, of `count`, of the frame made of `parts`.
pub fn queue(parts: &[Lent<'_>], count: usize) -> usize {
    let (mut head, mut length) = ([0; HEAD], 0);
    for part in parts {
        length += part.copy_head(&mut head[length..]);
    }
    let hash = hash(&head[..length]);
    // The upper half of a product: as good as a remainder, without the division.
    ((u64::from(hash) * count as u64) >> 32) as usize
}

fn hash(frame: &[u8]) -> u32 {
    key(frame).unwrap_or_else(|| fold(0, frame.get(..12).unwrap_or(frame)))
}

/// The hash of a flow of IP.
fn key(frame: &[u8]) -> Option<u32> {
    let mut at = 12;
    // IEEE 802.1Q, 802.1ad.
    while matches!(frame.get(at..at + 2)?, [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    let ip = frame.get(at + 2..)?;
    match frame.get(at..at + 2)? {
        // RFC 791 §3.1
        [0x08, 0x00] => {
            let (first, protocol) = (ip.first()?, ip.get(9)?);
            let addresses = fold(u32::from(*protocol), ip.get(12..20)?);
            let is_fragment = ip[6] & 0x3f != 0 || ip[7] != 0;
            let ports = 4 * usize::from(first & 0x0f);
            Some(if is_fragment { addresses } else { with_ports(addresses, *protocol, ip.get(ports..)) })
        }
        // RFC 8200 §3. Behind extension headers ports are not looked for.
        [0x86, 0xdd] => {
            let protocol = *ip.get(6)?;
            Some(with_ports(fold(u32::from(protocol), ip.get(8..40)?), protocol, ip.get(40..)))
        }
        _ => None,
    }
}

fn with_ports(hash: u32, protocol: u8, transport: Option<&[u8]>) -> u32 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const SCTP: u8 = 132;
    match transport.and_then(|transport| transport.get(..4)) {
        Some(ports) if matches!(protocol, TCP | UDP | SCTP) => fold(hash, ports),
        _ => hash,
    }
}

/// Mixes words of four bytes in, each by the finalizer of MurmurHash3.
fn fold(hash: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(4).fold(hash, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        let mixed = (hash ^ u32::from_le_bytes(word)).wrapping_mul(0x85eb_ca6b);
        let mixed = (mixed ^ mixed >> 13).wrapping_mul(0xc2b2_ae35);
        mixed ^ mixed >> 16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(frame: &[u8]) -> u32 {
        hash(frame)
    }

    /// IPv4 and UDP with that source port.
    fn port(number: u16) -> Vec<u8> {
        let mut frame = [&[2; 12][..], &[8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17], &[0; 36]].concat();
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame[34..36].copy_from_slice(&number.to_be_bytes());
        frame
    }

    #[test]
    fn flows_spread_evenly_over_any_number_of_queues() {
        for count in [2, 3, 8, 64] {
            let mut hits = vec![0; count];
            for number in 0..6400 {
                hits[queue(&[Lent::of(&port(number))], count)] += 1;
            }
            let even = 6400 / count;
            assert!(hits.iter().all(|hits| (even / 2..2 * even).contains(hits)), "{count}: {hits:?}");
        }
    }

    #[test]
    fn how_a_frame_is_cut_into_parts_does_not_matter() {
        let frame = port(7);
        for cut in [0, 1, 13, 40, 60] {
            let (head, rest) = frame.split_at(cut);
            assert_eq!(queue(&[Lent::of(head), Lent::of(rest)], 64), queue(&[Lent::of(&frame)], 64));
        }
    }

    #[test]
    fn only_the_flow_counts() {
        let mut same = port(7);
        same[0..12].fill(9);
        same[50] ^= 1;
        assert_eq!(of(&same), of(&port(7)));
        assert_ne!(of(&port(8)), of(&port(7)));
        let tagged = [&port(7)[..12], &[0x81, 0, 0, 5], &port(7)[12..]].concat();
        assert_eq!(of(&tagged), of(&port(7)));
    }

    #[test]
    fn fragments_of_one_datagram_go_one_way() {
        let fragment = |high: u8, low: u8, number| {
            let mut frame = port(number);
            frame[20..22].copy_from_slice(&[high, low]);
            frame
        };
        assert_eq!(of(&fragment(0x20, 0, 7)), of(&fragment(0, 185, 9)));
    }

    #[test]
    fn what_is_cut_short_or_no_ip_has_a_queue_too() {
        let mut arp = port(7);
        arp[12..14].copy_from_slice(&[8, 6]);
        let frames = [port(7), arp, [&port(7)[..12], &[0x86, 0xdd, 0x60]].concat()];
        for frame in &frames {
            for length in 1..=frame.len() {
                assert!(queue(&[Lent::of(&frame[..length])], 3) < 3);
            }
        }
        assert_ne!(of(&frames[1]), of(&frames[0]));
    }
}
