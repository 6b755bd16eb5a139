//! The character device behind a TAP or TUN interface (the kernel's Documentation/networking/tuntap.rst).
#![allow(unsafe_code)]

use std::ffi::{c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::super::interface::{Interfaces, Request};
use super::{Layer, TapConfig};

const CLONE: &str = "/dev/net/tun";

/// One queue: a read takes one frame, a write gives one.
pub struct Queue(OwnedFd);

impl Queue {
    /// The frame's bytes, as many as `to` has room for. None: nothing waits, or the interface is gone.
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> Option<usize> {
        // SAFETY: as many writable bytes as are named.
        let got = unsafe { libc::read(self.0.as_raw_fd(), to.as_mut_ptr().cast(), to.len()) };
        (got > 0).then_some(got as usize)
    }

    #[inline]
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: as many readable bytes as are named.
        let put = unsafe { libc::write(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len()) };
        if put < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// What the interface is called now: it may have been renamed.
    pub fn interface(&self) -> io::Result<String> {
        let mut request = Request::new("");
        request.ioctl(&self.0, libc::TUNGETIFF)?;
        Ok(request.name())
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn refused<T>(kind: io::ErrorKind, text: String) -> io::Result<T> {
    Err(io::Error::new(kind, text))
}

fn queue(config: &TapConfig, name: &str) -> io::Result<(Queue, String)> {
    let opened = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(CLONE);
    let fd: OwnedFd = match opened {
        Ok(file) => file.into(),
        Err(error) => return refused(error.kind(), format!("cannot open {CLONE}: {}", plain(&error))),
    };
    let layer = if config.layer == Layer::Ethernet { libc::IFF_TAP } else { libc::IFF_TUN };
    let several = if config.queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut request = Request::new(name).with(layer as c_int | libc::IFF_NO_PI as c_int | several as c_int);
    match request.ioctl(&fd, libc::TUNSETIFF) {
        Ok(()) => {
            // Who had the interface before may have promised to cut segments and to finish checksums: that outlives it.
            // SAFETY: the argument is a number.
            match unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, 0 as c_ulong) } {
                0 => Ok((Queue(fd), request.name())),
                _ => Err(io::Error::last_os_error()),
            }
        }
        Err(error) => {
            let kind = if config.layer == Layer::Ethernet { "TAP" } else { "TUN" };
            let text = match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    let mode = kind.to_lowercase();
                    format!("no privilege: needs CAP_NET_ADMIN, or ip tuntap add {name} mode {mode} user NAME")
                }
                Some(libc::EBUSY) => "taken by another program".into(),
                Some(libc::EINVAL) => {
                    format!("exists already, and not as a {kind} interface with queues={}", config.queues)
                }
                Some(libc::E2BIG) => format!("has not room for queues={}", config.queues),
                _ => plain(&error),
            };
            refused(error.kind(), text)
        }
    }
}

/// Without Rust's "(os error 1)".
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Opens the interface, made and set up if there is none of that name (it goes with its last queue, then); its queues,
/// name and MTU.
pub fn open(config: &TapConfig, interfaces: &Interfaces) -> io::Result<(Vec<Queue>, String, usize)> {
    let is_new = !interfaces.exists(&config.interface);
    let (first, name) = queue(config, &config.interface)?;
    let mut queues = vec![first];
    for _ in 1..config.queues {
        queues.push(queue(config, &name)?.0);
    }
    let mut mtu = interfaces.mtu(&name)?;
    if let Some(wanted) = config.mtu.filter(|wanted| *wanted != mtu) {
        if let Err(error) = interfaces.set_mtu(&name, wanted) {
            return refused(error.kind(), format!("has mtu={mtu}, and mtu={wanted} is refused: {}", plain(&error)));
        }
        mtu = wanted;
    }
    if is_new && let Err(error) = interfaces.set_up(&name) {
        return refused(error.kind(), format!("cannot be set up: {}", plain(&error)));
    }
    Ok((queues, name, mtu))
}
