//! Peers that make a host keep things: whatever they do, what is kept follows the connections there are.

use super::network::too_big;
use super::puppet::*;
use crate::port::Sent;
use crate::stack::bench::segment::{ACK, FIN, RST, SYN, Segment};
use crate::stack::tcp::{TcpConfig, TcpEvent};

#[test]
fn who_takes_nothing_and_comes_and_goes_leaves_no_list_behind() {
    let mut stage = Stage::new();
    let mut talk = stage.open(peer(true, 4_000), own(true), 7);
    stage.bench.port.answer = Sent::Full;
    // Its echo waits first.
    stage.say(&talk.data(b"first"));
    talk.seq += 5;
    for number in 0..10_000 {
        let port = 5_000 + (number % 100) as u16;
        stage.say(&Segment::new(peer(true, port), own(true), SYN, number, 0));
        stage.say(&Segment::new(peer(true, port), own(true), RST, number + 1, 0));
    }
    assert_eq!((stage.counter("tcp_half_open"), stage.counter("tcp_connections")), (0, 1), "{:?}", stage.counted());
    let dirty = stage.bench.host.tcp.flows.dirty.len();
    assert!(dirty < 200, "{dirty} connections of one are to be looked at");
    stage.bench.port.answer = Sent::Queued;
    let echo = stage.turn().remove(0);
    assert_eq!(echo.payload, b"first");
    talk.ack = echo.next();
    stage.say(&talk.segment(ACK));
    stage.converse(&mut talk, b"goes on");
}

#[test]
fn routers_that_know_every_mtu_leave_few_to_tell_apart() {
    for is_v4 in [true, false] {
        let mut stage = Stage::new();
        for mtu in (1_280..1_500).rev() {
            let mut talk = stage.open(peer(is_v4, 4_000 + mtu as u16), own(is_v4), 7);
            let answer = stage.say_one(&talk.data(&vec![7; 1_000]));
            stage.frame(&too_big(&answer.frame(PEER, US), mtu));
            talk.seq += 1_000;
            stage.say(&talk.segment(RST));
        }
        let known = stage.bench.host.tcp.protocol.mtus();
        assert!(known <= 16, "{known} MTUs");
    }
}

#[test]
fn a_tiny_mss_does_not_make_a_segment_of_every_byte() {
    for stated in [1_u16, 20, 47] {
        let mut stage = Stage::new();
        let [high, low] = stated.to_be_bytes();
        let syn = Segment { options: vec![2, 4, high, low], ..Segment::new(peer(true, 4_000), own(true), SYN, 6, 0) };
        let ack = stage.say_one(&syn).next();
        stage.say(&Segment::new(peer(true, 4_000), own(true), ACK, 7, ack));
        let data = Segment { payload: vec![7; 960], ..Segment::new(peer(true, 4_000), own(true), ACK, 7, ack) };
        let answers = stage.say(&data);
        assert!(answers.len() >= 10, "{answers:?}");
        assert!(answers.iter().all(|answer| answer.payload.len() == 48), "{answers:?}");
    }
}

#[test]
fn who_never_takes_his_answer_does_not_fill_the_host_with_ended_connections() {
    let mut stage =
        Stage::with(TcpConfig { buffers: vec![(1_024, usize::MAX)], max_orphans: 100, ..TcpConfig::default() });
    let mut resets = 0;
    for number in 0..1_000 {
        let from = peer(true, 4_000 + number);
        let ack = stage.say_one(&Segment::new(from, own(true), SYN, 6, 0)).next();
        let closed = stage.say(&Segment { window: 0, ..Segment::new(from, own(true), ACK, 7, ack) });
        resets += closed.iter().filter(|segment| segment.has(RST) && segment.to != from).count();
        let Some(&TcpEvent::Accepted { id, .. }) = stage.events.last() else { panic!("{:?}", stage.events) };
        stage.bench.host.tcp_send(id, b"an answer");
        stage.bench.host.tcp_close(id);
        stage.flush();
        assert!(stage.counter("tcp_connections") <= 101, "{:?}", stage.counted());
    }
    assert_eq!((resets, stage.counter("tcp_orphans_evicted")), (899, 899), "{:?}", stage.counted());
    stage.pass(40 * SECOND);
    assert!(stage.is_empty(), "{:?}", stage.counted());
}

#[test]
fn who_takes_nothing_does_not_keep_the_host_awake() {
    let mut stage = Stage::new();
    let mut talk = stage.open(peer(true, 4_000), own(true), 7);
    stage.bench.port.answer = Sent::Full;
    stage.say(&talk.data(b"first"));
    let end = stage.bench.now + 5 * SECOND;
    let mut wakes = 0;
    while let Some(at) = stage.bench.host.deadline().filter(|&at| at < end) {
        stage.bench.pass(at.saturating_duration_since(stage.bench.now));
        wakes += 1;
        assert!(wakes < 600, "{wakes} wakes until {:?} before the end", end - stage.bench.now);
    }
    stage.bench.port.answer = Sent::Queued;
    stage.bench.pass(SECOND / 100);
    let echo = stage.flush().remove(0);
    assert_eq!(echo.payload, b"first");
    (talk.seq, talk.ack) = (talk.seq + 5, echo.next());
    stage.say(&talk.segment(ACK));
    stage.converse(&mut talk, b"goes on");
}

#[test]
fn many_that_are_closed_at_once_all_end_in_order() {
    let mut stage =
        Stage::with(TcpConfig { buffers: vec![(1_024, usize::MAX)], max_orphans: 10, ..TcpConfig::default() });
    let talks: Vec<_> = (0..100).map(|number| stage.open(peer(true, 4_000 + number), own(true), 7)).collect();
    for talk in &talks {
        stage.bench.host.tcp_close(talk.id);
    }
    let answers = stage.turn();
    assert!(answers.len() == 100 && answers.iter().all(|answer| answer.has(FIN)), "{answers:?}");
}
