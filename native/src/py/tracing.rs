//! The next frames that match, each with what came of it: `vnf trace`.
//!
//! While a trace runs the ports of an engine are watched (`port/watched.rs`), so that one frame at a time comes through
//! them, and every burst is settled before the next: what was sent, and which counters rose, is that frame's doing. When
//! it has ended the ports are bare again. A trace is bounded by the frames that it is for, and by who started it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::core::Core;
use super::engine::{Engine, State};
use crate::packet::ethernet::mac_text;
use crate::packet::headers::{Headers, kind};
use crate::packet::{array, protocol};
use crate::port::watched::{self, Glimpse, Noting, Watch, Watched, WatchedPort};
use crate::port::{self, Sent};
use crate::stack::Cidr;

/// Frames that one trace may be for.
const MOST: usize = 10_000;
const KINDS: [(u16, &str); 9] = [
    (kind::IPV4, "ipv4"),
    (kind::IPV6, "ipv6"),
    (kind::ARP, "arp"),
    (kind::TCP, "tcp"),
    (kind::UDP, "udp"),
    (kind::ICMP, "icmp"),
    (kind::FRAGMENT, "fragment"),
    (kind::GTPU, "gtpu"),
    (kind::MALFORMED, "malformed"),
];

/// Counters by name, per place: the ports, then the VNF's own.
type Counted = Vec<Vec<(&'static str, u64)>>;

/// Frames that are asked for. What is `None` may be anything; `ip` and `number` may be of either side.
#[derive(Default)]
struct Filter {
    port: Option<usize>,
    vlan: Option<u16>,
    kind: Option<u16>,
    protocol: Option<u8>,
    ip: Option<Cidr>,
    source: Option<Cidr>,
    destination: Option<Cidr>,
    number: Option<u16>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    teid: Option<u32>,
    /// Only frames that something dropped.
    dropped: bool,
}

impl Filter {
    fn parse(state: &State, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut filter = Self::default();
        for (key, value) in options {
            let key: String = key.extract()?;
            let wrong = |_| PyValueError::new_err(format!("{key}: {value}: that is not its kind of value"));
            match key.as_str() {
                "port" => {
                    let name: String = value.extract().map_err(wrong)?;
                    let names = || state.ports.iter().map(|open| open.name.as_str()).collect::<Vec<_>>().join(", ");
                    let found = state.ports.iter().position(|open| open.name == name);
                    let missing = || PyValueError::new_err(format!("there is no port {name:?}: expected {}", names()));
                    filter.port = Some(found.ok_or_else(missing)?);
                }
                "vlan" => filter.vlan = Some(value.extract().map_err(wrong)?),
                "kind" => {
                    let name: String = value.extract().map_err(wrong)?;
                    let found = KINDS.iter().find(|(_, known)| *known == name);
                    let names = || KINDS.map(|(_, known)| known).join(", ");
                    let missing = || PyValueError::new_err(format!("{name:?} is not a kind: expected {}", names()));
                    filter.kind = Some(found.ok_or_else(missing)?.0);
                }
                "protocol" => filter.protocol = Some(value.extract().map_err(wrong)?),
                "ip" => filter.ip = Some(network(&value)?),
                "src_ip" => filter.source = Some(network(&value)?),
                "dst_ip" => filter.destination = Some(network(&value)?),
                "number" => filter.number = Some(value.extract().map_err(wrong)?),
                "src_port" => filter.source_port = Some(value.extract().map_err(wrong)?),
                "dst_port" => filter.destination_port = Some(value.extract().map_err(wrong)?),
                "teid" => filter.teid = Some(value.extract().map_err(wrong)?),
                "dropped" => filter.dropped = value.extract().map_err(wrong)?,
                _ => return Err(PyValueError::new_err(format!("{key}: unknown"))),
            }
        }
        Ok(filter)
    }

    fn wants(&self, frame: &Glimpse, is_dropped: bool) -> bool {
        let headers = Headers::read(&frame.head, frame.len);
        let addresses = headers.addresses(&frame.head);
        let within = |network: Option<Cidr>, address: fn((IpAddr, IpAddr)) -> IpAddr| {
            network.is_none_or(|network| addresses.is_some_and(|both| network.contains(address(both))))
        };
        let is = |wanted: Option<u16>, found: u16| wanted.is_none_or(|wanted| wanted == found);
        (!self.dropped || is_dropped)
            && self.port.is_none_or(|port| port == frame.port)
            && is(self.vlan, headers.vlan)
            && self.kind.is_none_or(|kind| headers.is(kind))
            && self.protocol.is_none_or(|protocol| protocol == headers.protocol && addresses.is_some())
            && (within(self.ip, |both| both.0) || within(self.ip, |both| both.1))
            && within(self.source, |both| both.0)
            && within(self.destination, |both| both.1)
            && (is(self.number, headers.source_port) || is(self.number, headers.destination_port))
            && is(self.source_port, headers.source_port)
            && is(self.destination_port, headers.destination_port)
            && self.teid.is_none_or(|teid| headers.is(kind::GTPU) && teid == headers.teid)
    }
}

fn network(value: &Bound<'_, PyAny>) -> PyResult<Cidr> {
    let text: String = value.extract()?;
    let parse = || {
        let (address, prefix) = text.split_once('/').map_or((text.as_str(), None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(most), |prefix| prefix.parse().ok().filter(|prefix| *prefix <= most))?;
        Some(Cidr { address, prefix })
    };
    parse().ok_or_else(|| PyValueError::new_err(format!("{text:?} is not an IP address or network")))
}

/// One frame, and what came of it.
struct Traced {
    at: SystemTime,
    took: Duration,
    watched: Watched,
    /// Counters that rose: the place, the name, by how much.
    rose: Vec<(usize, &'static str, u64)>,
}

pub struct Trace {
    filter: Filter,
    left: usize,
    /// Frames that came through, wanted or not.
    looked_at: u64,
    watch: Arc<Watch>,
    traced: Vec<Traced>,
    _noting: Noting,
}

/// Called before a burst is taken. None, at once, where nothing is traced.
#[inline]
pub fn before(engine: &Engine, py: Python<'_>) -> Option<Counted> {
    engine.state.with(py, |state| {
        let trace = state.trace.as_ref().filter(|trace| trace.left > 0)?;
        trace.watch.begin();
        Some(counted(state, engine.core.get()))
    })
}

/// Called when the burst has been delivered, with what `before` returned.
pub fn after(engine: &Engine, py: Python<'_>, before: Option<Counted>) {
    let Some(before) = before else { return };
    let has_frame = engine.state.with(py, |state| state.trace.as_ref().is_some_and(|trace| trace.watch.has_frame()));
    if has_frame {
        Core::settle(&engine.core, py);
    }
    let end = Instant::now();
    engine.state.with(py, |state| {
        let now = counted(state, engine.core.get());
        let Some(trace) = &mut state.trace else { return };
        let Some(watched) = trace.watch.end() else { return };
        let took = end.saturating_duration_since(watched.since);
        trace.looked_at += 1;
        let rose = rose(&before, &now);
        let is_dropped = rose.iter().any(|(_, name, _)| port::counts_drops(name));
        if trace.filter.wants(&watched.frame, is_dropped) {
            trace.left -= 1;
            trace.traced.push(Traced { at: SystemTime::now(), took, watched, rose });
        }
        if trace.left == 0 {
            unwatch(state);
        }
    });
}

fn counted(state: &State, core: &Core) -> Counted {
    state.ports.iter().map(|open| open.counters()).chain([core.counters.list()]).collect()
}

fn rose(before: &Counted, now: &Counted) -> Vec<(usize, &'static str, u64)> {
    let places = before.iter().zip(now).enumerate();
    places
        .flat_map(|(place, (old, new))| {
            let pairs = old.iter().zip(new);
            pairs
                .filter(|(old, new)| old.0 == new.0 && new.1 > old.1)
                .map(move |(old, new)| (place, new.0, new.1 - old.1))
        })
        .collect()
}

/// The ports are bare again.
fn unwatch(state: &mut State) {
    for open in &mut state.ports {
        if let Some(inner) = open.port.unwatched() {
            open.port = inner;
        }
    }
}

/// Who deals with a message now.
#[inline]
pub fn called(py: Python<'_>, how: &str, function: &Py<PyAny>) {
    watched::note(|| {
        let name = function.bind(py).getattr(intern!(py, "__qualname__")).and_then(|name| name.extract::<String>());
        format!("{how} {}", name.unwrap_or_else(|_| "function".into()))
    });
}

/// A message waits to be received by whoever has its connection.
#[inline]
pub fn awaited() {
    watched::note(|| "inbox of a coroutine".into());
}

/// Begins a trace of up to `count` frames that match `options`.
#[pyfunction]
#[pyo3(signature = (engine, count, options, /))]
pub fn trace_start(engine: &Bound<'_, Engine>, count: usize, options: &Bound<'_, PyDict>) -> PyResult<()> {
    let (py, inner) = (engine.py(), engine.get());
    inner.core.get().check_thread()?;
    if !(1..=MOST).contains(&count) {
        return Err(PyValueError::new_err(format!("count: {count}: expected 1 to {MOST}")));
    }
    inner.state.with(py, |state| {
        if state.trace.is_some() {
            return Err(PyRuntimeError::new_err("another trace runs"));
        }
        let filter = Filter::parse(state, options)?;
        let watch = Arc::<Watch>::default();
        let ports = std::mem::take(&mut state.ports).into_iter().enumerate();
        state.ports = ports
            .map(|(index, mut open)| {
                open.port = Box::new(WatchedPort::new(open.port, index, watch.clone()));
                open
            })
            .collect();
        let noting = Noting::default();
        state.trace =
            Some(Box::new(Trace { filter, left: count, looked_at: 0, watch, traced: Vec::new(), _noting: noting }));
        Ok(())
    })
}

/// What was traced since, how many more are wanted, and how many frames came through at all.
#[pyfunction]
#[pyo3(signature = (engine, /))]
pub fn trace_take<'py>(engine: &Bound<'py, Engine>) -> PyResult<(Bound<'py, PyList>, usize, u64)> {
    let (py, inner) = (engine.py(), engine.get());
    inner.core.get().check_thread()?;
    let (traced, left, looked_at, names) = inner.state.with(py, |state| {
        let names: Vec<_> = state.ports.iter().map(|open| open.name.clone()).collect();
        match &mut state.trace {
            Some(trace) => (std::mem::take(&mut trace.traced), trace.left, trace.looked_at, names),
            None => (Vec::new(), 0, 0, names),
        }
    });
    let list = PyList::empty(py);
    for one in traced {
        list.append(one.into_dict(py, &names)?)?;
    }
    Ok((list, left, looked_at))
}

/// Ends the trace, if there is one.
#[pyfunction]
#[pyo3(signature = (engine, /))]
pub fn trace_stop(engine: &Bound<'_, Engine>) -> PyResult<()> {
    let inner = engine.get();
    inner.core.get().check_thread()?;
    inner.state.with(engine.py(), |state| {
        unwatch(state);
        state.trace = None;
    });
    Ok(())
}

impl Traced {
    fn into_dict<'py>(self, py: Python<'py>, names: &[String]) -> PyResult<Bound<'py, PyDict>> {
        let Self { at, took, watched, rose } = self;
        let found = PyDict::new(py);
        found.set_item("at_s", at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())?;
        found.set_item("ns", took.as_nanos() as u64)?;
        found.set_item("frame", frame(py, &watched.frame, names)?)?;
        found.set_item("notes", watched.notes)?;
        let counters = PyDict::new(py);
        for (place, name, more) in rose {
            // The last place is the VNF itself.
            let place = names.get(place).map_or("", String::as_str);
            let of = match counters.get_item(place)? {
                Some(of) => of.cast_into::<PyDict>()?,
                None => PyDict::new(py),
            };
            of.set_item(name, more)?;
            counters.set_item(place, of)?;
        }
        found.set_item("counters", counters)?;
        let sent = PyList::empty(py);
        for (glimpse, became) in &watched.sent {
            let one = frame(py, glimpse, names)?;
            let became = match became {
                Sent::Queued => "sent",
                Sent::Full => "full",
                Sent::TooLong => "too long",
                Sent::Down => "down",
            };
            one.set_item("became", became)?;
            sent.append(one)?;
        }
        found.set_item("out", sent)?;
        Ok(found)
    }
}

/// A frame's port, length and header fields: those that it has.
fn frame<'py>(py: Python<'py>, glimpse: &Glimpse, names: &[String]) -> PyResult<Bound<'py, PyDict>> {
    let Glimpse { port, len, head } = glimpse;
    let headers = Headers::read(head, *len);
    let found = PyDict::new(py);
    found.set_item("port", names.get(*port))?;
    found.set_item("bytes", len)?;
    let kinds: Vec<_> = KINDS.iter().filter(|(kind, _)| headers.is(*kind)).map(|(_, name)| *name).collect();
    found.set_item("kinds", kinds)?;
    if head.len() >= 12 {
        found.set_item("dst_mac", mac_text(array(head, 0)))?;
        found.set_item("src_mac", mac_text(array(head, 6)))?;
        found.set_item("ethertype", headers.ethertype)?;
    }
    if headers.tags > 0 {
        found.set_item("vlan", headers.vlan)?;
    }
    let (network, transport) = (usize::from(headers.network), usize::from(headers.transport));
    if let Some((source, destination)) = headers.addresses(head) {
        found.set_item("src_ip", source.to_string())?;
        found.set_item("dst_ip", destination.to_string())?;
        found.set_item("protocol", headers.protocol)?;
    }
    // RFC 826: operation, and the addresses of sender and target.
    if let (true, Some(arp)) = (headers.is(kind::ARP), head.get(network..network + 28)) {
        found.set_item("arp", u16::from_be_bytes([arp[6], arp[7]]))?;
        found.set_item("src_ip", IpAddr::from([arp[14], arp[15], arp[16], arp[17]]).to_string())?;
        found.set_item("dst_ip", IpAddr::from([arp[24], arp[25], arp[26], arp[27]]).to_string())?;
    }
    if headers.is(kind::TCP) || headers.is(kind::UDP) {
        found.set_item("src_port", headers.source_port)?;
        found.set_item("dst_port", headers.destination_port)?;
    }
    if headers.is(kind::GTPU) {
        found.set_item("teid", headers.teid)?;
    }
    match (headers.protocol, head.get(transport..).filter(|_| transport > 0)) {
        (protocol::TCP, Some([_, _, _, _, _, _, _, _, _, _, _, _, _, flags, ..])) => {
            found.set_item("tcp_flags", flags)?;
        }
        (protocol::ICMP | protocol::ICMPV6, Some([icmp_type, code, ..])) => {
            found.set_item("icmp", (icmp_type, code))?;
        }
        _ => {}
    }
    Ok(found)
}
