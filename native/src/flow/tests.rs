//! What the games of [`super::fuzzing`] are too small or too short for, and what one should read about the table.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::packet::headers::Headers;
use crate::packet::{ethernet, icmp, ipv4, protocol, udp};
use crate::port::lent::Lent;

const SERVER: [u8; 4] = [192, 0, 2, 1];
const OUTSIDE: [u8; 4] = [198, 51, 100, 1];
const INSIDE: [u8; 4] = [10, 0, 0, 7];

fn frame(source: [u8; 4], destination: [u8; 4], upper: u8, segment: &[u8]) -> Vec<u8> {
    let link = ethernet::emit([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], ethernet::IPV4);
    let ip = ipv4::emit(source.into(), destination.into(), upper, segment.len(), ipv4::Fragment::WHOLE);
    [&link[..], &ip, segment].concat()
}

fn datagram(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Vec<u8> {
    let mut segment = [0; udp::HEADER + 8];
    segment[..2].copy_from_slice(&source.1.to_be_bytes());
    segment[2..4].copy_from_slice(&destination.1.to_be_bytes());
    segment[5] = 16;
    frame(source.0, destination.0, protocol::UDP, &segment)
}

/// What a router says of the packet in a frame.
fn unreachable(router: [u8; 4], told: [u8; 4], about: &[u8]) -> Vec<u8> {
    let mut error = [&[icmp::v4::UNREACHABLE, 1, 0, 0, 0, 0, 0, 0][..], &about[ethernet::HEADER..]].concat();
    let sum = crate::packet::checksum::Sum::ZERO.bytes(&error).finish();
    error[2..4].copy_from_slice(&sum.to_be_bytes());
    frame(router, told, protocol::ICMP, &error)
}

fn exact(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Match {
    let host = |address: [u8; 4]| Some(Cidr { address: address.into(), prefix: 32 });
    Match {
        source: host(source.0),
        destination: host(destination.0),
        protocol: Some(protocol::UDP),
        source_port: Some(source.1),
        destination_port: Some(destination.1),
        ..Match::default()
    }
}

fn prefix(address: [u8; 4], prefix: u8) -> Match {
    Match { source: Some(Cidr { address: address.into(), prefix }), ..Match::default() }
}

fn rule(actions: impl Into<Vec<Action>>) -> Rule {
    Rule { actions: actions.into(), idle: None, hard: None }
}

fn to(port: PortIndex) -> Rule {
    rule([Action::Forward(port)])
}

struct Stage {
    table: Table,
    now: Instant,
}

impl Stage {
    fn new(capacity: usize) -> Self {
        Self { table: Table::seeded(capacity, 7), now: Instant::now() }
    }

    fn install(&mut self, m: Match, rule: Rule) -> Result<bool, Refused> {
        self.table.install(m, rule, self.now)
    }

    fn pass(&mut self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut head = [Head::default()];
        head[0].take(Lent::of(frame));
        let headers = [Headers::read(head[0].bytes(), frame.len())];
        let mut verdicts = Vec::new();
        self.table.process(0, &mut head, &headers, self.now, &mut verdicts);
        (verdicts[0], head[0].bytes().to_vec())
    }

    fn verdict(&mut self, frame: &[u8]) -> Verdict {
        self.pass(frame).0
    }

    fn ended(&mut self) -> Vec<(Match, Expiry)> {
        let mut ended = Vec::new();
        self.table.expire(self.now, table::AT_ONCE, &mut ended);
        ended.into_iter().map(|(m, why, _)| (m, why)).collect()
    }
}

#[test]
fn the_highest_priority_counts_then_who_says_more_then_the_older_one() {
    let mut stage = Stage::new(10);
    let packet = datagram((INSIDE, 1), (SERVER, 9));
    assert_eq!(stage.verdict(&packet), Verdict::Miss);
    let older = Match { source_port: Some(1), ..Match::default() };
    let younger = Match { destination_port: Some(9), ..Match::default() };
    stage.install(younger, to(1)).unwrap();
    stage.install(older, to(2)).unwrap();
    assert_eq!(stage.verdict(&packet), Verdict::Forward(1));
    assert_eq!(stage.install(younger, to(3)), Ok(true), "and is the youngest now");
    assert_eq!(stage.verdict(&packet), Verdict::Forward(2));
    stage.install(prefix([10, 0, 0, 0], 24), to(4)).unwrap();
    assert_eq!(stage.verdict(&packet), Verdict::Forward(4));
    stage.install(prefix([10, 0, 0, 99], 28), to(5)).unwrap();
    assert_eq!(stage.verdict(&packet), Verdict::Forward(4), "another network");
    stage.install(Match { priority: 1, ..Match::default() }, to(6)).unwrap();
    assert_eq!(stage.verdict(&packet), Verdict::Forward(6));
    stage.table.remove(&Match { priority: 1, ..Match::default() }, stage.now).unwrap();
    assert_eq!(stage.verdict(&packet), Verdict::Forward(4));
}

#[test]
fn what_cannot_be_run_is_refused_and_nothing_changes() {
    let mut stage = Stage::new(1);
    let any = Match::default();
    let limit = |bits_per_s, burst_bytes| Action::Limit(Limit { bits_per_s, burst_bytes });
    let mixed = Some(Cidr { address: IpAddr::from([0; 16]), prefix: 0 });
    let no_time = Rule { idle: Some(Duration::ZERO), ..to(1) };
    for (m, rule, why) in [
        (any, rule([Action::Drop, Action::Count]), Refused::Unreachable),
        (any, rule([Action::Decapsulate]), Refused::Unfinished),
        (any, rule([Action::Decapsulate, Action::Count]), Refused::Unfinished),
        (any, rule([limit(1.0, 1.0), limit(1.0, 1.0)]), Refused::Limits),
        (any, rule([limit(0.0, 1.0)]), Refused::Limit),
        (any, rule([limit(1.0, f64::NAN)]), Refused::Limit),
        (any, rule([limit(f64::INFINITY, 1.0)]), Refused::Limit),
        (any, no_time, Refused::Timeout),
        (prefix(INSIDE, 33), to(1), Refused::Prefix),
        (Match { destination: mixed, ..prefix(INSIDE, 8) }, to(1), Refused::Family),
        (Match { vlan: Some(4_096), ..any }, to(1), Refused::Vlan),
    ] {
        assert_eq!(stage.install(m, rule), Err(why));
        assert!(!why.to_string().is_empty() && stage.table.is_empty());
    }
    assert_eq!(stage.install(any, rule([])), Ok(false));
    assert_eq!(stage.install(prefix(INSIDE, 8), to(1)), Err(Refused::Full));
    assert_eq!(stage.install(any, to(1)), Ok(true));
    assert_eq!(stage.table.counters().refused, 12);
}

#[test]
fn there_are_256_shapes_and_one_that_is_not_used_any_more_makes_room() {
    let mut stage = Stage::new(1_000);
    let flow = |number: u8| Match {
        destination: Some(Cidr { address: SERVER.into(), prefix: number / 16 }),
        ..prefix(INSIDE, number % 16)
    };
    for number in 0..=255 {
        assert_eq!(stage.install(flow(number), to(number.into())), Ok(false));
    }
    assert_eq!(stage.verdict(&datagram((INSIDE, 1), (SERVER, 9))), Verdict::Forward(255));
    assert_eq!(stage.install(Match::default(), to(1)), Err(Refused::Shapes));
    assert!(stage.table.remove(&flow(255), stage.now).is_some());
    assert_eq!(stage.install(Match::default(), to(1)), Ok(false));
    // 14 and 15 bits, before 15 and 14: it is older.
    assert_eq!(stage.verdict(&datagram((INSIDE, 1), (SERVER, 9))), Verdict::Forward(14 * 16 + 15));
}

#[test]
fn a_rule_ends_when_it_is_idle_or_old_and_tells_what_it_did() {
    let mut stage = Stage::new(10);
    let (idle, hard) = (prefix(INSIDE, 32), prefix(SERVER, 32));
    let ten = Some(Duration::from_secs(10));
    stage.install(idle, Rule { idle: ten, ..to(1) }).unwrap();
    stage.install(hard, Rule { idle: ten, hard: Some(Duration::from_secs(25)), ..to(1) }).unwrap();
    for _ in 0..4 {
        stage.now += Duration::from_secs(6);
        stage.verdict(&datagram((INSIDE, 1), (SERVER, 9)));
        stage.verdict(&datagram((SERVER, 9), (INSIDE, 1)));
        assert_eq!(stage.ended(), []);
    }
    stage.now += Duration::from_secs(1);
    assert_eq!(stage.ended(), [(hard, Expiry::Hard)]);
    assert!(stage.table.deadline().is_some_and(|deadline| deadline <= stage.now + Duration::from_secs(9)));
    stage.now += Duration::from_millis(8_999);
    assert_eq!(stage.ended(), []);
    stage.now += Duration::from_millis(1);
    let mut ended = Vec::new();
    stage.table.expire(stage.now, 1, &mut ended);
    let statistics = Statistics { packets: 4, bytes: 4 * 50, idle: Duration::from_secs(10), ..Statistics::default() };
    assert_eq!(ended, [(idle, Expiry::Idle, statistics)]);
    assert_eq!((stage.table.deadline(), stage.table.len()), (None, 0));
}

#[test]
fn ten_thousand_rules_that_end_together_end_in_turns() {
    let mut stage = Stage::new(10_000);
    for port in 0..10_000 {
        let idle = Some(Duration::from_secs(60));
        stage.install(exact((INSIDE, port), (SERVER, 9)), Rule { idle, ..to(1) }).unwrap();
    }
    stage.now += Duration::from_secs(60);
    let mut calls = 0;
    while !stage.table.is_empty() {
        assert!(stage.table.deadline().is_some_and(|deadline| deadline <= stage.now));
        assert!(stage.ended().len() <= 256);
        calls += 1;
    }
    assert!((40..100).contains(&calls), "{calls}");
}

#[test]
fn a_limit_passes_its_rate_and_drops_and_counts_the_rest() {
    let mut stage = Stage::new(1);
    // Frames of 50 bytes: ten at once, and then a thousand a second.
    let limit = Action::Limit(Limit { bits_per_s: 400_000.0, burst_bytes: 500.0 });
    stage.install(Match::default(), rule([limit, Action::Forward(1)])).unwrap();
    let packet = datagram((INSIDE, 1), (SERVER, 9));
    let mut passed = 0;
    for _ in 0..10_000 {
        passed += u64::from(stage.verdict(&packet) == Verdict::Forward(1));
        stage.now += Duration::from_micros(100);
    }
    assert!((1_008..=1_010).contains(&passed), "{passed}");
    let statistics = stage.table.statistics(&Match::default(), stage.now).unwrap();
    assert_eq!((statistics.packets, statistics.limited), (10_000, 10_000 - passed));
    assert_eq!(stage.table.counters().drop_limited, 10_000 - passed);
}

#[test]
fn an_icmp_error_about_a_translated_flow_is_translated_and_goes_its_way() {
    let mut stage = Stage::new(10);
    // What comes back to the address that the flow has outside goes inside.
    let inside = Rewrite { destination: Some(INSIDE.into()), destination_port: Some(5_000), ..Rewrite::default() };
    let back = exact((SERVER, 9), (OUTSIDE, 40_000));
    stage.install(back, rule([Action::Rewrite(inside), Action::Forward(3)])).unwrap();
    let (router, sent) = ([203, 0, 113, 9], datagram((OUTSIDE, 40_000), (SERVER, 9)));
    let (verdict, bytes) = stage.pass(&unreachable(router, OUTSIDE, &sent));
    assert_eq!(verdict, Verdict::Forward(3));
    let headers = Headers::read(&bytes, bytes.len());
    assert_eq!(headers.addresses(&bytes), Some((router.into(), INSIDE.into())));
    let quoted = headers.quoted(&bytes).unwrap();
    assert_eq!(quoted.addresses(&bytes), Some((INSIDE.into(), SERVER.into())));
    assert_eq!((quoted.source_port, quoted.destination_port), (5_000, 9));
    assert_eq!((stage.table.counters().translated, stage.table.statistics(&back, stage.now).unwrap().packets), (1, 1));
    // Of another flow, and of one that a more important rule is for.
    let other = datagram((OUTSIDE, 40_001), (SERVER, 9));
    assert_eq!(stage.verdict(&unreachable(router, OUTSIDE, &other)), Verdict::Miss);
    // And one to somebody else than who sent what it quotes.
    assert_eq!(stage.verdict(&unreachable(router, [198, 51, 100, 2], &sent)), Verdict::Miss);
    let no_icmp = Match { protocol: Some(protocol::ICMP), priority: 1, ..Match::default() };
    stage.install(no_icmp, rule([Action::Drop])).unwrap();
    assert_eq!(stage.verdict(&unreachable(router, OUTSIDE, &sent)), Verdict::Drop);
}

#[test]
fn an_icmp_error_keeps_no_flow_alive_and_takes_what_its_limit_gives() {
    let mut stage = Stage::new(1);
    let inside = Rewrite { destination: Some(INSIDE.into()), ..Rewrite::default() };
    // An error of 78 bytes at once, and 60 bytes a second.
    let limit = Action::Limit(Limit { bits_per_s: 480.0, burst_bytes: 80.0 });
    let back = exact((SERVER, 9), (OUTSIDE, 40_000));
    let idle = Some(Duration::from_secs(10));
    stage.install(back, Rule { idle, ..rule([Action::Rewrite(inside), limit, Action::Forward(3)]) }).unwrap();
    let error = unreachable([203, 0, 113, 9], OUTSIDE, &datagram((OUTSIDE, 40_000), (SERVER, 9)));
    let packet = datagram((SERVER, 9), (OUTSIDE, 40_000));
    for _ in 0..4 {
        stage.now += Duration::from_secs(2);
        assert_eq!(stage.verdict(&error), Verdict::Forward(3));
        assert_eq!(stage.verdict(&error), Verdict::Drop, "its bucket was full, and no more than that");
    }
    assert_eq!(stage.table.statistics(&back, stage.now).unwrap().idle, Duration::from_secs(8));
    stage.now += Duration::from_secs(1);
    assert_eq!(stage.verdict(&packet), Verdict::Forward(3), "62 bytes are in the bucket");
    assert_eq!(stage.verdict(&packet), Verdict::Drop);
    stage.now += Duration::from_secs(9);
    assert_eq!((stage.verdict(&error), stage.ended()), (Verdict::Forward(3), vec![]));
    stage.now += Duration::from_secs(1);
    assert_eq!(stage.ended(), [(back, Expiry::Idle)]);
}

/// Through every doubling of the index, with removals between any two bursts, hot flows included.
#[test]
fn thousands_of_flows_are_each_found_while_others_come_and_go() {
    const FLOWS: u64 = 20_000;
    let mut stage = Stage::new(FLOWS as usize);
    let mut known: HashMap<u64, PortIndex> = HashMap::new();
    let mut state = 1_u64;
    let mut random = |end: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % end
    };
    let of = |flow: u64| (([10, 0, (flow >> 8) as u8, flow as u8], flow as u16), (SERVER, 9));
    for step in 0..60_000_u64 {
        let flow = random(FLOWS);
        let (source, destination) = of(flow);
        let grows = step < 40_000;
        if random(8) < if grows { 6 } else { 2 } {
            let port = random(1_000) as PortIndex;
            assert_eq!(stage.install(exact(source, destination), to(port)), Ok(known.insert(flow, port).is_some()));
        } else {
            let statistics = stage.table.remove(&exact(source, destination), stage.now);
            assert_eq!(statistics.is_some(), known.remove(&flow).is_some());
        }
        for flow in [flow, random(FLOWS)] {
            let (source, destination) = of(flow);
            let expected = known.get(&flow).map_or(Verdict::Miss, |&port| Verdict::Forward(port));
            assert_eq!(stage.verdict(&datagram(source, destination)), expected);
        }
    }
    assert_eq!(stage.table.len(), known.len());
    assert!(known.len() > 2_000, "{}", known.len());
}

#[test]
fn a_flow_takes_about_200_bytes_and_what_it_does_is_shared() {
    let mut stage = Stage::new(50_000);
    let mac = Action::Rewrite(Rewrite { destination_mac: Some([2, 0, 0, 0, 0, 9]), ..Rewrite::default() });
    for flow in 0..50_000_u32 {
        let [_, _, a, b] = flow.to_be_bytes();
        let idle = Some(Duration::from_secs(300));
        let rule = Rule { idle, ..rule([mac, Action::Forward(1)]) };
        stage.install(exact(([10, 0, a, b], 1), (SERVER, 9)), rule).unwrap();
    }
    assert!(stage.table.bytes() < 50_000 * 205, "{}", stage.table.bytes() / 50_000);
    let (listed, next) = stage.table.list(49_990, 100, stage.now);
    assert_eq!((listed.len(), next), (10, None));
    assert_eq!(listed[0].rule.actions, [mac, Action::Forward(1)]);
}

#[test]
fn a_million_rules_are_found_each_and_end_together() {
    const FLOWS: u32 = 1_000_000;
    let mut stage = Stage::new(FLOWS as usize);
    let of = |flow: u32| {
        let [_, a, b, c] = flow.to_be_bytes();
        (([10, a, b, c], 1000), (SERVER, 9))
    };
    for flow in 0..FLOWS {
        let (source, destination) = of(flow);
        let rule = Rule { idle: Some(Duration::from_secs(1)), ..to((flow % 1_000) as PortIndex) };
        assert_eq!(stage.install(exact(source, destination), rule), Ok(false));
    }
    let (source, destination) = of(FLOWS);
    assert_eq!(stage.install(exact(source, destination), to(1)), Err(Refused::Full));
    assert_eq!(stage.verdict(&datagram(source, destination)), Verdict::Miss);
    for flow in (0..FLOWS).step_by(97) {
        let (source, destination) = of(flow);
        let expected = Verdict::Forward((flow % 1_000) as PortIndex);
        assert_eq!(stage.verdict(&datagram(source, destination)), expected, "{flow}");
    }
    stage.now += Duration::from_secs(3);
    let mut ended = 0;
    while !stage.table.is_empty() {
        let some = stage.ended().len();
        assert!(some > 0 && stage.table.deadline().is_some() || stage.table.is_empty(), "{ended} of them");
        ended += some as u32;
    }
    assert_eq!(ended, FLOWS);
}

#[test]
fn address_bits_behind_a_prefix_mean_nothing() {
    let mut stage = Stage::new(10);
    stage.install(prefix([10, 0, 0, 77], 24), to(1)).unwrap();
    assert_eq!(stage.install(prefix([10, 0, 0, 1], 24), to(2)), Ok(true));
    assert_eq!(stage.table.list(0, 9, stage.now).0[0].flow, prefix([10, 0, 0, 0], 24));
    assert!(stage.table.remove(&prefix([10, 0, 0, 200], 24), stage.now).is_some());
}
