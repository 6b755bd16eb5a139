//! ARP and NDP: who is answered, who is believed, who is waited for.

use std::time::Duration;

use super::wire::*;
use crate::packet::arp::Operation;
use crate::packet::ethernet::{self, BROADCAST};
use crate::packet::icmp::v6 as kinds;
use crate::packet::ndp;
use crate::port::Sent;
use crate::stack::Unreachable;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_arp_request_for_an_own_address_is_answered_to_its_sender() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.7", "10.0.0.2"));
    let frame = bench.sent_one();
    assert_eq!((&frame[..6], &frame[6..12]), (&PEER[..], &US[..]));
    let message = arp_of(&frame);
    assert_eq!((message.operation, message.sender_mac, message.sender), (Operation::Reply, US, v4("10.0.0.2")));
    assert_eq!((message.target_mac, message.target), (PEER, v4("10.0.0.7")));
}

#[test]
fn virtual_and_foreign_addresses_are_not_answered_for() {
    let mut bench = Bench::new();
    for target in ["10.0.0.100", "10.0.0.9"] {
        bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.7", target));
    }
    let group = ndp::solicited_node(v6("fd00::100"));
    let body = ndp::emit(v6("fd00::100"), ndp::SOURCE_LINK_ADDRESS, PEER);
    bench.consume(&ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, "fd00::7", &group.to_string(), &body));
    assert!(bench.sent().is_empty());
}

#[test]
fn an_arp_probe_is_answered_but_not_remembered() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "0.0.0.0", "10.0.0.2"));
    assert_eq!(arp_of(&bench.sent_one()).target, v4("0.0.0.0"));
}

#[test]
fn a_claim_on_our_address_is_counted_and_not_believed() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.2", "10.0.0.2"));
    let body = ndp::emit(v6("fd00::2"), ndp::TARGET_LINK_ADDRESS, PEER);
    bench.consume(&ndp_frame(kinds::NEIGHBOUR_ADVERTISEMENT, ndp::OVERRIDE, "fd00::7", "ff02::1", &body));
    assert_eq!(bench.counter("neighbour_conflict"), 2);
    assert!(bench.sent().is_empty());
}

#[test]
fn a_datagram_waits_for_arp_and_leaves_when_the_answer_comes() {
    let mut bench = Bench::new();
    let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
    assert_eq!(bench.host.send(flow, b"one", bench.now, &mut bench.port), Sent::Queued);
    assert_eq!(bench.host.send(flow, b"two", bench.now, &mut bench.port), Sent::Queued);
    let request = arp_of(&bench.sent_one());
    assert_eq!((request.operation, request.target), (Operation::Request, v4("10.0.0.7")));
    bench.consume(&arp_frame(US, Operation::Reply, PEER, "10.0.0.7", "10.0.0.2"));
    let sent: Vec<_> = bench.sent().iter().map(|frame| udp_of(frame)).collect();
    assert_eq!(sent.iter().map(|seen| &seen.payload[..]).collect::<Vec<_>>(), [b"one", b"two"]);
    assert!(sent.iter().all(|seen| seen.to == PEER && seen.destination == address("10.0.0.7:53")));
    assert_eq!(bench.host.send(flow, b"three", bench.now, &mut bench.port), Sent::Queued);
    assert_eq!(udp_of(&bench.sent_one()).payload, b"three");
    assert_eq!(bench.counter("tx_udp"), 3);
}

#[test]
fn a_datagram_waits_for_ndp_and_leaves_when_the_answer_comes() {
    let mut bench = Bench::new();
    let flow = bench.host.open(address("[fd00::7]:53"), 1).unwrap();
    bench.host.send(flow, b"one", bench.now, &mut bench.port);
    let frame = bench.sent_one();
    let group = ndp::solicited_node(v6("fd00::7"));
    assert_eq!(frame[..6], ethernet::multicast(group));
    assert_eq!((frame[14 + 7], ip_of(&frame).1), (255, group.into()));
    let (kind, _, _, body) = icmp_of(&frame);
    assert_eq!(kind, kinds::NEIGHBOUR_SOLICITATION);
    assert_eq!(body, ndp::emit(v6("fd00::7"), ndp::SOURCE_LINK_ADDRESS, US));
    let body = ndp::emit(v6("fd00::7"), ndp::TARGET_LINK_ADDRESS, PEER);
    bench.consume(&ndp_frame(kinds::NEIGHBOUR_ADVERTISEMENT, ndp::SOLICITED, "fd00::7", "fd00::2", &body));
    let seen = udp_of(&bench.sent_one());
    assert_eq!((seen.to, seen.destination, &seen.payload[..]), (PEER, address("[fd00::7]:53"), &b"one"[..]));
}

#[test]
fn other_networks_are_reached_through_the_gateway() {
    let mut bench = Bench::new();
    for (remote, gateway) in [("192.0.2.1:53", "10.0.0.1"), ("198.51.100.1:53", "10.0.0.1")] {
        let flow = bench.host.open(address(remote), 1).unwrap();
        bench.host.send(flow, b"x", bench.now, &mut bench.port);
        if let Some(frame) = bench.sent().first() {
            assert_eq!(arp_of(frame).target, v4(gateway));
        }
    }
    bench.consume(&arp_frame(US, Operation::Reply, PEER, "10.0.0.1", "10.0.0.2"));
    assert_eq!(bench.sent().len(), 2);
}

#[test]
fn three_unanswered_requests_make_the_flow_unreachable() {
    let mut bench = Bench::new();
    let flow = bench.host.open(address("10.0.0.7:53"), 42).unwrap();
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    bench.host.send(flow, b"y", bench.now, &mut bench.port);
    assert_eq!(bench.sent().len(), 1);
    assert_eq!(bench.host.deadline(), Some(bench.now + SECOND));
    for _ in 0..2 {
        assert!(bench.pass(SECOND).is_empty());
        assert_eq!(bench.sent().len(), 1);
    }
    assert_eq!(bench.pass(SECOND), [(42, Unreachable::Host)]);
    assert!(bench.sent().is_empty());
    assert_eq!((bench.counter("drop_unreachable"), bench.counter("neighbour_failed")), (2, 1));
    assert_eq!(bench.host.deadline(), None);
    bench.host.send(flow, b"z", bench.now, &mut bench.port);
    assert_eq!(arp_of(&bench.sent_one()).operation, Operation::Request);
}

#[test]
fn a_closed_flow_is_not_reported_unreachable_nor_is_its_successor() {
    let mut bench = Bench::new();
    let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    bench.host.close(flow);
    assert_eq!(bench.host.open(address("10.0.0.8:53"), 2).unwrap(), flow);
    for _ in 0..3 {
        assert!(bench.pass(SECOND).is_empty());
    }
    assert_eq!(bench.counter("drop_unreachable"), 1);
}

#[test]
fn an_unasked_answer_teaches_nothing() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(US, Operation::Reply, OTHER, "10.0.0.7", "10.0.0.2"));
    bench.consume(&arp_frame(BROADCAST, Operation::Request, OTHER, "10.0.0.7", "10.0.0.7"));
    let body = ndp::emit(v6("fd00::7"), ndp::TARGET_LINK_ADDRESS, OTHER);
    bench.consume(&ndp_frame(kinds::NEIGHBOUR_ADVERTISEMENT, ndp::OVERRIDE, "fd00::7", "ff02::1", &body));
    for remote in ["10.0.0.7:53", "[fd00::7]:53"] {
        let flow = bench.host.open(address(remote), 1).unwrap();
        bench.host.send(flow, b"x", bench.now, &mut bench.port);
        assert_eq!(bench.sent_one()[14], if remote.starts_with('[') { 0x60 } else { 0 }, "{remote} is asked for");
    }
    assert_eq!(bench.counter("tx_udp"), 0);
}

#[test]
fn a_question_for_us_teaches_its_askers_address() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.7", "10.0.0.2"));
    let body = ndp::emit(v6("fd00::2"), ndp::SOURCE_LINK_ADDRESS, PEER);
    let group = ndp::solicited_node(v6("fd00::2")).to_string();
    bench.consume(&ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, "fd00::7", &group, &body));
    bench.sent();
    for remote in ["10.0.0.7:53", "[fd00::7]:53"] {
        let flow = bench.host.open(address(remote), 1).unwrap();
        bench.host.send(flow, b"x", bench.now, &mut bench.port);
        assert_eq!(udp_of(&bench.sent_one()).to, PEER);
    }
}

#[test]
fn an_address_from_another_network_is_not_learnt() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, OTHER, "192.0.2.7", "10.0.0.2"));
    assert_eq!(bench.sent().len(), 1);
    bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.1", "10.0.0.2"));
    bench.sent();
    let flow = bench.host.open(address("192.0.2.7:53"), 1).unwrap();
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    assert_eq!(udp_of(&bench.sent_one()).to, PEER);
}

#[test]
fn a_known_neighbours_new_address_is_used_at_once() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.7", "10.0.0.2"));
    let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    bench.sent();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, OTHER, "10.0.0.7", "10.0.0.7"));
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    assert_eq!(udp_of(&bench.sent_one()).to, OTHER);
}

#[test]
fn an_advertisement_without_override_changes_no_address() {
    let mut bench = Bench::new();
    let group = ndp::solicited_node(v6("fd00::2")).to_string();
    let body = ndp::emit(v6("fd00::7"), ndp::SOURCE_LINK_ADDRESS, PEER);
    let mut question = body;
    question[..16].copy_from_slice(&v6("fd00::2").octets());
    bench.consume(&ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, "fd00::7", &group, &question));
    bench.sent();
    let flow = bench.host.open(address("[fd00::7]:53"), 1).unwrap();
    let body = ndp::emit(v6("fd00::7"), ndp::TARGET_LINK_ADDRESS, OTHER);
    for (flags, expected) in [(ndp::SOLICITED, PEER), (0, PEER), (ndp::SOLICITED | ndp::OVERRIDE, OTHER)] {
        bench.consume(&ndp_frame(kinds::NEIGHBOUR_ADVERTISEMENT, flags, "fd00::7", "fd00::2", &body));
        bench.host.send(flow, b"x", bench.now, &mut bench.port);
        assert_eq!(udp_of(&bench.sent_one()).to, expected, "flags {flags:#x}");
    }
}

#[test]
fn a_silent_neighbour_is_asked_again_after_a_minute_and_used_meanwhile() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.7", "10.0.0.2"));
    let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
    bench.sent();
    bench.pass(Duration::from_secs(59));
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    assert_eq!(bench.sent().len(), 1);
    bench.pass(Duration::from_secs(1));
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    let sent = bench.sent();
    assert_eq!(sent.len(), 2);
    assert_eq!((arp_of(&sent[0]).target, &sent[0][..6]), (v4("10.0.0.7"), &PEER[..]));
    assert_eq!(udp_of(&sent[1]).to, PEER);
    for _ in 0..3 {
        assert!(bench.pass(SECOND).is_empty());
    }
    assert_eq!(bench.sent().len(), 2);
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    assert_eq!(bench.sent_one()[..6], BROADCAST);
}

#[test]
fn traffic_from_a_neighbour_keeps_it_fresh() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.7", "10.0.0.2"));
    bench.sent();
    let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
    let local = bench.host.local_address(flow).unwrap().to_string();
    for _ in 0..4 {
        bench.host.send(flow, b"x", bench.now, &mut bench.port);
        bench.datagram(&udp_frame("10.0.0.7:53", &local, b"y"));
        bench.pass(Duration::from_secs(50));
    }
    assert!(bench.sent().iter().all(|frame| udp_of(frame).to == PEER));
    let another = bench.host.open(address("10.0.0.7:54"), 1).unwrap();
    bench.host.send(another, b"x", bench.now, &mut bench.port);
    assert_eq!(udp_of(&bench.sent_one()).to, PEER);
}

#[test]
fn what_waits_is_bounded_per_neighbour_and_in_all() {
    let mut bench = Bench::new();
    let mut queued = 0;
    for last in 3..60u64 {
        let flow = bench.host.open(address(&format!("10.0.0.{last}:53")), 1).unwrap();
        for _ in 0..20 {
            queued += u64::from(bench.host.send(flow, b"x", bench.now, &mut bench.port) == Sent::Queued);
        }
        assert!(queued <= (last - 2) * 16);
    }
    assert_eq!(queued, 512);
    assert_eq!(bench.counter("drop_neighbour_pending_full"), 57 * 20 - 512);
}

#[test]
fn waiting_bytes_are_bounded_too() {
    let mut bench = Bench::new();
    let large = vec![0; 60_000];
    let mut queued = 0;
    for last in 3..13 {
        let flow = bench.host.open(address(&format!("10.0.0.{last}:53")), 1).unwrap();
        for _ in 0..16 {
            queued += usize::from(bench.host.send(flow, &large, bench.now, &mut bench.port) == Sent::Queued);
        }
    }
    assert_eq!(queued, 17, "a mebibyte, headers included");
}

#[test]
fn the_neighbour_table_is_bounded_and_forgets_the_stalest() {
    let mut bench = Bench::new();
    for host in 0..1_100u32 {
        let sender = std::net::Ipv6Addr::from(u128::from(v6("fd00::1:0")) + u128::from(host)).to_string();
        let body = ndp::emit(v6("fd00::2"), ndp::SOURCE_LINK_ADDRESS, PEER);
        bench.consume(&ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, &sender, "fd00::2", &body));
    }
    bench.sent();
    let flow = bench.host.open(address("[fd00::9]:53"), 1).unwrap();
    assert_eq!(bench.host.send(flow, b"x", bench.now, &mut bench.port), Sent::Queued);
    assert_eq!(bench.counter("neighbour_evicted"), 1);
}

#[test]
fn an_announcement_names_every_own_address_and_no_virtual_one() {
    let mut bench = Bench::new();
    bench.host.announce(&mut bench.port);
    let sent = bench.sent();
    assert_eq!(sent.len(), 2);
    let message = arp_of(&sent[0]);
    assert_eq!((&sent[0][..6], message.sender, message.target), (&BROADCAST[..], v4("10.0.0.2"), v4("10.0.0.2")));
    let (kind, _, rest, body) = icmp_of(&sent[1]);
    assert_eq!((kind, rest[0]), (kinds::NEIGHBOUR_ADVERTISEMENT, ndp::OVERRIDE));
    assert_eq!(body, ndp::emit(v6("fd00::2"), ndp::TARGET_LINK_ADDRESS, US));
    assert_eq!(ip_of(&sent[1]).1, ndp::ALL_NODES);
}

#[test]
fn after_an_announcement_neighbours_are_asked_anew() {
    let mut bench = Bench::new();
    bench.consume(&arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.7", "10.0.0.2"));
    let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    bench.host.announce(&mut bench.port);
    bench.sent();
    bench.host.send(flow, b"x", bench.now, &mut bench.port);
    assert_eq!(bench.sent_one()[..6], BROADCAST);
}

#[test]
fn solicitations_are_answered_to_the_asker_or_to_all() {
    let mut bench = Bench::new();
    let group = ndp::solicited_node(v6("fd00::2")).to_string();
    let with_option = ndp::emit(v6("fd00::2"), ndp::SOURCE_LINK_ADDRESS, PEER);
    for (source, destination, body, to, flags) in [
        ("fd00::7", &group[..], &with_option[..], PEER, ndp::SOLICITED | ndp::OVERRIDE),
        ("fd00::7", "fd00::2", &with_option[..16], PEER, ndp::SOLICITED | ndp::OVERRIDE),
        ("fe80::7", &group, &with_option, PEER, ndp::SOLICITED | ndp::OVERRIDE),
        ("::", &group, &with_option[..16], [0x33, 0x33, 0, 0, 0, 1], ndp::OVERRIDE),
    ] {
        bench.consume(&ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, source, destination, body));
        let frame = bench.sent_one();
        assert_eq!((&frame[..6], frame[14 + 7]), (&to[..], 255), "{source}");
        let (kind, code, rest, body) = icmp_of(&frame);
        assert_eq!((kind, code, rest[0]), (kinds::NEIGHBOUR_ADVERTISEMENT, 0, flags), "{source}");
        assert_eq!(body, ndp::emit(v6("fd00::2"), ndp::TARGET_LINK_ADDRESS, US));
    }
}

#[test]
fn wrong_link_messages_are_dropped_and_counted() {
    let mut bench = Bench::new();
    let group = ndp::solicited_node(v6("fd00::2")).to_string();
    let body = ndp::emit(v6("fd00::2"), ndp::SOURCE_LINK_ADDRESS, PEER);
    let good = ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, "fd00::7", &group, &body);
    let routed = {
        let mut frame = good.clone();
        frame[14 + 7] = 254;
        frame
    };
    let endless = [&body[..16], &[1, 0, 2, 0, 0, 0, 0, 1]].concat();
    let endless = ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, "fd00::7", &group, &endless);
    let told_probe = ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, "::", &group, &body);
    let unicast_probe = ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, "::", "fd00::2", &body[..16]);
    let broadcast_mac = ndp::emit(v6("fd00::2"), ndp::SOURCE_LINK_ADDRESS, BROADCAST);
    let broadcast_mac = ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, "fd00::7", &group, &broadcast_mac);
    let other_group = ndp_frame(kinds::NEIGHBOUR_SOLICITATION, 0, "fd00::7", "ff02::1:ff00:99", &body);
    let arp_from_group = arp_frame(BROADCAST, Operation::Request, [3, 0, 0, 0, 0, 1], "10.0.0.7", "10.0.0.2");
    let arp_to_other = arp_frame(OTHER, Operation::Request, PEER, "10.0.0.7", "10.0.0.2");
    let mut arp_odd = arp_frame(BROADCAST, Operation::Request, PEER, "10.0.0.7", "10.0.0.2");
    arp_odd[15] = 6;
    for (what, frame, counter) in [
        ("a lowered hop limit", &routed[..], "drop_malformed"),
        ("an option of no length", &endless, "drop_malformed"),
        ("a probe that names a link address", &told_probe, "drop_malformed"),
        ("a probe to one address", &unicast_probe, "drop_martian"),
        ("a broadcast link address", &broadcast_mac, "drop_martian"),
        ("a group we are not in", &other_group, "drop_not_for_us"),
        ("ARP from a group address", &arp_from_group, "drop_martian"),
        ("ARP to another station", &arp_to_other, "drop_not_for_us"),
        ("ARP of another hardware", &arp_odd, "drop_malformed"),
        ("half an ARP message", &arp_odd[..30], "drop_truncated"),
    ] {
        bench.drops(what, frame, counter);
    }
}
