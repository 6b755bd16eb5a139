//! The program at the interface, assembled here instruction by instruction: it redirects to our sockets what is for us,
//! and passes the rest to the kernel. No compiler, no loader, no file: four calls of bpf(2).
//!
//! Registers: r6 the context, r2 the frame, r3 its end, r5 and r7 what is looked at.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::sys::{checked, opened};
use super::{Attach, Take};

/// Ways of an XDP program (linux/bpf.h).
const XDP_PASS: i32 = 2;
/// Fields of `struct xdp_md` (linux/bpf.h).
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const RX_QUEUE_INDEX: i16 = 16;
/// The helper's number in linux/bpf.h.
const REDIRECT_MAP: i32 = 51;

/// Opcodes (RFC 9669 §3–5).
mod op {
    pub const LOAD_U8: u8 = 0x71;
    pub const LOAD_U16: u8 = 0x69;
    pub const LOAD_U32: u8 = 0x61;
    pub const LOAD_IMMEDIATE: u8 = 0x18;
    pub const MOVE: u8 = 0xbf;
    pub const MOVE_K: u8 = 0xb7;
    pub const ADD: u8 = 0x0f;
    pub const ADD_K: u8 = 0x07;
    pub const AND_K: u8 = 0x57;
    pub const SHIFT_LEFT_K: u8 = 0x67;
    pub const JUMP: u8 = 0x05;
    pub const IF_GREATER: u8 = 0x2d;
    /// Of the lower 32 bits.
    pub const IF_EQUAL_K: u8 = 0x16;
    pub const IF_NOT_EQUAL_K: u8 = 0x56;
    pub const IF_LESS_K: u8 = 0xa6;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;
}

/// In the source register of a 64-bit immediate: it is a map's descriptor.
const PSEUDO_MAP: u8 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub opcode: u8,
    /// Destination in the lower half on little-endian machines, in the upper one on big-endian ones.
    registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

impl Instruction {
    const fn new(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
        Self { opcode, registers, offset, immediate }
    }

    /// Destination and source.
    #[cfg(test)]
    pub fn registers(self) -> (u8, u8) {
        let (low, high) = (self.registers & 15, self.registers >> 4);
        if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
    }
}

/// Where jumps go to.
type Label = usize;

#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    /// By label: where it is.
    places: Vec<usize>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn label(&mut self) -> Label {
        self.places.push(usize::MAX);
        self.places.len() - 1
    }

    fn here(&mut self, label: Label) {
        self.places[label] = self.code.len();
    }

    fn put(&mut self, opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction::new(opcode, to, from, offset, immediate));
    }

    fn jump(&mut self, opcode: u8, to: u8, from: u8, immediate: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(opcode, to, from, 0, immediate);
    }

    /// Goes to `label` when `register` plus `bytes` is beyond the frame's end.
    fn unless_within(&mut self, register: u8, bytes: i32, label: Label) {
        self.put(op::MOVE, 4, register, 0, 0);
        self.put(op::ADD_K, 4, 0, 0, bytes);
        self.jump(op::IF_GREATER, 4, 3, 0, label);
    }

    /// `bytes` at `offset` of the frame, compared four at a time: all equal → `yes`, else on.
    fn if_equal(&mut self, offset: i16, bytes: &[u8], yes: Label) {
        let no = self.label();
        for (word, at) in bytes.chunks_exact(4).zip((offset..).step_by(4)) {
            self.put(op::LOAD_U32, 5, 2, at, 0);
            self.jump(op::IF_NOT_EQUAL_K, 5, 0, i32::from_ne_bytes([word[0], word[1], word[2], word[3]]), no);
        }
        self.jump(op::JUMP, 0, 0, 0, yes);
        self.here(no);
    }

    fn finish(mut self) -> Option<Vec<Instruction>> {
        for (at, label) in self.jumps {
            self.code[at].offset = i16::try_from(self.places[label] as isize - at as isize - 1).ok()?;
        }
        Some(self.code)
    }
}

/// As a number read from the frame is compared.
fn network_order(number: u16) -> i32 {
    i32::from(u16::from_ne_bytes(number.to_be_bytes()))
}

/// What `take` and `addresses` say, as a program; `map` is the XSKMAP's descriptor. None: too many addresses.
///
/// Offsets within a frame: Ethernet is 14 bytes (IEEE 802.3), IPv4's fields are in RFC 791 §3.1, IPv6's in RFC 8200 §3,
/// ARP's in RFC 826, the neighbour solicitation's in RFC 4861 §4.3. Frames with an 802.1Q tag stay with the kernel unless
/// everything is taken; so do fragments of what is taken by port, since only the first of them has one.
pub fn program(take: &[Take], addresses: &[IpAddr], map: i32) -> Option<Vec<Instruction>> {
    let mut asm = Assembler::default();
    let (yes, no) = (asm.label(), asm.label());
    asm.put(op::MOVE, 6, 1, 0, 0);
    if !take.contains(&Take::All) {
        let addresses = if take.is_empty() || take.contains(&Take::Addresses) { addresses } else { &[] };
        select(&mut asm, take, addresses, yes, no);
    }
    asm.here(yes);
    // A queue without a socket of ours: the helper returns its last argument.
    asm.put(op::LOAD_U32, 2, 6, RX_QUEUE_INDEX, 0);
    asm.put(op::LOAD_IMMEDIATE, 1, PSEUDO_MAP, 0, map);
    asm.put(0, 0, 0, 0, 0);
    asm.put(op::MOVE_K, 3, 0, 0, XDP_PASS);
    asm.put(op::CALL, 0, 0, 0, REDIRECT_MAP);
    asm.put(op::EXIT, 0, 0, 0, 0);
    asm.here(no);
    // Nothing jumps here when all is taken, and the verifier refuses what cannot be reached.
    if !take.contains(&Take::All) {
        asm.put(op::MOVE_K, 0, 0, 0, XDP_PASS);
        asm.put(op::EXIT, 0, 0, 0, 0);
    }
    asm.finish()
}

fn select(asm: &mut Assembler, take: &[Take], addresses: &[IpAddr], yes: Label, no: Label) {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
    let octets = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let ports = take.iter().any(|take| matches!(take, Take::Udp(_) | Take::Tcp(_)));
    let (is_v4, is_v6, by_port) = (asm.label(), asm.label(), asm.label());
    asm.put(op::LOAD_U32, 2, 6, DATA, 0);
    asm.put(op::LOAD_U32, 3, 6, DATA_END, 0);
    asm.unless_within(2, 14, no);
    asm.put(op::LOAD_U16, 5, 2, 12, 0);
    asm.jump(op::IF_EQUAL_K, 5, 0, network_order(0x0800), is_v4);
    asm.jump(op::IF_EQUAL_K, 5, 0, network_order(0x86dd), is_v6);

    // ARP, question or answer: its target is one of ours.
    if !v4.is_empty() {
        asm.jump(op::IF_NOT_EQUAL_K, 5, 0, network_order(0x0806), no);
        asm.unless_within(2, 14 + 28, no);
        v4.iter().for_each(|address| asm.if_equal(14 + 24, &octets(address), yes));
    }
    asm.jump(op::JUMP, 0, 0, 0, no);

    asm.here(is_v4);
    asm.unless_within(2, 14 + 20, no);
    v4.iter().for_each(|address| asm.if_equal(14 + 16, &octets(address), yes));
    if ports {
        // More fragments, or an offset.
        asm.put(op::LOAD_U16, 5, 2, 14 + 6, 0);
        asm.put(op::AND_K, 5, 0, 0, network_order(0x3fff));
        asm.jump(op::IF_NOT_EQUAL_K, 5, 0, 0, no);
        asm.put(op::LOAD_U8, 5, 2, 14, 0);
        asm.put(op::AND_K, 5, 0, 0, 15);
        asm.put(op::SHIFT_LEFT_K, 5, 0, 0, 2);
        asm.jump(op::IF_LESS_K, 5, 0, 20, no);
        asm.put(op::LOAD_U8, 7, 2, 14 + 9, 0);
        asm.put(op::ADD, 2, 5, 0, 0);
        asm.unless_within(2, 14 + 4, no);
        asm.put(op::LOAD_U16, 5, 2, 14 + 2, 0);
        asm.jump(op::JUMP, 0, 0, 0, by_port);
    } else {
        asm.jump(op::JUMP, 0, 0, 0, no);
    }

    asm.here(is_v6);
    asm.unless_within(2, 14 + 40, no);
    v6.iter().for_each(|address| asm.if_equal(14 + 24, &octets(address), yes));
    if !v6.is_empty() {
        // A neighbour solicitation goes to a group's address (RFC 4291 §2.7.1): its target tells for whom it is.
        let other = asm.label();
        asm.put(op::LOAD_U8, 5, 2, 14 + 6, 0);
        asm.jump(op::IF_NOT_EQUAL_K, 5, 0, 58, other);
        asm.unless_within(2, 14 + 40 + 24, no);
        asm.put(op::LOAD_U8, 5, 2, 14 + 40, 0);
        asm.jump(op::IF_NOT_EQUAL_K, 5, 0, 135, other);
        v6.iter().for_each(|address| asm.if_equal(14 + 40 + 8, &octets(address), yes));
        asm.here(other);
    }
    if ports {
        asm.put(op::LOAD_U8, 7, 2, 14 + 6, 0);
        asm.unless_within(2, 14 + 40 + 4, no);
        asm.put(op::LOAD_U16, 5, 2, 14 + 40 + 2, 0);
        asm.here(by_port);
        let tcp = asm.label();
        asm.jump(op::IF_NOT_EQUAL_K, 7, 0, 17, tcp);
        for port in take.iter().filter_map(|take| if let Take::Udp(port) = take { Some(*port) } else { None }) {
            asm.jump(op::IF_EQUAL_K, 5, 0, network_order(port), yes);
        }
        asm.here(tcp);
        asm.jump(op::IF_NOT_EQUAL_K, 7, 0, 6, no);
        for port in take.iter().filter_map(|take| if let Take::Tcp(port) = take { Some(*port) } else { None }) {
            asm.jump(op::IF_EQUAL_K, 5, 0, network_order(port), yes);
        }
    }
    asm.jump(op::JUMP, 0, 0, 0, no);
}

/// Commands and types of linux/bpf.h.
const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// Flags of linux/if_link.h.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// What `ip link` and `bpftool` show.
const NAME: [u8; 16] = *b"vnf_take\0\0\0\0\0\0\0\0";

/// The members of `union bpf_attr` that are used, each in the order of linux/bpf.h.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// # Safety
/// Every address in `attr` is one the command may read.
unsafe fn bpf<T>(command: i32, attr: &T) -> libc::c_long {
    // SAFETY: `attr` is valid for its size; the caller vouches for what it points to.
    unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) }
}

/// The map from a queue's number to the socket that has it.
pub struct SocketMap(OwnedFd);

impl SocketMap {
    pub fn new(entries: u32) -> io::Result<Self> {
        let attr = MapCreate {
            kind: MAP_TYPE_XSKMAP,
            key_bytes: 4,
            value_bytes: 4,
            entries,
            flags: 0,
            inner: 0,
            numa_node: 0,
            name: NAME,
        };
        // SAFETY: no addresses; the result is a new descriptor, which the kernel has closed on exec.
        unsafe { opened(bpf(MAP_CREATE, &attr)) }.map(Self)
    }

    pub fn insert(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd();
        let (key, value) = (&raw const queue as u64, &raw const value as u64);
        let attr = MapUpdate { map: self.0.as_raw_fd() as u32, padding: 0, key, value, flags: 0 };
        // SAFETY: key and value are on this stack, four bytes each as the map was made.
        checked(unsafe { bpf(MAP_UPDATE_ELEM, &attr) } as i32).map(drop)
    }
}

/// The program at an interface: gone when this is dropped, or its process ends in whatever way.
pub struct Link {
    _link: OwnedFd,
    pub is_native: bool,
}

impl Link {
    /// Loads the program and attaches it.
    pub fn attach(
        interface: u32,
        how: Attach,
        map: &SocketMap,
        take: &[Take],
        addresses: &[IpAddr],
    ) -> Result<Self, AttachError> {
        let code = program(take, addresses, map.0.as_raw_fd()).ok_or(AttachError::TooManyAddresses)?;
        let attr = ProgLoad {
            kind: PROG_TYPE_XDP,
            count: code.len() as u32,
            instructions: code.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            log_level: 0,
            log_bytes: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: NAME,
            interface: 0,
            attach_type: ATTACH_XDP,
        };
        // SAFETY: code and licence outlive the call; the result is a new descriptor.
        let program = unsafe { opened(bpf(PROG_LOAD, &attr)) }.map_err(AttachError::Load)?;
        let mut ways = match how {
            Attach::Auto => [Some(XDP_FLAGS_DRV_MODE), Some(XDP_FLAGS_SKB_MODE)],
            Attach::Native => [Some(XDP_FLAGS_DRV_MODE), None],
            Attach::Generic => [Some(XDP_FLAGS_SKB_MODE), None],
        }
        .into_iter()
        .flatten()
        .peekable();
        loop {
            let Some(flags) = ways.next() else { return Err(AttachError::Attach(io::ErrorKind::Unsupported.into())) };
            let attr =
                LinkCreate { program: program.as_fd().as_raw_fd() as u32, interface, attach_type: ATTACH_XDP, flags };
            // SAFETY: no addresses; the result is a new descriptor.
            match unsafe { opened(bpf(LINK_CREATE, &attr)) } {
                Ok(link) => return Ok(Self { _link: link, is_native: flags == XDP_FLAGS_DRV_MODE }),
                // Another program's place is taken in both ways.
                Err(error) if ways.peek().is_some() && error.raw_os_error() != Some(libc::EBUSY) => {}
                Err(error) => return Err(AttachError::Attach(error)),
            }
        }
    }
}

#[derive(Debug)]
pub enum AttachError {
    TooManyAddresses,
    Load(io::Error),
    Attach(io::Error),
}
