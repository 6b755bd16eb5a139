//! What every port promises, asked of every kind of port: `Port` of src/port/mod.rs is what is tested, a new kind is a rig
//! in rigs.rs and a line at the end of this file. Nothing waits for time to pass, but for a kernel that is busy.

mod rigs;
mod wire;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use libvnf_native::packet::{Pool, PoolConfig};
use libvnf_native::port::lent::{BURST, Lent};
use libvnf_native::port::{Link, Port, Sent};

use rigs::{Far, Frames, LONGEST, Rig, frame, frames};

/// A rig whose far side has given these already.
type Make = fn(&[Vec<u8>]) -> Rig;

/// Descriptors are counted: one port at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn pool() -> Pool {
    Pool::new(&PoolConfig { classes: vec![(2048, 512)] }).unwrap()
}

fn counter(port: &dyn Port, name: &str) -> u64 {
    port.counters().into_iter().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no {name}")).1
}

/// Tries again until it is so; a machine may be busy.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let last = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < last, "after 10 s: not {what}");
        std::thread::yield_now();
    }
}

fn readable(port: &dyn Port) -> bool {
    let mut poll = libc::pollfd { fd: port.wake_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd is given.
    #[allow(unsafe_code)]
    unsafe {
        libc::poll(&raw mut poll, 1, 0) == 1
    }
}

fn bytes_of(frame: Lent<'_>) -> Vec<u8> {
    let mut bytes = vec![0; frame.len()];
    frame.copy_to(0, &mut bytes);
    bytes
}

/// What it lends at once, given back.
fn lent(port: &mut dyn Port, max: usize) -> Frames {
    let burst = port.lend(max);
    assert!(burst.len() <= max.min(BURST));
    let frames = burst.iter().map(|frame| bytes_of(*frame)).collect();
    port.give_back(0);
    frames
}

fn arrived(far: &mut dyn Far, count: usize) -> Frames {
    let mut frames = far.take();
    until("all there", || {
        frames.extend(far.take());
        frames.len() >= count
    });
    frames
}

fn sum(frames: &[Vec<u8>]) -> u64 {
    frames.iter().map(|frame| frame.len() as u64).sum()
}

fn received_frames_are_in_order_and_counted(make: Make) {
    let given = frames(100);
    let (mut rig, pool, mut slots) = (make(&given), pool(), Vec::new());
    until("received", || {
        rig.port.receive(&pool, &mut slots, 32);
        slots.len() >= given.len()
    });
    assert_eq!(slots.iter().map(|slot| slot.to_vec()).collect::<Frames>(), given);
    assert_eq!((counter(&*rig.port, "rx_frames"), counter(&*rig.port, "rx_bytes")), (100, sum(&given)));
}

fn lent_frames_are_those_that_are_received(make: Make) {
    let given = frames(100);
    let (mut rig, mut seen) = (make(&given), Vec::new());
    let mut sizes = [1, 7, 100, 3].into_iter().cycle();
    until("lent", || {
        seen.extend(lent(&mut *rig.port, sizes.next().unwrap()));
        seen.len() >= given.len()
    });
    assert_eq!(seen, given);
    assert_eq!((counter(&*rig.port, "rx_frames"), counter(&*rig.port, "rx_bytes")), (100, sum(&given)));
    assert!(lent(&mut *rig.port, 32).is_empty());
}

fn frames_without_a_slot_are_counted_as_such(make: Make) {
    let given = frames(40);
    let mut rig = make(&given);
    let mut seen = 0;
    until("lent", || {
        let count = rig.port.lend(8).len();
        rig.port.give_back(count / 2);
        seen += count;
        seen == given.len()
    });
    let (received, dry) = (counter(&*rig.port, "rx_frames"), counter(&*rig.port, "rx_pool_dry"));
    assert!(received + dry == 40 && dry > 0 && received >= dry, "{received} and {dry}");
    let mut rig = make(&given);
    let (dry, mut slots, mut taken) = (Pool::new(&PoolConfig { classes: vec![(2048, 3)] }).unwrap(), Vec::new(), 0);
    until("taken", || {
        taken += rig.port.receive(&dry, &mut slots, 64);
        taken == given.len()
    });
    assert_eq!((slots.len(), counter(&*rig.port, "rx_frames"), counter(&*rig.port, "rx_pool_dry")), (3, 3, 37));
}

fn sent_frames_leave_in_order_with_the_flush(make: Make) {
    let mut rig = make(&[]);
    let wanted = frames(100);
    for frame in &wanted {
        let (head, rest) = frame.split_at(frame.len() / 3);
        assert_eq!(rig.port.send(&[head, b"", rest]), Sent::Queued);
    }
    assert!(rig.far.take().is_empty(), "sent before the flush");
    rig.port.flush();
    assert_eq!(arrived(&mut *rig.far, wanted.len()), wanted);
    assert_eq!((counter(&*rig.port, "tx_frames"), counter(&*rig.port, "tx_bytes")), (100, sum(&wanted)));
    rig.port.flush();
    assert!(rig.far.take().is_empty());
}

fn what_is_handed_over_arrives_once(make: Make) {
    let mut rig = make(&[]);
    let wanted = frames(20);
    for frame in &wanted {
        assert_eq!(rig.port.send(&[frame]), Sent::Queued);
        rig.port.hand_over();
    }
    rig.port.flush();
    assert_eq!(arrived(&mut *rig.far, wanted.len()), wanted);
    assert!(rig.far.take().is_empty());
}

fn what_was_lent_is_sent_like_any_frame(make: Make) {
    let mut rig = make(&[]);
    let wanted = frames(100);
    for (number, frame) in wanted.iter().enumerate() {
        let (head, rest) = frame.split_at(if number % 3 == 0 { 0 } else { 42 });
        assert_eq!(rig.port.send_lent(head, Lent::of(rest)), Sent::Queued);
    }
    rig.port.flush();
    assert_eq!(arrived(&mut *rig.far, wanted.len()), wanted);
    assert_eq!((counter(&*rig.port, "tx_frames"), counter(&*rig.port, "tx_bytes")), (100, sum(&wanted)));
}

fn a_frame_passes_from_port_to_port_without_another_buffer(make: Make) {
    let given = frames(64);
    let (mut from, mut to, mut passed) = (make(&given), make(&[]), 0);
    until("passed on", || {
        let burst = from.port.lend(32);
        for frame in burst.iter() {
            assert_eq!(to.port.send_lent(&[], *frame), Sent::Queued);
            passed += 1;
        }
        to.port.flush();
        from.port.give_back(0);
        passed == given.len()
    });
    assert_eq!(arrived(&mut *to.far, given.len()), given);
}

fn the_longest_frame_passes_and_longer_and_empty_ones_are_refused(make: Make) {
    let mut rig = make(&[frame(1, LONGEST - 4)]);
    let mut seen = Vec::new();
    until("received", || {
        seen.extend(lent(&mut *rig.port, 8));
        !seen.is_empty()
    });
    assert_eq!(seen, [frame(1, LONGEST - 4)]);
    let long = frame(2, LONGEST + 1);
    assert_eq!(rig.port.send(&[&long]), Sent::TooLong);
    assert_eq!(rig.port.send(&[]), Sent::TooLong);
    assert_eq!(rig.port.send(&[b"", b""]), Sent::TooLong);
    assert_eq!(rig.port.send_lent(&long[..9], Lent::of(&long[9..])), Sent::TooLong);
    assert_eq!(rig.port.send_lent(&[], Lent::EMPTY), Sent::TooLong);
    let jumbo = vec![0; 70_000];
    assert_eq!(rig.port.send_lent(&[], Lent::of(&jumbo)), Sent::TooLong);
    assert_eq!((counter(&*rig.port, "tx_too_long"), counter(&*rig.port, "tx_frames")), (6, 0));
    assert_eq!(rig.port.send(&[&frame(3, LONGEST - 4)]), Sent::Queued);
    rig.port.flush();
    assert_eq!(arrived(&mut *rig.far, 1), [frame(3, LONGEST - 4)]);
}

fn as_many_as_there_is_room_for_are_taken_and_more_are_counted(make: Make) {
    let mut rig = make(&[]);
    let room = rig.port.room();
    assert!(room >= 64);
    let frame = frame(1, 60);
    for number in 0..room {
        assert_eq!(rig.port.send(&[&frame]), Sent::Queued, "frame {number} of {room}");
    }
    let mut refused = 0;
    while rig.port.send(&[&frame]) == Sent::Full {
        refused += 1;
        if refused == 3 {
            break;
        }
    }
    assert_eq!(counter(&*rig.port, "tx_full"), refused);
    assert_eq!(refused, 3, "room() said {room}, and more found room");
    assert_eq!(rig.port.room(), 0);
    rig.port.flush();
    assert_eq!(arrived(&mut *rig.far, room).len(), room);
    until("room again", || rig.port.room() > 0);
}

fn an_armed_port_is_woken_and_a_waiting_frame_forbids_sleep(make: Make) {
    let mut rig = make(&[]);
    if !rig.wakes {
        return;
    }
    rig.port.service(Instant::now());
    until("calm", || {
        rig.port.service(Instant::now());
        let is_calm = rig.port.arm() && !readable(&*rig.port);
        if !is_calm {
            rig.port.disarm();
            lent(&mut *rig.port, 32);
        }
        is_calm
    });
    for number in 0..3 {
        rig.far.give(&[frame(number, 60)]);
        until("woken", || readable(&*rig.port));
        rig.port.disarm();
        rig.port.service(Instant::now());
        assert!(!rig.port.arm(), "slept on a waiting frame");
        assert_eq!(lent(&mut *rig.port, 8), [frame(number, 60)]);
        until("calm again", || {
            rig.port.service(Instant::now());
            rig.port.arm() && !readable(&*rig.port)
        });
    }
    rig.port.disarm();
}

fn a_port_without_its_far_side_says_so_and_drops(make: Make) {
    let Rig { mut port, far, scratch, .. } = make(&[]);
    assert_eq!((port.link(), port.generation()), (Link::Up, 1));
    let lost = frame(0, 60);
    assert_eq!(port.send(&[&lost]), Sent::Queued);
    if !far.leave() {
        return;
    }
    until("told", || {
        port.service(Instant::now());
        port.link() != Link::Up
    });
    assert!(matches!(port.link(), Link::Down(why) if !why.is_empty()));
    assert_eq!(port.send(&[&lost]), Sent::Down);
    assert_eq!(port.send_lent(&lost[..7], Lent::of(&lost[7..])), Sent::Down);
    port.flush();
    port.hand_over();
    assert!(lent(&mut *port, 8).is_empty());
    assert_eq!(port.receive(&pool(), &mut Vec::new(), 8), 0);
    assert_eq!((counter(&*port, "tx_down"), counter(&*port, "tx_frames"), port.room()), (2, 0, usize::MAX));
    // It can be slept on all the same.
    until("calm", || {
        port.service(Instant::now());
        port.arm()
    });
    port.disarm();
    drop((port, scratch));
}

fn a_dropped_port_leaves_nothing(make: Make) {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let mut rig = make(&frames(5));
    lent(&mut *rig.port, 2);
    rig.port.send(&[&frame(1, 60)]);
    let Rig { port, far, made, .. } = rig;
    assert!(made.as_ref().is_none_or(|is_there| is_there()));
    drop(port);
    assert!(made.is_none_or(|is_there| !is_there()));
    drop(far);
    until("closed", || descriptors() == before);
}

const PROMISES: [fn(Make); 12] = [
    received_frames_are_in_order_and_counted,
    lent_frames_are_those_that_are_received,
    frames_without_a_slot_are_counted_as_such,
    sent_frames_leave_in_order_with_the_flush,
    what_is_handed_over_arrives_once,
    what_was_lent_is_sent_like_any_frame,
    a_frame_passes_from_port_to_port_without_another_buffer,
    the_longest_frame_passes_and_longer_and_empty_ones_are_refused,
    as_many_as_there_is_room_for_are_taken_and_more_are_counted,
    an_armed_port_is_woken_and_a_waiting_frame_forbids_sleep,
    a_port_without_its_far_side_says_so_and_drops,
    a_dropped_port_leaves_nothing,
];

fn keeps_every_promise(make: Make) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    PROMISES.iter().for_each(|promise| promise(make));
}

/// One that needs network interfaces, and so root.
fn keeps_every_promise_in_a_namespace(make: Make) {
    if wire::alone() {
        keeps_every_promise(make);
    }
}

macro_rules! ports {
    ($($name:ident: $how:ident;)+) => { $(#[test] fn $name() { $how(rigs::$name); })+ };
}

ports! {
    paired: keeps_every_promise;
    captured: keeps_every_promise;
    queued: keeps_every_promise;
    memif_server: keeps_every_promise;
    memif_client: keeps_every_promise;
    memif_of_several_queues: keeps_every_promise;
    memif_of_small_buffers: keeps_every_promise;
    pcap_to_pcap: keeps_every_promise;
    pcap_to_pcapng: keeps_every_promise;
    tap_of_frames: keeps_every_promise_in_a_namespace;
    tap_of_several_queues: keeps_every_promise_in_a_namespace;
    tap_of_packets: keeps_every_promise_in_a_namespace;
    af_xdp_native: keeps_every_promise_in_a_namespace;
    af_xdp_generic: keeps_every_promise_in_a_namespace;
}
