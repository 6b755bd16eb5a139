//! Hostile segments: memory stays bounded, who is established goes on, and what is dropped is counted.

use std::time::Duration;

use super::network::too_big;
use super::puppet::*;
use super::random::Random;
use crate::packet::checksum::{Sum, pseudo_v6};
use crate::stack::OpenError;
use crate::stack::bench::segment::{self, ACK, FIN, PSH, RST, SYN, Segment, URG};
use crate::stack::tcp::{Gone, TcpConfig, TcpEvent};

const FAMILIES: [bool; 2] = [true, false];

fn small() -> TcpConfig {
    TcpConfig {
        buffers: vec![(4_096, usize::MAX)],
        half_open_per_listener: 64,
        half_open_per_source: 16,
        ..TcpConfig::default()
    }
}

#[test]
fn a_syn_flood_from_everywhere_leaves_at_most_the_backlog_and_who_is_in_stays() {
    let mut stage = Stage::with(small());
    let mut talk = stage.open(peer(true, 4_000), own(true), 7);
    let mut random = Random(1);
    for number in 0..5_000 {
        let from = [10, 0, 0, random.between(10, 99) as u8];
        let from = (from, random.between(1_024, 65_000) as u16).into();
        stage.say(&Segment::new(from, own(true), SYN, random.next() as u32, 0));
        assert!(stage.counter("tcp_half_open") <= 64 && stage.counter("tcp_buffers") <= 65);
        if number % 500 == 0 {
            stage.converse(&mut talk, b"still here");
            // A newcomer who answers at once gets in.
            let mut new = stage.open(peer(true, 5_000 + number as u16), own(true), number);
            stage.converse(&mut new, b"hello");
            stage.end(&mut new);
        }
    }
    assert!(stage.counter("tcp_half_open_evicted") + stage.counter("drop_tcp_source") > 4_000, "{:?}", stage.counted());
    stage.pass(6 * SECOND);
    assert_eq!((stage.counter("tcp_half_open"), stage.counter("tcp_buffers")), (0, 1), "{:?}", stage.counted());
    stage.converse(&mut talk, b"and after");
}

#[test]
fn a_flood_from_one_source_leaves_room_for_others() {
    for is_v4 in FAMILIES {
        let mut stage = Stage::with(small());
        for port in 0..1_000 {
            let mut from = peer(is_v4, 1_024 + port);
            if let std::net::SocketAddr::V6(from) = &mut from {
                // Any address of its /64 is the same subscriber.
                let host = u128::from(*from.ip()) + u128::from(port) * 77;
                from.set_ip(host.into());
            }
            stage.say(&Segment::new(from, own(is_v4), SYN, 1, 0));
        }
        assert_eq!((stage.counter("tcp_half_open"), stage.counter("drop_tcp_source")), (16, 984));
        let other = if is_v4 { "10.0.0.8:99" } else { "[fd00:1::8]:99" }.parse().unwrap();
        let mut talk = stage.open(other, own(is_v4), 9);
        stage.converse(&mut talk, b"let me in");
        stage.end(&mut talk);
        stage.pass(20 * SECOND);
        assert!(stage.is_empty(), "{:?}", stage.counted());
    }
}

#[test]
fn only_a_reset_at_the_next_number_resets() {
    for is_v4 in FAMILIES {
        let mut stage = Stage::new();
        let mut talk = stage.open(peer(is_v4, 4_000), own(is_v4), 0xffff_fff0);
        stage.converse(&mut talk, b"twenty bytes of text");
        for offset in [-1_000_000, -1, 4_097, 70_000, i32::MIN] {
            let reset = Segment { seq: talk.seq.wrapping_add_signed(offset), ..talk.segment(RST) };
            stage.counts("outside", &reset.frame(US, PEER), "drop_tcp_reset", 0);
        }
        for offset in [1, 100, 4_000] {
            stage.pass(SECOND);
            let reset = Segment { seq: talk.seq + offset, ..talk.segment(RST | ACK) };
            let challenge = stage.counts("inside", &reset.frame(US, PEER), "drop_tcp_reset", 1).remove(0);
            assert_eq!((challenge.flags, challenge.seq, challenge.ack), (ACK, talk.ack, talk.seq));
        }
        // RFC 5961 §7: challenges are limited.
        let reset = Segment { seq: talk.seq + 9, ..talk.segment(RST) };
        stage.pass(SECOND);
        let answers: usize = (0..100).map(|_| stage.say(&reset).len()).sum();
        assert_eq!(answers, 1);
        stage.converse(&mut talk, b"not dead");
        assert!(stage.say(&talk.segment(RST)).is_empty());
        let gone = TcpEvent::Closed { id: talk.id, owner: 5, reason: Gone::Reset };
        assert_eq!(stage.events.last(), Some(&gone));
        assert!(stage.is_empty(), "{:?}", stage.counted());
    }
}

#[test]
fn a_syn_for_a_connection_is_challenged() {
    let mut stage = Stage::new();
    let mut talk = stage.open(peer(true, 4_000), own(true), 7);
    for (number, flags) in [SYN, SYN | ACK, SYN | FIN, SYN | PSH].into_iter().enumerate() {
        for offset in [-8, 0, 5, 1 << 30] {
            stage.pass(SECOND);
            let syn = Segment { seq: talk.seq.wrapping_add_signed(offset), ..talk.segment(flags) };
            let challenge = stage.counts("a SYN", &syn.frame(US, PEER), "drop_tcp_syn", 1).remove(0);
            assert_eq!((challenge.flags, challenge.seq, challenge.ack), (ACK, talk.ack, talk.seq), "{number}");
        }
    }
    stage.converse(&mut talk, b"as before");
    assert_eq!(stage.counter("tcp_connections"), 1);
}

#[test]
fn data_from_outside_the_window_goes_nowhere() {
    for is_v4 in FAMILIES {
        let mut stage = Stage::new();
        stage.echoes = false;
        let talk = stage.open(peer(is_v4, 4_000), own(is_v4), 7);
        for offset in [1 << 20, 1 << 30, i32::MIN] {
            stage.pass(SECOND);
            let data = Segment { seq: talk.seq.wrapping_add_signed(offset), ..talk.data(b"injected") };
            let answer = stage.counts("beyond", &data.frame(US, PEER), "drop_tcp_window", 1).remove(0);
            assert_eq!((answer.flags, answer.ack), (ACK, talk.seq));
        }
        for offset in [-100, -1 << 20, -1 << 30] {
            stage.pass(SECOND);
            let data = Segment { seq: talk.seq.wrapping_add_signed(offset), ..talk.data(b"injected") };
            let answer = stage.say_one(&data);
            assert_eq!((answer.flags, answer.ack, answer.payload.len()), (ACK, talk.seq, 0));
        }
        assert!(stage.read.is_empty());
        stage.say(&talk.data(b"asked for"));
        assert_eq!(stage.read, b"asked for");
    }
}

/// RFC 5961 §5: a blind sender would have to guess the acknowledgement too.
#[test]
fn data_with_an_impossible_acknowledgement_goes_nowhere() {
    let mut stage = Stage::new();
    stage.echoes = false;
    let talk = stage.open(peer(true, 4_000), own(true), 7);
    for offset in [1, 1_000, 1 << 30, i32::MIN, -1 << 30, -1 << 20] {
        stage.pass(SECOND);
        let data = Segment { ack: talk.ack.wrapping_add_signed(offset), ..talk.data(b"injected") };
        let answer = stage.counts("a blind ACK", &data.frame(US, PEER), "drop_tcp_ack", 1).remove(0);
        assert_eq!((answer.flags, answer.seq, answer.ack), (ACK, talk.ack, talk.seq), "{offset}");
    }
    stage.counts("no ACK", &Segment { flags: PSH, ..talk.data(b"injected") }.frame(US, PEER), "drop_tcp_flags", 0);
    assert!(stage.read.is_empty());
    stage.say(&talk.data(b"asked for"));
    assert_eq!(stage.read, b"asked for");
}

#[test]
fn two_ends_out_of_step_do_not_answer_each_other_for_ever() {
    // Each has a connection with the same addresses, but with a puppet of its own.
    let mut left = Stage::new();
    let talk = left.open(peer(true, 4_000), own(true), 1_000_000);
    let mut right = Stage::new();
    let mirrored = right.open(peer(true, 4_000), own(true), 5_000_000);
    let turned = |segment: &Segment| Segment { from: talk.peer, to: talk.own, ..segment.clone() };
    let mut count = 0;
    let mut to_right = left.say(&Segment { ack: talk.ack + 99, ..talk.data(b"spark") });
    right.bench.now = left.bench.now;
    for _ in 0..100_000 {
        let to_left: Vec<_> = to_right.iter().flat_map(|segment| right.say(&turned(segment))).collect();
        count += to_right.len() + to_left.len();
        to_right = to_left.iter().flat_map(|segment| left.say(&turned(segment))).collect();
        if to_right.is_empty() {
            break;
        }
        to_right.append(&mut left.pass(Duration::from_micros(50)));
        right.bench.now = left.bench.now;
    }
    assert!(to_right.is_empty() && count < 20, "{count} segments");
    assert_ne!(mirrored.seq, talk.seq);
}

#[test]
fn segments_that_cannot_be_are_dropped_with_a_count() {
    for is_v4 in FAMILIES {
        let mut stage = Stage::new();
        let mut talk = stage.open(peer(is_v4, 4_000), own(is_v4), 7);
        let with = |offset, options: &[u8]| {
            Segment { offset, options: options.to_vec(), ..talk.data(b"abcdefgh") }.frame(US, PEER)
        };
        for (what, frame, counter) in [
            ("offset 0", with(Some(0), &[]), "drop_malformed"),
            ("offset 4", with(Some(4), &[]), "drop_malformed"),
            ("offset past the end", with(Some(15), &[]), "drop_truncated"),
            ("an option of length 0", with(None, &[8, 0, 0, 0]), "drop_malformed"),
            ("an option of length 1", with(None, &[8, 1, 0, 0]), "drop_malformed"),
            ("an option past the header", with(None, &[8, 10, 0, 0]), "drop_malformed"),
            ("an option without length", with(None, &[1, 1, 1, 8]), "drop_malformed"),
        ] {
            stage.counts(what, &frame, counter, 0);
        }
        for port in [
            Segment { from: peer(is_v4, 0), ..talk.data(b"x") },
            Segment { to: std::net::SocketAddr::new(talk.own.ip(), 0), ..talk.data(b"x") },
        ] {
            stage.counts("port 0", &port.frame(US, PEER), "drop_malformed", 0);
        }
        for len in [0, 1, 8, 19] {
            let bytes = &talk.data(b"").bytes()[..len];
            let frame = segment::frame(talk.peer.ip(), talk.own.ip(), bytes, US, PEER);
            stage.counts("too short", &frame, "drop_truncated", 0);
        }
        let frame = talk.data(b"a payload").frame(US, PEER);
        for at in 14 + (if is_v4 { 20 } else { 40 })..frame.len() {
            for bit in 0..8 {
                let mut frame = frame.clone();
                frame[at] ^= 1 << bit;
                let drops = stage.counter("drop_tcp_checksum")
                    + stage.counter("drop_malformed")
                    + stage.counter("drop_truncated");
                assert!(stage.frame(&frame).is_empty());
                let after = stage.counter("drop_tcp_checksum")
                    + stage.counter("drop_malformed")
                    + stage.counter("drop_truncated");
                assert_eq!(after, drops + 1, "bit {bit} of byte {at}");
            }
        }
        stage.converse(&mut talk, b"unharmed");
    }
}

#[test]
fn nobody_connects_from_where_nobody_can_be() {
    let mut stage = Stage::new();
    for from in ["10.0.0.2:4000", "10.0.0.255:4000", "255.255.255.255:9", "224.0.0.1:9", "127.0.0.1:9", "0.0.0.0:9"] {
        let syn = Segment::new(from.parse().unwrap(), own(true), SYN, 1, 0);
        stage.counts(from, &syn.frame(US, PEER), "drop_martian", 0);
    }
    for from in ["[fd00::2]:4000", "[ff02::1]:9", "[::1]:9", "[::]:9"] {
        let syn = Segment::new(from.parse().unwrap(), own(false), SYN, 1, 0);
        stage.counts(from, &syn.frame(US, PEER), "drop_martian", 0);
    }
    for to in ["10.0.0.255:80", "255.255.255.255:80", "224.0.0.1:80", "10.0.0.77:80"] {
        let syn = Segment::new(peer(true, 9), to.parse().unwrap(), SYN, 1, 0);
        stage.counts(to, &syn.frame(US, PEER), "drop_not_for_us", 0);
    }
    // A SYN to us, in a frame to all.
    let syn = Segment::new(peer(true, 9), own(true), SYN, 1, 0);
    stage.counts("broadcast", &syn.frame([255; 6], PEER), "drop_not_for_us", 0);
    assert!(stage.is_empty());
}

#[test]
fn no_combination_of_flags_upsets_a_connection_or_wakes_the_dead() {
    for is_v4 in FAMILIES {
        let mut stage = Stage::new();
        let mut witness = stage.open(peer(is_v4, 4_000), own(is_v4), 7);
        for flags in 0..=255_u8 {
            // Nobody listens.
            let closed = std::net::SocketAddr::new(own(is_v4).ip(), 81);
            let answers = stage.say(&Segment::new(peer(is_v4, 5_000), closed, flags, 100, 200));
            assert_eq!(answers.len(), usize::from(flags & RST == 0), "{flags:#x}: {answers:?}");
            if let [answer] = &answers[..] {
                // RFC 9293 §3.10.7.1.
                let expected = if flags & ACK != 0 { (RST, 200) } else { (RST | ACK, 0) };
                assert_eq!((answer.flags, answer.seq), expected, "{flags:#x}");
            }
            // Somebody listens.
            let answers = stage.say(&Segment::new(peer(is_v4, 5_000), own(is_v4), flags, 100, 200));
            match flags & (SYN | ACK | RST | FIN) {
                SYN => {
                    assert!(answers.len() == 1 && answers[0].has(SYN | ACK));
                    let reset = Segment::new(peer(is_v4, 5_000), own(is_v4), RST, 101, 0);
                    assert!(stage.say(&reset).is_empty());
                }
                combined if combined & RST != 0 => assert!(answers.is_empty(), "{flags:#x}: {answers:?}"),
                _ => assert!(answers.len() == 1 && answers[0].has(RST), "{flags:#x}: {answers:?}"),
            }
            assert_eq!(stage.counter("tcp_half_open"), 0, "{flags:#x}");
            // A connection, out of its window: at most a challenge.
            let stray = Segment { seq: witness.seq.wrapping_add(1 << 29), ..witness.segment(flags) };
            let answers = stage.say(&stray);
            assert!(answers.iter().all(|answer| answer.flags == ACK) && answers.len() <= 1, "{flags:#x}: {answers:?}");
            // In its window, but neither end nor reset.
            if flags & (RST | FIN) == 0 {
                stage.say(&witness.segment(flags));
            }
            stage.pass(SECOND / 10);
            stage.converse(&mut witness, b"still there");
        }
        assert_eq!((stage.counter("tcp_connections"), stage.counter("tcp_buffers")), (1, 1), "{:?}", stage.counted());
    }
}

#[test]
fn urgent_data_is_data() {
    let mut stage = Stage::new();
    let mut talk = stage.open(peer(true, 4_000), own(true), 7);
    for urgent in [0, 1, 3, 0xffff] {
        let answer = stage.say_one(&Segment { urgent, flags: ACK | PSH | URG, ..talk.data(b"now!") });
        (talk.seq, talk.ack) = (talk.seq + 4, answer.next());
        assert_eq!(answer.payload, b"now!");
        stage.say(&talk.segment(ACK));
    }
}

#[test]
fn bytes_that_were_acknowledged_never_change() {
    let mut stage = Stage::new();
    stage.echoes = false;
    let talk = stage.open(peer(true, 4_000), own(true), 7);
    let at = |offset: u32, text: &[u8]| Segment { seq: talk.seq + offset, ..talk.data(text) };
    stage.say(&at(5, b"AAAAA"));
    assert!(stage.read.is_empty());
    stage.say(&at(0, b"BBBBBBBB"));
    assert_eq!((&stage.read[..5], &stage.read[8..]), (&b"BBBBB"[..], &b"AA"[..]));
    stage.say(&at(0, b"CCCCCCCCCCDD"));
    assert_eq!((stage.read.len(), &stage.read[10..]), (12, &b"DD"[..]));
    stage.say(&at(3, b"EEEEEEEEEEE"));
    assert_eq!((stage.read.len(), &stage.read[12..]), (14, &b"EE"[..]));
}

#[test]
fn a_window_of_one_byte_carries_the_message_byte_by_byte() {
    let mut stage = Stage::new();
    let mut talk = stage.open(peer(true, 4_000), own(true), 7);
    let mut got = Vec::new();
    let mut answers = stage.say(&Segment { window: 1, ..talk.data(b"patience") });
    talk.seq += 8;
    for _ in 0..200 {
        for answer in std::mem::take(&mut answers) {
            assert!(answer.payload.len() <= 1, "{answer:?}");
            if answer.seq == talk.ack {
                got.extend_from_slice(&answer.payload);
                talk.ack = answer.next();
            }
        }
        if got.len() == 8 {
            break;
        }
        answers = stage.say(&Segment { window: 1, ..talk.segment(ACK) });
        answers.append(&mut stage.pass(SECOND / 10));
    }
    assert_eq!(got, b"patience");
}

#[test]
fn a_lost_last_acknowledgement_is_given_again_and_a_reset_does_not_end_the_wait() {
    for is_v4 in FAMILIES {
        let mut stage = Stage::new();
        let mut talk = stage.open(peer(is_v4, 4_000), own(is_v4), 7);
        stage.bench.host.tcp_close(talk.id);
        let fin = stage.turn().remove(0);
        assert!(fin.has(FIN));
        talk.ack = fin.next();
        let last = stage.say_one(&talk.segment(FIN | ACK));
        assert_eq!((last.flags, last.seq, last.ack), (ACK, talk.ack, talk.seq + 1));
        assert_eq!((stage.counter("tcp_time_wait"), stage.counter("tcp_connections")), (1, 0));
        stage.pass(9 * SECOND);
        // RFC 1337.
        for offset in [0, 1, 2] {
            let reset = Segment { seq: talk.seq + offset, ..talk.segment(RST) };
            stage.counts("a reset", &reset.frame(US, PEER), "drop_tcp_time_wait", 0);
        }
        let again = stage.say_one(&talk.segment(FIN | ACK));
        assert_eq!((again.flags, again.seq, again.ack), (ACK, talk.ack, talk.seq + 1));
        // The wait begins anew (RFC 9293 §3.10.7.4).
        stage.pass(9 * SECOND);
        assert_eq!(stage.counter("tcp_time_wait"), 1);
        // An old SYN is none, a new one begins a new connection.
        let old = stage.say(&Segment { seq: talk.seq - 1, ..Segment::new(talk.peer, talk.own, SYN, 0, 0) });
        assert!(old.iter().all(|answer| answer.flags == ACK), "{old:?}");
        let mut new = stage.open(talk.peer, talk.own, talk.seq + 10);
        assert!(new.ack.wrapping_sub(talk.ack) < 1 << 31, "sequence numbers go on from there");
        stage.converse(&mut new, b"again");
        assert_eq!(stage.counter("tcp_time_wait"), 0);
        stage.end(&mut new);
        stage.pass(20 * SECOND);
        assert!(stage.is_empty(), "{:?}", stage.counted());
    }
}

#[test]
fn ports_run_out_with_an_error_and_come_back() {
    const LEFT: u16 = 8;
    let tcp = TcpConfig { time_wait: 3_600 * SECOND, ..small() };
    let mut stage = Stage::with(tcp);
    // Nearly all ports that clients get are listened on.
    for port in 16_384 + LEFT..=65_535 {
        stage.bench.host.tcp_listen(None, port, 2).unwrap();
    }
    let remote = peer(true, 443);
    let open = |stage: &mut Stage| {
        let now = stage.bench.now;
        stage.bench.host.tcp_open(remote, 6, SECOND, now)
    };
    let ids: Vec<_> = (0..LEFT).map(|_| open(&mut stage).unwrap()).collect();
    assert_eq!(open(&mut stage), Err(OpenError::PortsExhausted));
    for id in ids {
        stage.bench.host.tcp_abort(id);
    }
    stage.turn();
    // One after the other, for ever: a port that waits is used again, beyond its old sequence numbers.
    let mut last = std::collections::HashMap::new();
    for round in 0..100 {
        let id = open(&mut stage).unwrap();
        let syn = stage.turn().remove(0);
        assert!(syn.flags == SYN && syn.from.port() < 16_384 + LEFT, "{syn:?}");
        if let Some(old) = last.get(&syn.from.port()) {
            assert!(syn.seq.wrapping_sub(*old) < 1 << 31, "round {round}");
        }
        let seq = round * 1_000;
        let answer = Segment::new(syn.to, syn.from, SYN | ACK, seq, syn.next());
        stage.say(&answer);
        assert_eq!(stage.events.last(), Some(&TcpEvent::Connected { id, owner: 6 }));
        stage.bench.host.tcp_close(id);
        let fin = stage.turn().remove(0);
        last.insert(syn.from.port(), fin.next());
        let segment = Segment { seq: seq + 1, ack: fin.next(), flags: FIN | ACK, ..answer };
        assert_eq!(stage.say_one(&segment).flags, ACK);
        assert!(stage.counter("tcp_time_wait") <= u64::from(LEFT) && stage.counter("tcp_connections") == 0);
    }
}

/// RFC 9293 §3.5, figure 8.
#[test]
fn two_that_open_at_once_are_connected() {
    let mut stage = Stage::new();
    let now = stage.bench.now;
    let id = stage.bench.host.tcp_open(peer(true, 443), 6, 5 * SECOND, now).unwrap();
    let syn = stage.turn().remove(0);
    let mine = Segment::new(syn.to, syn.from, SYN, 77, 0);
    let answer = stage.say_one(&mine);
    assert_eq!((answer.flags, answer.seq, answer.ack), (SYN | ACK, syn.seq, 78));
    stage.say(&Segment { flags: SYN | ACK, ack: syn.next(), ..mine });
    assert_eq!(stage.events, [TcpEvent::Connected { id, owner: 6 }]);
    stage.bench.host.tcp_abort(id);
    stage.turn();
    assert!(stage.is_empty());
}

#[test]
fn a_handshake_that_hangs_ends_in_time() {
    for flags in [None, Some(SYN), Some(FIN | ACK), Some(PSH)] {
        let mut stage = Stage::new();
        let now = stage.bench.now;
        let id = stage.bench.host.tcp_open(peer(true, 443), 6, 2 * SECOND, now).unwrap();
        let syn = stage.turn().remove(0);
        if let Some(flags) = flags {
            stage.say(&Segment::new(syn.to, syn.from, flags, 77, syn.next()));
        }
        stage.pass(3 * SECOND);
        let gone = TcpEvent::Closed { id, owner: 6, reason: Gone::TimedOut };
        assert_eq!(stage.events, [gone], "{flags:?}");
        assert!(stage.is_empty(), "{:?}", stage.counted());
    }
}

/// RFC 5927: an error is believed only of a segment that is on its way, and never below what every host must take.
#[test]
fn forged_errors_of_routers_neither_end_nor_starve_a_connection() {
    for is_v4 in FAMILIES {
        let mut stage = Stage::new();
        let mut talk = stage.open(peer(is_v4, 4_000), own(is_v4), 7);
        stage.converse(&mut talk, b"before");
        // As the host would have sent it.
        let quoted =
            |seq: u32| Segment { from: talk.own, to: talk.peer, seq, payload: vec![0; 1_000], ..talk.segment(ACK) };
        for seq in [talk.ack, talk.ack.wrapping_sub(2_000), talk.ack.wrapping_add(1 << 20)] {
            let frame = too_big(&quoted(seq).frame(PEER, US), 0);
            stage.counts("nothing is on its way", &frame, "drop_icmp_ignored", 0);
            let frame = unreachable(&quoted(seq).frame(PEER, US));
            stage.counts("not while established", &frame, "drop_icmp_ignored", 0);
        }
        assert_eq!(stage.counter("flow_path_mtu_lowered"), 0);
        let message = vec![7; 1_400];
        let answer = stage.say_one(&talk.data(&message));
        talk.seq += 1_400;
        let frame = too_big(&answer.frame(PEER, US), 0);
        assert!(stage.frame(&frame).is_empty());
        assert_eq!(stage.counter("flow_path_mtu_lowered"), 1);
        let mut got = Vec::new();
        for _ in 0..5 {
            for again in stage.pass(SECOND) {
                if again.seq == talk.ack && !again.payload.is_empty() {
                    // RFC 791: 576 bytes; RFC 8200 §5: 1,280.
                    assert!(got.len() + again.payload.len() == 1_400 || again.payload.len() >= 536);
                    got.extend_from_slice(&again.payload);
                    talk.ack = again.next();
                }
            }
            stage.say(&talk.segment(ACK));
        }
        assert_eq!(got, message);
        stage.converse(&mut talk, b"after");
    }
}

/// "Port unreachable", as `too_big` says something else.
fn unreachable(frame: &[u8]) -> Vec<u8> {
    let mut answer = too_big(frame, 0);
    let (icmp, is_v4) = if answer[12] == 0x08 { (34, true) } else { (54, false) };
    (answer[icmp], answer[icmp + 1]) = if is_v4 { (3, 3) } else { (1, 4) };
    answer[icmp + 2..icmp + 8].fill(0);
    let mut sum = Sum::ZERO;
    if !is_v4 {
        sum = pseudo_v6([0xfd00, 0, 0, 0, 0, 0, 0, 1].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 2].into(), 58);
        sum = sum.word((answer.len() - icmp) as u16);
    }
    let checksum = sum.bytes(&answer[icmp..]).finish();
    answer[icmp + 2..icmp + 4].copy_from_slice(&checksum.to_be_bytes());
    answer
}

#[test]
fn a_fin_that_was_lost_is_sent_again_whatever_is_repeated_meanwhile() {
    for is_v4 in FAMILIES {
        let mut stage = Stage::new();
        let mut talk = stage.open(peer(is_v4, 4_000), own(is_v4), 7);
        stage.bench.host.tcp_send(talk.id, b"last words");
        stage.bench.host.tcp_close(talk.id);
        let fin = stage.turn().remove(0);
        assert!(fin.has(FIN) && fin.payload == b"last words");
        // The words came, the FIN did not, and it is said so again and again.
        talk.ack = fin.next() - 1;
        for _ in 0..6 {
            stage.say(&talk.segment(ACK));
        }
        let again = stage.pass(SECOND);
        assert!(again.iter().any(|again| again.has(FIN) && again.next() == fin.next()), "{again:?}");
    }
}

#[test]
fn a_port_used_again_before_the_owner_of_its_last_connection_knows_is_not_refused() {
    for is_v4 in FAMILIES {
        let mut stage = Stage::new();
        let mut talk = stage.open(peer(is_v4, 4_000), own(is_v4), 7);
        stage.bench.receive(&talk.segment(FIN | ACK).frame(US, PEER));
        stage.bench.host.tcp_end(talk.id);
        let fin = stage.flush().remove(0);
        assert!(fin.has(FIN | ACK), "{fin:?}");
        (talk.seq, talk.ack) = (talk.seq + 1, fin.next());
        stage.bench.receive(&talk.segment(ACK).frame(US, PEER));
        let syn = Segment::new(talk.peer, talk.own, SYN, 70_000, 0);
        let answers = stage.say(&syn);
        assert!(answers.iter().all(|answer| !answer.has(RST)), "{answers:?}");
        let answer = stage.say_one(&syn);
        assert!(answer.has(SYN | ACK) && answer.ack == 70_001, "{answer:?}");
    }
}

#[test]
fn a_fin_behind_what_was_lost_is_sent_again() {
    let mut stage = Stage::new();
    let mut talk = stage.open(peer(true, 5_000), own(true), 7);
    for _ in 0..4 {
        stage.converse(&mut talk, &[1; 1_000]);
    }
    stage.bench.host.tcp_send(talk.id, &[2; 3_000]);
    stage.bench.host.tcp_end(talk.id);
    let sent = stage.flush();
    let fin = sent.last().unwrap();
    assert!(sent.len() > 2 && fin.has(FIN), "{sent:?}");
    // The first segment was lost, and the FIN forgotten by a peer that remembers but the bytes behind a hole.
    let again: Vec<_> = (0..3).flat_map(|_| stage.say(&talk.segment(ACK))).collect();
    assert!(again.iter().any(|again| again.seq == talk.ack && !again.payload.is_empty()), "{again:?}");
    talk.ack = fin.next() - 1;
    stage.say(&talk.segment(ACK));
    let again = stage.pass(SECOND);
    assert!(again.iter().any(|again| again.has(FIN) && again.next() == fin.next()), "{again:?}");
}

/// RFC 9293 §3.10.7.3: what does not acknowledge our SYN is answered by a reset, and changes nothing.
#[test]
fn a_handshake_is_not_misled_by_who_does_not_know_its_number() {
    for is_v4 in FAMILIES {
        for wrong in [5_u32, 1 << 20, 0x7fff_ffff, 0x9000_0000] {
            let mut stage = Stage::new();
            let now = stage.bench.now;
            let id = stage.bench.host.tcp_open(peer(true, 80), 5, SECOND, now).unwrap();
            let syn = stage.turn().remove(0);
            let from_peer = |flags, ack| Segment::new(syn.to, syn.from, flags, 7_000, ack);
            stage.say(&from_peer(SYN | ACK, syn.next().wrapping_add(wrong)));
            stage.say(&from_peer(RST | ACK, syn.next().wrapping_add(wrong)));
            stage.say(&from_peer(SYN | ACK, syn.next()));
            assert_eq!(stage.events, [TcpEvent::Connected { id, owner: 5 }], "{wrong:#x}: {:?}", stage.counted());
            let mut talk = Talk { peer: syn.to, own: syn.from, seq: 7_001, ack: syn.next(), id };
            stage.converse(&mut talk, b"hello");

            let (from, to) = (peer(is_v4, 4_000), own(is_v4));
            let answer = stage.say_one(&Segment::new(from, to, SYN, 6, 0));
            stage.say(&Segment::new(from, to, ACK, 7, answer.next().wrapping_add(wrong)));
            stage.say(&Segment::new(from, to, ACK, 7, answer.next()));
            let Some(&TcpEvent::Accepted { id, .. }) = stage.events.last() else { panic!("{:?}", stage.events) };
            let mut talk = Talk { peer: from, own: to, seq: 7, ack: answer.next(), id };
            stage.converse(&mut talk, b"hello");
        }
    }
}
