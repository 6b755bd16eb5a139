//! `Splice`: two sockets joined by the native thread.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use pyo3::prelude::*;

use crate::splice;

#[pyclass(frozen, module = "libvnf._native")]
pub struct Splice(splice::Splice);

fn duplicate(fd: i32) -> std::io::Result<OwnedFd> {
    if fd < 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EBADF));
    }
    borrow(fd).try_clone_to_owned()
}

#[allow(unsafe_code)]
fn borrow<'a>(fd: i32) -> BorrowedFd<'a> {
    // SAFETY: the descriptor is only handed to fcntl(F_DUPFD_CLOEXEC) at once, which refuses one that is not open.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[pymethods]
impl Splice {
    #[new]
    #[pyo3(signature = (left, right, /))]
    fn new(left: i32, right: i32) -> PyResult<Self> {
        Ok(Self(splice::Splice::start(duplicate(left)?, duplicate(right)?)?))
    }

    #[getter]
    fn done_fd(&self) -> i32 {
        self.0.done_fd().as_raw_fd()
    }

    fn result(&self) -> (u64, u64, Option<String>) {
        let outcome = self.0.outcome();
        (outcome.forth, outcome.back, outcome.error)
    }

    fn close(&self) {
        self.0.stop();
    }
}
