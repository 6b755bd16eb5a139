//! `Batch`: many frames at once. Their fields are columns (`columns.rs`), and what is decided about them is carried out
//! when the handler has returned, in the order in which they came.
//!
//! One object serves all batches of a port, as long as nobody keeps it. Who does has an object whose batch is over; its
//! columns, and frames taken out of it, stay what they were.
#![allow(unsafe_code)]

use pyo3::exceptions::{PyIndexError, PyRuntimeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{PyTraverseError, PyVisit};

use super::super::cell::GilCell;
use super::super::connection::{Connection, Phase};
use super::super::core::Core;
use super::super::coroutine::{begin_coroutine, is_coroutine};
use super::super::dispatch::{Done, vectorcall};
use super::super::engine::Engine;
use super::super::packet::{Body, with_bytes};
use super::super::tracing;
use super::columns::{self, Array, FIELDS, Field};
use super::rewriting;
use super::store::Store;
use super::verdict::{self, Decision};
use super::{Frame, Handler};
use crate::flow::{PortIndex, Rewrite};
use crate::port::lent::{BURST, Lent};

/// What a batch has while its handler runs, and its port while it collects the next one.
pub struct Content {
    pub store: Store,
    /// Frames that the handler has asked for by their index.
    taken: Vec<(u16, Py<Frame>)>,
    columns: [Option<Array>; FIELDS],
    /// Which of them are of this batch.
    filled: u32,
}

impl Content {
    pub fn new() -> Box<Self> {
        Box::new(Self { store: Store::default(), taken: Vec::new(), columns: [const { None }; FIELDS], filled: 0 })
    }

    fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.taken.iter().try_for_each(|(_, frame)| visit.call(frame))?;
        self.columns.iter().flatten().try_for_each(|array| array.traverse(visit))
    }
}

/// A port's handler of batches.
pub struct Batches {
    /// Stands for the port.
    pub connection: Py<Connection>,
    handler: Py<PyAny>,
    /// None while the handler runs.
    content: Option<Box<Content>>,
    shell: Option<Py<Batch>>,
}

impl Batches {
    pub fn new(connection: Py<Connection>, handler: Py<PyAny>) -> Self {
        Self { connection, handler, content: Some(Content::new()), shell: None }
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.connection)?;
        visit.call(&self.handler)?;
        visit.call(&self.shell)?;
        self.content.as_ref().map_or(Ok(()), |content| content.traverse(visit))
    }
}

impl Engine {
    /// Takes what waits in port `index` into its next batch, as far as there is room; how many frames. None: the port has
    /// no handler of batches.
    pub fn collect(&self, py: Python<'_>, index: usize) -> Option<usize> {
        self.state.with(py, |state| {
            let open = state.ports.get_mut(index)?;
            let Some(Handler::Batches(batches)) = &mut open.handler else { return None };
            let store = &mut batches.content.as_mut()?.store;
            let mut count = 0;
            loop {
                let room = store.room().min(BURST);
                if room == 0 {
                    return Some(count);
                }
                let burst = open.port.lend(room);
                let got = burst.len();
                burst.in_turn().for_each(|frame| store.push(frame));
                open.port.give_back(0);
                count += got;
                if got < room {
                    return Some(count);
                }
            }
        })
    }

    /// Adds a frame that was taken elsewhere to the next batch of port `index`. False: there is no room.
    pub fn add_to_batch(&self, py: Python<'_>, index: usize, bytes: &[u8]) -> bool {
        self.state.with(py, |state| {
            let Some(Handler::Batches(batches)) = state.ports.get_mut(index).and_then(|open| open.handler.as_mut())
            else {
                return false;
            };
            let Some(content) = batches.content.as_mut().filter(|content| content.store.room() > 0) else {
                return false;
            };
            content.store.push(Lent::of(bytes));
            true
        })
    }
}

/// Frames of a port, at most 256: their fields are columns, and ``drop``, ``forward(port)``, ``reply``, ``accept`` and
/// ``again`` take masks. ``rewrite`` changes what leaves. Over with its handler.
#[pyclass(frozen, module = "libvnf._native")]
pub struct Batch {
    engine: Py<Engine>,
    port: usize,
    /// None: the batch is over.
    content: GilCell<Option<Box<Content>>>,
}

impl Batch {
    /// Gives the handler of port `index` what was collected for it, and does what it decided.
    pub fn run(engine: &Py<Engine>, py: Python<'_>, index: usize) {
        let inner = engine.get();
        let core = &inner.core;
        let found = inner.state.with(py, |state| {
            let Some(Handler::Batches(batches)) = &mut state.ports.get_mut(index)?.handler else { return None };
            let content = batches.content.take_if(|content| content.store.len() > 0)?;
            Some((content, batches.shell.take(), batches.connection.clone_ref(py), batches.handler.clone_ref(py)))
        });
        let Some((mut content, shell, connection, handler)) = found else { return };
        let count = content.store.len() as u64;
        let (open, paused, bytes) = connection.get().state.with(py, |state| {
            let bytes = state.account.as_ref().map_or(0, |account| account.kept());
            (state.phase == Phase::Open, state.paused, bytes)
        });
        let keeps_too_much = core.get().is_too_much(bytes);
        let mut kept = shell;
        if open && !paused && !keeps_too_much {
            core.get().counters.messages_in.add(count);
            connection.get().endpoint.get().messages.add(count);
            content.filled = 0;
            let batch = match kept.take() {
                Some(shell) => shell,
                None => {
                    let empty = GilCell::new(None);
                    match Py::new(py, Self { engine: engine.clone_ref(py), port: index, content: empty }) {
                        Ok(shell) => shell,
                        Err(error) => return Core::failed(core, py, Some(&connection), None, error),
                    }
                }
            };
            batch.get().content.with(py, |place| *place = Some(content));
            tracing::called(py, "handler of batches", &handler);
            match vectorcall(py, &handler, &[batch.as_ptr()]) {
                Ok(result) if is_coroutine(&result) => begin_coroutine(py, core, result, Done::Nothing),
                Ok(_) => {}
                Err(error) => Core::failed(core, py, Some(&connection), None, error),
            }
            let Some(back) = batch.get().content.with(py, Option::take) else { return };
            content = back;
            Self::settle_taken(&mut content, py, &connection);
            Self::carry_out(engine, py, index, &content);
            // SAFETY: a plain read of the reference count of a live object.
            kept = Some(batch).filter(|batch| unsafe { ffi::Py_REFCNT(batch.as_ptr()) } == 1);
        } else {
            let counters = &core.get().counters;
            let why = match (open, paused) {
                (false, _) => &counters.drop_not_connected,
                (true, true) => &counters.drop_paused,
                (true, false) => &counters.drop_kept_quota,
            };
            why.add(count);
        }
        content.store.clear();
        let old =
            inner.state.with(py, |state| match state.ports.get_mut(index).and_then(|open| open.handler.as_mut()) {
                Some(Handler::Batches(batches)) => {
                    (batches.content, batches.shell) = (Some(content), kept);
                    None
                }
                // The engine was closed.
                _ => Some((content, kept)),
            });
        drop(old);
    }

    /// Frames that were asked for by themselves: what nobody kept is the batch's, the rest may be decided later.
    fn settle_taken(content: &mut Content, py: Python<'_>, connection: &Py<Connection>) {
        for (place, frame) in std::mem::take(&mut content.taken) {
            let index = usize::from(place);
            frame.get().leave_batch(py);
            // SAFETY: a plain read of the reference count of a live object.
            let is_kept = unsafe { ffi::Py_REFCNT(frame.as_ptr()) } > 1;
            if is_kept {
                frame.bind(py).as_super().get().count_as_kept(py, &connection.get().account(py));
            }
            if is_kept && content.store.decision(index).is_none() {
                if content.store.is_rewritten(index) {
                    frame.get().set_outgoing(py, content.store.outgoing(index));
                }
                content.store.decide(index, Decision::Sent);
            } else {
                frame.get().settle(py);
            }
            if !is_kept {
                Frame::retire(frame, py);
            }
        }
    }

    fn carry_out(engine: &Py<Engine>, py: Python<'_>, index: usize, content: &Content) {
        let inner = engine.get();
        let store = &content.store;
        let counters = &inner.core.get().counters;
        let pool = &inner.core.get().pool;
        let (mut undecided, mut dropped, mut failed) = (0, 0, 0);
        let mut again = Vec::new();
        inner.state.with(py, |state| {
            for place in 0..store.len() {
                let bytes = store.outgoing(place);
                match store.decision(place) {
                    None => undecided += 1,
                    Some(Decision::Sent) => {}
                    Some(Decision::Drop) => dropped += 1,
                    Some(Decision::Forward(to)) => {
                        if let Some(open) = state.ports.get_mut(usize::from(to)) {
                            open.unflushed = true;
                            open.port.send(&[bytes]);
                        }
                    }
                    Some(Decision::Reply) => {
                        if let Some(open) = state.ports.get_mut(index) {
                            open.unflushed = true;
                            failed += u64::from(verdict::reply(open.port.as_mut(), bytes).is_none());
                        }
                    }
                    Some(Decision::Again) => again.push(place),
                    Some(Decision::Accept) => match pool.take(bytes.len()) {
                        Some(mut slot) => {
                            slot.copy_from_slice(bytes);
                            if let Some(open) = state.ports.get_mut(index) {
                                open.accepted.push(slot);
                            }
                        }
                        None => failed += 1,
                    },
                }
                if place % BURST == BURST - 1 {
                    state.ports.iter_mut().filter(|open| open.unflushed).for_each(|open| open.port.hand_over());
                }
            }
        });
        counters.drop_undecided.add(undecided);
        counters.drop_verdict.add(dropped);
        counters.drop_verdict_failed.add(failed);
        for place in again {
            Engine::again(engine, py, index, store.outgoing(place));
        }
    }

    /// Does something with the content; RuntimeError when the batch is over, or another thread asks.
    fn with<R>(&self, py: Python<'_>, use_it: impl FnOnce(&mut Content) -> R) -> PyResult<R> {
        self.engine.get().core.get().check_thread()?;
        let found = self.content.with(py, |content| content.as_mut().map(|content| use_it(content)));
        found.ok_or_else(|| {
            PyRuntimeError::new_err(
                "the batch is over with its handler: what you keep are its columns, or frames of it",
            )
        })
    }

    /// A frame that was taken out decides by itself.
    pub fn decide(&self, py: Python<'_>, place: u16, decision: Decision) -> PyResult<()> {
        self.with(py, |content| content.store.decide(usize::from(place), decision))
    }

    pub fn rewrite_one(&self, py: Python<'_>, place: u16, to: &Rewrite) -> PyResult<()> {
        let done = self.with(py, |content| content.store.rewrite(usize::from(place), to))?;
        done.map_err(rewriting::error)
    }

    pub fn with_outgoing<R>(&self, py: Python<'_>, place: u16, use_it: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
        // A copy: what uses it may come back here.
        let bytes = self.with(py, |content| content.store.outgoing(usize::from(place)).to_vec())?;
        Ok(use_it(&bytes))
    }

    fn decide_all(&self, py: Python<'_>, mask: Option<&Bound<'_, PyAny>>, decision: Decision) -> PyResult<()> {
        let count = self.with(py, |content| content.store.len())?;
        let chosen = columns::read_mask(mask, count)?;
        self.with(py, |content| content.store.decide_all(&chosen[..count], decision))
    }

    fn column(&self, py: Python<'_>, field: Field) -> PyResult<Py<PyAny>> {
        let at = field as usize;
        let (known, count, array) = self.with(py, |content| {
            let count = content.store.len();
            if content.filled & 1 << at != 0 {
                return (content.columns[at].as_ref().map(|array| array.whole(py)), count, None);
            }
            (None, count, content.columns[at].take())
        })?;
        // Out of the cell: making arrays runs Python code.
        if let Some(known) = known {
            return columns::part(py, &known, count);
        }
        let mut array = match array.filter(Array::is_unshared) {
            Some(array) => array,
            None => Array::new(py, field)?,
        };
        let (old, whole) = self.with(py, |content| {
            array.fill(content.store.read());
            let whole = array.whole(py);
            content.filled |= 1 << at;
            (content.columns[at].replace(array), whole)
        })?;
        drop(old);
        columns::part(py, &whole, count)
    }
}

#[pymethods]
impl Batch {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.content.with(py, |content| content.as_ref().map_or(0, |content| content.store.len()))
    }

    fn __getitem__(slf: &Bound<'_, Self>, index: isize) -> PyResult<Py<Frame>> {
        let (py, inner) = (slf.py(), slf.get());
        let pool = &inner.engine.get().core.get().pool;
        let (place, known, body) = inner.with(py, |content| {
            let count = content.store.len() as isize;
            let place = if index < 0 { index + count } else { index };
            if !(0..count).contains(&place) {
                return Err(PyIndexError::new_err(format!("index {index} lies outside a batch of {count} frames")));
            }
            let known = content.taken.iter().find(|(of, _)| *of as isize == place);
            let known = known.map(|(_, frame)| frame.clone_ref(py));
            let body = known.is_none().then(|| Body::copy(pool, content.store.bytes(place as usize)));
            Ok((place as u16, known, body))
        })??;
        let Some(body) = body else {
            return known.ok_or_else(|| PyIndexError::new_err("no such frame"));
        };
        let frame = Frame::wrap(py, &inner.engine, inner.port, Some((slf.clone().unbind(), place)), body)?;
        let kept = frame.clone_ref(py);
        inner.with(py, |content| content.taken.push((place, kept)))?;
        Ok(frame)
    }

    fn __iter__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        // SAFETY: a live sequence; a new reference, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(slf.py(), ffi::PySeqIter_New(slf.as_ptr())).map(Bound::unbind) }
    }

    #[getter]
    fn port(&self, py: Python<'_>) -> String {
        self.engine.get().port_name(py, self.port)
    }

    #[pyo3(signature = (mask=None, /))]
    fn drop(&self, py: Python<'_>, mask: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self.decide_all(py, mask, Decision::Drop)
    }

    #[pyo3(signature = (port, mask=None, /))]
    fn forward(&self, port: &Bound<'_, PyString>, mask: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let to = usize::from(self.engine.get().port_named(port)?);
        self.decide_all(port.py(), mask, Decision::Forward(to as PortIndex))
    }

    #[pyo3(signature = (mask=None, /))]
    fn reply(&self, py: Python<'_>, mask: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self.decide_all(py, mask, Decision::Reply)
    }

    #[pyo3(signature = (mask=None, /))]
    fn accept(&self, py: Python<'_>, mask: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self.decide_all(py, mask, Decision::Accept)
    }

    #[pyo3(signature = (mask=None, /))]
    fn again(&self, py: Python<'_>, mask: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self.decide_all(py, mask, Decision::Again)
    }

    #[pyo3(signature = (mask=None, /, **values))]
    fn rewrite(
        &self,
        py: Python<'_>,
        mask: Option<&Bound<'_, PyAny>>,
        values: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let to = rewriting::parse(values)?;
        let count = self.with(py, |content| content.store.len())?;
        let chosen = columns::read_mask(mask, count)?;
        let failed = self.with(py, |content| {
            let store = &mut content.store;
            let mut failed = 0;
            for index in (0..count).filter(|index| chosen[*index]) {
                if store.rewrite(index, &to).is_err() {
                    store.decide(index, Decision::Sent);
                    failed += 1;
                }
            }
            failed
        })?;
        self.engine.get().core.get().counters.drop_verdict_failed.add(failed);
        Ok(())
    }

    #[pyo3(signature = (port, frame, /))]
    fn send(&self, port: &Bound<'_, PyString>, frame: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, engine) = (port.py(), self.engine.get());
        engine.core.get().check_thread()?;
        let to = usize::from(engine.port_named(port)?);
        if let Ok(frame) = frame.cast_exact::<Frame>() {
            Frame::with_outgoing(frame, |bytes| engine.emit(py, to, &[bytes]))?;
            return Frame::decide(frame, Decision::Sent);
        }
        with_bytes(frame, |bytes| engine.emit(py, to, &[bytes])).map(|_| ())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.engine)?;
        self.content
            .peek(|content| content.as_ref().map_or(Ok(()), |content| content.traverse(visit)))
            .unwrap_or(Ok(()))
    }

    #[getter]
    fn length(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::Length)
    }

    #[getter]
    fn ethertype(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::Ethertype)
    }

    #[getter]
    fn vlan(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::Vlan)
    }

    #[getter]
    fn protocol(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::Protocol)
    }

    #[getter]
    fn ttl(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::Ttl)
    }

    #[getter]
    fn src_ip(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::SourceIp)
    }

    #[getter]
    fn dst_ip(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::DestinationIp)
    }

    #[getter]
    fn src_ip6(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::SourceIp6)
    }

    #[getter]
    fn dst_ip6(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::DestinationIp6)
    }

    #[getter]
    fn src_mac(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::SourceMac)
    }

    #[getter]
    fn dst_mac(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::DestinationMac)
    }

    #[getter]
    fn src_port(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::SourcePort)
    }

    #[getter]
    fn dst_port(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::DestinationPort)
    }

    #[getter]
    fn tcp_flags(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::TcpFlags)
    }

    #[getter]
    fn teid(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::Teid)
    }

    #[getter]
    fn is_ipv4(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::IsIpv4)
    }

    #[getter]
    fn is_ipv6(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::IsIpv6)
    }

    #[getter]
    fn is_arp(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::IsArp)
    }

    #[getter]
    fn is_tcp(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::IsTcp)
    }

    #[getter]
    fn is_udp(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::IsUdp)
    }

    #[getter]
    fn is_icmp(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::IsIcmp)
    }

    #[getter]
    fn is_fragment(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::IsFragment)
    }

    #[getter]
    fn is_gtpu(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::IsGtpu)
    }

    #[getter]
    fn is_malformed(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.column(py, Field::IsMalformed)
    }
}
