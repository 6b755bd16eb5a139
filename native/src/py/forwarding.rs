//! Frames that only pass through: from the port they came by to where flows, bridges and handlers send them.

use std::time::Instant;

use pyo3::prelude::*;

use super::core::Core;
use super::engine::{Engine, State};
use crate::packet::{Pool, Slot};
use crate::port::Sent;

/// Takes up to `max` frames of one port. Those that nothing native finishes are appended to `frames`; how many there were.
pub fn take(state: &mut State, index: usize, _now: Instant, pool: &Pool, frames: &mut Vec<Slot>, max: usize) -> usize {
    // A handler may have closed everything.
    state.ports.get_mut(index).map_or(0, |open| open.port.receive(pool, frames, max))
}

impl Engine {
    /// Sends a frame out of a port as it is; counted by the port when it cannot.
    pub fn emit(&self, py: Python<'_>, port: usize, parts: &[&[u8]]) -> Sent {
        let sent = self.state.with(py, |state| {
            let Some(open) = state.ports.get_mut(port) else { return Sent::Down };
            open.unflushed = true;
            open.port.send(parts)
        });
        Core::schedule_flush(&self.core, py);
        sent
    }

    /// One frame through the flow table again; without a rule for it, nobody is left to decide.
    pub fn again(slf: &Py<Self>, _py: Python<'_>, _port: usize, _slot: Slot) {
        slf.get().core.get().counters.drop_undecided.bump();
    }
}
