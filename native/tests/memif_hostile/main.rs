//! Peers that lie, stall, die and break things on purpose, played by hand on raw sockets and raw memory. After each
//! test the process must hold exactly the descriptors and mappings it held before.
#![allow(unsafe_code)]

mod puppet;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libvnf_native::port::lent::BURST;
use libvnf_native::port::memif::control::{AddRing, Hello, Message, Text};
use libvnf_native::port::memif::region::Region;
use libvnf_native::port::memif::ring::{Descriptor, Index, NEXT, Ring};
use libvnf_native::port::memif::{HANDSHAKE_TIMEOUT, MAX_HALF_OPEN, Memif, MemifConfig, Role};
use libvnf_native::port::pair::pair;
use libvnf_native::port::{Link, Port, Sent};

use puppet::*;

#[test]
fn a_client_may_die_at_every_step_of_the_handshake() {
    let _alone = alone();
    let mut server = server();
    for count in 0..=5 {
        let puppet = Puppet::new();
        puppet.play(&mut server, count);
        drop(puppet);
        server.service(Instant::now());
        assert_eq!(down(&server), "peer closed the connection");
    }
    assert_eq!((counter(&server, "disconnects"), counter(&server, "handshakes_refused")), (1, 5));
    Puppet::connected(&mut server);
}

#[test]
fn a_client_may_stay_silent_at_every_step_but_not_for_long() {
    let _alone = alone();
    let mut server = server();
    for count in 0..5 {
        let puppet = Puppet::new();
        puppet.play(&mut server, count);
        let deadline = server.deadline().unwrap();
        assert!(deadline <= Instant::now() + HANDSHAKE_TIMEOUT);
        server.service(deadline);
        assert!(puppet.farewell().contains("within 5 s"));
    }
    assert_eq!((counter(&server, "handshakes_timed_out"), server.deadline()), (5, None));
    Puppet::connected(&mut server);
}

#[test]
fn half_open_connections_are_bounded() {
    let _alone = alone();
    let mut server = server();
    let crowd: Vec<_> = (0..MAX_HALF_OPEN + 3)
        .map(|_| {
            let raw = Raw::connect();
            server.service(Instant::now());
            raw
        })
        .collect();
    let greeted = crowd.iter().filter(|raw| matches!(raw.heard(), Some(Message::Hello(_)))).count();
    assert_eq!((greeted, counter(&server, "handshakes_crowded")), (MAX_HALF_OPEN, 3));
    drop(crowd);
    server.service(Instant::now());
    Puppet::connected(&mut server);
}

#[test]
fn regions_that_could_fault_or_exhaust_us_are_refused() {
    let _alone = alone();
    let mut server = server();
    let mut refusal = |bytes: u64, descriptor: OwnedFd| {
        let puppet = Puppet::new();
        puppet.play(&mut server, 1);
        puppet.refusal(&mut server, &Message::AddRegion { index: 0, bytes }, Some(&descriptor))
    };
    let sealed = libc::F_SEAL_SHRINK;
    assert!(refusal(4096, memfd(4096, 0)).contains("F_SEAL_SHRINK"));
    assert!(refusal(4096, memfd(4096, libc::F_SEAL_GROW)).contains("F_SEAL_SHRINK"));
    assert_eq!(refusal(8192, memfd(4096, sealed)), "region holds 4096 bytes, 8192 claimed");
    assert_eq!(refusal(0, memfd(4096, sealed)), "a region of 0 bytes");
    // Sparse, but its pages would become real: the cap is 256 MiB.
    assert!(refusal(1 << 30, memfd(1 << 30, sealed)).contains("at most 268435456"));
    assert!(refusal(u64::MAX, memfd(4096, sealed)).contains("at most 268435456"));
    assert_eq!(refusal(4096, eventfd()), "region is not a memfd");
    assert_eq!(refusal(4096, std::fs::File::open("/dev/zero").unwrap().into()), "region is not a memfd");
}

#[test]
fn a_peers_regions_take_no_descriptors_of_ours() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::new();
    puppet.play(&mut server, 1);
    let (memory, before) = (memfd(4096, libc::F_SEAL_SHRINK), held());
    for index in 0..=255 {
        puppet.socket.send(&Message::AddRegion { index, bytes: 4096 }, Some(&memory));
        server.service(Instant::now());
        assert_eq!(puppet.socket.heard(), Some(Message::Ack));
    }
    assert_eq!(held(), (before.0, before.1 + 256));
}

#[test]
fn without_descriptors_left_a_server_sleeps_and_accepts_later() {
    let _alone = alone();
    let mut server = server();
    let (_client, now) = (Raw::connect(), Instant::now());
    let before = limit_descriptors(0);
    server.service(now);
    let (is_awake, down, later) = (is_readable(server.wake_fd()), down(&server), server.deadline());
    limit_descriptors(before);
    assert_eq!((is_awake, later), (false, Some(now + Duration::from_secs(1))));
    assert!(down.starts_with("cannot accept a client: Too many open files"), "{down}");
    server.service(later.unwrap());
    assert!(is_readable(server.wake_fd()));
    Puppet::connected(&mut server);
}

#[test]
fn the_sum_of_regions_is_capped() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::new();
    puppet.play(&mut server, 1);
    let large = memfd(100 << 20, libc::F_SEAL_SHRINK);
    for index in 0..2 {
        puppet.socket.send(&Message::AddRegion { index, bytes: 100 << 20 }, Some(&large));
        server.service(Instant::now());
        assert_eq!(puppet.socket.heard(), Some(Message::Ack));
    }
    let third = Message::AddRegion { index: 2, bytes: 100 << 20 };
    assert!(puppet.refusal(&mut server, &third, Some(&large)).contains("beside 209715200"));
}

#[test]
fn a_mapped_region_cannot_be_truncated_under_us() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    // SAFETY: no pointers.
    let result = unsafe { libc::ftruncate((*puppet.region).memfd().unwrap().as_raw_fd(), 0) };
    assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
    // A hole can be punched; it reads as zeros.
    // SAFETY: no pointers.
    let punched = unsafe {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        libc::fallocate((*puppet.region).memfd().unwrap().as_raw_fd(), mode, 0, REGION_BYTES as i64)
    };
    assert_eq!(punched, 0);
    puppet.publish(0, &[good()]);
    assert_eq!(receive(&mut server), 1);
}

#[test]
fn rings_must_be_rings() {
    let _alone = alone();
    let mut server = server();
    let mut refusal = |change: fn(&mut AddRing), descriptor: OwnedFd| {
        let puppet = Puppet::new();
        puppet.play(&mut server, 2);
        let mut ring = puppet.add_ring(true);
        change(&mut ring);
        puppet.refusal(&mut server, &Message::AddRing(ring), Some(&descriptor))
    };
    assert!(refusal(|ring| ring.offset = REGION_BYTES as u32, eventfd()).contains("outside its region"));
    assert!(refusal(|ring| ring.offset = u32::MAX - 7, eventfd()).contains("outside its region"));
    assert!(refusal(|ring| ring.log2_slots = 14, eventfd()).contains("outside its region"));
    assert!(refusal(|ring| ring.log2_slots = 200, eventfd()).contains("2^200"));
    assert!(refusal(|ring| ring.offset = 2, eventfd()).contains("multiple of 8"));
    assert!(refusal(|ring| ring.region = 1, eventfd()).contains("region 1, 1 known"));
    assert!(refusal(|_| (), memfd(4096, 0)).contains("not an eventfd"));
    assert!(refusal(|_| (), std::fs::File::open("/dev/zero").unwrap().into()).contains("not an eventfd"));
}

#[test]
fn a_wrong_cookie_is_refused() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::new();
    puppet.play(&mut server, 4);
    // SAFETY: the ring's first field, within our own mapping.
    unsafe { puppet.region.at(0, 4).unwrap().cast::<u32>().write(0xdead_beef) };
    let refusal = puppet.refusal(&mut server, &Message::Connect { name: Text::new("") }, None);
    assert_eq!(refusal, "ring cookie 0xdeadbeef, 0x3e31f20 wanted");
}

#[test]
fn an_index_that_jumps_ends_the_connection_with_a_reason() {
    let _alone = alone();
    let mut server = server();
    for jump in [SLOTS + 1, 0x8000, u16::MAX] {
        let puppet = Puppet::connected(&mut server);
        puppet.outgoing.store(Index::Head, jump);
        assert!(!server.arm(), "there is something to do");
        assert_eq!(receive(&mut server), 0);
        assert!(puppet.farewell().contains("more than 8 slots"));
        assert!(down(&server).contains("ring Head"), "{}", down(&server));

        let puppet = Puppet::connected(&mut server);
        puppet.incoming.store(Index::Head, jump);
        assert_eq!(server.send(&[b"frame"]), Sent::Down);
        assert!(puppet.farewell().contains("more than 8 slots"));
    }
    assert_eq!((counter(&server, "violations"), counter(&server, "tx_down")), (6, 3));
}

#[test]
fn bad_descriptors_are_counted_and_good_ones_between_them_pass() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    let end = REGION_BYTES as u32;
    let bad = [
        Descriptor { length: 0, ..good() },
        Descriptor { region: 1, ..good() },
        Descriptor { region: u16::MAX, ..good() },
        Descriptor { offset: end - 59, ..good() },
        Descriptor { offset: u32::MAX, ..good() },
        Descriptor { length: u32::MAX, ..good() },
    ];
    puppet.publish(0, &bad);
    assert_eq!((receive(&mut server), counter(&server, "rx_bad_descriptor")), (0, 6));
    let mixed = [good(), bad[0], Descriptor { offset: end - 60, ..good() }, Descriptor { length: 1519, ..good() }];
    puppet.publish(6, &mixed);
    assert_eq!(receive(&mut server), 2);
    assert_eq!((counter(&server, "rx_bad_descriptor"), counter(&server, "rx_too_long")), (7, 1));
    assert_eq!((puppet.outgoing.load(Index::Tail), server.link()), (10, Link::Up));
}

#[test]
fn chains_without_end_or_with_a_lie_in_them_are_dropped_whole() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    let chained = Descriptor { flags: NEXT, ..good() };
    puppet.publish(0, &[chained; SLOTS as usize]);
    assert_eq!((receive(&mut server), counter(&server, "rx_bad_chain")), (0, 1));
    puppet.publish(8, &[chained, Descriptor { length: 0, ..chained }, good(), good()]);
    assert_eq!((receive(&mut server), counter(&server, "rx_bad_chain")), (1, 2));
    puppet.publish(12, &[Descriptor { length: 1500, ..chained }, good(), chained, chained, good()]);
    assert_eq!((receive(&mut server), counter(&server, "rx_too_long")), (1, 1));
    assert_eq!((counter(&server, "rx_bytes"), puppet.outgoing.load(Index::Tail)), (60 + 180, 17));
    // A flag that its writer forgets to clear (DPDK 22.11) is cleared for it.
    assert_eq!(puppet.outgoing.descriptor(14).flags, 0);
}

/// Rewrites rings and buffers until `over`: mostly what could be, so that the connection lasts, now and then anything.
fn rewrite(region: &Arc<Region>, mut random: u32, over: &AtomicBool) {
    let rings = [0, INCOMING_AT].map(|offset| Ring::new(region, offset, LOG2_SLOTS).unwrap());
    let mut next = || {
        // Marsaglia's xorshift32.
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    while !over.load(Ordering::Relaxed) {
        let (ring, any) = (&rings[(next() & 1) as usize], next());
        let length = [0, 1, 60, 1518, 1519, 5000, u32::MAX][next() as usize % 7];
        let offset = [0, BUFFERS_AT, REGION_BYTES as u32 - 60, any][next() as usize % 4];
        let (flags, region) = ((next() & 1) as u16, u16::from(next().is_multiple_of(16)));
        ring.set_descriptor(any as u16, Descriptor { flags, region, length, offset });
        let head = if any.is_multiple_of(512) { next() as u16 } else { (any >> 16) as u16 % (SLOTS + 1) };
        ring.store(Index::Head, ring.load(Index::Tail).wrapping_add(head));
    }
}

#[test]
fn memory_that_is_rewritten_all_the_time_harms_nobody() {
    let _alone = alone();
    let mut server = server();
    let (mut near, mut far) = pair(1500, 64);
    let mut passed = 0;
    for round in 1..=40 {
        let puppet = Puppet::connected(&mut server);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| rewrite(&puppet.region, round, &over));
            for _ in 0..2000 {
                for frame in server.lend(BURST).iter() {
                    assert!((1..=1518).contains(&frame.len()));
                    near.send_lent(b"", *frame);
                }
                server.give_back(0);
                near.flush();
                for frame in far.lend(BURST).iter() {
                    server.send_lent(b"back", *frame);
                    passed += 1;
                }
                far.give_back(0);
                server.flush();
            }
            over.store(true, Ordering::Relaxed);
        });
        drop(puppet);
        server.service(Instant::now());
    }
    assert!(passed > 0 && counter(&server, "connects") == counter(&server, "disconnects"));
    Puppet::connected(&mut server);
}

#[test]
fn an_empty_buffer_outside_its_region_ends_the_connection() {
    let _alone = alone();
    let mut server = server();
    for lie in [
        Descriptor { region: 7, ..good() },
        Descriptor { offset: u32::MAX - 10, ..good() },
        Descriptor { length: u32::MAX, ..good() },
        Descriptor { length: 0, ..good() },
    ] {
        let puppet = Puppet::connected(&mut server);
        puppet.incoming.set_descriptor(0, lie);
        puppet.incoming.store(Index::Head, 1);
        assert_eq!(server.send(&[b"frame"]), Sent::Down);
        assert!(puppet.farewell().contains("outside"));
    }
    // Buffers of one byte each are silly, not false: a frame is spread over what there is.
    let puppet = Puppet::connected(&mut server);
    for index in 0..SLOTS {
        puppet
            .incoming
            .set_descriptor(index, Descriptor { length: 1, offset: BUFFERS_AT + u32::from(index), ..good() });
    }
    puppet.incoming.store(Index::Head, SLOTS);
    assert_eq!(server.send(&[b"12345"]), Sent::Queued);
    assert_eq!(server.send(&[b"12345"]), Sent::Full);
    assert_eq!(server.send(&[b"123456789"]), Sent::Full);
    server.flush();
    let flags: Vec<_> = (0..5).map(|index| puppet.incoming.descriptor(index).flags).collect();
    assert_eq!((flags, puppet.incoming.load(Index::Tail)), (vec![NEXT, NEXT, NEXT, NEXT, 0], 5));
}

#[test]
fn a_full_eventfd_made_blocking_does_not_hang_the_sender() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    let fd = puppet.incoming_eventfd.as_raw_fd();
    // SAFETY: eight readable bytes; F_SETFL takes a number.
    unsafe {
        assert_eq!(libc::write(fd, (u64::MAX - 1).to_ne_bytes().as_ptr().cast(), 8), 8);
        assert_eq!(libc::fcntl(fd, libc::F_SETFL, 0), 0);
    }
    for index in 0..1000u16 {
        puppet.incoming.set_descriptor(index, good());
        puppet.incoming.store(Index::Head, index + 1);
        assert_eq!(server.send(&[b"frame"]), Sent::Queued);
        server.flush();
    }
    assert_eq!(counter(&server, "tx_frames"), 1000);
}

#[test]
fn wake_ups_come_through_an_eventfd_that_is_never_read_and_may_block() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    // SAFETY: F_SETFL takes a number.
    assert_eq!(unsafe { libc::fcntl(puppet.outgoing_eventfd.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    for index in 0..100 {
        assert!(server.arm());
        assert!(puppet.outgoing.wants_kick());
        puppet.publish(index, &[good()]);
        // SAFETY: eight readable bytes.
        unsafe { libc::write(puppet.outgoing_eventfd.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8) };
        assert!(is_readable(server.wake_fd()));
        server.disarm();
        assert!(!puppet.outgoing.wants_kick());
        server.service(Instant::now());
        assert_eq!(receive(&mut server), 1);
    }
}

#[test]
fn descriptors_where_none_belong_are_closed_however_they_come() {
    let _alone = alone();
    let mut server = server();
    let spare = eventfd();
    let many = vec![spare.as_fd(); 253];
    let long = [1u8; 300];
    let cases: [(&[u8], &[BorrowedFd<'_>], &str); 6] = [
        (&Message::Ack.emit(), &many[..1], "ACK with 1 descriptors, 0 wanted"),
        (&Message::Ack.emit(), &many, "ACK with 253 descriptors, 0 wanted"),
        (&Message::Ack.emit(), &[], "ACK while Greeted"),
        (&long, &many[..2], "a control message of 129 bytes, 128 wanted"),
        (&long[..5], &many[..2], "a control message of 5 bytes, 128 wanted"),
        (&[9; 128], &many[..2], "control message type 2313, 1 to 8 wanted"),
    ];
    for (bytes, descriptors, wanted) in cases {
        let puppet = Puppet::new();
        puppet.play(&mut server, 0);
        puppet.socket.send_raw(bytes, descriptors, true);
        server.service(Instant::now());
        assert_eq!(puppet.farewell(), wanted);
    }
    for (step, count) in [(1, 0), (1, 2), (2, 0), (3, 2)] {
        let puppet = Puppet::new();
        puppet.play(&mut server, step);
        let (message, _) = puppet.steps().swap_remove(step);
        puppet.socket.send_raw(&message.emit(), &many[..count], false);
        server.service(Instant::now());
        assert!(puppet.farewell().contains(&format!("with {count} descriptors, 1 wanted")));
    }
    // Credentials beside the descriptor are no reason to refuse.
    let puppet = Puppet::new();
    puppet.play(&mut server, 1);
    puppet.socket.send_raw(&puppet.add_region().emit(), &[(*puppet.region).memfd().unwrap()], true);
    server.service(Instant::now());
    assert_eq!(puppet.socket.heard(), Some(Message::Ack));
}

#[test]
fn talking_out_of_turn_while_connected_ends_the_connection() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    let region = (*puppet.region).memfd().unwrap().try_clone_to_owned().unwrap();
    let refusal = puppet.refusal(&mut server, &puppet.add_region(), Some(&region));
    assert_eq!(
        (refusal.as_str(), down(&server).as_str()),
        ("ADD_REGION while connected", "refused: ADD_REGION while connected")
    );
}

#[test]
fn a_client_survives_a_server_that_lies_about_frames() {
    let _alone = alone();
    let listener = Raw::listen();
    {
        let (mut client, socket, region) = client_of_a_puppet_server(&listener);
        let region = Arc::new(region);
        let incoming = Ring::new(&region, Ring::bytes(LOG2_SLOTS) as u32, LOG2_SLOTS).unwrap();
        assert_eq!(incoming.load(Index::Head), SLOTS, "all buffers are offered");
        let offered = incoming.descriptor(0);
        assert_eq!((offered.flags, offered.region, offered.length), (0, 0, 2048));
        // Where the server says a buffer is does not matter to its owner; how long the frame is does.
        incoming.set_descriptor(0, Descriptor { region: 9, offset: u32::MAX, length: 60, flags: 0 });
        for (index, length) in [(1, 0), (2, 2049), (3, u32::MAX)] {
            incoming.set_descriptor(index, Descriptor { length, ..offered });
        }
        incoming.store(Index::Tail, 4);
        assert_eq!((receive(&mut client), counter(&client, "rx_bad_descriptor")), (1, 3));
        assert_eq!((incoming.load(Index::Head), incoming.descriptor(0)), (SLOTS + 4, offered));
        incoming.store(Index::Tail, 4 + SLOTS + 1);
        assert_eq!(receive(&mut client), 0);
        assert!(down(&client).contains("ring Tail at 13"), "{}", down(&client));
        assert!(matches!(socket.heard(), Some(Message::Disconnect { .. })));
        assert!(client.deadline().is_some(), "it will connect again");
    }
    {
        let (mut client, _socket, region) = client_of_a_puppet_server(&listener);
        let outgoing = Ring::new(&Arc::new(region), 0, LOG2_SLOTS).unwrap();
        assert_eq!(client.send(&[b"frame"]), Sent::Queued);
        client.flush();
        // It claims to have read more than was written.
        outgoing.store(Index::Tail, SLOTS + 1);
        let sent: Vec<_> = (0..SLOTS).map(|_| client.send(&[b"frame"])).collect();
        assert_eq!(sent.last(), Some(&Sent::Down));
        assert!(down(&client).contains("ring Tail at 9"), "{}", down(&client));
        assert_eq!(counter(&client, "tx_lost"), u64::from(SLOTS) - 1);
    }
    remove_socket(&path());
}

#[test]
fn a_client_survives_a_server_that_cannot_shake_hands() {
    let _alone = alone();
    let listener = Raw::listen();
    let refused = |messages: &[Message]| {
        let mut client = Memif::new(MemifConfig::new("client", path(), Role::Client)).unwrap();
        client.service(client.deadline().unwrap());
        let socket = listener.accept();
        for message in messages {
            socket.send(message, None);
        }
        client.service(Instant::now());
        down(&client)
    };
    let versions = |min_version, max_version| match hello() {
        Message::Hello(hello) => Message::Hello(Hello { min_version, max_version, ..hello }),
        other => other,
    };
    assert_eq!(refused(&[Message::Ack]), "refused: ACK while AwaitingHello");
    assert_eq!(refused(&[versions(0x0100, 0x0101)]), "refused: Versions 0x0100 to 0x0101, 0x0200 wanted");
    assert_eq!(refused(&[hello(), hello()]), "refused: HELLO while AwaitingAdmission");
    assert_eq!(refused(&[hello(), Message::disconnect("Go away")]), "peer: Go away");
    assert_eq!(
        refused(&[hello(), Message::Connected { name: Text::new("") }]),
        "refused: CONNECTED while AwaitingAdmission"
    );
    remove_socket(&path());
}
