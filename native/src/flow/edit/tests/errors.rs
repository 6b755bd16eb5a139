//! ICMP errors, and the packets they quote.

use super::*;

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
