//! Frames over pairs of ports, with rules that say one thing.

use std::net::IpAddr;

use super::*;
use crate::packet::PoolConfig;
use crate::packet::ethernet::Mac;
use crate::packet::{ipv4, ipv6, protocol};
use crate::port::Sent;
use crate::port::pair::{PairPort, pair};
use crate::stack::HostConfig;
use crate::stack::bench::{mac, station};

const CLIENT: Mac = mac(9);

/// Says the same of all.
struct Always(Verdict);

impl Rules for Always {
    fn process(
        &mut self,
        _port: PortIndex,
        heads: &mut [Head],
        _headers: &[Headers],
        _now: Instant,
        verdicts: &mut Vec<Verdict>,
    ) {
        verdicts.extend(heads.iter().map(|_| self.0));
    }
}

struct Station {
    port: PairPort,
    /// The other end.
    far: PairPort,
    host: Host,
    bridge: Option<PortIndex>,
    has_handler: bool,
    unflushed: bool,
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

    fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }
}

/// Two ports: 10.0.0.2/24 and fd00::2/64 on station 2, 10.1.0.3/24 and fd01::3/64 on station 3.
struct World {
    stations: Vec<Station>,
    forwarder: Forwarder<Always>,
    pool: Pool,
    now: Instant,
}

impl World {
    fn new(verdict: Verdict) -> Self {
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
            let counters = Counters::default();
            Station { port, far, host, bridge: None, has_handler: false, unflushed: false, counters }
        });
        let mut forwarder = Forwarder::new(Always(verdict));
        forwarder.rules_of_all = 1;
        let pool = Pool::new(&PoolConfig { classes: vec![(2_048, 8)] }).unwrap();
        Self { stations: stations.into(), forwarder, pool, now: Instant::now() }
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
        (bytes(undecided), bytes(std::mem::take(&mut self.forwarder.accepted)))
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
fn a_bridged_port_without_rules_passes_everything_on() {
    let mut world = World::new(Verdict::Drop);
    world.forwarder.rules_of_all = 0;
    world.stations[0].bridge = Some(1);
    let frames = [vec![1], packet_v4(64, true, 8_000)];
    assert_eq!(world.take(&frames), (vec![], vec![]));
    assert_eq!(world.got(1), frames);
    world.counts(&[("forwarded", 2)]);
}

#[test]
fn what_no_rule_matches_goes_over_the_bridge_else_to_handler_or_host() {
    let frame = packet_v4(64, true, 500);
    let mut world = World::new(Verdict::Miss);
    assert_eq!(world.take(&[frame.clone()]), (vec![frame.clone()], vec![]));
    world.stations[0].bridge = Some(1);
    assert_eq!(world.take(&[frame.clone()]), (vec![], vec![]));
    assert_eq!(world.got(1), [frame]);
    world.counts(&[("forwarded", 1)]);
}

#[test]
fn accepted_frames_pass_by_the_handler() {
    let frame = packet_v4(64, true, 8);
    let mut world = World::new(Verdict::Accept);
    world.stations[0].has_handler = true;
    assert_eq!(world.take(&[frame.clone()]), (vec![], vec![frame]));
}

#[test]
fn a_frame_for_python_needs_a_handler() {
    let frame = packet_v4(64, true, 8);
    let mut world = World::new(Verdict::ToPython);
    assert_eq!(world.take(&[frame.clone()]), (vec![], vec![]));
    world.counts(&[("drop_no_handler", 1)]);
    world.stations[0].has_handler = true;
    assert_eq!(world.take(&[frame.clone()]), (vec![frame], vec![]));
}

#[test]
fn frames_go_out_of_another_port_or_of_their_own_in_order() {
    let frames: Vec<_> = (0..5).map(|number| packet_v4(64, true, 300 + number)).collect();
    for to in [0, 1] {
        let mut world = World::new(Verdict::Forward(to));
        world.take(&frames);
        assert_eq!(world.got(to.into()), frames);
        world.counts(&[("forwarded", 5)]);
    }
}

#[test]
fn dropped_frames_are_counted() {
    let mut world = World::new(Verdict::Drop);
    world.take(&[vec![1, 2, 3]]);
    world.counts(&[("drop_flow", 1)]);
}

#[test]
fn a_dry_pool_drops_what_is_for_the_host_and_the_port_counts_it() {
    let mut world = World::new(Verdict::Miss);
    let held: Vec<_> = (0..7).map(|_| world.pool.take(100)).collect();
    assert_eq!(world.take(&[packet_v4(64, true, 8), packet_v4(64, true, 8)]).0.len(), 1);
    assert!(world.stations[0].port.counters().contains(&("rx_pool_dry", 1)));
    drop(held);
}

#[test]
fn a_routed_packet_gets_link_addresses_and_a_lower_hop_limit() {
    let mut world = World::new(Verdict::Route(1));
    world.introduce("10.1.0.7");
    world.take(&[packet_v4(64, false, 400)]);
    let frame = world.got(1).remove(0);
    assert_eq!((&frame[..6], &frame[6..12]), (&CLIENT[..], &mac(3)[..]));
    assert_eq!(frame[14..], packet_v4(63, false, 400)[14..]);
    world.counts(&[("forwarded", 1)]);
}

#[test]
fn a_packet_waits_until_its_next_hop_is_known() {
    let mut world = World::new(Verdict::Route(1));
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
        let mut world = World::new(Verdict::Route(1));
        world.take(&[packet.clone()]);
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
    let mut world = World::new(Verdict::Route(1));
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
    let mut world = World::new(Verdict::Route(0));
    let mut packet = packet_v4(64, true, 8);
    packet[30..34].copy_from_slice(&[10, 0, 0, 9]);
    world.take(&[packet]);
    assert_eq!(world.got(0).remove(0)[12..14], ethernet::ARP.to_be_bytes(), "it asks for the next hop");
    world.take(&[packet_v4(1, true, 8)]);
    assert_eq!(world.got(0).remove(0)[34..36], [11, 0]);
}
