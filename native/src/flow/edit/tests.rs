//! The oracle: the frame built anew with the values that were asked for, all checksums computed over all of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;
use crate::packet::fuzzing::Random;
use crate::packet::layers::{Ethernet, Gtpu, Icmp, Ipv4, Ipv6, Layer, Tcp, Udp, Vlan, build};
use crate::port::lent::Lent;

/// Often 0 and all ones, where ones' complement has its corners.
fn word(random: &mut Random) -> u16 {
    [0, 0xffff, random.number() as u16][random.below(4).min(2)]
}

fn any_v4(random: &mut Random) -> Ipv4Addr {
    (u32::from(word(random)) << 16 | u32::from(word(random))).into()
}

fn any_v6(random: &mut Random) -> Ipv6Addr {
    [0; 8].map(|_: u16| word(random)).into()
}

fn maybe<T>(random: &mut Random, value: T) -> Option<T> {
    (random.below(2) == 0).then_some(value)
}

fn ethernet() -> Layer {
    Layer::Ethernet(Ethernet { destination: [2, 0, 0, 0, 0, 1], source: [2, 0, 0, 0, 0, 2], ethertype: None })
}

fn tag(id: u16) -> Layer {
    Layer::Vlan(Vlan { id, priority: 5, drop_eligible: true, ethertype: None })
}

fn v4(source: [u8; 4], destination: [u8; 4]) -> Ipv4 {
    Ipv4 {
        source: source.into(),
        destination: destination.into(),
        protocol: None,
        ttl: 64,
        dscp: 0,
        ecn: 0,
        identification: 7,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        options: Vec::new(),
        checksum: None,
    }
}

fn v6(source: &str, destination: &str) -> Ipv6 {
    Ipv6 {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        next_header: None,
        hop_limit: 64,
        dscp: 0,
        ecn: 0,
        flow_label: 0x12345,
        extensions: Vec::new(),
    }
}

/// A packet of either version between two hosts that are called by a number.
fn ip(is_v4: bool, source: u8, destination: u8) -> Layer {
    if is_v4 {
        Layer::Ipv4(v4([10, 0, 0, source], [10, 0, 0, destination]))
    } else {
        Layer::Ipv6(v6(&format!("fd00::{source}"), &format!("fd00::{destination}")))
    }
}

fn address(is_v4: bool, host: u8) -> IpAddr {
    if is_v4 { Ipv4Addr::new(10, 0, 0, host).into() } else { format!("fd00::{host}").parse().unwrap() }
}

fn udp(source_port: u16, destination_port: u16) -> Layer {
    Layer::Udp(Udp { source_port, destination_port, checksum: None })
}

fn tcp(source_port: u16, destination_port: u16) -> Layer {
    Layer::Tcp(Tcp {
        source_port,
        destination_port,
        sequence: 1,
        acknowledgement: 2,
        flags: 0x10,
        window: 3,
        urgent: 0,
        options: vec![1; 12],
        checksum: None,
    })
}

fn icmp(kind: u8, code: u8, data: u32) -> Layer {
    Layer::Icmp(Icmp { kind, code, data, checksum: None })
}

fn take(frame: &[u8]) -> (Head, Headers) {
    let mut head = Head::default();
    head.take(Lent::of(frame));
    let headers = Headers::read(head.bytes(), head.frame_len());
    (head, headers)
}

/// The frame that leaves.
fn whole(head: &Head, frame: &[u8]) -> Vec<u8> {
    let rest = head.rest(Lent::of(frame));
    let mut bytes = head.bytes().to_vec();
    let at = bytes.len();
    bytes.resize(at + rest.len(), 0);
    rest.copy_to(0, &mut bytes[at..]);
    assert_eq!(bytes.len(), head.frame_len());
    bytes
}

fn edited(frame: &[u8], edit: impl FnOnce(&mut Head, &Headers) -> Result<(), Failed>) -> Result<Vec<u8>, Failed> {
    let (mut head, headers) = take(frame);
    edit(&mut head, &headers)?;
    Ok(whole(&head, frame))
}

fn rewritten(frame: &[u8], to: Rewrite) -> Result<Vec<u8>, Failed> {
    edited(frame, |head, headers| rewrite(head, headers, &to))
}

fn frame(layers: &[Layer], payload: &[u8]) -> Vec<u8> {
    build(layers, payload).unwrap()
}

/// The same layers with the values of `to`.
fn with(layers: &[Layer], to: &Rewrite) -> Vec<Layer> {
    let mut layers = layers.to_vec();
    for layer in &mut layers {
        match layer {
            Layer::Ethernet(layer) => {
                layer.source = to.source_mac.unwrap_or(layer.source);
                layer.destination = to.destination_mac.unwrap_or(layer.destination);
            }
            Layer::Ipv4(layer) => {
                for (field, value) in [(&mut layer.source, to.source), (&mut layer.destination, to.destination)] {
                    if let Some(IpAddr::V4(value)) = value {
                        *field = value;
                    }
                }
                layer.ttl = to.ttl.unwrap_or(layer.ttl);
                layer.dscp = to.dscp.unwrap_or(layer.dscp);
            }
            Layer::Ipv6(layer) => {
                for (field, value) in [(&mut layer.source, to.source), (&mut layer.destination, to.destination)] {
                    if let Some(IpAddr::V6(value)) = value {
                        *field = value;
                    }
                }
                layer.hop_limit = to.ttl.unwrap_or(layer.hop_limit);
                layer.dscp = to.dscp.unwrap_or(layer.dscp);
            }
            Layer::Udp(Udp { source_port, destination_port, .. })
            | Layer::Tcp(Tcp { source_port, destination_port, .. }) => {
                *source_port = to.source_port.unwrap_or(*source_port);
                *destination_port = to.destination_port.unwrap_or(*destination_port);
            }
            Layer::Icmp(layer) => {
                let is_request = matches!(layer.kind, 8 | 13 | 128);
                if let Some(id) = if is_request { to.source_port } else { to.destination_port } {
                    layer.data = layer.data & 0xffff | u32::from(id) << 16;
                }
            }
            Layer::Vlan(_) | Layer::Arp(_) | Layer::Gtpu(_) => {}
        }
    }
    match (to.vlan, &mut layers[1]) {
        (None, _) => {}
        (Some(0), Layer::Vlan(_)) => drop(layers.remove(1)),
        (Some(0), _) => {}
        (Some(id), Layer::Vlan(tag)) => tag.id = id,
        (Some(id), _) => {
            layers.insert(1, Layer::Vlan(Vlan { id, priority: 0, drop_eligible: false, ethertype: None }));
        }
    }
    layers
}

#[test]
fn a_rewritten_frame_is_the_one_built_with_these_values() {
    let mut random = Random::new();
    for _ in 0..20_000 {
        let is_v4 = random.below(2) == 0;
        let mut layers = vec![ethernet()];
        layers.extend((0..random.below(3)).map(|_| tag(9)));
        layers.push(if is_v4 {
            let options = vec![1; random.below(11) * 4];
            let (source, destination) = (any_v4(&mut random), any_v4(&mut random));
            let ttl = random.number() as u8;
            Layer::Ipv4(Ipv4 { source, destination, options, ttl, dscp: 9, ecn: 1, ..v4([0; 4], [0; 4]) })
        } else {
            let extensions = (0..random.below(3)).map(|_| (60, vec![1, 4, 0, 0, 0, 0])).collect();
            let (source, destination) = (any_v6(&mut random), any_v6(&mut random));
            Layer::Ipv6(Ipv6 { source, destination, extensions, dscp: 63, ecn: 2, ..v6("::", "::") })
        });
        let (a, b) = (word(&mut random), word(&mut random));
        let is_query = random.below(3) == 0;
        let asks = random.below(2) == 0;
        layers.push(match random.below(2) {
            _ if is_query => {
                icmp([[128, 129], [8, 0]][usize::from(is_v4)][usize::from(!asks)], 0, random.number() as u32)
            }
            // A port that is GTP-U's would not disturb either.
            0 => udp(a, b),
            _ => tcp(a, b),
        });
        let source = if is_v4 { IpAddr::from(any_v4(&mut random)) } else { any_v6(&mut random).into() };
        let destination = if is_v4 { IpAddr::from(any_v4(&mut random)) } else { any_v6(&mut random).into() };
        let (source_port, destination_port) = (word(&mut random), word(&mut random));
        let to = Rewrite {
            source_mac: maybe(&mut random, [2, 0, 0, 0, 0, 3]),
            destination_mac: maybe(&mut random, [2, 0, 0, 0, 0, 4]),
            vlan: [None, Some(0), Some(5)][random.below(3)],
            source: maybe(&mut random, source),
            destination: maybe(&mut random, destination),
            source_port: maybe(&mut random, source_port).filter(|_| !is_query || asks),
            destination_port: maybe(&mut random, destination_port).filter(|_| !is_query || !asks),
            ttl: maybe(&mut random, 17),
            dscp: maybe(&mut random, 33),
        };
        let len = random.below(200);
        let payload =
            if random.below(2) == 0 { vec![0; len] } else { (0..len).map(|_| random.number() as u8).collect() };
        let before = frame(&layers, &payload);
        assert_eq!(rewritten(&before, to), Ok(frame(&with(&layers, &to), &payload)), "{layers:?} {to:?}");
    }
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    for is_v4 in [true, false] {
        let bare = |port| Layer::Udp(Udp { source_port: port, destination_port: 2, checksum: Some(0) });
        let to = Rewrite { source: Some(address(is_v4, 9)), source_port: Some(7), ..Rewrite::default() };
        let before = frame(&[ethernet(), ip(is_v4, 1, 2), bare(1)], b"abc");
        assert_eq!(rewritten(&before, to), Ok(frame(&[ethernet(), ip(is_v4, 9, 2), bare(7)], b"abc")));
    }
}

#[test]
fn a_checksum_of_udp_that_comes_out_as_zero_is_sent_as_ffff() {
    // Every source port once: one of them makes the sum 0.
    let before = frame(&[ethernet(), ip(true, 1, 2), udp(0, 9)], b"");
    let mut zeros = 0;
    for port in 0..=u16::MAX {
        let to = Rewrite { source_port: Some(port), ..Rewrite::default() };
        let after = rewritten(&before, to).unwrap();
        assert_eq!(after, frame(&[ethernet(), ip(true, 1, 2), udp(port, 9)], b""));
        zeros += u32::from(after[40..42] == [0xff, 0xff]);
    }
    assert_eq!(zeros, 1);
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    for flipped in [14 + 10, 34 + 16] {
        let mut before = frame(&[ethernet(), ip(true, 1, 2), tcp(1, 2)], b"abc");
        before[flipped] ^= 0x55;
        let to = Rewrite { source: Some(address(true, 9)), source_port: Some(7), ..Rewrite::default() };
        let right = frame(&[ethernet(), ip(true, 9, 2), tcp(7, 2)], b"abc");
        assert_ne!(rewritten(&before, to).unwrap()[flipped..flipped + 2], right[flipped..flipped + 2]);
    }
}

#[test]
fn protocols_whose_checksum_covers_the_addresses_keep_it_right() {
    for (protocol, checksum_at) in [(protocol::UDP_LITE, 6), (protocol::DCCP, 6), (132, 99)] {
        let packet = |source, checksum: u16| {
            let mut segment = vec![1; 24];
            if let Some(field) = segment.get_mut(checksum_at..checksum_at + 2) {
                field.copy_from_slice(&checksum.to_be_bytes());
            }
            let ip = Ipv4 { protocol: Some(protocol), ..v4([10, 0, 0, source], [10, 0, 0, 2]) };
            let sum = crate::packet::checksum::pseudo_v4(ip.source, ip.destination, protocol).word(24).bytes(&segment);
            (frame(&[ethernet(), Layer::Ipv4(ip)], &segment), sum.finish())
        };
        let right = |source| packet(source, packet(source, 0).1).0;
        let to = Rewrite { source: Some(address(true, 9)), ..Rewrite::default() };
        assert_eq!(rewritten(&right(1), to), Ok(right(9)), "protocol {protocol}");
        let to = Rewrite { source_port: Some(9), ..Rewrite::default() };
        assert_eq!(rewritten(&right(1), to), Err(Failed::NoPort), "protocol {protocol}");
    }
}

#[test]
fn fragments_get_addresses_and_only_the_first_one_ports() {
    let to = Rewrite { source: Some(address(true, 9)), source_port: Some(7), ..Rewrite::default() };
    let cut = |layers: &[Layer]| {
        let datagram = &frame(layers, &[5; 100])[14..];
        [(0, 64, true), (64, 108, false)].map(|(from, end, more)| {
            let Layer::Ipv4(ip) = &layers[1] else { unreachable!() };
            let offset = from as u16;
            let ip = Ipv4 { protocol: Some(17), more_fragments: more, fragment_offset: offset, ..ip.clone() };
            frame(&[ethernet(), Layer::Ipv4(ip)], &datagram[20 + from..20 + end])
        })
    };
    let before = cut(&[ethernet(), ip(true, 1, 2), udp(1, 2)]);
    let after = cut(&[ethernet(), ip(true, 9, 2), udp(7, 2)]);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(rewritten(before, to).as_ref(), Ok(after));
    }
    let fragments = |host: u8, port| {
        let datagram = frame(&[ethernet(), ip(false, host, 2), udp(port, 2)], &[5; 100])[54..].to_vec();
        [(0_u16, 64, 1), (64, 108, 0)].map(|(from, end, more)| {
            let Layer::Ipv6(ip) = ip(false, host, 2) else { unreachable!() };
            let [high, low] = (from | more).to_be_bytes();
            let extensions = vec![(44, vec![high, low, 0, 0, 0, 9])];
            let ip = Ipv6 { next_header: Some(17), extensions, ..ip };
            frame(&[ethernet(), Layer::Ipv6(ip)], &datagram[from.into()..end])
        })
    };
    let to = Rewrite { source: Some(address(false, 9)), ..to };
    for (before, after) in fragments(1, 1).iter().zip(&fragments(9, 7)) {
        assert_eq!(rewritten(before, to).as_ref(), Ok(after));
    }
}

#[test]
fn the_identifier_of_a_query_is_the_port_of_who_asks() {
    let layers = |kind, id: u32| [ethernet(), ip(true, 1, 2), icmp(kind, 0, id << 16 | 3)];
    let source = Rewrite { source_port: Some(9), ..Rewrite::default() };
    let destination = Rewrite { destination_port: Some(9), ..Rewrite::default() };
    for (request, reply) in [(8, 0), (13, 14)] {
        let [asked, answered] = [request, reply].map(|kind| frame(&layers(kind, 5), b"abc"));
        assert_eq!(rewritten(&asked, source), Ok(frame(&layers(request, 9), b"abc")));
        assert_eq!(rewritten(&answered, destination), Ok(frame(&layers(reply, 9), b"abc")));
        assert_eq!(rewritten(&asked, destination), Err(Failed::NoPort));
        assert_eq!(rewritten(&answered, source), Err(Failed::NoPort));
    }
    assert_eq!(rewritten(&frame(&layers(3, 5), b"abc"), source), Err(Failed::NoPort));
}

#[test]
fn what_is_not_there_is_not_rewritten() {
    let arp =
        frame(&[Layer::Ethernet(Ethernet { destination: [2; 6], source: [2; 6], ethertype: Some(0x806) })], &[0; 28]);
    let v4_frame = frame(&[ethernet(), ip(true, 1, 2), udp(1, 2)], b"abc");
    let mut cut = v4_frame.clone();
    cut[17] = 21;
    for (frame, to, expected) in [
        (&arp, Rewrite { ttl: Some(1), ..Rewrite::default() }, Failed::NoIp),
        (&arp, Rewrite { source: Some(address(true, 1)), ..Rewrite::default() }, Failed::NoIp),
        (&arp, Rewrite { source_port: Some(1), ..Rewrite::default() }, Failed::NoIp),
        (&cut, Rewrite { source: Some(address(true, 1)), ..Rewrite::default() }, Failed::NoIp),
        (&v4_frame, Rewrite { source: Some(address(false, 1)), ..Rewrite::default() }, Failed::OtherVersion),
        (&vec![0; 11], Rewrite { source_mac: Some([2; 6]), ..Rewrite::default() }, Failed::NoEthernet),
    ] {
        assert_eq!(rewritten(frame, to), Err(expected), "{to:?}");
    }
    let mut expected = arp.clone();
    expected[6..12].fill(4);
    assert_eq!(rewritten(&arp, Rewrite { source_mac: Some([4; 6]), ..Rewrite::default() }), Ok(expected));
}

#[test]
fn a_packet_without_anything_in_it_has_addresses() {
    for is_v4 in [true, false] {
        let empty = |host| match ip(is_v4, host, 2) {
            Layer::Ipv4(ip) => frame(&[ethernet(), Layer::Ipv4(Ipv4 { protocol: Some(59), ..ip })], b""),
            Layer::Ipv6(ip) => frame(&[ethernet(), Layer::Ipv6(Ipv6 { next_header: Some(59), ..ip })], b""),
            _ => unreachable!(),
        };
        let to = Rewrite { source: Some(address(is_v4, 9)), ..Rewrite::default() };
        assert_eq!(rewritten(&empty(1), to), Ok(empty(9)));
    }
}

#[test]
fn a_source_route_on_its_way_keeps_its_destination() {
    let routed = |source: u8, segments_left| {
        let Layer::Ipv6(ip) = ip(false, source, 2) else { unreachable!() };
        let extensions = vec![(60, vec![1, 4, 0, 0, 0, 0]), (43, vec![4, segments_left, 0, 0, 0, 0])];
        frame(&[ethernet(), Layer::Ipv6(Ipv6 { extensions, ..ip }), udp(1, 2)], b"abc")
    };
    let source = Rewrite { source: Some(address(false, 9)), ..Rewrite::default() };
    let destination = Rewrite { destination: Some(address(false, 9)), ..Rewrite::default() };
    assert_eq!(rewritten(&routed(1, 1), source), Ok(routed(9, 1)));
    assert_eq!(rewritten(&routed(1, 1), destination), Err(Failed::SourceRoute));
    assert!(rewritten(&routed(1, 0), destination).is_ok());
}

#[test]
fn a_hop_takes_one_off_and_the_last_one_is_refused() {
    for is_v4 in [true, false] {
        let with_ttl = |ttl| {
            let to = Rewrite { ttl: Some(ttl), ..Rewrite::default() };
            frame(&with(&[ethernet(), tag(3), ip(is_v4, 1, 2), udp(1, 2)], &to), b"abc")
        };
        for ttl in 2..=255 {
            assert_eq!(edited(&with_ttl(ttl), hop), Ok(with_ttl(ttl - 1)));
        }
        for ttl in [0, 1] {
            assert_eq!(edited(&with_ttl(ttl), hop), Err(Failed::HopLimit));
        }
    }
}

#[test]
fn a_reply_goes_back_unless_everybody_was_asked() {
    let mut before = frame(&[ethernet(), ip(true, 1, 2), udp(1, 2)], b"abc");
    let after = edited(&before, |head, _| reply(head)).unwrap();
    assert_eq!((&after[..6], &after[6..12], &after[12..]), (&before[6..12], &before[..6], &before[12..]));
    before[0] |= 1;
    assert_eq!(edited(&before, |head, _| reply(head)), Err(Failed::GroupSource));
    assert_eq!(edited(&before[..11], |head, _| reply(head)), Err(Failed::NoEthernet));
}

#[test]
fn tags_are_put_on_as_far_as_there_is_room() {
    let before = frame(&[ethernet(), ip(true, 1, 2), udp(1, 2)], &[7; 300]);
    let (mut head, headers) = take(&before);
    for _ in 0..super::super::head::ROOM / vlan::TAG {
        assert_eq!(set_vlan(&mut head, &headers, 5), Ok(()));
    }
    assert_eq!(set_vlan(&mut head, &headers, 5), Err(Failed::NoRoom));
}

/// How an error of each version is said, and queries of it.
fn errors(is_v4: bool) -> Vec<(u8, u8, u32)> {
    if is_v4 {
        vec![(3, 1, 0), (3, 4, 1400), (11, 0, 0), (12, 0, 0x1400_0000)]
    } else {
        vec![(1, 0, 0), (2, 0, 1280), (3, 0, 0), (4, 1, 40)]
    }
}

/// Host 1 is translated to host 3, its port 1000 to 3000; it speaks with host 2.
fn outwards(is_v4: bool) -> Rewrite {
    Rewrite { source: Some(address(is_v4, 3)), source_port: Some(3000), ttl: Some(9), ..Rewrite::default() }
}

fn inwards(is_v4: bool) -> Rewrite {
    Rewrite { destination: Some(address(is_v4, 1)), destination_port: Some(1000), ..Rewrite::default() }
}

fn translated(frame: &[u8], to: Rewrite) -> Result<Vec<u8>, Failed> {
    edited(frame, |head, headers| {
        let quoted = headers.quoted(head.bytes()).ok_or(Failed::NoQuote)?;
        translate_quoted(head, headers, &quoted, &to)
    })
}

#[test]
fn an_error_from_outside_is_about_the_packet_that_was_sent() {
    for is_v4 in [true, false] {
        for (kind, code, data) in errors(is_v4) {
            for (quote, upper) in [
                (1000, [udp(1000, 80), udp(3000, 80)]),
                (1000, [tcp(1000, 80), tcp(3000, 80)]),
                (8, [tcp(1000, 80), tcp(3000, 80)]),
                (8, [udp(1000, 80), udp(3000, 80)]),
                (9, [udp(1000, 80), udp(3000, 80)]),
                (500, [1000, 3000].map(|id| icmp(if is_v4 { 8 } else { 128 }, 0, id << 16 | 4))),
            ] {
                let [sent, left] = upper;
                let inside = quotation(&[ip(is_v4, 1, 2), sent], quote);
                let outside = quotation(&[ip(is_v4, 3, 2), left], quote);
                // From a router, host 7.
                let before = frame(&[ethernet(), ip(is_v4, 7, 3), icmp(kind, code, data)], &outside);
                let after = frame(&[ethernet(), ip(is_v4, 7, 1), icmp(kind, code, data)], &inside);
                assert_eq!(translated(&before, inwards(is_v4)), Ok(after), "{kind} {code}, {quote} bytes of it");
            }
        }
    }
}

#[test]
fn an_error_from_inside_shows_nothing_of_the_inside() {
    for is_v4 in [true, false] {
        for (kind, code, data) in errors(is_v4) {
            // The packet came from host 2 for host 3; a router inside, host 8, has seen it addressed to host 1.
            let inside = quotation(&[ip(is_v4, 2, 1), udp(80, 1000)], 28);
            let outside = quotation(&[ip(is_v4, 2, 3), udp(80, 3000)], 28);
            let outer = |source, ttl| {
                let to = Rewrite { ttl: Some(ttl), ..Rewrite::default() };
                with(&[ethernet(), ip(is_v4, source, 2), icmp(kind, code, data)], &to)
            };
            let before = frame(&outer(8, 64), &inside);
            assert_eq!(translated(&before, outwards(is_v4)), Ok(frame(&outer(3, 9), &outside)));
        }
    }
}

/// The packet of these layers with 800 bytes, of which so many behind the IP header are quoted.
fn quotation(layers: &[Layer], count: usize) -> Vec<u8> {
    let mut packet = build(layers, &[9; 800]).unwrap();
    packet.truncate(if packet[0] >> 4 == 4 { 20 } else { 40 } + count);
    packet
}

#[test]
fn an_error_with_options_in_the_quoted_header_is_translated() {
    let options = vec![1; 8];
    let packet = |source: u8, port| {
        let ip = Ipv4 { options: options.clone(), ..v4([10, 0, 0, source], [10, 0, 0, 2]) };
        quotation(&[Layer::Ipv4(ip), udp(port, 80)], 16)
    };
    let error = |to, quoted: &[u8]| frame(&[ethernet(), tag(5), ip(true, 7, to), icmp(11, 0, 0)], quoted);
    assert_eq!(translated(&error(3, &packet(3, 3000)), inwards(true)), Ok(error(1, &packet(1, 1000))));
}

#[test]
fn what_quotes_too_little_or_nothing_is_not_translated() {
    let quoted = quotation(&[ip(true, 3, 2), udp(3000, 80)], 8);
    let error = |kind, quoted: &[u8]| frame(&[ethernet(), ip(true, 7, 3), icmp(kind, 0, 0)], quoted);
    for count in 0..quoted.len() {
        assert_eq!(translated(&error(3, &quoted[..count]), inwards(true)), Err(Failed::NoQuote), "{count} bytes");
    }
    let mut fragment = quoted.clone();
    fragment[7] = 1;
    for (what, frame) in [
        ("a redirect", error(5, &quoted)),
        ("an echo", error(8, &quoted)),
        ("a later fragment", error(3, &fragment)),
        ("no ICMP", frame(&[ethernet(), ip(true, 7, 3), udp(1, 2)], &quoted)),
        ("ICMP of the other version", {
            let ip = Ipv4 { protocol: Some(58), ..v4([10, 0, 0, 7], [10, 0, 0, 3]) };
            frame(&[ethernet(), Layer::Ipv4(ip)], &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &quoted].concat())
        }),
    ] {
        assert_eq!(translated(&frame, inwards(true)), Err(Failed::NoQuote), "{what}");
    }
}

fn tunnel(is_v4: bool) -> Encapsulate {
    Encapsulate { teid: 0x0102_0304, source: address(is_v4, 5), destination: address(is_v4, 6), source_port: 4000 }
}

/// The headers of that tunnel, with a TTL of 64.
fn outer(is_v4: bool, dscp: u8, ecn: u8) -> Vec<Layer> {
    let ip = if is_v4 {
        Layer::Ipv4(Ipv4 { identification: 0, dscp, ecn, ..v4([10, 0, 0, 5], [10, 0, 0, 6]) })
    } else {
        Layer::Ipv6(Ipv6 { flow_label: 0, dscp, ecn, ..v6("fd00::5", "fd00::6") })
    };
    let udp = Layer::Udp(Udp { source_port: 4000, destination_port: 2152, checksum: Some(0) });
    vec![ip, udp, Layer::Gtpu(gtp())]
}

fn gtp() -> Gtpu {
    Gtpu { teid: 0x0102_0304, kind: 255, sequence: None, n_pdu: None, extensions: Vec::new() }
}

#[test]
fn a_tunnelled_packet_is_the_one_built_with_these_headers_and_comes_out_as_it_went_in() {
    for (is_v4, inner_v4) in [(true, true), (true, false), (false, true), (false, false)] {
        for tags in 0..=2 {
            for (len, padding) in [(0, 18), (1, 0), (1000, 0)] {
                let link = [&[ethernet()][..], &vec![tag(5); tags]].concat();
                let class = Rewrite { dscp: Some(46), ..Rewrite::default() };
                let inner = with(&[ethernet(), ip(inner_v4, 1, 2), tcp(1, 2)], &class).split_off(1);
                let before = [frame(&[&link[..], &inner].concat(), &vec![7; len]), vec![0; padding]].concat();
                let expected = frame(&[&link[..], &outer(is_v4, 46, 0), &inner].concat(), &vec![7; len]);
                let after = edited(&before, |head, headers| encapsulate(head, headers, &tunnel(is_v4)));
                assert_eq!(after, Ok([expected, vec![0; padding]].concat()));
                assert_eq!(edited(&after.unwrap(), decapsulate), Ok(before));
            }
        }
    }
}

#[test]
fn a_fragment_is_tunnelled_as_it_is() {
    let ip = Ipv4 { protocol: Some(17), fragment_offset: 64, ..v4([10, 0, 0, 1], [10, 0, 0, 2]) };
    let inner = [Layer::Ipv4(ip)];
    let before = frame(&[&[ethernet()][..], &inner].concat(), b"abc");
    let expected = frame(&[&[ethernet()][..], &outer(true, 0, 0), &inner].concat(), b"abc");
    assert_eq!(edited(&before, |head, headers| encapsulate(head, headers, &tunnel(true))), Ok(expected));
}

#[test]
fn what_is_no_ip_packet_or_has_no_room_is_not_tunnelled() {
    let ip = frame(&[ethernet(), ip(true, 1, 2), tcp(1, 2)], b"abc");
    let mixed = Encapsulate { source: address(false, 5), ..tunnel(true) };
    assert_eq!(edited(&ip, |head, headers| encapsulate(head, headers, &mixed)), Err(Failed::OtherVersion));
    let (mut head, mut headers) = take(&ip);
    assert_eq!(encapsulate(&mut head, &headers, &tunnel(true)), Ok(()));
    headers = Headers::read(head.bytes(), head.frame_len());
    assert_eq!(encapsulate(&mut head, &headers, &tunnel(true)), Err(Failed::NoRoom));
    let mut arp = ip;
    arp[13] = 6;
    assert_eq!(edited(&arp, |head, headers| encapsulate(head, headers, &tunnel(true))), Err(Failed::NoIp));
}

#[test]
fn options_and_extensions_of_a_g_pdu_come_off_unless_its_receiver_must_know_them() {
    let inner = [ip(true, 1, 2), udp(1, 2)];
    let expected = frame(&[&[ethernet()][..], &inner].concat(), b"abc");
    for (extensions, is_known) in [
        (vec![], true),
        (vec![(0x85, vec![0x00, 9])], true),
        (vec![(0x85, vec![0x10, 9]), (0x20, vec![1, 0, 0, 0, 0, 0])], true),
        (vec![(0xc0, vec![1, 2])], false),
    ] {
        let gtp = Gtpu { sequence: Some(7), n_pdu: Some(3), extensions, ..gtp() };
        let mut layers = outer(true, 0, 0);
        layers[2] = Layer::Gtpu(gtp);
        let before = frame(&[&[ethernet()][..], &layers, &inner].concat(), b"abc");
        let after = edited(&before, decapsulate);
        assert_eq!(after, if is_known { Ok(expected.clone()) } else { Err(Failed::NoGPdu) });
    }
}

#[test]
fn a_g_pdu_that_is_not_whole_or_not_of_ip_is_refused() {
    let good = frame(&[&[ethernet()][..], &outer(true, 0, 0), &[ip(true, 1, 2), udp(1, 2)]].concat(), b"abc");
    assert!(edited(&good, decapsulate).is_ok());
    let inner = 14 + 36;
    for (what, at, value) in [
        ("the outer header's checksum", 24, good[24] ^ 1),
        ("a fragment", 20, 0x20),
        ("another port", 36, 7),
        ("no G-PDU", 43, 26),
        ("GTP version 2", 42, 0x48),
        ("a GTP length beyond the datagram", 45, good[45] + 1),
        ("a UDP length within the packet", 39, good[39] - 1),
        ("a UDP length below its header", 39, 7),
        ("an inner length beyond the message", inner + 3, good[inner + 3] + 1),
        ("another inner version", inner, 0x55),
        ("an extension that is none", 42, 0x34),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(edited(&bad, decapsulate), Err(Failed::NoGPdu), "{what}");
    }
    let empty = frame(&[&[ethernet()][..], &outer(true, 0, 0)].concat(), b"");
    assert_eq!(edited(&empty, decapsulate), Err(Failed::NoGPdu));
}

#[test]
fn congestion_in_the_tunnel_is_told_inside() {
    // RFC 6040 §4.2, figure 4: rows are inner, columns outer; Not-ECT, ECT(1), ECT(0), CE.
    let table = [
        (0, [Some(0), Some(0), Some(0), None]),
        (1, [Some(1), Some(1), Some(1), Some(3)]),
        (2, [Some(2), Some(1), Some(2), Some(3)]),
        (3, [Some(3), Some(3), Some(3), Some(3)]),
    ];
    let packet = |is_v4, ecn| match ip(is_v4, 1, 2) {
        Layer::Ipv4(ip) => Layer::Ipv4(Ipv4 { dscp: 11, ecn, ..ip }),
        Layer::Ipv6(ip) => Layer::Ipv6(Ipv6 { dscp: 11, ecn, ..ip }),
        other => other,
    };
    for (is_v4, inner_v4) in [(true, true), (true, false), (false, true), (false, false)] {
        for (inner, row) in table {
            for (outer_ecn, expected) in (0..).zip(row) {
                let carried = |ecn| [packet(inner_v4, ecn), udp(1, 2)];
                let layers = [&[ethernet()][..], &outer(is_v4, 0, outer_ecn), &carried(inner)].concat();
                let after = edited(&frame(&layers, b"abc"), decapsulate);
                let expected = expected.map(|ecn| frame(&[&[ethernet()][..], &carried(ecn)].concat(), b"abc"));
                assert_eq!(after, expected.ok_or(Failed::Congestion), "{inner} in {outer_ecn}");
            }
        }
    }
}
