//! What tables ask of the store, as [`Command`]s: a batch is cut into those, each for one partition, so for one node
//! and one answer; each reads its own answer.
//!
//! Every command may be sent again as it is: to another node (MOVED, ASK), after its script was loaded (NOSCRIPT),
//! and after its answer was lost. A version that already stands is a write that succeeded; of a read-modify-write that
//! finds another one, the stored list says whether it was applied. What this cannot see: an entry that was written
//! where there was none, read and deleted by another, is written again by the second sending; and of an entry that was
//! deleted and put again, or replaced unread, the list knows nothing that came before.

use super::bytes::Bytes;
use super::header::{self, Applied, FIXED_BYTES, RECENT, Recent, Stored, VERSION_BYTES};
use super::resp::{self, List, Malformed, Reply};
use super::script::{self, Script};
use super::slots::{self, DEADLINES, FENCE, LOCK, Partition, Table};

/// Entries of one script call. Lua's stack takes 8,000 values, the call of MSET two for each.
pub const MOST_WRITTEN: usize = 512;
/// Where a batch is cut, so that nobody waits long for the node while it serves one command.
pub const PIECE_BYTES: usize = 256 * 1024;
/// Keys of one MGET: values may be long, and all have to be there before the answer is read.
pub const MOST_READ: usize = 32;

/// One command, for the node that has its slot.
#[derive(Debug)]
pub struct Command {
    pub slot: u16,
    /// As it is sent.
    pub bytes: Bytes,
    /// What is to be loaded where a node does not know it.
    pub script: Option<&'static Script>,
    pub asked: Asked,
}

/// How the answer is read, when it is none of the errors that say where or when to ask again.
#[derive(Debug)]
pub enum Asked {
    Values(Values),
    Written(Written),
    Claimed,
    /// An integer: how many were deleted.
    Removed,
    /// An integer: above 0, the fence; below, how many milliseconds it is another's.
    Locked,
    /// An integer: 0, it was not the owner's.
    Held,
    /// What was asked is known to who asked.
    Other,
}

impl Asked {
    pub fn is_values(&self) -> bool {
        matches!(self, Self::Values(_))
    }
}

/// A batch that cannot be asked for: our own fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The list of the entry with this index is none.
    Recent(usize),
    /// The entry with this index is in another partition than the lock that guards it.
    Guard(usize),
}

/// What is to be written under a key; a key stands once in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub key: &'a [u8],
    /// None: to be deleted.
    pub payload: Option<&'a [u8]>,
    /// The version it was read at; 0: there was none. Of no meaning in an unconditional write.
    pub expected: u64,
    /// 0: none.
    pub deadline_ms: u64,
    /// The list it was read with.
    pub recent: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    pub entries: &'a [Entry<'a>],
    /// The version of the first entry; each further one's is one more.
    pub first: u64,
    pub conditional: bool,
    /// Read-modify-writes: their versions are put into the lists.
    pub update: bool,
    /// The key that is locked, and the lock's owner.
    pub guard: Option<(&'a [u8], u64)>,
}

// --- answers ----------------------------------------------------------------------------------------------------------

/// Values of the keys with these indexes.
#[derive(Debug)]
pub struct Values {
    pub indexes: Box<[u32]>,
}

impl Values {
    /// Calls `each` with an index and what [`Stored::parse`] reads; None: there is nothing.
    pub fn read<'a>(&self, reply: Reply<'a>, mut each: impl FnMut(u32, Option<&'a [u8]>)) -> Result<(), Malformed> {
        match (reply, &*self.indexes) {
            (Reply::List(values), indexes) if values.len() == indexes.len() => {
                for (&index, value) in indexes.iter().zip(values) {
                    each(index, data_or_nil(value)?);
                }
            }
            (value @ (Reply::Data(_) | Reply::Nil), &[index]) => each(index, data_or_nil(value)?),
            _ => return Err(Malformed("not the values that were asked for")),
        }
        Ok(())
    }
}

/// Why an entry was not written, or may not have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// This stands there ([`Stored::parse`] reads it); None: nothing does.
    Conflict(Option<&'a [u8]>),
    /// A conflict; what stands there did not fit into the answer. Ask again.
    Untold,
    /// It was sent before, and nobody can say whether it was applied.
    Unknown,
    /// The guard's lock is another's, or nobody's.
    NotOwner,
}

/// Writes of the entries with these indexes.
#[derive(Debug)]
pub struct Written {
    pub indexes: Box<[u32]>,
    first: u64,
    update: bool,
}

impl Written {
    /// Calls `each` with the indexes of entries that were not simply stored. `resent`: the command may have been carried
    /// out before, for an answer was lost.
    pub fn read<'a>(
        &self,
        reply: Reply<'a>,
        resent: bool,
        mut each: impl FnMut(u32, Outcome<'a>),
    ) -> Result<(), Malformed> {
        const WRONG: Malformed = Malformed("not the answer of a write");
        let mut conflicts = match reply {
            Reply::Integer(0) => return Ok(()),
            Reply::Integer(-1) => {
                let outcome = if resent { Outcome::Unknown } else { Outcome::NotOwner };
                self.indexes.iter().for_each(|&index| each(index, outcome));
                return Ok(());
            }
            Reply::List(conflicts) if conflicts.len() <= 2 * self.indexes.len() => conflicts,
            _ => return Err(WRONG),
        };
        while let Some(place) = conflicts.next() {
            // Lua counts from 1.
            let Reply::Integer(place) = place else { return Err(WRONG) };
            let place = usize::try_from(place).ok().and_then(|place| place.checked_sub(1)).ok_or(WRONG)?;
            let index = *self.indexes.get(place).ok_or(WRONG)?;
            let outcome = match conflicts.next().ok_or(WRONG)? {
                Reply::Integer(0) => Outcome::Untold,
                value => {
                    let stands = data_or_nil(value)?;
                    let applied = if resent && self.update { self.applied(index, stands) } else { Applied::No };
                    match applied {
                        Applied::Yes => continue,
                        Applied::No => Outcome::Conflict(stands),
                        Applied::Unknown => Outcome::Unknown,
                    }
                }
            };
            each(index, outcome);
        }
        Ok(())
    }

    fn applied(&self, index: u32, stands: Option<&[u8]>) -> Applied {
        // What is gone was deleted, before or after.
        stands.map_or(Applied::Unknown, |value| {
            Stored::parse(value).map_or(Applied::Unknown, |stored| stored.has(self.first.wrapping_add(index.into())))
        })
    }
}

/// Keys, without their prefix, and what [`Stored::parse`] reads: the answer to a claim.
pub fn claimed<'a>(reply: Reply<'a>, mut each: impl FnMut(&'a [u8], &'a [u8])) -> Result<(), Malformed> {
    const WRONG: Malformed = Malformed("not the answer to a claim");
    let Reply::List(mut list) = reply else { return Err(WRONG) };
    while let Some(key) = list.next() {
        let (Reply::Data(key), Some(Reply::Data(value))) = (key, list.next()) else { return Err(WRONG) };
        each(key, value);
    }
    Ok(())
}

/// The next cursor (0: that was all) and the names of keys: the answer to [`Table::scan`].
pub fn scanned(reply: Reply<'_>) -> Result<(u64, List<'_>), Malformed> {
    const WRONG: Malformed = Malformed("not the answer to a scan");
    let Reply::List(mut list) = reply else { return Err(WRONG) };
    let (Some(Reply::Data(cursor)), Some(Reply::List(names)), None) = (list.next(), list.next(), list.next()) else {
        return Err(WRONG);
    };
    let cursor = std::str::from_utf8(cursor).ok().and_then(|cursor| cursor.parse().ok()).ok_or(WRONG)?;
    Ok((cursor, names))
}

fn data_or_nil(reply: Reply<'_>) -> Result<Option<&[u8]>, Malformed> {
    match reply {
        Reply::Nil => Ok(None),
        Reply::Data(data) => Ok(Some(data)),
        _ => Err(Malformed("not a value")),
    }
}

// --- questions --------------------------------------------------------------------------------------------------------

impl Command {
    /// Any command; `key` says for which node it is.
    pub fn other(key: &[u8], arguments: &[&[u8]]) -> Self {
        let mut bytes = Bytes::new(0);
        resp::command(&mut bytes, arguments);
        Self { slot: slots::slot(key), bytes, script: None, asked: Asked::Other }
    }
}

impl Table {
    pub fn read(&self, keys: &[&[u8]]) -> Vec<Command> {
        let mut commands = Vec::new();
        self.in_partitions(
            keys.len(),
            |index| keys[index],
            MOST_READ,
            |_| 0,
            |home, indexes| {
                let mut bytes =
                    Bytes::new(32 + indexes.iter().map(|&i| name_bytes(home, keys[i as usize])).sum::<usize>());
                resp::arguments_follow(&mut bytes, 1 + indexes.len());
                resp::bulk(&mut bytes, if indexes.len() == 1 { b"GET" } else { b"MGET" });
                indexes.iter().for_each(|&index| name(&mut bytes, home, &[], keys[index as usize]));
                commands.push(Command {
                    slot: home.slot,
                    bytes,
                    script: None,
                    asked: Asked::Values(Values { indexes: indexes.into() }),
                });
            },
        );
        commands
    }

    pub fn write(&self, write: &Write<'_>) -> Result<Vec<Command>, Misfit> {
        let entries = write.entries;
        let is_list =
            |recent: &[u8]| recent.len().is_multiple_of(VERSION_BYTES) && recent.len() <= RECENT * VERSION_BYTES;
        if let Some(index) = entries.iter().position(|entry| !is_list(entry.recent)) {
            return Err(Misfit::Recent(index));
        }
        if let Some((locked, _)) = write.guard {
            let home = self.partition(locked);
            if let Some(index) = entries.iter().position(|entry| self.partition(entry.key) != home) {
                return Err(Misfit::Guard(index));
            }
        }
        let mut commands = Vec::new();
        let size = |index: usize| entries[index].payload.map_or(0, <[u8]>::len);
        self.in_partitions(
            entries.len(),
            |index| entries[index].key,
            MOST_WRITTEN,
            size,
            |home, indexes| {
                commands.push(self.write_command(write, home, indexes));
            },
        );
        Ok(commands)
    }

    fn write_command(&self, write: &Write<'_>, home: &Partition, indexes: &[u32]) -> Command {
        let count = indexes.len();
        let entries = || indexes.iter().map(|&index| (index, &write.entries[index as usize]));
        let plain = |entry: &Entry<'_>| entry.payload.is_some() && entry.deadline_ms == 0;
        let is_plain = write.guard.is_none() && !self.keeps_expired && entries().all(|(_, entry)| plain(entry));

        // A key, a value and a version with their heads; a list may grow by one.
        let heads = 16 + 16 + FIXED_BYTES + 2 * VERSION_BYTES;
        let each = |entry: &Entry<'_>| {
            name_bytes(home, entry.key) + entry.payload.map_or(0, <[u8]>::len) + entry.recent.len() + heads
        };
        let mut bytes = Bytes::new(256 + home.prefix.len() + entries().map(|(_, entry)| each(entry)).sum::<usize>());

        let script = match (is_plain, write.conditional) {
            (true, true) if count == 1 => &script::PUT_ONE,
            (true, true) => &script::PUT,
            (true, false) => &script::SET,
            (false, _) => &script::CHANGE,
        };
        let (more_keys, more_arguments) = match is_plain {
            true => (0, usize::from(write.conditional)),
            false => (usize::from(self.keeps_expired) + usize::from(write.guard.is_some()), 3),
        };
        script.call(&mut bytes, count + more_keys, count + more_arguments);
        entries().for_each(|(_, entry)| name(&mut bytes, home, &[], entry.key));
        if !is_plain {
            if self.keeps_expired {
                name(&mut bytes, home, DEADLINES, &[]);
            }
            if let Some((locked, _)) = write.guard {
                name(&mut bytes, home, LOCK, locked);
            }
        }
        for (index, entry) in entries() {
            value(&mut bytes, entry, write.first.wrapping_add(index.into()), write.update);
        }
        if write.conditional {
            resp::bulk_follows(&mut bytes, count * VERSION_BYTES);
            entries().for_each(|(_, entry)| bytes.extend_from_slice(&entry.expected.to_be_bytes()));
            bytes.extend_from_slice(b"\r\n");
        } else if !is_plain {
            resp::bulk(&mut bytes, &[]);
        }
        if !is_plain {
            resp::bulk(
                &mut bytes,
                write.guard.map(|(_, owner)| owner.to_be_bytes()).as_ref().map_or(&[], |owner| owner),
            );
            resp::bulk(&mut bytes, if self.keeps_expired { b"1" } else { b"" });
        }
        let asked = Asked::Written(Written { indexes: indexes.into(), first: write.first, update: write.update });
        Command { slot: home.slot, bytes, script: Some(script), asked }
    }

    /// Of every partition, up to `most` entries that are due; they are due again at `until_ms`.
    pub fn claim_expired(&self, now_ms: u64, until_ms: u64, most: usize) -> Vec<Command> {
        let command = |home| {
            let arguments = [now_ms, until_ms, most as u64];
            let mut bytes = Bytes::new(0);
            script::CLAIM.call(&mut bytes, 1, arguments.len());
            name(&mut bytes, home, DEADLINES, &[]);
            arguments.iter().for_each(|&argument| resp::number(&mut bytes, argument));
            Command { slot: home.slot, bytes, script: Some(&script::CLAIM), asked: Asked::Claimed }
        };
        self.partitions.iter().map(command).collect()
    }

    /// The expiry of these keys, at these versions, has been handled.
    pub fn expired(&self, keys: &[&[u8]], versions: &[u64]) -> Vec<Command> {
        let mut commands = Vec::new();
        let count = keys.len().min(versions.len());
        self.in_partitions(
            count,
            |index| keys[index],
            MOST_WRITTEN,
            |_| 0,
            |home, indexes| {
                let mut bytes = Bytes::new(0);
                script::EXPIRED.call(&mut bytes, indexes.len() + 1, 1);
                indexes.iter().for_each(|&index| name(&mut bytes, home, &[], keys[index as usize]));
                name(&mut bytes, home, DEADLINES, &[]);
                let versions: Vec<u8> =
                    indexes.iter().flat_map(|&index| versions[index as usize].to_be_bytes()).collect();
                resp::bulk(&mut bytes, &versions);
                commands.push(Command {
                    slot: home.slot,
                    bytes,
                    script: Some(&script::EXPIRED),
                    asked: Asked::Removed,
                });
            },
        );
        commands
    }

    /// Asks for a lock, for `lease_ms` (at least 1) from when the store carries it out.
    pub fn lock(&self, key: &[u8], owner: u64, lease_ms: u64) -> Command {
        self.on_lock(&script::LOCK, key, owner, Some(lease_ms), Asked::Locked)
    }

    pub fn renew(&self, key: &[u8], owner: u64, lease_ms: u64) -> Command {
        self.on_lock(&script::RENEW, key, owner, Some(lease_ms), Asked::Held)
    }

    pub fn unlock(&self, key: &[u8], owner: u64) -> Command {
        self.on_lock(&script::UNLOCK, key, owner, None, Asked::Held)
    }

    fn on_lock(&self, script: &'static Script, key: &[u8], owner: u64, lease_ms: Option<u64>, asked: Asked) -> Command {
        let home = &self.partitions[self.partition(key)];
        let numbers_it = matches!(asked, Asked::Locked);
        let mut bytes = Bytes::new(0);
        script.call(&mut bytes, 1 + usize::from(numbers_it), 1 + usize::from(lease_ms.is_some()));
        name(&mut bytes, home, LOCK, key);
        if numbers_it {
            name(&mut bytes, home, FENCE, &[]);
        }
        resp::bulk(&mut bytes, &owner.to_be_bytes());
        if let Some(lease_ms) = lease_ms {
            resp::number(&mut bytes, lease_ms.max(1));
        }
        Command { slot: home.slot, bytes, script: Some(script), asked }
    }

    /// The command that asks one node, any that has slots, for names of keys; about so many at a time.
    pub fn scan(&self, cursor: u64, count: usize) -> Vec<u8> {
        let (cursor, count) = (cursor.to_string(), count.max(1).to_string());
        let mut bytes = Vec::new();
        let pattern = self.pattern();
        resp::command(&mut bytes, &[b"SCAN", cursor.as_bytes(), b"MATCH", &pattern, b"COUNT", count.as_bytes()]);
        bytes
    }

    /// These entries are removed, whatever stands there.
    pub fn drop(&self, keys: &[&[u8]]) -> Vec<Command> {
        let mut commands = Vec::new();
        self.in_partitions(
            keys.len(),
            |index| keys[index],
            MOST_WRITTEN,
            |_| 0,
            |home, indexes| {
                let mut bytes = Bytes::new(0);
                script::DROP.call(&mut bytes, indexes.len() + 1, 0);
                indexes.iter().for_each(|&index| name(&mut bytes, home, &[], keys[index as usize]));
                name(&mut bytes, home, DEADLINES, &[]);
                commands.push(Command { slot: home.slot, bytes, script: Some(&script::DROP), asked: Asked::Removed });
            },
        );
        commands
    }

    /// Calls `command` with indexes of entries of one partition, up to `most` and about [`PIECE_BYTES`] at a time.
    fn in_partitions<'a>(
        &self,
        count: usize,
        key: impl Fn(usize) -> &'a [u8],
        most: usize,
        size: impl Fn(usize) -> usize,
        mut command: impl FnMut(&Partition, &[u32]),
    ) {
        // Sorted by partition and then by index.
        let mut order: Vec<u64> =
            (0..count).map(|index| (self.partition(key(index)) as u64) << 32 | index as u64).collect();
        order.sort_unstable();
        let mut indexes: Vec<u32> = Vec::with_capacity(most.min(count));
        for partition in order.chunk_by(|one, other| one >> 32 == other >> 32) {
            let home = &self.partitions[(partition[0] >> 32) as usize];
            let mut bytes = 0;
            for &index in partition {
                let index = index as u32;
                let next = size(index as usize);
                if indexes.len() == most || (bytes + next > PIECE_BYTES && !indexes.is_empty()) {
                    command(home, &indexes);
                    indexes.clear();
                    bytes = 0;
                }
                indexes.push(index);
                bytes += next;
            }
            command(home, &indexes);
            indexes.clear();
        }
    }
}

fn name_bytes(home: &Partition, key: &[u8]) -> usize {
    home.prefix.len() + key.len()
}

/// Appends the name of a key as an argument.
#[inline]
fn name(out: &mut Vec<u8>, home: &Partition, kind: &[u8], key: &[u8]) {
    resp::bulk_follows(out, home.prefix.len() + kind.len() + key.len());
    out.extend_from_slice(&home.prefix);
    out.extend_from_slice(kind);
    out.extend_from_slice(key);
    out.extend_from_slice(b"\r\n");
}

/// Appends what is to stand under a key as an argument.
#[inline]
fn value(out: &mut Vec<u8>, entry: &Entry<'_>, version: u64, update: bool) {
    let Some(payload) = entry.payload else {
        // One octet more: what is gone already is not as it was read.
        let deletion = [&version.to_be_bytes()[..], &[0]].concat();
        return resp::bulk(out, &deletion[..VERSION_BYTES + usize::from(update)]);
    };
    let led = if update { Recent::carried(entry.recent).map(|recent| recent.led_by(version)) } else { None };
    let recent = led.as_ref().map_or(entry.recent, Recent::octets);
    resp::bulk_follows(out, header::length(recent, payload));
    header::write(out, version, entry.deadline_ms, recent, payload);
    out.extend_from_slice(b"\r\n");
}
