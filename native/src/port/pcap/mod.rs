//! Captures as a port: frames come from one file and go to another.
//!
//! [`read`] and [`write`] know the formats. Files are read and written where the port is polled, which waits for the disk:
//! a replay is as fast as that. A capture of traffic that must not wait is `super::capture`'s.

pub mod read;
#[cfg(test)]
mod tests;
pub mod write;

use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::RawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::read::{Next, Reader};
use self::write::{Direction, Sink};
use super::counting::counters;
use super::lent::{BURST, Burst, Lent};
use super::{HEADER_BYTES, Link, Port, Sent};

/// Frames that wait for the flush.
const DEPTH: usize = 1024;

/// How fast a capture is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as frames are taken.
    Full,
    /// As their time stamps say.
    Recorded,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcapConfig {
    pub name: String,
    pub input: Option<PathBuf>,
    /// pcapng where its name ends so, else pcap.
    pub output: Option<PathBuf>,
    pub pace: Pace,
    /// From the beginning again at the end.
    pub repeat: bool,
    pub mtu: usize,
}

impl PcapConfig {
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), input: None, output: None, pace: Pace::Full, repeat: false, mtu: 9216 }
    }
}

counters! {
    rx_frames,
    rx_bytes,
    rx_too_long,
    rx_pool_dry,
    /// Frames without a byte.
    rx_empty,
    /// Frames of which the capture has only the beginning.
    rx_cut,
    /// Frames of another link type than Ethernet.
    rx_foreign,
    /// The file ended within a record.
    rx_truncated,
    /// The file could not be right: nothing behind that is read.
    rx_malformed,
    /// Times the capture was played to its end.
    plays,
    tx_frames,
    tx_bytes,
    tx_full,
    tx_too_long,
    tx_down,
    /// The file did not take them.
    tx_lost,
}

struct Input {
    path: PathBuf,
    reader: Reader<BufReader<File>>,
    /// The frame after those that were lent, and when it is due.
    ahead: Option<Instant>,
    ahead_bytes: Vec<u8>,
    /// A moment of the clock and the time stamp that belongs to it.
    begin: Option<(Instant, Duration)>,
    /// A frame came of it since it was begun.
    is_fruitful: bool,
    /// Why nothing more comes.
    over: Option<String>,
}

struct Output {
    path: PathBuf,
    sink: Sink,
    is_pcapng: bool,
    failed: Option<String>,
    records: Vec<u8>,
    frames: u64,
    bytes: u64,
}

pub struct Pcap {
    pace: Pace,
    repeat: bool,
    mtu: usize,
    input: Option<Input>,
    output: Option<Output>,
    /// Lent, the first `count` of them; the others are kept for their memory.
    lent: Vec<Vec<u8>>,
    count: usize,
    counters: Counters,
}

fn told(path: &Path, what: impl std::fmt::Display) -> String {
    format!("{}: {what}", path.display())
}

fn refused(path: &Path, error: &io::Error) -> io::Error {
    let text = error.to_string();
    io::Error::new(error.kind(), told(path, text.split(" (os error").next().unwrap_or_default()))
}

/// Files only: what may block is nothing to poll. Opening must not block either.
fn open(path: &Path, how: &mut std::fs::OpenOptions) -> io::Result<File> {
    let file = how.custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| refused(path, &error))?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, told(path, "is not a file")));
    }
    Ok(file)
}

/// Time stamps of what is written.
pub(super) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Input {
    fn new(path: &Path) -> io::Result<Self> {
        let reader = Self::read(open(path, File::options().read(true))?)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, told(path, why)))?;
        Ok(Self {
            path: path.into(),
            reader,
            ahead: None,
            ahead_bytes: Vec::new(),
            begin: None,
            is_fruitful: false,
            over: None,
        })
    }

    fn read(file: File) -> Result<Reader<BufReader<File>>, String> {
        Reader::new(BufReader::with_capacity(1 << 18, file))
    }

    /// From the beginning.
    fn again(&mut self) -> Result<(), String> {
        let file = open(&self.path, File::options().read(true)).map_err(|error| error.to_string())?;
        self.reader = Self::read(file)?;
        (self.begin, self.is_fruitful) = (None, false);
        Ok(())
    }

    /// Reads ahead, unless it has; a few records, or one [`Next::Nothing`], without a frame in them at most.
    fn look(&mut self, repeat: bool, longest: usize, counters: &mut Counters) {
        for _ in 0..BURST {
            if self.ahead.is_some() || self.over.is_some() {
                return;
            }
            match self.reader.next(&mut self.ahead_bytes) {
                Next::Frame(record) => {
                    let len = self.ahead_bytes.len();
                    if len == 0 {
                        counters.rx_empty += 1;
                    } else if len > longest {
                        counters.rx_too_long += 1;
                    } else {
                        counters.rx_cut += u64::from(len < record.original);
                        let (then, first) = *self.begin.get_or_insert_with(|| (Instant::now(), record.at));
                        // A time that no clock reaches is never due.
                        let due = then.checked_add(record.at.saturating_sub(first));
                        self.ahead = Some(due.unwrap_or(then + Duration::from_secs(u32::MAX.into())));
                        self.is_fruitful = true;
                    }
                }
                Next::Foreign => counters.rx_foreign += 1,
                Next::Nothing => return,
                Next::Malformed(why) => {
                    counters.rx_malformed += 1;
                    self.over = Some(told(&self.path, why));
                }
                end @ (Next::End | Next::Truncated) => {
                    counters.plays += 1;
                    counters.rx_truncated += u64::from(end == Next::Truncated);
                    if !repeat || !self.is_fruitful {
                        self.over = Some(told(&self.path, "played to its end"));
                    } else if let Err(why) = self.again() {
                        self.over = Some(told(&self.path, why));
                    }
                }
            }
        }
    }

    fn is_due(&self, pace: Pace) -> bool {
        match pace {
            Pace::Full => self.ahead.is_some(),
            Pace::Recorded => self.ahead.is_some_and(|due| due <= Instant::now()),
        }
    }
}

impl Output {
    fn new(path: &Path, name: &str) -> io::Result<Self> {
        let file = open(path, File::options().write(true).create(true).mode(0o600))?;
        file.set_len(0).map_err(|error| refused(path, &error))?;
        let is_pcapng = path.extension().is_some_and(|extension| extension == "pcapng");
        let mut header = Vec::new();
        if is_pcapng {
            write::section(&mut header);
            write::interface(&mut header, name);
        } else {
            header.extend(write::pcap_header());
        }
        let mut sink = Sink::new(file);
        sink.write(&header).map_err(|error| refused(path, &error))?;
        Ok(Self { path: path.into(), sink, is_pcapng, failed: None, records: Vec::new(), frames: 0, bytes: 0 })
    }

    fn flush(&mut self, counters: &mut Counters) {
        if self.frames == 0 {
            return;
        }
        let (frames, bytes) = (std::mem::take(&mut self.frames), std::mem::take(&mut self.bytes));
        match self.sink.write(&self.records) {
            Ok(()) => {
                counters.tx_frames += frames;
                counters.tx_bytes += bytes;
                self.failed = None;
            }
            Err(error) => {
                counters.tx_lost += frames;
                self.failed = Some(refused(&self.path, &error).to_string());
            }
        }
        self.records.clear();
    }
}

impl Pcap {
    pub fn new(config: PcapConfig) -> io::Result<Self> {
        let PcapConfig { name, input, output, pace, repeat, mtu } = config;
        if let (Some(input), Some(output)) = (&input, &output)
            && let (Ok(one), Ok(other)) = (input.metadata(), output.metadata())
            && (one.dev(), one.ino()) == (other.dev(), other.ino())
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, told(output, "is read already: write to another")));
        }
        let input = input.as_deref().map(Input::new).transpose()?;
        let output = output.as_deref().map(|path| Output::new(path, &name)).transpose()?;
        Ok(Self { pace, repeat, mtu, input, output, lent: Vec::new(), count: 0, counters: Counters::default() })
    }

    fn look(&mut self) {
        if let Some(input) = &mut self.input {
            input.look(self.repeat, self.mtu + HEADER_BYTES, &mut self.counters);
        }
    }

    fn is_due(&self) -> bool {
        self.input.as_ref().is_some_and(|input| input.is_due(self.pace))
    }
}

impl Port for Pcap {
    fn link(&self) -> Link {
        let failed = self.output.as_ref().and_then(|output| output.failed.clone());
        let over = self.input.as_ref().and_then(|input| input.over.clone());
        match failed.or(over.filter(|_| self.output.is_none() || self.counters.rx_malformed > 0)) {
            Some(why) => Link::Down(why),
            None => Link::Up,
        }
    }

    fn generation(&self) -> u64 {
        1
    }

    fn wake_fd(&self) -> RawFd {
        -1
    }

    fn service(&mut self, _now: Instant) {
        self.look();
    }

    fn deadline(&self) -> Option<Instant> {
        self.input.as_ref().filter(|_| self.pace == Pace::Recorded)?.ahead
    }

    fn lend(&mut self, max: usize) -> Burst<'_> {
        while self.count < max.min(BURST) {
            self.look();
            if !self.is_due() {
                break;
            }
            let Some(input) = &mut self.input else { break };
            if self.lent.len() == self.count {
                self.lent.push(Vec::new());
            }
            std::mem::swap(&mut self.lent[self.count], &mut input.ahead_bytes);
            input.ahead = None;
            self.count += 1;
        }
        let mut burst = Burst::EMPTY;
        self.lent[..self.count].iter().for_each(|frame| burst.push(Lent::of(frame)));
        burst
    }

    fn give_back(&mut self, dropped: usize) {
        let count = std::mem::take(&mut self.count);
        self.counters.rx_frames += (count - dropped) as u64;
        self.counters.rx_pool_dry += dropped as u64;
        self.counters.rx_bytes += self.lent[..count].iter().map(|frame| frame.len() as u64).sum::<u64>();
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let Some(output) = &mut self.output else {
            self.counters.tx_down += 1;
            return Sent::Down;
        };
        if len == 0 || len > self.mtu + HEADER_BYTES {
            self.counters.tx_too_long += 1;
            return Sent::TooLong;
        }
        if output.frames as usize >= DEPTH {
            self.counters.tx_full += 1;
            return Sent::Full;
        }
        if output.is_pcapng {
            write::packet(&mut output.records, 0, since_1970(), Direction::Out, len, |to| {
                parts.iter().for_each(|part| to.extend_from_slice(part));
            });
        } else {
            write::pcap_record(&mut output.records, since_1970(), parts);
        }
        output.frames += 1;
        output.bytes += len as u64;
        Sent::Queued
    }

    fn room(&mut self) -> usize {
        self.output.as_ref().map_or(usize::MAX, |output| DEPTH - output.frames as usize)
    }

    fn flush(&mut self) {
        if let Some(output) = &mut self.output {
            output.flush(&mut self.counters);
        }
    }

    fn arm(&mut self) -> bool {
        self.look();
        // What was looked at in vain may not be all there is.
        let is_known = self.input.as_ref().is_none_or(|input| input.ahead.is_some() || input.over.is_some());
        is_known && !self.is_due()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.list()
    }
}

impl Drop for Pcap {
    fn drop(&mut self) {
        self.flush();
    }
}
