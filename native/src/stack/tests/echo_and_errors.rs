//! ICMP: echo, the errors we send, the errors we believe.

use std::time::Duration;

use super::wire::*;
use crate::packet::arp::Operation;
use crate::packet::icmp::{v4 as four, v6 as six};
use crate::packet::{ethernet, ipv4, ipv6, protocol};
use crate::port::Sent;
use crate::stack::{FlowId, Input, Unreachable};

#[test]
fn echo_is_answered_by_the_way_it_came() {
    let mut bench = Bench::new();
    for (source, destination, request, reply) in [
        ("10.0.0.7", "10.0.0.2", four::ECHO_REQUEST, four::ECHO_REPLY),
        ("192.0.2.1", "10.0.0.2", four::ECHO_REQUEST, four::ECHO_REPLY),
        ("10.0.0.7", "10.0.0.100", four::ECHO_REQUEST, four::ECHO_REPLY),
        ("fd00::7", "fd00::2", six::ECHO_REQUEST, six::ECHO_REPLY),
    ] {
        bench.consume(&icmp_frame(source, destination, request, 0, [1, 2, 3, 4], b"abcdefg"));
        let frame = bench.sent_one();
        assert_eq!(frame[..6], PEER);
        assert_eq!(icmp_of(&frame), (reply, 0, [1, 2, 3, 4], b"abcdefg".to_vec()));
        let (from, to, _) = ip_of(&frame);
        assert_eq!((from.to_string(), to.to_string()), (destination.to_owned(), source.to_owned()));
    }
    assert_eq!((bench.counter("rx_icmp_echo"), bench.counter("tx_icmp_echo")), (4, 4));
}

#[test]
fn echo_to_all_nodes_is_answered_from_an_own_address() {
    let mut bench = Bench::new();
    let mut frame = icmp_frame("fd00::7", "ff02::1", six::ECHO_REQUEST, 0, [0; 4], b"x");
    frame[..6].copy_from_slice(&ethernet::multicast(v6("ff02::1")));
    bench.consume(&frame);
    assert_eq!(ip_of(&bench.sent_one()).0, v6("fd00::2"));
}

#[test]
fn broadcast_echo_and_wrong_checksums_are_not_answered() {
    let mut bench = Bench::new();
    let good = icmp_frame("10.0.0.7", "10.0.0.2", four::ECHO_REQUEST, 0, [0; 4], b"x");
    let mut broadcast = good.clone();
    broadcast[..6].fill(0xff);
    bench.drops("broadcast", &broadcast, "drop_not_for_us");
    let mut wrong = good.clone();
    wrong[42] ^= 1;
    bench.drops("checksum", &wrong, "drop_icmp_checksum");
    let mut wrong = icmp_frame("fd00::7", "fd00::2", six::ECHO_REQUEST, 0, [0; 4], b"x");
    wrong[62] ^= 1;
    bench.drops("checksum", &wrong, "drop_icmp_checksum");
    let unspecified = icmp_frame("::", "ff02::1", six::ECHO_REQUEST, 0, [0; 4], b"x");
    bench.drops("from ::", &unspecified, "drop_martian");
    bench.drops("reply", &icmp_frame("10.0.0.7", "10.0.0.2", four::ECHO_REPLY, 0, [0; 4], b"x"), "drop_icmp_ignored");
    bench.drops("redirect", &icmp_frame("10.0.0.7", "10.0.0.2", 5, 0, [0; 4], &[0; 28]), "drop_icmp_ignored");
    bench.drops("router", &icmp_frame("fd00::7", "fd00::2", 134, 0, [0; 4], &[0; 8]), "drop_icmp_ignored");
}

#[test]
fn a_closed_port_answers_with_the_datagram_quoted() {
    let mut bench = Bench::new();
    for (source, destination, kind, code, most) in [
        ("10.0.0.7:9", "10.0.0.2:5000", four::UNREACHABLE, four::PORT, 548),
        ("10.0.0.7:9", "10.0.0.100:5000", four::UNREACHABLE, four::PORT, 548),
        ("[fd00::7]:9", "[fd00::2]:5000", six::UNREACHABLE, six::PORT, 1_232),
    ] {
        for len in [0, 10, 1_400] {
            let frame = udp_frame(source, destination, &vec![7; len]);
            bench.consume(&frame);
            let answer = bench.sent_one();
            let (seen_kind, seen_code, rest, quoted) = icmp_of(&answer);
            assert_eq!((seen_kind, seen_code, rest), (kind, code, [0; 4]));
            assert_eq!(quoted, frame[14..frame.len().min(14 + most)]);
            assert_eq!(ip_of(&answer).0, address(destination).ip());
        }
    }
    assert_eq!((bench.counter("drop_no_listener"), bench.counter("tx_icmp_error")), (9, 9));
}

#[test]
fn an_unknown_protocol_is_refused_in_each_familys_way() {
    let mut bench = Bench::new();
    bench.consume(&ip_frame("10.0.0.7".parse().unwrap(), "10.0.0.2".parse().unwrap(), 132, &[0; 20]));
    assert_eq!(icmp_of(&bench.sent_one()).0, four::UNREACHABLE);
    let (source, destination) = ("fd00::7".parse().unwrap(), "fd00::2".parse().unwrap());
    bench.consume(&ip_frame(source, destination, 60, &[&[132, 0, 1, 4, 0, 0, 0, 0][..], &[0; 20]].concat()));
    let (kind, code, rest, _) = icmp_of(&bench.sent_one());
    assert_eq!((kind, code, rest), (six::PARAMETER_PROBLEM, six::UNRECOGNIZED_NEXT_HEADER, [0, 0, 0, 40]));
    bench.drops("no next header", &ip_frame(source, destination, 59, &[]), "drop_protocol");
}

#[test]
fn no_error_answers_what_was_said_to_many_or_cannot_be_answered() {
    let mut bench = Bench::new();
    let mut broadcast = udp_frame("10.0.0.7:9", "10.0.0.2:5000", b"x");
    broadcast[..6].fill(0xff);
    let mut martian = udp_frame("0.0.0.0:9", "10.0.0.2:5000", b"x");
    for frame in [
        &mut broadcast,
        &mut martian,
        &mut udp_frame("10.0.0.7:9", "10.0.0.255:5000", b"x"),
        &mut udp_frame("[fd00::7]:9", "[ff02::1]:5000", b"x"),
        &mut udp_frame("10.0.0.255:9", "10.0.0.2:5000", b"x"),
    ] {
        bench.consume(frame);
    }
    assert!(bench.sent().is_empty());
}

#[test]
fn errors_are_limited_in_rate() {
    let mut bench = Bench::new();
    let frame = udp_frame("10.0.0.7:9", "10.0.0.2:5000", b"x");
    for _ in 0..200 {
        bench.consume(&frame);
    }
    assert_eq!((bench.sent().len(), bench.counter("drop_icmp_rate")), (50, 150));
    bench.pass(Duration::from_millis(10));
    for _ in 0..200 {
        bench.consume(&frame);
    }
    assert_eq!(bench.sent().len(), 10);
}

fn with_flow(remote: &str) -> (Bench, FlowId, Vec<u8>) {
    let mut bench = Bench::new();
    let local = if remote.starts_with('[') { "[fd00::2]:5000" } else { "10.0.0.2:5000" };
    let flow = bench.host.adopt(address(local), address(remote), PEER, 9).unwrap();
    bench.host.send(flow, &[7; 1_200], bench.now, &mut bench.port);
    let sent = bench.sent_one();
    (bench, flow, sent[14..].to_vec())
}

#[test]
fn an_error_that_quotes_a_flow_is_for_its_owner() {
    for (remote, router, us, table) in [
        (
            "192.0.2.1:9",
            "10.0.0.1",
            "10.0.0.2",
            &[
                (3, 0, Unreachable::Network),
                (3, 1, Unreachable::Host),
                (3, 2, Unreachable::Other),
                (3, 3, Unreachable::Port),
                (3, 13, Unreachable::Other),
                (11, 0, Unreachable::Other),
                (12, 0, Unreachable::Other),
            ][..],
        ),
        (
            "[2001:db8::1]:9",
            "fd00::1",
            "fd00::2",
            &[
                (1, 0, Unreachable::Network),
                (1, 1, Unreachable::Other),
                (1, 3, Unreachable::Host),
                (1, 4, Unreachable::Port),
                (3, 0, Unreachable::Other),
            ],
        ),
    ] {
        let (mut bench, _, packet) = with_flow(remote);
        for &(kind, code, expected) in table {
            // RFC 792 has routers quote the IP header and eight bytes, no more.
            let least = packet.len() - 1_200;
            for quoted in [&packet[..least], &packet[..least + 100]] {
                match bench.receive(&icmp_frame(router, us, kind, code, [0; 4], quoted)) {
                    Input::Unreachable { to, reason } => assert_eq!((to, reason), (9, expected), "{kind}/{code}"),
                    other => panic!("{kind}/{code}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn an_error_that_quotes_no_flow_of_ours_is_ignored() {
    let (mut bench, _, packet) = with_flow("192.0.2.1:9");
    for (what, at, value) in [
        ("another local port", 21, 1),
        ("another remote port", 23, 1),
        ("another source", 15, 9),
        ("another destination", 19, 9),
        ("another protocol", 9, 6),
        ("a later fragment", 7, 9),
        ("another version", 0, 0x65),
    ] {
        let mut quoted = packet[..28].to_vec();
        quoted[at] = value;
        bench.drops(what, &icmp_frame("10.0.0.1", "10.0.0.2", 3, 3, [0; 4], &quoted), "drop_icmp_ignored");
    }
    for len in [0, 19, 23] {
        let frame = icmp_frame("10.0.0.1", "10.0.0.2", 3, 3, [0; 4], &packet[..len]);
        bench.drops("too little quoted", &frame, "drop_icmp_ignored");
    }
    let (mut bench, _, packet) = with_flow("[2001:db8::1]:9");
    for len in [0, 39, 43] {
        let frame = icmp_frame("fd00::1", "fd00::2", 1, 4, [0; 4], &packet[..len]);
        bench.drops("too little quoted", &frame, "drop_icmp_ignored");
    }
}

#[test]
fn too_big_lowers_the_flows_mtu_within_bounds() {
    let (mut bench, flow, packet) = with_flow("192.0.2.1:9");
    let too_big = |mtu: u16| {
        let [high, low] = mtu.to_be_bytes();
        icmp_frame("10.0.0.1", "10.0.0.2", 3, 4, [0, 0, high, low], &packet[..28])
    };
    let longest = |bench: &mut Bench| {
        assert_eq!(bench.host.send(flow, &[7; 1_400], bench.now, &mut bench.port), Sent::Queued);
        bench.sent().iter().map(|frame| frame.len() - 14).max().unwrap()
    };
    assert_eq!(longest(&mut bench), 1_428);
    for (mtu, expected) in [(9_000, 1_428), (1_000, 996), (1_200, 996), (600, 596)] {
        bench.consume(&too_big(mtu));
        assert_eq!(longest(&mut bench), expected, "told {mtu}");
    }
    bench.host.send(flow, b"small", bench.now, &mut bench.port);
    assert_eq!(bench.sent_one()[20] & 0x40, 0x40, "whole datagrams are not to be fragmented");
    for mtu in [100, 0] {
        bench.consume(&too_big(mtu));
        assert_eq!(longest(&mut bench), 572, "told {mtu}");
        bench.host.send(flow, b"small", bench.now, &mut bench.port);
        assert_eq!(bench.sent_one()[20] & 0x40, 0, "routers must fragment for so small a link");
    }
    assert_eq!(bench.counter("flow_path_mtu_lowered"), 3);

    let (mut bench, flow, packet) = with_flow("[2001:db8::1]:9");
    for (mtu, expected) in [(1_400u32, 1_400), (100, 1_280)] {
        bench.consume(&icmp_frame("fd00::1", "fd00::2", 2, 0, mtu.to_be_bytes(), &packet[..48]));
        bench.host.send(flow, &[7; 2_000], bench.now, &mut bench.port);
        let longest = bench.sent().iter().map(|frame| frame.len() - 14).max().unwrap();
        assert!(longest <= expected && longest > expected - 8, "told {mtu}: {longest}");
    }
}

#[test]
fn a_long_echo_is_reassembled_and_its_reply_fragmented() {
    for (source, destination, request, reply) in [
        ("10.0.0.7", "10.0.0.2", four::ECHO_REQUEST, four::ECHO_REPLY),
        ("fd00::7", "fd00::2", six::ECHO_REQUEST, six::ECHO_REPLY),
    ] {
        let body: Vec<u8> = (0..4_000u32).map(|byte| (byte * 31 / 8) as u8).collect();
        let whole = icmp_frame(source, destination, request, 0, [0, 1, 0, 2], &body);
        let mut bench = Bench::new();
        for fragment in super::fragments::cut(&whole, 1_480, 77) {
            bench.consume(&fragment);
        }
        let sent = bench.sent();
        assert_eq!(sent.len(), 3);
        assert!(sent.iter().all(|frame| frame.len() <= 1_514));
        // Another host puts it together: ours.
        let mut other = Bench::new();
        let mut joined = None;
        for mut frame in sent {
            swap_ends(&mut frame);
            joined = other.receive_raw(&frame).or(joined);
        }
        let packet = joined.expect("complete");
        let frame =
            [&ethernet::emit(US, PEER, if packet[0] >> 4 == 4 { ethernet::IPV4 } else { ethernet::IPV6 })[..], &packet]
                .concat();
        assert_eq!(icmp_of(&frame), (reply, 0, [0, 1, 0, 2], body));
    }
}

/// Addresses a frame of ours as if it came to us.
fn swap_ends(frame: &mut [u8]) {
    let (destination, source) = frame[..12].split_at_mut(6);
    destination.swap_with_slice(source);
}

impl Bench {
    /// Joins fragments by hand, a second and simpler way: by offset into one buffer.
    fn receive_raw(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        thread_local!(static PIECES: std::cell::RefCell<Vec<(usize, bool, Vec<u8>)>> = const { std::cell::RefCell::new(Vec::new()) });
        let ip = &frame[14..];
        let (offset, more, data, header) = if ip[0] >> 4 == 4 {
            let packet = ipv4::Packet::new_checked(ip).unwrap();
            let header = (packet.source(), packet.destination());
            (packet.fragment_offset(), packet.more_fragments(), packet.payload().to_vec(), Ok(header))
        } else {
            let packet = ipv6::Packet::new_checked(ip).unwrap();
            let header = (packet.source(), packet.destination());
            match packet.upper().unwrap() {
                ipv6::Upper::Fragment { offset, more, at, .. } => {
                    (offset, more, packet.bytes()[at..].to_vec(), Err(header))
                }
                other @ ipv6::Upper::Transport { .. } => panic!("{other:?}"),
            }
        };
        PIECES.with_borrow_mut(|pieces| {
            pieces.push((offset, more, data));
            pieces.sort();
            if pieces.last()?.1 {
                return None;
            }
            let joined: Vec<u8> = std::mem::take(pieces).into_iter().flat_map(|piece| piece.2).collect();
            Some(match header {
                Ok((source, destination)) => {
                    let ip = ipv4::emit(source, destination, protocol::ICMP, joined.len(), ipv4::Fragment::WHOLE);
                    [&ip[..], &joined].concat()
                }
                Err((source, destination)) => {
                    [&ipv6::emit(source, destination, protocol::ICMPV6, joined.len(), 64)[..], &joined].concat()
                }
            })
        })
    }
}

#[test]
fn an_echo_waits_for_no_neighbour() {
    let mut bench = Bench::new();
    bench.consume(&icmp_frame("192.0.2.1", "10.0.0.2", four::ECHO_REQUEST, 0, [0; 4], b""));
    assert_eq!(bench.sent().len(), 1);
    assert_eq!(bench.host.deadline(), None);
    bench.consume(&arp_frame(ethernet::BROADCAST, Operation::Request, PEER, "10.0.0.7", "10.0.0.2"));
    assert_eq!(bench.host.deadline(), None);
}
