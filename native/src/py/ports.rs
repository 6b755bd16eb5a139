//! A port's options, from a Python dictionary to an open port. What they mean is `crate::port::options`' business.

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyString};

use crate::port::Port;
use crate::port::memif::{Memif, Role};
use crate::port::options::{self, Defaults, KEYS, LISTS, PortOptions};

/// A value as texts: of a text or a number one, of a list any number.
fn texts(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    let is_number =
        (value.is_instance_of::<PyInt>() && !value.is_instance_of::<PyBool>()) || value.is_instance_of::<PyFloat>();
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

pub fn parse(name: &str, options: &Bound<'_, PyDict>) -> PyResult<PortOptions> {
    let mut pairs = Vec::new();
    for (key, value) in options {
        let key: String = key.extract()?;
        for text in texts(&key, &value)? {
            match (key.as_str(), text.as_str()) {
                ("type", "memif") => {}
                ("type", other) => return Err(PyValueError::new_err(format!("type: '{other}': expected memif"))),
                _ => pairs.push((key.clone(), text)),
            }
        }
    }
    let defaults = Defaults { name, role: Role::Server, mac: None };
    options::parse(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())), defaults)
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

pub fn open(options: &PortOptions) -> PyResult<Box<dyn Port>> {
    match Memif::new(options.memif.clone()) {
        Ok(port) => Ok(Box::new(port)),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Err(PyValueError::new_err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Every key of a memif port.
#[pyfunction]
pub fn port_keys() -> [&'static str; KEYS.len()] {
    KEYS
}

/// The value of one key: a text, or of a list texts. `ValueError` says what is allowed, without the key and what was found.
#[pyfunction]
#[pyo3(signature = (key, value, /))]
pub fn port_option<'py>(key: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
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
        options::check(key, text).map_err(|error| PyValueError::new_err(error.problem))?;
    }
    match texts.as_slice() {
        [one] if !is_list => one.into_bound_py_any(value.py()),
        _ => texts.into_bound_py_any(value.py()),
    }
}
