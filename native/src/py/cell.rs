//! State that the GIL guards.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;

/// A cell whose content is reached only with proof that the GIL is held.
///
/// Neither Python code may run nor a Python object be dropped inside `with`: both could come back to the same cell.
/// Coming back is a panic, which Python sees as an exception, not a data race.
pub struct GilCell<T>(RefCell<T>);

// SAFETY: every access carries a `Python` token, so only the one thread that holds the GIL can be inside; the module
// declares that it needs the GIL.
unsafe impl<T: Send> Sync for GilCell<T> {}

impl<T> GilCell<T> {
    pub fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    pub fn with<R>(&self, _py: Python<'_>, use_it: impl FnOnce(&mut T) -> R) -> R {
        use_it(&mut self.0.borrow_mut())
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    /// For the garbage collector, which must not panic: nothing when the content is in use.
    pub fn peek<R>(&self, use_it: impl FnOnce(&T) -> R) -> Option<R> {
        self.0.try_borrow().ok().map(|value| use_it(&value))
    }
}

/// A number that only the GIL's holder changes, and anyone may read.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn bump(&self) {
        self.add(1);
    }

    pub fn add(&self, more: u64) {
        // Not fetch_add: there is one writer at a time, and a locked instruction costs more than the rest.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

thread_local! {
    static MARK: Cell<u8> = const { Cell::new(0) };
}

/// A number that no two living threads share.
pub fn thread_mark() -> usize {
    MARK.with(|mark| std::ptr::from_ref(mark) as usize)
}
