//! What an interface is asked to let in beside what is for its own address.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem::zeroed;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::Facts;
use super::sys::{set_option, socket};
use crate::packet::ethernet::Mac;

/// What a network card lets in beside its own address, for as long as this is held: the kernel counts who wants what
/// (packet(7), `PACKET_ADD_MEMBERSHIP`).
pub(super) struct Admission {
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
