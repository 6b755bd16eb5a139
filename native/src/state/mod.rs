//! The client of the store, from the bottom up. First the wire: what shared tables say to a Redis, and what they read out
//! of its answers.
//!
//! * [`resp`] — RESP3: commands out, replies in.
//! * [`slots`] — tables, partitions, hash slots, names of keys.
//! * [`header`] — what stands under a key: version, deadline, the last read-modify-writes, payload.
//! * [`script`] — what the store does in one step.
//! * [`bytes`] — memory of commands, used again.
//! * [`command`] — batches cut into pieces, and what their answers say.
//!
//! Then the client, without I/O and clock but for the last:
//!
//! * [`settings`], [`counters`] — what it is told, and what it counts.
//! * [`request`], [`answer`] — what the loop asks for, and what becomes of it; [`operation`] — how the one becomes the
//!   other; [`news`] — what the loop is told unasked.
//! * [`topology`] — who serves which slot; [`link`] — one connection; [`lease`] — locks that are held.
//! * [`cluster`] — the state machine over all of these.
//! * [`client`] — the thread: sockets, time, and the hand-over to the event loop; [`tls`] — its sockets' cover.

pub mod answer;
pub mod bytes;
pub mod client;
pub mod cluster;
pub mod command;
pub mod counters;
pub mod header;
pub mod lease;
pub mod link;
pub mod news;
pub mod operation;
pub mod request;
pub mod resp;
pub mod script;
pub mod settings;
pub mod slots;
pub mod tls;
pub mod topology;
