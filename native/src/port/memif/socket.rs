//! The control channel's sockets: AF_UNIX, SOCK_SEQPACKET, never blocking, descriptors closed on exec.
//!
//! Whatever a peer attaches is owned from the moment it arrives: several descriptors in one message, credentials
//! beside them or a cut control block leak nothing.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs;
use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::control::{MESSAGE_BYTES, Message};

const BACKLOG: c_int = 64;
/// Room for as many descriptors as Linux lets one message carry (SCM_MAX_FD is 253), and for credentials.
const ANCILLARY_BYTES: usize = 2048;

/// `path`, or an abstract name when it begins with '@'.
fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all zeros is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    let room = address.sun_path.len() - 1;
    if bytes.is_empty() || bytes.len() > room || bytes.contains(&0) {
        let text = format!("socket path {path:?} has {} bytes, 1 to {room} without NUL wanted", bytes.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let is_abstract = bytes[0] == b'@';
    if is_abstract {
        address.sun_path[0] = 0;
    }
    let length = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + usize::from(!is_abstract);
    Ok((address, length as libc::socklen_t))
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One end of a control channel.
pub struct Control(OwnedFd);

/// What `Control::receive` found.
pub enum Incoming {
    Message(Message, Vec<OwnedFd>),
    /// Not yet.
    Nothing,
    /// The peer closed its end, or died.
    Closed,
    /// Not a message, for this reason.
    Garbage(String),
}

impl Control {
    pub fn connect(path: &Path) -> io::Result<Self> {
        let (address, length) = address(path)?;
        let socket = socket()?;
        // SAFETY: `address` is valid for `length` bytes.
        checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
        Ok(Self(socket))
    }

    pub fn receive(&self) -> Incoming {
        // One byte more than a message has, to notice a longer one.
        let mut bytes = [0u8; MESSAGE_BYTES + 1];
        let mut ancillary = [0u64; ANCILLARY_BYTES / 8];
        let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: all zeros is a valid msghdr; every pointer put into it outlives the call.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = ancillary.as_mut_ptr().cast();
        header.msg_controllen = ANCILLARY_BYTES as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: `header` describes buffers that live on this stack.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut header, flags) };
        if length < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Incoming::Nothing,
                io::ErrorKind::ConnectionReset => Incoming::Closed,
                _ => Incoming::Garbage(format!("control socket: {error}")),
            };
        }
        let descriptors = descriptors(&header);
        if length == 0 {
            return Incoming::Closed;
        }
        if header.msg_flags & libc::MSG_CTRUNC != 0 {
            return Incoming::Garbage("descriptors beside a control message were cut off".into());
        }
        match Message::parse(&bytes[..length as usize]) {
            Ok(message) => Incoming::Message(message, descriptors),
            Err(error) => Incoming::Garbage(error.to_string()),
        }
    }

    /// A peer that leaves no room for a message does not follow the lock-step: an error.
    pub fn send(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut bytes = message.emit();
        let mut ancillary = [0u64; 4];
        let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: all zeros is a valid msghdr; every pointer put into it outlives the call.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        if let Some(descriptor) = descriptor {
            header.msg_control = ancillary.as_mut_ptr().cast();
            // SAFETY: pure arithmetic of constants; 24 bytes on 64 bits, and `ancillary` has 32.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(size_of::<c_int>() as u32) as _;
                let first = libc::CMSG_FIRSTHDR(&raw const header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as _;
                libc::CMSG_DATA(first).cast::<c_int>().write_unaligned(descriptor.as_raw_fd());
            }
        }
        // SAFETY: `header` describes buffers that live on this stack.
        let sent =
            unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        if sent == MESSAGE_BYTES as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes ownership of every descriptor the kernel installed for this message.
fn descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the kernel filled the control block; the CMSG macros stay within msg_controllen.
    unsafe {
        let mut entry = libc::CMSG_FIRSTHDR(header);
        while let Some(cmsg) = entry.as_ref() {
            if (cmsg.cmsg_level, cmsg.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let count = (cmsg.cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<c_int>();
                let data = libc::CMSG_DATA(cmsg).cast::<c_int>();
                found.extend((0..count).map(|index| OwnedFd::from_raw_fd(data.add(index).read_unaligned())));
            }
            entry = libc::CMSG_NXTHDR(header, cmsg);
        }
    }
    found
}

/// A listening socket; a socket file is removed with it.
pub struct Listener {
    socket: OwnedFd,
    /// The file and its device and inode, so that nobody else's is removed.
    file: Option<(PathBuf, u64, u64)>,
}

impl Listener {
    /// Mode 0600. The file of a dead process is replaced; a living one's gives `AddrInUse`.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let (address, length) = address(path)?;
        let socket = socket()?;
        let fd = socket.as_raw_fd();
        // Before bind, a socket's mode becomes its file's: never open to others, and no umask touched.
        // SAFETY: no pointers.
        checked(unsafe { libc::fchmod(fd, 0o600) })?;
        // SAFETY: `address` is valid for `length` bytes.
        let bind = || checked(unsafe { libc::bind(fd, (&raw const address).cast(), length) });
        let is_file = path.as_os_str().as_bytes()[0] != b'@';
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_file => {
                remove_stale(path)?;
                bind()
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(in_use(path, "another process listens there"))
            }
            other => other,
        }
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display())))?;
        // SAFETY: no pointers.
        checked(unsafe { libc::listen(fd, BACKLOG) })?;
        let file = if is_file {
            let status = fs::symlink_metadata(path)?;
            Some((path.to_path_buf(), status.dev(), status.ino()))
        } else {
            None
        };
        Ok(Self { socket, file })
    }

    /// Who comes, if somebody does. An error leaves them waiting: descriptors or memory are short.
    pub fn accept(&self) -> io::Result<Option<Control>> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: null pointers ask for no address.
        let fd = unsafe { libc::accept4(self.socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        // SAFETY: the descriptor is new and ours.
        Ok(Some(Control(unsafe { OwnedFd::from_raw_fd(fd) })))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, device, inode)) = &self.file
            && fs::symlink_metadata(path).is_ok_and(|status| (status.dev(), status.ino()) == (*device, *inode))
        {
            // Nothing can be done about a failure, and the next listener replaces what is left.
            drop(fs::remove_file(path));
        }
    }
}

fn in_use(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, format!("{} is in use: {why}", path.display()))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !found.file_type().is_socket() {
        return Err(in_use(path, "it is not a socket"));
    }
    match Control::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(in_use(path, "another process listens there")),
    }
}
