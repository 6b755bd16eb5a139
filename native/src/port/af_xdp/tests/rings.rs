use std::os::fd::{AsFd, OwnedFd};

use crate::port::af_xdp::ring::{Consumer, Producer};
use crate::port::memif::region::Region;

const AT: libc::xdp_ring_offset = libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 128, desc: 192 };

fn both_ends(slots: u32) -> (Producer<u64>, Consumer<u64>) {
    let region = Region::create(c"ring", 4096).unwrap();
    let fd: OwnedFd = region.memfd().unwrap().try_clone_to_owned().unwrap();
    (Producer::map(fd.as_fd(), 0, &AT, slots).unwrap(), Consumer::map(fd.as_fd(), 0, &AT, slots).unwrap())
}

#[test]
fn what_is_put_in_comes_out_in_order_and_a_full_ring_takes_no_more() {
    let (mut producer, mut consumer) = both_ends(8);
    let (mut put, mut taken) = (0, 0);
    for round in 1..200 {
        while producer.put(put) {
            put += 1;
        }
        let shown = consumer.available();
        assert_eq!(shown, if round == 1 { 0 } else { 7 - (round - 1) % 8 }, "nothing is seen before it is published");
        producer.publish();
        assert_eq!((consumer.available(), producer.waiting()), (8, 8));
        let count = round % 8 + 1;
        for ahead in 0..count {
            assert_eq!(consumer.peek(ahead), taken);
            taken += 1;
        }
        consumer.release(count);
        assert_eq!(producer.waiting(), 8 - count);
    }
    assert!(!producer.wants_call());
}

#[test]
fn a_ring_outside_its_memory_is_refused() {
    let region = Region::create(c"ring", 4096).unwrap();
    let odd = libc::xdp_ring_offset { consumer: 66, ..AT };
    let far = libc::xdp_ring_offset { flags: 1 << 40, ..AT };
    for at in [odd, far] {
        assert!(Producer::<u64>::map(region.memfd().unwrap(), 0, &at, 8).is_err());
    }
}
