//! The store's wire, from the bottom up: what shared tables say to a Redis, and what they read out of its answers.
//!
//! * [`resp`] — RESP3: commands out, replies in.
//! * [`slots`] — tables, partitions, hash slots, names of keys.
//! * [`header`] — what stands under a key: version, deadline, the last read-modify-writes, payload.
//! * [`script`] — what the store does in one step.
//! * [`command`] — batches cut into pieces, and what their answers say.

pub mod command;
pub mod header;
pub mod resp;
pub mod script;
pub mod slots;
