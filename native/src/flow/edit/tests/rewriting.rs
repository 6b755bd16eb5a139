//! Fields of packets themselves: addresses, ports, hop limits, tags.

use super::*;
use crate::flow::head;
use crate::packet::fuzzing::Random;

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
        let bare = |port| Layer::from(Udp { checksum: Some(0), ..Udp::new(port, 2) });
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
    let arp = frame(&[Ethernet { ethertype: Some(0x806), ..Ethernet::new([2; 6], [2; 6]) }.into()], &[0; 28]);
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
    for _ in 0..head::ROOM / vlan::TAG {
        assert_eq!(set_vlan(&mut head, &headers, 5), Ok(()));
    }
    assert_eq!(set_vlan(&mut head, &headers, 5), Err(Failed::NoRoom));
}
