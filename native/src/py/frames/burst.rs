//! A burst of frames, one by one to the handler. `dispatch.rs` says what that means. Here is the same, but that what one
//! frame leaves behind untouched serves the next one: the request, the shell, the buffer.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::super::connection::{Connection, Phase};
use super::super::core::Core;
use super::super::coroutine::{begin_coroutine, is_coroutine};
use super::super::dispatch::{Done, Incoming, new_request, retire_request, vectorcall};
use super::super::engine::Engine;
use super::super::packet::Body;
use super::super::request::Request;
use super::super::tracing;
use super::{Frame, Handler};
use crate::packet::Slot;
use crate::port::lent::BURST;

/// Frames handled before what was sent meanwhile is handed over: the peer can begin while we go on.
const HAND_OVER: usize = 8;
/// Buffers that wait for the next frames instead of going back to the pool.
const SPARE: usize = 2 * BURST;

struct Run<'a, 'py> {
    py: Python<'py>,
    engine: &'a Py<Engine>,
    index: usize,
    connection: &'a Py<Connection>,
    handler: Py<PyAny>,
    class: Py<PyType>,
    /// What the next frame's handler gets, if nobody has touched it.
    request: Option<Py<Request>>,
    shell: Option<Py<Frame>>,
    spare: Vec<Slot>,
    delivered: u64,
    undecided: u64,
}

/// Gives frames that came by port `index` to the handler of `connection`.
pub fn run(engine: &Py<Engine>, py: Python<'_>, index: usize, connection: &Py<Connection>, frames: &mut Vec<Slot>) {
    let inner = connection.get();
    let endpoint = inner.endpoint.get();
    let handler = inner.data_handler(py).filter(|(_, carried)| carried.is_none() && endpoint.request_id.is_none());
    let Some((handler, _)) = handler else {
        for (count, slot) in frames.drain(..).enumerate() {
            if count % HAND_OVER == HAND_OVER - 1 {
                engine.get().hand_over(py);
            }
            Connection::datagram(connection, py, Incoming::Frame(engine.clone_ref(py), index, slot));
        }
        return;
    };
    let class = endpoint.state.with(py, |state| state.request.clone_ref(py));
    let (shell, spare) = engine.get().state.with(py, |state| (state.shell.take(), std::mem::take(&mut state.spare)));
    let before = inner.core.get().state.with(py, |state| state.current.take());
    let (request, delivered, undecided) = (None, 0, 0);
    let mut run = Run { py, engine, index, connection, handler, class, request, shell, spare, delivered, undecided };
    for (count, slot) in frames.drain(..).enumerate() {
        if count % HAND_OVER == HAND_OVER - 1 {
            engine.get().hand_over(py);
        }
        if run.is_ready() {
            run.deliver(slot);
        } else {
            Connection::datagram(connection, py, Incoming::Frame(engine.clone_ref(py), index, slot));
        }
    }
    run.end();
    let mine = inner.core.get().state.with(py, |state| std::mem::replace(&mut state.current, before));
    drop(mine);
}

impl Run<'_, '_> {
    fn core(&self) -> &Py<Core> {
        &self.connection.get().core
    }

    /// Whether the handler may be called now, and is the same as before.
    fn is_ready(&self) -> bool {
        self.connection.get().state.with(self.py, |state| {
            let kept = state.account.as_ref().map_or(0, |account| account.kept());
            state.phase == Phase::Open
                && !(state.busy || state.paused || state.pumping)
                && kept == 0
                && state.request.is_none()
                && state.on_data.as_ref().is_none_or(|own| own.is(&self.handler))
        })
    }

    fn deliver(&mut self, slot: Slot) {
        let (py, core) = (self.py, &self.connection.get().core);
        if self.request.is_some() {
            // In its place: one has ended, and one begun.
            core.get().counters.requests_ended.bump();
            core.get().counters.requests_opened.bump();
        } else if !self.begin_request() {
            return;
        }
        let Some(request) = self.request.take() else { return };
        let frame = match self.wrap(slot) {
            Ok(frame) => frame,
            Err(error) => {
                self.request = Some(request);
                return Core::failed(core, py, Some(self.connection), None, error);
            }
        };
        self.delivered += 1;
        let arguments = [self.connection.as_ptr(), request.as_ptr(), frame.as_ptr()];
        tracing::called(py, "handler of frames", &self.handler);
        match vectorcall(py, &self.handler, &arguments) {
            Ok(result) if is_coroutine(&result) => {
                self.set_current(None);
                let connection = self.connection.clone_ref(py);
                begin_coroutine(py, core, result, Done::Message { connection, request });
            }
            Ok(_) => self.keep_or_end(request),
            Err(error) => {
                Core::failed(core, py, Some(self.connection), Some(&request), error);
                self.keep_or_end(request);
            }
        }
        // SAFETY: a plain read of the reference count of a live object.
        if unsafe { ffi::Py_REFCNT(frame.as_ptr()) } == 1 {
            self.undecided += u64::from(frame.get().settle(py));
            self.shell = Some(frame);
        } else {
            frame.bind(py).as_super().get().count_as_kept(py, &self.connection.get().account(py));
        }
    }

    fn set_current(&self, request: Option<&Py<Request>>) {
        let mine = request.map(|request| (self.connection.clone_ref(self.py), request.clone_ref(self.py)));
        let old = self.core().get().state.with(self.py, |state| std::mem::replace(&mut state.current, mine));
        drop(old);
    }

    /// False: there may be no further request.
    fn begin_request(&mut self) -> bool {
        let core = self.core();
        if core.get().open_requests() >= core.get().limits.max_requests {
            core.get().counters.requests_refused.bump();
            return false;
        }
        match new_request(self.py, core, &self.class, self.connection, None) {
            Ok(request) => {
                self.set_current(Some(&request));
                self.request = Some(request);
                true
            }
            Err(error) => {
                Core::failed(core, self.py, Some(self.connection), None, error);
                false
            }
        }
    }

    /// After its handler: for the next frame, where nobody could tell that it is not a new one.
    fn keep_or_end(&mut self, request: Py<Request>) {
        // SAFETY: a plain read of the reference count of a live object. Ours, and that of the core's `current`.
        let is_shared = unsafe { ffi::Py_REFCNT(request.as_ptr()) } > 2;
        if !is_shared && request.get().is_fresh(self.py) && self.class.is(&self.core().get().request_type) {
            self.request = Some(request);
        } else {
            self.set_current(None);
            request.get().let_go(self.py);
            retire_request(self.py, self.core().get(), request);
        }
    }

    fn wrap(&mut self, slot: Slot) -> PyResult<Py<Frame>> {
        let Some(frame) = self.shell.take() else {
            return Frame::wrap(self.py, self.engine, self.index, None, Body::Slot(slot));
        };
        if let Body::Slot(old) = frame.get().refill(frame.bind(self.py), self.index, Body::Slot(slot))
            && self.spare.len() < SPARE
        {
            self.spare.push(old);
        }
        Ok(frame)
    }

    fn end(&mut self) {
        let (py, core) = (self.py, self.connection.get().core.get());
        if let Some(request) = self.request.take() {
            self.set_current(None);
            request.get().let_go(py);
            retire_request(py, core, request);
        }
        core.counters.drop_undecided.add(self.undecided);
        core.counters.messages_in.add(self.delivered);
        self.connection.get().endpoint.get().messages.add(self.delivered);
        if let Some(frame) = self.shell.take() {
            if let Body::Slot(old) = frame.get().refill(frame.bind(py), self.index, Body::Empty)
                && self.spare.len() < SPARE
            {
                self.spare.push(old);
            }
            frame.get().settle(py);
            self.shell = Some(frame);
        }
        let (shell, spare) = (self.shell.take(), std::mem::take(&mut self.spare));
        let old = self.engine.get().state.with(py, |state| {
            (std::mem::replace(&mut state.spare, spare), shell.and_then(|shell| state.shell.replace(shell)))
        });
        drop(old);
    }
}

impl Engine {
    /// Takes a burst from port `index`, whose handler gets frames one by one, into buffers that nobody kept; how many
    /// frames. None: the port has no such handler.
    pub fn take_burst(&self, py: Python<'_>, index: usize, frames: &mut Vec<Slot>) -> Option<usize> {
        let pool = &self.core.get().pool;
        self.state.with(py, |state| {
            let open = state.ports.get_mut(index)?;
            let Some(Handler::PerFrame(_)) = &open.handler else { return None };
            let burst = open.port.lend(BURST);
            let (taken, mut dry) = (burst.len(), 0);
            for lent in burst.in_turn() {
                let spare = state.spare.pop().and_then(|slot| slot.renew(lent.len()));
                match spare.or_else(|| pool.take(lent.len())) {
                    Some(mut slot) => {
                        lent.copy_to(0, &mut slot);
                        frames.push(slot);
                    }
                    None => dry += 1,
                }
            }
            open.port.give_back(dry);
            Some(taken)
        })
    }

    /// Shows the peers what was sent so far.
    fn hand_over(&self, py: Python<'_>) {
        self.state.with(py, |state| {
            state.ports.iter_mut().filter(|open| open.unflushed).for_each(|open| open.port.hand_over());
        });
    }
}
