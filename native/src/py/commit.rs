//! `commit="before_send"`: what a request sends is held until what it wrote is durable.
//!
//! A message waits in the connection that it is sent on, because the order of replies is that connection's; how many
//! writes are under way is the request's to know. While a step of its handler runs, a request's messages are held in any
//! case, so that a write counts for what was sent before it in the same step. Servers without `commit=` never come here.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, ffi};

use super::connection::{Connection, Phase};
use super::core::Core;
use super::outbound::buffer_full;
use super::request::Request;

/// What a held message costs beside its bytes.
const OVERHEAD: usize = 64;

/// Of one loop: whether any server has `commit=`, and whose request a task belongs to that its handler has started.
pub struct Commits {
    any: AtomicBool,
    var: Py<PyAny>,
}

impl Commits {
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        // SAFETY: a C string and no default; a new reference, or null with an exception set.
        let var = unsafe {
            Bound::from_owned_ptr_or_err(py, ffi::PyContextVar_New(c"libvnf.request".as_ptr(), std::ptr::null_mut()))
        };
        Ok(Self { any: AtomicBool::new(false), var: var?.unbind() })
    }

    pub fn begin(&self) {
        self.any.store(true, Ordering::Relaxed);
    }

    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    fn inherited(&self, py: Python<'_>) -> Option<Py<Request>> {
        let mut value = std::ptr::null_mut();
        // SAFETY: a live context variable; `value` becomes a new reference, or stays null where none is set.
        let found = unsafe {
            if ffi::PyContextVar_Get(self.var.as_ptr(), std::ptr::null_mut(), &raw mut value) < 0 {
                drop(PyErr::take(py));
            }
            Bound::from_owned_ptr_or_opt(py, value)
        };
        found?.cast_into::<Request>().ok().map(Bound::unbind)
    }

    /// Runs `call` while tasks that it starts belong to `request`; None: to nobody.
    fn with<R>(&self, py: Python<'_>, request: Option<&Py<Request>>, call: impl FnOnce() -> R) -> R {
        let none = py.None();
        let value = request.map_or(none.as_ptr(), Py::as_ptr);
        // SAFETY: a live variable and object; a token, or null with an exception set.
        let token = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContextVar_Set(self.var.as_ptr(), value)) };
        let result = call();
        match token {
            // SAFETY: the token is of this variable, and of this context: `call` has left all that it entered.
            Ok(token) => unsafe {
                if ffi::PyContextVar_Reset(self.var.as_ptr(), token.as_ptr()) < 0 {
                    PyErr::fetch(py).write_unraisable(py, None);
                }
            },
            Err(error) => error.write_unraisable(py, None),
        }
        result
    }
}

struct Message {
    /// Whose writes it waits for; None: only for the messages before it.
    owner: Option<Py<Request>>,
    bytes: Box<[u8]>,
}

/// Messages of one connection that may not leave yet, in the order they were sent.
#[derive(Default)]
pub struct Held {
    messages: VecDeque<Message>,
    pub bytes: usize,
}

impl Held {
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.messages.iter().try_for_each(|message| visit.call(&message.owner))
    }

    fn push(&mut self, owner: Option<Py<Request>>, bytes: &[u8]) {
        self.bytes += bytes.len() + OVERHEAD;
        self.messages.push_back(Message { owner, bytes: bytes.into() });
    }

    fn take(&mut self, at: usize) -> Option<Message> {
        let message = self.messages.remove(at)?;
        self.bytes -= message.bytes.len() + OVERHEAD;
        Some(message)
    }

    /// Where the next message of `request` is, from `at` on.
    fn find(&self, at: usize, request: &Py<Request>) -> Option<usize> {
        let of = |message: &Message| message.owner.as_ref().is_some_and(|owner| owner.is(request));
        self.messages.iter().skip(at).position(of).map(|found| at + found)
    }
}

/// What a request knows of its writes, and who is told of its end. Most have none.
#[derive(Default)]
pub struct Writes {
    /// Writes that are not durable yet.
    pending: u32,
    /// A step of its handler runs, and has sent something.
    stepping: bool,
    /// A write failed: what is sent from now on is dropped.
    failed: bool,
    /// Where its messages are held, and how many.
    held: Vec<(Py<Connection>, usize)>,
    /// The connection whose message began it, also when it has ended.
    origin: Option<Py<Connection>>,
    /// Called when it ends.
    pub at_end: Vec<Py<PyAny>>,
}

impl Writes {
    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.origin)?;
        self.at_end.iter().try_for_each(|function| visit.call(function))?;
        self.held.iter().try_for_each(|(connection, _)| visit.call(connection))
    }
}

/// What becomes of what a request sends now.
enum Gate {
    Open,
    Held,
    Shut,
}

impl Request {
    fn gate(&self, py: Python<'_>, stepping: bool) -> Gate {
        self.state.with(py, |state| match &state.writes {
            Some(writes) if writes.failed => Gate::Shut,
            Some(writes) if writes.pending > 0 => Gate::Held,
            _ if stepping => Gate::Held,
            _ => Gate::Open,
        })
    }

    /// Whether what it sent may still be held, or never leaves.
    pub fn withholds(&self, py: Python<'_>) -> bool {
        !matches!(self.gate(py, false), Gate::Open)
    }

    fn note_held(&self, py: Python<'_>, connection: &Py<Connection>, stepping: bool) {
        let connection = connection.clone_ref(py);
        let spare = self.state.with(py, |state| {
            let writes = state.writes.get_or_insert_default();
            writes.stepping |= stepping;
            match writes.held.iter_mut().rev().find(|(known, _)| known.is(&connection)) {
                Some((_, count)) => {
                    *count += 1;
                    Some(connection)
                }
                None => {
                    writes.held.push((connection, 1));
                    None
                }
            }
        });
        drop(spare);
    }

    /// A step of its handler is over: what it sent leaves, unless it waits for a write.
    fn step_over(slf: &Py<Self>, py: Python<'_>) {
        let done = slf.get().state.with(py, |state| {
            let Some(writes) = &mut state.writes else { return false };
            std::mem::replace(&mut writes.stepping, false) && writes.pending == 0 && !writes.failed
        });
        if done {
            Self::send_held(slf, py);
        }
    }

    /// Nothing of it is under way any more: what is held leaves.
    fn send_held(slf: &Py<Self>, py: Python<'_>) {
        let held =
            slf.get().state.with(py, |state| state.writes.as_mut().map(|writes| std::mem::take(&mut writes.held)));
        for (connection, count) in held.into_iter().flatten() {
            Connection::release(&connection, py, slf, count);
        }
    }

    /// Has `function` called when it ends; false: it has ended.
    pub fn tell_at_end(&self, py: Python<'_>, function: Py<PyAny>) -> bool {
        let (noted, spare) = self.state.with(py, |state| {
            if state.ended {
                return (false, Some(function));
            }
            let at_end = &mut state.writes.get_or_insert_default().at_end;
            if at_end.iter().any(|known| known.is(&function)) {
                return (true, Some(function));
            }
            at_end.push(function);
            state.touched = true;
            (true, None)
        });
        drop(spare);
        noted
    }

    pub fn tell_end(&self, py: Python<'_>, core: &Py<Core>) {
        let at_end =
            self.state.with(py, |state| state.writes.as_mut().map(|writes| std::mem::take(&mut writes.at_end)));
        for function in at_end.into_iter().flatten() {
            if let Err(error) = function.call0(py) {
                Core::failed(core, py, None, None, error);
            }
        }
    }

    /// One more write of its is under way; false if that is nobody's concern.
    pub fn await_one(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| {
            if !state.commits || state.writes.as_ref().is_some_and(|writes| writes.failed) {
                return false;
            }
            let writes = state.writes.get_or_insert_default();
            if writes.origin.is_none() {
                writes.origin = state.origin.as_ref().map(|origin| origin.clone_ref(py));
            }
            writes.pending += 1;
            state.touched = true;
            if !state.ended {
                state.carriers += 1;
            }
            true
        })
    }

    /// One write less; whether it was the last one.
    fn one_less(&self, py: Python<'_>) -> PyResult<bool> {
        let left = self.state.with(py, |state| {
            let writes = state.writes.as_mut().filter(|writes| writes.pending > 0)?;
            writes.pending -= 1;
            Some(writes.pending == 0 && !writes.stepping && !writes.failed)
        });
        left.ok_or_else(|| PyRuntimeError::new_err("no write of this request is under way"))
    }

    pub fn one_committed(slf: &Py<Self>, py: Python<'_>) -> PyResult<()> {
        if slf.get().one_less(py)? {
            Self::send_held(slf, py);
        }
        slf.get().let_go(py);
        Ok(())
    }

    /// A write failed: what is held is dropped, and the request ends as if its handler had raised `error`.
    pub fn one_failed(slf: &Py<Self>, py: Python<'_>, error: &Bound<'_, PyBaseException>) -> PyResult<()> {
        slf.get().one_less(py)?;
        let found = slf.get().state.with(py, |state| {
            let writes = state.writes.as_mut().filter(|writes| !writes.failed)?;
            writes.failed = true;
            Some((std::mem::take(&mut writes.held), writes.origin.take(), state.core.as_ref()?.clone_ref(py)))
        });
        if let Some((held, origin, core)) = found {
            let inner = core.get();
            inner.counters.commits_failed.bump();
            inner.enter(py);
            for (connection, count) in &held {
                Connection::drop_held(connection, py, slf, *count);
            }
            inner.report(py, origin.as_ref(), Some(slf), error);
            if let Some(origin) = &origin {
                // What the author's handler of errors sends is not the request's any more.
                as_nobody(py, inner, || Connection::handler_failed(origin, py, Some(slf), error, "commit failed"));
            }
            slf.get().finish(py);
            Core::leave(&core, py)?;
        }
        slf.get().let_go(py);
        Ok(())
    }
}

impl Connection {
    /// Takes a message that may not leave yet, or never; false: it may leave now.
    pub fn hold(slf: &Py<Self>, py: Python<'_>, bytes: &[u8]) -> PyResult<bool> {
        let inner = slf.get();
        let core = inner.core.get();
        let sender = sender(py, core);
        let gate = sender.as_ref().map_or(Gate::Open, |(request, stepping)| request.get().gate(py, *stepping));
        let ordered = inner.keeps_order(py);
        let limit = core.limits.max_buffered_bytes;
        let owner = match gate {
            Gate::Shut => {
                core.counters.drop_uncommitted.bump();
                return Ok(true);
            }
            Gate::Held => sender.as_ref().map(|(request, _)| request.clone_ref(py)),
            Gate::Open => None,
        };
        let held = inner.state.with(py, |state| {
            let over = matches!(state.phase, Phase::Closing | Phase::Closed) || state.end_wanted;
            if over || (owner.is_none() && !(ordered && state.held.is_some())) {
                return Err((owner, None));
            }
            let queued = state.out.len() + state.held_bytes();
            if queued > 0 && queued + bytes.len() > limit {
                // Who is refused waits for `writable`.
                state.above_mark = true;
                return Err((owner, Some(queued)));
            }
            let owned = owner.is_some();
            state.held.get_or_insert_default().push(owner, bytes);
            Ok(owned)
        });
        match held {
            Ok(owned) => {
                if let Some((request, stepping)) = sender.filter(|_| owned) {
                    request.get().note_held(py, slf, stepping);
                }
                Ok(true)
            }
            Err((_, None)) => Ok(false),
            Err((_, Some(queued))) => Err(buffer_full(py, queued, bytes.len(), limit)?),
        }
    }

    /// Whether a message sent later must arrive later. Where ids tell requests apart, or the network keeps no order
    /// anyway, one request's commit does not hold up another's messages.
    fn keeps_order(&self, py: Python<'_>) -> bool {
        let endpoint = self.endpoint.get();
        !self.state.with(py, |state| state.datagram) && endpoint.request_id.is_none() && !endpoint.matches_by_id(py)
    }

    /// The request's writes are durable: its messages leave, as far as no others stand before them.
    fn release(slf: &Py<Self>, py: Python<'_>, request: &Py<Request>, count: usize) {
        let ordered = slf.get().keeps_order(py);
        let mut at = 0;
        for _ in 0..count {
            let (message, owner) = slf.get().state.with(py, |state| {
                let Some(held) = &mut state.held else { return (None, None) };
                let Some(found) = held.find(at, request) else { return (None, None) };
                at = found;
                if ordered { (None, held.messages[at].owner.take()) } else { (held.take(at), None) }
            });
            drop(owner);
            if let Some(message) = message {
                Self::send_late(slf, py, &message.bytes);
            }
        }
        Self::let_pass(slf, py, ordered);
    }

    /// The request's write failed: its messages never leave, and those behind them may.
    fn drop_held(slf: &Py<Self>, py: Python<'_>, request: &Py<Request>, count: usize) {
        let mut at = 0;
        for _ in 0..count {
            let dropped = slf.get().state.with(py, |state| {
                let held = state.held.as_mut()?;
                at = held.find(at, request)?;
                held.take(at)
            });
            if dropped.is_none() {
                break;
            }
            slf.get().core.get().counters.drop_uncommitted.bump();
        }
        let ordered = slf.get().keeps_order(py);
        Self::let_pass(slf, py, ordered);
    }

    /// Sends what stands at the front and waits for nothing; then whatever waited for the queue goes on.
    fn let_pass(slf: &Py<Self>, py: Python<'_>, ordered: bool) {
        let next = || {
            slf.get().state.with(py, |state| {
                let held = state.held.as_mut().filter(|_| ordered)?;
                if held.messages.front()?.owner.is_none() { held.take(0) } else { None }
            })
        };
        while let Some(message) = next() {
            Self::send_late(slf, py, &message.bytes);
        }
        let empty = slf.get().state.with(py, |state| {
            if state.held.as_ref().is_some_and(|held| held.len() == 0) { state.held.take() } else { None }
        });
        drop(empty);
        // Half-close, close and those who wait to write stood behind it.
        if slf.get().phase(py) != Phase::Closed {
            Self::mark_dirty(slf, py);
        }
    }
}

/// Runs `call`, the step of a handler of `request`; then what it sent leaves, or waits for what it wrote.
pub fn step<R>(py: Python<'_>, core: &Core, request: &Py<Request>, nested: bool, call: impl FnOnce() -> R) -> R {
    let result = core.commits.with(py, Some(request), call);
    if !nested {
        Request::step_over(request, py);
    }
    result
}

fn as_nobody(py: Python<'_>, core: &Core, call: impl FnOnce()) {
    let current = core.state.with(py, |state| state.current.take());
    core.commits.with(py, None, call);
    let none = core.state.with(py, |state| std::mem::replace(&mut state.current, current));
    drop(none);
}

/// The request that is being served; and whether it is by a step of its handler, not a task which that has started.
pub fn serving(py: Python<'_>, core: &Core) -> Option<(Py<Request>, bool)> {
    let current = core.state.with(py, |state| state.current.as_ref().map(|(_, request)| request.clone_ref(py)));
    match current {
        Some(request) => Some((request, true)),
        None if core.commits.any() => core.commits.inherited(py).map(|request| (request, false)),
        None => None,
    }
}

/// As `serving`, where its server has `commit=`.
pub fn sender(py: Python<'_>, core: &Core) -> Option<(Py<Request>, bool)> {
    serving(py, core).filter(|(request, _)| request.get().commits(py))
}
