//! The hostile peer's hands: raw control sockets, raw memory, and a handshake that can stop anywhere.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use libvnf_native::packet::{Pool, PoolConfig};
use libvnf_native::port::memif::control::{AddRing, Hello, Init, MODE_ETHERNET, Message, Text, VERSION};
use libvnf_native::port::memif::region::Region;
use libvnf_native::port::memif::ring::{Descriptor, Index, Ring};
use libvnf_native::port::memif::{Memif, MemifConfig, Role};
use libvnf_native::port::{Link, Port};

/// One test at a time, so that descriptors and mappings can be counted.
pub struct Alone {
    before: (usize, usize),
    _guard: MutexGuard<'static, ()>,
}

pub fn held() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = maps.lines().filter(|line| line.contains("/memfd:")).count();
    (std::fs::read_dir("/proc/self/fd").unwrap().count(), mappings)
}

pub fn alone() -> Alone {
    static TURN: Mutex<()> = Mutex::new(());
    let _guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Alone { before: held(), _guard }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(held(), self.before, "descriptors and mappings left over");
        }
    }
}

pub fn path() -> PathBuf {
    std::env::temp_dir().join(format!("libvnf-hostile-{}.sock", std::process::id()))
}

pub fn server() -> Memif {
    Memif::new(MemifConfig::new("server", path(), Role::Server)).unwrap()
}

pub fn owned(fd: c_int) -> OwnedFd {
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and ours.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub fn eventfd() -> OwnedFd {
    // SAFETY: no pointers.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

pub fn memfd(bytes: i64, seals: c_int) -> OwnedFd {
    // SAFETY: plain system calls on a descriptor made here.
    unsafe {
        let fd = owned(libc::memfd_create(c"hostile".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING));
        assert_eq!(libc::ftruncate(fd.as_raw_fd(), bytes), 0);
        assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        fd
    }
}

/// A control socket of our own hands.
pub struct Raw(pub OwnedFd);

impl Raw {
    pub fn socket() -> (OwnedFd, libc::sockaddr_un) {
        // SAFETY: no pointers; all zeros is a valid sockaddr_un.
        let (fd, mut address): (_, libc::sockaddr_un) = unsafe {
            let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            (owned(libc::socket(libc::AF_UNIX, kind, 0)), std::mem::zeroed())
        };
        address.sun_family = libc::AF_UNIX as _;
        for (to, from) in address.sun_path.iter_mut().zip(path().to_str().unwrap().bytes()) {
            *to = from as _;
        }
        (fd, address)
    }

    pub fn connect() -> Self {
        let (fd, address) = Self::socket();
        // SAFETY: the address is valid for its size.
        let result = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        Self(fd)
    }

    pub fn listen() -> Self {
        let (fd, address) = Self::socket();
        // SAFETY: the address is valid for its size.
        unsafe {
            assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _), 0);
            assert_eq!(libc::listen(fd.as_raw_fd(), 4), 0);
        }
        Self(fd)
    }

    pub fn accept(&self) -> Self {
        // SAFETY: null pointers ask for no address.
        Self(owned(unsafe {
            libc::accept4(self.0.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        }))
    }

    /// Any bytes, any descriptors, and our credentials if wanted.
    pub fn send_raw(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>], credentials: bool) {
        let numbers: Vec<c_int> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        let mut ancillary = [0u64; 256];
        // SAFETY: `ancillary` is larger than both control messages together; every pointer outlives the call.
        unsafe {
            let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut vector;
            header.msg_iovlen = 1;
            header.msg_control = ancillary.as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&ancillary);
            let mut used = 0;
            let mut entry = libc::CMSG_FIRSTHDR(&raw const header);
            if credentials {
                let ours = libc::ucred { pid: libc::getpid(), uid: libc::getuid(), gid: libc::getgid() };
                (*entry).cmsg_level = libc::SOL_SOCKET;
                (*entry).cmsg_type = libc::SCM_CREDENTIALS;
                (*entry).cmsg_len = libc::CMSG_LEN(size_of_val(&ours) as u32) as _;
                libc::CMSG_DATA(entry).cast::<libc::ucred>().write_unaligned(ours);
                used += libc::CMSG_SPACE(size_of_val(&ours) as u32) as usize;
                entry = libc::CMSG_NXTHDR(&raw const header, entry);
            }
            if !numbers.is_empty() {
                let length = size_of_val(&numbers[..]);
                (*entry).cmsg_level = libc::SOL_SOCKET;
                (*entry).cmsg_type = libc::SCM_RIGHTS;
                (*entry).cmsg_len = libc::CMSG_LEN(length as u32) as _;
                std::ptr::copy_nonoverlapping(numbers.as_ptr().cast::<u8>(), libc::CMSG_DATA(entry), length);
                used += libc::CMSG_SPACE(length as u32) as usize;
            }
            header.msg_controllen = used;
            let sent = libc::sendmsg(self.0.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL);
            assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
        }
    }

    pub fn send(&self, message: &Message, descriptor: Option<&OwnedFd>) {
        let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
        self.send_raw(&message.emit(), &descriptors, false);
    }

    /// The next message, if one is there; descriptors that come along are closed by the kernel for want of room.
    pub fn heard(&self) -> Option<Message> {
        let mut bytes = [0u8; 128];
        // SAFETY: 128 writable bytes.
        let length = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), 128, libc::MSG_DONTWAIT) };
        (length > 0).then(|| Message::parse(&bytes[..length as usize]).unwrap())
    }
}

/// A client of ours that does everything right until it is told otherwise.
pub struct Puppet {
    pub socket: Raw,
    pub region: Arc<Region>,
    pub outgoing: Ring,
    pub incoming: Ring,
    pub outgoing_eventfd: OwnedFd,
    pub incoming_eventfd: OwnedFd,
}

pub const SLOTS: u16 = 8;
pub const LOG2_SLOTS: u8 = 3;
pub const REGION_BYTES: usize = 1 << 16;
pub const INCOMING_AT: u32 = 4096;
pub const BUFFERS_AT: u32 = 8192;

impl Puppet {
    pub fn new() -> Self {
        let region = Arc::new(Region::create(c"puppet", REGION_BYTES).unwrap());
        let [outgoing, incoming] = [0, INCOMING_AT].map(|offset| Ring::new(&region, offset, LOG2_SLOTS).unwrap());
        outgoing.initialise();
        incoming.initialise();
        let (outgoing_eventfd, incoming_eventfd) = (eventfd(), eventfd());
        Self { socket: Raw::connect(), region, outgoing, incoming, outgoing_eventfd, incoming_eventfd }
    }

    pub fn init(&self) -> Message {
        let name = Text::new("puppet");
        Message::Init(Init { version: VERSION, id: 0, mode: MODE_ETHERNET, secret: [0; 24], name })
    }

    pub fn add_region(&self) -> Message {
        Message::AddRegion { index: 0, bytes: REGION_BYTES as u64 }
    }

    pub fn add_ring(&self, client_to_server: bool) -> AddRing {
        let offset = if client_to_server { 0 } else { INCOMING_AT };
        AddRing { client_to_server, index: 0, region: 0, offset, log2_slots: LOG2_SLOTS, private_header_bytes: 0 }
    }

    /// The handshake's messages with their descriptors, in order.
    pub fn steps(&self) -> Vec<(Message, Option<OwnedFd>)> {
        let copy = |fd: BorrowedFd<'_>| Some(fd.try_clone_to_owned().unwrap());
        vec![
            (self.init(), None),
            (self.add_region(), copy((*self.region).memfd().unwrap())),
            (Message::AddRing(self.add_ring(true)), copy(self.outgoing_eventfd.as_fd())),
            (Message::AddRing(self.add_ring(false)), copy(self.incoming_eventfd.as_fd())),
            (Message::Connect { name: Text::new("puppet") }, None),
        ]
    }

    /// Plays the first `count` steps, each answered as it should be.
    pub fn play(&self, server: &mut Memif, count: usize) {
        server.service(Instant::now());
        assert!(matches!(self.socket.heard(), Some(Message::Hello(_))));
        for (message, descriptor) in self.steps().into_iter().take(count) {
            self.socket.send(&message, descriptor.as_ref());
            server.service(Instant::now());
            let answer = self.socket.heard().unwrap();
            assert!(matches!(answer, Message::Ack | Message::Connected { .. }), "{answer:?}");
        }
    }

    pub fn connected(server: &mut Memif) -> Self {
        let puppet = Self::new();
        puppet.play(server, 5);
        assert_eq!(server.link(), Link::Up);
        puppet
    }

    /// What the server says to one more message.
    pub fn refusal(&self, server: &mut Memif, message: &Message, descriptor: Option<&OwnedFd>) -> String {
        self.socket.send(message, descriptor);
        server.service(Instant::now());
        self.farewell()
    }

    pub fn farewell(&self) -> String {
        match self.socket.heard() {
            Some(Message::Disconnect { reason, .. }) => reason.to_string(),
            other => panic!("no DISCONNECT but {other:?}"),
        }
    }

    /// Puts descriptors into the outgoing ring from index `from` and publishes them.
    pub fn publish(&self, from: u16, descriptors: &[Descriptor]) {
        let mut index = from;
        for descriptor in descriptors {
            self.outgoing.set_descriptor(index, *descriptor);
            index = index.wrapping_add(1);
        }
        self.outgoing.store(Index::Head, index);
    }
}

pub fn good() -> Descriptor {
    Descriptor { flags: 0, region: 0, length: 60, offset: BUFFERS_AT }
}

pub fn pool() -> Pool {
    Pool::new(&PoolConfig { classes: vec![(2048, 64)] }).unwrap()
}

/// How many frames arrived.
pub fn receive(port: &mut Memif) -> usize {
    let mut frames = Vec::new();
    port.receive(&pool(), &mut frames, 64);
    frames.len()
}

pub fn counter(port: &Memif, name: &str) -> u64 {
    port.counters().into_iter().find(|(found, _)| *found == name).unwrap().1
}

pub fn down(port: &Memif) -> String {
    match port.link() {
        Link::Down(reason) => reason,
        Link::Up => "up".into(),
    }
}

/// A client of ours, connected to a server played by hand; the region it shares.
pub fn client_of_a_puppet_server(listener: &Raw) -> (Memif, Raw, Region) {
    let mut config = MemifConfig::new("client", path(), Role::Client);
    (config.ring_slots, config.buffer_bytes) = (u32::from(SLOTS), 2048);
    let mut client = Memif::new(config).unwrap();
    client.service(client.deadline().unwrap());
    let socket = listener.accept();
    socket.send(&hello(), None);
    let mut region = None;
    for _ in 0..5 {
        client.service(Instant::now());
        let (message, descriptor) = heard_with_descriptor(&socket);
        if let (Message::AddRegion { bytes, .. }, Some(memfd)) = (message, descriptor) {
            region = Some(Region::from_peer(memfd, bytes).unwrap());
        }
        let connect = matches!(message, Message::Connect { .. });
        socket.send(&if connect { Message::Connected { name: Text::new("") } } else { Message::Ack }, None);
    }
    client.service(Instant::now());
    assert_eq!(client.link(), Link::Up);
    (client, socket, region.unwrap())
}

pub fn hello() -> Message {
    Message::Hello(Hello {
        name: Text::new("puppet"),
        min_version: VERSION,
        max_version: VERSION,
        max_region: 255,
        max_s2c_ring: 255,
        max_c2s_ring: 255,
        max_log2_ring_slots: 14,
    })
}

pub fn heard_with_descriptor(socket: &Raw) -> (Message, Option<OwnedFd>) {
    let (mut bytes, mut ancillary) = ([0u8; 128], [0u64; 8]);
    // SAFETY: every pointer outlives the call; the kernel fills the control block the macros then walk.
    unsafe {
        let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 128 };
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = ancillary.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&ancillary);
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        assert_eq!(libc::recvmsg(socket.0.as_raw_fd(), &raw mut header, flags), 128);
        let entry = libc::CMSG_FIRSTHDR(&raw const header);
        let descriptor = (!entry.is_null()).then(|| owned(libc::CMSG_DATA(entry).cast::<c_int>().read_unaligned()));
        (Message::parse(&bytes).unwrap(), descriptor)
    }
}

pub fn is_readable(fd: c_int) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// How many descriptors this process may have from now on; how many it could have before.
pub fn limit_descriptors(most: u64) -> u64 {
    // SAFETY: an all-zero rlimit is a valid value to be overwritten; the results are checked.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let before = std::mem::replace(&mut limit.rlim_cur, most);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        before
    }
}

pub fn remove_socket(path: &Path) {
    std::fs::remove_file(path).unwrap();
}
