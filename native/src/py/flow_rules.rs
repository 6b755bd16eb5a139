//! The rules of an engine, for Python: `libvnf/flows.py` over `crate::flow::table`.
//!
//! Matches and actions are the values of `libvnf/flow.py`, read by their attributes; what is told back are tuples in the
//! order of the fields there. Ports have names in Python and places here.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use pyo3::{PyTraverseError, PyVisit, intern};

use super::core::Core;
use super::engine::Engine;
use super::frames::CLOSED;
use crate::flow::table::AT_ONCE;
use crate::flow::{Action, Encapsulate, Expiry, Limit, Match, PortIndex, Refused, Rewrite, Rule, Statistics};
use crate::packet::ethernet::{mac_text, parse_mac};
use crate::port::options;
use crate::stack::Cidr;

/// Rules whose end Python is told of at once: some hundreds of microseconds, and frames are waiting.
const TOLD_AT_ONCE: usize = 16;

/// The fields of `flow.Match`.
type Fields = (
    Option<String>,
    Option<String>,
    Option<String>,
    Option<u16>,
    Option<u16>,
    Option<String>,
    Option<String>,
    Option<u8>,
    Option<u16>,
    Option<u16>,
    Option<u32>,
    i32,
);
/// The fields of `flow.Statistics`.
type Figures = (u64, u64, u64, u64, f64);
/// A page of rules, and where the next one begins.
type Page = (Vec<Fields>, Option<usize>);

#[pyclass(frozen, module = "libvnf._native")]
pub struct FlowTable {
    engine: Py<Engine>,
}

#[pymethods]
impl FlowTable {
    #[new]
    #[pyo3(signature = (engine, /))]
    fn new(engine: Py<Engine>) -> Self {
        Self { engine }
    }

    #[pyo3(signature = (matching, actions, /, *, idle_s=None, hard_s=None))]
    fn install(
        &self,
        py: Python<'_>,
        matching: &Bound<'_, PyAny>,
        actions: &Bound<'_, PyAny>,
        idle_s: Option<f64>,
        hard_s: Option<f64>,
    ) -> PyResult<bool> {
        let engine = self.owner(py)?;
        let matching = engine.read_match(py, matching)?;
        let actions = actions.try_iter()?.map(|action| engine.read_action(py, &action?)).collect::<PyResult<_>>()?;
        let rule = Rule { actions, idle: seconds(idle_s)?, hard: seconds(hard_s)? };
        let now = engine.now(py);
        let (installed, wakes) = engine.state.with(py, |state| {
            let Some(forwarder) = &mut state.forwarder else { return (Err(Refused::Full), false) };
            let installed = forwarder.install(matching, rule, now);
            let deadline = forwarder.table().deadline();
            (installed, state.wakes_for(deadline))
        });
        if wakes {
            engine.call_wake(py);
        }
        installed.map_err(|refused| match refused {
            Refused::Full | Refused::Memory => PyOverflowError::new_err(refused.to_string()),
            refused => PyValueError::new_err(refused.to_string()),
        })
    }

    #[pyo3(signature = (matching, /))]
    fn remove(&self, py: Python<'_>, matching: &Bound<'_, PyAny>) -> PyResult<Option<Figures>> {
        let engine = self.owner(py)?;
        let matching = engine.read_match(py, matching)?;
        let now = engine.now(py);
        Ok(engine.state.with(py, |state| state.forwarder.as_mut()?.remove(&matching, now)).map(figures))
    }

    #[pyo3(signature = (matching, /))]
    fn statistics(&self, py: Python<'_>, matching: &Bound<'_, PyAny>) -> PyResult<Option<Figures>> {
        let engine = self.owner(py)?;
        let (matching, now) = (engine.read_match(py, matching)?, engine.now(py));
        Ok(engine.state.with(py, |state| state.forwarder.as_ref()?.table().statistics(&matching, now)).map(figures))
    }

    #[pyo3(signature = (start, most, /))]
    fn page(&self, py: Python<'_>, start: usize, most: usize) -> PyResult<Page> {
        let engine = self.owner(py)?;
        let now = engine.now(py);
        let page = engine.state.with(py, |state| Some(state.forwarder.as_ref()?.table().list(start, most, now)));
        let (listed, next) = page.unwrap_or_default();
        let names = engine.port_names(py);
        Ok((listed.iter().map(|listed| fields(&names, &listed.flow)).collect(), next))
    }

    /// `None` for nobody.
    #[pyo3(signature = (told, /))]
    fn on_ended(&self, py: Python<'_>, told: Option<Py<PyAny>>) -> PyResult<()> {
        let engine = self.engine.get();
        engine.core.get().check_thread()?;
        let old = engine.on_ended.with(py, |kept| std::mem::replace(kept, told));
        drop(old);
        Ok(())
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.engine.get().core.get().check_thread()?;
        let counted = self.engine.get().state.with(py, |state| {
            let table = state.forwarder.as_ref()?.table();
            Some((table.len() as u64, table.counters().list()))
        });
        let found = PyDict::new(py);
        let Some((installed, counters)) = counted else { return Ok(found) };
        found.set_item("open", installed)?;
        for (name, count) in counters {
            found.set_item(name, count)?;
        }
        Ok(found)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        let engine = self.engine.get();
        engine.core.get().check_thread()?;
        Ok(engine.state.with(py, |state| state.forwarder.as_ref().map_or(0, |forwarder| forwarder.table().len())))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.engine)
    }
}

impl FlowTable {
    fn owner(&self, py: Python<'_>) -> PyResult<&Engine> {
        let engine = self.engine.get();
        engine.core.get().check_thread()?;
        if engine.state.with(py, |state| state.ports.is_empty()) {
            return Err(PyValueError::new_err(CLOSED));
        }
        Ok(engine)
    }
}

impl Engine {
    /// Ends the rules whose time has come, and tells of them.
    pub fn expire(&self, py: Python<'_>, now: Instant) {
        let told = self.on_ended.with(py, |told| told.as_ref().map(|told| told.clone_ref(py)));
        let most = if told.is_some() { TOLD_AT_ONCE } else { AT_ONCE };
        let ended = self.state.with(py, |state| {
            let mut ended = Vec::new();
            if let Some(forwarder) = &mut state.forwarder
                && forwarder.table().deadline().is_some_and(|deadline| deadline <= now)
            {
                forwarder.expire(now, most, &mut ended);
            }
            ended
        });
        let Some(told) = told.filter(|_| !ended.is_empty()) else { return };
        let names = self.port_names(py);
        let rows: Vec<_> = ended
            .iter()
            .map(|(matching, reason, statistics)| {
                (fields(&names, matching), self::reason(*reason), figures(*statistics))
            })
            .collect();
        if let Err(error) = PyList::new(py, rows).and_then(|rows| told.call1(py, (rows,))) {
            Core::failed(&self.core, py, None, None, error);
        }
    }

    fn port_names(&self, py: Python<'_>) -> Vec<String> {
        self.names.with(py, |names| names.clone())
    }

    fn read_match(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Match> {
        let port = value.getattr(intern!(py, "port"))?;
        Ok(Match {
            port: if port.is_none() { None } else { Some(self.port_named(port.cast()?)? as PortIndex) },
            source_mac: parsed(&value.getattr(intern!(py, "src_mac"))?, parse_mac)?,
            destination_mac: parsed(&value.getattr(intern!(py, "dst_mac"))?, parse_mac)?,
            vlan: value.getattr(intern!(py, "vlan"))?.extract()?,
            ethertype: value.getattr(intern!(py, "ethertype"))?.extract()?,
            source: parsed(&value.getattr(intern!(py, "src_ip"))?, cidr)?,
            destination: parsed(&value.getattr(intern!(py, "dst_ip"))?, cidr)?,
            protocol: value.getattr(intern!(py, "protocol_number"))?.extract()?,
            source_port: value.getattr(intern!(py, "src_port"))?.extract()?,
            destination_port: value.getattr(intern!(py, "dst_port"))?.extract()?,
            teid: value.getattr(intern!(py, "teid"))?.extract()?,
            priority: value.getattr(intern!(py, "priority"))?.extract()?,
        })
    }

    fn read_action(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Action> {
        let kind: String = value.getattr(intern!(py, "kind"))?.extract()?;
        let port = || -> PyResult<PortIndex> {
            let name = value.getattr(intern!(py, "port"))?;
            Ok(self.port_named(name.cast()?)? as PortIndex)
        };
        let address = |name: &Bound<'_, PyString>| parsed(&value.getattr(name)?, ip);
        Ok(match kind.as_str() {
            "count" => Action::Count,
            "decapsulate" => Action::Decapsulate,
            "drop" => Action::Drop,
            "reply" => Action::Reply,
            "accept" => Action::Accept,
            "to_python" => Action::ToPython,
            "forward" => Action::Forward(port()?),
            "route" => Action::Route(port()?),
            "limit" => Action::Limit(Limit {
                bits_per_s: value.getattr(intern!(py, "bps"))?.extract()?,
                burst_bytes: value.getattr(intern!(py, "burst_bytes"))?.extract()?,
            }),
            "rewrite" => Action::Rewrite(Rewrite {
                source_mac: parsed(&value.getattr(intern!(py, "src_mac"))?, parse_mac)?,
                destination_mac: parsed(&value.getattr(intern!(py, "dst_mac"))?, parse_mac)?,
                vlan: value.getattr(intern!(py, "vlan"))?.extract()?,
                source: address(intern!(py, "src_ip"))?,
                destination: address(intern!(py, "dst_ip"))?,
                source_port: value.getattr(intern!(py, "src_port"))?.extract()?,
                destination_port: value.getattr(intern!(py, "dst_port"))?.extract()?,
                ttl: value.getattr(intern!(py, "ttl"))?.extract()?,
                dscp: value.getattr(intern!(py, "dscp"))?.extract()?,
            }),
            "encapsulate" => Action::Encapsulate(Encapsulate {
                teid: value.getattr(intern!(py, "teid"))?.extract()?,
                source: address(intern!(py, "src_ip"))?.ok_or_else(|| PyValueError::new_err("src_ip: missing"))?,
                destination: address(intern!(py, "dst_ip"))?.ok_or_else(|| PyValueError::new_err("dst_ip: missing"))?,
                source_port: value.getattr(intern!(py, "src_port"))?.extract()?,
            }),
            _ => return Err(PyValueError::new_err(format!("{kind:?} is not an action"))),
        })
    }
}

fn parsed<T>(value: &Bound<'_, PyAny>, parse: impl FnOnce(&str) -> Option<T>) -> PyResult<Option<T>> {
    if value.is_none() {
        return Ok(None);
    }
    let text = value.cast::<PyString>()?.to_str()?;
    parse(text).map(Some).ok_or_else(|| PyValueError::new_err(format!("{text:?} is not an address")))
}

fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

fn cidr(text: &str) -> Option<Cidr> {
    if text.contains('/') {
        return options::cidr("", text).ok();
    }
    let address: IpAddr = text.parse().ok()?;
    Some(Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } })
}

fn seconds(value: Option<f64>) -> PyResult<Option<Duration>> {
    let wrong = |_| PyValueError::new_err("a timeout: expected seconds");
    value.map(Duration::try_from_secs_f64).transpose().map_err(wrong)
}

fn reason(expiry: Expiry) -> &'static str {
    match expiry {
        Expiry::Idle => "idle",
        Expiry::Hard => "hard",
    }
}

fn figures(statistics: Statistics) -> Figures {
    let Statistics { packets, bytes, limited, failed, idle } = statistics;
    (packets, bytes, limited, failed, idle.as_secs_f64())
}

fn fields(names: &[String], matching: &Match) -> Fields {
    let shown = |cidr: Cidr| match (cidr.address, cidr.prefix) {
        (address @ IpAddr::V4(_), 32) | (address @ IpAddr::V6(_), 128) => address.to_string(),
        (address, prefix) => format!("{address}/{prefix}"),
    };
    (
        matching.port.and_then(|port| names.get(usize::from(port)).cloned()),
        matching.source_mac.map(mac_text),
        matching.destination_mac.map(mac_text),
        matching.vlan,
        matching.ethertype,
        matching.source.map(shown),
        matching.destination.map(shown),
        matching.protocol,
        matching.source_port,
        matching.destination_port,
        matching.teid,
        matching.priority,
    )
}
