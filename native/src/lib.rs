//! The data plane of libvnf.
//!
//! From the bottom up:
//!
//! * [`packet`] — pooled buffers and checked views of protocol headers. Bytes in, values out; no I/O.
//! * [`framing`] — where one message of a byte stream ends. Pure.
//! * [`port`] — where frames enter and leave: memif, AF_XDP, TAP and captures; a pair and a queue in memory for tests.
//! * [`flow`] — what is done with packets that match: matches, actions, their edits. Sans-I/O.
//! * [`forward`] — the way of frames from port to port, by flows, bridges and routes.
//! * [`stack`] — one host's ARP/NDP, ICMP and UDP on a port. Sans-I/O: frames and the time come in as arguments.
//! * [`state`] — the client of the store behind shared tables.
//! * [`splice`] — joins two kernel sockets without touching their bytes.
//! * [`load`] — the load generator and responder behind `vnf load`.
//! * `py` — the Python module `libvnf._native` (feature `python`): the only place that knows Python.
//!
//! Everything but `py` builds and tests without Python.

pub mod flow;
pub mod forward;
pub mod framing;
pub mod load;
pub mod packet;
pub mod port;
pub mod splice;
pub mod stack;
pub mod state;

#[cfg(feature = "python")]
mod py;
