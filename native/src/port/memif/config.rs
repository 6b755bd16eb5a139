//! What a memif port is told, and what of it cannot work.

use std::path::PathBuf;

use super::control::SECRET_BYTES;
use super::handshake::MAX_QUEUES;
use super::ring::{Layout, MAX_LOG2_SLOTS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Listens and maps what the client shares ("master").
    Server,
    /// Connects and shares its memory ("slave").
    Client,
}

#[derive(Clone, PartialEq, Eq)]
pub struct MemifConfig {
    pub name: String,
    /// A socket file (mode 0600), or an abstract name beginning with '@', which every process of the network namespace
    /// can reach: give that one a secret.
    pub path: PathBuf,
    pub role: Role,
    /// The interface behind the socket.
    pub id: u32,
    /// At most 24 bytes, none of them 0.
    pub secret: Option<Vec<u8>>,
    /// Per ring, of a client; a power of two.
    pub ring_slots: u32,
    /// Per slot, of a client.
    pub buffer_bytes: u32,
    /// Rings in each direction: as many a client makes, if the server lets it; so many a server lets it make, or any
    /// number if this is 1.
    pub queues: u16,
    /// The largest IP packet.
    pub mtu: usize,
    /// What a client may make us map, or we share as one.
    pub max_region_bytes_total: usize,
}

impl MemifConfig {
    pub fn new(name: &str, path: impl Into<PathBuf>, role: Role) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            role,
            id: 0,
            secret: None,
            ring_slots: 1024,
            buffer_bytes: 2048,
            queues: 1,
            mtu: 1500,
            max_region_bytes_total: 256 << 20,
        }
    }

    pub(super) fn layout(&self) -> Layout {
        Layout {
            log2_slots: self.ring_slots.trailing_zeros() as u8,
            buffer_bytes: self.buffer_bytes,
            queues: self.queues,
        }
    }

    pub(super) fn padded_secret(&self) -> Option<[u8; SECRET_BYTES]> {
        self.secret.as_ref().map(|secret| {
            let mut padded = [0; SECRET_BYTES];
            padded[..secret.len()].copy_from_slice(secret);
            padded
        })
    }

    /// What cannot work: what was found, and what is wanted.
    pub(super) fn validate(&self) -> Result<(), String> {
        let most_slots = 1 << MAX_LOG2_SLOTS;
        if !self.ring_slots.is_power_of_two() || !(2..=most_slots).contains(&self.ring_slots) {
            return Err(format!("ring_slots is {}, a power of two from 2 to {most_slots} wanted", self.ring_slots));
        }
        if !(64..=65_536).contains(&self.buffer_bytes) {
            return Err(format!("buffer_bytes is {}, 64 to 65536 wanted", self.buffer_bytes));
        }
        if !(68..=65_535).contains(&self.mtu) {
            return Err(format!("mtu is {}, 68 to 65535 wanted", self.mtu));
        }
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(format!("queues is {}, 1 to {MAX_QUEUES} wanted", self.queues));
        }
        if let Some(secret) = &self.secret
            && (secret.is_empty() || secret.len() > SECRET_BYTES || secret.contains(&0))
        {
            return Err(format!("secret has {} bytes, 1 to {SECRET_BYTES} without NUL wanted", secret.len()));
        }
        let (bytes, most) = (self.layout().region_bytes(), self.max_region_bytes_total);
        if self.role == Role::Client && bytes > most as u64 {
            return Err(format!(
                "queues × ring_slots × buffer_bytes need {bytes} bytes, max_region_bytes_total allows {most}"
            ));
        }
        if self.role == Role::Client && bytes > u64::from(u32::MAX) {
            return Err(format!("queues × ring_slots × buffer_bytes need {bytes} bytes, less than 4 GiB wanted"));
        }
        Ok(())
    }
}
