//! GTP-U tunnels: in and out, and what does not come out.

use super::*;

const TEID: u32 = 0x0102_0304;

fn tunnel(is_v4: bool) -> Encapsulate {
    Encapsulate { teid: TEID, source: address(is_v4, 5), destination: address(is_v4, 6), source_port: 4000 }
}

/// The headers of that tunnel, with a TTL of 64.
fn outer(is_v4: bool, dscp: u8, ecn: u8) -> Vec<Layer> {
    let ip = if is_v4 {
        Layer::Ipv4(Ipv4 { dscp, ecn, ..v4([10, 0, 0, 5], [10, 0, 0, 6]) })
    } else {
        Layer::Ipv6(Ipv6 { dscp, ecn, ..v6("fd00::5", "fd00::6") })
    };
    let udp = Udp { checksum: Some(0), ..Udp::new(4000, GTP_PORT) }.into();
    vec![ip, udp, Gtpu::new(TEID).into()]
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
        let gtp = Gtpu { sequence: Some(7), n_pdu: Some(3), extensions, ..Gtpu::new(TEID) };
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
