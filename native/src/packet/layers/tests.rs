use std::net::Ipv6Addr;

use super::*;
use crate::packet::{ipv6, protocol};

fn ethernet() -> Layer {
    Ethernet::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).into()
}

fn ipv4() -> Ipv4 {
    Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2])
}

fn ipv6() -> Ipv6 {
    Ipv6::new(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
}

fn udp() -> Udp {
    Udp::new(1000, 53)
}

fn tcp() -> Tcp {
    let options = vec![2, 4, 5, 0xb4];
    Tcp { sequence: 3, acknowledgement: 4, flags: 0x12, window: 5, urgent: 6, options, ..Tcp::new(1, 2) }
}

fn icmp() -> Layer {
    Icmp::new(128, 0, 0x0001_0002).into()
}

/// What is read of what is built, its payload as bytes.
fn read_back(layers: &[Layer], payload: &[u8]) -> (Vec<Layer>, Vec<u8>) {
    let frame = build(layers, payload).unwrap();
    let parsed = parse(&frame, First::Ethernet);
    (parsed.layers, frame[parsed.payload].to_vec())
}

/// Types filled in as `build` does it, outside in.
fn named(layers: &[Layer]) -> Vec<Layer> {
    let mut named = layers.to_vec();
    for at in 0..named.len() {
        let (above, is_v4) = (named.get(at + 1).cloned(), matches!(named[at], Layer::Ipv4(_)));
        match (&mut named[at], above) {
            (Layer::Ethernet(Ethernet { ethertype, .. }) | Layer::Vlan(Vlan { ethertype, .. }), Some(above)) => {
                *ethertype = Some(match above {
                    Layer::Vlan(_) => 0x8100,
                    Layer::Arp(_) => 0x806,
                    Layer::Ipv4(_) => 0x800,
                    _ => 0x86dd,
                });
            }
            (Layer::Ipv4(Ipv4 { protocol: kind, .. }) | Layer::Ipv6(Ipv6 { next_header: kind, .. }), Some(above)) => {
                *kind = Some(match above {
                    Layer::Icmp(_) if is_v4 => 1,
                    Layer::Icmp(_) => 58,
                    Layer::Tcp(_) => 6,
                    Layer::Udp(_) => 17,
                    Layer::Ipv4(_) => 4,
                    _ => 41,
                });
            }
            _ => {}
        }
    }
    named
}

#[test]
fn a_frame_is_its_octets() {
    let frame = build(&[ethernet(), Layer::Ipv4(ipv4()), Layer::Udp(udp())], b"abc").unwrap();
    #[rustfmt::skip]
    assert_eq!(frame, [
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,     // to, from, IPv4
        0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0x66, 0xcc, // 31 bytes, TTL, UDP, checksum
        10, 0, 0, 1, 10, 0, 0, 2,
        0x03, 0xe8, 0, 53, 0, 11, 0x23, 0x56,         // ports, 11 bytes, checksum
        b'a', b'b', b'c',
    ]);
}

#[test]
fn what_is_built_is_read_back() {
    let tag = |id| Layer::Vlan(Vlan { id, priority: 5, drop_eligible: true, ethertype: None });
    let arp = arp::Message {
        operation: arp::Operation::Reply,
        sender_mac: [2; 6],
        sender: [10, 0, 0, 1].into(),
        target_mac: [4; 6],
        target: [10, 0, 0, 2].into(),
    };
    let gtpu = Gtpu {
        teid: 0x0102_0304,
        kind: 255,
        sequence: Some(7),
        n_pdu: Some(8),
        extensions: vec![(0x85, vec![1, 2]), (0x20, vec![3; 6])],
    };
    let tunnel = Layer::Udp(Udp { source_port: 2152, destination_port: 2152, checksum: None });
    let extensions = vec![(0, vec![1, 4, 0, 0, 0, 0]), (60, vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])];
    for layers in [
        vec![ethernet(), tag(5), tag(4095), Layer::Arp(arp)],
        vec![
            ethernet(),
            Layer::Ipv4(Ipv4 {
                ttl: 1,
                dscp: 63,
                ecn: 3,
                identification: 0xffff,
                dont_fragment: true,
                options: vec![1; 40],
                ..ipv4()
            }),
            Layer::Tcp(tcp()),
        ],
        vec![
            ethernet(),
            Layer::Ipv6(Ipv6 { hop_limit: 1, dscp: 63, ecn: 3, flow_label: 0xf_ffff, extensions, ..ipv6() }),
            Layer::Tcp(tcp()),
        ],
        vec![ethernet(), Layer::Ipv4(ipv4()), icmp()],
        vec![ethernet(), Layer::Ipv6(ipv6()), icmp()],
        vec![ethernet(), Layer::Ipv4(ipv4()), Layer::Ipv6(ipv6()), Layer::Ipv4(ipv4()), Layer::Udp(udp())],
        vec![ethernet(), Layer::Ipv6(ipv6()), tunnel, Layer::Gtpu(gtpu), Layer::Ipv4(ipv4()), Layer::Tcp(tcp())],
    ] {
        let payload: &[u8] = if matches!(layers.last(), Some(Layer::Arp(_))) { b"" } else { b"payload" };
        assert_eq!(read_back(&layers, payload), (named(&layers), payload.to_vec()));
    }
}

#[test]
fn a_checksum_that_is_wrong_is_told_and_kept() {
    let wrong = Some(0x1234);
    for layers in [
        [Layer::Ipv4(Ipv4 { checksum: wrong, ..ipv4() }), Layer::Udp(Udp { checksum: wrong, ..udp() })],
        [Layer::Ipv4(ipv4()), Layer::Tcp(Tcp { checksum: wrong, ..tcp() })],
        [Layer::Ipv6(ipv6()), Layer::Icmp(Icmp { kind: 1, code: 2, data: 3, checksum: wrong })],
        // None at all: right over IPv4, and still no checksum.
        [Layer::Ipv4(ipv4()), Layer::Udp(Udp { checksum: Some(0), ..udp() })],
    ] {
        let layers = [&[ethernet()][..], &layers].concat();
        assert_eq!(read_back(&layers, b"abc").0, named(&layers));
    }
}

#[test]
fn a_fragments_content_is_payload() {
    for (more_fragments, fragment_offset) in [(true, 0), (true, 8), (false, 65_528)] {
        let ip = Ipv4 { protocol: Some(17), more_fragments, fragment_offset, ..ipv4() };
        let layers = [ethernet(), Layer::Ipv4(ip)];
        assert_eq!(read_back(&layers, &[0; 16]), (named(&layers), vec![0; 16]));
    }
    for extension in [vec![0, 1, 0, 0, 0, 9], vec![0, 8, 0, 0, 0, 9]] {
        let extensions = vec![(44, extension)];
        let layers = [ethernet(), Layer::Ipv6(Ipv6 { next_header: Some(17), extensions, ..ipv6() })];
        assert_eq!(read_back(&layers, &[0; 16]), (named(&layers), vec![0; 16]));
    }
    // An atomic one is whole (RFC 6946).
    let extensions = vec![(44, vec![0, 0, 0, 0, 0, 9])];
    let layers = [ethernet(), Layer::Ipv6(Ipv6 { extensions, ..ipv6() }), Layer::Udp(udp())];
    assert_eq!(read_back(&layers, b"abc"), (named(&layers), b"abc".to_vec()));
}

#[test]
fn padding_is_neither_layer_nor_payload() {
    let mut frame = build(&[ethernet(), Layer::Ipv4(ipv4()), Layer::Udp(udp())], b"abc").unwrap();
    let expected = parse(&frame, First::Ethernet);
    frame.resize(60, 0);
    assert_eq!(parse(&frame, First::Ethernet), expected);
}

#[test]
fn what_is_malformed_is_payload() {
    let good = build(&[ethernet(), Layer::Ipv4(ipv4()), Layer::Udp(udp())], b"abc").unwrap();
    for (what, at, value, layers, payload) in [
        ("another version", 14, 0x65, 1, 14..45),
        ("a short header", 14, 0x44, 1, 14..45),
        ("a header beyond the packet", 14, 0x4f, 1, 14..45),
        ("a length beyond the frame", 17, 32, 1, 14..45),
        ("a length below the header", 17, 19, 1, 14..45),
        ("a datagram beyond the packet", 39, 12, 2, 34..45),
        ("a datagram below its header", 39, 7, 2, 34..45),
        ("an unknown type", 13, 1, 1, 14..45),
        ("an unknown protocol", 23, 132, 2, 34..45),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        let parsed = parse(&bad, First::Ethernet);
        assert_eq!((parsed.layers.len(), parsed.payload), (layers, payload), "{what}");
    }
    for len in 0..good.len() {
        let parsed = parse(&good[..len], First::Ethernet);
        assert_eq!((parsed.layers.len(), parsed.payload.end), (usize::from(len >= 14), len), "{len} bytes");
    }
}

#[test]
fn a_packet_may_begin_with_its_ip_header() {
    for ip in [Layer::Ipv4(ipv4()), Layer::Ipv6(ipv6())] {
        let layers = [ip, icmp()];
        let bytes = build(&layers, b"abc").unwrap();
        let parsed = parse(&bytes, First::Ip);
        assert_eq!((parsed.layers, &bytes[parsed.payload]), (named(&layers), &b"abc"[..]));
    }
    assert_eq!(parse(b"", First::Ip), Parsed { layers: vec![], payload: 0..0 });
    assert_eq!(parse(b"\x50", First::Ip), Parsed { layers: vec![], payload: 0..1 });
}

#[test]
fn a_quoted_packet_is_read_as_far_as_it_goes() {
    for (ip, upper, header) in [
        (Layer::Ipv4(ipv4()), Layer::Udp(Udp { checksum: Some(0x1234), ..udp() }), 28),
        (Layer::Ipv6(ipv6()), Layer::Tcp(Tcp { checksum: Some(0x1234), ..tcp() }), 64),
    ] {
        let layers = [ip, upper];
        let packet = build(&layers, &[7; 1000]).unwrap();
        for len in [header, header + 1, packet.len()] {
            let parsed = parse(&packet[..len], First::Quoted);
            assert_eq!((parsed.layers, parsed.payload), (named(&layers), header..len));
        }
        // Less is not a header.
        assert_eq!(parse(&packet[..header - 1], First::Quoted).layers.len(), 1);
        assert_eq!(parse(&packet[..header], First::Ip).layers.len(), 0);
    }
    let packet = build(&[Layer::Ipv4(ipv4()), Layer::Udp(udp())], &[7; 1000]).unwrap();
    let Some(Layer::Udp(Udp { checksum, .. })) = parse(&packet[..28], First::Quoted).layers.pop() else { panic!() };
    assert_eq!(checksum, Some(u16::from_be_bytes([packet[26], packet[27]])));
}

#[test]
fn tunnels_in_tunnels_end_somewhere() {
    let mut layers = vec![ethernet()];
    layers.extend((0..40).map(|_| Layer::Ipv4(Ipv4 { protocol: Some(protocol::IPV4), ..ipv4() })));
    assert_eq!(read_back(&layers, b"").0.len(), 16);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let tag = |id, priority| Layer::Vlan(Vlan { id, priority, drop_eligible: false, ethertype: Some(0) });
    let v6 = |extension| Layer::Ipv6(Ipv6 { next_header: Some(59), extensions: vec![extension], ..ipv6() });
    let v4 = Ipv4 { protocol: Some(59), ..ipv4() };
    let gtp =
        |extension| Layer::Gtpu(Gtpu { teid: 0, kind: 255, sequence: None, n_pdu: None, extensions: vec![extension] });
    for (layer, expected) in [
        (tag(4096, 0), Refused::Value("id")),
        (tag(1, 8), Refused::Value("priority")),
        (Layer::Ipv4(Ipv4 { dscp: 64, ..v4.clone() }), Refused::Value("dscp")),
        (Layer::Ipv4(Ipv4 { ecn: 4, ..v4.clone() }), Refused::Value("ecn")),
        (Layer::Ipv4(Ipv4 { options: vec![1; 3], ..v4.clone() }), Refused::Value("options")),
        (Layer::Ipv4(Ipv4 { options: vec![1; 44], ..v4.clone() }), Refused::Value("options")),
        (Layer::Ipv4(Ipv4 { fragment_offset: 7, ..v4 }), Refused::Value("fragment_offset")),
        (Layer::Ipv4(ipv4()), Refused::Unnamed("IPv4")),
        (Layer::Ipv6(ipv6()), Refused::Unnamed("IPv6")),
        (ethernet(), Refused::Unnamed("Ethernet")),
        (Layer::Ipv6(Ipv6 { flow_label: 1 << 20, next_header: Some(59), ..ipv6() }), Refused::Value("flow_label")),
        (v6((17, vec![0; 6])), Refused::Value("extensions")),
        (v6((60, vec![0; 7])), Refused::Value("extensions")),
        (v6((60, vec![])), Refused::Value("extensions")),
        (v6((ipv6::FRAGMENT, vec![0; 14])), Refused::Value("extensions")),
        (gtp((0, vec![0; 2])), Refused::Value("extensions")),
        (gtp((1, vec![0; 3])), Refused::Value("extensions")),
        (Layer::Udp(udp()), Refused::Below("UDP")),
        (Layer::Tcp(tcp()), Refused::Below("TCP")),
        (icmp(), Refused::Below("ICMP")),
    ] {
        assert_eq!(build(&[layer], b"").err(), Some(expected));
    }
    let tcp = Layer::Tcp(Tcp { options: vec![1; 44], ..tcp() });
    assert_eq!(build(&[Layer::Ipv4(ipv4()), tcp], b""), Err(Refused::Value("options")));
    let long = vec![0; 65_536 - 8];
    for (layers, len, expected) in [
        (vec![Layer::Ipv4(ipv4()), Layer::Udp(udp())], 65_536 - 8, "UDP"),
        (vec![Layer::Ipv4(ipv4()), Layer::Udp(udp())], 65_536 - 28, "IPv4"),
        (
            vec![Layer::Ipv6(Ipv6 { next_header: Some(59), extensions: vec![(60, vec![0; 6])], ..ipv6() })],
            65_528,
            "IPv6",
        ),
    ] {
        assert_eq!(build(&layers, &long[..len]), Err(Refused::TooLong(expected)));
        assert!(build(&layers, &long[..len - 28]).is_ok());
    }
}
