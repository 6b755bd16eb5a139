//! A port's options, from a Python dictionary to an open port. What they mean is `crate::port::options`' business.

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyInt, PyString};

use super::capture::Capture;
use crate::port::memif::Role;
use crate::port::options::{self, Defaults, KINDS, LISTS, PortOptions};
use crate::port::{self, Port};
use crate::stack::HostConfig;

/// A value as texts: of a text or a number one, of a list any number.
fn texts(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    // True and False are numbers of Python's; as texts only keys that want them take them.
    let is_number = value.is_instance_of::<PyInt>() || value.is_instance_of::<PyFloat>();
    if value.is_none() {
        return Ok(Vec::new());
    }
    if value.is_instance_of::<PyString>() || is_number {
        return Ok(vec![value.str()?.extract()?]);
    }
    value.extract().or_else(|_| {
        let allowed = if LISTS.contains(&key) { "a text or a list of texts" } else { "a text or a number" };
        Err(PyValueError::new_err(format!("{key}: {}: expected {allowed}", value.repr()?)))
    })
}

/// A port by its options, with the kind it is of; its traffic is written where that is wanted.
pub fn open(
    name: &str,
    options: &Bound<'_, PyDict>,
    capture: Option<Py<Capture>>,
) -> PyResult<(&'static str, Box<dyn Port>, HostConfig)> {
    let parsed = parse(name, options)?;
    let kind = parsed.kind_name();
    let (port, host) = opened(parsed)?;
    let port = match capture {
        Some(capture) => capture.get().around(options.py(), port, name),
        None => port,
    };
    Ok((kind, port, host))
}

/// `type` says which kind of port the other options are of.
pub fn parse(name: &str, options: &Bound<'_, PyDict>) -> PyResult<PortOptions> {
    let kind: String = match options.get_item("type")? {
        Some(kind) => kind.extract()?,
        None => return Err(PyValueError::new_err(format!("type: missing: expected {}", KINDS.join(", ")))),
    };
    let mut pairs = Vec::new();
    for (key, value) in options {
        let key: String = key.extract()?;
        if key != "type" {
            pairs.extend(texts(&key, &value)?.into_iter().map(|text| (key.clone(), text)));
        }
    }
    let defaults = Defaults { name, role: Role::Server, mac: None };
    options::parse(&kind, pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())), defaults)
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

fn opened(options: PortOptions) -> PyResult<(Box<dyn Port>, HostConfig)> {
    match port::open(options) {
        Ok(opened) => Ok(opened),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Err(PyValueError::new_err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Every kind of port: its name, its keys, and how many of the first ones need no name in the one-line form.
#[pyfunction]
pub fn port_kinds() -> Vec<(&'static str, Vec<&'static str>, usize)> {
    KINDS.iter().map(|kind| (*kind, options::keys(kind), options::positional(kind).len())).collect()
}

/// The counters of packets that went no further, where there were some.
#[pyfunction]
#[pyo3(signature = (counters, /))]
pub fn drops<'py>(counters: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(counters.py());
    for (name, count) in counters {
        if port::counts_drops(&name.extract::<String>()?) && count.is_truthy()? {
            found.set_item(name, count)?;
        }
    }
    Ok(found)
}

/// Whether the options make a whole port; `ValueError` says what is missing.
#[pyfunction]
#[pyo3(signature = (options, /))]
pub fn port_check(options: &Bound<'_, PyDict>) -> PyResult<()> {
    parse("", options).map(drop)
}

/// The value of one key: a text, or of a list texts. `ValueError` says what is allowed, without the key and what was found.
#[pyfunction]
#[pyo3(signature = (kind, key, value, /))]
pub fn port_option<'py>(kind: &str, key: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let is_list = LISTS.contains(&key);
    let texts = texts(key, value).map_err(|_| {
        PyValueError::new_err(if is_list {
            "expected a text or a list of texts"
        } else {
            "expected a text or a number"
        })
    })?;
    if !is_list && texts.len() != 1 {
        return Err(PyValueError::new_err("expected one value"));
    }
    for text in &texts {
        options::check(kind, key, text).map_err(|error| PyValueError::new_err(error.problem))?;
    }
    match texts.as_slice() {
        [one] if !is_list => one.into_bound_py_any(value.py()),
        _ => texts.into_bound_py_any(value.py()),
    }
}
