//! The beginning of a frame, copied out of where it was received, with room before it for headers that are put on.

use crate::port::lent::Lent;

/// Bytes before the frame: IPv6, UDP and GTP-U headers (40 + 8 + 8), and a tag.
pub const ROOM: usize = 64;
/// Bytes of the frame: two tags, IPv6, an ICMPv6 error and the packet quoted in it, up to its TCP ports.
pub const SNAPSHOT: usize = 192;

/// The frame is `bytes()`, and then what was lent, from `rest` on. It begins where a cache line does.
#[derive(Clone)]
#[repr(align(64))]
pub struct Head {
    buffer: [u8; ROOM + SNAPSHOT],
    start: u16,
    end: u16,
    rest: u32,
    /// Of the whole frame, as it is now.
    len: u32,
}

impl Default for Head {
    fn default() -> Self {
        Self { buffer: [0; ROOM + SNAPSHOT], start: ROOM as u16, end: ROOM as u16, rest: 0, len: 0 }
    }
}

impl Head {
    /// Takes the beginning of `frame`.
    #[inline]
    pub fn take(&mut self, frame: Lent<'_>) {
        let count = frame.copy_head(&mut self.buffer[ROOM..]);
        (self.start, self.end) = (ROOM as u16, (ROOM + count) as u16);
        (self.rest, self.len) = (count as u32, frame.len() as u32);
    }

    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[usize::from(self.start)..usize::from(self.end)]
    }

    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[usize::from(self.start)..usize::from(self.end)]
    }

    #[inline]
    pub fn frame_len(&self) -> usize {
        self.len as usize
    }

    /// What of the frame as it was lent comes behind `bytes()`.
    #[inline]
    pub fn rest<'a>(&self, frame: Lent<'a>) -> Lent<'a> {
        frame.skip(self.rest as usize)
    }

    /// Makes room for `count` bytes at `at`, moving what stands before them to the front. False: there is no room.
    pub fn insert(&mut self, at: usize, count: usize) -> bool {
        let start = usize::from(self.start);
        if count > start || at > self.bytes().len() {
            return false;
        }
        self.buffer.copy_within(start..start + at, start - count);
        self.start -= count as u16;
        self.len += count as u32;
        true
    }

    /// Takes `count` bytes at `at` out. False: they are not all here.
    pub fn remove(&mut self, at: usize, count: usize) -> bool {
        let start = usize::from(self.start);
        if at.checked_add(count).is_none_or(|end| end > self.bytes().len()) {
            return false;
        }
        self.buffer.copy_within(start..start + at, start + count);
        self.start += count as u16;
        self.len -= count as u32;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_put_in_and_taken_out_in_front_of_the_rest() {
        let frame: Vec<u8> = (0..=255).collect();
        let lent = Lent::of(&frame);
        let mut head = Head::default();
        head.take(lent);
        assert_eq!((head.bytes().len(), head.frame_len()), (SNAPSHOT, 256));
        assert!(head.insert(2, 3));
        assert_eq!((&head.bytes()[..2], head.bytes()[5], head.frame_len()), (&[0, 1][..], 2, 259));
        assert!(head.remove(1, 5));
        assert_eq!((&head.bytes()[..2], head.frame_len()), (&[0, 3][..], 254));
        assert_eq!(head.rest(lent).len(), 256 - SNAPSHOT);
        assert!(!head.insert(0, ROOM + 3) && !head.remove(0, SNAPSHOT));
    }
}
