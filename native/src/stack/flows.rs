//! The flows of a host and the one look-up that finds a datagram's.
//!
//! A flow keeps a prebuilt header with its link address in place, so that sending copies it and fills in the lengths and
//! checksums. The hash table holds indices only; the keys stand in the flows, which are touched next anyway. Peers choose
//! the keys, so the hash is seeded at random.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use foldhash::fast::SeedableRandomState;
use hashbrown::{HashMap, HashTable};

use super::path::Path;
use super::random::Random;
use super::{FlowId, OpenError};
use crate::packet::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::packet::ethernet::{self, Mac};
use crate::packet::{ipv4, ipv6, protocol, udp};

/// RFC 6335 §6.
pub(super) const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;
const EPHEMERAL_PORTS: usize = 16_384;
/// Ports tried at random before the taken ones are listed: all fail only when most ports are taken.
const RANDOM_TRIES: usize = 16;

pub(super) const HEADER_V4: usize = ethernet::HEADER + ipv4::HEADER + udp::HEADER;
pub(super) const HEADER_V6: usize = ethernet::HEADER + ipv6::HEADER + udp::HEADER;

/// An IPv4 address as IPv6 maps it: such an IPv6 address is never taken from the wire, so the two cannot meet.
pub(super) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => 0xffff_0000_0000 | u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(bits: u128) -> IpAddr {
    let v6 = Ipv6Addr::from(bits);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// The 5-tuple but the protocol: each has a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub local: u128,
    pub remote: u128,
    /// The local port in the upper half.
    pub ports: u32,
}

impl Key {
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        let ports = u32::from(local.port()) << 16 | u32::from(remote.port());
        Self { local: bits(local.ip()), remote: bits(remote.ip()), ports }
    }

    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(address(self.local), (self.ports >> 16) as u16)
    }

    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(address(self.remote), self.ports as u16)
    }

    pub fn is_v4(&self) -> bool {
        self.remote >> 32 == 0xffff
    }

    pub fn with_local_port(self, port: u16) -> Self {
        Self { ports: u32::from(port) << 16 | self.ports & 0xffff, ..self }
    }

    #[inline]
    pub fn hash_with(&self, seed: &SeedableRandomState) -> u64 {
        let mut hasher = seed.build_hasher();
        hasher.write_u128(self.local);
        hasher.write_u128(self.remote);
        hasher.write_u32(self.ports);
        hasher.finish()
    }

    /// What the ephemeral ports are counted for.
    pub fn pair(&self) -> (u128, u128, u16) {
        (self.local, self.remote, self.ports as u16)
    }
}

/// In the order of use: receiving touches the first cache lines, sending the others.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Flow {
    pub key: Key,
    pub path: Path,
    header: [u8; HEADER_V6],
    is_v4: bool,
    pub owner: u32,
    /// Everything the UDP checksum covers but the lengths and the payload.
    udp_sum: Sum,
    /// The IPv4 header but the total length.
    ip_sum: Sum,
    pub mtu: u16,
    pub dont_fragment: bool,
    /// Tells this flow from an earlier one in the same place.
    pub serial: u64,
}

impl Flow {
    fn new(key: Key, path: Path, owner: u32, mac: Mac, mtu: u16) -> Self {
        let (local, remote) = (key.local(), key.remote());
        let mut header = [0; HEADER_V6];
        let mut ip_sum = Sum::ZERO;
        let (is_v4, pseudo) = match (local.ip(), remote.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header[..14].copy_from_slice(&ethernet::emit([0; 6], mac, ethernet::IPV4));
                let ip = ipv4::emit(source, destination, protocol::UDP, 0, ipv4::Fragment::WHOLE);
                header[14..34].copy_from_slice(&ip);
                header[16..18].fill(0);
                header[24..26].fill(0);
                ip_sum = ip_sum.bytes(&header[14..34]);
                (true, pseudo_v4(source, destination, protocol::UDP))
            }
            (source, destination) => {
                let v6 = |address| match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                let (source, destination): (Ipv6Addr, Ipv6Addr) = (v6(source), v6(destination));
                header[..14].copy_from_slice(&ethernet::emit([0; 6], mac, ethernet::IPV6));
                let ip = ipv6::emit(source, destination, protocol::UDP, 0, ipv6::HOP_LIMIT);
                header[14..54].copy_from_slice(&ip);
                (false, pseudo_v6(source, destination, protocol::UDP))
            }
        };
        let at = if is_v4 { 34 } else { 54 };
        header[at..at + 2].copy_from_slice(&local.port().to_be_bytes());
        header[at + 2..at + 4].copy_from_slice(&remote.port().to_be_bytes());
        let udp_sum = pseudo.word(local.port()).word(remote.port());
        Self { key, owner, serial: 0, path, mtu, dont_fragment: true, header, is_v4, udp_sum, ip_sum }
    }

    #[inline]
    pub fn ip_overhead(&self) -> usize {
        if self.is_v4 { ipv4::HEADER } else { ipv6::HEADER }
    }

    /// A router said "too big". Lower only, and not below what every host and link must take; where IPv4 links carry even
    /// less, routers may fragment. `true`: it changed something.
    pub fn lower_mtu(&mut self, mtu: usize) -> bool {
        // 0: a router from before RFC 1191, which does not say.
        let least = if self.is_v4 { 576 } else { ipv6::MINIMUM_MTU };
        let may_fragment = self.is_v4 && mtu < least && self.dont_fragment;
        let lowered = mtu.max(least) < usize::from(self.mtu);
        if lowered {
            self.mtu = mtu.max(least) as u16;
        }
        if may_fragment {
            self.dont_fragment = false;
        }
        lowered || may_fragment
    }

    /// The UDP header of a datagram, for one that must be fragmented.
    pub fn udp_header(&self, payload: &[u8]) -> [u8; udp::HEADER] {
        let at = ethernet::HEADER + self.ip_overhead();
        let mut header = [0; udp::HEADER];
        header[..4].copy_from_slice(&self.header[at..at + 4]);
        let length = (udp::HEADER + payload.len()) as u16;
        header[4..6].copy_from_slice(&length.to_be_bytes());
        header[6..].copy_from_slice(&self.udp_checksum(length, payload).to_be_bytes());
        header
    }

    #[inline]
    fn udp_checksum(&self, length: u16, payload: &[u8]) -> u16 {
        udp::checksum(self.udp_sum.word(length).word(length).bytes(payload))
    }

    /// The complete header of a datagram that fits the MTU, and its length. `payload` fits into 16 bits with it.
    #[inline]
    pub fn whole_header(&self, payload: &[u8]) -> ([u8; HEADER_V6], usize) {
        let length = (udp::HEADER + payload.len()) as u16;
        let checksum = self.udp_checksum(length, payload).to_be_bytes();
        let mut header = self.header;
        header[..6].copy_from_slice(&self.path.mac);
        if self.is_v4 {
            let total = length + ipv4::HEADER as u16;
            header[16..18].copy_from_slice(&total.to_be_bytes());
            header[24..26].copy_from_slice(&self.ip_sum.word(total).finish().to_be_bytes());
            header[38..40].copy_from_slice(&length.to_be_bytes());
            header[40..42].copy_from_slice(&checksum);
            (header, HEADER_V4)
        } else {
            header[18..20].copy_from_slice(&length.to_be_bytes());
            header[58..60].copy_from_slice(&length.to_be_bytes());
            header[60..62].copy_from_slice(&checksum);
            (header, HEADER_V6)
        }
    }
}

/// The ephemeral ports in use towards one remote address and port, a bit each: kept only where most are.
type Taken = Box<[u64; EPHEMERAL_PORTS / 64]>;

pub(super) struct Flows {
    slab: Vec<Option<Flow>>,
    free: Vec<u32>,
    table: HashTable<u32>,
    hasher: SeedableRandomState,
    crowded: HashMap<(u128, u128, u16), Taken, SeedableRandomState>,
    serial: u64,
}

impl Flows {
    pub fn new(random: &mut Random) -> Self {
        Self {
            slab: Vec::new(),
            free: Vec::new(),
            table: HashTable::new(),
            hasher: random.hasher(),
            crowded: HashMap::with_hasher(random.hasher()),
            serial: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    #[inline]
    pub fn find(&self, key: &Key) -> Option<u32> {
        let is_it = |&index: &u32| matches!(&self.slab[index as usize], Some(flow) if flow.key == *key);
        self.table.find(key.hash_with(&self.hasher), is_it).copied()
    }

    #[inline]
    pub fn get(&self, id: FlowId) -> Option<&Flow> {
        self.slab.get(id.0 as usize)?.as_ref()
    }

    #[inline]
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.slab.get_mut(id.0 as usize)?.as_mut()
    }

    pub fn insert(&mut self, key: Key, path: Path, owner: u32, mac: Mac, mtu: u16) -> Result<FlowId, OpenError> {
        if self.find(&key).is_some() {
            return Err(OpenError::InUse);
        }
        Ok(self.insert_new(key, path, owner, mac, mtu))
    }

    /// `insert` of a key that is known not to be there.
    pub fn insert_new(&mut self, key: Key, path: Path, owner: u32, mac: Mac, mtu: u16) -> FlowId {
        self.mark(&key, true);
        self.serial += 1;
        let flow = Flow { serial: self.serial, ..Flow::new(key, path, owner, mac, mtu) };
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slab.push(None);
                (self.slab.len() - 1) as u32
            }
        };
        let Self { slab, hasher, table, .. } = self;
        let hash_of = |&index: &u32| slab[index as usize].as_ref().map_or(0, |flow| flow.key.hash_with(hasher));
        table.insert_unique(key.hash_with(hasher), index, hash_of);
        slab[index as usize] = Some(flow);
        FlowId(index)
    }

    pub fn remove(&mut self, id: FlowId) {
        let Some(flow) = self.slab.get_mut(id.0 as usize).and_then(Option::take) else { return };
        let hash = flow.key.hash_with(&self.hasher);
        if let Ok(entry) = self.table.find_entry(hash, |&index| index == id.0) {
            entry.remove();
        }
        self.free.push(id.0);
        self.mark(&flow.key, false);
    }

    /// A free local port for `key`, whose own is not looked at.
    pub fn ephemeral_port(
        &mut self,
        key: Key,
        random: &mut Random,
        is_listening: impl Fn(u16) -> bool,
    ) -> Result<u16, OpenError> {
        let is_free = |port: u16, flows: &Self| flows.find(&key.with_local_port(port)).is_none() && !is_listening(port);
        if !self.crowded.contains_key(&key.pair()) {
            let mut bits = 0;
            for tried in 0..RANDOM_TRIES {
                if tried % 4 == 0 {
                    bits = random.next();
                }
                let port = EPHEMERAL.start() + (bits as usize % EPHEMERAL_PORTS) as u16;
                if is_free(port, self) {
                    return Ok(port);
                }
                bits >>= 16;
            }
            let mut taken = Box::new([0; EPHEMERAL_PORTS / 64]);
            for port in EPHEMERAL.filter(|&port| self.find(&key.with_local_port(port)).is_some()) {
                set(&mut taken, port, true);
            }
            self.crowded.insert(key.pair(), taken);
        }
        let taken = &self.crowded[&key.pair()];
        let (start, turn) = (random.next() as usize % taken.len(), random.next() as u32 % 64);
        for step in 0..taken.len() {
            let word = (start + step) % taken.len();
            // Turned, so that the lowest bit of a word is not preferred.
            let mut free = (!taken[word]).rotate_right(turn);
            while free != 0 {
                let bit = (free.trailing_zeros() + turn) % 64;
                let port = EPHEMERAL.start() + (word * 64) as u16 + bit as u16;
                if !is_listening(port) {
                    return Ok(port);
                }
                free &= free - 1;
            }
        }
        Err(OpenError::PortsExhausted)
    }

    /// Keeps the list of taken ports true, where there is one; forgets it when less than half are.
    fn mark(&mut self, key: &Key, is_taken: bool) {
        if self.crowded.is_empty() {
            return;
        }
        let port = (key.ports >> 16) as u16;
        if !EPHEMERAL.contains(&port) {
            return;
        }
        let Some(taken) = self.crowded.get_mut(&key.pair()) else { return };
        set(taken, port, is_taken);
        // Counting is 256 words: now and then will do.
        let count = |taken: &Taken| taken.iter().map(|word| word.count_ones() as usize).sum::<usize>();
        if !is_taken && port.is_multiple_of(64) && count(taken) < EPHEMERAL_PORTS / 2 {
            self.crowded.remove(&key.pair());
        }
    }
}

fn set(taken: &mut Taken, port: u16, is_taken: bool) {
    let index = usize::from(port - EPHEMERAL.start());
    let mask = 1 << (index % 64);
    if is_taken { taken[index / 64] |= mask } else { taken[index / 64] &= !mask }
}
