//! What the kernel tells of the interface, at first and whenever it changes (rtnetlink(7)), and what the interface is asked
//! to let in. All of it ends with the descriptors held here.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem::zeroed;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::sys::{bind, checked, set_option, socket};
use crate::packet::ethernet::Mac;

/// `ETHTOOL_GCHANNELS` of linux/ethtool.h.
const GET_CHANNELS: u32 = 0x3c;
/// Bytes of `struct nlmsghdr` and `struct ifinfomsg`.
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
/// A message about a link is some 2 KB; more than one may be waiting.
const MESSAGE_BYTES: usize = 32_768;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub index: u32,
    pub mac: Mac,
    pub mtu: usize,
    pub is_ethernet: bool,
    /// By the operator's will.
    pub is_up: bool,
    pub has_carrier: bool,
}

/// A subscription to what happens to the interface of one name.
pub struct Interface {
    name: String,
    netlink: OwnedFd,
    /// None: there is none of that name now.
    pub facts: Option<Facts>,
}

impl Interface {
    pub fn watch(name: &str) -> io::Result<Self> {
        let netlink = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        // SAFETY: all zeros is a valid address.
        let mut address: libc::sockaddr_nl = unsafe { zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        bind(netlink.as_fd(), &address)?;
        let mut interface = Self { name: name.into(), netlink, facts: None };
        interface.ask()?;
        // The answer is there when the question has been sent.
        interface.hear();
        Ok(interface)
    }

    /// Asks the kernel for the present state, which comes as any news does.
    fn ask(&self) -> io::Result<()> {
        let mut name = self.name.clone().into_bytes();
        name.push(0);
        let attribute = 4 + name.len();
        let length = HEADER + LINK_HEADER + attribute.next_multiple_of(4);
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&(length as u32).to_ne_bytes());
        message.extend_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
        message.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.resize(HEADER + LINK_HEADER, 0);
        message.extend_from_slice(&(attribute as u16).to_ne_bytes());
        message.extend_from_slice(&libc::IFLA_IFNAME.to_ne_bytes());
        message.extend_from_slice(&name);
        message.resize(length, 0);
        // SAFETY: the message is valid for its length.
        let sent = unsafe { libc::send(self.netlink.as_raw_fd(), message.as_ptr().cast(), length, 0) };
        checked(sent as c_int).map(drop)
    }

    /// Reads what has happened since; whether it concerns the interface.
    pub fn hear(&mut self) -> bool {
        let before = self.facts.clone();
        let mut news = [0; MESSAGE_BYTES];
        loop {
            // SAFETY: the buffer is valid for its length.
            let count = unsafe {
                libc::recv(self.netlink.as_raw_fd(), news.as_mut_ptr().cast(), news.len(), libc::MSG_DONTWAIT)
            };
            if count < 0 {
                match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => continue,
                    // News was lost: what holds now is asked for.
                    Some(libc::ENOBUFS) if self.ask().is_ok() => continue,
                    _ => break,
                }
            }
            self.read(&news[..count as usize]);
        }
        self.facts != before
    }

    fn read(&mut self, mut messages: &[u8]) {
        while let Some((length, kind)) = u32_at(messages, 0).zip(u16_at(messages, 4)) {
            let Some(body) = messages.get(HEADER..length as usize) else { return };
            match kind {
                libc::RTM_NEWLINK => self.new_link(body),
                libc::RTM_DELLINK if u32_at(body, 4) == self.facts.as_ref().map(|facts| facts.index) => {
                    self.facts = None;
                }
                _ => {}
            }
            messages = messages.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn new_link(&mut self, body: &[u8]) {
        let (Some(kind), Some(index), Some(flags)) = (u16_at(body, 2), u32_at(body, 4), u32_at(body, 8)) else {
            return;
        };
        let (mut name, mut mac, mut mtu) = (None, [0; 6], None);
        let mut attributes = body.get(LINK_HEADER..).unwrap_or_default();
        while let Some((length, tag)) = u16_at(attributes, 0).zip(u16_at(attributes, 2)) {
            let Some(value) = attributes.get(4..usize::from(length)) else { break };
            match tag {
                libc::IFLA_IFNAME => name = value.strip_suffix(&[0]),
                libc::IFLA_ADDRESS => mac = value.try_into().unwrap_or_default(),
                libc::IFLA_MTU => mtu = u32_at(value, 0),
                _ => {}
            }
            attributes = attributes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        }
        if name == Some(self.name.as_bytes()) {
            let is = |flag: c_int| flags & flag as u32 != 0;
            self.facts = Some(Facts {
                index,
                mac,
                mtu: mtu.unwrap_or(0) as usize,
                is_ethernet: kind == libc::ARPHRD_ETHER,
                is_up: is(libc::IFF_UP),
                has_carrier: is(libc::IFF_RUNNING),
            });
        } else if self.facts.as_ref().is_some_and(|facts| facts.index == index) {
            // Renamed: it is somebody else's now.
            self.facts = None;
        }
    }

    /// How many receive queues there are; one where the driver does not say.
    pub fn queues(&self) -> u32 {
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
        let mut channels = Channels { command: GET_CHANNELS, most: [0; 4], receive: 0, send: 0, other: 0, combined: 0 };
        // SAFETY: all zeros is a valid request.
        let mut request: libc::ifreq = unsafe { zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut channels).cast();
        // SAFETY: the request and what it points to live on this stack; the command writes no more than `Channels`.
        let asked =
            unsafe { libc::ioctl(self.netlink.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) };
        if asked < 0 { 1 } else { (channels.receive + channels.combined).max(1) }
    }
}

impl AsFd for Interface {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// What a network card lets in beside its own address, for as long as this is held: the kernel counts who wants what
/// (packet(7), `PACKET_ADD_MEMBERSHIP`).
pub struct Admission {
    _socket: OwnedFd,
}

impl Admission {
    /// Everything, or `mac` and the groups that neighbours ask for `addresses` at (RFC 4291 §2.7.1, RFC 2464 §7).
    pub fn new(facts: &Facts, everything: bool, mac: Option<Mac>, addresses: &[IpAddr]) -> io::Result<Self> {
        // Protocol 0: nothing is received by it.
        let packet = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        let admit = |kind: c_int, address: Mac| {
            // SAFETY: all zeros is a valid request.
            let mut wanted: libc::packet_mreq = unsafe { zeroed() };
            wanted.mr_ifindex = facts.index as c_int;
            wanted.mr_type = kind as u16;
            wanted.mr_alen = 6;
            wanted.mr_address[..6].copy_from_slice(&address);
            set_option(packet.as_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &wanted)
        };
        if everything {
            admit(libc::PACKET_MR_PROMISC, [0; 6])?;
        }
        if let Some(mac) = mac.filter(|mac| *mac != facts.mac) {
            admit(libc::PACKET_MR_UNICAST, mac)?;
        }
        for address in addresses {
            if let IpAddr::V6(address) = address {
                let [.., a, b, c] = address.octets();
                admit(libc::PACKET_MR_MULTICAST, [0x33, 0x33, 0xff, a, b, c])?;
            }
        }
        Ok(Self { _socket: packet })
    }
}
