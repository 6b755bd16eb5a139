//! `Packet`: a read-only message that holds its buffer while anything refers to it.
//!
//! The engine keeps the Python object of a packet (its shell) and looks at the reference count after the handler has
//! run: nobody kept it, and the shell serves the next packet; somebody did, and the shell is theirs.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::basic::CompareOp;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyIndexError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyMemoryView, PySlice};

use super::cell::GilCell;
use crate::framing::find;
use crate::packet::{Pool, Slot};

/// Bytes of buffers that Python keeps, for one connection or for all.
#[derive(Default)]
pub struct Account {
    kept: AtomicUsize,
    parent: Option<Arc<Account>>,
}

impl Account {
    pub fn child(parent: &Arc<Self>) -> Self {
        Self { kept: AtomicUsize::new(0), parent: Some(parent.clone()) }
    }

    pub fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.kept.fetch_add(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.add(bytes);
        }
    }

    fn remove(&self, bytes: usize) {
        self.kept.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.remove(bytes);
        }
    }
}

/// What holds the bytes.
pub enum Body {
    Empty,
    Slot(Slot),
    Heap(Box<[u8]>),
    Bytes(Py<PyBytes>),
    View { of: Py<Packet>, start: usize, len: usize },
}

impl Body {
    /// A copy of `bytes`, in the pool if it has room for it.
    pub fn copy(pool: &Pool, bytes: &[u8]) -> Self {
        match pool.take(bytes.len()) {
            Some(mut slot) => {
                slot.copy_from_slice(bytes);
                Self::Slot(slot)
            }
            None => Self::Heap(bytes.into()),
        }
    }

    pub fn bytes<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        match self {
            Self::Empty => &[],
            Self::Slot(slot) => slot,
            Self::Heap(heap) => heap,
            Self::Bytes(bytes) => bytes.as_bytes(py),
            Self::View { of, start, len } => &of.get().bytes(py)[*start..*start + *len],
        }
    }

    /// The bytes to change before anyone has seen them; None when they are not ours alone.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match self {
            Self::Slot(slot) => Some(slot),
            Self::Heap(heap) => Some(heap),
            _ => None,
        }
    }

    /// What a quota counts: the memory held, not the bytes visible.
    fn footprint(&self) -> usize {
        match self {
            Self::Slot(slot) => slot.footprint(),
            Self::Heap(heap) => heap.len(),
            // A view's memory is counted where it is held.
            Self::Empty | Self::View { .. } => 0,
            // SAFETY: a plain read of the size of a live bytes object, which never changes.
            Self::Bytes(bytes) => unsafe { ffi::Py_SIZE(bytes.as_ptr()) as usize },
        }
    }
}

struct Inner {
    body: Body,
    start: *const u8,
    len: usize,
    account: Option<(Arc<Account>, usize)>,
}

// SAFETY: `start` points into `body`, which is Send and moves with it without moving its bytes.
unsafe impl Send for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((account, bytes)) = self.account.take() {
            account.remove(bytes);
        }
    }
}

/// A read-only message. Equal to, and hashes like, the ``bytes`` with the same content.
#[pyclass(frozen, subclass, module = "libvnf._native")]
pub struct Packet(GilCell<Inner>);

impl Packet {
    pub fn from_body(py: Python<'_>, body: Body) -> PyResult<Py<Self>> {
        let packet = Py::new(py, Self::empty())?;
        packet.get().fill(py, body);
        Ok(packet)
    }

    /// A shell, to be filled.
    pub fn empty() -> Self {
        Self(GilCell::new(Inner {
            body: Body::Empty,
            start: std::ptr::NonNull::dangling().as_ptr(),
            len: 0,
            account: None,
        }))
    }

    /// Gives the shell a new content. Only for a packet that nobody else refers to.
    pub fn fill(&self, py: Python<'_>, body: Body) {
        drop(self.swap(py, body));
    }

    /// As `fill`; what it had.
    pub fn swap(&self, py: Python<'_>, body: Body) -> Body {
        let (start, len) = {
            let bytes = body.bytes(py);
            (bytes.as_ptr(), bytes.len())
        };
        let old = self.0.with(py, |inner| {
            let old = (std::mem::replace(&mut inner.body, body), inner.account.take());
            (inner.start, inner.len) = (start, len);
            old
        });
        if let (_, Some((account, bytes))) = &old {
            account.remove(*bytes);
        }
        old.0
    }

    /// Somebody kept it: from now on its buffer counts.
    pub fn count_as_kept(&self, py: Python<'_>, account: &Arc<Account>) {
        self.0.with(py, |inner| {
            let footprint = inner.body.footprint();
            if footprint > 0 && inner.account.is_none() {
                account.add(footprint);
                inner.account = Some((account.clone(), footprint));
            }
        });
    }

    pub fn bytes<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        let (start, len) = self.0.with(py, |inner| (inner.start, inner.len));
        // SAFETY: `start` and `len` describe `body`, which changes only in `fill`, and that is called only while the
        // engine holds the one reference to this packet; whoever holds `&self` here has another.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// The `bytes` object that is exactly this packet's content, if there is one already.
    pub fn as_bytes_object(&self, py: Python<'_>) -> Option<Py<PyBytes>> {
        self.0.with(py, |inner| match &inner.body {
            Body::Bytes(bytes) => Some(bytes.clone_ref(py)),
            _ => None,
        })
    }

    pub fn view(slf: &Bound<'_, Self>, start: usize, len: usize) -> PyResult<Py<Self>> {
        let py = slf.py();
        let root = slf.get().0.with(py, |inner| match &inner.body {
            Body::View { of, start: base, .. } => Some((of.clone_ref(py), *base)),
            _ => None,
        });
        let (of, base) = root.unwrap_or_else(|| (slf.clone().unbind(), 0));
        Self::from_body(py, Body::View { of, start: base + start, len })
    }

    fn number(&self, py: Python<'_>, offset: isize, size: usize) -> PyResult<u64> {
        let bytes = self.bytes(py);
        usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset..offset.checked_add(size)?))
            .map(|field| field.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
            .ok_or_else(|| {
                PyIndexError::new_err(format!("{size} bytes at {offset} lie outside a packet of {} bytes", bytes.len()))
            })
    }
}

/// Calls `use_it` with the bytes of a `bytes`, a `Packet`, or anything else with a contiguous buffer.
pub fn with_bytes<R>(object: &Bound<'_, PyAny>, use_it: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    let py = object.py();
    if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        return Ok(use_it(bytes.as_bytes()));
    }
    if let Ok(packet) = object.cast::<Packet>() {
        return Ok(use_it(packet.get().bytes(py)));
    }
    let buffer = PyBuffer::<u8>::get(object).map_err(|_| {
        let kind = object.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
        PyTypeError::new_err(format!("expected bytes, a Packet or another buffer of bytes, not {kind}"))
    })?;
    Ok(use_it(&buffer.to_vec(py)?))
}

#[pymethods]
impl Packet {
    #[new]
    #[pyo3(signature = (data, /))]
    fn py_new(data: &Bound<'_, PyAny>) -> PyResult<Py<Self>> {
        let py = data.py();
        let body = match data.cast_exact::<PyBytes>() {
            Ok(bytes) => Body::Bytes(bytes.clone().unbind()),
            Err(_) => Body::Heap(with_bytes(data, |bytes| bytes.into())?),
        };
        Self::from_body(py, body)
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        self.0.with(py, |inner| inner.len)
    }

    fn __getitem__<'py>(slf: &Bound<'py, Self>, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let bytes = slf.get().bytes(py);
        if let Ok(slice) = index.cast::<PySlice>() {
            let found = slice.indices(bytes.len() as isize)?;
            if found.step == 1 {
                return Ok(Self::view(slf, found.start as usize, found.slicelength)?.into_bound(py).into_any());
            }
            return PyBytes::new(py, bytes).get_item(index);
        }
        let at: isize = index.extract()?;
        let place = if at < 0 { at + bytes.len() as isize } else { at };
        let byte = usize::try_from(place).ok().and_then(|place| bytes.get(place)).ok_or_else(|| {
            PyIndexError::new_err(format!("index {at} lies outside a packet of {} bytes", bytes.len()))
        })?;
        Ok(PyInt::new(py, *byte).into_any())
    }

    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyMemoryView::from(slf.as_any())?.try_iter()?.into_any())
    }

    fn __contains__(&self, py: Python<'_>, item: &Bound<'_, PyAny>) -> PyResult<bool> {
        if let Ok(byte) = item.extract::<u8>() {
            return Ok(self.bytes(py).contains(&byte));
        }
        with_bytes(item, |needle| needle.is_empty() || find(self.bytes(py), needle).is_some())
    }

    fn __richcmp__(&self, py: Python<'_>, other: &Bound<'_, PyAny>, op: CompareOp) -> Py<PyAny> {
        let order = with_bytes(other, |other| self.bytes(py).cmp(other));
        match (order, op) {
            (Ok(order), _) => op.matches(order).into_pyobject(py).map(|found| found.to_owned().into_any().unbind()),
            (Err(_), _) => Ok(py.NotImplemented()),
        }
        .unwrap_or_else(|never| match never {})
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        PyBytes::new(py, self.bytes(py)).hash()
    }

    fn __bytes__(&self, py: Python<'_>) -> Py<PyBytes> {
        self.as_bytes_object(py).unwrap_or_else(|| PyBytes::new(py, self.bytes(py)).unbind())
    }

    fn __add__<'py>(&self, py: Python<'py>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        with_bytes(other, |other| PyBytes::new(py, &[self.bytes(py), other].concat()))
    }

    fn __radd__<'py>(&self, py: Python<'py>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        with_bytes(other, |other| PyBytes::new(py, &[other, self.bytes(py)].concat()))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let bytes = self.bytes(py);
        let shown = PyBytes::new(py, &bytes[..bytes.len().min(32)]).repr()?.to_string();
        Ok(format!("Packet({shown}{}, {} bytes)", if bytes.len() > 32 { "…" } else { "" }, bytes.len()))
    }

    /// Where `sub` is first found within `start` … `end`, or -1.
    #[pyo3(signature = (sub, start=0, end=None, /))]
    fn find(&self, py: Python<'_>, sub: &Bound<'_, PyAny>, start: isize, end: Option<isize>) -> PyResult<isize> {
        let bytes = self.bytes(py);
        let len = bytes.len() as isize;
        let place = |at: isize| (if at < 0 { at + len } else { at }).clamp(0, len) as usize;
        let (from, to) = (place(start), place(end.unwrap_or(len)));
        with_bytes(sub, |sub| {
            if from > to {
                return -1;
            }
            if sub.is_empty() {
                return from as isize;
            }
            find(&bytes[from..to], sub).map_or(-1, |at| (from + at) as isize)
        })
    }

    /// Whether it begins with `prefix`.
    #[pyo3(signature = (prefix, /))]
    fn startswith(&self, py: Python<'_>, prefix: &Bound<'_, PyAny>) -> PyResult<bool> {
        with_bytes(prefix, |prefix| self.bytes(py).starts_with(prefix))
    }

    /// The byte at `offset`; IndexError past the end.
    #[pyo3(signature = (offset, /))]
    fn u8(&self, py: Python<'_>, offset: isize) -> PyResult<u64> {
        self.number(py, offset, 1)
    }

    /// Two bytes at `offset`, big-endian.
    #[pyo3(signature = (offset, /))]
    fn u16(&self, py: Python<'_>, offset: isize) -> PyResult<u64> {
        self.number(py, offset, 2)
    }

    /// Four bytes at `offset`, big-endian.
    #[pyo3(signature = (offset, /))]
    fn u32(&self, py: Python<'_>, offset: isize) -> PyResult<u64> {
        self.number(py, offset, 4)
    }

    /// Eight bytes at `offset`, big-endian.
    #[pyo3(signature = (offset, /))]
    fn u64(&self, py: Python<'_>, offset: isize) -> PyResult<u64> {
        self.number(py, offset, 8)
    }

    /// # Safety
    /// Called by Python's buffer protocol with a valid `view`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("a packet is read-only"));
        }
        let bytes = slf.get().bytes(slf.py());
        // SAFETY: `view` is ours to fill; it takes its own reference to the packet, which keeps the bytes in place
        // until the buffer is released.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                bytes.as_ptr().cast_mut().cast::<c_void>(),
                bytes.len() as ffi::Py_ssize_t,
                1,
                flags,
            )
        };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Whether only the caller refers to `packet`.
pub fn is_unshared(packet: &Py<Packet>) -> bool {
    // SAFETY: a plain read of the reference count of a live object.
    unsafe { ffi::Py_REFCNT(packet.as_ptr()) == 1 }
}
