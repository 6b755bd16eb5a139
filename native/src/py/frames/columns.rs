//! Columns: one header field of every frame of a batch, as a NumPy array over memory of ours.
//!
//! The memory and its array serve every batch, for as long as their reference counts say that nobody else has them: an
//! array that is kept keeps its content, and the next batch gets a fresh one. All ways to the memory lead through one of
//! two objects: the memory itself, and the array over it. A batch gets a view of that array which is its own: whoever
//! sets its shape or type has changed nothing else.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySlice};
use pyo3::{PyTraverseError, PyVisit, ffi, intern};

use crate::packet::headers::{Headers, kind};

/// Frames in a batch at most.
pub const MOST: usize = 256;

/// Which field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Field {
    Length,
    Ethertype,
    Vlan,
    Protocol,
    Ttl,
    SourceIp,
    DestinationIp,
    SourceIp6,
    DestinationIp6,
    SourceMac,
    DestinationMac,
    SourcePort,
    DestinationPort,
    TcpFlags,
    Teid,
    IsIpv4,
    IsIpv6,
    IsArp,
    IsTcp,
    IsUdp,
    IsIcmp,
    IsFragment,
    IsGtpu,
    IsMalformed,
}

pub const FIELDS: usize = Field::IsMalformed as usize + 1;

impl Field {
    /// NumPy's name of the type, bytes per value, and values per frame.
    fn shape(self) -> (&'static str, usize, usize) {
        match self {
            Self::Length | Self::SourceIp | Self::DestinationIp | Self::Teid => ("<u4", 4, 1),
            Self::Ethertype | Self::Vlan | Self::SourcePort | Self::DestinationPort => ("<u2", 2, 1),
            Self::SourceMac | Self::DestinationMac => ("<u8", 8, 1),
            Self::Protocol | Self::Ttl | Self::TcpFlags => ("|u1", 1, 1),
            Self::SourceIp6 | Self::DestinationIp6 => ("|u1", 1, 16),
            Self::IsIpv4
            | Self::IsIpv6
            | Self::IsArp
            | Self::IsTcp
            | Self::IsUdp
            | Self::IsIcmp
            | Self::IsFragment
            | Self::IsGtpu
            | Self::IsMalformed => ("|b1", 1, 1),
        }
    }

    /// Writes the field of every frame.
    fn fill<'a>(self, to: &mut [u8], frames: impl Iterator<Item = (&'a Headers, &'a [u8])>) {
        match self {
            Self::Length => put(to, frames, |_, bytes| (bytes.len() as u32).to_le_bytes()),
            Self::Ethertype => put(to, frames, |headers, _| headers.ethertype.to_le_bytes()),
            Self::Vlan => put(to, frames, |headers, _| headers.vlan.to_le_bytes()),
            Self::Protocol => put(to, frames, |headers, _| [headers.protocol]),
            Self::Ttl => put(to, frames, |headers, bytes| [ttl(headers, bytes)]),
            Self::SourceIp => put(to, frames, |headers, bytes| ipv4(headers, bytes, 12)),
            Self::DestinationIp => put(to, frames, |headers, bytes| ipv4(headers, bytes, 16)),
            Self::SourceIp6 => put(to, frames, |headers, bytes| ipv6(headers, bytes, 8)),
            Self::DestinationIp6 => put(to, frames, |headers, bytes| ipv6(headers, bytes, 24)),
            Self::SourceMac => put(to, frames, |_, bytes| mac(bytes, 6)),
            Self::DestinationMac => put(to, frames, |_, bytes| mac(bytes, 0)),
            Self::SourcePort => put(to, frames, |headers, _| headers.source_port.to_le_bytes()),
            Self::DestinationPort => put(to, frames, |headers, _| headers.destination_port.to_le_bytes()),
            Self::TcpFlags => put(to, frames, |headers, bytes| [tcp_flags(headers, bytes)]),
            Self::Teid => put(to, frames, |headers, _| headers.teid.to_le_bytes()),
            Self::IsIpv4 => kinds(to, frames, kind::IPV4),
            Self::IsIpv6 => kinds(to, frames, kind::IPV6),
            Self::IsArp => kinds(to, frames, kind::ARP),
            Self::IsTcp => kinds(to, frames, kind::TCP),
            Self::IsUdp => kinds(to, frames, kind::UDP),
            Self::IsIcmp => kinds(to, frames, kind::ICMP),
            Self::IsFragment => kinds(to, frames, kind::FRAGMENT),
            Self::IsGtpu => kinds(to, frames, kind::GTPU),
            Self::IsMalformed => kinds(to, frames, kind::MALFORMED),
        }
    }
}

/// Values of `N` bytes, one behind the other.
#[inline]
fn put<'a, const N: usize>(
    to: &mut [u8],
    frames: impl Iterator<Item = (&'a Headers, &'a [u8])>,
    value: impl Fn(&Headers, &[u8]) -> [u8; N],
) {
    for (to, (headers, bytes)) in to.as_chunks_mut::<N>().0.iter_mut().zip(frames) {
        *to = value(headers, bytes);
    }
}

#[inline]
fn kinds<'a>(to: &mut [u8], frames: impl Iterator<Item = (&'a Headers, &'a [u8])>, wanted: u16) {
    put(to, frames, |headers, _| [u8::from(headers.is(wanted))]);
}

pub fn ttl(headers: &Headers, bytes: &[u8]) -> u8 {
    let at = usize::from(headers.network);
    if headers.is(kind::IPV4) {
        bytes[at + 8]
    } else if headers.is(kind::IPV6) {
        bytes[at + 7]
    } else {
        0
    }
}

pub fn tcp_flags(headers: &Headers, bytes: &[u8]) -> u8 {
    if headers.is(kind::TCP) { bytes[usize::from(headers.transport) + 13] } else { 0 }
}

/// As a number of the machine: in NumPy it compares with `int(ipaddress.ip_address(…))`.
fn ipv4(headers: &Headers, bytes: &[u8], at: usize) -> [u8; 4] {
    let at = usize::from(headers.network) + at;
    match bytes.get(at..).and_then(|bytes| bytes.first_chunk::<4>()) {
        Some(&[a, b, c, d]) if headers.is(kind::IPV4) => [d, c, b, a],
        _ => [0; 4],
    }
}

fn ipv6(headers: &Headers, bytes: &[u8], at: usize) -> [u8; 16] {
    let at = usize::from(headers.network) + at;
    match bytes.get(at..).and_then(|bytes| bytes.first_chunk::<16>()) {
        Some(address) if headers.is(kind::IPV6) => *address,
        _ => [0; 16],
    }
}

fn mac(bytes: &[u8], at: usize) -> [u8; 8] {
    match bytes.get(at..at + 6) {
        Some(&[a, b, c, d, e, f]) => [f, e, d, c, b, a, 0, 0],
        _ => [0; 8],
    }
}

/// The memory of one column.
#[pyclass(frozen, module = "libvnf._native")]
pub struct Column {
    field: Field,
    /// In words, so that every type is aligned.
    memory: UnsafeCell<Box<[u64]>>,
}

// SAFETY: it is written in `Array::fill` only, which proves that nobody else refers to it; everything holds the GIL.
unsafe impl Sync for Column {}

#[pymethods]
impl Column {
    /// NumPy's own protocol: an array made by it refers to this object, so that its count tells of every array.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (kind, _, wide) = self.field.shape();
        let found = PyDict::new(py);
        found.set_item("version", 3)?;
        found.set_item("typestr", kind)?;
        if wide == 1 {
            found.set_item("shape", (MOST,))?;
        } else {
            found.set_item("shape", (MOST, wide))?;
        }
        // SAFETY: only the address is taken; the box never moves its content.
        let address = unsafe { (*self.memory.get()).as_ptr() } as usize;
        found.set_item("data", (address, true))?;
        Ok(found)
    }
}

/// A column that serves batch after batch.
pub struct Array {
    memory: Py<Column>,
    whole: Py<PyAny>,
}

impl Array {
    pub fn new(py: Python<'_>, field: Field) -> PyResult<Self> {
        let (_, size, wide) = field.shape();
        let words = vec![0; (MOST * size * wide).div_ceil(8)].into_boxed_slice();
        let memory = Py::new(py, Column { field, memory: UnsafeCell::new(words) })?;
        let whole = py.import(intern!(py, "numpy"))?.getattr(intern!(py, "asarray"))?.call1((&memory,))?.unbind();
        Ok(Self { memory, whole })
    }

    /// Whether nobody else can see the memory change.
    pub fn is_unshared(&self) -> bool {
        // SAFETY: plain reads of the reference counts of live objects.
        unsafe {
            // Ours, and that of the array over it.
            ffi::Py_REFCNT(self.memory.as_ptr()) == 2 && ffi::Py_REFCNT(self.whole.as_ptr()) == 1
        }
    }

    /// Writes a batch's values. Panics when somebody else has the array.
    pub fn fill<'a>(&mut self, frames: impl Iterator<Item = (&'a Headers, &'a [u8])>) {
        assert!(self.is_unshared(), "an array that is kept keeps its content");
        let column = self.memory.get();
        // SAFETY: nobody else can reach the memory now, as was just proved, and nothing of Python runs before this
        // function returns. As many bytes as the words have.
        let bytes = unsafe {
            let words: &mut [u64] = &mut *column.memory.get();
            std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), size_of_val(words))
        };
        column.field.fill(bytes, frames);
    }

    /// Room for any batch; what a batch of `count` gets of it is a [`part`].
    pub fn whole(&self, py: Python<'_>) -> Py<PyAny> {
        self.whole.clone_ref(py)
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.whole)
    }
}

/// The first `count` values of an array, as an array. Runs Python code.
pub fn part(py: Python<'_>, whole: &Py<PyAny>, count: usize) -> PyResult<Py<PyAny>> {
    whole.bind(py).get_item(PySlice::new(py, 0, count as isize, 1)).map(Bound::unbind)
}

/// Which frames are meant: a boolean array of exactly `count`, or all.
pub fn read_mask(mask: Option<&Bound<'_, PyAny>>, count: usize) -> PyResult<[bool; MOST]> {
    let mut chosen = [true; MOST];
    let Some(mask) = mask else { return Ok(chosen) };
    let wrong = |found: String| {
        PyTypeError::new_err(format!("mask: expected an array of {count} bool, one per frame, not {found}"))
    };
    let kind = || mask.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
    let mut view = std::mem::MaybeUninit::<ffi::Py_buffer>::uninit();
    // SAFETY: a live object and room for a view; 0 means that it was filled, and is ours to release.
    let got = unsafe { ffi::PyObject_GetBuffer(mask.as_ptr(), view.as_mut_ptr(), ffi::PyBUF_RECORDS_RO) };
    if got != 0 {
        drop(PyErr::fetch(mask.py()));
        return Err(wrong(kind()));
    }
    // SAFETY: filled by the call above.
    let mut view = unsafe { view.assume_init() };
    // SAFETY: `format` is null or a C string of the exporter's, for as long as the view is held.
    let is_bool = !view.format.is_null() && unsafe { std::ffi::CStr::from_ptr(view.format) } == c"?";
    let result = if !is_bool || view.ndim != 1 {
        let type_of = mask.getattr(intern!(mask.py(), "dtype")).and_then(|dtype| dtype.str()).ok();
        let found = type_of.map_or_else(kind, |dtype| format!("{} of {} dimensions of {dtype}", kind(), view.ndim));
        Err(wrong(found))
    } else {
        // SAFETY: one dimension: one length and one stride, as asked for.
        let (len, stride) = unsafe { (*view.shape, *view.strides) };
        if len == count as isize {
            let mut bytes = [0_u8; MOST];
            for (index, byte) in bytes[..count].iter_mut().enumerate() {
                // SAFETY: within the exporter's one dimension of `len` items of one byte, `stride` apart.
                *byte = unsafe { *view.buf.cast::<u8>().offset(index as isize * stride) };
            }
            chosen = bytes.map(|byte| byte != 0);
            Ok(chosen)
        } else {
            Err(PyValueError::new_err(format!("mask: {len} values for {count} frames")))
        }
    };
    // SAFETY: the view is ours, and not used any more.
    unsafe { ffi::PyBuffer_Release(&raw mut view) };
    result
}
