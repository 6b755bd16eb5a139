//! The framings an author names, and the id field, as Python classes.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::framing::{Framing, LARGEST_MESSAGE};

/// Every message is `size` bytes. On datagrams: the size a datagram must have.
#[pyclass(frozen, module = "libvnf._native")]
pub struct Fixed {
    #[pyo3(get)]
    size: usize,
}

#[pymethods]
impl Fixed {
    #[new]
    fn new(size: i64) -> PyResult<Self> {
        match usize::try_from(size) {
            Ok(size) if (1..=LARGEST_MESSAGE).contains(&size) => Ok(Self { size }),
            _ => Err(PyValueError::new_err(format!("Fixed({size}): expected 1 to {LARGEST_MESSAGE} bytes"))),
        }
    }

    fn __repr__(&self) -> String {
        format!("Fixed({})", self.size)
    }
}

/// A big-endian length field of `size` bytes at `offset` tells how many bytes follow it.
#[pyclass(frozen, module = "libvnf._native")]
pub struct LengthPrefixed {
    #[pyo3(get)]
    size: usize,
    #[pyo3(get)]
    offset: usize,
    #[pyo3(get)]
    adjust: i64,
    #[pyo3(get)]
    strip: bool,
    #[pyo3(get)]
    limit: usize,
}

#[pymethods]
impl LengthPrefixed {
    #[new]
    #[pyo3(signature = (size, offset=0, adjust=0, strip=false, limit=16_777_216))]
    fn new(size: usize, offset: usize, adjust: i64, strip: bool, limit: usize) -> PyResult<Self> {
        if !matches!(size, 1 | 2 | 3 | 4 | 8) {
            return Err(PyValueError::new_err(format!("LengthPrefixed: size is {size}: expected 1, 2, 3, 4 or 8")));
        }
        if offset > 65_536 {
            return Err(PyValueError::new_err(format!("LengthPrefixed: offset is {offset}: expected at most 65536")));
        }
        if !(1..=LARGEST_MESSAGE).contains(&limit) {
            return Err(PyValueError::new_err(format!(
                "LengthPrefixed: limit is {limit}: expected 1 to {LARGEST_MESSAGE}"
            )));
        }
        Ok(Self { size, offset, adjust, strip, limit })
    }
}

/// A message ends with `delimiter`, which is not delivered.
#[pyclass(frozen, module = "libvnf._native")]
pub struct Delimiter {
    delimiter: Box<[u8]>,
    #[pyo3(get)]
    limit: usize,
}

#[pymethods]
impl Delimiter {
    #[new]
    #[pyo3(signature = (delimiter, limit=65_536))]
    fn new(delimiter: &[u8], limit: usize) -> PyResult<Self> {
        if delimiter.is_empty() || delimiter.len() > 256 {
            return Err(PyValueError::new_err("Delimiter: expected 1 to 256 bytes"));
        }
        if !(1..=LARGEST_MESSAGE).contains(&limit) {
            return Err(PyValueError::new_err(format!("Delimiter: limit is {limit}: expected 1 to {LARGEST_MESSAGE}")));
        }
        Ok(Self { delimiter: delimiter.into(), limit })
    }

    #[getter]
    fn delimiter<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.delimiter)
    }
}

/// A big-endian unsigned number in every message.
#[pyclass(frozen, module = "libvnf._native")]
pub struct Field {
    #[pyo3(get)]
    offset: usize,
    #[pyo3(get)]
    size: usize,
}

#[pymethods]
impl Field {
    #[new]
    fn new(offset: usize, size: usize) -> PyResult<Self> {
        if !matches!(size, 1 | 2 | 4 | 8) {
            return Err(PyValueError::new_err(format!("Field: size is {size}: expected 1, 2, 4 or 8")));
        }
        if offset > 65_536 {
            return Err(PyValueError::new_err(format!("Field: offset is {offset}: expected at most 65536")));
        }
        Ok(Self { offset, size })
    }
}

impl Field {
    pub fn read(&self, bytes: &[u8]) -> Option<u64> {
        let field = bytes.get(self.offset..self.offset + self.size)?;
        Some(field.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// Writes the low bytes of `number`; false when the message is too short.
    pub fn write(&self, bytes: &mut [u8], number: u64) -> bool {
        match bytes.get_mut(self.offset..self.offset + self.size) {
            Some(field) => {
                field.copy_from_slice(&number.to_be_bytes()[8 - self.size..]);
                true
            }
            None => false,
        }
    }

    /// How many different ids fit.
    pub fn mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * self.size)
    }
}

/// The framing of a connection.
#[derive(Default)]
pub enum FramingSpec {
    /// Pieces as they come.
    #[default]
    Pieces,
    Native(Framing),
    /// `fn(buffered) -> int`.
    Python(Py<PyAny>),
}

/// Which framing it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FramingKey {
    Pieces,
    Native(Framing),
    /// The function's address.
    Python(usize),
}

impl FramingSpec {
    pub fn from_object(object: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(object) = object.filter(|object| !object.is_none()) else {
            return Ok(Self::Pieces);
        };
        if let Ok(fixed) = object.cast::<Fixed>() {
            return Ok(Self::Native(Framing::Fixed(fixed.get().size)));
        }
        if let Ok(prefixed) = object.cast::<LengthPrefixed>() {
            let LengthPrefixed { size, offset, adjust, strip, limit } = *prefixed.get();
            return Ok(Self::Native(Framing::LengthPrefixed { size, offset, adjust, strip, limit }));
        }
        if let Ok(delimiter) = object.cast::<Delimiter>() {
            let Delimiter { delimiter, limit } = delimiter.get();
            return Ok(Self::Native(Framing::Delimiter { delimiter: delimiter.clone(), limit: *limit }));
        }
        if object.is_callable() && !object.is_instance_of::<pyo3::types::PyType>() {
            return Ok(Self::Python(object.clone().unbind()));
        }
        Err(PyTypeError::new_err(
            "framing: expected Fixed(…), LengthPrefixed(…), Delimiter(…) or a function of the buffered bytes",
        ))
    }

    /// Tells pooled connections with different framings apart.
    pub fn key(&self) -> FramingKey {
        match self {
            Self::Pieces => FramingKey::Pieces,
            Self::Native(framing) => FramingKey::Native(framing.clone()),
            Self::Python(function) => FramingKey::Python(function.as_ptr() as usize),
        }
    }

    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Pieces => Self::Pieces,
            Self::Native(framing) => Self::Native(framing.clone()),
            Self::Python(function) => Self::Python(function.clone_ref(py)),
        }
    }
}

/// Where a request's id is found.
pub enum IdSpec {
    Field(Py<Field>),
    Python(Py<PyAny>),
}

impl IdSpec {
    pub fn from_object(object: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Self>> {
        let Some(object) = object.filter(|object| !object.is_none()) else {
            return Ok(None);
        };
        if let Ok(field) = object.cast::<Field>() {
            return Ok(Some(Self::Field(field.clone().unbind())));
        }
        if object.is_callable() {
            return Ok(Some(Self::Python(object.clone().unbind())));
        }
        Err(PyTypeError::new_err("request_id: expected Field(offset, size) or a function of the packet"))
    }
}
