//! Scenarios drawn from seeds, and what may come of each.
//!
//! `LIBVNF_SEEDS=20000` draws so many instead of a few hundred (or `20000..30000`), `LIBVNF_SEED=7` only that one;
//! `LIBVNF_TRACE=1` shows its frames and events.

use std::ops::Range;
use std::time::Duration;

use super::network::Weather;
use super::random::Random;
use super::world::*;
use crate::stack::Unreachable;
use crate::stack::tcp::{Gone, TcpConfig};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn seeds(usual: u64) -> Range<u64> {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("a seed, not {text}"));
    if let Ok(seed) = std::env::var("LIBVNF_SEED") {
        return number(&seed)..number(&seed) + 1;
    }
    let seeds = std::env::var("LIBVNF_SEEDS").unwrap_or_default();
    match seeds.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None if seeds.is_empty() => 0..usual,
        None => 0..number(&seeds),
    }
}

/// One connection each way, calm weather: what the other scenarios deviate from.
fn calm(seed: u64, scripts: [Script; 2]) -> Scenario {
    let tcp = TcpConfig { keep_alive: Some(5 * SECOND), buffers: vec![(16_384, usize::MAX)], ..TcpConfig::default() };
    Scenario {
        seed,
        is_v4: seed.is_multiple_of(2),
        mtu: [1_500; 2],
        weather: Weather { delay: MS / 5, nanoseconds_per_byte: 1, ..Weather::default() },
        changes: Vec::new(),
        ends_after: None,
        tcp: [tcp.clone(), tcp],
        isn: [0, 0],
        poll: [Duration::ZERO; 2],
        full: 0,
        plans: vec![Plan { begin: MS, client: 0, port: LISTENS, scripts, is_turned_away: false }],
    }
}

fn draw(seed: u64) -> Scenario {
    let mut random = Random(seed.wrapping_mul(0x1234_5678_9abc_def1));
    let random = &mut random;
    let is_v4 = random.one_of(&[true, false]);
    let mtus: &[usize] = if is_v4 { &[576, 1_280, 1_500, 9_000] } else { &[1_280, 1_500, 9_000] };
    let is_kind = random.in_ten_thousand(6_000);
    let most = if is_kind { 150 } else { 2_000 };
    let chance = |random: &mut Random| if random.in_ten_thousand(4_000) { random.up_to(most) as u32 } else { 0 };
    let weather = Weather {
        loss: chance(random),
        duplication: chance(random),
        reordering: chance(random),
        corruption: chance(random),
        delay: Duration::from_micros(10 + random.up_to(100_000) as u64),
        jitter: Duration::from_micros(random.up_to(10_000) as u64),
        nanoseconds_per_byte: random.one_of(&[0, 1, 10, 100, 1_000]),
    };
    let mut changes = Vec::new();
    if random.in_ten_thousand(3_000) {
        for _ in 0..random.between(1, 4) {
            let at = MS * random.up_to(5_000) as u32;
            changes.push((at, Change::Mtu(random.one_of(mtus).min(random.one_of(mtus)))));
        }
    }
    let mut has_cut = false;
    if random.in_ten_thousand(1_500) {
        has_cut = true;
        let at = MS * random.up_to(2_000) as u32;
        let time = MS * random.up_to(if is_kind { 1_500 } else { 60_000 }) as u32;
        changes.extend([(at, Change::Cut), (at + time, Change::Join)]);
    }
    let ends_after = (!is_kind && random.in_ten_thousand(2_500))
        .then(|| (random.up_to(300), random.one_of(&[None, None, Some(0), Some(1)])));
    let count = if random.in_ten_thousand(1_000) { 40 } else { random.between(1, 4) };
    let plans: Vec<Plan> = (0..count).map(|_| draw_plan(random)).collect();
    // A reset that is lost, or a peer that is, is found out by probes only.
    let is_orderly = |plan: &Plan| {
        !plan.is_turned_away
            && plan.scripts.iter().all(|script| matches!(script.finish, Finish::End | Finish::AfterPeer))
    };
    let needs_probes = has_cut || !is_kind || !plans.iter().all(is_orderly);
    let tcp = [(); 2].map(|()| {
        let rto = random.one_of(&[50, 200, 200, 1_000]) * MS;
        let sizes = [262_144, 65_536, 16_384, 4_096, 1_024];
        let large = random.between(0, 4);
        TcpConfig {
            buffers: vec![(sizes[large], random.between(1, 3)), (sizes[random.between(large, 4)], usize::MAX)],
            rto,
            handshake_timeout: (rto * 30).max(5 * SECOND),
            keep_alive: (needs_probes || random.in_ten_thousand(5_000)).then(|| SECOND * random.between(2, 10) as u32),
            time_wait: SECOND * random.between(1, 10) as u32,
            ..TcpConfig::default()
        }
    });
    let isn = [(); 2].map(|()| match random.between(0, 3) {
        0 => (random.up_to(300_000) as u32).wrapping_neg(),
        1 => 0x8000_0000 - random.up_to(300_000) as u32,
        _ => random.next() as u32,
    });
    Scenario {
        seed,
        is_v4,
        weather,
        changes,
        ends_after,
        plans,
        tcp,
        isn,
        mtu: [random.one_of(mtus), random.one_of(mtus)],
        poll: [(); 2].map(|()| Duration::from_micros(random.one_of(&[0, 20, 1_000]))),
        full: random.one_of(&[0, 0, 100, 3_000]),
    }
}

fn draw_plan(random: &mut Random) -> Plan {
    let mut scripts = [(); 2].map(|()| {
        let appetite = match random.between(0, 5) {
            0 => Appetite::Sips(1 + random.up_to(5_000), MS * random.between(1, 50) as u32),
            1 => Appetite::Fasts(MS * random.up_to(20_000) as u32),
            _ => Appetite::Greedy,
        };
        let finish = match random.between(0, 11) {
            0 => Finish::Close,
            1 => Finish::Abort(random.up_to(50_000)),
            _ => Finish::End,
        };
        Script {
            bytes: if random.in_ten_thousand(2_000) { 0 } else { random.up_to(100_000) },
            lead: usize::MAX,
            write: 1 + random.up_to(65_535),
            appetite,
            finish,
            asks: random.one_of(&[true, false]),
        }
    });
    // Nobody sips a long stream byte by byte.
    for script in &mut scripts {
        if let Appetite::Sips(bytes, _) = &mut script.appetite {
            *bytes = (*bytes).max(100);
        }
        script.write = script.write.max(1 + script.bytes / 1_000);
    }
    match random.between(0, 5) {
        0 => {
            // Ping-pong.
            let size = 1 + random.up_to(3_000);
            let bytes = size * random.between(1, 20);
            let eager = random.between(0, 1);
            scripts[eager] = Script { bytes, lead: size, ..scripts[eager] };
            scripts[1 - eager] = Script { bytes, lead: 0, ..scripts[1 - eager] };
        }
        1 => scripts[random.between(0, 1)].finish = Finish::AfterPeer,
        2 => scripts[random.between(0, 1)].bytes = 0,
        _ => {}
    }
    Plan {
        begin: MS * random.up_to(3_000) as u32,
        client: random.between(0, 1),
        port: if random.in_ten_thousand(300) { REFUSES } else { LISTENS },
        scripts,
        is_turned_away: random.in_ten_thousand(200),
    }
}

impl Scenario {
    /// Does the network let every connection live?
    fn is_kind(&self) -> bool {
        let Weather { loss, corruption, .. } = self.weather;
        let cuts = self.changes.iter().filter(|change| !matches!(change.1, Change::Mtu(_)));
        let [first, last] = [cuts.clone().map(|cut| cut.0).min(), cuts.map(|cut| cut.0).max()];
        let cut = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
        self.ends_after.is_none() && loss + corruption <= 300 && cut <= 1_500 * MS
    }
}

/// What may have become of each connection.
fn judge(scenario: &Scenario, world: &World) {
    for (index, plan) in scenario.plans.iter().enumerate() {
        let outcomes = world.outcomes(index);
        let (ours, theirs) = (outcomes[plan.client], outcomes[1 - plan.client]);
        let is_unreachable = ours == Some(Outcome::Gone(Gone::Unreachable(Unreachable::Host)));
        if is_unreachable && theirs.is_none() && scenario.weather.loss > 0 {
            continue;
        }
        if !scenario.is_kind() {
            assert!(ours.is_some(), "connection {index} has no end");
        } else if plan.port == REFUSES {
            assert_eq!((ours, theirs), (Some(Outcome::Gone(Gone::Refused)), None), "connection {index}");
        } else if plan.is_turned_away {
            let is_brief = matches!(plan.scripts[plan.client].finish, Finish::Abort(_));
            assert!(theirs == Some(Outcome::Aborted) || theirs.is_none() && is_brief, "connection {index}");
        } else {
            for side in [0, 1] {
                let (mine, peers) = (plan.scripts[side], plan.scripts[1 - side]);
                let is_heard_out = match peers.finish {
                    Finish::End | Finish::AfterPeer => true,
                    // What comes for one who has closed is answered with a reset.
                    Finish::Close => mine.bytes == 0,
                    Finish::Abort(_) => false,
                };
                if matches!(mine.finish, Finish::End | Finish::AfterPeer) && is_heard_out {
                    assert_eq!(outcomes[side], Some(Outcome::Finished), "connection {index}, station {side}");
                }
            }
        }
    }
}

#[test]
fn every_byte_arrives_or_the_connection_ends_with_a_reason() {
    let seeds = seeds(300);
    let is_whole = seeds.end - seeds.start >= 300;
    let mut seen = [("lost", 0), ("too big", 0), ("sequence numbers that wrap", 0), ("sent again", 0), ("given up", 0)];
    for seed in seeds {
        let scenario = draw(seed);
        let witness = Witness(&scenario);
        let world = World::run(&scenario);
        judge(&scenario, &world);
        let both = |name| (world.counter(0, name) + world.counter(1, name)) as usize;
        let again = both("tx_tcp_retransmission");
        let counts = [world.network.lost, world.network.too_big, world.wraps, again, both("tcp_timeout")];
        seen.iter_mut().zip(counts).for_each(|(seen, count)| seen.1 += count);
        drop(witness);
    }
    // A draw that leaves something out proves nothing of it.
    assert!(!is_whole || seen.iter().all(|seen| seen.1 > 20), "{seen:?}");
}

#[test]
fn a_path_that_narrows_in_mid_stream_is_followed() {
    for (seed, mtu) in [(0, 576), (0, 1_000), (1, 1_280), (1, 1_400)] {
        let mut scenario = calm(seed, [Script::sending(200_000), Script::sending(50_000)]);
        scenario.changes = vec![(2 * MS, Change::Mtu(mtu)), (40 * MS, Change::Mtu(65_535))];
        scenario.mtu = [9_000, 1_500];
        let witness = Witness(&scenario);
        let world = World::run(&scenario);
        assert_eq!(world.outcomes(0), [Some(Outcome::Finished); 2]);
        assert!(world.network.too_big > 0 && world.counter(0, "flow_path_mtu_lowered") == 1, "{mtu}");
        // Each end is told once or twice, not of every segment: what is in flight is cut anew at once.
        assert!(world.network.too_big < 60, "{} of {mtu}", world.network.too_big);
        drop(witness);
    }
}

/// The peer, or the way to it, is gone after the k-th frame, for every k.
#[test]
fn a_peer_that_vanishes_at_any_point_leaves_nothing_behind() {
    let endings = [
        [Finish::End, Finish::End],
        [Finish::End, Finish::AfterPeer],
        [Finish::AfterPeer, Finish::End],
        [Finish::Close, Finish::AfterPeer],
        [Finish::AfterPeer, Finish::Close],
        [Finish::Close, Finish::Close],
        [Finish::Abort(3_000), Finish::End],
        [Finish::End, Finish::Abort(3_000)],
    ];
    for (number, finish) in endings.into_iter().enumerate() {
        let script = |bytes, finish| Script { finish, ..Script::sending(bytes) };
        let scripts = [script(6_000, finish[0]), script(3_000, finish[1])];
        let whole = calm(number as u64, scripts);
        let witness = Witness(&whole);
        let frames = World::run(&whole).network.carried;
        assert!(frames >= 4, "{frames} frames");
        drop(witness);
        for frame in 0..frames {
            for side in [None, Some(0), Some(1)] {
                let scenario = Scenario { ends_after: Some((frame, side)), ..whole.clone() };
                let witness = Witness(&scenario);
                World::run(&scenario);
                drop(witness);
            }
        }
    }
}

#[test]
fn a_calm_connection_ends_well_in_every_way_to_end_it() {
    for (finish, outcome) in [
        ([Finish::End, Finish::End], [Outcome::Finished, Outcome::Finished]),
        ([Finish::End, Finish::AfterPeer], [Outcome::Finished, Outcome::Finished]),
        ([Finish::AfterPeer, Finish::End], [Outcome::Finished, Outcome::Finished]),
    ] {
        for bytes in [[0, 0], [1, 0], [0, 1], [100_000, 100_000], [0, 300_000]] {
            let scripts = [0, 1].map(|side| Script { finish: finish[side], ..Script::sending(bytes[side]) });
            let scenario = calm(2, scripts);
            let witness = Witness(&scenario);
            let world = World::run(&scenario);
            assert_eq!(world.outcomes(0), outcome.map(Some));
            // Nothing was lost, so nothing is sent twice, and every second segment is acknowledged at least.
            assert_eq!(world.counter(0, "tx_tcp_retransmission") + world.counter(1, "tx_tcp_retransmission"), 0);
            let least = (bytes[0] + bytes[1]) / 1_460;
            assert!(world.network.carried < 20 + 3 * least, "{} frames for {bytes:?}", world.network.carried);
            drop(witness);
        }
    }
}

#[test]
fn a_seed_decides_everything() {
    for seed in [3, 8, 21] {
        let runs = [0, 1].map(|_| {
            let world = World::run(&draw(seed));
            (world.network.carried, world.network.lost, world.now)
        });
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
}

/// Windows are opened and segments acknowledged when they are to be, not when a timer says so.
#[test]
fn a_calm_transfer_is_as_fast_as_its_window() {
    for buffer in [1_024, 2_048, 4_096, 16_384, 65_536] {
        for mtu in [[1_500, 1_500], [576, 9_000], [9_000, 576], [9_000, 9_000]] {
            for bytes in [[100_000, 0], [0, 100_000], [60_000, 60_000]] {
                let mut scenario = calm(0, bytes.map(Script::sending));
                scenario.mtu = mtu;
                for tcp in &mut scenario.tcp {
                    tcp.buffers = vec![(buffer, usize::MAX)];
                }
                let witness = Witness(&scenario);
                let world = World::run(&scenario);
                assert_eq!(world.outcomes(0), [Some(Outcome::Finished); 2]);
                let windows = bytes[0].max(bytes[1]).div_ceil(buffer) as u32;
                let time = world.now - scenario.tcp[0].time_wait;
                // A round trip is 400 µs; slow start with its put-off acknowledgements has a few of 10 ms.
                assert!(time < windows * 700 * MS / 1_000 + 30 * MS, "{buffer} {mtu:?} {bytes:?}: {time:?}");
                let again = [0, 1].map(|side| world.counter(side, "tx_tcp_retransmission"));
                assert_eq!(again, [0, 0]);
                drop(witness);
            }
        }
    }
}
