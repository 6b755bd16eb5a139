//! Captures, written: pcap in nanoseconds, and pcapng with names and directions. Whole records only: a file that could not
//! take all of one ends with the one before.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::time::Duration;

/// Where a frame was seen to go (`epb_flags`, bits 0 and 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    In = 1,
    Out = 2,
}

const ETHERNET: u16 = 1;

/// Before the records of a pcap file.
pub fn pcap_header() -> [u8; 24] {
    let mut header = [0; 24];
    header[..4].copy_from_slice(&0xa1b2_3c4d_u32.to_le_bytes());
    header[4..8].copy_from_slice(&[2, 0, 4, 0]);
    header[16..20].copy_from_slice(&(super::read::LONGEST_RECORD as u32).to_le_bytes());
    header[20..22].copy_from_slice(&ETHERNET.to_le_bytes());
    header
}

pub fn pcap_record(to: &mut Vec<u8>, at: Duration, parts: &[&[u8]]) {
    let len = parts.iter().map(|part| part.len() as u32).sum::<u32>();
    for field in [at.as_secs() as u32, at.subsec_nanos(), len, len] {
        to.extend_from_slice(&field.to_le_bytes());
    }
    parts.iter().for_each(|part| to.extend_from_slice(part));
}

fn option(to: &mut Vec<u8>, code: u16, value: &[u8]) {
    to.extend_from_slice(&code.to_le_bytes());
    to.extend_from_slice(&(value.len() as u16).to_le_bytes());
    to.extend_from_slice(value);
    pad(to, value.len());
}

fn pad(to: &mut Vec<u8>, len: usize) {
    to.resize(to.len() + len.next_multiple_of(4) - len, 0);
}

fn block(to: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend_from_slice(&kind.to_le_bytes());
    to.extend_from_slice(&[0; 4]);
    body(to);
    let total = ((to.len() - start + 4) as u32).to_le_bytes();
    to[start + 4..start + 8].copy_from_slice(&total);
    to.extend_from_slice(&total);
}

/// What a pcapng file begins with.
pub fn section(to: &mut Vec<u8>) {
    block(to, 0x0a0d_0d0a, |to| {
        to.extend_from_slice(&0x1a2b_3c4d_u32.to_le_bytes());
        to.extend_from_slice(&[1, 0, 0, 0]);
        // The section's length is not known.
        to.extend_from_slice(&[0xff; 8]);
        option(to, 4, concat!("libvnf ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(to, 0, &[]);
    });
}

/// The next interface; the first one has number 0.
pub fn interface(to: &mut Vec<u8>, name: &str) {
    block(to, 1, |to| {
        to.extend_from_slice(&ETHERNET.to_le_bytes());
        // Reserved; whole frames.
        to.extend_from_slice(&[0; 6]);
        option(to, 2, &name.as_bytes()[..name.len().min(255)]);
        // if_tsresol: 10⁻⁹ s.
        option(to, 9, &[9]);
        option(to, 0, &[]);
    });
}

/// A frame of `len` bytes, which `write` appends.
pub fn packet(
    to: &mut Vec<u8>,
    interface: u32,
    at: Duration,
    direction: Direction,
    len: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let nanoseconds = at.as_nanos() as u64;
    block(to, 6, |to| {
        for field in [interface, (nanoseconds >> 32) as u32, nanoseconds as u32, len as u32, len as u32] {
            to.extend_from_slice(&field.to_le_bytes());
        }
        write(to);
        pad(to, len);
        option(to, 2, &(direction as u32).to_le_bytes());
        option(to, 0, &[]);
    });
}

/// Interface statistics: how many frames of it are in the file, and how many are missing (`isb_filteraccept`, `isb_osdrop`).
pub fn statistics(to: &mut Vec<u8>, interface: u32, at: Duration, written: u64, lost: u64) {
    let nanoseconds = at.as_nanos() as u64;
    block(to, 5, |to| {
        for field in [interface, (nanoseconds >> 32) as u32, nanoseconds as u32] {
            to.extend_from_slice(&field.to_le_bytes());
        }
        option(to, 6, &written.to_le_bytes());
        option(to, 7, &lost.to_le_bytes());
        option(to, 0, &[]);
    });
}

/// A file of records.
pub struct Sink {
    file: File,
    /// Where the last whole record ends.
    good: u64,
    /// A pipe has taken half a record: nothing after it could be read.
    broken: bool,
}

impl Sink {
    pub fn new(file: File) -> Self {
        Self { file, good: 0, broken: false }
    }

    /// Writes all of these records, or none.
    pub fn write(&mut self, records: &[u8]) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        match self.file.write_all(records) {
            Ok(()) => {
                self.good += records.len() as u64;
                Ok(())
            }
            Err(error) => {
                let back = self.file.set_len(self.good).and_then(|()| self.file.seek(SeekFrom::Start(self.good)));
                self.broken = back.is_err();
                Err(error)
            }
        }
    }
}
