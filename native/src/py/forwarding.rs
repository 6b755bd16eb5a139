//! Frames that only pass through, in the engine: its ports as places of `crate::forward`, and what handlers and rules ask
//! of them.

use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::core::Core;
use super::engine::{Engine, State};
use super::opened::Open;
use crate::flow::PortIndex;
use crate::forward::{Again, Counters, Forwarder, Place};
use crate::packet::{Pool, Slot};
use crate::port::lent::BURST;
use crate::port::{Port, Sent};
use crate::stack::Host;

impl Place for Open {
    #[inline]
    fn parts(&mut self) -> (&mut dyn Port, &mut Host) {
        (self.port.as_mut(), &mut self.host)
    }

    #[inline]
    fn bridge(&self) -> Option<PortIndex> {
        self.bridge
    }

    #[inline]
    fn has_handler(&self) -> bool {
        self.has_handler
    }

    #[inline]
    fn sent(&mut self) {
        self.unflushed = true;
    }

    fn accept(&mut self, frame: Slot) {
        self.accepted.push(frame);
    }

    #[inline]
    fn counters(&mut self) -> &mut Counters {
        &mut self.forwarding
    }
}

/// Takes up to `max` frames of one port; how many there were. Those that nothing native finishes are appended to `frames`.
pub fn take(state: &mut State, index: usize, now: Instant, pool: &Pool, frames: &mut Vec<Slot>, max: usize) -> usize {
    let State { ports, forwarder, .. } = state;
    forwarder.as_mut().map_or(0, |forwarder| forwarder.take(ports, index, now, pool, frames, max))
}

/// Whether frames of a port may go anywhere else than to its handler or host.
pub fn decides(engine: &Engine, py: Python<'_>, index: usize) -> bool {
    engine.state.with(py, |state| {
        let (Some(forwarder), Some(open)) = (&state.forwarder, state.ports.get(index)) else { return true };
        forwarder.decides(open, index)
    })
}

/// What came of polling without the GIL.
#[derive(Default)]
pub struct Spun {
    /// The port by which frames came that are not finished.
    pub found: Option<usize>,
    /// When the last frame was finished.
    pub worked: Option<Instant>,
}

/// Polls until frames come that are not finished here, or until `until`; while there are frames that are, until `slice`.
pub fn spin(
    ports: &mut [Open],
    forwarder: &mut Forwarder,
    until: Instant,
    slice: Instant,
    pool: &Pool,
    frames: &mut Vec<Slot>,
) -> Spun {
    let mut spun = Spun::default();
    let (mut now, mut until) = (Instant::now(), until);
    loop {
        let mut count = 0;
        for index in 0..ports.len() {
            count += forwarder.take(ports, index, now, pool, frames, BURST);
            if !frames.is_empty() || ports[index].has_accepted() {
                return Spun { found: Some(index), ..spun };
            }
        }
        if count > 0 {
            for open in ports.iter_mut().filter(|open| open.unflushed) {
                open.port.hand_over();
            }
        } else {
            (0..16).for_each(|_| std::hint::spin_loop());
        }
        now = Instant::now();
        if count > 0 {
            (spun.worked, until) = (Some(now), slice);
        }
        if now >= until {
            return spun;
        }
    }
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

    /// Runs a frame that a handler has through the rules again. What still matches none is dropped and counted.
    pub fn again(slf: &Py<Self>, py: Python<'_>, index: usize, frame: &[u8]) {
        if !Self::finds_rule(slf, py, index, frame) {
            slf.get().core.get().counters.drop_undecided.bump();
        }
    }

    /// Whether a rule matches, and has done with it what it says, a frame that a handler has or that waits for one.
    pub fn finds_rule(slf: &Py<Self>, py: Python<'_>, index: usize, frame: &[u8]) -> bool {
        let engine = slf.get();
        if !engine.state.with(py, |state| state.forwarder.as_ref().is_some_and(|forwarder| forwarder.may_match(index)))
        {
            return false;
        }
        let now = engine.now(py);
        let came_of_it = engine.state.with(py, |state| {
            let State { ports, forwarder, .. } = state;
            forwarder.as_mut().map_or(Again::Undecided, |forwarder| forwarder.again(ports, index, frame, now))
        });
        match came_of_it {
            Again::Undecided => return false,
            Again::Accepted => engine.accept(py, index, frame),
            Again::Finished => Core::schedule_flush(&engine.core, py),
        }
        true
    }

    /// Joins two ports: what no rule matches leaves by the other one.
    pub fn join(&self, py: Python<'_>, one: &Bound<'_, PyString>, two: &Bound<'_, PyString>) -> PyResult<()> {
        self.core.get().check_thread()?;
        let (left, right) = (self.port_named(one)? as PortIndex, self.port_named(two)? as PortIndex);
        if left == right {
            return Err(PyValueError::new_err(format!("a bridge from {one:?} to itself: expected two ports")));
        }
        self.state.with(py, |state| {
            for (index, other) in [(left, right), (right, left)] {
                let open = &state.ports[usize::from(index)];
                if let Some(third) = open.bridge.filter(|third| *third != other) {
                    let third = &state.ports[usize::from(third)].name;
                    let problem = format!("{:?} is bridged to {third:?} already", open.name);
                    return Err(PyValueError::new_err(problem));
                }
            }
            state.ports[usize::from(left)].bridge = Some(right);
            state.ports[usize::from(right)].bridge = Some(left);
            Ok(())
        })
    }
}
