//! The kernel's side of an interface: a packet socket, in a network namespace that this thread alone is in.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

/// Everything that this thread makes is in a namespace of its own, which ends with it. False: that needs root.
pub fn alone() -> bool {
    // SAFETY: no pointers; the thread shares nothing of the network with the others.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        eprintln!("skipped: a network namespace needs root: run cargo test as root");
        return false;
    }
    // What a kernel says of itself would be among what a test expects.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("a sysctl of the namespace");
    true
}

pub fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip of iproute2");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

pub fn exists(interface: &str) -> bool {
    let name = CString::new(interface).unwrap();
    // SAFETY: a name with its NUL.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

pub struct Wire(OwnedFd);

impl Wire {
    pub fn new(interface: &str) -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let name = CString::new(interface).unwrap();
        // SAFETY: a name with its NUL, an address valid for its length, a new descriptor that is ours, results checked.
        unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let fd = libc::socket(libc::AF_PACKET, kind, 0);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let len = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0, "{}", io::Error::last_os_error());
            let bytes: i32 = 16 << 20;
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const bytes).cast(), 4);
            Self(socket)
        }
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: as many readable bytes as are named.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next one that came in; what was sent from here is not told.
    pub fn receive(&self) -> Option<Vec<u8>> {
        loop {
            let mut frame = vec![0; 16_384];
            // SAFETY: a zeroed address is valid, and room for one; as many writable bytes as are named.
            let (got, kind) = unsafe {
                let mut from: libc::sockaddr_ll = std::mem::zeroed();
                let mut len = size_of::<libc::sockaddr_ll>() as u32;
                let (at, room) = (frame.as_mut_ptr().cast(), frame.len());
                let fd = self.0.as_raw_fd();
                let got = libc::recvfrom(fd, at, room, 0, (&raw mut from).cast(), &raw mut len);
                (got, from.sll_pkttype)
            };
            if got < 0 {
                return None;
            }
            if kind != libc::PACKET_OUTGOING {
                frame.truncate(got as usize);
                return Some(frame);
            }
        }
    }
}
