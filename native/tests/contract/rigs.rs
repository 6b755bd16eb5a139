//! Each kind of port, with what it takes to be on its far side.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use libvnf_native::packet::{Pool, PoolConfig};
use libvnf_native::port::af_xdp::{AfXdp, AfXdpConfig, Attach, Take};
use libvnf_native::port::capture::{CaptureWriter, capture};
use libvnf_native::port::memif::{Memif, MemifConfig, Role};
use libvnf_native::port::pair::pair;
use libvnf_native::port::pcap::read::{Next, Reader};
use libvnf_native::port::pcap::{Pcap, PcapConfig, write};
use libvnf_native::port::queue::{Queue, QueuePort};
use libvnf_native::port::tap::{Layer, Tap, TapConfig};
use libvnf_native::port::{HEADER_BYTES, Link, Port};

use super::until;
use super::wire::{Wire, exists, ip};

pub const MTU: usize = 1500;
pub type Frames = Vec<Vec<u8>>;

/// The far side.
pub trait Far {
    fn give(&mut self, frames: &[Vec<u8>]);
    /// What has arrived since.
    fn take(&mut self) -> Frames;
    /// Lets go of it. False: this one is always there.
    fn leave(self: Box<Self>) -> bool;
}

pub struct Rig {
    pub port: Box<dyn Port>,
    pub far: Box<dyn Far>,
    /// It can be slept on.
    pub wakes: bool,
    /// Whether what the port made is there.
    pub made: Option<Box<dyn Fn() -> bool>>,
    pub scratch: Scratch,
}

fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A directory that goes with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("libvnf-contract-{}-{}", std::process::id(), serial()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A frame that every port carries: an IPv4 packet of `len` bytes with its header, from the one station of a TUN port's
/// link to the other.
pub fn frame(number: usize, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 3, 8, 0, 0x45];
    frame.extend((frame.len()..len).map(|at| (at * 7 + number) as u8));
    frame[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    // A flow's frames keep their order, whatever the queues.
    (frame[20], frame[21], frame[23]) = (0, 0, 17);
    frame[34..38].copy_from_slice(&[0, 7, 0, 9]);
    frame[38..46].copy_from_slice(&(number as u64).to_be_bytes());
    frame
}

pub fn frames(count: usize) -> Frames {
    (0..count).map(|number| frame(number, 60 + number * 13 % 1400)).collect()
}

// --- in memory -------------------------------------------------------------------------------------------------------

/// Another port is the far side.
struct OfPort<P>(P);

fn pool() -> Pool {
    Pool::new(&PoolConfig { classes: vec![(2048, 1024), (16_384, 64)] }).unwrap()
}

impl<P: Port> Far for OfPort<P> {
    fn give(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            assert!(self.0.room() > 0);
            self.0.send(&[frame]);
            self.0.flush();
        }
    }

    fn take(&mut self) -> Frames {
        let (pool, mut slots) = (pool(), Vec::new());
        self.0.service(Instant::now());
        while self.0.receive(&pool, &mut slots, 64) > 0 {}
        slots.iter().map(|slot| slot.to_vec()).collect()
    }

    fn leave(self: Box<Self>) -> bool {
        true
    }
}

pub fn paired(first: &[Vec<u8>]) -> Rig {
    let (near, far) = pair(MTU, 256);
    let mut far = OfPort(far);
    far.give(first);
    Rig { port: Box::new(near), far: Box::new(far), wakes: true, made: None, scratch: Scratch::new() }
}

/// A port whose traffic is written is the same port.
pub fn captured(first: &[Vec<u8>]) -> Rig {
    let rig = paired(first);
    let writer = CaptureWriter::create(&rig.scratch.join("capture.pcapng")).unwrap();
    Rig { port: capture(rig.port, "near", &writer), ..rig }
}

impl Far for Queue {
    fn give(&mut self, frames: &[Vec<u8>]) {
        frames.iter().for_each(|frame| assert!(Queue::give(self, frame.clone())));
    }

    fn take(&mut self) -> Frames {
        Queue::take(self)
    }

    fn leave(self: Box<Self>) -> bool {
        false
    }
}

pub fn queued(first: &[Vec<u8>]) -> Rig {
    let mut far = Queue::default();
    Far::give(&mut far, first);
    let port = Box::new(QueuePort::new(MTU, far.clone()));
    Rig { port, far: Box::new(far), wakes: false, made: None, scratch: Scratch::new() }
}

// --- memif -----------------------------------------------------------------------------------------------------------

fn memif(first: &[Vec<u8>], near: Role, queues: u16, buffer_bytes: u32) -> Rig {
    let scratch = Scratch::new();
    let path = scratch.join("m.sock");
    let config = |role| MemifConfig { queues, buffer_bytes, ring_slots: 512, ..MemifConfig::new("m", &path, role) };
    let (mut server, mut client) =
        (Memif::new(config(Role::Server)).unwrap(), Memif::new(config(Role::Client)).unwrap());
    for _ in 0..64 {
        server.service(Instant::now());
        client.service(Instant::now());
    }
    assert_eq!((server.link(), client.link()), (Link::Up, Link::Up));
    let (near, far) = if near == Role::Server { (server, client) } else { (client, server) };
    let mut far = OfPort(far);
    far.give(first);
    Rig { port: Box::new(near), far: Box::new(far), wakes: true, made: None, scratch }
}

pub fn memif_server(first: &[Vec<u8>]) -> Rig {
    let rig = memif(first, Role::Server, 1, 2048);
    let path = rig.scratch.join("m.sock");
    Rig { made: Some(Box::new(move || path.exists())), ..rig }
}

pub fn memif_client(first: &[Vec<u8>]) -> Rig {
    memif(first, Role::Client, 1, 2048)
}

pub fn memif_of_several_queues(first: &[Vec<u8>]) -> Rig {
    memif(first, Role::Server, 4, 2048)
}

/// Most frames are chains.
pub fn memif_of_small_buffers(first: &[Vec<u8>]) -> Rig {
    memif(first, Role::Server, 1, 512)
}

// --- interfaces ------------------------------------------------------------------------------------------------------

struct Kernel {
    wire: Wire,
    /// What the interface is without.
    header: Vec<u8>,
    interface: String,
}

impl Far for Kernel {
    fn give(&mut self, frames: &[Vec<u8>]) {
        frames.iter().for_each(|frame| self.wire.send(&frame[self.header.len()..]));
    }

    fn take(&mut self) -> Frames {
        let received = std::iter::from_fn(|| self.wire.receive());
        received.map(|frame| [&self.header[..], &frame].concat()).collect()
    }

    fn leave(self: Box<Self>) -> bool {
        ip(&format!("link delete {}", self.interface));
        true
    }
}

fn tap(first: &[Vec<u8>], layer: Layer, queues: u16) -> Rig {
    let interface = format!("tap{}", serial());
    let config = TapConfig { layer, queues, ..TapConfig::new("t", &interface) };
    let port = Box::new(Tap::new(config).unwrap());
    let header = if layer == Layer::Ip { frame(0, 60)[..14].to_vec() } else { Vec::new() };
    let mut far = Kernel { wire: Wire::new(&interface), header, interface: interface.clone() };
    far.give(first);
    let made: Box<dyn Fn() -> bool> = Box::new(move || exists(&interface));
    Rig { port, far: Box::new(far), wakes: true, made: Some(made), scratch: Scratch::new() }
}

pub fn tap_of_frames(first: &[Vec<u8>]) -> Rig {
    tap(first, Layer::Ethernet, 1)
}

pub fn tap_of_several_queues(first: &[Vec<u8>]) -> Rig {
    tap(first, Layer::Ethernet, 4)
}

pub fn tap_of_packets(first: &[Vec<u8>]) -> Rig {
    tap(first, Layer::Ip, 1)
}

/// One end of a cable; the far side is at the other.
fn af_xdp(first: &[Vec<u8>], attach: Attach) -> Rig {
    let number = serial();
    let (near, far) = (format!("near{number}"), format!("far{number}"));
    ip(&format!("link add {near} type veth peer {far}"));
    ip(&format!("link set {near} up"));
    ip(&format!("link set {far} up"));
    let config = AfXdpConfig { take: vec![Take::All], attach, ..AfXdpConfig::new("x", &near) };
    let mut port = Box::new(AfXdp::new(config).unwrap());
    until("up", || {
        port.service(Instant::now());
        port.link() == Link::Up
    });
    let mut far = Kernel { wire: Wire::new(&far), header: Vec::new(), interface: near };
    far.give(first);
    Rig { port, far: Box::new(far), wakes: true, made: None, scratch: Scratch::new() }
}

pub fn af_xdp_native(first: &[Vec<u8>]) -> Rig {
    af_xdp(first, Attach::Native)
}

pub fn af_xdp_generic(first: &[Vec<u8>]) -> Rig {
    af_xdp(first, Attach::Generic)
}

// --- files -----------------------------------------------------------------------------------------------------------

struct Files {
    output: PathBuf,
    taken: usize,
}

fn read(path: &Path) -> Frames {
    let bytes = fs::read(path).unwrap();
    let (mut reader, mut frame) = (Reader::new(&bytes[..]).unwrap(), Vec::new());
    let next = |reader: &mut Reader<&[u8]>, frame: &mut Vec<u8>| matches!(reader.next(frame), Next::Frame(_));
    std::iter::from_fn(|| next(&mut reader, &mut frame).then(|| frame.clone())).collect()
}

impl Far for Files {
    fn give(&mut self, frames: &[Vec<u8>]) {
        assert!(frames.is_empty(), "a capture has all its frames from the start");
    }

    fn take(&mut self) -> Frames {
        let all = read(&self.output);
        let new = all[self.taken..].to_vec();
        self.taken = all.len();
        new
    }

    fn leave(self: Box<Self>) -> bool {
        false
    }
}

fn pcap(first: &[Vec<u8>], output: &str) -> Rig {
    let scratch = Scratch::new();
    let (input, output) = (scratch.join("in.pcap"), scratch.join(output));
    let mut bytes = write::pcap_header().to_vec();
    first.iter().for_each(|frame| write::pcap_record(&mut bytes, Default::default(), &[frame]));
    fs::write(&input, bytes).unwrap();
    let config = PcapConfig { input: Some(input), output: Some(output.clone()), mtu: MTU, ..PcapConfig::new("p") };
    let port = Box::new(Pcap::new(config).unwrap());
    Rig { port, far: Box::new(Files { output, taken: 0 }), wakes: false, made: None, scratch }
}

pub fn pcap_to_pcap(first: &[Vec<u8>]) -> Rig {
    pcap(first, "out.pcap")
}

pub fn pcap_to_pcapng(first: &[Vec<u8>]) -> Rig {
    pcap(first, "out.pcapng")
}

/// The longest frame of every port here.
pub const LONGEST: usize = MTU + HEADER_BYTES;
