//! Frames of `layers` and what is read of them. That both readers agree on mutated ones is `super::super::fuzzing`'s.

use super::*;
use crate::packet::layers::{Ethernet, Gtpu, Icmp, Ipv4, Ipv6, Layer, Tcp, Udp, Vlan, build};

fn ethernet(ethertype: Option<u16>) -> Layer {
    Ethernet { ethertype, ..Ethernet::new([2; 6], [4; 6]) }.into()
}

fn tag(id: u16, ethertype: Option<u16>) -> Layer {
    Vlan { priority: 7, drop_eligible: true, ethertype, ..Vlan::new(id) }.into()
}

fn v4() -> Ipv4 {
    Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2])
}

fn v6() -> Ipv6 {
    Ipv6::new([0xfd; 16], [0xfc; 16])
}

fn udp(source_port: u16, destination_port: u16) -> Layer {
    Udp::new(source_port, destination_port).into()
}

fn tcp() -> Layer {
    Tcp { options: vec![1; 40], ..Tcp::new(1, 2) }.into()
}

fn icmp(kind: u8, data: u32) -> Layer {
    Icmp::new(kind, 0, data).into()
}

fn read(layers: &[Layer], payload: &[u8]) -> Headers {
    let frame = build(&[&[ethernet(None)][..], layers].concat(), payload).unwrap();
    Headers::read(&frame, frame.len())
}

#[test]
fn offsets_and_ports_of_each_protocol_are_read() {
    let options = Ipv4 { options: vec![1; 40], ..v4() };
    let extensions = vec![(0, vec![1, 4, 0, 0, 0, 0]), (43, vec![4, 0, 0, 0, 0, 0]), (60, vec![1; 14])];
    let extended = Ipv6 { extensions, ..v6() };
    for (layers, kinds, transport, ports) in [
        (vec![Layer::Ipv4(v4()), udp(5, 6)], kind::IPV4 | kind::UDP, 34, (5, 6)),
        (vec![Layer::Ipv4(options), tcp()], kind::IPV4 | kind::TCP, 74, (1, 2)),
        (vec![Layer::Ipv6(v6()), tcp()], kind::IPV6 | kind::TCP, 54, (1, 2)),
        (vec![Layer::Ipv6(extended), udp(5, 6)], kind::IPV6 | kind::UDP, 86, (5, 6)),
        (vec![tag(9, None), tag(8, None), Layer::Ipv4(v4()), udp(5, 6)], kind::IPV4 | kind::UDP, 42, (5, 6)),
        (vec![Layer::Ipv4(v4()), icmp(8, 0x0007_0001)], kind::IPV4 | kind::ICMP, 34, (7, 0)),
        (vec![Layer::Ipv4(v4()), icmp(0, 0x0007_0001)], kind::IPV4 | kind::ICMP, 34, (0, 7)),
        (vec![Layer::Ipv4(v4()), icmp(13, 0x0007_0001)], kind::IPV4 | kind::ICMP, 34, (7, 0)),
        (vec![Layer::Ipv4(v4()), icmp(14, 0x0007_0001)], kind::IPV4 | kind::ICMP, 34, (0, 7)),
        (vec![Layer::Ipv4(v4()), icmp(128, 0x0007_0001)], kind::IPV4 | kind::ICMP, 34, (0, 0)),
        (vec![Layer::Ipv6(v6()), icmp(128, 0x0007_0001)], kind::IPV6 | kind::ICMP, 54, (7, 0)),
        (vec![Layer::Ipv6(v6()), icmp(129, 0x0007_0001)], kind::IPV6 | kind::ICMP, 54, (0, 7)),
        (vec![Layer::Ipv6(v6()), icmp(135, 0)], kind::IPV6 | kind::ICMP, 54, (0, 0)),
    ] {
        let headers = read(&layers, b"payload");
        assert_eq!(headers.kinds, kinds, "{layers:?}");
        assert_eq!((headers.transport, (headers.source_port, headers.destination_port)), (transport, ports));
        let upper = if kinds & kind::TCP != 0 { 60 } else { 8 };
        assert_eq!(headers.end, transport + upper + 7);
    }
}

#[test]
fn tags_are_read_up_to_two_of_either_type() {
    let plain = read(&[Layer::Ipv4(v4()), udp(1, 2)], b"");
    assert_eq!((plain.tags, plain.vlan, plain.ethertype, plain.network), (0, 0, 0x800, 14));
    for outer in [vlan::CUSTOMER, vlan::SERVICE] {
        let layers = [ethernet(Some(outer)), tag(0xabc, None), tag(5, None), Layer::Ipv4(v4()), udp(1, 2)];
        let frame = build(&layers, b"").unwrap();
        let headers = Headers::read(&frame, frame.len());
        assert_eq!((headers.tags, headers.vlan, headers.ethertype, headers.network), (2, 0xabc, 0x800, 22));
        assert_eq!(headers.kinds, kind::IPV4 | kind::UDP);
    }
    let three = read(&[tag(1, None), tag(2, None), tag(3, None), Layer::Ipv4(v4()), udp(1, 2)], b"");
    assert_eq!((three.tags, three.vlan, three.ethertype, three.network, three.kinds), (2, 1, 0x8100, 0, 0));
    // A priority without a VLAN, and an end within a tag.
    assert_eq!(read(&[tag(0, None), Layer::Ipv4(v4()), udp(1, 2)], b"").vlan, 0);
    let frame = build(&[ethernet(None), tag(1, Some(0x800))], b"").unwrap();
    assert_eq!(Headers::read(&frame[..17], 17).kinds, kind::MALFORMED);
}

#[test]
fn fragments_but_the_first_have_no_ports() {
    let fragment = |more_fragments, fragment_offset| {
        let ip = Ipv4 { protocol: Some(17), more_fragments, fragment_offset, ..v4() };
        read(&[Layer::Ipv4(ip)], &[0, 5, 0, 6, 0, 99, 0, 0])
    };
    let first = fragment(true, 0);
    assert_eq!((first.kinds, first.source_port, first.transport), (kind::IPV4 | kind::FRAGMENT | kind::UDP, 5, 34));
    for later in [fragment(true, 8), fragment(false, 8)] {
        assert_eq!((later.kinds, later.source_port, later.transport), (kind::IPV4 | kind::FRAGMENT, 0, 0));
        assert_eq!(later.protocol, 17);
    }
    let fragment = |low| {
        let ip = Ipv6 { next_header: Some(17), extensions: vec![(44, vec![0, low, 0, 0, 0, 1])], ..v6() };
        read(&[Layer::Ipv6(ip)], &[0, 5, 0, 6, 0, 99, 0, 0])
    };
    let (atomic, first, later) = (fragment(0), fragment(1), fragment(8));
    assert_eq!((atomic.kinds, atomic.source_port), (kind::IPV6 | kind::UDP, 5));
    assert_eq!((first.kinds, first.source_port), (kind::IPV6 | kind::UDP | kind::FRAGMENT, 5));
    assert_eq!((later.kinds, later.protocol, later.transport), (kind::IPV6 | kind::FRAGMENT, 17, 0));
}

#[test]
fn a_first_fragment_that_hides_its_ports_is_malformed() {
    // RFC 1858 §3: what a filter by ports would not see.
    for (protocol, len) in [(6, 8), (17, 0), (1, 0)] {
        let ip = Ipv4 { protocol: Some(protocol), more_fragments: true, ..v4() };
        assert!(read(&[Layer::Ipv4(ip)], &vec![0; len]).is(kind::MALFORMED), "{len} bytes of {protocol}");
    }
}

#[test]
fn only_user_data_of_gtp_u_has_a_tunnel() {
    let gtpu = |kind| Layer::Gtpu(Gtpu { kind, sequence: Some(1), ..Gtpu::new(7) });
    let inner = [Layer::Ipv6(v6()), udp(1, 2)];
    let tunnelled = |kind, to| read(&[&[Layer::Ipv4(v4()), udp(9, to), gtpu(kind)][..], &inner].concat(), b"");
    let headers = tunnelled(255, GTP_PORT);
    assert_eq!((headers.kinds, headers.teid), (kind::IPV4 | kind::UDP | kind::GTPU, 7));
    assert_eq!((headers.source_port, headers.transport), (9, 34));
    for other in [tunnelled(254, GTP_PORT), tunnelled(255, 2123)] {
        assert_eq!((other.kinds, other.teid), (kind::IPV4 | kind::UDP, 0));
    }
    let version_2 = read(&[Layer::Ipv4(v4()), udp(9, GTP_PORT)], &[0x48, 255, 0, 0, 0, 0, 0, 7]);
    assert!(!version_2.is(kind::GTPU));
    assert!(!read(&[Layer::Ipv4(v4()), udp(9, GTP_PORT)], &[0x30, 255, 0, 0, 0, 0, 0]).is(kind::GTPU));
}

#[test]
fn lengths_that_contradict_each_other_are_malformed() {
    let good = build(&[ethernet(None), Layer::Ipv4(v4()), udp(1, 2)], b"abc").unwrap();
    assert!(!Headers::read(&good, good.len()).is(kind::MALFORMED));
    for (what, at, value) in [
        ("another version", 14, 0x65),
        ("a header below its least", 14, 0x44),
        ("a header beyond the packet", 14, 0x4f),
        ("a length beyond the frame", 17, 32),
        ("a length below the header", 17, 19),
        ("no room for ports", 17, 27),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        let headers = Headers::read(&bad, bad.len());
        assert!(headers.is(kind::MALFORMED) && headers.transport == 0, "{what}");
    }
    for len in 0..good.len() {
        assert!(Headers::read(&good[..len], len).is(kind::MALFORMED), "{len} bytes");
    }
    let good = build(&[ethernet(None), Layer::Ipv6(v6()), udp(1, 2)], b"abc").unwrap();
    for len in 0..good.len() {
        assert!(Headers::read(&good[..len], len).is(kind::MALFORMED), "{len} bytes");
    }
    let mut cut = good;
    cut[19] = 7;
    assert!(Headers::read(&cut, cut.len()).is(kind::MALFORMED));
}

#[test]
fn a_fragment_header_in_the_padding_is_none() {
    let ip = Ipv6 { next_header: Some(17), extensions: vec![(44, vec![0, 8, 0, 0, 0, 1])], ..v6() };
    let mut frame = build(&[ethernet(None), Layer::Ipv6(ip)], b"").unwrap();
    frame[19] = 0;
    assert!(Headers::read(&frame, frame.len()).is(kind::MALFORMED));
}

#[test]
fn the_beginning_of_a_frame_is_enough() {
    let frame = build(&[ethernet(None), Layer::Ipv4(v4()), tcp()], &[9; 1000]).unwrap();
    assert_eq!(Headers::read(&frame[..54], frame.len()), Headers::read(&frame, frame.len()));
    assert!(Headers::read(&frame[..53], frame.len()).is(kind::MALFORMED));
}

#[test]
fn what_is_no_ip_is_told_by_its_type() {
    for (ethertype, kinds) in [(0x0806, kind::ARP), (0x88cc, 0), (0x0026, 0)] {
        let frame = build(&[ethernet(Some(ethertype))], &[0; 46]).unwrap();
        let headers = Headers::read(&frame, frame.len());
        assert_eq!((headers.kinds, headers.ethertype, headers.transport), (kinds, ethertype, 0));
        assert_eq!(headers.addresses(&frame), None);
    }
}

#[test]
fn other_protocols_have_a_place_and_no_ports() {
    for len in [0, 40] {
        let headers = read(&[Layer::Ipv4(Ipv4 { protocol: Some(132), ..v4() })], &vec![1; len]);
        assert_eq!((headers.kinds, headers.protocol, headers.transport), (kind::IPV4, 132, 34));
        assert_eq!((headers.source_port, headers.destination_port), (0, 0));
    }
    // ICMP of the other version is none.
    let headers = read(&[Layer::Ipv4(Ipv4 { protocol: Some(58), ..v4() })], &[128, 0, 0, 0, 0, 7, 0, 0]);
    assert_eq!((headers.kinds, headers.source_port), (kind::IPV4, 0));
}

#[test]
fn a_quoted_packet_is_read_where_it_stands() {
    let quoted = build(&[Layer::Ipv4(v4()), udp(5, 6)], b"abc").unwrap();
    let frame = build(&[ethernet(None), tag(3, None), Layer::Ipv4(v4()), icmp(11, 0)], &quoted[..28]).unwrap();
    let headers = Headers::read(&frame, frame.len()).quoted(&frame).unwrap();
    assert_eq!((headers.network, headers.transport, headers.end), (46, 66, 74));
    assert_eq!((headers.kinds, headers.source_port, headers.destination_port), (kind::IPV4 | kind::UDP, 5, 6));
    let (source, destination) = headers.addresses(&frame).unwrap();
    assert_eq!((source, destination), (v4().source.into(), v4().destination.into()));

    let extensions = vec![(60, vec![1, 4, 0, 0, 0, 0])];
    let quoted = build(&[Layer::Ipv6(Ipv6 { extensions, ..v6() }), icmp(128, 0x0007_0001)], b"abc").unwrap();
    let frame = build(&[ethernet(None), Layer::Ipv6(v6()), icmp(2, 1280)], &quoted).unwrap();
    let headers = Headers::read(&frame, frame.len()).quoted(&frame).unwrap();
    assert_eq!((headers.kinds, headers.source_port, headers.transport), (kind::IPV6 | kind::ICMP, 7, 110));
}

#[test]
fn the_usual_way_and_the_other_read_the_same() {
    let segments = [udp(5, 6), udp(5, GTP_PORT), tcp(), Tcp::new(1, 2).into(), icmp(8, 7)];
    let (mut usual, mut seed) = (0, 1_u64);
    let mut below = |end: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % end
    };
    for segment in segments {
        let whole = build(&[ethernet(None), Layer::Ipv4(v4()), segment], &[0x30, 255, 0, 0, 0, 0, 0, 7]).unwrap();
        for _ in 0..20_000 {
            let mut frame = whole.clone();
            for _ in 0..below(3) {
                let at = 12 + below(frame.len() - 12);
                frame[at] = below(256) as u8;
            }
            let bytes = &frame[..frame.len() - below(2) * below(30)];
            let len = frame.len() - below(2) * below(30);
            let (mut one, mut other) = (Headers::default(), Headers::default());
            other.read_any(bytes, len.max(bytes.len()));
            if one.read_usual(bytes, len.max(bytes.len())) {
                usual += 1;
                assert_eq!(one, other, "{bytes:02x?} of {len}");
            }
        }
    }
    assert!(usual > 10_000, "{usual}");
}
