//! Captures, read record by record: pcap (draft-ietf-opsawg-pcap, in micro- and nanoseconds, either byte order) and pcapng
//! (draft-ietf-opsawg-pcapng). A file may say anything: no length is believed beyond what is bounded here, and no byte is
//! read twice.

use std::io::{self, Read};
use std::time::Duration;

/// What tcpdump captures at most of one packet; no record is longer.
pub const LONGEST_RECORD: usize = 262_144;
/// Interfaces of one section.
const MOST_INTERFACES: usize = 65_536;
/// The body of a block that is read for its options.
const LONGEST_HEADER: usize = 65_536;
/// Of the registry of link types: the only one that has frames for us.
const ETHERNET: u32 = 1;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_OFFSET: u16 = 14;

/// One frame as it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Since 1970, or since whatever the file means.
    pub at: Duration,
    /// Bytes that it had on the wire; more than were captured of one that was cut.
    pub original: usize,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Its bytes are in the buffer.
    Frame(Record),
    /// A frame of another link type than Ethernet.
    Foreign,
    /// Much that has no frame; there may be one behind it.
    Nothing,
    End,
    /// The file ends within a record.
    Truncated,
    /// The file cannot be right, at which byte and why.
    Malformed(String),
}

/// Bytes that are read at once in search of a frame: a file of nothing else must not hold whoever reads it.
const AT_ONCE: u64 = 1 << 20;
/// A block that is longer is not skipped, as tshark does not: a sparse file has terabytes of them.
const LONGEST_BLOCK: u32 = 16 << 20;

enum Stop {
    End,
    Truncated,
    Malformed(String),
}

impl From<Stop> for Next {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::End => Self::End,
            Stop::Truncated => Self::Truncated,
            Stop::Malformed(why) => Self::Malformed(why),
        }
    }
}

#[derive(Clone, Copy)]
struct Order {
    is_big: bool,
}

impl Order {
    fn u16(self, bytes: &[u8], at: usize) -> u16 {
        let bytes = [bytes[at], bytes[at + 1]];
        if self.is_big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn u32(self, bytes: &[u8], at: usize) -> u32 {
        let bytes = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        if self.is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }
}

/// An interface that a pcapng section describes.
#[derive(Clone, Copy)]
struct Interface {
    is_ethernet: bool,
    /// 0: no limit.
    snap: u32,
    /// `if_tsresol`: the negative power of 10, or of 2 where the highest bit is set.
    resolution: u8,
    offset_s: u64,
}

impl Interface {
    /// Ticks as time; what no clock of 64 bits of nanoseconds shows is its last moment.
    fn time(&self, high: u32, low: u32) -> Duration {
        let ticks = u128::from(high) << 32 | u128::from(low);
        let exponent = u32::from(self.resolution & 0x7f);
        let nanoseconds = if self.resolution & 0x80 != 0 {
            (ticks * 1_000_000_000) >> exponent
        } else {
            10u128.checked_pow(exponent).map_or(0, |per_second| ticks * 1_000_000_000 / per_second)
        };
        let since = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        since.saturating_add(Duration::from_secs(self.offset_s))
    }
}

enum Format {
    Pcap { nanoseconds: bool },
    Pcapng { interfaces: Vec<Interface>, last: Duration },
}

pub struct Reader<R> {
    source: R,
    offset: u64,
    order: Order,
    format: Format,
}

/// What a file that begins so is instead of a capture.
fn no_capture(magic: [u8; 4]) -> String {
    match magic {
        [0x1f, 0x8b, ..] => "is compressed: unpack it first (gunzip)".into(),
        [0x28, 0xb5, 0x2f, 0xfd] => "is compressed: unpack it first (zstd -d)".into(),
        other => format!("is no capture: begins with {other:02x?}, neither pcap nor pcapng"),
    }
}

impl<R: Read> Reader<R> {
    /// Reads the header of the file; why it is no capture of Ethernet.
    pub fn new(source: R) -> Result<Self, String> {
        let format = Format::Pcap { nanoseconds: false };
        let mut reader = Self { source, offset: 0, order: Order { is_big: false }, format };
        reader.header().map_err(|stop| match stop {
            Stop::End => "is empty".into(),
            Stop::Truncated => format!("ends after {} bytes, within its header", reader.offset),
            Stop::Malformed(why) => why,
        })?;
        Ok(reader)
    }

    fn header(&mut self) -> Result<(), Stop> {
        let mut magic = [0; 4];
        self.fill(&mut magic, true)?;
        if u32::from_be_bytes(magic) == SECTION_HEADER {
            self.format = Format::Pcapng { interfaces: Vec::new(), last: Duration::ZERO };
            return self.section();
        }
        let (is_big, nanoseconds) = match u32::from_be_bytes(magic) {
            0xa1b2_c3d4 => (true, false),
            0xd4c3_b2a1 => (false, false),
            0xa1b2_3c4d => (true, true),
            0x4d3c_b2a1 => (false, true),
            _ => return Err(Stop::Malformed(no_capture(magic))),
        };
        (self.order, self.format) = (Order { is_big }, Format::Pcap { nanoseconds });
        let mut rest = [0; 20];
        self.fill(&mut rest, false)?;
        let version = self.order.u16(&rest, 0);
        if version != 2 {
            return Err(Stop::Malformed(format!("is pcap of version {version}, version 2 wanted")));
        }
        // The bits above are the length of the frame check sequence and its like.
        match self.order.u32(&rest, 16) & 0x03ff_ffff {
            ETHERNET => Ok(()),
            other => Err(Stop::Malformed(format!("has link type {other}, only Ethernet (1) is supported"))),
        }
    }

    /// Fills `to`. The file may end before its first byte where `may_end`.
    fn fill(&mut self, to: &mut [u8], may_end: bool) -> Result<(), Stop> {
        let mut filled = 0;
        while filled < to.len() {
            match self.source.read(&mut to[filled..]) {
                Ok(0) if filled == 0 && may_end => return Err(Stop::End),
                Ok(0) => return Err(Stop::Truncated),
                Ok(count) => {
                    filled += count;
                    self.offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Stop::Malformed(format!("cannot be read at byte {}: {error}", self.offset))),
            }
        }
        Ok(())
    }

    fn skip(&mut self, count: u64) -> Result<(), Stop> {
        let mut scratch = [0; 4096];
        let mut left = count;
        while left > 0 {
            let piece = left.min(scratch.len() as u64) as usize;
            self.fill(&mut scratch[..piece], false)?;
            left -= piece as u64;
        }
        Ok(())
    }

    fn wrong<T>(&self, back: usize, what: impl std::fmt::Display) -> Result<T, Stop> {
        Err(Stop::Malformed(format!("at byte {}: {what}", self.offset - back as u64)))
    }

    /// The next frame, into `frame`.
    pub fn next(&mut self, frame: &mut Vec<u8>) -> Next {
        frame.clear();
        let next = match self.format {
            Format::Pcap { nanoseconds } => self.record(nanoseconds, frame),
            Format::Pcapng { .. } => self.block(frame),
        };
        next.unwrap_or_else(Next::from)
    }

    fn record(&mut self, nanoseconds: bool, frame: &mut Vec<u8>) -> Result<Next, Stop> {
        let mut header = [0; 16];
        self.fill(&mut header, true)?;
        let [seconds, fraction, captured, original] = [0, 4, 8, 12].map(|at| self.order.u32(&header, at));
        let nanoseconds = u64::from(fraction) * if nanoseconds { 1 } else { 1000 };
        let at = Duration::from_secs(seconds.into()).saturating_add(Duration::from_nanos(nanoseconds));
        self.take(captured, 16, frame)?;
        Ok(Next::Frame(Record { at, original: original as usize }))
    }

    /// The bytes of a frame, whose header of `header` bytes was just read.
    fn take(&mut self, captured: u32, header: usize, frame: &mut Vec<u8>) -> Result<(), Stop> {
        if captured as usize > LONGEST_RECORD {
            return self.wrong(header, format_args!("a record of {captured} bytes, more than {LONGEST_RECORD}"));
        }
        frame.resize(captured as usize, 0);
        self.fill(frame, false)
    }

    /// The rest of a section header, behind its type.
    fn section(&mut self) -> Result<(), Stop> {
        let mut rest = [0; 12];
        self.fill(&mut rest, false)?;
        let Some(is_big) =
            [true, false].into_iter().find(|is_big| Order { is_big: *is_big }.u32(&rest, 4) == BYTE_ORDER)
        else {
            return self.wrong(16, "a section of no known byte order");
        };
        self.order = Order { is_big };
        let (total, version) = (self.order.u32(&rest, 0), self.order.u16(&rest, 8));
        if version != 1 {
            return self.wrong(16, format_args!("a section of version {version}, version 1 wanted"));
        }
        if !(28..=LONGEST_BLOCK).contains(&total) || !total.is_multiple_of(4) {
            return self.wrong(16, format_args!("a section header of {total} bytes"));
        }
        let last = if let Format::Pcapng { last, .. } = self.format { last } else { Duration::ZERO };
        self.format = Format::Pcapng { interfaces: Vec::new(), last };
        self.skip(u64::from(total) - 16)
    }

    /// Blocks up to the next one that has a frame.
    fn block(&mut self, frame: &mut Vec<u8>) -> Result<Next, Stop> {
        let until = self.offset + AT_ONCE;
        while self.offset < until {
            let mut kind = [0; 4];
            self.fill(&mut kind, true)?;
            let kind = self.order.u32(&kind, 0);
            if kind == SECTION_HEADER {
                self.section()?;
                continue;
            }
            let mut total = [0; 4];
            self.fill(&mut total, false)?;
            let total = self.order.u32(&total, 0);
            if !(12..=LONGEST_BLOCK).contains(&total) || !total.is_multiple_of(4) {
                return self.wrong(8, format_args!("a block of {total} bytes"));
            }
            let body = total - 12;
            let found = match kind {
                INTERFACE => self.interface(body).map(|()| None)?,
                ENHANCED_PACKET | OBSOLETE_PACKET => Some(self.packet(kind, body, frame)?),
                SIMPLE_PACKET => Some(self.simple_packet(body, frame)?),
                _ => self.skip(body.into()).map(|()| None)?,
            };
            let mut again = [0; 4];
            self.fill(&mut again, false)?;
            if self.order.u32(&again, 0) != total {
                return self.wrong(4, format_args!("a block of {total} bytes that ends with another length"));
            }
            if let Some(next) = found {
                return Ok(next);
            }
        }
        Ok(Next::Nothing)
    }

    fn interface(&mut self, body: u32) -> Result<(), Stop> {
        if !(8..=LONGEST_HEADER as u32).contains(&body) {
            return self.wrong(8, format_args!("an interface of {body} bytes"));
        }
        let mut bytes = vec![0; body as usize];
        self.fill(&mut bytes, false)?;
        let order = self.order;
        let is_ethernet = u32::from(order.u16(&bytes, 0)) == ETHERNET;
        let mut interface = Interface { is_ethernet, snap: order.u32(&bytes, 4), resolution: 6, offset_s: 0 };
        let mut options = &bytes[8..];
        while options.len() >= 4 {
            let (code, len) = (order.u16(options, 0), usize::from(order.u16(options, 2)));
            let Some(value) = options.get(4..4 + len) else { break };
            match (code, len) {
                (0, _) => break,
                (OPTION_RESOLUTION, 1) => interface.resolution = value[0],
                (OPTION_OFFSET, 8) => {
                    let (high, low) = if order.is_big { (0, 4) } else { (4, 0) };
                    let offset = i64::from(order.u32(value, high)) << 32 | i64::from(order.u32(value, low));
                    interface.offset_s = offset.max(0) as u64;
                }
                _ => {}
            }
            options = options.get(4 + len.next_multiple_of(4)..).unwrap_or_default();
        }
        if let Format::Pcapng { interfaces, .. } = &mut self.format {
            if interfaces.len() >= MOST_INTERFACES {
                return self.wrong(body as usize, format_args!("more than {MOST_INTERFACES} interfaces"));
            }
            interfaces.push(interface);
        }
        Ok(())
    }

    fn described(&self, index: u32) -> Result<Interface, Stop> {
        let Format::Pcapng { interfaces, .. } = &self.format else { return self.wrong(0, "a block in a file without") };
        match interfaces.get(index as usize) {
            Some(interface) => Ok(*interface),
            None => self.wrong(8, format_args!("a frame of interface {index}, of {} described", interfaces.len())),
        }
    }

    fn packet(&mut self, kind: u32, body: u32, frame: &mut Vec<u8>) -> Result<Next, Stop> {
        const HEADER: u32 = 20;
        if body < HEADER {
            return self.wrong(8, format_args!("a frame's block of {body} bytes"));
        }
        let mut header = [0; HEADER as usize];
        self.fill(&mut header, false)?;
        let order = self.order;
        let index = if kind == OBSOLETE_PACKET { order.u16(&header, 0).into() } else { order.u32(&header, 0) };
        let [high, low, captured, original] = [4, 8, 12, 16].map(|at| order.u32(&header, at));
        let interface = self.described(index)?;
        if captured > body - HEADER {
            return self.wrong(HEADER as usize, format_args!("{captured} bytes in a block of {body}"));
        }
        let at = interface.time(high, low);
        if let Format::Pcapng { last, .. } = &mut self.format {
            *last = at;
        }
        self.framed(interface, captured, body - HEADER, Record { at, original: original as usize }, frame)
    }

    /// A frame without a time stamp: it came with the one before.
    fn simple_packet(&mut self, body: u32, frame: &mut Vec<u8>) -> Result<Next, Stop> {
        if body < 4 {
            return self.wrong(8, format_args!("a frame's block of {body} bytes"));
        }
        let mut original = [0; 4];
        self.fill(&mut original, false)?;
        let original = self.order.u32(&original, 0);
        let interface = self.described(0)?;
        let snap = if interface.snap == 0 { u32::MAX } else { interface.snap };
        let captured = original.min(snap).min(body - 4);
        let at = if let Format::Pcapng { last, .. } = self.format { last } else { Duration::ZERO };
        self.framed(interface, captured, body - 4, Record { at, original: original as usize }, frame)
    }

    /// `captured` of the `left` bytes of a block are the frame.
    fn framed(
        &mut self,
        interface: Interface,
        captured: u32,
        left: u32,
        record: Record,
        frame: &mut Vec<u8>,
    ) -> Result<Next, Stop> {
        if left as usize > LONGEST_RECORD + LONGEST_HEADER {
            return self.wrong(8, format_args!("a frame's block of {left} bytes"));
        }
        if !interface.is_ethernet {
            self.skip(left.into())?;
            return Ok(Next::Foreign);
        }
        self.take(captured, 8, frame)?;
        self.skip(u64::from(left - captured))?;
        Ok(Next::Frame(record))
    }
}
