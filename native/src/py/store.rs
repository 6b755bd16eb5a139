//! `StoreClient`: the face of `crate::state::client`. Calls return at once; `drain` tells what became of them.

use std::time::Duration;

use hashbrown::HashMap;
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, intern};

use super::cell::GilCell;
use crate::state::answer::{Answer, Failure, Said};
use crate::state::client::{Client, Drained, Refused};
use crate::state::header;
use crate::state::request::{Cursor, Octets, Request, Writes};
use crate::state::settings::Settings;
use crate::state::slots::{Table, Tables};
use crate::state::tls::Tls;
use crate::state::topology::Address;

/// What an answer looks like when there is none.
#[derive(Clone, Copy)]
enum Shape {
    Each(usize),
    Written(usize),
    One,
}

struct Waiting {
    done: Py<PyAny>,
    shape: Shape,
    writes: bool,
    weight: usize,
}

#[derive(Default)]
struct State {
    tables: Tables,
    waiting: HashMap<u64, Waiting>,
    next: u64,
    /// Its end was told.
    told: bool,
}

#[pyclass(frozen, weakref, module = "libvnf._native")]
pub struct StoreClient {
    client: Client,
    namespace: String,
    state: GilCell<State>,
}

fn error_class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import(intern!(py, "libvnf.errors"))?.getattr(name)
}

fn raised(py: Python<'_>, name: &str, text: &str) -> PyErr {
    match error_class(py, name).and_then(|class| class.call1((text,))) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

fn failure<'py>(py: Python<'py>, failure: &Failure) -> PyResult<Bound<'py, PyAny>> {
    let (name, text) = match failure {
        Failure::Refused(why) => ("StateError", why.as_str()),
        Failure::Unavailable(why) => ("StoreUnavailable", why.as_str()),
        Failure::Unknown(why) => ("DurabilityUnknown", why.as_str()),
        Failure::LockLost => ("LockLost", "the lock's lease ran out, or another owner has it"),
        Failure::NoEntry => ("Unreadable", "what stands under this key is no entry of a table"),
    };
    error_class(py, name)?.call1((text,))
}

/// `libvnf.state.store.Stored`, made as tuples are: its own `__new__` is Python code.
fn stored<'py>(py: Python<'py>, value: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    static MAKE: PyOnceLock<(Py<PyAny>, Py<PyType>)> = PyOnceLock::new();
    let (make, class) = MAKE.get_or_try_init(py, || {
        let make = py.get_type::<PyTuple>().getattr(intern!(py, "__new__"))?;
        let class = py.import(intern!(py, "libvnf.state.store"))?.getattr(intern!(py, "Stored"))?;
        PyResult::Ok((make.unbind(), class.cast_into::<PyType>()?.unbind()))
    })?;
    let Some(it) = header::Stored::parse(value) else {
        return Err(PyValueError::new_err("not an entry"));
    };
    let fields = (it.version, it.deadline_ms, PyBytes::new(py, it.recent), PyBytes::new(py, it.payload));
    make.bind(py).call1((class, fields))
}

fn stored_or_none<'py>(py: Python<'py>, value: Option<&Vec<u8>>) -> PyResult<Bound<'py, PyAny>> {
    value.map_or_else(|| Ok(py.None().into_bound(py)), |value| stored(py, value))
}

fn written<'py>(
    py: Python<'py>,
    conflicts: Bound<'py, PyList>,
    failed: Bound<'py, PyList>,
) -> PyResult<Bound<'py, PyAny>> {
    py.import(intern!(py, "libvnf.state.store"))?.getattr(intern!(py, "Written"))?.call1((conflicts, failed))
}

fn said<'py>(py: Python<'py>, said: &Said) -> PyResult<Bound<'py, PyAny>> {
    Ok(match said {
        Said::Nil => py.None().into_bound(py),
        Said::Integer(value) => value.into_pyobject(py)?.into_any(),
        Said::Data(data) => PyBytes::new(py, data).into_any(),
        Said::List(list) => {
            let list = list.iter().map(|it| self::said(py, it)).collect::<PyResult<Vec<_>>>()?;
            PyList::new(py, list)?.into_any()
        }
    })
}

fn entries<'py>(py: Python<'py>, entries: &[(Vec<u8>, Vec<u8>)]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (key, value) in entries {
        let found = match header::Stored::parse(value) {
            Some(_) => stored(py, value)?,
            None => failure(py, &Failure::NoEntry)?,
        };
        list.append((PyBytes::new(py, key), found))?;
    }
    Ok(list)
}

fn answer<'py>(py: Python<'py>, answer: &Answer) -> PyResult<Bound<'py, PyAny>> {
    Ok(match answer {
        Answer::Values(values) => {
            let list = PyList::empty(py);
            for value in values {
                list.append(match value {
                    Ok(value) => stored_or_none(py, value.as_ref())?,
                    Err(why) => failure(py, why)?,
                })?;
            }
            list.into_any()
        }
        Answer::Written { conflicts, failed } => {
            let (found, refused) = (PyList::empty(py), PyList::empty(py));
            for (index, value) in conflicts {
                found.append((index, stored_or_none(py, value.as_ref())?))?;
            }
            for (index, why) in failed {
                refused.append((index, failure(py, why)?))?;
            }
            written(py, found, refused)?
        }
        Answer::Found { cursor, entries: found } => {
            let cursor = cursor.map(|it| (it.epoch, it.node, it.cursor));
            (cursor, entries(py, found)?).into_pyobject(py)?.into_any()
        }
        Answer::Claimed(claimed) => entries(py, claimed)?.into_any(),
        Answer::Fence(fence) => fence.into_pyobject(py)?.into_any(),
        Answer::Done => py.None().into_bound(py),
        Answer::Said(it) => said(py, it)?,
        Answer::Failed(why) => failure(py, why)?,
    })
}

/// What `writes` gets when nothing will come any more.
fn unanswered<'py>(py: Python<'py>, waiting: &Waiting, why: &str) -> PyResult<Bound<'py, PyAny>> {
    let why = if waiting.writes { Failure::Unknown(why.to_owned()) } else { Failure::Unavailable(why.to_owned()) };
    let count = match waiting.shape {
        Shape::One => return failure(py, &why),
        Shape::Each(count) | Shape::Written(count) => count,
    };
    let list = PyList::empty(py);
    for index in 0..count {
        match waiting.shape {
            Shape::Written(_) => list.append((index, failure(py, &why)?))?,
            _ => list.append(failure(py, &why)?)?,
        }
    }
    match waiting.shape {
        Shape::Written(_) => written(py, PyList::empty(py), list),
        _ => Ok(list.into_any()),
    }
}

fn octets(list: &Bound<'_, PyList>) -> PyResult<Octets> {
    let mut octets = Octets::default();
    for item in list {
        octets.push(item.cast::<PyBytes>()?.as_bytes());
    }
    Ok(octets)
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    match Duration::try_from_secs_f64(value) {
        Ok(span) if !span.is_zero() => Ok(span),
        _ => Err(PyValueError::new_err(format!("{name}: {value}, expected a time above 0"))),
    }
}

impl StoreClient {
    fn submit(&self, py: Python<'_>, done: Py<PyAny>, shape: Shape, request: Request) -> PyResult<()> {
        let (writes, weight) = (request.writes(), request.weight());
        let id = self.state.with(py, |state| {
            state.next += 1;
            state.next
        });
        match self.client.submit(id, request) {
            Ok(()) => {
                let waiting = Waiting { done, shape, writes, weight };
                self.state.with(py, |state| state.waiting.insert(id, waiting));
                Ok(())
            }
            Err(Refused::Full) => Err(raised(py, "StateFull", "too much waits for the store")),
            Err(Refused::Closed) => Err(raised(py, "StateError", "the store is closed")),
        }
    }

    fn check(&self, py: Python<'_>, table: usize) -> PyResult<()> {
        let is_known = self.state.with(py, |state| state.tables.get(table).is_some());
        if is_known { Ok(()) } else { Err(PyValueError::new_err(format!("table {table} is not open"))) }
    }

    fn events<'py>(&self, py: Python<'py>, drained: &Drained) -> PyResult<Bound<'py, PyList>> {
        let events = PyList::empty(py);
        for (&table, stale) in &drained.news.stale {
            if stale.all {
                events.append((intern!(py, "invalid"), table, py.None()))?;
                continue;
            }
            if !stale.keys.is_empty() {
                let keys = PyList::new(py, stale.keys.iter().map(|key| PyBytes::new(py, key)))?;
                events.append((intern!(py, "invalid"), table, keys))?;
            }
            if !stale.partitions.is_empty() {
                let partitions = PyList::new(py, &stale.partitions)?;
                events.append((intern!(py, "deaf"), table, partitions))?;
            }
        }
        for lock in &drained.lapsed {
            events.append((intern!(py, "lock_lost"), lock.table, PyBytes::new(py, &lock.key), lock.owner))?;
        }
        if let Some(state) = &drained.news.state {
            let text = state.down.as_ref().map_or_else(|| "up".to_owned(), |why| format!("down: {why}"));
            events.append((intern!(py, "state"), text, state.hopeless))?;
        }
        Ok(events)
    }
}

#[pymethods]
impl StoreClient {
    #[new]
    #[pyo3(signature = (nodes, /, *, cluster=false, username=None, password=None, tls_ca=None,
        tls_identity=None, namespace="vnf", timeout_s=10.0,
        silence_s=1.0, replica_timeout_s=1.0, stall_limit_s=120.0, max_queued=65_536, max_queued_bytes=67_108_864,
        max_reply_bytes=201_326_592))]
    #[expect(clippy::too_many_arguments, reason = "named in Python")]
    fn new(
        py: Python<'_>,
        nodes: Vec<(String, u16)>,
        cluster: bool,
        username: Option<String>,
        password: Option<String>,
        tls_ca: Option<&[u8]>,
        tls_identity: Option<(Vec<u8>, Vec<u8>)>,
        namespace: &str,
        timeout_s: f64,
        silence_s: f64,
        replica_timeout_s: f64,
        stall_limit_s: f64,
        max_queued: usize,
        max_queued_bytes: usize,
        max_reply_bytes: usize,
    ) -> PyResult<Self> {
        if nodes.is_empty() {
            return Err(PyValueError::new_err("no node is named"));
        }
        // Tells a wrong namespace here, where its setting is.
        Table::new(namespace, "t", 1, false).map_err(|why| raised(py, "ConfigError", &why))?;
        let identity = tls_identity.as_ref().map(|(chain, key)| (&chain[..], &key[..]));
        let tls = tls_ca.map(|authorities| Tls::new(authorities, identity)).transpose();
        let settings = Settings {
            tls: tls.map_err(|why| raised(py, "ConfigError", &format!("TLS: {why}")))?,
            seeds: nodes.iter().map(|(host, port)| Address::new(host, *port)).collect(),
            cluster,
            username,
            password,
            timeout: seconds("timeout_s", timeout_s)?,
            silence: seconds("silence_s", silence_s)?,
            replica_timeout: seconds("replica_timeout_s", replica_timeout_s)?,
            stall_limit: seconds("stall_limit_s", stall_limit_s)?,
            longest_reply: max_reply_bytes,
            queued_operations: max_queued,
            queued_bytes: max_queued_bytes,
        };
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) as u32;
        let client = Client::start(settings, random)?;
        Ok(Self { client, namespace: namespace.to_owned(), state: GilCell::new(State::default()) })
    }

    #[getter]
    fn wake_fd(&self) -> i32 {
        self.client.wake_fd()
    }

    #[pyo3(signature = (name, partitions=64, keeps_expired=false, /))]
    fn table(&self, py: Python<'_>, name: &str, partitions: usize, keeps_expired: bool) -> PyResult<usize> {
        let wrong = |why: String| raised(py, "ConfigError", &format!("table '{name}': {why}"));
        let table = Table::new(&self.namespace, name, partitions, keeps_expired).map_err(wrong)?;
        let (handle, is_new) = self
            .state
            .with(py, |state| {
                let handle = state.tables.add(table.clone())?;
                Ok((handle, state.tables.get(handle + 1).is_none()))
            })
            .map_err(wrong)?;
        if is_new {
            self.client.add_table(table);
        }
        Ok(handle)
    }

    #[pyo3(signature = (done, table, keys, /))]
    fn read(&self, done: &Bound<'_, PyAny>, table: usize, keys: &Bound<'_, PyList>) -> PyResult<()> {
        let py = done.py();
        self.check(py, table)?;
        let keys = octets(keys)?;
        self.submit(py, done.clone().unbind(), Shape::Each(keys.len()), Request::Read { table, keys })
    }

    #[pyo3(signature = (done, table, keys, expected, first, payloads, deadlines=None, recents=None, update=false,
        replicas=0, guard=None, /))]
    #[expect(clippy::too_many_arguments, reason = "the columns of a batch, as the store's contract has them")]
    fn write(
        &self,
        done: &Bound<'_, PyAny>,
        table: usize,
        keys: &Bound<'_, PyList>,
        expected: Option<Vec<u64>>,
        first: u64,
        payloads: &Bound<'_, PyList>,
        deadlines: Option<Vec<u64>>,
        recents: Option<&Bound<'_, PyList>>,
        update: bool,
        replicas: u32,
        guard: Option<(Vec<u8>, u64)>,
    ) -> PyResult<()> {
        let py = done.py();
        self.check(py, table)?;
        let keys = octets(keys)?;
        let count = keys.len();
        let lengths = [
            ("expected", expected.as_ref().map(Vec::len)),
            ("payloads", Some(payloads.len())),
            ("deadlines", deadlines.as_ref().map(Vec::len)),
            ("recents", recents.map(PyListMethods::len)),
        ];
        if let Some((name, Some(length))) = lengths.into_iter().find(|(_, length)| length.is_some_and(|it| it != count))
        {
            return Err(PyValueError::new_err(format!("{name} has {length} entries, and there are {count} keys")));
        }
        if first == 0 || first.checked_add(count as u64).is_none() {
            return Err(PyOverflowError::new_err(format!("first: {first} is not the first of {count} versions")));
        }
        let (mut written, mut deleted) = (Octets::default(), Vec::new());
        for (index, payload) in payloads.iter().enumerate() {
            if payload.is_none() {
                deleted.push(index);
                written.push(&[]);
            } else {
                written.push(payload.cast::<PyBytes>()?.as_bytes());
            }
        }
        let writes = Writes {
            keys,
            expected,
            first,
            payloads: written,
            deleted,
            deadlines: deadlines.unwrap_or_default(),
            recents: recents.map(octets).transpose()?.unwrap_or_default(),
            update,
            replicas,
            guard,
        };
        let request = Request::Write { table, writes: Box::new(writes) };
        self.submit(py, done.clone().unbind(), Shape::Written(count), request)
    }

    #[pyo3(signature = (done, table, cursor, count, /))]
    fn scan(
        &self,
        done: &Bound<'_, PyAny>,
        table: usize,
        cursor: Option<(u64, usize, u64)>,
        count: usize,
    ) -> PyResult<()> {
        self.check(done.py(), table)?;
        let cursor = cursor.map(|(epoch, node, cursor)| Cursor { epoch, node, cursor });
        self.submit(done.py(), done.clone().unbind(), Shape::One, Request::Scan { table, cursor, count })
    }

    #[pyo3(signature = (done, table, /))]
    fn drop(&self, done: &Bound<'_, PyAny>, table: usize) -> PyResult<()> {
        self.check(done.py(), table)?;
        self.submit(done.py(), done.clone().unbind(), Shape::One, Request::Drop { table })
    }

    #[pyo3(signature = (done, table, now_ms, claim_ms, most, /))]
    fn claim_expired(
        &self,
        done: &Bound<'_, PyAny>,
        table: usize,
        now_ms: u64,
        claim_ms: u64,
        most: usize,
    ) -> PyResult<()> {
        self.check(done.py(), table)?;
        let request = Request::Claim { table, now_ms, claim_ms, most };
        self.submit(done.py(), done.clone().unbind(), Shape::One, request)
    }

    #[pyo3(signature = (done, table, keys, versions, /))]
    fn expired(
        &self,
        done: &Bound<'_, PyAny>,
        table: usize,
        keys: &Bound<'_, PyList>,
        versions: Vec<u64>,
    ) -> PyResult<()> {
        self.check(done.py(), table)?;
        let keys = octets(keys)?;
        if keys.len() != versions.len() {
            let found = format!("{} keys and {} versions", keys.len(), versions.len());
            return Err(PyValueError::new_err(found));
        }
        let request = Request::Expired { table, keys, versions };
        self.submit(done.py(), done.clone().unbind(), Shape::One, request)
    }

    #[pyo3(signature = (done, table, key, owner, lease_ms, hold_ms=0, /))]
    fn lock(
        &self,
        done: &Bound<'_, PyAny>,
        table: usize,
        key: Vec<u8>,
        owner: u64,
        lease_ms: u64,
        hold_ms: u64,
    ) -> PyResult<()> {
        self.check(done.py(), table)?;
        let request = Request::Lock { table, key, owner, lease_ms, hold_ms };
        self.submit(done.py(), done.clone().unbind(), Shape::One, request)
    }

    #[pyo3(signature = (done, table, key, owner, /))]
    fn unlock(&self, done: &Bound<'_, PyAny>, table: usize, key: Vec<u8>, owner: u64) -> PyResult<()> {
        self.check(done.py(), table)?;
        self.submit(done.py(), done.clone().unbind(), Shape::One, Request::Unlock { table, key, owner })
    }

    #[pyo3(signature = (done, words, /))]
    fn call(&self, done: &Bound<'_, PyAny>, words: &Bound<'_, PyList>) -> PyResult<()> {
        let words = octets(words)?;
        if words.len() < 2 {
            return Err(PyValueError::new_err("a command and a key are needed"));
        }
        self.submit(done.py(), done.clone().unbind(), Shape::One, Request::Call { words })
    }

    fn beat(&self) {
        self.client.beat();
    }

    fn go(&self) {
        self.client.go();
    }

    fn drain<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>)> {
        let drained = self.client.drain();
        let raised = PyList::empty(py);
        // One that raises does not keep the answers of the others back.
        let tell = |waiting: &Waiting, answer: Bound<'py, PyAny>| match waiting.done.bind(py).call1((answer,)) {
            Ok(_) => Ok(()),
            Err(error) => raised.append(error.into_value(py)),
        };
        for (id, it) in &drained.done {
            let Some(waiting) = self.state.with(py, |state| state.waiting.remove(id)) else { continue };
            self.client.release(waiting.weight);
            tell(&waiting, answer(py, it)?)?;
        }
        let events = self.events(py, &drained)?;
        if let Some(why) = &drained.ended {
            let text = why.as_deref().unwrap_or("the store was closed");
            let left = self.state.with(py, |state| std::mem::take(&mut state.waiting));
            for waiting in left.into_values() {
                self.client.release(waiting.weight);
                let answer = unanswered(py, &waiting, text)?;
                tell(&waiting, answer)?;
            }
            if !self.state.with(py, |state| std::mem::replace(&mut state.told, true)) {
                events.append((intern!(py, "state"), format!("down: {text}"), true))?;
            }
        }
        Ok((raised, events))
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = PyDict::new(py);
        for (name, value) in self.client.statistics() {
            statistics.set_item(name, value)?;
        }
        Ok(statistics)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.client.close());
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let visited = self.state.peek(|state| state.waiting.values().try_for_each(|waiting| visit.call(&waiting.done)));
        visited.unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let waiting = self.state.with(py, |state| std::mem::take(&mut state.waiting));
        drop(waiting);
    }
}
