//! Reassembly: what is put together, what is condemned, what is bounded.

use std::net::IpAddr;
use std::time::Duration;

use super::wire::*;
use crate::packet::{ethernet, ipv4, ipv6, protocol};
use crate::port::Sent;
use crate::stack::bench::{mac, station};
use crate::stack::{Host, Input, To};

/// A fragment from `PEER`: `offset` in bytes.
pub fn fragment(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
    offset: usize,
    more: bool,
    data: &[u8],
) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let place = ipv4::Fragment { identification: id as u16, offset, more, dont_fragment: false };
            let ip = ipv4::emit(source, destination, protocol, data.len(), place);
            [&ethernet::emit(US, PEER, ethernet::IPV4)[..], &ip, data].concat()
        }
        _ => {
            let payload = [&ipv6::emit_fragment(protocol, offset, more, id)[..], data].concat();
            ip_frame(source, destination, ipv6::FRAGMENT, &payload)
        }
    }
}

/// The fragments of a whole frame, `step` bytes each.
pub fn cut(frame: &[u8], step: usize, id: u32) -> Vec<Vec<u8>> {
    let (source, destination, payload) = ip_of(frame);
    let protocol = if source.is_ipv4() { frame[14 + 9] } else { frame[14 + 6] };
    let count = payload.len().div_ceil(step);
    payload
        .chunks(step)
        .enumerate()
        .map(|(index, data)| fragment(source, destination, protocol, id, index * step, index + 1 < count, data))
        .collect()
}

fn listening() -> Bench {
    let mut bench = Bench::new();
    bench.host.listen(None, 5000, 1).unwrap();
    bench
}

fn large_buffers_free(bench: &Bench) -> usize {
    bench.pool.statistics()[1].free
}

const FAMILIES: [(&str, &str); 2] = [("10.0.0.7:9", "10.0.0.2:5000"), ("[fd00::7]:9", "[fd00::2]:5000")];

#[test]
fn fragments_in_any_order_become_their_datagram() {
    let mut state = 0x5eed_5eed_5eed_5eed;
    for round in 0..300 {
        let (source, destination) = FAMILIES[round % 2];
        let mut bench = listening();
        let len = random(&mut state) % 20_000;
        let payload: Vec<u8> = (0..len).map(|_| random(&mut state) as u8).collect();
        // At most as many fragments as pieces are remembered, so that every order will do.
        let step = ((len + 8) / 60 + random(&mut state) % 1_400) / 8 * 8 + 8;
        let mut fragments = cut(&udp_frame(source, destination, &payload), step, round as u32);
        for index in (1..fragments.len()).rev() {
            fragments.swap(index, random(&mut state) % (index + 1));
        }
        let last = fragments.pop().unwrap();
        for fragment in fragments {
            bench.consume(&fragment);
        }
        let datagram = bench.datagram(&last);
        assert_eq!((datagram.to, datagram.source), (To::Listener(1), address(source)));
        assert!(datagram.payload[..] == payload, "{len} bytes in steps of {step}");
        drop(datagram);
        assert_eq!(large_buffers_free(&bench), 80);
        assert_eq!(bench.host.deadline(), None);
    }
}

/// What reassembly means, said in the plainest way: a map of bytes.
#[derive(Default)]
struct Oracle {
    bytes: Vec<Option<u8>>,
    end: Option<usize>,
    is_condemned: bool,
}

impl Oracle {
    /// The datagram, when this fragment completes it.
    fn add(&mut self, offset: usize, more: bool, data: &[u8]) -> Option<Vec<u8>> {
        let end = offset + data.len();
        self.bytes.resize(self.bytes.len().max(end), None);
        let place = &mut self.bytes[offset..end];
        if self.is_condemned {
            return None;
        }
        if place.iter().any(Option::is_some) {
            let is_repeated = place.iter().zip(data).all(|(old, new)| *old == Some(*new));
            self.is_condemned = !(is_repeated && (more || self.end == Some(end)));
            return None;
        }
        place.iter_mut().zip(data).for_each(|(old, new)| *old = Some(*new));
        if !more {
            if self.end.is_some_and(|known| known != end) || self.bytes.len() > end {
                self.is_condemned = true;
                return None;
            }
            self.end = Some(end);
        } else if self.end.is_some_and(|known| end >= known) {
            self.is_condemned = true;
            return None;
        }
        (self.end == Some(self.bytes.len())).then(|| self.bytes.iter().copied().collect::<Option<Vec<u8>>>())?
    }
}

#[test]
fn hostile_fragments_agree_with_the_oracle() {
    let mut state = 0xfeed_beef_1234_5678;
    let (mut completed, mut condemned) = (0, 0);
    for round in 0..4_000u32 {
        let (source, destination) = FAMILIES[round as usize % 2];
        let (source, destination) = (address(source), address(destination));
        let mut bench = listening();
        let mut oracle = Oracle::default();
        let payload: Vec<u8> = (0..random(&mut state) % 56).map(|_| random(&mut state) as u8).collect();
        let bytes = udp_bytes(source, destination, &payload);
        for _ in 0..24 {
            let from = random(&mut state) % bytes.len().div_ceil(8) * 8;
            let mut to = (from + 8 + random(&mut state) % 2 * 8).min(bytes.len());
            let mut more = to < bytes.len();
            let mut data = bytes[from..to].to_vec();
            if random(&mut state).is_multiple_of(60) {
                data[0] ^= 1;
            }
            if random(&mut state).is_multiple_of(60) {
                (more, to) = (!more, from + data.len() / 8 * 8);
                data.truncate(to - from);
            }
            if data.is_empty() || more && !data.len().is_multiple_of(8) {
                continue;
            }
            if from == 0 && !more {
                // Not a fragment at all.
                continue;
            }
            let frame = fragment(source.ip(), destination.ip(), protocol::UDP, 5, from, more, &data);
            let expected = oracle.add(from, more, &data);
            let input = bench.receive(&frame);
            let got = matches!(input, Input::Datagram(_)) || bench.counter("rx_reassembled") == 1;
            assert_eq!(got, expected.is_some(), "round {round}");
            if let Some(expected) = expected {
                completed += 1;
                if let Input::Datagram(datagram) = input {
                    assert_eq!(datagram.payload[..], expected[8..8 + datagram.payload.len()]);
                }
                break;
            }
        }
        condemned += u32::from(oracle.is_condemned);
        assert_eq!(bench.counter("drop_fragment_overlap") != 0, oracle.is_condemned, "round {round}");
    }
    assert!(completed > 500 && condemned > 500, "{completed} completed, {condemned} condemned");
}

#[test]
fn an_overlap_condemns_the_datagram_and_what_still_comes_of_it() {
    for (source, destination) in FAMILIES {
        let mut bench = listening();
        let fragments = cut(&udp_frame(source, destination, &[7; 100]), 32, 1);
        bench.consume(&fragments[0]);
        let (source, destination) = (address(source).ip(), address(destination).ip());
        bench.consume(&fragment(source, destination, 17, 1, 24, true, &[9; 16]));
        assert_eq!(large_buffers_free(&bench), 80);
        for fragment in &fragments[1..] {
            bench.drops("a late fragment", fragment, "drop_fragment_overlap");
        }
        assert_eq!(bench.counter("rx_udp"), 0);
    }
}

#[test]
fn a_repeated_fragment_does_no_harm() {
    for (source, destination) in FAMILIES {
        let mut bench = listening();
        let fragments = cut(&udp_frame(source, destination, &[7; 100]), 32, 1);
        bench.consume(&fragments[3]);
        bench.consume(&fragments[0]);
        bench.drops("the first again", &fragments[0], "drop_fragment_duplicate");
        bench.drops("the last again", &fragments[3], "drop_fragment_duplicate");
        bench.consume(&fragments[2]);
        assert_eq!(bench.datagram(&fragments[1]).payload[..], [7; 100]);
    }
}

#[test]
fn a_datagram_not_complete_in_time_is_dropped() {
    let mut bench = listening();
    let fragments = cut(&udp_frame(FAMILIES[0].0, FAMILIES[0].1, &[7; 100]), 64, 1);
    bench.consume(&fragments[0]);
    assert_eq!(bench.host.deadline(), Some(bench.now + Duration::from_secs(30)));
    bench.pass(Duration::from_secs(29));
    assert_eq!(bench.counter("drop_fragment_timeout"), 0);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.counter("drop_fragment_timeout"), 1);
    assert_eq!((bench.host.deadline(), large_buffers_free(&bench)), (None, 80));
    bench.consume(&fragments[1]);
    assert_eq!(bench.counter("rx_udp"), 0);
}

#[test]
fn the_oldest_datagram_makes_room() {
    let mut bench = listening();
    let frame = udp_frame(FAMILIES[0].0, FAMILIES[0].1, &[7; 100]);
    for id in 0..65 {
        bench.consume(&cut(&frame, 64, id)[0]);
    }
    assert_eq!((bench.counter("drop_reassembly_full"), large_buffers_free(&bench)), (1, 80 - 64));
    bench.datagram(&cut(&frame, 64, 1)[1]);
    bench.consume(&cut(&frame, 64, 0)[1]);
    assert_eq!(bench.counter("rx_udp"), 1);
}

#[test]
fn without_a_buffer_fragments_are_dropped_and_counted() {
    let mut bench = listening();
    let kept: Vec<_> = (0..80).map(|_| bench.pool.take(65_536).unwrap()).collect();
    let fragments = cut(&udp_frame(FAMILIES[0].0, FAMILIES[0].1, &[7; 100]), 64, 1);
    bench.drops("dry", &fragments[0], "drop_reassembly_no_buffer");
    drop(kept);
    bench.consume(&fragments[0]);
    bench.datagram(&fragments[1]);
}

#[test]
fn the_pieces_of_a_datagram_are_bounded() {
    let mut bench = listening();
    let (source, destination) = (address(FAMILIES[0].0).ip(), address(FAMILIES[0].1).ip());
    for index in 0..64 {
        bench.consume(&fragment(source, destination, 17, 1, index * 16, true, &[7; 8]));
    }
    bench.drops("one more", &fragment(source, destination, 17, 1, 64 * 16, true, &[7; 8]), "drop_fragment_pieces");
    assert_eq!(large_buffers_free(&bench), 80);
}

#[test]
fn fragments_of_impossible_lengths_are_dropped() {
    let mut bench = listening();
    for (source, destination) in FAMILIES {
        let (source, destination) = (address(source).ip(), address(destination).ip());
        let piece = |offset, more, len| fragment(source, destination, 17, 1, offset, more, &vec![7; len]);
        bench.drops("not a multiple of 8", &piece(0, true, 12), "drop_malformed");
        bench.drops("empty", &piece(8, true, 0), "drop_malformed");
        bench.drops("empty and last", &piece(8, false, 0), "drop_malformed");
        bench.drops("beyond 65,535", &piece(65_528, false, 100), "drop_fragment_too_long");
    }
    assert_eq!(bench.host.deadline(), None);
}

#[test]
fn fragments_of_different_datagrams_do_not_mix() {
    let mut bench = listening();
    let one = cut(&udp_frame("10.0.0.7:9", "10.0.0.2:5000", &[1; 100]), 64, 1);
    for other in [
        cut(&udp_frame("10.0.0.8:9", "10.0.0.2:5000", &[2; 100]), 64, 1),
        cut(&udp_frame("10.0.0.7:9", "10.0.0.100:5000", &[2; 100]), 64, 1),
        cut(&udp_frame("10.0.0.7:9", "10.0.0.2:5000", &[2; 100]), 64, 2),
    ] {
        bench.consume(&one[0]);
        bench.consume(&other[1]);
        bench.datagram(&one[1]);
        bench.datagram(&other[0]);
    }
}

#[test]
fn fragments_for_others_take_no_room() {
    let mut bench = listening();
    bench.drops(
        "another host",
        &cut(&udp_frame("10.0.0.7:9", "10.0.0.3:5000", &[1; 100]), 64, 1)[0],
        "drop_not_for_us",
    );
    bench.drops("a martian", &cut(&udp_frame("127.0.0.1:9", "10.0.0.2:5000", &[1; 100]), 64, 1)[0], "drop_martian");
    assert_eq!(large_buffers_free(&bench), 80);
}

#[test]
fn a_reassembled_datagram_to_a_closed_port_is_refused_a_lone_fragment_is_not() {
    let mut bench = Bench::new();
    let fragments = cut(&udp_frame(FAMILIES[0].0, FAMILIES[0].1, &[7; 100]), 64, 1);
    bench.consume(&fragments[1]);
    assert!(bench.sent().is_empty());
    bench.consume(&fragments[0]);
    let (kind, code, _, quoted) = icmp_of(&bench.sent_one());
    assert_eq!((kind, code), (3, 3));
    assert_eq!(ipv4::Packet::new_checked(&quoted).unwrap().payload()[..8], fragments[0][34..42]);
}

#[test]
fn fragments_within_fragments_are_refused() {
    let mut bench = listening();
    let (source, destination) = (address(FAMILIES[1].0).ip(), address(FAMILIES[1].1).ip());
    let inner = [&ipv6::emit_fragment(17, 0, true, 9)[..], &[7; 24]].concat();
    bench.consume(&fragment(source, destination, ipv6::FRAGMENT, 1, 0, true, &inner));
    bench.drops("nested", &fragment(source, destination, 17, 1, 32, false, &[7; 8]), "drop_malformed");
}

#[test]
fn what_does_not_fit_the_mtu_leaves_in_fragments_and_arrives() {
    for mtu in [576, 1_280, 1_500, 9_000] {
        for (remote, local) in FAMILIES {
            let mut sender = Bench::with_mtu(mtu);
            let flow = sender.host.adopt(address(local), address(remote), PEER, 1).unwrap();
            for len in [mtu - 28, mtu - 27, mtu, 2 * mtu, 10_000, 65_487] {
                let payload: Vec<u8> = (0..len).map(|byte| (byte * 13 / 4) as u8).collect();
                assert_eq!(sender.host.send(flow, &payload, sender.now, &mut sender.port), Sent::Queued);
                let frames = sender.sent();
                assert!(frames.iter().all(|frame| frame.len() <= 14 + mtu));
                let mut receiver = mirror(remote);
                let mut arrived = None;
                for mut frame in frames {
                    frame[..6].copy_from_slice(&mac(7));
                    if let Input::Datagram(datagram) = receiver.receive(&frame) {
                        assert_eq!((datagram.source, datagram.destination), (address(local), address(remote)));
                        arrived = Some(datagram.payload.to_vec());
                    }
                }
                assert!(arrived.as_ref() == Some(&payload), "{len} bytes over {mtu}: {:?}", receiver.counted());
            }
        }
    }
}

/// The host that has the peer's address.
fn mirror(address: &str) -> Bench {
    let mut bench = Bench::new();
    let address: std::net::SocketAddr = address.parse().unwrap();
    bench.host = Host::new(station(7));
    bench.host.listen(None, address.port(), 1).unwrap();
    bench
}

#[test]
fn a_datagram_longer_than_ip_allows_is_refused() {
    let mut bench = Bench::new();
    let four = bench.host.adopt(address(FAMILIES[0].1), address(FAMILIES[0].0), PEER, 1).unwrap();
    let six = bench.host.adopt(address(FAMILIES[1].1), address(FAMILIES[1].0), PEER, 1).unwrap();
    for (flow, len, expected) in [
        (four, 65_507, Sent::Queued),
        (four, 65_508, Sent::TooLong),
        (four, 1 << 17, Sent::TooLong),
        (six, 65_527, Sent::Queued),
        (six, 65_528, Sent::TooLong),
    ] {
        assert_eq!(bench.host.send(flow, &vec![0; len], bench.now, &mut bench.port), expected, "{len}");
    }
    assert_eq!(bench.counter("drop_too_long"), 3);
}
