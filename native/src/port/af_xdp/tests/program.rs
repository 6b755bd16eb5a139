use std::net::IpAddr;

use super::machine::{Says, run};
use crate::packet::headers::{Headers, kind};
use crate::packet::protocol;
use crate::port::af_xdp::Take;
use crate::port::af_xdp::bpf::program;

const MAP: i32 = 77;

fn says(take: &[Take], addresses: &[IpAddr], frame: &[u8]) -> bool {
    match run(&program(take, addresses, MAP).unwrap(), frame, 3) {
        Says::Redirect { map, queue } => {
            assert_eq!((map, queue), (77, 3));
            true
        }
        Says::Pass => false,
    }
}

/// The same by the reader of headers, which flows use as well.
fn oracle(take: &[Take], addresses: &[IpAddr], frame: &[u8]) -> bool {
    if take.contains(&Take::All) {
        return true;
    }
    let by_address = take.is_empty() || take.contains(&Take::Addresses);
    let ours = |address: IpAddr| by_address && addresses.contains(&address);
    let headers = Headers::read(frame, frame.len());
    if headers.tags > 0 {
        return false;
    }
    let v6 = |at: usize| frame.get(at..at + 16).map(|bytes| IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()));
    let v4 = |at: usize| frame.get(at..at + 4).map(|bytes| IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()));
    let addressed = match headers.ethertype {
        0x0806 => v4(38).is_some_and(ours),
        // Fields where they are, whatever else is wrong with the packet: its host counts that.
        0x0800 => v4(30).is_some_and(ours),
        0x86dd => {
            let solicits = frame.len() >= 78 && frame[20] == protocol::ICMPV6 && frame[54] == 135;
            v6(38).is_some_and(ours) || (solicits && v6(62).is_some_and(ours))
        }
        _ => false,
    };
    let by_port = |wanted: &Take| match wanted {
        Take::Udp(port) => headers.is(kind::UDP) && headers.destination_port == *port,
        Take::Tcp(port) => headers.is(kind::TCP) && headers.destination_port == *port,
        _ => false,
    };
    addressed || (!headers.is(kind::FRAGMENT) && !headers.is(kind::MALFORMED) && take.iter().any(by_port))
}

/// A frame of IPv4 or IPv6 with the options that matter.
fn packet(to: IpAddr, protocol: u8, port: u16, options: usize, fragment: u16) -> Vec<u8> {
    let mut frame = vec![2; 12];
    match to {
        IpAddr::V4(to) => {
            let total = (20 + options + 20) as u16;
            frame.extend([0x08, 0x00, 0x45 + (options / 4) as u8, 0]);
            frame.extend(total.to_be_bytes());
            frame.extend([0, 1]);
            frame.extend(fragment.to_be_bytes());
            frame.extend([64, protocol, 0, 0, 10, 9, 9, 9]);
            frame.extend(to.octets());
            frame.extend(std::iter::repeat_n(1, options));
        }
        IpAddr::V6(to) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
            frame.extend([0xfd; 16]);
            frame.extend(to.octets());
        }
    }
    frame.extend([0x12, 0x34]);
    frame.extend(port.to_be_bytes());
    frame.extend([0; 16]);
    frame
}

fn arp(target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 9, 9, 9, 0, 0, 0, 0, 0, 0]);
    frame.extend(target);
    frame
}

fn solicitation(target: IpAddr) -> Vec<u8> {
    let IpAddr::V6(target) = target else { panic!() };
    let mut frame = packet("ff02::1:ff00:2".parse().unwrap(), protocol::ICMPV6, 0, 0, 0);
    frame.truncate(54);
    frame[19] = 24;
    frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(target.octets());
    frame
}

fn addresses() -> Vec<IpAddr> {
    ["10.0.0.2", "192.0.2.1", "255.1.2.3", "fd00::2", "2001:db8::ff:1"].map(|text| text.parse().unwrap()).to_vec()
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00, 0, 5], &frame[12..]].concat()
}

#[test]
fn what_is_for_our_addresses_is_taken_and_the_kernels_is_not() {
    let ours = addresses();
    let is_taken = |frame: &[u8]| says(&[], &ours, frame);
    for address in &ours {
        assert!(is_taken(&packet(*address, protocol::TCP, 80, 0, 0)), "{address}");
        assert!(!is_taken(&tagged(&packet(*address, protocol::TCP, 80, 0, 0))), "{address}");
        match address {
            IpAddr::V4(address) => assert!(is_taken(&arp(address.octets()))),
            IpAddr::V6(_) => assert!(is_taken(&solicitation(*address))),
        }
    }
    assert!(is_taken(&packet(ours[0], protocol::UDP, 53, 40, 0x2000)), "options, a fragment");
    for other in ["10.0.0.3", "255.255.255.255", "fd00::3", "ff02::1"] {
        assert!(!is_taken(&packet(other.parse().unwrap(), protocol::TCP, 80, 0, 0)), "{other}");
    }
    assert!(!is_taken(&arp([10, 0, 0, 3])) && !is_taken(&solicitation("fd00::3".parse().unwrap())));
}

#[test]
fn ports_are_taken_whatever_the_address_and_fragments_are_not() {
    let take = [Take::Udp(53), Take::Tcp(80), Take::Udp(65_535)];
    for address in ["10.0.0.2", "198.51.100.7", "fd00::9"] {
        let frame =
            |protocol, port, options, fragment| packet(address.parse().unwrap(), protocol, port, options, fragment);
        let is_taken = |frame: &[u8]| says(&take, &addresses(), frame);
        assert!(is_taken(&frame(protocol::UDP, 53, 0, 0)) && is_taken(&frame(protocol::TCP, 80, 0, 0)));
        assert!(is_taken(&frame(protocol::UDP, 65_535, 0, 0)));
        assert!(!is_taken(&frame(protocol::UDP, 80, 0, 0)) && !is_taken(&frame(protocol::TCP, 53, 0, 0)));
        assert!(!is_taken(&frame(protocol::ICMP, 53, 0, 0)) && !is_taken(&tagged(&frame(protocol::UDP, 53, 0, 0))));
        if address != "fd00::9" {
            assert!(is_taken(&frame(protocol::UDP, 53, 12, 0x4000)), "options, may not be fragmented");
            assert!(!is_taken(&frame(protocol::UDP, 53, 0, 0x2000)) && !is_taken(&frame(protocol::UDP, 53, 0, 5)));
        }
    }
    assert!(!says(&take, &addresses(), &arp([10, 0, 0, 2])), "the kernel answers");
    let both = [Take::Udp(53), Take::Addresses];
    assert!(says(&both, &addresses(), &arp([10, 0, 0, 2])));
    assert!(says(&both, &addresses(), &packet("10.0.0.9".parse().unwrap(), protocol::UDP, 53, 0, 0)));
}

#[test]
fn everything_is_everything() {
    for frame in [vec![], vec![0; 14], tagged(&arp([1, 2, 3, 4]))] {
        assert!(says(&[Take::Udp(1), Take::All], &[], &frame));
    }
}

/// Frames near the border of what is ours: cut at every length, and with single bytes changed.
#[test]
fn program_and_reader_of_headers_agree_and_nothing_is_read_beyond_the_end() {
    let addresses = addresses();
    let frames = [
        packet(addresses[0], protocol::UDP, 53, 0, 0),
        packet(addresses[1], protocol::TCP, 80, 40, 0),
        packet(addresses[3], protocol::UDP, 53, 0, 0),
        packet("10.0.0.9".parse().unwrap(), protocol::TCP, 80, 8, 0),
        packet("fd00::9".parse().unwrap(), protocol::TCP, 80, 0, 0),
        arp([192, 0, 2, 1]),
        solicitation(addresses[4]),
    ];
    let rules: [&[Take]; 5] = [
        &[],
        &[Take::Addresses],
        &[Take::Udp(53), Take::Tcp(80)],
        &[Take::Addresses, Take::Udp(53), Take::Tcp(80), Take::Tcp(443)],
        &[Take::Udp(53)],
    ];
    for take in rules {
        for addresses in [&addresses[..], &addresses[..3], &addresses[3..]] {
            for frame in &frames {
                for end in 0..frame.len() {
                    // What is cut is for its host to count; here only its ports are said to be gone.
                    let cut = &frame[..end];
                    let taken = says(take, addresses, cut);
                    assert!(!taken || says(take, addresses, frame), "{take:?} {cut:x?}");
                }
                for (at, bit) in (12..frame.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                    let mut frame = frame.clone();
                    frame[at] ^= 1 << bit;
                    let headers = Headers::read(&frame, frame.len());
                    let by_port = take.iter().any(|take| matches!(take, Take::Udp(_) | Take::Tcp(_)));
                    // Lengths and versions that lie are not looked at; and an extension header hides the port.
                    let differs = headers.is(kind::MALFORMED) || (frame[12] == 0x86 && frame[20] != headers.protocol);
                    if !(by_port && differs) {
                        assert_eq!(
                            says(take, addresses, &frame),
                            oracle(take, addresses, &frame),
                            "{take:?} byte {at} bit {bit}: {frame:x?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn more_addresses_than_jumps_reach_are_refused() {
    let many = |count: u32| (0..count).map(|n| IpAddr::from(std::net::Ipv4Addr::from(n))).collect::<Vec<_>>();
    assert!(program(&[], &many(1_000), MAP).is_some());
    assert!(program(&[], &many(20_000), MAP).is_none());
}
