//! Two ports joined: every frame of one leaves by the other, without a look at it.

use std::time::{Duration, Instant};

use crate::port::Port;

/// How long frames may wait where they came in for room where they go. A peer that takes nothing for so long is no
/// reason to poll for ever: what is for it is dropped then.
const PATIENCE: Duration = Duration::from_millis(100);

/// One direction. Frames wait in the ring they came by while there is no room, so that a peer that is only slow slows
/// down the sender instead of losing frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bridge {
    full_since: Option<Instant>,
}

impl Bridge {
    /// Passes up to `most` frames on; how many there were. What `to` does not take it counts.
    #[inline]
    pub fn pass(&mut self, from: &mut dyn Port, to: &mut dyn Port, now: Instant, most: usize) -> usize {
        let room = to.room();
        let most = if room > 0 {
            self.full_since = None;
            most.min(room)
        } else if now.saturating_duration_since(*self.full_since.get_or_insert(now)) < PATIENCE {
            return 0;
        } else {
            most
        };
        let burst = from.lend(most);
        for frame in burst.in_turn() {
            to.send_lent(&[], frame);
        }
        let count = burst.len();
        from.give_back(0);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::pair::pair;

    #[test]
    fn frames_wait_for_room_and_are_dropped_when_there_is_none_for_long() {
        let start = Instant::now();
        let (mut near, mut from) = pair(1500, 64);
        let (mut to, far) = pair(1500, 4);
        (0..10u8).for_each(|number| assert_eq!(near.send(&[&[number]]), crate::port::Sent::Queued));
        near.flush();
        let mut bridge = Bridge::default();
        assert_eq!(bridge.pass(&mut from, &mut to, start, 32), 4);
        to.flush();
        assert_eq!(bridge.pass(&mut from, &mut to, start, 32), 0);
        assert_eq!(bridge.pass(&mut from, &mut to, start + PATIENCE / 2, 32), 0);
        assert!(!from.arm(), "what waits is looked at again");
        assert_eq!(bridge.pass(&mut from, &mut to, start + PATIENCE, 32), 6);
        assert!(to.counters().contains(&("tx_full", 6)) && to.counters().contains(&("tx_frames", 4)));
        drop(far);
        near.send(&[b"x"]);
        near.flush();
        assert_eq!(bridge.pass(&mut from, &mut to, start + PATIENCE, 32), 1);
        assert!(to.counters().contains(&("tx_down", 1)));
    }
}
