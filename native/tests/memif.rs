//! Two memif ports of ours, back to back over a socket. The clock is an argument: nothing here waits for time to pass.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libvnf_native::packet::{Pool, PoolConfig, Slot};
use libvnf_native::port::lent::Lent;
use libvnf_native::port::memif::{HANDSHAKE_TIMEOUT, Memif, MemifConfig, Role};
use libvnf_native::port::{Link, Port, Sent};

fn fresh_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("libvnf-memif-{}-{number}.sock", std::process::id()))
}

fn pool() -> Pool {
    Pool::new(&PoolConfig { classes: vec![(2048, 64), (65_536, 4)] }).unwrap()
}

fn configs(path: &PathBuf) -> (MemifConfig, MemifConfig) {
    let mut client = MemifConfig::new("client", path, Role::Client);
    client.ring_slots = 16;
    (MemifConfig::new("server", path, Role::Server), client)
}

/// Lets both act until nothing changes any more: the lock-step takes some rounds.
fn settle(one: &mut Memif, two: &mut Memif, now: Instant) {
    for _ in 0..16 {
        one.service(now);
        two.service(now);
    }
}

fn connected(configs: (MemifConfig, MemifConfig)) -> (Memif, Memif) {
    let (mut server, mut client) = (Memif::new(configs.0).unwrap(), Memif::new(configs.1).unwrap());
    settle(&mut server, &mut client, Instant::now());
    assert_eq!((server.link(), client.link()), (Link::Up, Link::Up));
    (server, client)
}

fn receive(port: &mut Memif) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    port.receive(&pool(), &mut frames, 64);
    frames.iter().map(|frame| frame.to_vec()).collect()
}

fn counter(port: &Memif, name: &str) -> u64 {
    port.counters().into_iter().find(|(found, _)| *found == name).unwrap().1
}

fn readable(port: &Memif) -> bool {
    let mut poll = libc::pollfd { fd: port.wake_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd is given.
    #[allow(unsafe_code)]
    unsafe {
        libc::poll(&raw mut poll, 1, 0) == 1
    }
}

#[test]
fn frames_cross_in_both_directions_and_the_indices_wrap() {
    const TURNS: u32 = 6000;
    const BURST: u32 = 13;
    let (mut server, mut client) = connected(configs(&fresh_path()));
    let (pool, mut frames) = (pool(), Vec::new());
    for turn in 0..TURNS {
        exchange(&mut server, &mut client, turn * BURST, BURST, &pool, &mut frames);
        exchange(&mut client, &mut server, turn * BURST, BURST, &pool, &mut frames);
    }
    let total = u64::from(TURNS * BURST);
    assert!(total > 1 << 16);
    for port in [&server, &client] {
        let counts = ["tx_frames", "rx_frames", "tx_bytes", "rx_bytes"].map(|name| counter(port, name));
        assert_eq!(counts, [total, total, 9 * total, 9 * total]);
    }
}

/// Sends `count` numbered frames and finds each of them at the other end, in order, and only after the flush.
fn exchange(sender: &mut Memif, receiver: &mut Memif, first: u32, count: u32, pool: &Pool, frames: &mut Vec<Slot>) {
    for number in first..first + count {
        assert_eq!(sender.send(&[&number.to_le_bytes(), b"frame"]), Sent::Queued);
    }
    assert_eq!(receiver.receive(pool, frames, 64), 0);
    sender.flush();
    assert_eq!(receiver.receive(pool, frames, 64), count as usize);
    for (frame, number) in frames.drain(..).zip(first..) {
        assert_eq!(&frame[..], [&number.to_le_bytes()[..], b"frame"].concat());
    }
}

#[test]
fn a_full_ring_says_so_and_goes_on_once_read() {
    let (mut server, mut client) = connected(configs(&fresh_path()));
    for number in 0..16u8 {
        assert_eq!(server.send(&[&[number; 60]]), Sent::Queued);
    }
    assert_eq!(server.send(&[b"one too many"]), Sent::Full);
    server.flush();
    assert_eq!(counter(&server, "tx_full"), 1);
    assert_eq!(receive(&mut client), (0..16u8).map(|number| vec![number; 60]).collect::<Vec<_>>());
    assert_eq!(server.send(&[b"room again"]), Sent::Queued);
    for _ in 0..16 {
        assert_eq!(client.send(&[&[7; 60]]), Sent::Queued);
    }
    assert_eq!(client.send(&[b"one too many"]), Sent::Full);
    client.flush();
    let mut frames = Vec::new();
    assert_eq!(server.receive(&pool(), &mut frames, 5), 5);
    assert_eq!(client.send(&[b"room again"]), Sent::Queued);
    assert_eq!(server.receive(&pool(), &mut frames, 64), 11);
}

#[test]
fn a_frame_longer_than_a_buffer_is_chained() {
    let (mut server, mut client) = configs(&fresh_path());
    (server.mtu, client.mtu, client.buffer_bytes) = (9000, 9000, 1024);
    let (mut server, mut client) = connected((server, client));
    let frame: Vec<u8> = (0..9018u32).map(|byte| byte as u8).collect();
    for _ in 0..20 {
        assert_eq!(client.send(&[&frame[..1000], b"", &frame[1000..5000], &frame[5000..]]), Sent::Queued);
        client.flush();
        assert_eq!(server.send(&[&frame]), Sent::Queued);
        assert_eq!(server.send(&[&frame]), Sent::Full);
        assert_eq!(server.send(&[b"short"]), Sent::Queued);
        server.flush();
        assert_eq!(receive(&mut server), std::slice::from_ref(&frame));
        assert_eq!(receive(&mut client), [frame.clone(), b"short".to_vec()]);
    }
    assert_eq!(client.send(&[&frame, b"x"]), Sent::TooLong);
}

/// What a port lends at once, copied out.
fn lent(port: &mut Memif, max: usize) -> Vec<Vec<u8>> {
    let burst = port.lend(max);
    burst
        .iter()
        .map(|frame| {
            let mut copy = vec![0; frame.len()];
            frame.copy_to(0, &mut copy);
            copy
        })
        .collect()
}

#[test]
fn what_is_lent_stays_in_the_ring_until_it_is_given_back() {
    for turn in [false, true] {
        let (mut server, mut client) = connected(configs(&fresh_path()));
        let (sender, receiver) = if turn { (&mut server, &mut client) } else { (&mut client, &mut server) };
        for number in 0..16u8 {
            assert_eq!(sender.send(&[&[number; 60]]), Sent::Queued);
        }
        sender.flush();
        assert_eq!(lent(receiver, 3), [0, 1, 2].map(|number| vec![number; 60]));
        assert_eq!(sender.send(&[b"no room"]), Sent::Full);
        receiver.give_back(0);
        for _ in 0..3 {
            assert_eq!(sender.send(&[b"room"]), Sent::Queued);
        }
        assert_eq!(sender.send(&[b"no room"]), Sent::Full);
        assert_eq!(lent(receiver, 64).len(), 13);
        receiver.give_back(2);
        sender.flush();
        assert_eq!(lent(receiver, 64), [b"room"; 3]);
        receiver.give_back(0);
        assert!(lent(receiver, 64).is_empty());
        receiver.give_back(0);
        assert_eq!(["rx_frames", "rx_pool_dry"].map(|name| counter(receiver, name)), [17, 2]);
    }
}

#[test]
fn no_more_than_a_burst_is_lent_at_once() {
    let (server, mut client) = configs(&fresh_path());
    client.ring_slots = 64;
    let (mut server, mut client) = connected((server, client));
    for number in 0..64u8 {
        client.send(&[&[number; 60]]);
    }
    client.flush();
    for first in [0, 32] {
        assert_eq!(lent(&mut server, usize::MAX), (first..first + 32).map(|number| [number; 60]).collect::<Vec<_>>());
        server.give_back(0);
    }
    assert!(lent(&mut server, 64).is_empty());
}

#[test]
fn a_frame_goes_from_ring_to_ring_behind_a_new_head() {
    let (mut left, mut near) = connected(configs(&fresh_path()));
    let (mut far, mut right) = connected(configs(&fresh_path()));
    left.send(&[b"old head", b"payload"]);
    left.send(&[b"whole"]);
    left.flush();
    let burst = near.lend(32);
    assert_eq!(far.send_lent(b"new", burst[0].skip(3)), Sent::Queued);
    assert_eq!(far.send_lent(b"", burst[1]), Sent::Queued);
    assert_eq!(far.send_lent(b"", burst[1].first(0)), Sent::TooLong);
    assert_eq!(far.send_lent(&[0; 1514], burst[1]), Sent::TooLong);
    near.give_back(0);
    far.flush();
    assert_eq!(receive(&mut right), [b"new headpayload".to_vec(), b"whole".to_vec()]);
    drop(right);
    far.service(Instant::now());
    assert_eq!(far.send_lent(b"x", Lent::EMPTY), Sent::Down);
}

#[test]
fn chained_frames_are_lent_whole_a_few_at_a_time() {
    let (mut server, mut client) = configs(&fresh_path());
    (server.mtu, client.mtu) = (9000, 9000);
    (client.buffer_bytes, client.ring_slots) = (1024, 256);
    let (mut server, mut client) = connected((server, client));
    let frames: Vec<_> = (0..20u8).map(|number| vec![number; 9000]).collect();
    for frame in &frames {
        assert_eq!(client.send_lent(b"head", Lent::of(frame)), Sent::Queued);
        assert_eq!(client.send(&[&[number(frame); 60]]), Sent::Queued);
    }
    client.flush();
    let mut seen = Vec::new();
    loop {
        let burst = lent(&mut server, 32);
        server.give_back(0);
        if burst.is_empty() {
            break;
        }
        seen.extend(burst);
    }
    let wanted = frames.iter().flat_map(|frame| [[b"head", &frame[..]].concat(), vec![number(frame); 60]]);
    assert_eq!(seen, wanted.collect::<Vec<_>>());
}

fn number(frame: &[u8]) -> u8 {
    frame[0]
}

#[test]
fn frames_longer_than_the_receivers_mtu_are_dropped_and_counted() {
    let (server, mut client) = configs(&fresh_path());
    client.mtu = 5000;
    let (mut server, mut client) = connected((server, client));
    for length in [1519, 4000] {
        client.send(&[&vec![1; length]]);
    }
    client.send(&[&[2; 1518]]);
    client.flush();
    assert_eq!(receive(&mut server), [vec![2; 1518]]);
    assert_eq!(counter(&server, "rx_too_long"), 2);
}

#[test]
fn a_dry_pool_drops_and_counts() {
    let (mut server, mut client) = connected(configs(&fresh_path()));
    for _ in 0..3 {
        client.send(&[&[1; 60]]);
    }
    client.flush();
    let small = Pool::new(&PoolConfig { classes: vec![(64, 2)] }).unwrap();
    let mut frames = Vec::new();
    assert_eq!(server.receive(&small, &mut frames, 64), 3);
    assert_eq!((frames.len(), counter(&server, "rx_pool_dry")), (2, 1));
}

#[test]
fn secrets_decide_who_gets_in() {
    let link = |theirs: Option<&str>, ours: Option<&str>| {
        let (mut server, mut client) = configs(&fresh_path());
        server.secret = ours.map(|secret| secret.as_bytes().to_vec());
        client.secret = theirs.map(|secret| secret.as_bytes().to_vec());
        let (mut server, mut client) = (Memif::new(server).unwrap(), Memif::new(client).unwrap());
        settle(&mut server, &mut client, Instant::now());
        (server.link(), client.link())
    };
    let down = |text: &str| Link::Down(text.into());
    assert_eq!(link(Some("abc123"), Some("abc123")), (Link::Up, Link::Up));
    let refused = (down("refused: Incorrect secret"), down("peer: Incorrect secret"));
    assert_eq!(link(Some("abc124"), Some("abc123")), refused);
    assert_eq!(link(None, Some("abc123")), (down("refused: Secret required"), down("peer: Secret required")));
    assert_eq!(link(Some("abc123"), None), (Link::Up, Link::Up));
}

#[test]
fn a_wrong_id_is_not_found() {
    let (server, mut client) = configs(&fresh_path());
    client.id = 9;
    let (mut server, mut client) = (Memif::new(server).unwrap(), Memif::new(client).unwrap());
    settle(&mut server, &mut client, Instant::now());
    assert_eq!(client.link(), Link::Down("peer: ID not found".into()));
}

#[test]
fn a_second_client_is_refused_and_takes_over_when_the_first_has_left() {
    let path = fresh_path();
    let (mut server, first) = connected(configs(&path));
    let mut second = Memif::new(configs(&path).1).unwrap();
    let mut now = Instant::now();
    settle(&mut server, &mut second, now);
    assert_eq!(second.link(), Link::Down("peer: Already connected".into()));
    assert_eq!((server.link(), counter(&server, "handshakes_refused")), (Link::Up, 1));
    drop(first);
    now += Duration::from_secs(1);
    settle(&mut server, &mut second, now);
    assert_eq!((server.link(), second.link(), server.generation()), (Link::Up, Link::Up, 2));
}

#[test]
fn a_client_follows_its_server_through_restarts() {
    let path = fresh_path();
    let (mut server, mut client) = connected(configs(&path));
    let mut now = Instant::now();
    for generation in 2..5 {
        drop(server);
        assert!(readable(&client));
        client.service(now);
        assert_eq!(client.link(), Link::Down("peer: Interface closed".into()));
        assert_eq!((client.send(&[b"x"]), receive(&mut client).len()), (Sent::Down, 0));
        now = client.deadline().unwrap();
        client.service(now);
        let Link::Down(reason) = client.link() else { panic!("up without a server") };
        assert!(reason.contains("cannot connect to") && reason.contains("No such file"), "{reason}");
        server = Memif::new(configs(&path).0).unwrap();
        now = client.deadline().unwrap();
        settle(&mut server, &mut client, now);
        assert_eq!((server.link(), client.link(), client.generation()), (Link::Up, Link::Up, generation));
        client.send(&[b"alive"]);
        client.flush();
        assert_eq!(receive(&mut server), [b"alive".to_vec()]);
    }
}

#[test]
fn a_server_takes_one_client_after_the_other() {
    let path = fresh_path();
    let (mut server, mut client) = connected(configs(&path));
    for generation in 2..5 {
        drop(client);
        server.service(Instant::now());
        assert_eq!(server.link(), Link::Down("peer: Interface closed".into()));
        client = Memif::new(configs(&path).1).unwrap();
        settle(&mut server, &mut client, Instant::now());
        assert_eq!((server.link(), client.link(), server.generation()), (Link::Up, Link::Up, generation));
        server.send(&[b"alive"]);
        server.flush();
        assert_eq!(receive(&mut client), [b"alive".to_vec()]);
    }
}

#[test]
fn a_client_waits_longer_after_each_failure_but_never_beyond_a_second() {
    let mut client = Memif::new(configs(&fresh_path()).1).unwrap();
    let mut waits = Vec::new();
    let mut now = client.deadline().unwrap();
    for _ in 0..8 {
        client.service(now);
        let next = client.deadline().unwrap();
        waits.push((next - now).as_millis());
        now = next;
    }
    assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
}

#[test]
fn an_armed_port_is_woken_once_frames_arrive_and_a_polling_one_is_not() {
    let (mut server, mut client) = connected(configs(&fresh_path()));
    for _ in 0..3 {
        for turn in [false, true] {
            let (sleeper, sender) = if turn { (&mut server, &mut client) } else { (&mut client, &mut server) };
            sender.send(&[b"polled"]);
            sender.flush();
            assert!(!readable(sleeper));
            assert!(!sleeper.arm(), "a frame waits");
            assert_eq!(receive(sleeper).len(), 1);
            assert!(sleeper.arm() && !readable(sleeper));
            sender.send(&[b"wake up"]);
            assert!(!readable(sleeper), "not before the flush");
            sender.flush();
            assert!(readable(sleeper));
            sleeper.disarm();
            sleeper.service(Instant::now());
            assert!(!readable(sleeper), "the edge is used up");
            assert_eq!(receive(sleeper).len(), 1);
        }
    }
    assert_eq!([counter(&server, "kicks"), counter(&client, "kicks")], [3, 3]);
}

#[test]
fn who_falls_asleep_before_the_link_is_up_is_woken_for_its_first_frame() {
    let (server, client) = configs(&fresh_path());
    let (mut server, mut client) = (Memif::new(server).unwrap(), Memif::new(client).unwrap());
    assert!(server.arm() && client.arm());
    settle(&mut server, &mut client, Instant::now());
    assert!(!readable(&server) && !readable(&client));
    client.send(&[b"x"]);
    client.flush();
    assert!(readable(&server));
}

#[test]
fn a_connection_attempt_wakes_the_server() {
    let (server, client) = configs(&fresh_path());
    let (server, mut client) = (Memif::new(server).unwrap(), Memif::new(client).unwrap());
    assert!(!readable(&server));
    client.service(Instant::now());
    assert!(readable(&server));
}

#[test]
fn a_silent_server_is_given_up_after_the_handshake_timeout() {
    let path = fresh_path();
    let (server, client) = configs(&path);
    // It listens, but nobody services it.
    let silent = Memif::new(server).unwrap();
    let mut client = Memif::new(client).unwrap();
    let now = Instant::now();
    client.service(now);
    assert_eq!(client.deadline(), Some(now + HANDSHAKE_TIMEOUT));
    client.service(now + HANDSHAKE_TIMEOUT);
    assert_eq!(client.link(), Link::Down("refused: Handshake not finished within 5 s".into()));
    assert_eq!(counter(&client, "handshakes_timed_out"), 1);
    drop(silent);
}

#[test]
fn abstract_sockets_work_and_leave_no_file() {
    let name = format!("@libvnf-test-{}", std::process::id());
    let (server, client) = configs(&PathBuf::from(&name));
    let again = server.clone();
    let (_server, _client) = connected((server, client));
    assert_eq!(Memif::new(again).err().unwrap().kind(), ErrorKind::AddrInUse);
    assert!(!PathBuf::from(&name).exists());
}

#[test]
fn the_socket_file_is_private_unique_and_removed() {
    use std::os::unix::fs::PermissionsExt;
    let path = fresh_path();
    let server = Memif::new(configs(&path).0).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = Memif::new(configs(&path).0).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains("id 0 is another port's of this process"), "{error}");
    drop(server);
    assert!(!path.exists());

    let stranger = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = Memif::new(configs(&path).0).err().unwrap();
    assert!(error.to_string().contains("another process listens there"), "{error}");
    drop(stranger);
    std::fs::remove_file(&path).unwrap();

    std::fs::write(&path, "precious").unwrap();
    let error = Memif::new(configs(&path).0).err().unwrap();
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();

    // What a killed process leaves: the file, and nobody behind it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Memif::new(configs(&path).0).unwrap());
}

#[test]
fn a_configuration_that_cannot_work_says_what_was_found_and_what_is_wanted() {
    let refusal = |change: fn(&mut MemifConfig)| {
        let mut config = configs(&fresh_path()).1;
        change(&mut config);
        let error = Memif::new(config).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.to_string()
    };
    assert!(refusal(|config| config.ring_slots = 1000).contains("ring_slots is 1000, a power of two"));
    assert!(refusal(|config| config.ring_slots = 32_768).contains("from 2 to 16384"));
    assert!(refusal(|config| config.buffer_bytes = 0).contains("buffer_bytes is 0"));
    assert!(refusal(|config| config.mtu = 0).contains("mtu is 0"));
    assert!(refusal(|config| config.secret = Some(vec![1; 25])).contains("25 bytes, 1 to 24"));
    assert!(refusal(|config| config.queues = 65).contains("queues is 65, 1 to 64"));
    assert!(refusal(|config| config.max_region_bytes_total = 1000).contains("max_region_bytes_total allows 1000"));
    let mut config = configs(&PathBuf::from("x".repeat(200))).0;
    config.name = "uplink".into();
    let error = Memif::new(config).err().unwrap().to_string();
    assert!(error.contains("\"uplink\"") && error.contains("200 bytes, 1 to 107"), "{error}");
}

/// IPv4 and UDP from that port, with a number behind the headers.
fn datagram(port: u16, number: u32) -> Vec<u8> {
    let mut frame = [&[2; 12][..], &[8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17], &[0; 36]].concat();
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[42..46].copy_from_slice(&number.to_be_bytes());
    frame
}

fn field<const N: usize>(frame: &[u8], at: usize) -> [u8; N] {
    frame[at..at + N].try_into().unwrap()
}

#[test]
fn several_queues_carry_every_flow_in_order_both_ways() {
    const FLOWS: u16 = 50;
    for (theirs, ours) in [(4, 1), (4, 3), (64, 1)] {
        let (mut server, mut client) = configs(&fresh_path());
        (client.queues, server.queues) = (theirs, ours);
        let (mut server, mut client) = (Memif::new(server).unwrap(), Memif::new(client).unwrap());
        // Each message of the lock-step is a turn.
        (0..10).for_each(|_| settle(&mut server, &mut client, Instant::now()));
        assert_eq!((server.link(), client.link()), (Link::Up, Link::Up));
        for turn in [false, true] {
            let (sender, receiver) = if turn { (&mut server, &mut client) } else { (&mut client, &mut server) };
            let mut seen = [0; FLOWS as usize];
            for number in 0..20 {
                for flow in 0..FLOWS {
                    assert_eq!(sender.send(&[&datagram(flow, number)]), Sent::Queued);
                    sender.flush();
                    if flow % 7 == 6 {
                        // By now several queues have something.
                        take(receiver, &mut seen);
                    }
                }
                while take(receiver, &mut seen) > 0 {}
            }
            assert_eq!(seen, [20; FLOWS as usize]);
        }
    }
}

/// Receives what is there, and holds each flow's number against how many of it were seen.
fn take(port: &mut Memif, seen: &mut [u32]) -> usize {
    let frames = receive(port);
    for frame in &frames {
        let (flow, number) = (u16::from_be_bytes(field(frame, 34)), u32::from_be_bytes(field(frame, 42)));
        assert_eq!(seen[usize::from(flow)], number, "flow {flow}");
        seen[usize::from(flow)] += 1;
    }
    frames.len()
}

#[test]
fn no_queue_waits_for_ever_behind_a_busy_one() {
    let (server, mut client) = configs(&fresh_path());
    (client.queues, client.ring_slots) = (2, 64);
    let (mut server, mut client) = connected((server, client));
    // Ports whose flows have different queues: the one's ring is full while the other's has room.
    let mut busy = 0;
    while client.send(&[&datagram(0, 0)]) == Sent::Queued {
        busy += 1;
    }
    let other = (1..100).find(|port| client.send(&[&datagram(*port, 0)]) == Sent::Queued).unwrap();
    client.flush();
    assert_eq!((busy, client.room()), (64, 0));
    let bursts = [receive(&mut server), receive(&mut server)];
    assert!(bursts.iter().any(|burst| *burst == [datagram(other, 0)]));
    assert_eq!(bursts.iter().map(Vec::len).max(), Some(32));
}

#[test]
fn every_queue_wakes_and_forbids_sleep() {
    let (server, mut client) = configs(&fresh_path());
    client.queues = 3;
    let (mut server, mut client) = connected((server, client));
    for port in 0..20 {
        assert!(server.arm() && !readable(&server));
        client.send(&[&datagram(port, 0)]);
        client.flush();
        assert!(readable(&server));
        server.disarm();
        server.service(Instant::now());
        assert!(!server.arm());
        assert_eq!(receive(&mut server).len() + receive(&mut server).len() + receive(&mut server).len(), 1);
    }
}

#[test]
fn interfaces_share_a_socket_by_their_ids() {
    let path = fresh_path();
    let server = |id| Memif::new(MemifConfig { id, ..configs(&path).0 });
    let client = |id| Memif::new(MemifConfig { id, ..configs(&path).1 }).unwrap();
    let mut servers: Vec<_> = [0, 7, 9].map(|id| server(id).unwrap()).into();
    assert!(server(7).err().unwrap().to_string().contains("id 7 is another port's of this process"));
    let mut clients: Vec<_> = [9, 0, 7, 8].map(client).into();
    for _ in 0..40 {
        // Now this one accepts, now that one.
        servers.rotate_left(1);
        servers.iter_mut().chain(&mut clients).for_each(|port| port.service(Instant::now()));
    }
    servers.sort_by_key(|port| !matches!(port.link(), Link::Up));
    assert!(servers.iter().all(|port| port.link() == Link::Up));
    assert_eq!(clients[3].link(), Link::Down("peer: ID not found".into()));
    for (client, id) in clients.iter_mut().zip([9u8, 0, 7]) {
        client.send(&[&[id; 60]]);
        client.flush();
    }
    let mut received: Vec<_> = servers.iter_mut().map(receive).collect();
    received.sort();
    assert_eq!(received, [0, 7, 9].map(|id| vec![vec![id; 60]]));
    // The file goes with the last of them.
    drop(servers.pop());
    assert!(path.exists());
    drop(servers);
    assert!(!path.exists());
    assert_eq!(server(7).unwrap().link(), Link::Down(format!("waiting for a client on {}", path.display())));
}
