//! Datagrams: whose they are, from where and to where they leave, which never arrive.

use std::collections::HashSet;

use super::wire::*;
use crate::packet::arp::Operation;
use crate::packet::ethernet;
use crate::port::Sent;
use crate::stack::{BindError, OpenError, To};

fn known_peer() -> Bench {
    let mut bench = Bench::new();
    for sender in ["10.0.0.7", "10.0.0.1"] {
        bench.consume(&arp_frame(ethernet::BROADCAST, Operation::Request, PEER, sender, "10.0.0.2"));
    }
    bench.sent();
    bench
}

#[test]
fn a_listener_gets_what_no_flow_owns() {
    let mut bench = Bench::new();
    bench.host.listen(None, 5000, 7).unwrap();
    for (source, destination) in [
        ("10.0.0.7:999", "10.0.0.2:5000"),
        ("192.0.2.1:999", "10.0.0.100:5000"),
        ("[fd00::7]:999", "[fd00::2]:5000"),
        ("[2001:db8::1]:999", "[fd00::100]:5000"),
    ] {
        let datagram = bench.datagram(&udp_frame(source, destination, b"hello"));
        assert_eq!((datagram.to, &datagram.payload[..]), (To::Listener(7), &b"hello"[..]));
        assert_eq!((datagram.source, datagram.destination), (address(source), address(destination)));
        assert_eq!(datagram.source_mac, PEER);
    }
    assert_eq!(bench.counter("rx_udp"), 4);
}

#[test]
fn a_listener_with_an_address_comes_first_and_ends_with_unlisten() {
    let mut bench = Bench::new();
    let named = Some("10.0.0.100".parse().unwrap());
    bench.host.listen(None, 5000, 1).unwrap();
    bench.host.listen(named, 5000, 2).unwrap();
    assert_eq!(bench.datagram(&udp_frame("10.0.0.7:1", "10.0.0.100:5000", b"")).to, To::Listener(2));
    assert_eq!(bench.datagram(&udp_frame("10.0.0.7:1", "10.0.0.2:5000", b"")).to, To::Listener(1));
    bench.host.unlisten(named, 5000);
    assert_eq!(bench.datagram(&udp_frame("10.0.0.7:1", "10.0.0.100:5000", b"")).to, To::Listener(1));
}

#[test]
fn listening_twice_or_elsewhere_is_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.host.listen(None, 5000, 1), Ok(()));
    assert_eq!(bench.host.listen(None, 5000, 2), Err(BindError::InUse));
    assert_eq!(bench.host.listen(Some("10.0.0.3".parse().unwrap()), 5000, 1), Err(BindError::NotLocal));
    assert_eq!(bench.host.listen(None, 0, 1), Err(BindError::NotLocal));
}

#[test]
fn an_adopted_flow_answers_from_the_address_it_was_called_at_without_arp() {
    let mut bench = Bench::new();
    bench.host.listen(None, 5000, 1).unwrap();
    for (source, destination) in
        [("10.0.0.7:999", "10.0.0.100:5000"), ("192.0.2.1:999", "10.0.0.2:5000"), ("[fd00::7]:999", "[fd00::100]:5000")]
    {
        let datagram = bench.datagram(&udp_frame(source, destination, b"?"));
        let flow = bench.host.adopt(datagram.destination, datagram.source, datagram.source_mac, 5).unwrap();
        assert_eq!(bench.host.send(flow, b"!", bench.now, &mut bench.port), Sent::Queued);
        let seen = udp_of(&bench.sent_one());
        assert_eq!((seen.to, seen.source, seen.destination), (PEER, address(destination), address(source)));
        assert_eq!(bench.datagram(&udp_frame(source, destination, b"?")).to, To::Flow(5));
        assert_eq!(
            bench.host.adopt(datagram.destination, datagram.source, PEER, 6),
            Err(OpenError::InUse),
            "a 5-tuple is one flow"
        );
        bench.host.close(flow);
        assert_eq!(bench.datagram(&udp_frame(source, destination, b"?")).to, To::Listener(1));
    }
}

#[test]
fn a_server_flow_follows_its_peer_to_another_link_address() {
    let mut bench = Bench::new();
    let flow = bench.host.adopt(address("10.0.0.100:5000"), address("192.0.2.1:999"), PEER, 5).unwrap();
    bench.host.send(flow, b"!", bench.now, &mut bench.port);
    assert_eq!(udp_of(&bench.sent_one()).to, PEER);
    let mut frame = udp_frame("192.0.2.1:999", "10.0.0.100:5000", b"?");
    frame[6..12].copy_from_slice(&OTHER);
    bench.datagram(&frame);
    bench.host.send(flow, b"!", bench.now, &mut bench.port);
    assert_eq!(udp_of(&bench.sent_one()).to, OTHER);
}

#[test]
fn a_client_flow_does_not_follow_a_strangers_frame() {
    let mut bench = known_peer();
    let flow = bench.host.open(address("10.0.0.7:53"), 5).unwrap();
    bench.host.send(flow, b"?", bench.now, &mut bench.port);
    let mut frame = udp_frame("10.0.0.7:53", &bench.host.local_address(flow).unwrap().to_string(), b"!");
    frame[6..12].copy_from_slice(&OTHER);
    assert_eq!(bench.datagram(&frame).to, To::Flow(5));
    bench.sent();
    bench.host.send(flow, b"?", bench.now, &mut bench.port);
    assert_eq!(udp_of(&bench.sent_one()).to, PEER);
}

#[test]
fn a_new_flow_leaves_from_an_own_address_and_an_ephemeral_port() {
    let mut bench = Bench::new();
    for (remote, own) in [("10.0.0.7:53", "10.0.0.2"), ("192.0.2.1:53", "10.0.0.2"), ("[2001:db8::1]:53", "fd00::2")] {
        let flow = bench.host.open(address(remote), 1).unwrap();
        let local = bench.host.local_address(flow).unwrap();
        assert_eq!(local.ip().to_string(), own);
        assert!(local.port() >= 49_152);
        assert_eq!(bench.host.remote_address(flow), Some(address(remote)));
    }
}

#[test]
fn impossible_peers_have_no_route() {
    let mut bench = Bench::new();
    for remote in [
        "0.0.0.0:53",
        "127.0.0.1:53",
        "10.0.0.2:53",
        "10.0.0.255:53",
        "224.0.0.1:53",
        "255.255.255.255:53",
        "[::]:53",
        "[::1]:53",
        "[ff02::1]:53",
        "[fd00::2]:53",
        "[::ffff:10.0.0.7]:53",
        "10.0.0.7:0",
    ] {
        assert_eq!(bench.host.open(address(remote), 1), Err(OpenError::NoRoute), "{remote}");
    }
    let (ours, theirs) = (address("10.0.0.2:1"), address("10.0.0.7:1"));
    assert_eq!(bench.host.adopt(theirs, ours, PEER, 1), Err(OpenError::NoRoute));
    assert_eq!(bench.host.adopt(ours, address("[fd00::7]:1"), PEER, 1), Err(OpenError::NoRoute));
}

#[test]
fn every_ephemeral_port_is_used_once_per_peer_and_then_none_is_left() {
    let mut bench = Bench::new();
    let remote = address("10.0.0.7:53");
    let mut flows = Vec::new();
    let mut ports = HashSet::new();
    for _ in 0..16_384 {
        let flow = bench.host.open(remote, 1).unwrap();
        ports.insert(bench.host.local_address(flow).unwrap().port());
        flows.push(flow);
    }
    assert_eq!(ports.len(), 16_384);
    assert_eq!(bench.host.open(remote, 1), Err(OpenError::PortsExhausted));
    assert!(bench.host.open(address("10.0.0.7:54"), 1).is_ok(), "another peer has ports of its own");
    let freed = bench.host.local_address(flows[77]).unwrap();
    bench.host.close(flows[77]);
    let again = bench.host.open(remote, 1).unwrap();
    assert_eq!(bench.host.local_address(again), Some(freed));
    for flow in flows {
        bench.host.close(flow);
    }
    assert!(bench.host.open(remote, 1).is_ok());
}

#[test]
fn ports_that_a_listener_or_a_server_flow_holds_are_not_given_out() {
    let mut bench = Bench::new();
    let remote = address("10.0.0.7:53");
    bench.host.listen(None, 50_000, 1).unwrap();
    bench.host.listen(Some("10.0.0.2".parse().unwrap()), 50_001, 1).unwrap();
    bench.host.adopt(address("10.0.0.2:50002"), remote, PEER, 1).unwrap();
    let mut ports = HashSet::new();
    while let Ok(flow) = bench.host.open(remote, 1) {
        assert!(ports.insert(bench.host.local_address(flow).unwrap().port()));
    }
    assert_eq!(ports.len(), 16_384 - 3);
    assert!([50_000, 50_001, 50_002].iter().all(|port| !ports.contains(port)));
}

#[test]
fn ephemeral_ports_come_in_no_order() {
    let mut bench = Bench::new();
    let ports: Vec<u16> = (0..64)
        .map(|_| {
            let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
            bench.host.local_address(flow).unwrap().port()
        })
        .collect();
    let neighbouring = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 1).count();
    assert!(neighbouring < 8, "{ports:?}");
}

#[test]
fn opening_and_closing_at_random_agrees_with_a_map() {
    let mut bench = Bench::new();
    let (mut state, mut open) = (0x1234_5678_9abc_def1, Vec::new());
    for step in 0..20_000u32 {
        if !random(&mut state).is_multiple_of(3) || open.is_empty() {
            let remote = format!("10.0.0.{}:{}", 3 + random(&mut state) % 3, 1 + random(&mut state) % 2);
            let flow = bench.host.open(address(&remote), step).unwrap();
            open.push((flow, bench.host.local_address(flow).unwrap(), remote, step));
        } else {
            let (flow, ..) = open.swap_remove(random(&mut state) % open.len());
            bench.host.close(flow);
        }
    }
    assert_eq!(bench.counter("flows_open"), open.len() as u64);
    for (_, local, remote, owner) in &open {
        assert_eq!(bench.datagram(&udp_frame(remote, &local.to_string(), b"")).to, To::Flow(*owner));
    }
}

#[test]
fn a_closed_flow_sends_nothing() {
    let mut bench = known_peer();
    let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
    bench.host.close(flow);
    bench.host.close(flow);
    assert_eq!(bench.host.send(flow, b"x", bench.now, &mut bench.port), Sent::Down);
    assert_eq!((bench.host.local_address(flow), bench.counter("drop_no_flow")), (None, 1));
    assert!(bench.sent().is_empty());
}

#[test]
fn what_the_port_refuses_is_counted() {
    let mut bench = known_peer();
    let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
    for answer in [Sent::Full, Sent::Down] {
        bench.port.answer = answer;
        assert_eq!(bench.host.send(flow, b"x", bench.now, &mut bench.port), answer);
        assert_eq!(bench.host.send(flow, &[0; 4000], bench.now, &mut bench.port), answer);
    }
    assert_eq!((bench.counter("drop_port"), bench.counter("tx_udp")), (4, 0));
}

#[test]
fn payloads_of_every_length_arrive_with_right_checksums() {
    let mut bench = known_peer();
    let flow = bench.host.open(address("10.0.0.7:53"), 1).unwrap();
    let six = bench.host.adopt(address("[fd00::2]:1"), address("[fd00::7]:2"), PEER, 1).unwrap();
    for len in 0..=1_452 {
        let payload: Vec<u8> = (0..len).map(|byte| (byte * 7 + len) as u8).collect();
        for flow in [flow, six] {
            bench.host.send(flow, &payload, bench.now, &mut bench.port);
            assert_eq!(udp_of(&bench.sent_one()).payload, payload);
        }
    }
}

#[test]
fn a_checksum_of_none_is_accepted_over_ipv4_only() {
    let mut bench = Bench::new();
    bench.host.listen(None, 5000, 1).unwrap();
    let mut frame = udp_frame("10.0.0.7:1", "10.0.0.2:5000", b"x");
    frame[40..42].fill(0);
    bench.datagram(&frame);
    let mut frame = udp_frame("[fd00::7]:1", "[fd00::2]:5000", b"x");
    frame[60..62].fill(0);
    bench.drops("IPv6", &frame, "drop_udp_checksum");
}

#[test]
fn padding_is_not_payload() {
    let mut bench = Bench::new();
    bench.host.listen(None, 5000, 1).unwrap();
    for destination in ["10.0.0.2:5000", "[fd00::2]:5000"] {
        let source = if destination.starts_with('[') { "[fd00::7]:1" } else { "10.0.0.7:1" };
        let frame = [udp_frame(source, destination, b"x"), vec![0; 20]].concat();
        assert_eq!(&bench.datagram(&frame).payload[..], b"x");
    }
}

#[test]
fn frames_to_a_virtual_address_may_carry_the_balancers_link_address() {
    let mut bench = Bench::new();
    bench.host.listen(None, 5000, 1).unwrap();
    let mut steered = udp_frame("10.0.0.7:1", "10.0.0.100:5000", b"x");
    steered[..6].copy_from_slice(&OTHER);
    bench.datagram(&steered);
    bench.host.adopt(address("10.0.0.100:5000"), address("10.0.0.7:1"), PEER, 3).unwrap();
    assert_eq!(bench.datagram(&steered).to, To::Flow(3));
    let mut stray = udp_frame("10.0.0.7:1", "10.0.0.2:5000", b"x");
    stray[..6].copy_from_slice(&OTHER);
    bench.drops("an own address", &stray, "drop_not_for_us");
}

#[test]
fn datagrams_behind_extension_headers_arrive() {
    let mut bench = Bench::new();
    bench.host.listen(None, 5000, 1).unwrap();
    let (source, destination) = (address("[fd00::7]:1"), address("[fd00::2]:5000"));
    let payload = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp_bytes(source, destination, b"x")].concat();
    let datagram = bench.datagram(&ip_frame(source.ip(), destination.ip(), 60, &payload));
    assert_eq!(&datagram.payload[..], b"x");
}

#[test]
fn each_wrong_frame_is_dropped_by_its_name() {
    let mut bench = Bench::new();
    bench.host.listen(None, 5000, 1).unwrap();
    let good = udp_frame("10.0.0.7:1", "10.0.0.2:5000", b"hello");
    let six = udp_frame("[fd00::7]:1", "[fd00::2]:5000", b"hello");
    let change = |frame: &[u8], at: usize, bytes: &[u8]| {
        let mut changed = frame.to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let mended = |at, bytes: &[u8]| {
        let mut changed = change(&good, at, bytes);
        mend_ipv4(&mut changed);
        changed
    };
    let source_route = {
        let mut frame = good.clone();
        frame.splice(34..34, [131, 4, 4, 0]);
        frame[14] = 0x46;
        frame[17] += 4;
        mend_ipv4(&mut frame);
        frame
    };
    let routing_0 = {
        let payload = [17, 0, 0, 0, 0, 0, 0, 0];
        ip_frame("fd00::7".parse().unwrap(), "fd00::2".parse().unwrap(), 43, &payload)
    };
    for (what, frame, counter) in [
        ("no frame", good[..13].to_vec(), "drop_truncated"),
        ("no IP header", good[..20].to_vec(), "drop_truncated"),
        ("less than its total length", good[..good.len() - 1].to_vec(), "drop_truncated"),
        ("less than its payload length", six[..six.len() - 1].to_vec(), "drop_truncated"),
        ("a VLAN tag", change(&good, 12, &[0x81, 0]), "drop_ethertype"),
        ("IPv6 called IPv4", change(&six, 12, &[8, 0]), "drop_bad_version"),
        ("IPv4 called IPv6", change(&[&good[..], &[0; 20]].concat(), 12, &[0x86, 0xdd]), "drop_bad_version"),
        ("a header length of 16", change(&good, 14, &[0x44]), "drop_malformed"),
        ("a header checksum", change(&good, 24, &[0xab, 0xcd]), "drop_ip_checksum"),
        ("a source route", source_route, "drop_source_route"),
        ("routing header 0", routing_0, "drop_malformed"),
        ("another station", change(&good, 0, &OTHER), "drop_not_for_us"),
        ("a broadcast frame", change(&good, 0, &ethernet::BROADCAST), "drop_not_for_us"),
        ("a group address as sender", change(&good, 6, &[1]), "drop_martian"),
        ("our own frame", change(&good, 6, &US), "drop_martian"),
        ("another host", udp_frame("10.0.0.7:1", "10.0.0.3:5000", b""), "drop_not_for_us"),
        ("a broadcast address", udp_frame("10.0.0.7:1", "10.0.0.255:5000", b""), "drop_not_for_us"),
        ("a multicast address", udp_frame("[fd00::7]:1", "[ff02::1]:5000", b""), "drop_not_for_us"),
        ("from our address", udp_frame("10.0.0.2:1", "10.0.0.2:5000", b""), "drop_martian"),
        ("from loopback", udp_frame("127.0.0.1:1", "10.0.0.2:5000", b""), "drop_martian"),
        ("from nowhere", udp_frame("0.0.0.0:1", "10.0.0.2:5000", b""), "drop_martian"),
        ("from a group", udp_frame("224.0.0.5:1", "10.0.0.2:5000", b""), "drop_martian"),
        ("from all", udp_frame("10.0.0.255:1", "10.0.0.2:5000", b""), "drop_martian"),
        ("from ::", udp_frame("[::]:1", "[fd00::2]:5000", b""), "drop_martian"),
        ("from a mapped address", udp_frame("[::ffff:10.0.0.7]:1", "[fd00::2]:5000", b""), "drop_martian"),
        ("a UDP length past the packet", change(&good, 38, &[0, 14]), "drop_truncated"),
        ("a UDP length of 7", change(&good, 38, &[0, 7]), "drop_malformed"),
        ("a UDP checksum", change(&good, 42, b"J"), "drop_udp_checksum"),
        ("half a UDP header", mended(17, &[24]), "drop_truncated"),
        ("a UDP checksum over IPv6", change(&six, 62, b"J"), "drop_udp_checksum"),
    ] {
        bench.drops(what, &frame, counter);
    }
    assert_eq!(bench.counter("rx_udp"), 0);
}

#[test]
fn frames_cut_or_altered_anywhere_never_panic() {
    let mut bench = Bench::new();
    bench.host.listen(None, 5000, 1).unwrap();
    let mut state = 0x0bad_cafe_dead_beef;
    let frames = [
        udp_frame("10.0.0.7:1", "10.0.0.2:5000", b"hello"),
        udp_frame("[fd00::7]:1", "[fd00::2]:5000", b"hello"),
        arp_frame(ethernet::BROADCAST, Operation::Request, PEER, "10.0.0.7", "10.0.0.2"),
        icmp_frame("10.0.0.7", "10.0.0.2", 3, 3, [0; 4], &udp_frame("10.0.0.2:1", "10.0.0.7:1", b"")[14..]),
        icmp_frame("fd00::7", "fd00::2", 2, 0, [0; 4], &udp_frame("[fd00::2]:1", "[fd00::7]:1", b"")[14..]),
    ];
    for frame in &frames {
        for len in 0..=frame.len() {
            bench.receive(&frame[..len]);
        }
        for _ in 0..20_000 {
            let mut altered = frame.clone();
            for _ in 0..=random(&mut state) % 4 {
                let at = random(&mut state) % altered.len();
                altered[at] = random(&mut state) as u8;
            }
            if random(&mut state).is_multiple_of(2) && altered[12..14] == [8, 0] && altered[14] == 0x45 {
                mend_ipv4(&mut altered);
            }
            bench.receive(&altered);
        }
    }
}
