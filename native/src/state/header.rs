//! What stands under a key: a header, and the payload it speaks of.
//!
//! ```text
//! octets 0–7   version: unique per write. Writer (24 bits) and sequence (40 bits). None is 0: that is "absent".
//!        8–13  deadline in milliseconds since 1970; 0: none
//!        14    n, at most 8
//!        15–   n versions: the last read-modify-writes of as many writers, youngest first
//!        then  the payload
//! ```
//!
//! All numbers are big-endian. The list answers whether a read-modify-write whose reply was lost has been applied, long
//! after others have written: everybody who writes on what was read carries it on. Who writes on nothing begins another
//! one, so a list with room says "not applied" also of what was applied to an entry that has been deleted since.

pub const VERSION_BYTES: usize = 8;
/// The header without its list.
pub const FIXED_BYTES: usize = 15;
/// The longest list.
pub const RECENT: usize = 8;
/// The last moment that a deadline can name, in the year 10889.
pub const LAST_DEADLINE_MS: u64 = (1 << 48) - 1;

const SEQUENCE_BITS: u32 = 40;

/// Who wrote this version.
pub fn writer(version: u64) -> u32 {
    (version >> SEQUENCE_BITS) as u32
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    pub version: u64,
    pub deadline_ms: u64,
    /// Whole versions, as they are stored.
    pub recent: &'a [u8],
    pub payload: &'a [u8],
}

/// Whether a write happened that nobody answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    Yes,
    No,
    Unknown,
}

impl<'a> Stored<'a> {
    /// Nothing where `value` is not of this form.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = value.split_first_chunk::<FIXED_BYTES>()?;
        let version = version(fixed)?;
        let mut deadline = [0; 8];
        deadline[2..].copy_from_slice(&fixed[8..14]);
        let count = usize::from(fixed[14]);
        if version == 0 || count > RECENT {
            return None;
        }
        let (recent, payload) = rest.split_at_checked(count * VERSION_BYTES)?;
        Some(Self { version, deadline_ms: u64::from_be_bytes(deadline), recent, payload })
    }

    /// Whether the read-modify-write with this version came before what stands here.
    pub fn has(&self, version: u64) -> Applied {
        if self.version == version {
            return Applied::Yes;
        }
        match versions(self.recent).find(|&recent| writer(recent) == writer(version)) {
            Some(recent) if recent >= version => Applied::Yes,
            Some(_) => Applied::No,
            // A full list may have dropped it.
            None if self.recent.len() < RECENT * VERSION_BYTES => Applied::No,
            None => Applied::Unknown,
        }
    }
}

/// The version that a value begins with.
pub fn version(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|octets| u64::from_be_bytes(*octets))
}

fn versions(recent: &[u8]) -> impl Iterator<Item = u64> {
    recent.chunks_exact(VERSION_BYTES).filter_map(version)
}

/// The list of an entry, written anew.
#[derive(Clone, Copy, Debug)]
pub struct Recent {
    octets: [u8; RECENT * VERSION_BYTES],
    used: usize,
}

impl Recent {
    /// The list as it was read; nothing where it is none.
    #[inline]
    pub fn carried(recent: &[u8]) -> Option<Self> {
        let mut list = Self { octets: [0; RECENT * VERSION_BYTES], used: recent.len() };
        list.octets.get_mut(..recent.len())?.copy_from_slice(recent);
        recent.len().is_multiple_of(VERSION_BYTES).then_some(list)
    }

    /// A read-modify-write goes first, instead of its writer's last one.
    pub fn led_by(self, own: u64) -> Self {
        let mut list = Self { octets: [0; RECENT * VERSION_BYTES], used: 0 };
        list.push(own);
        versions(&self.octets[..self.used]).filter(|&other| writer(other) != writer(own)).for_each(|v| list.push(v));
        list
    }

    fn push(&mut self, version: u64) {
        if let Some(place) = self.octets.get_mut(self.used..self.used + VERSION_BYTES) {
            place.copy_from_slice(&version.to_be_bytes());
            self.used += VERSION_BYTES;
        }
    }

    #[inline]
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.used]
    }
}

/// How long a value is.
#[inline]
pub fn length(recent: &[u8], payload: &[u8]) -> usize {
    FIXED_BYTES + recent.len() + payload.len()
}

/// Appends a value: `recent` is a [`Recent`]'s octets.
#[inline]
pub fn write(out: &mut Vec<u8>, version: u64, deadline_ms: u64, recent: &[u8], payload: &[u8]) {
    let mut fixed = [0; FIXED_BYTES];
    fixed[6..14].copy_from_slice(&deadline_ms.min(LAST_DEADLINE_MS).to_be_bytes());
    fixed[..VERSION_BYTES].copy_from_slice(&version.to_be_bytes());
    fixed[14] = (recent.len() / VERSION_BYTES) as u8;
    out.extend_from_slice(&fixed);
    out.extend_from_slice(recent);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(writer: u64, sequence: u64) -> u64 {
        writer << SEQUENCE_BITS | sequence
    }

    fn list(versions: &[u64]) -> Vec<u8> {
        versions.iter().flat_map(|v| v.to_be_bytes()).collect()
    }

    fn value(version: u64, deadline_ms: u64, recent: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, version, deadline_ms, recent, payload);
        assert_eq!(out.len(), length(recent, payload));
        out
    }

    #[test]
    fn what_is_written_is_read() {
        let octets = value(of(1, 2), 1_795_000_000_123, &list(&[of(1, 1), of(3, 9)]), b"payload");
        let mut expected = vec![0, 0, 1, 0, 0, 0, 0, 2]; // writer 1, sequence 2
        expected.extend([0x01, 0xa1, 0xee, 0x56, 0x5e, 0x7b]); // the deadline
        expected.extend([2, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 9]); // two versions
        expected.extend(b"payload");
        assert_eq!(octets, expected);
        let recent = &list(&[of(1, 1), of(3, 9)])[..];
        let stored = Stored { version: of(1, 2), deadline_ms: 1_795_000_000_123, recent, payload: b"payload" };
        assert_eq!(Stored::parse(&octets), Some(stored));
        assert_eq!(Stored::parse(&value(1, u64::MAX, &[], &[])).unwrap().deadline_ms, LAST_DEADLINE_MS);
    }

    #[test]
    fn what_is_cut_or_lies_about_its_list_is_not_read() {
        let whole = value(7, 0, &list(&[1, 2, 3]), b"");
        assert!((0..whole.len()).all(|length| Stored::parse(&whole[..length]).is_none()));
        let mut nine = value(7, 0, &list(&[1; 8]), &[0; 8]);
        nine[14] = 9;
        assert_eq!(Stored::parse(&nine), None);
        assert_eq!(Stored::parse(&value(0, 0, &[], b"a value of version 0")), None);
    }

    #[test]
    fn a_read_modify_write_goes_first_and_replaces_its_writers_last_one() {
        let old = list(&[of(1, 5), of(2, 7), of(3, 1)]);
        let recent = Recent::carried(&old).unwrap();
        assert_eq!(recent.octets(), old);
        assert_eq!(recent.led_by(of(2, 8)).octets(), list(&[of(2, 8), of(1, 5), of(3, 1)]));
        assert_eq!(recent.led_by(of(9, 1)).octets(), list(&[of(9, 1), of(1, 5), of(2, 7), of(3, 1)]));
    }

    #[test]
    fn the_ninth_writer_pushes_the_oldest_out() {
        let eight: Vec<u64> = (1..=8).map(|writer| of(writer, 1)).collect();
        let recent = Recent::carried(&list(&eight)).unwrap().led_by(of(9, 1));
        assert_eq!(recent.octets(), list(&[&[of(9, 1)], &eight[..7]].concat()));
    }

    #[test]
    fn only_a_list_is_carried() {
        assert!(Recent::carried(&[0; 7]).is_none() && Recent::carried(&[0; 72]).is_none());
        assert!(Recent::carried(&[]).is_some() && Recent::carried(&[0; 64]).is_some());
    }

    #[test]
    fn whether_a_write_was_applied_is_in_the_list() {
        let recent = list(&[of(4, 9), of(5, 3)]);
        let stored = Stored { version: of(7, 1), deadline_ms: 0, recent: &recent, payload: &[] };
        assert_eq!(stored.has(of(7, 1)), Applied::Yes, "it stands here");
        assert_eq!(stored.has(of(5, 3)), Applied::Yes);
        assert_eq!(stored.has(of(5, 2)), Applied::Yes, "a later one of the same writer came after it");
        assert_eq!(stored.has(of(5, 4)), Applied::No, "only an earlier one did");
        assert_eq!(stored.has(of(6, 1)), Applied::No, "the list has room and does not hold it");
        let full = list(&(10..18).map(|writer| of(writer, 1)).collect::<Vec<_>>());
        let stored = Stored { recent: &full, ..stored };
        assert_eq!(stored.has(of(6, 1)), Applied::Unknown, "it may have been pushed out");
        assert_eq!(stored.has(of(17, 1)), Applied::Yes);
    }
}
