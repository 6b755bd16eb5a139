//! The frames of one batch, packed one behind the other, their headers, and what was decided about each.
//!
//! A frame's bytes stay what they were while the batch lasts: one that is rewritten gets a copy, which is what leaves.

use super::columns::MOST;
use super::verdict::Decision;
use crate::flow::{Head, Rewrite, edit};
use crate::packet::headers::Headers;
use crate::port::lent::{self, BURST, Lent};

/// Where frames begin: at a cache line.
const ALIGN: usize = 64;
/// Room for a full batch of ordinary frames, and one burst of the longest.
const ARENA: usize = MOST * 1536 + BURST * (lent::LONGEST + ALIGN);

#[derive(Clone, Copy)]
struct Place {
    start: u32,
    len: u32,
}

impl Place {
    fn of(self, memory: &[u8]) -> &[u8] {
        &memory[self.start as usize..][..self.len as usize]
    }
}

pub struct Store {
    arena: Box<[u8]>,
    used: usize,
    places: Vec<Place>,
    /// Of all frames, once one was asked for.
    headers: Vec<Headers>,
    decided: Vec<Option<Decision>>,
    /// Copies of rewritten frames; and where each frame's is, once one was rewritten.
    copies: Vec<u8>,
    copied: Vec<Option<Place>>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            places: Vec::with_capacity(MOST),
            headers: Vec::with_capacity(MOST),
            decided: Vec::with_capacity(MOST),
            copies: Vec::new(),
            copied: Vec::new(),
        }
    }
}

impl Store {
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// How many frames of any length there is room for.
    pub fn room(&self) -> usize {
        let longest = lent::LONGEST.next_multiple_of(ALIGN);
        (MOST - self.len()).min((self.arena.len() - self.used) / longest)
    }

    /// Takes a copy; there must be room.
    #[inline]
    pub fn push(&mut self, frame: Lent<'_>) {
        let (start, len) = (self.used, frame.len());
        frame.copy_to(0, &mut self.arena[start..start + len]);
        self.places.push(Place { start: start as u32, len: len as u32 });
        self.decided.push(None);
        self.used = (start + len).next_multiple_of(ALIGN);
    }

    pub fn clear(&mut self) {
        self.used = 0;
        self.places.clear();
        self.headers.clear();
        self.decided.clear();
        self.copies.clear();
        self.copied.clear();
        if self.copies.capacity() > ARENA {
            self.copies = Vec::new();
        }
    }

    /// A frame as it came.
    #[inline]
    pub fn bytes(&self, index: usize) -> &[u8] {
        self.places[index].of(&self.arena)
    }

    /// A frame as it leaves.
    #[inline]
    pub fn outgoing(&self, index: usize) -> &[u8] {
        match self.copy_of(index) {
            Some(place) => place.of(&self.copies),
            None => self.bytes(index),
        }
    }

    pub fn is_rewritten(&self, index: usize) -> bool {
        self.copy_of(index).is_some()
    }

    fn copy_of(&self, index: usize) -> Option<Place> {
        self.copied.get(index).copied().flatten()
    }

    /// All frames with their headers.
    pub fn read(&mut self) -> impl Iterator<Item = (&Headers, &[u8])> {
        for place in &self.places[self.headers.len()..] {
            let bytes = place.of(&self.arena);
            self.headers.push(Headers::read(bytes, bytes.len()));
        }
        self.headers.iter().zip(&self.places).map(|(headers, place)| (headers, place.of(&self.arena)))
    }

    pub fn decision(&self, index: usize) -> Option<Decision> {
        self.decided[index]
    }

    /// The first decision counts.
    #[inline]
    pub fn decide(&mut self, index: usize, decision: Decision) {
        self.decided[index].get_or_insert(decision);
    }

    pub fn decide_all(&mut self, chosen: &[bool], decision: Decision) {
        for (decided, _) in self.decided.iter_mut().zip(chosen).filter(|(_, chosen)| **chosen) {
            decided.get_or_insert(decision);
        }
    }

    /// Rewrites what leaves of one frame, if it is not decided yet. `Err`: it is not possible.
    pub fn rewrite(&mut self, index: usize, to: &Rewrite) -> Result<(), edit::Failed> {
        if self.decided[index].is_some() {
            return Ok(());
        }
        let mut head = Head::default();
        let start = self.copies.len();
        // What the edit leaves alone lies behind its head, wherever that was.
        let frame = Lent::of(self.outgoing(index));
        head.take(frame);
        let headers = Headers::read(head.bytes(), head.frame_len());
        edit::rewrite(&mut head, &headers, to)?;
        let rest = head.rest(frame).len();
        match self.copy_of(index) {
            Some(Place { start, len }) if len as usize == head.frame_len() => {
                self.copies[start as usize..][..head.bytes().len()].copy_from_slice(head.bytes());
                return Ok(());
            }
            Some(Place { start, len }) => {
                let end = (start + len) as usize;
                self.copies.extend_from_slice(head.bytes());
                self.copies.extend_from_within(end - rest..end);
            }
            None => {
                let frame = self.places[index].of(&self.arena);
                self.copies.extend_from_slice(head.bytes());
                self.copies.extend_from_slice(&frame[frame.len() - rest..]);
            }
        }
        self.copied.resize(self.places.len(), None);
        self.copied[index] = Some(Place { start: start as u32, len: (self.copies.len() - start) as u32 });
        Ok(())
    }
}
