//! `Frame`: a packet below the transport layer, and what is decided about it.
//!
//! It is a `Packet`, so its bytes never change: `rewrite` makes a copy, which is what leaves. Who keeps a frame may
//! decide later; one that dies undecided is dropped, and counted.

use std::net::IpAddr;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{PyTraverseError, PyVisit};

use super::super::cell::GilCell;
use super::super::core::Core;
use super::super::engine::Engine;
use super::super::packet::{Body, Packet};
use super::batch::Batch;
use super::rewriting;
use super::verdict::Decision;
use crate::flow::{Head, PortIndex, edit};
use crate::packet::ethernet::{self, mac_text};
use crate::packet::headers::{Headers, kind};
use crate::packet::{Slot, array, ipv6};
use crate::port::lent::Lent;

struct State {
    /// The port it came by.
    port: usize,
    decided: bool,
    /// Its place in the batch whose handler runs.
    place: Option<(Py<Batch>, u16)>,
    /// Read when first asked for.
    headers: Option<Headers>,
    /// What leaves, where that is not what came.
    rewritten: Option<Slot>,
}

impl State {
    const EMPTY: Self = Self { port: 0, decided: true, place: None, headers: None, rewritten: None };
}

/// A frame of a port: a packet with the fields of its headers, and a verdict: ``drop``, ``forward(port)``, ``reply``,
/// ``accept``, ``again``. ``rewrite`` changes what leaves.
#[pyclass(frozen, extends = Packet, module = "libvnf._native")]
pub struct Frame {
    engine: Py<Engine>,
    state: GilCell<State>,
}

impl Drop for Frame {
    fn drop(&mut self) {
        if !self.state.get_mut().decided {
            self.engine.get().core.get().counters.drop_undecided.bump();
        }
    }
}

impl Frame {
    /// A frame that came by `port`; `place`: in a batch. In the shell of an earlier one that nobody kept.
    pub fn wrap(
        py: Python<'_>,
        engine: &Py<Engine>,
        port: usize,
        place: Option<(Py<Batch>, u16)>,
        body: Body,
    ) -> PyResult<Py<Self>> {
        let shell = engine.get().state.with(py, |state| state.shell.take());
        let frame = match shell {
            Some(shell) => shell,
            None => {
                let state = GilCell::new(State::EMPTY);
                let whole = PyClassInitializer::from(Packet::empty())
                    .add_subclass(Self { engine: engine.clone_ref(py), state });
                Py::new(py, whole)?
            }
        };
        frame.bind_borrowed(py).as_super().get().fill(py, body);
        let old = frame
            .get()
            .state
            .with(py, |state| std::mem::replace(state, State { port, decided: false, place, ..State::EMPTY }));
        drop(old);
        Ok(frame)
    }

    /// Gives the shell, which nobody else refers to, another content; what it had.
    pub fn refill(&self, slf: &Bound<'_, Self>, port: usize, body: Body) -> Body {
        let py = slf.py();
        let old = slf.as_super().get().swap(py, body);
        let rewritten = self.state.with(py, |state| {
            (state.port, state.decided, state.headers) = (port, false, None);
            state.rewritten.take()
        });
        drop(rewritten);
        old
    }

    /// The last reference to it: an undecided one is dropped, and the shell serves again.
    pub fn retire(frame: Py<Self>, py: Python<'_>) {
        let inner = frame.get();
        let (undecided, rewritten) =
            inner.state.with(py, |state| (!std::mem::replace(&mut state.decided, true), state.rewritten.take()));
        drop(rewritten);
        if undecided {
            inner.engine.get().core.get().counters.drop_undecided.bump();
        }
        frame.bind_borrowed(py).as_super().get().fill(py, Body::Empty);
        let engine = inner.engine.clone_ref(py);
        let old = engine.get().state.with(py, |state| state.shell.replace(frame));
        drop(old);
    }

    /// It was dropped elsewhere, and counted there; or somebody else sends it. False: it was decided before.
    pub fn settle(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| !std::mem::replace(&mut state.decided, true))
    }

    /// Its batch is over; who kept it may still decide.
    pub fn leave_batch(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| state.place.take());
        drop(old);
    }

    /// What leaves is a copy of `bytes`; where there is no buffer for it, the frame is dropped and counted.
    pub fn set_outgoing(&self, py: Python<'_>, bytes: &[u8]) {
        let core = self.engine.get().core.get();
        let rewritten = core.pool.take(bytes.len()).map(|mut slot| {
            slot.copy_from_slice(bytes);
            slot
        });
        if rewritten.is_none() && self.settle(py) {
            core.counters.drop_verdict_failed.bump();
        }
        let old = self.state.with(py, |state| std::mem::replace(&mut state.rewritten, rewritten));
        drop(old);
    }

    /// Calls `use_it` with the bytes that leave.
    pub fn with_outgoing<R>(slf: &Bound<'_, Self>, use_it: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
        let py = slf.py();
        if let Some((batch, place)) = slf.get().place(py) {
            return batch.get().with_outgoing(py, place, use_it);
        }
        // Taken out meanwhile: `use_it` may come to the frame.
        let rewritten = slf.get().state.with(py, |state| state.rewritten.take());
        let result = match &rewritten {
            Some(slot) => use_it(slot),
            None => use_it(slf.as_super().get().bytes(py)),
        };
        slf.get().state.with(py, |state| state.rewritten = rewritten);
        Ok(result)
    }

    /// Whether a frame that has waited for its handler is now a rule's, which was installed meanwhile.
    pub fn finds_rule(slf: &Bound<'_, Self>) -> bool {
        let (py, inner) = (slf.py(), slf.get());
        let port = inner.state.with(py, |state| state.port);
        Engine::finds_rule(&inner.engine, py, port, slf.as_super().get().bytes(py)) && inner.settle(py)
    }

    fn place(&self, py: Python<'_>) -> Option<(Py<Batch>, u16)> {
        self.state.with(py, |state| state.place.as_ref().map(|(batch, place)| (batch.clone_ref(py), *place)))
    }

    pub fn decide(slf: &Bound<'_, Self>, decision: Decision) -> PyResult<()> {
        let (py, inner) = (slf.py(), slf.get());
        inner.engine.get().core.get().check_thread()?;
        if let Some((batch, place)) = inner.place(py) {
            inner.settle(py);
            return batch.get().decide(py, place, decision);
        }
        if !inner.settle(py) {
            return Ok(());
        }
        let port = inner.state.with(py, |state| state.port);
        Self::with_outgoing(slf, |bytes| Engine::carry_out(&inner.engine, py, port, decision, bytes))
    }

    /// The common case of `forward`, of a frame by itself that is as it came. False: it is not that.
    fn forward_at_once(slf: &Bound<'_, Self>, port: &Bound<'_, PyString>) -> PyResult<bool> {
        let (py, inner) = (slf.py(), slf.get());
        let engine = inner.engine.get();
        engine.core.get().check_thread()?;
        let bytes = slf.as_super().get().bytes(py);
        let flushes = engine.state.with(py, |state| {
            let in_turn = state.in_turn;
            let open = state.ports.iter_mut().find(|open| open.is_named(port))?;
            let decided = inner.state.with(py, |state| {
                let simple = state.place.is_none() && state.rewritten.is_none();
                simple.then(|| std::mem::replace(&mut state.decided, true))
            })?;
            if !decided {
                open.unflushed = true;
                open.port.send(&[bytes]);
            }
            Some(!in_turn)
        });
        if flushes == Some(true) {
            Core::schedule_flush(&engine.core, py);
        }
        Ok(flushes.is_some())
    }

    fn headers(slf: &Bound<'_, Self>) -> Headers {
        let py = slf.py();
        if let Some(headers) = slf.get().state.with(py, |state| state.headers) {
            return headers;
        }
        let bytes = slf.as_super().get().bytes(py);
        let headers = Headers::read(bytes, bytes.len());
        slf.get().state.with(py, |state| state.headers = Some(headers));
        headers
    }

    fn is(slf: &Bound<'_, Self>, kinds: u16) -> bool {
        Self::headers(slf).is(kinds)
    }

    fn address(slf: &Bound<'_, Self>, choose: impl FnOnce((IpAddr, IpAddr)) -> IpAddr) -> Option<String> {
        let bytes = slf.as_super().get().bytes(slf.py());
        Self::headers(slf).addresses(bytes).map(|both| choose(both).to_string())
    }

    fn mac(slf: &Bound<'_, Self>, at: usize) -> Option<String> {
        let bytes = slf.as_super().get().bytes(slf.py());
        (bytes.len() >= at + 6).then(|| mac_text(array(bytes, at)))
    }
}

/// A packet is dropped, and what counts says why: if it is a frame, that is not for want of a verdict.
pub fn settle(py: Python<'_>, packet: &Py<Packet>) {
    if let Ok(frame) = packet.bind(py).as_any().cast_exact::<Frame>() {
        frame.get().settle(py);
    }
}

/// Where the payload is: behind the innermost header that is known, without padding.
fn payload(headers: &Headers, bytes: &[u8]) -> (usize, usize) {
    let (network, transport) = (usize::from(headers.network), usize::from(headers.transport));
    let end = match usize::from(headers.end) {
        0 => bytes.len(),
        end => end,
    };
    let start = if headers.is(kind::TCP) {
        transport + usize::from(bytes[transport + 12] >> 4) * 4
    } else if headers.is(kind::UDP) || headers.is(kind::ICMP) {
        transport + 8
    } else if transport > 0 {
        transport
    } else if headers.is(kind::IPV4) {
        network + usize::from(bytes[network] & 15) * 4
    } else if headers.is(kind::IPV6) {
        network + ipv6::skip_extensions(&bytes[network..]).map_or(ipv6::HEADER, |(_, at, _)| at)
    } else if network > 0 {
        network
    } else {
        ethernet::HEADER
    };
    let end = end.min(bytes.len());
    (start.min(end), end)
}

#[pymethods]
impl Frame {
    #[getter]
    fn port(slf: &Bound<'_, Self>) -> String {
        let (py, inner) = (slf.py(), slf.get());
        let port = inner.state.with(py, |state| state.port);
        inner.engine.get().port_name(py, port)
    }

    #[getter]
    fn src_mac(slf: &Bound<'_, Self>) -> Option<String> {
        Self::mac(slf, 6)
    }

    #[getter]
    fn dst_mac(slf: &Bound<'_, Self>) -> Option<String> {
        Self::mac(slf, 0)
    }

    #[getter]
    fn ethertype(slf: &Bound<'_, Self>) -> u16 {
        Self::headers(slf).ethertype
    }

    #[getter]
    fn vlan(slf: &Bound<'_, Self>) -> u16 {
        Self::headers(slf).vlan
    }

    #[getter]
    fn src_ip(slf: &Bound<'_, Self>) -> Option<String> {
        Self::address(slf, |both| both.0)
    }

    #[getter]
    fn dst_ip(slf: &Bound<'_, Self>) -> Option<String> {
        Self::address(slf, |both| both.1)
    }

    #[getter]
    fn protocol(slf: &Bound<'_, Self>) -> u8 {
        Self::headers(slf).protocol
    }

    #[getter]
    fn ttl(slf: &Bound<'_, Self>) -> u8 {
        super::columns::ttl(&Self::headers(slf), slf.as_super().get().bytes(slf.py()))
    }

    #[getter]
    fn src_port(slf: &Bound<'_, Self>) -> u16 {
        Self::headers(slf).source_port
    }

    #[getter]
    fn dst_port(slf: &Bound<'_, Self>) -> u16 {
        Self::headers(slf).destination_port
    }

    #[getter]
    fn tcp_flags(slf: &Bound<'_, Self>) -> u8 {
        super::columns::tcp_flags(&Self::headers(slf), slf.as_super().get().bytes(slf.py()))
    }

    #[getter]
    fn teid(slf: &Bound<'_, Self>) -> u32 {
        Self::headers(slf).teid
    }

    #[getter]
    fn is_ipv4(slf: &Bound<'_, Self>) -> bool {
        Self::is(slf, kind::IPV4)
    }

    #[getter]
    fn is_ipv6(slf: &Bound<'_, Self>) -> bool {
        Self::is(slf, kind::IPV6)
    }

    #[getter]
    fn is_arp(slf: &Bound<'_, Self>) -> bool {
        Self::is(slf, kind::ARP)
    }

    #[getter]
    fn is_tcp(slf: &Bound<'_, Self>) -> bool {
        Self::is(slf, kind::TCP)
    }

    #[getter]
    fn is_udp(slf: &Bound<'_, Self>) -> bool {
        Self::is(slf, kind::UDP)
    }

    #[getter]
    fn is_icmp(slf: &Bound<'_, Self>) -> bool {
        Self::is(slf, kind::ICMP)
    }

    #[getter]
    fn is_fragment(slf: &Bound<'_, Self>) -> bool {
        Self::is(slf, kind::FRAGMENT)
    }

    #[getter]
    fn is_gtpu(slf: &Bound<'_, Self>) -> bool {
        Self::is(slf, kind::GTPU)
    }

    #[getter]
    fn is_malformed(slf: &Bound<'_, Self>) -> bool {
        Self::is(slf, kind::MALFORMED)
    }

    #[getter]
    fn payload(slf: &Bound<'_, Self>) -> PyResult<Py<Packet>> {
        let packet = slf.as_super();
        let bytes = packet.get().bytes(slf.py());
        let (start, end) = payload(&Self::headers(slf), bytes);
        Packet::view(packet, start, end - start)
    }

    fn drop(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::decide(slf, Decision::Drop)
    }

    #[pyo3(signature = (port, /))]
    fn forward(slf: &Bound<'_, Self>, port: &Bound<'_, PyString>) -> PyResult<()> {
        if Self::forward_at_once(slf, port)? {
            return Ok(());
        }
        let to = usize::from(slf.get().engine.get().port_named(port)?);
        Self::decide(slf, Decision::Forward(to as PortIndex))
    }

    fn reply(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::decide(slf, Decision::Reply)
    }

    fn accept(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::decide(slf, Decision::Accept)
    }

    #[pyo3(signature = (**values))]
    fn rewrite(slf: &Bound<'_, Self>, values: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let (py, inner) = (slf.py(), slf.get());
        inner.engine.get().core.get().check_thread()?;
        let to = rewriting::parse(values)?;
        if let Some((batch, place)) = inner.place(py) {
            return batch.get().rewrite_one(py, place, &to);
        }
        let rewritten = Self::with_outgoing(slf, |bytes| {
            let mut head = Head::default();
            let frame = Lent::of(bytes);
            head.take(frame);
            let headers = Headers::read(head.bytes(), head.frame_len());
            edit::rewrite(&mut head, &headers, &to)?;
            let (front, rest) = (head.bytes(), head.rest(frame).len());
            Ok([front, &bytes[bytes.len() - rest..]].concat())
        })?;
        inner.set_outgoing(py, &rewritten.map_err(rewriting::error)?);
        Ok(())
    }

    fn again(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::decide(slf, Decision::Again)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.engine)?;
        self.state.peek(|state| state.place.as_ref().map_or(Ok(()), |(batch, _)| visit.call(batch))).unwrap_or(Ok(()))
    }
}
