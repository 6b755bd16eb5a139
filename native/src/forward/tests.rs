//! Frames over pairs of ports, with one rule for all of them.

use std::net::IpAddr;

use super::*;
use crate::flow::Action;
use crate::packet::PoolConfig;
use crate::packet::ethernet::Mac;
use crate::packet::{ipv4, ipv6, protocol};
use crate::port::Sent;
use crate::port::pair::{PairPort, pair};
use crate::stack::HostConfig;
use crate::stack::bench::{mac, station};

const CLIENT: Mac = mac(9);

struct Station {
    port: PairPort,
    /// The other end.
    far: PairPort,
    host: Host,
    bridge: Option<PortIndex>,
    has_handler: bool,
    unflushed: bool,
    accepted: Vec<Slot>,
    counters: Counters,
}

impl Place for Station {
    fn parts(&mut self) -> (&mut dyn Port, &mut Host) {
        (&mut self.port, &mut self.host)
    }

    fn bridge(&self) -> Option<PortIndex> {
        self.bridge
    }

    fn has_handler(&self) -> bool {
        self.has_handler
    }

    fn sent(&mut self) {
        self.unflushed = true;
    }

    fn accept(&mut self, frame: Slot) {
        self.accepted.push(frame);
    }

    fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }
}

/// Two ports: 10.0.0.2/24 and fd00::2/64 on station 2, 10.1.0.3/24 and fd01::3/64 on station 3.
struct World {
    stations: Vec<Station>,
    forwarder: Forwarder,
    pool: Pool,
    now: Instant,
}

impl World {
    fn new(action: Action) -> Self {
        let second = |mut config: HostConfig| {
            config.mac = mac(3);
            for (own, address) in config.addresses.iter_mut().zip(["10.1.0.3", "fd01::3"]) {
                own.address = address.parse().unwrap();
            }
            config.gateways.clear();
            config
        };
        let stations = [station(2), second(station(3))].map(|config| {
            let (port, far) = pair(9_000, 256);
            let host = Host::seeded(config, 1);
            let (accepted, counters) = (Vec::new(), Counters::default());
            Station { port, far, host, bridge: None, has_handler: false, unflushed: false, accepted, counters }
        });
        let pool = Pool::new(&PoolConfig { classes: vec![(2_048, 8)] }).unwrap();
        let forwarder = Forwarder::new(Table::seeded(16, 1));
        let mut world = Self { stations: stations.into(), forwarder, pool, now: Instant::now() };
        world.install(Match::default(), &[action]);
        world
    }

    fn install(&mut self, matching: Match, actions: &[Action]) {
        let rule = Rule { actions: actions.to_vec(), idle: None, hard: None };
        self.forwarder.install(matching, rule, self.now).unwrap();
    }

    /// What became of frames that came by port 0: for its handler or host, and for its host alone.
    fn take(&mut self, frames: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        for frame in frames {
            assert_eq!(self.stations[0].far.send(&[frame]), Sent::Queued);
        }
        self.stations[0].far.flush();
        let mut undecided = Vec::new();
        let count = self.forwarder.take(&mut self.stations, 0, self.now, &self.pool, &mut undecided, BURST);
        assert_eq!(count, frames.len());
        for station in &mut self.stations {
            if std::mem::take(&mut station.unflushed) {
                station.port.flush();
            }
        }
        let bytes = |slots: Vec<Slot>| slots.iter().map(|slot| slot.to_vec()).collect();
        (bytes(undecided), bytes(std::mem::take(&mut self.stations[0].accepted)))
    }

    /// What the peer of a port has got.
    fn got(&mut self, index: usize) -> Vec<Vec<u8>> {
        let far = &mut self.stations[index].far;
        let burst = far.lend(BURST);
        let frames = burst.iter().map(|frame| {
            let mut bytes = vec![0; frame.len()];
            frame.copy_to(0, &mut bytes);
            bytes
        });
        let frames = frames.collect();
        far.give_back(0);
        frames
    }

    fn counts(&self, wanted: &[(&str, u64)]) {
        let counted: Vec<_> = self.stations[0].counters.list().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, wanted);
    }

    /// The neighbour of port 1 says who it is.
    fn introduce(&mut self, address: &str) {
        let Ok(IpAddr::V4(sender)) = address.parse() else { panic!() };
        let message = crate::packet::arp::Message {
            operation: crate::packet::arp::Operation::Request,
            sender_mac: CLIENT,
            sender,
            target_mac: [0; 6],
            target: [10, 1, 0, 3].into(),
        };
        let frame = [&ethernet::emit(ethernet::BROADCAST, CLIENT, ethernet::ARP)[..], &message.emit()].concat();
        let mut slot = self.pool.take(frame.len()).unwrap();
        slot.copy_from_slice(&frame);
        let station = &mut self.stations[1];
        station.host.receive(slot, self.now, &self.pool, &mut station.port);
        station.port.flush();
        self.got(1);
    }
}

fn packet_v4(ttl: u8, dont_fragment: bool, len: usize) -> Vec<u8> {
    let (source, destination) = ([10, 0, 0, 7].into(), [10, 1, 0, 7].into());
    let fragment = ipv4::Fragment { dont_fragment, ..ipv4::Fragment::WHOLE };
    let mut ip = ipv4::emit(source, destination, protocol::UDP, len, fragment);
    ip[8] = ttl;
    ip[10..12].fill(0);
    let sum = crate::packet::checksum::Sum::ZERO.bytes(&ip).finish();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&ethernet::emit(mac(2), CLIENT, ethernet::IPV4)[..], &ip, &vec![7; len]].concat()
}

fn packet_v6(hops: u8, len: usize) -> Vec<u8> {
    let (source, destination) = ("fd00::7".parse().unwrap(), "fd01::7".parse().unwrap());
    let ip = ipv6::emit(source, destination, protocol::UDP, len, hops);
    [&ethernet::emit(mac(2), CLIENT, ethernet::IPV6)[..], &ip, &vec![7; len]].concat()
}

#[test]
fn a_bridged_port_without_rules_of_its_own_passes_everything_on() {
    let mut world = World::new(Action::Drop);
    world.forwarder.remove(&Match::default(), world.now);
    world.install(Match { port: Some(1), ..Match::default() }, &[Action::Drop]);
    world.stations[0].bridge = Some(1);
    let frames = [vec![1], packet_v4(64, true, 8_000)];
    assert_eq!(world.take(&frames), (vec![], vec![]));
    assert_eq!(world.got(1), frames);
    world.counts(&[("forwarded", 2)]);
}

#[test]
fn what_no_rule_matches_goes_over_the_bridge_else_to_handler_or_host() {
    let frame = packet_v4(64, true, 500);
    let mut world = World::new(Action::Count);
    assert_eq!(world.take(std::slice::from_ref(&frame)), (vec![frame.clone()], vec![]));
    world.stations[0].bridge = Some(1);
    assert_eq!(world.take(std::slice::from_ref(&frame)), (vec![], vec![]));
    assert_eq!(world.got(1), [frame]);
    world.counts(&[("forwarded", 1)]);
}

#[test]
fn accepted_frames_pass_by_the_handler() {
    let frame = packet_v4(64, true, 8);
    let mut world = World::new(Action::Accept);
    world.stations[0].has_handler = true;
    assert_eq!(world.take(std::slice::from_ref(&frame)), (vec![], vec![frame]));
}

#[test]
fn a_frame_for_python_needs_a_handler() {
    let frame = packet_v4(64, true, 8);
    let mut world = World::new(Action::ToPython);
    assert_eq!(world.take(std::slice::from_ref(&frame)), (vec![], vec![]));
    world.counts(&[("drop_no_handler", 1)]);
    world.stations[0].has_handler = true;
    assert_eq!(world.take(std::slice::from_ref(&frame)), (vec![frame], vec![]));
}

#[test]
fn frames_go_out_of_another_port_or_of_their_own_in_order() {
    let frames: Vec<_> = (0..5).map(|number| packet_v4(64, true, 300 + number)).collect();
    for to in [0, 1] {
        let mut world = World::new(Action::Forward(to));
        world.take(&frames);
        assert_eq!(world.got(to.into()), frames);
        world.counts(&[("forwarded", 5)]);
    }
}

#[test]
fn a_reply_goes_back_with_link_addresses_exchanged() {
    let mut world = World::new(Action::Reply);
    world.take(&[packet_v4(64, true, 8), vec![0; 5]]);
    let frame = world.got(0).remove(0);
    assert_eq!((&frame[..6], &frame[6..12]), (&CLIENT[..], &mac(2)[..]));
    world.counts(&[("forwarded", 1), ("drop_flow", 1)]);
}

#[test]
fn a_frame_of_a_handler_goes_through_the_rules_again() {
    let mut world = World::new(Action::Count);
    world.stations[0].has_handler = true;
    let (frame, now) = (packet_v4(64, true, 8), world.now);
    let again = |world: &mut World| world.forwarder.again(&mut world.stations, 0, &frame, now);
    assert_eq!(again(&mut world), Again::Undecided);
    world.install(Match::default(), &[Action::Accept]);
    assert_eq!(again(&mut world), Again::Accepted);
    world.install(Match::default(), &[Action::Forward(1)]);
    assert_eq!(again(&mut world), Again::Finished);
    world.stations[1].port.flush();
    assert_eq!(world.got(1), std::slice::from_ref(&frame));
    world.install(Match::default(), &[Action::ToPython]);
    assert_eq!(again(&mut world), Again::Undecided, "not to the handler that has it");
    world.counts(&[("forwarded", 1)]);
}

#[test]
fn rules_that_end_give_the_bridge_back_its_speed() {
    let mut world = World::new(Action::Drop);
    world.forwarder.remove(&Match::default(), world.now);
    let matching = Match { port: Some(0), ..Match::default() };
    let rule = Rule { actions: vec![Action::Drop], idle: None, hard: Some(std::time::Duration::from_secs(1)) };
    assert_eq!(world.forwarder.install(matching, rule, world.now), Ok(false));
    assert_eq!(*world.forwarder.rules(&matching), 1);
    let (mut ended, later) = (Vec::new(), world.now + std::time::Duration::from_secs(2));
    world.forwarder.expire(later, 1, &mut ended);
    assert_eq!((ended.len(), *world.forwarder.rules(&matching)), (1, 0));
}

#[test]
fn dropped_frames_are_counted() {
    let mut world = World::new(Action::Drop);
    world.take(&[vec![1, 2, 3]]);
    world.counts(&[("drop_flow", 1)]);
}

#[test]
fn a_dry_pool_drops_what_is_for_the_host_and_the_port_counts_it() {
    let mut world = World::new(Action::Count);
    let held: Vec<_> = (0..7).map(|_| world.pool.take(100)).collect();
    assert_eq!(world.take(&[packet_v4(64, true, 8), packet_v4(64, true, 8)]).0.len(), 1);
    assert!(world.stations[0].port.counters().contains(&("rx_pool_dry", 1)));
    drop(held);
}

#[test]
fn a_routed_packet_gets_link_addresses_and_a_lower_hop_limit() {
    let mut world = World::new(Action::Route(1));
    world.introduce("10.1.0.7");
    world.take(&[packet_v4(64, false, 400)]);
    let frame = world.got(1).remove(0);
    assert_eq!((&frame[..6], &frame[6..12]), (&CLIENT[..], &mac(3)[..]));
    assert_eq!(frame[14..], packet_v4(63, false, 400)[14..]);
    world.counts(&[("forwarded", 1)]);
}

#[test]
fn a_packet_waits_until_its_next_hop_is_known() {
    let mut world = World::new(Action::Route(1));
    world.take(&[packet_v4(64, false, 400)]);
    assert_eq!(world.got(1).remove(0)[12..14], ethernet::ARP.to_be_bytes());
    let message = crate::packet::arp::Message {
        operation: crate::packet::arp::Operation::Reply,
        sender_mac: CLIENT,
        sender: [10, 1, 0, 7].into(),
        target_mac: mac(3),
        target: [10, 1, 0, 3].into(),
    };
    let frame = [&ethernet::emit(mac(3), CLIENT, ethernet::ARP)[..], &message.emit()].concat();
    let mut slot = world.pool.take(frame.len()).unwrap();
    slot.copy_from_slice(&frame);
    let station = &mut world.stations[1];
    station.host.receive(slot, world.now, &world.pool, &mut station.port);
    station.port.flush();
    assert_eq!(world.got(1).remove(0)[14..], packet_v4(63, false, 400)[14..]);
}

#[test]
fn who_sent_what_goes_no_further_is_told() {
    let too_long = 1_500 - 28 + 1;
    let cases = [
        (packet_v4(1, true, 8), [11, 0], "drop_route_hop_limit"),
        (packet_v6(1, 8), [3, 0], "drop_route_hop_limit"),
        (packet_v4(64, true, too_long + 8), [3, 4], "drop_route_too_long"),
        (packet_v6(64, too_long), [2, 0], "drop_route_too_long"),
    ];
    for (packet, kind, counter) in cases {
        let mut world = World::new(Action::Route(1));
        world.take(std::slice::from_ref(&packet));
        world.counts(&[(counter, 1)]);
        let error = world.got(0).remove(0);
        assert_eq!((&error[..6], &error[6..12]), (&CLIENT[..], &mac(2)[..]));
        let (at, header) = if packet[12..14] == [8, 0] { (34, 20) } else { (54, 40) };
        assert_eq!(error[at..at + 2], kind);
        assert_eq!(error[at + 8..][..header], packet[14..][..header], "it quotes the packet as it came");
        if kind == [3, 4] || kind == [2, 0] {
            assert_eq!(error[at + 6..at + 8], 1_500u16.to_be_bytes());
        }
    }
}

#[test]
fn what_a_router_may_not_pass_on_is_dropped_silently() {
    let mut to_all = packet_v4(64, true, 8);
    to_all[..6].fill(0xff);
    let mut elsewhere = packet_v4(64, true, 8);
    elsewhere[30] = 203;
    let (arp, short) = (ethernet::emit(mac(2), CLIENT, ethernet::ARP).to_vec(), packet_v4(64, true, 8)[..20].to_vec());
    let mut world = World::new(Action::Route(1));
    world.take(&[to_all, arp, short]);
    assert_eq!((world.got(0).len(), world.got(1).len()), (0, 0));
    world.counts(&[("drop_route_not_ip", 3)]);
    // Cut where that is allowed: not here.
    world.take(&[packet_v4(64, false, 1_600)]);
    assert!(world.got(0).is_empty());
    world.take(&[elsewhere]);
    world.counts(&[("drop_route_too_long", 1), ("drop_route_no_way", 1), ("drop_route_not_ip", 3)]);
    assert_eq!(world.got(0).remove(0)[34..36], [3, 0]);
}

#[test]
fn a_packet_is_routed_back_out_of_the_port_it_came_by() {
    let mut world = World::new(Action::Route(0));
    let mut packet = packet_v4(64, true, 8);
    packet[30..34].copy_from_slice(&[10, 0, 0, 9]);
    world.take(&[packet]);
    assert_eq!(world.got(0).remove(0)[12..14], ethernet::ARP.to_be_bytes(), "it asks for the next hop");
    world.take(&[packet_v4(1, true, 8)]);
    assert_eq!(world.got(0).remove(0)[34..36], [11, 0]);
}
