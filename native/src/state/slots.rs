//! Where a key lives: CRC16 gives a key its partition, and a partition's name its hash slot.
//!
//! A key of a table is `{NAMESPACE:TABLE:P}` and the packed key. What stands in braces is all that is hashed (the Redis
//! Cluster specification, "Hash tags"), so everything of a partition is in one slot and one script can write it. Packed
//! keys are MessagePack: none that is longer than one octet begins with 0xff (which is −1), so these names are ours.

use std::collections::HashMap;
use std::fmt::Write;

pub const SLOTS: u16 = 16384;
/// More than this many partitions would only make batches smaller.
pub const MAX_PARTITIONS: usize = 4096;
/// A sorted set: the entries of a partition that a handler is waiting to see expire, by their deadlines.
pub const DEADLINES: &[u8] = b"\xffttl";
/// The counter that numbers the owners of a partition's locks.
pub const FENCE: &[u8] = b"\xfffence";
/// Before a packed key: its lock.
pub const LOCK: &[u8] = b"\xfflock";

const NAME: std::ops::RangeInclusive<usize> = 1..=128;

/// `CRC16[n]` is what an octet comes to after `n` more octets of zero: four are looked up at once.
const CRC16: [[u16; 256]; 4] = {
    let mut tables = [[0; 256]; 4];
    let mut octet = 0;
    while octet < 256 {
        let mut crc = (octet as u16) << 8;
        let mut bits = 0;
        while bits < 32 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bits += 1;
            if bits % 8 == 0 {
                tables[bits / 8 - 1][octet] = crc;
            }
        }
        octet += 1;
    }
    tables
};

/// CRC-16/XMODEM, as the Redis Cluster specification has it in its appendix A.
#[inline]
pub fn crc16(octets: &[u8]) -> u16 {
    let at = |zeros: usize, octet: u8| CRC16[zeros][usize::from(octet)];
    let (fours, rest) = octets.as_chunks::<4>();
    let crc = fours.iter().fold(0_u16, |crc, &[a, b, c, d]| {
        let [high, low] = crc.to_be_bytes();
        at(3, high ^ a) ^ at(2, low ^ b) ^ at(1, c) ^ at(0, d)
    });
    rest.iter().fold(crc, |crc, &octet| (crc << 8) ^ at(0, (crc >> 8) as u8 ^ octet))
}

/// The slot of a whole key: `CLUSTER KEYSLOT`.
pub fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&octet| octet == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|&octet| octet == b'}').filter(|&length| length > 0).map(|length| &rest[..length])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// `{NAMESPACE:TABLE:P}`
    pub prefix: Box<[u8]>,
    pub slot: u16,
}

/// The partitions of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Everything of the table begins so: `{NAMESPACE:TABLE:`
    pub prefix: Box<[u8]>,
    pub partitions: Box<[Partition]>,
    /// Expired entries stay until a handler has seen them.
    pub keeps_expired: bool,
}

impl Table {
    pub fn new(namespace: &str, name: &str, partitions: usize, keeps_expired: bool) -> Result<Self, String> {
        for (what, name, forbidden) in [("a namespace", namespace, "{}"), ("a table's name", name, "{}:")] {
            if !NAME.contains(&name.len()) || name.contains(|c: char| forbidden.contains(c)) {
                let (most, found) = (NAME.end(), name.escape_debug());
                return Err(format!("{what} has 1 to {most} octets and none of {forbidden}, not '{found}'"));
            }
        }
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            return Err(format!("a table has 1 to {MAX_PARTITIONS} partitions, not {partitions}"));
        }
        let prefix = format!("{{{namespace}:{name}:");
        let partitions = (0..partitions).map(|number| {
            let mut name = prefix.clone();
            // Writing to a String cannot fail.
            let _ = write!(name, "{number}}}");
            Partition { slot: slot(name.as_bytes()), prefix: name.into_bytes().into() }
        });
        Ok(Self { partitions: partitions.collect(), prefix: prefix.into_bytes().into(), keeps_expired })
    }

    #[inline]
    pub fn partition(&self, key: &[u8]) -> usize {
        usize::from(crc16(key)) % self.partitions.len()
    }

    /// The pattern of `SCAN … MATCH` that finds the table's keys, the namespace and the name taken by their letters.
    pub fn pattern(&self) -> Vec<u8> {
        let mut pattern = Vec::with_capacity(self.prefix.len() + 8);
        for &octet in &self.prefix {
            if b"*?[]\\^-".contains(&octet) {
                pattern.push(b'\\');
            }
            pattern.push(octet);
        }
        pattern.push(b'*');
        pattern
    }
}

/// The tables of a client, by their handles and by their names.
#[derive(Debug, Default)]
pub struct Tables {
    list: Vec<Table>,
    by_prefix: HashMap<Box<[u8]>, usize>,
}

impl Tables {
    /// The handle of the table, which is the one it had before if it was here before.
    pub fn add(&mut self, table: Table) -> Result<usize, String> {
        if let Some(&handle) = self.by_prefix.get(&table.prefix) {
            return if self.list[handle] == table {
                Ok(handle)
            } else {
                Err(format!(
                    "the table is open already, with {} partitions and {} what expired",
                    self.list[handle].partitions.len(),
                    if self.list[handle].keeps_expired { "keeping" } else { "not keeping" },
                ))
            };
        }
        self.by_prefix.insert(table.prefix.clone(), self.list.len());
        self.list.push(table);
        Ok(self.list.len() - 1)
    }

    pub fn get(&self, handle: usize) -> Option<&Table> {
        self.list.get(handle)
    }

    /// The table and the key of an entry, by its name in the store; nothing, if it is none of ours.
    pub fn find<'a>(&self, name: &'a [u8]) -> Option<(usize, &'a [u8])> {
        let end = name.iter().position(|&octet| octet == b'}')?;
        let (prefix, key) = name.split_at(end + 1);
        let colon = prefix.iter().rposition(|&octet| octet == b':')?;
        let table = *self.by_prefix.get(&prefix[..=colon])?;
        let is_other = key.is_empty() || key.len() > 1 && key[0] == 0xff;
        let home = &self.list[table].partitions[self.list[table].partition(key)];
        (*home.prefix == *prefix && !is_other).then_some((table, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc16_is_that_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        let by_bits = |octets: &[u8]| {
            octets.iter().fold(0_u16, |crc, &octet| {
                let next = |crc: u16, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
                (0..8).fold(crc ^ u16::from(octet) << 8, next)
            })
        };
        let octets: Vec<u8> = (0..=255_u8).map(|octet| octet.wrapping_mul(167)).collect();
        (0..octets.len()).for_each(|end| assert_eq!(crc16(&octets[end / 3..end]), by_bits(&octets[end / 3..end])));
    }

    #[test]
    fn the_first_braces_with_something_in_them_are_hashed() {
        // The examples of the specification, "Hash tags".
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(slot(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
        assert_eq!(slot(b"{open"), crc16(b"{open") % SLOTS);
    }

    #[test]
    fn a_key_of_a_partition_is_in_its_slot() {
        let table = Table::new("vnf", "sessions", 64, false).unwrap();
        for key in [&b"\xa1a"[..], b"\x93{}}{", b"}", b""] {
            let home = &table.partitions[table.partition(key)];
            assert_eq!(slot(&[&home.prefix, key].concat()), home.slot);
            assert_eq!(slot(&[&home.prefix, LOCK, key].concat()), home.slot);
        }
        assert_eq!(&*table.partitions[63].prefix, b"{vnf:sessions:63}");
    }

    #[test]
    fn names_that_would_move_the_tag_are_refused() {
        for (namespace, name) in [("v}", "a"), ("{", "a"), ("v", "a:3"), ("v", "}"), ("", "a"), ("v", "")] {
            Table::new(namespace, name, 1, false).unwrap_err();
        }
        Table::new("v", &"a".repeat(129), 1, false).unwrap_err();
        Table::new("v", "a", 0, false).unwrap_err();
        Table::new("v", "a", MAX_PARTITIONS + 1, false).unwrap_err();
        Table::new("plant:7", "a b*", 1, false).unwrap();
    }

    #[test]
    fn a_pattern_takes_names_by_their_letters() {
        assert_eq!(Table::new("v-f", "a*[b]?", 2, false).unwrap().pattern(), br"{v\-f:a\*\[b\]\?:*");
    }

    #[test]
    fn what_came_from_the_store_is_found_again() {
        let mut tables = Tables::default();
        let (a, ab) = (Table::new("v", "a", 8, false).unwrap(), Table::new("v", "ab", 8, true).unwrap());
        let prefix = a.partitions[a.partition(b"\xa1k")].prefix.to_vec();
        assert_eq!((tables.add(a.clone()), tables.add(ab), tables.add(a)), (Ok(0), Ok(1), Ok(0)));
        tables.add(Table::new("v", "a", 9, false).unwrap()).unwrap_err();
        tables.add(Table::new("v", "a", 8, true).unwrap()).unwrap_err();

        let key = &b"\xa1k"[..];
        assert_eq!(tables.find(&[&prefix, key].concat()), Some((0, key)));
        let minus_one = tables.get(1).unwrap();
        let name = [&minus_one.partitions[minus_one.partition(b"\xff")].prefix, &b"\xff"[..]].concat();
        assert_eq!(tables.find(&name), Some((1, &b"\xff"[..])));
        for none in [DEADLINES, FENCE, &[LOCK, key].concat(), b""] {
            assert_eq!(tables.find(&[&prefix, none].concat()), None);
        }
        for none in [&b"{v:a:8}\xa1k"[..], b"{v:a:}\xa1k", b"{v:b:0}\xa1k", b"{}", b"}", b"", b"{v:a:007}\xa1k"] {
            assert_eq!(tables.find(none), None);
        }
    }
}
