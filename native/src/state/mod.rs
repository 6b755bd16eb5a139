//! The store's wire, from the bottom up: what shared tables say to a Redis, and what they read out of its answers.
//!
//! * [`resp`] — RESP3: commands out, replies in.
//! * [`slots`] — tables, partitions, hash slots, names of keys.
//! * [`header`] — what stands under a key: version, deadline, the last read-modify-writes, payload.

pub mod header;
pub mod resp;
pub mod slots;
