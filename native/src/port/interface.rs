//! What the kernel knows of a network interface, asked by name (netdevice(7)), and the news that something about some
//! interface has changed (rtnetlink(7)). All of it is about the network namespace of the calling thread.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::packet::array;
use crate::packet::ethernet::Mac;

/// `struct ifreq`: a name, and one of many values.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl Request {
    /// The name is cut where the kernel would refuse it.
    pub fn new(name: &str) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], value: [0; 24] };
        let count = name.len().min(libc::IFNAMSIZ - 1);
        request.name[..count].copy_from_slice(&name.as_bytes()[..count]);
        request
    }

    pub fn with(mut self, value: c_int) -> Self {
        self.value[..4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn int(&self) -> c_int {
        c_int::from_ne_bytes([self.value[0], self.value[1], self.value[2], self.value[3]])
    }

    /// `ifr_flags` is a short.
    pub fn flags(&self) -> c_int {
        c_int::from(u16::from_ne_bytes([self.value[0], self.value[1]]))
    }

    pub fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }

    /// Asks `fd`, or tells it; the kernel may have changed the request.
    pub fn ioctl(&mut self, fd: &OwnedFd, what: libc::Ioctl) -> io::Result<()> {
        // SAFETY: every call given here takes a pointer to a `struct ifreq`, which this is, and keeps none.
        checked(unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw mut *self) })
    }
}

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn socket(family: c_int, kind: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    checked(fd)?;
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whom to ask.
pub struct Interfaces(OwnedFd);

impl Interfaces {
    pub fn new() -> io::Result<Self> {
        socket(libc::AF_INET, libc::SOCK_DGRAM).map(Self)
    }

    fn ask(&self, name: &str, what: libc::Ioctl) -> io::Result<Request> {
        let mut request = Request::new(name);
        request.ioctl(&self.0, what)?;
        Ok(request)
    }

    /// `ENODEV`: there is none of that name.
    pub fn index(&self, name: &str) -> io::Result<u32> {
        self.ask(name, libc::SIOCGIFINDEX as libc::Ioctl).map(|found| found.int() as u32)
    }

    pub fn exists(&self, name: &str) -> bool {
        self.index(name).is_ok()
    }

    pub fn is_up(&self, name: &str) -> io::Result<bool> {
        self.ask(name, libc::SIOCGIFFLAGS as libc::Ioctl).map(|found| found.flags() & libc::IFF_UP != 0)
    }

    /// Something is at the other end of the wire. The flag `IFF_RUNNING` says so up to a second late.
    pub fn has_carrier(&self, name: &str) -> io::Result<bool> {
        /// `struct ethtool_value` of linux/ethtool.h.
        #[repr(C)]
        struct Value {
            command: u32,
            data: u32,
        }
        /// `ETHTOOL_GLINK`.
        const COMMAND: u32 = 0xa;
        let mut found = Value { command: COMMAND, data: 0 };
        match self.ethtool(name, &mut found) {
            Ok(()) => Ok(found.data != 0),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.ask(name, libc::SIOCGIFFLAGS as libc::Ioctl).map(|found| found.flags() & libc::IFF_RUNNING != 0)
            }
            Err(error) => Err(error),
        }
    }

    /// Has the driver fill in `found`, which begins with a command that writes no more than that.
    fn ethtool<T>(&self, name: &str, found: &mut T) -> io::Result<()> {
        let mut request = Request::new(name);
        request.value[..size_of::<usize>()].copy_from_slice(&(&raw mut *found as usize).to_ne_bytes());
        request.ioctl(&self.0, libc::SIOCETHTOOL as libc::Ioctl)
    }

    /// Its link address; None for what is no Ethernet.
    pub fn mac(&self, name: &str) -> io::Result<Option<Mac>> {
        let found = self.ask(name, libc::SIOCGIFHWADDR as libc::Ioctl)?;
        // `struct sockaddr`: the kind of hardware, and the address.
        let [kind @ .., a, b, c, d, e, f] = array::<8>(&found.value, 0);
        Ok((u16::from_ne_bytes(kind) == libc::ARPHRD_ETHER).then_some([a, b, c, d, e, f]))
    }

    /// How many receive queues it has; one where its driver does not say.
    pub fn receive_queues(&self, name: &str) -> u32 {
        /// `struct ethtool_channels` of linux/ethtool.h: the most of each kind, then how many there are.
        #[repr(C)]
        struct Channels {
            command: u32,
            most: [u32; 4],
            receive: u32,
            send: u32,
            other: u32,
            combined: u32,
        }
        /// `ETHTOOL_GCHANNELS`.
        const COMMAND: u32 = 0x3c;
        let mut found = Channels { command: COMMAND, most: [0; 4], receive: 0, send: 0, other: 0, combined: 0 };
        match self.ethtool(name, &mut found) {
            Ok(()) => (found.receive + found.combined).max(1),
            Err(_) => 1,
        }
    }

    pub fn set_up(&self, name: &str) -> io::Result<()> {
        let flags = self.ask(name, libc::SIOCGIFFLAGS as libc::Ioctl)?.flags();
        Request::new(name).with(flags | libc::IFF_UP).ioctl(&self.0, libc::SIOCSIFFLAGS as libc::Ioctl)
    }

    pub fn mtu(&self, name: &str) -> io::Result<usize> {
        self.ask(name, libc::SIOCGIFMTU as libc::Ioctl).map(|found| found.int().max(0) as usize)
    }

    pub fn set_mtu(&self, name: &str, mtu: usize) -> io::Result<()> {
        Request::new(name).with(mtu as c_int).ioctl(&self.0, libc::SIOCSIFMTU as libc::Ioctl)
    }
}

/// How many frames the kernel has had to drop that were to go out by the interface (`tx_dropped` of rtnetlink(7)).
pub fn dropped(index: u32) -> io::Result<u64> {
    // linux/rtnetlink.h and if_link.h: RTM_GETSTATS, RTM_NEWSTATS, IFLA_STATS_LINK_64, and where it is in a
    // `struct rtnl_link_stats64`.
    const GET: u16 = 94;
    const NEW: u16 = 92;
    const LINK_64: u16 = 1;
    const TX_DROPPED: usize = 7 * 8;
    let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW)?;
    // A `struct nlmsghdr` and a `struct if_stats_msg`: of one interface the one kind.
    let mut request = [0; 28];
    request[..4].copy_from_slice(&28u32.to_ne_bytes());
    request[4..6].copy_from_slice(&GET.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[20..24].copy_from_slice(&index.to_ne_bytes());
    request[24..28].copy_from_slice(&(1u32 << (LINK_64 - 1)).to_ne_bytes());
    let mut answer = [0; 1024];
    // SAFETY: as many readable and writable bytes as are named. rtnetlink answers before `send` returns.
    let got = unsafe {
        checked(libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) as c_int)?;
        libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    checked(got as c_int)?;
    let answer = &answer[..got as usize];
    let mut attributes = answer.get(28..).filter(|_| answer[4..6] == NEW.to_ne_bytes()).unwrap_or_default();
    while attributes.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes(array(attributes, 0))).max(4);
        let kind = u16::from_ne_bytes(array(attributes, 2));
        if kind == LINK_64 && len >= 4 + TX_DROPPED + 8 && attributes.len() >= len {
            return Ok(u64::from_ne_bytes(array(attributes, 4 + TX_DROPPED)));
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(io::ErrorKind::Unsupported.into())
}

/// Readable when an interface was made, changed or removed.
pub struct News(OwnedFd);

impl News {
    pub fn new() -> io::Result<Self> {
        let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW)?;
        // SAFETY: all zeros is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        let len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: `address` is valid for `len` bytes.
        checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(Self(socket))
    }

    /// Takes all of it; whether there was any. What it says is not read: the interface itself is asked. More than the
    /// socket holds (ENOBUFS) is news as well.
    pub fn take(&self) -> bool {
        let mut any = false;
        let mut scratch = [0u8; 8];
        loop {
            // SAFETY: as many writable bytes as are named; the rest of a message is cut off.
            let got =
                unsafe { libc::recv(self.0.as_raw_fd(), scratch.as_mut_ptr().cast(), scratch.len(), libc::MSG_TRUNC) };
            if got < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ENOBUFS) {
                return any;
            }
            any = true;
        }
    }
}

impl AsRawFd for News {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_and_others_are_not() {
        let interfaces = Interfaces::new().unwrap();
        assert!(interfaces.exists("lo") && interfaces.mtu("lo").unwrap() >= 1280);
        assert_eq!((interfaces.mac("lo").unwrap(), interfaces.receive_queues("lo")), (None, 1));
        let error = interfaces.is_up("no-such-device").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert!(!News::new().unwrap().take());
        assert!(dropped(interfaces.index("lo").unwrap()).is_ok());
        assert_eq!(dropped(u32::MAX).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_name_is_cut_like_the_kernels() {
        assert_eq!(Request::new("vnf0").name(), "vnf0");
        assert_eq!(Request::new("sixteen-letters-and-more").name(), "sixteen-letters");
    }
}
