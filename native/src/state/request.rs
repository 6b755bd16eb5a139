//! What the loop asks for.

/// Byte strings in one allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Octets {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Octets {
    pub fn push(&mut self, octets: &[u8]) {
        self.bytes.extend_from_slice(octets);
        self.ends.push(self.bytes.len());
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..self.ends[index]]
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// In memory.
    fn weight(&self) -> usize {
        self.bytes.len() + self.ends.len() * size_of::<usize>()
    }
}

impl<'a> FromIterator<&'a [u8]> for Octets {
    fn from_iter<T: IntoIterator<Item = &'a [u8]>>(all: T) -> Self {
        let mut octets = Self::default();
        all.into_iter().for_each(|one| octets.push(one));
        octets
    }
}

/// Entries to be written. What is said per entry is empty where it is the same for all: nothing.
#[derive(Clone, Debug, Default)]
pub struct Writes {
    pub keys: Octets,
    /// None: unconditional.
    pub expected: Option<Vec<u64>>,
    pub first: u64,
    pub payloads: Octets,
    /// Indexes of the entries to be deleted, ascending; their payloads are empty.
    pub deleted: Vec<usize>,
    pub deadlines: Vec<u64>,
    pub recents: Octets,
    pub update: bool,
    pub replicas: u32,
    pub guard: Option<(Vec<u8>, u64)>,
}

/// Where a scan goes on: at a node's cursor, if the topology still is what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: u64,
    pub node: usize,
    pub cursor: u64,
}

#[derive(Clone, Debug)]
pub enum Request {
    Read {
        table: usize,
        keys: Octets,
    },
    Write {
        table: usize,
        writes: Box<Writes>,
    },
    Scan {
        table: usize,
        cursor: Option<Cursor>,
        count: usize,
    },
    Drop {
        table: usize,
    },
    Claim {
        table: usize,
        now_ms: u64,
        claim_ms: u64,
        most: usize,
    },
    Expired {
        table: usize,
        keys: Octets,
        versions: Vec<u64>,
    },
    Lock {
        table: usize,
        key: Vec<u8>,
        owner: u64,
        lease_ms: u64,
        /// For how long it is renewed; 0: until it is given back.
        hold_ms: u64,
    },
    Renew {
        table: usize,
        key: Vec<u8>,
        owner: u64,
        lease_ms: u64,
    },
    Unlock {
        table: usize,
        key: Vec<u8>,
        owner: u64,
    },
    /// Any command that may be carried out twice; its second word is a key.
    Call {
        words: Octets,
    },
}

impl Request {
    /// What it takes of the memory that all that waits may take together.
    pub fn weight(&self) -> usize {
        const EACH: usize = 256;
        EACH + match self {
            Self::Read { keys, .. } => keys.weight(),
            Self::Write { writes, .. } => writes.keys.weight() + writes.payloads.weight() + writes.recents.weight(),
            Self::Expired { keys, .. } => keys.weight(),
            Self::Call { words, .. } => words.weight(),
            Self::Lock { key, .. } | Self::Renew { key, .. } | Self::Unlock { key, .. } => key.len(),
            Self::Scan { .. } | Self::Drop { .. } | Self::Claim { .. } => 0,
        }
    }

    /// Whether the store is another one afterwards.
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Scan { .. })
    }
}
