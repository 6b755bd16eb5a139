//! Peers that lie, stall, die and break things on purpose, played by hand on raw sockets and raw memory. After each
//! test the process must hold exactly the descriptors and mappings it held before.
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
use libvnf_native::port::memif::ring::{Descriptor, Index, NEXT, Ring};
use libvnf_native::port::memif::{HANDSHAKE_TIMEOUT, MAX_HALF_OPEN, Memif, MemifConfig, Role};
use libvnf_native::port::{Link, Port, Sent};

/// One test at a time, so that descriptors and mappings can be counted.
struct Alone {
    before: (usize, usize),
    _guard: MutexGuard<'static, ()>,
}

fn held() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = maps.lines().filter(|line| line.contains("/memfd:")).count();
    (std::fs::read_dir("/proc/self/fd").unwrap().count(), mappings)
}

fn alone() -> Alone {
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

fn path() -> PathBuf {
    std::env::temp_dir().join(format!("libvnf-hostile-{}.sock", std::process::id()))
}

fn server() -> Memif {
    Memif::new(MemifConfig::new("server", path(), Role::Server)).unwrap()
}

fn owned(fd: c_int) -> OwnedFd {
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and ours.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn eventfd() -> OwnedFd {
    // SAFETY: no pointers.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

fn memfd(bytes: i64, seals: c_int) -> OwnedFd {
    // SAFETY: plain system calls on a descriptor made here.
    unsafe {
        let fd = owned(libc::memfd_create(c"hostile".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING));
        assert_eq!(libc::ftruncate(fd.as_raw_fd(), bytes), 0);
        assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        fd
    }
}

/// A control socket of our own hands.
struct Raw(OwnedFd);

impl Raw {
    fn socket() -> (OwnedFd, libc::sockaddr_un) {
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

    fn connect() -> Self {
        let (fd, address) = Self::socket();
        // SAFETY: the address is valid for its size.
        let result = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        Self(fd)
    }

    fn listen() -> Self {
        let (fd, address) = Self::socket();
        // SAFETY: the address is valid for its size.
        unsafe {
            assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _), 0);
            assert_eq!(libc::listen(fd.as_raw_fd(), 4), 0);
        }
        Self(fd)
    }

    fn accept(&self) -> Self {
        // SAFETY: null pointers ask for no address.
        Self(owned(unsafe {
            libc::accept4(self.0.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        }))
    }

    /// Any bytes, any descriptors, and our credentials if wanted.
    fn send_raw(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>], credentials: bool) {
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

    fn send(&self, message: &Message, descriptor: Option<&OwnedFd>) {
        let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
        self.send_raw(&message.emit(), &descriptors, false);
    }

    /// The next message, if one is there; descriptors that come along are closed by the kernel for want of room.
    fn heard(&self) -> Option<Message> {
        let mut bytes = [0u8; 128];
        // SAFETY: 128 writable bytes.
        let length = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), 128, libc::MSG_DONTWAIT) };
        (length > 0).then(|| Message::parse(&bytes[..length as usize]).unwrap())
    }
}

/// A client of ours that does everything right until it is told otherwise.
struct Puppet {
    socket: Raw,
    region: Arc<Region>,
    outgoing: Ring,
    incoming: Ring,
    outgoing_eventfd: OwnedFd,
    incoming_eventfd: OwnedFd,
}

const SLOTS: u16 = 8;
const LOG2_SLOTS: u8 = 3;
const REGION_BYTES: usize = 1 << 16;
const INCOMING_AT: u32 = 4096;
const BUFFERS_AT: u32 = 8192;

impl Puppet {
    fn new() -> Self {
        let region = Arc::new(Region::create(c"puppet", REGION_BYTES).unwrap());
        let [outgoing, incoming] = [0, INCOMING_AT].map(|offset| Ring::new(&region, offset, LOG2_SLOTS).unwrap());
        outgoing.initialise();
        incoming.initialise();
        let (outgoing_eventfd, incoming_eventfd) = (eventfd(), eventfd());
        Self { socket: Raw::connect(), region, outgoing, incoming, outgoing_eventfd, incoming_eventfd }
    }

    fn init(&self) -> Message {
        let name = Text::new("puppet");
        Message::Init(Init { version: VERSION, id: 0, mode: MODE_ETHERNET, secret: [0; 24], name })
    }

    fn add_region(&self) -> Message {
        Message::AddRegion { index: 0, bytes: REGION_BYTES as u64 }
    }

    fn add_ring(&self, client_to_server: bool) -> AddRing {
        let offset = if client_to_server { 0 } else { INCOMING_AT };
        AddRing { client_to_server, index: 0, region: 0, offset, log2_slots: LOG2_SLOTS, private_header_bytes: 0 }
    }

    /// The handshake's messages with their descriptors, in order.
    fn steps(&self) -> Vec<(Message, Option<OwnedFd>)> {
        let copy = |fd: BorrowedFd<'_>| Some(fd.try_clone_to_owned().unwrap());
        vec![
            (self.init(), None),
            (self.add_region(), copy((*self.region).as_fd())),
            (Message::AddRing(self.add_ring(true)), copy(self.outgoing_eventfd.as_fd())),
            (Message::AddRing(self.add_ring(false)), copy(self.incoming_eventfd.as_fd())),
            (Message::Connect { name: Text::new("puppet") }, None),
        ]
    }

    /// Plays the first `count` steps, each answered as it should be.
    fn play(&self, server: &mut Memif, count: usize) {
        server.service(Instant::now());
        assert!(matches!(self.socket.heard(), Some(Message::Hello(_))));
        for (message, descriptor) in self.steps().into_iter().take(count) {
            self.socket.send(&message, descriptor.as_ref());
            server.service(Instant::now());
            let answer = self.socket.heard().unwrap();
            assert!(matches!(answer, Message::Ack | Message::Connected { .. }), "{answer:?}");
        }
    }

    fn connected(server: &mut Memif) -> Self {
        let puppet = Self::new();
        puppet.play(server, 5);
        assert_eq!(server.link(), Link::Up);
        puppet
    }

    /// What the server says to one more message.
    fn refusal(&self, server: &mut Memif, message: &Message, descriptor: Option<&OwnedFd>) -> String {
        self.socket.send(message, descriptor);
        server.service(Instant::now());
        self.farewell()
    }

    fn farewell(&self) -> String {
        match self.socket.heard() {
            Some(Message::Disconnect { reason, .. }) => reason.to_string(),
            other => panic!("no DISCONNECT but {other:?}"),
        }
    }

    /// Puts descriptors into the outgoing ring from index `from` and publishes them.
    fn publish(&self, from: u16, descriptors: &[Descriptor]) {
        let mut index = from;
        for descriptor in descriptors {
            self.outgoing.set_descriptor(index, *descriptor);
            index = index.wrapping_add(1);
        }
        self.outgoing.store(Index::Head, index);
    }
}

fn good() -> Descriptor {
    Descriptor { flags: 0, region: 0, length: 60, offset: BUFFERS_AT }
}

fn pool() -> Pool {
    Pool::new(&PoolConfig { classes: vec![(2048, 64)] }).unwrap()
}

/// How many frames arrived, and how many were taken from the ring.
fn receive(port: &mut Memif) -> (usize, usize) {
    let mut frames = Vec::new();
    let taken = port.receive(&pool(), &mut frames, 64);
    (frames.len(), taken)
}

fn counter(port: &Memif, name: &str) -> u64 {
    port.counters().into_iter().find(|(found, _)| *found == name).unwrap().1
}

fn down(port: &Memif) -> String {
    match port.link() {
        Link::Down(reason) => reason,
        Link::Up => "up".into(),
    }
}

#[test]
fn a_client_may_die_at_every_step_of_the_handshake() {
    let _alone = alone();
    let mut server = server();
    for count in 0..=5 {
        let puppet = Puppet::new();
        puppet.play(&mut server, count);
        drop(puppet);
        server.service(Instant::now());
        assert_eq!(down(&server), "peer closed the connection");
    }
    assert_eq!((counter(&server, "disconnects"), counter(&server, "handshakes_refused")), (1, 5));
    Puppet::connected(&mut server);
}

#[test]
fn a_client_may_stay_silent_at_every_step_but_not_for_long() {
    let _alone = alone();
    let mut server = server();
    for count in 0..5 {
        let puppet = Puppet::new();
        puppet.play(&mut server, count);
        let deadline = server.deadline().unwrap();
        assert!(deadline <= Instant::now() + HANDSHAKE_TIMEOUT);
        server.service(deadline);
        assert!(puppet.farewell().contains("within 5 s"));
    }
    assert_eq!((counter(&server, "handshakes_timed_out"), server.deadline()), (5, None));
    Puppet::connected(&mut server);
}

#[test]
fn half_open_connections_are_bounded() {
    let _alone = alone();
    let mut server = server();
    let crowd: Vec<_> = (0..MAX_HALF_OPEN + 3)
        .map(|_| {
            let raw = Raw::connect();
            server.service(Instant::now());
            raw
        })
        .collect();
    let greeted = crowd.iter().filter(|raw| matches!(raw.heard(), Some(Message::Hello(_)))).count();
    assert_eq!((greeted, counter(&server, "handshakes_crowded")), (MAX_HALF_OPEN, 3));
    drop(crowd);
    server.service(Instant::now());
    Puppet::connected(&mut server);
}

#[test]
fn regions_that_could_fault_or_exhaust_us_are_refused() {
    let _alone = alone();
    let mut server = server();
    let mut refusal = |bytes: u64, descriptor: OwnedFd| {
        let puppet = Puppet::new();
        puppet.play(&mut server, 1);
        puppet.refusal(&mut server, &Message::AddRegion { index: 0, bytes }, Some(&descriptor))
    };
    let sealed = libc::F_SEAL_SHRINK;
    assert!(refusal(4096, memfd(4096, 0)).contains("F_SEAL_SHRINK"));
    assert!(refusal(4096, memfd(4096, libc::F_SEAL_GROW)).contains("F_SEAL_SHRINK"));
    assert_eq!(refusal(8192, memfd(4096, sealed)), "region holds 4096 bytes, 8192 claimed");
    assert_eq!(refusal(0, memfd(4096, sealed)), "a region of 0 bytes");
    // Sparse, but its pages would become real: the cap is 256 MiB.
    assert!(refusal(1 << 30, memfd(1 << 30, sealed)).contains("at most 268435456"));
    assert!(refusal(u64::MAX, memfd(4096, sealed)).contains("at most 268435456"));
    assert_eq!(refusal(4096, eventfd()), "region is not a memfd");
    assert_eq!(refusal(4096, std::fs::File::open("/dev/zero").unwrap().into()), "region is not a memfd");
}

#[test]
fn the_sum_of_regions_is_capped() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::new();
    puppet.play(&mut server, 1);
    let large = memfd(100 << 20, libc::F_SEAL_SHRINK);
    for index in 0..2 {
        puppet.socket.send(&Message::AddRegion { index, bytes: 100 << 20 }, Some(&large));
        server.service(Instant::now());
        assert_eq!(puppet.socket.heard(), Some(Message::Ack));
    }
    let third = Message::AddRegion { index: 2, bytes: 100 << 20 };
    assert!(puppet.refusal(&mut server, &third, Some(&large)).contains("beside 209715200"));
}

#[test]
fn a_mapped_region_cannot_be_truncated_under_us() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    // SAFETY: no pointers.
    let result = unsafe { libc::ftruncate((*puppet.region).as_fd().as_raw_fd(), 0) };
    assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
    // A hole can be punched; it reads as zeros.
    // SAFETY: no pointers.
    let punched = unsafe {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        libc::fallocate((*puppet.region).as_fd().as_raw_fd(), mode, 0, REGION_BYTES as i64)
    };
    assert_eq!(punched, 0);
    puppet.publish(0, &[good()]);
    assert_eq!(receive(&mut server), (1, 1));
}

#[test]
fn rings_must_be_rings() {
    let _alone = alone();
    let mut server = server();
    let mut refusal = |change: fn(&mut AddRing), descriptor: OwnedFd| {
        let puppet = Puppet::new();
        puppet.play(&mut server, 2);
        let mut ring = puppet.add_ring(true);
        change(&mut ring);
        puppet.refusal(&mut server, &Message::AddRing(ring), Some(&descriptor))
    };
    assert!(refusal(|ring| ring.offset = REGION_BYTES as u32, eventfd()).contains("outside its region"));
    assert!(refusal(|ring| ring.offset = u32::MAX - 7, eventfd()).contains("outside its region"));
    assert!(refusal(|ring| ring.log2_slots = 14, eventfd()).contains("outside its region"));
    assert!(refusal(|ring| ring.log2_slots = 200, eventfd()).contains("2^200"));
    assert!(refusal(|ring| ring.offset = 2, eventfd()).contains("multiple of 8"));
    assert!(refusal(|ring| ring.region = 1, eventfd()).contains("region 1, 1 known"));
    assert!(refusal(|_| (), memfd(4096, 0)).contains("not an eventfd"));
    assert!(refusal(|_| (), std::fs::File::open("/dev/zero").unwrap().into()).contains("not an eventfd"));
}

#[test]
fn a_wrong_cookie_is_refused() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::new();
    puppet.play(&mut server, 4);
    // SAFETY: the ring's first field, within our own mapping.
    unsafe { puppet.region.at(0, 4).unwrap().cast::<u32>().write(0xdead_beef) };
    let refusal = puppet.refusal(&mut server, &Message::Connect { name: Text::new("") }, None);
    assert_eq!(refusal, "ring cookie 0xdeadbeef, 0x3e31f20 wanted");
}

#[test]
fn an_index_that_jumps_ends_the_connection_with_a_reason() {
    let _alone = alone();
    let mut server = server();
    for jump in [SLOTS + 1, 0x8000, u16::MAX] {
        let puppet = Puppet::connected(&mut server);
        puppet.outgoing.store(Index::Head, jump);
        assert!(!server.arm(), "there is something to do");
        assert_eq!(receive(&mut server), (0, 0));
        assert!(puppet.farewell().contains("more than 8 slots"));
        assert!(down(&server).contains("ring Head"), "{}", down(&server));

        let puppet = Puppet::connected(&mut server);
        puppet.incoming.store(Index::Head, jump);
        assert_eq!(server.send(&[b"frame"]), Sent::Down);
        assert!(puppet.farewell().contains("more than 8 slots"));
    }
    assert_eq!((counter(&server, "violations"), counter(&server, "tx_down")), (6, 3));
}

#[test]
fn bad_descriptors_are_counted_and_good_ones_between_them_pass() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    let end = REGION_BYTES as u32;
    let bad = [
        Descriptor { length: 0, ..good() },
        Descriptor { region: 1, ..good() },
        Descriptor { region: u16::MAX, ..good() },
        Descriptor { offset: end - 59, ..good() },
        Descriptor { offset: u32::MAX, ..good() },
        Descriptor { length: u32::MAX, ..good() },
    ];
    puppet.publish(0, &bad);
    assert_eq!((receive(&mut server), counter(&server, "rx_bad_descriptor")), ((0, 6), 6));
    let mixed = [good(), bad[0], Descriptor { offset: end - 60, ..good() }, Descriptor { length: 1519, ..good() }];
    puppet.publish(6, &mixed);
    assert_eq!(receive(&mut server), (2, 4));
    assert_eq!((counter(&server, "rx_bad_descriptor"), counter(&server, "rx_too_long")), (7, 1));
    assert_eq!((puppet.outgoing.load(Index::Tail), server.link()), (10, Link::Up));
}

#[test]
fn chains_without_end_or_with_a_lie_in_them_are_dropped_whole() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    let chained = Descriptor { flags: NEXT, ..good() };
    puppet.publish(0, &[chained; SLOTS as usize]);
    assert_eq!((receive(&mut server), counter(&server, "rx_bad_chain")), ((0, 1), 1));
    puppet.publish(8, &[chained, Descriptor { length: 0, ..chained }, good(), good()]);
    assert_eq!((receive(&mut server), counter(&server, "rx_bad_chain")), ((1, 2), 2));
    puppet.publish(12, &[Descriptor { length: 1500, ..chained }, good(), chained, chained, good()]);
    assert_eq!((receive(&mut server), counter(&server, "rx_too_long")), ((1, 2), 1));
    assert_eq!((counter(&server, "rx_bytes"), puppet.outgoing.load(Index::Tail)), (60 + 180, 17));
    // A flag that its writer forgets to clear (DPDK 22.11) is cleared for it.
    assert_eq!(puppet.outgoing.descriptor(14).flags, 0);
}

#[test]
fn an_empty_buffer_outside_its_region_ends_the_connection() {
    let _alone = alone();
    let mut server = server();
    for lie in [
        Descriptor { region: 7, ..good() },
        Descriptor { offset: u32::MAX - 10, ..good() },
        Descriptor { length: u32::MAX, ..good() },
        Descriptor { length: 0, ..good() },
    ] {
        let puppet = Puppet::connected(&mut server);
        puppet.incoming.set_descriptor(0, lie);
        puppet.incoming.store(Index::Head, 1);
        assert_eq!(server.send(&[b"frame"]), Sent::Down);
        assert!(puppet.farewell().contains("outside"));
    }
    // Buffers of one byte each are silly, not false: a frame is spread over what there is.
    let puppet = Puppet::connected(&mut server);
    for index in 0..SLOTS {
        puppet
            .incoming
            .set_descriptor(index, Descriptor { length: 1, offset: BUFFERS_AT + u32::from(index), ..good() });
    }
    puppet.incoming.store(Index::Head, SLOTS);
    assert_eq!(server.send(&[b"12345"]), Sent::Queued);
    assert_eq!(server.send(&[b"12345"]), Sent::Full);
    assert_eq!(server.send(&[b"123456789"]), Sent::Full);
    server.flush();
    let flags: Vec<_> = (0..5).map(|index| puppet.incoming.descriptor(index).flags).collect();
    assert_eq!((flags, puppet.incoming.load(Index::Tail)), (vec![NEXT, NEXT, NEXT, NEXT, 0], 5));
}

#[test]
fn a_full_eventfd_made_blocking_does_not_hang_the_sender() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    let fd = puppet.incoming_eventfd.as_raw_fd();
    // SAFETY: eight readable bytes; F_SETFL takes a number.
    unsafe {
        assert_eq!(libc::write(fd, (u64::MAX - 1).to_ne_bytes().as_ptr().cast(), 8), 8);
        assert_eq!(libc::fcntl(fd, libc::F_SETFL, 0), 0);
    }
    for index in 0..1000u16 {
        puppet.incoming.set_descriptor(index, good());
        puppet.incoming.store(Index::Head, index + 1);
        assert_eq!(server.send(&[b"frame"]), Sent::Queued);
        server.flush();
    }
    assert_eq!(counter(&server, "tx_frames"), 1000);
}

#[test]
fn wake_ups_come_through_an_eventfd_that_is_never_read_and_may_block() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    // SAFETY: F_SETFL takes a number.
    assert_eq!(unsafe { libc::fcntl(puppet.outgoing_eventfd.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    for index in 0..100 {
        assert!(server.arm());
        assert!(puppet.outgoing.wants_kick());
        puppet.publish(index, &[good()]);
        // SAFETY: eight readable bytes, one pollfd.
        let woken = unsafe {
            libc::write(puppet.outgoing_eventfd.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8);
            let mut poll = libc::pollfd { fd: server.wake_fd(), events: libc::POLLIN, revents: 0 };
            libc::poll(&raw mut poll, 1, 0)
        };
        assert_eq!(woken, 1);
        server.disarm();
        assert!(!puppet.outgoing.wants_kick());
        server.service(Instant::now());
        assert_eq!(receive(&mut server), (1, 1));
    }
}

#[test]
fn descriptors_where_none_belong_are_closed_however_they_come() {
    let _alone = alone();
    let mut server = server();
    let spare = eventfd();
    let many = vec![spare.as_fd(); 253];
    let long = [1u8; 300];
    let cases: [(&[u8], &[BorrowedFd<'_>], &str); 6] = [
        (&Message::Ack.emit(), &many[..1], "ACK with 1 descriptors, 0 wanted"),
        (&Message::Ack.emit(), &many, "ACK with 253 descriptors, 0 wanted"),
        (&Message::Ack.emit(), &[], "ACK while Greeted"),
        (&long, &many[..2], "a control message of 129 bytes, 128 wanted"),
        (&long[..5], &many[..2], "a control message of 5 bytes, 128 wanted"),
        (&[9; 128], &many[..2], "control message type 2313, 1 to 8 wanted"),
    ];
    for (bytes, descriptors, wanted) in cases {
        let puppet = Puppet::new();
        puppet.play(&mut server, 0);
        puppet.socket.send_raw(bytes, descriptors, true);
        server.service(Instant::now());
        assert_eq!(puppet.farewell(), wanted);
    }
    for (step, count) in [(1, 0), (1, 2), (2, 0), (3, 2)] {
        let puppet = Puppet::new();
        puppet.play(&mut server, step);
        let (message, _) = puppet.steps().swap_remove(step);
        puppet.socket.send_raw(&message.emit(), &many[..count], false);
        server.service(Instant::now());
        assert!(puppet.farewell().contains(&format!("with {count} descriptors, 1 wanted")));
    }
    // Credentials beside the descriptor are no reason to refuse.
    let puppet = Puppet::new();
    puppet.play(&mut server, 1);
    puppet.socket.send_raw(&puppet.add_region().emit(), &[(*puppet.region).as_fd()], true);
    server.service(Instant::now());
    assert_eq!(puppet.socket.heard(), Some(Message::Ack));
}

#[test]
fn talking_out_of_turn_while_connected_ends_the_connection() {
    let _alone = alone();
    let mut server = server();
    let puppet = Puppet::connected(&mut server);
    let region = (*puppet.region).as_fd().try_clone_to_owned().unwrap();
    let refusal = puppet.refusal(&mut server, &puppet.add_region(), Some(&region));
    assert_eq!(
        (refusal.as_str(), down(&server).as_str()),
        ("ADD_REGION while connected", "refused: ADD_REGION while connected")
    );
}

/// A client of ours, connected to a server played by hand; the region it shares.
fn client_of_a_puppet_server(listener: &Raw) -> (Memif, Raw, Region) {
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

fn hello() -> Message {
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

fn heard_with_descriptor(socket: &Raw) -> (Message, Option<OwnedFd>) {
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

fn remove_socket(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_client_survives_a_server_that_lies_about_frames() {
    let _alone = alone();
    let listener = Raw::listen();
    {
        let (mut client, socket, region) = client_of_a_puppet_server(&listener);
        let region = Arc::new(region);
        let incoming = Ring::new(&region, Ring::bytes(LOG2_SLOTS) as u32, LOG2_SLOTS).unwrap();
        assert_eq!(incoming.load(Index::Head), SLOTS, "all buffers are offered");
        let offered = incoming.descriptor(0);
        assert_eq!((offered.flags, offered.region, offered.length), (0, 0, 2048));
        // Where the server says a buffer is does not matter to its owner; how long the frame is does.
        incoming.set_descriptor(0, Descriptor { region: 9, offset: u32::MAX, length: 60, flags: 0 });
        for (index, length) in [(1, 0), (2, 2049), (3, u32::MAX)] {
            incoming.set_descriptor(index, Descriptor { length, ..offered });
        }
        incoming.store(Index::Tail, 4);
        assert_eq!((receive(&mut client), counter(&client, "rx_bad_descriptor")), ((1, 4), 3));
        assert_eq!((incoming.load(Index::Head), incoming.descriptor(0)), (SLOTS + 4, offered));
        incoming.store(Index::Tail, 4 + SLOTS + 1);
        assert_eq!(receive(&mut client), (0, 0));
        assert!(down(&client).contains("ring Tail at 13"), "{}", down(&client));
        assert!(matches!(socket.heard(), Some(Message::Disconnect { .. })));
        assert!(client.deadline().is_some(), "it will connect again");
    }
    {
        let (mut client, _socket, region) = client_of_a_puppet_server(&listener);
        let outgoing = Ring::new(&Arc::new(region), 0, LOG2_SLOTS).unwrap();
        assert_eq!(client.send(&[b"frame"]), Sent::Queued);
        client.flush();
        // It claims to have read more than was written.
        outgoing.store(Index::Tail, SLOTS + 1);
        let sent: Vec<_> = (0..SLOTS).map(|_| client.send(&[b"frame"])).collect();
        assert_eq!(sent.last(), Some(&Sent::Down));
        assert!(down(&client).contains("ring Tail at 9"), "{}", down(&client));
        assert_eq!(counter(&client, "tx_lost"), u64::from(SLOTS) - 1);
    }
    remove_socket(&path());
}

#[test]
fn a_client_survives_a_server_that_cannot_shake_hands() {
    let _alone = alone();
    let listener = Raw::listen();
    let refused = |messages: &[Message]| {
        let mut client = Memif::new(MemifConfig::new("client", path(), Role::Client)).unwrap();
        client.service(client.deadline().unwrap());
        let socket = listener.accept();
        for message in messages {
            socket.send(message, None);
        }
        client.service(Instant::now());
        down(&client)
    };
    let versions = |min_version, max_version| match hello() {
        Message::Hello(hello) => Message::Hello(Hello { min_version, max_version, ..hello }),
        other => other,
    };
    assert_eq!(refused(&[Message::Ack]), "refused: ACK while AwaitingHello");
    assert_eq!(refused(&[versions(0x0100, 0x0101)]), "refused: Versions 0x0100 to 0x0101, 0x0200 wanted");
    assert_eq!(refused(&[hello(), hello()]), "refused: HELLO while AwaitingAdmission");
    assert_eq!(refused(&[hello(), Message::disconnect("Go away")]), "peer: Go away");
    assert_eq!(
        refused(&[hello(), Message::Connected { name: Text::new("") }]),
        "refused: CONNECTED while AwaitingAdmission"
    );
    remove_socket(&path());
}
