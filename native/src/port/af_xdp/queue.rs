//! One queue of the interface: a socket, its four rings, and the memory of its frames, half to be received into and half
//! to send from.
//!
//! Received frames stay in their place of the receive ring until they are given back, so nothing else remembers them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{NonNull, copy_nonoverlapping};

use super::ring::{Consumer, Producer};
use super::sys::{Mapping, bind, option, set_option, socket};
use crate::packet::prefetch::prefetch;
use crate::port::lent::{Burst, Lent};

/// A received frame begins so far behind its buffer's start (`XDP_PACKET_HEADROOM` of linux/bpf.h).
pub const HEADROOM: usize = 256;

/// What is asked for ahead of each frame: what follows the hardware has seen coming.
const PREFETCH_BYTES: usize = 256;

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Of each ring.
    pub slots: u32,
    /// Of each buffer; a power of two.
    pub frame_bytes: u32,
    /// Only the first queue of a port sends: what it sends stays in order, and leaves by one system call.
    pub sends: bool,
    pub zero_copy: bool,
}

/// What became of handing frames to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// All are out.
    Done,
    /// Some wait until the interface takes more.
    Waits,
    /// The interface takes none: the error number.
    Refused(i32),
}

struct Sender {
    tx: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
    /// Buffers that are free.
    free: Vec<u64>,
    queued: u32,
}

pub struct Queue {
    rx: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    /// Frames lent and not given back.
    lent: u32,
    sender: Option<Sender>,
    /// Behind the rings: unmapped memory first, then the socket goes, then the memory of its frames.
    socket: OwnedFd,
    memory: Mapping,
    frame_bytes: u32,
    /// Of the second half.
    first_to_send: u64,
}

impl Queue {
    /// A socket with its memory; [`Self::bind`] makes it the queue's.
    pub fn new(shape: Shape) -> Result<Self, io::Error> {
        let Shape { slots, frame_bytes, sends, .. } = shape;
        let socket = socket(libc::AF_XDP, libc::SOCK_RAW, 0)?;
        let fd = socket.as_fd();
        let half = u64::from(slots) * u64::from(frame_bytes);
        let memory = Mapping::anonymous(if sends { 2 * half } else { half } as usize)?;
        let region = libc::xdp_umem_reg {
            addr: memory.at(0, 0).map_or(0, |base| base.as_ptr() as u64),
            len: memory.bytes() as u64,
            chunk_size: frame_bytes,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        // The kernel may write into that memory, which lives as long as the socket.
        set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &region)?;
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING] {
            set_option(fd, libc::SOL_XDP, ring, &slots)?;
        }
        if sends {
            set_option(fd, libc::SOL_XDP, libc::XDP_TX_RING, &slots)?;
            // Copies on their way count as the socket's; a kernel that will not allow as much makes us wait for them.
            drop(set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(slots as i32).saturating_mul(4096)));
        }
        // SAFETY: offsets are plain numbers.
        let at: libc::xdp_mmap_offsets = unsafe { option(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS) }?;
        let mut fill = Producer::map(fd, libc::XDP_UMEM_PGOFF_FILL_RING, &at.fr, slots)?;
        for frame in 0..slots {
            fill.put(u64::from(frame) * u64::from(frame_bytes));
        }
        fill.publish();
        let sender = if sends {
            Some(Sender {
                tx: Producer::map(fd, libc::XDP_PGOFF_TX_RING as u64, &at.tx, slots)?,
                completion: Consumer::map(fd, libc::XDP_UMEM_PGOFF_COMPLETION_RING, &at.cr, slots)?,
                free: (0..slots).rev().map(|frame| half + u64::from(frame) * u64::from(frame_bytes)).collect(),
                queued: 0,
            })
        } else {
            None
        };
        let rx = Consumer::map(fd, libc::XDP_PGOFF_RX_RING as u64, &at.rx, slots)?;
        Ok(Self { rx, fill, lent: 0, sender, memory, frame_bytes, first_to_send: half, socket })
    }

    pub fn bind(&self, interface: u32, queue: u32, zero_copy: bool) -> io::Result<()> {
        let mode = if zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: mode | libc::XDP_USE_NEED_WAKEUP,
            sxdp_ifindex: interface,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        bind(self.socket.as_fd(), &address)
    }

    #[inline]
    pub fn has_frames(&self) -> bool {
        self.rx.available() > 0
    }

    /// Shows up to `max` waiting frames, and how many bytes they have. `give_back` follows.
    #[inline]
    pub fn lend(&mut self, max: usize) -> (Burst<'_>, u64) {
        let mut burst = Burst::EMPTY;
        let mut bytes = 0;
        self.lent = self.rx.available().min(max as u32);
        for ahead in 0..self.lent {
            let frame = self.rx.peek(ahead);
            // The kernel's word, which is right; no frame at all is what a wrong one is worth.
            let (at, len) = match self.memory.at(frame.addr, frame.len as usize) {
                Some(at) => (at, frame.len),
                None => (NonNull::dangling(), 0),
            };
            // Another cpu has written them, most of the time: their lines come while earlier frames are looked at.
            prefetch(at, (len as usize).min(PREFETCH_BYTES), false);
            // SAFETY: `len` bytes at `at` lie within the memory, and the kernel has no claim on them until `give_back`,
            // which needs this borrow to be over.
            burst.push(unsafe { Lent::new(at, len) });
            bytes += u64::from(len);
        }
        (burst, bytes)
    }

    #[inline]
    pub fn give_back(&mut self) {
        if self.lent == 0 {
            return;
        }
        for ahead in 0..self.lent {
            let place = self.rx.peek(ahead).addr & !u64::from(self.frame_bytes - 1);
            // There are as many places in the ring as buffers to fill.
            self.fill.put(place);
        }
        self.fill.publish();
        self.rx.release(std::mem::take(&mut self.lent));
        if self.fill.wants_call() {
            self.wake_driver();
        }
    }

    /// Wakes a driver that sleeps for want of buffers. `false`: nothing is bound to this any more, the interface has gone.
    pub fn wake_driver(&self) -> bool {
        let (socket, nothing, nobody) = (self.socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: no buffer: the call only wakes the driver.
        let result = unsafe { libc::recvfrom(socket, nothing, 0, libc::MSG_DONTWAIT, nobody, std::ptr::null_mut()) };
        result >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENXIO)
    }

    /// Takes back what has been sent; how many frames can be sent now.
    #[inline]
    pub fn room(&mut self) -> usize {
        let Some(sender) = &mut self.sender else { return 0 };
        let done = sender.completion.available();
        for ahead in 0..done {
            let place = sender.completion.peek(ahead);
            if place >= self.first_to_send {
                sender.free.push(place & !u64::from(self.frame_bytes - 1));
            }
        }
        if done > 0 {
            sender.completion.release(done);
        }
        sender.free.len()
    }

    /// Where the next frame of at most `frame_bytes` is written; `queue` follows. None: no buffer is free.
    #[inline]
    fn buffer(&mut self) -> Option<(u64, NonNull<u8>)> {
        if self.sender.as_ref().is_none_or(|sender| sender.free.is_empty()) && self.room() == 0 {
            return None;
        }
        let place = self.sender.as_mut()?.free.pop()?;
        Some((place, self.memory.at(place, self.frame_bytes as usize)?))
    }

    /// Writes one frame of `head` (parts, in order) and `rest`, `total` > 0 bytes together, at most `frame_bytes`.
    /// `false`: no buffer is free.
    #[inline]
    pub fn send(&mut self, head: &[&[u8]], rest: Lent<'_>, total: usize) -> bool {
        debug_assert!(total <= self.frame_bytes as usize);
        let Some((place, mut at)) = self.buffer() else { return false };
        for part in head {
            // SAFETY: the buffer holds `frame_bytes` ≥ total bytes, and total is the sum of what is written. It is free,
            // so neither the kernel nor a lent frame uses it.
            unsafe {
                copy_nonoverlapping(part.as_ptr(), at.as_ptr(), part.len());
                at = at.add(part.len());
            }
        }
        // SAFETY: as above; a lent frame is readable for its length.
        unsafe { copy_nonoverlapping(rest.as_ptr(), at.as_ptr(), rest.len()) };
        if let Some(sender) = &mut self.sender {
            // There are as many places in the ring as buffers to send from.
            sender.tx.put(libc::xdp_desc { addr: place, len: total as u32, options: 0 });
            sender.queued += 1;
        }
        true
    }

    /// Frames that no `hand_over` has shown the kernel.
    pub fn queued(&self) -> u32 {
        self.sender.as_ref().map_or(0, |sender| sender.queued)
    }

    /// Frames the kernel has been shown and has not taken.
    pub fn waiting(&mut self) -> u32 {
        self.sender.as_mut().map_or(0, |sender| sender.tx.waiting())
    }

    /// Shows the kernel what is queued, and has it sent. `dropped` counts what the interface threw away.
    pub fn kick(&mut self, kicks: &mut u64, dropped: &mut u64) -> Kick {
        let kick = self.send_all(kicks, dropped);
        // What is out by now is written into again next, while it is in the cache.
        self.room();
        kick
    }

    #[inline]
    fn send_all(&mut self, kicks: &mut u64, dropped: &mut u64) -> Kick {
        let Some(sender) = &mut self.sender else { return Kick::Done };
        sender.tx.publish();
        sender.queued = 0;
        let mut waiting = sender.tx.waiting();
        while waiting > 0 {
            if !sender.tx.wants_call() {
                // A driver that is awake looks by itself.
                return Kick::Done;
            }
            *kicks += 1;
            // SAFETY: no data: the call only has the ring sent.
            let result = unsafe {
                libc::sendto(self.socket.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
            };
            let error = if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
            let before = std::mem::replace(&mut waiting, sender.tx.waiting());
            match error {
                // More than the kernel sends at once (32 frames, if nobody said otherwise), or it has to wait.
                0 | libc::EAGAIN | libc::ENOBUFS | libc::EINTR if waiting < before => {}
                0 | libc::EAGAIN | libc::ENOBUFS | libc::EINTR => return Kick::Waits,
                // The frame is used up, and the interface did not want it.
                libc::EBUSY if waiting < before => *dropped += 1,
                libc::EBUSY => return Kick::Waits,
                error => return Kick::Refused(error),
            }
        }
        Kick::Done
    }

    /// What the kernel has counted for this socket.
    pub fn statistics(&self) -> Option<libc::xdp_statistics> {
        // SAFETY: statistics are plain numbers.
        unsafe { option(self.socket.as_fd(), libc::SOL_XDP, libc::XDP_STATISTICS) }.ok()
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
