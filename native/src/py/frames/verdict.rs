//! What was decided about a frame, and doing it.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::super::core::Core;
use super::super::engine::Engine;
use crate::flow::PortIndex;
use crate::packet::ethernet;
use crate::port::{Port, Sent};

/// What is asked of ports when there are none any more.
pub const CLOSED: &str = "the ports are closed";

/// The first one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Drop,
    /// Out of that port as it is.
    Forward(PortIndex),
    /// Back out of the port it came by, link addresses exchanged.
    Reply,
    /// To the host of the port it came by.
    Accept,
    /// Through the flow table once more.
    Again,
    /// Sent by the handler itself.
    Sent,
}

/// Sends a frame back to where it came from. None: it is no frame, or was sent to a group.
pub fn reply(port: &mut dyn Port, bytes: &[u8]) -> Option<Sent> {
    let (link, rest) = bytes.split_at_checked(12).filter(|_| bytes.len() >= ethernet::HEADER)?;
    // A group address is nobody's own.
    if link[0] & 1 != 0 {
        return None;
    }
    let mut exchanged = [0; 12];
    exchanged[..6].copy_from_slice(&link[6..]);
    exchanged[6..].copy_from_slice(&link[..6]);
    Some(port.send(&[&exchanged, rest]))
}

impl Engine {
    /// The place of the port of that name.
    pub fn port_named(&self, name: &Bound<'_, PyString>) -> PyResult<PortIndex> {
        let (py, wanted) = (name.py(), name.to_str()?);
        self.core.get().check_thread()?;
        let (found, is_closed) = self.state.with(py, |state| {
            let found = state.ports.iter().position(|open| open.name == wanted);
            if let Some(index) = found {
                // Literals are interned: the same object comes again.
                state.ports[index].name_object.get_or_insert_with(|| name.clone().unbind());
            }
            (found, state.ports.is_empty())
        });
        found.map(|index| index as PortIndex).ok_or_else(|| {
            if is_closed {
                return PyValueError::new_err(CLOSED);
            }
            let names = self.names.with(py, |names| names.join(", "));
            PyValueError::new_err(format!("there is no port {wanted:?}: expected one of {names}"))
        })
    }

    /// On any thread, and when the port is long closed.
    pub fn port_name(&self, py: Python<'_>, port: usize) -> String {
        self.names.with(py, |names| names.get(port).cloned()).unwrap_or_default()
    }

    /// Does with a frame that came by `port` what was decided.
    pub fn carry_out(slf: &Py<Self>, py: Python<'_>, port: usize, decision: Decision, bytes: &[u8]) {
        let inner = slf.get();
        let counters = &inner.core.get().counters;
        match decision {
            Decision::Sent => {}
            Decision::Drop => counters.drop_verdict.bump(),
            Decision::Forward(to) => {
                inner.emit(py, usize::from(to), &[bytes]);
            }
            Decision::Reply => {
                let sent = inner.state.with(py, |state| {
                    let open = state.ports.get_mut(port)?;
                    open.unflushed = true;
                    reply(open.port.as_mut(), bytes)
                });
                match sent {
                    Some(_) => Core::schedule_flush(&inner.core, py),
                    None => counters.drop_verdict_failed.bump(),
                }
            }
            Decision::Accept => inner.accept(py, port, bytes),
            Decision::Again => Self::again(slf, py, port, bytes),
        }
    }

    /// A frame for the host of `port`, which gets it with the next delivery.
    pub fn accept(&self, py: Python<'_>, port: usize, bytes: &[u8]) {
        let core = self.core.get();
        let Some(mut slot) = core.pool.take(bytes.len()) else { return core.counters.drop_verdict_failed.bump() };
        slot.copy_from_slice(bytes);
        let wakes = self.state.with(py, |state| {
            let now = state.polling.now();
            if let Some(open) = state.ports.get_mut(port) {
                open.accepted.push(slot);
                state.pending = true;
            }
            state.wakes_for(Some(now))
        });
        if wakes {
            self.call_wake(py);
        }
    }
}
