//! What comes and goes by any port, written as pcapng (draft-ietf-opsawg-pcapng): one file for any number of ports, each
//! an interface of its name, each frame with its direction and the time in nanoseconds.
//!
//! Traffic never waits for the file. A thread writes; what it has not written yet is bounded, and beyond that frames are
//! counted as lost, as they are while the disk is full. The file has whole blocks at every moment, and at its end what is
//! missing from it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::lent::{Burst, Lent};
use super::pcap::since_1970;
use super::pcap::write::{self, Direction, Sink};
use super::{Link, Port, Sent};
use crate::packet::ethernet::Mac;
use crate::packet::{Pool, Slot};

/// Bytes that may wait for the thread; it has as many in its hands.
const WAITING: usize = 8 << 20;
/// Bytes that a port collects before it hands them over, though its batch goes on.
const CHUNK: usize = 64 << 10;
/// How long the end waits for what is left to be written.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    /// Interfaces that the thread has not described yet.
    interfaces: Vec<u8>,
    blocks: Vec<u8>,
    /// Of each interface: frames in `blocks`, in the file, and neither.
    waiting: Vec<u64>,
    written: Vec<u64>,
    lost: Vec<u64>,
    failed: Option<String>,
    is_closing: bool,
    is_over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
    over: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn write(&self, mut sink: Sink) {
        let (mut interfaces, mut blocks) = (Vec::new(), Vec::new());
        loop {
            let mut state = self.state();
            while state.blocks.is_empty() && state.interfaces.is_empty() && !state.is_closing {
                state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            interfaces.append(&mut state.interfaces);
            std::mem::swap(&mut blocks, &mut state.blocks);
            let none = vec![0; state.waiting.len()];
            let (waiting, is_closing) = (std::mem::replace(&mut state.waiting, none), state.is_closing);
            drop(state);
            // Nothing may stand in the file before what describes its interface.
            let done = sink.write(&interfaces).and_then(|()| {
                interfaces.clear();
                sink.write(&blocks)
            });
            blocks.clear();
            let mut state = self.state();
            let State { written, lost, .. } = &mut *state;
            let to = if done.is_ok() { written } else { lost };
            to.iter_mut().zip(waiting).for_each(|(sum, frames)| *sum += frames);
            state.failed = done.err().map(|error| error.to_string());
            if is_closing && state.blocks.is_empty() {
                let now = since_1970();
                for (interface, (written, lost)) in (0..).zip(state.written.iter().zip(&state.lost)) {
                    write::statistics(&mut blocks, interface, now, *written, *lost);
                }
                drop(state);
                if interfaces.is_empty() {
                    // A disk that is full has no room for this either.
                    drop(sink.write(&blocks));
                }
                self.state().is_over = true;
                self.over.notify_all();
                return;
            }
        }
    }
}

/// The file. Clones share it; it is complete when the last one, and the last port that writes to it, is gone.
#[derive(Clone)]
pub struct CaptureWriter(Arc<Handle>);

struct Handle(Arc<Shared>);

impl CaptureWriter {
    /// A new file, or a pipe that somebody reads already. The error names neither.
    pub fn create(path: &Path) -> io::Result<Self> {
        // Opening a pipe that nobody reads must not wait; writing to one may, for only the thread does.
        let mut options = File::options();
        options.write(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENXIO) => io::Error::new(error.kind(), "a pipe that nobody reads"),
            _ => error,
        })?;
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        // SAFETY: a flag of a descriptor that is ours.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut begin = Vec::new();
        write::section(&mut begin);
        let mut sink = Sink::new(file);
        sink.write(&begin)?;
        let shared = Arc::new(Shared::default());
        let writer = shared.clone();
        std::thread::Builder::new().name("capture".into()).spawn(move || writer.write(sink))?;
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// Why the last frames were not written; none while they are.
    pub fn failure(&self) -> Option<String> {
        self.0.0.state().failed.clone()
    }

    fn add(&self, name: &str) -> u32 {
        let mut state = self.0.0.state();
        write::interface(&mut state.interfaces, name);
        state.waiting.push(0);
        state.written.push(0);
        state.lost.push(0);
        self.0.0.news.notify_one();
        state.waiting.len() as u32 - 1
    }

    /// `frames` of one interface.
    fn push(&self, interface: u32, blocks: &[u8], frames: u64) {
        let mut state = self.0.0.state();
        if state.blocks.len() + blocks.len() > WAITING {
            state.lost[interface as usize] += frames;
            return;
        }
        let is_idle = state.blocks.is_empty();
        state.blocks.extend_from_slice(blocks);
        state.waiting[interface as usize] += frames;
        drop(state);
        if is_idle {
            self.0.0.news.notify_one();
        }
    }

    fn counts(&self, interface: u32) -> (u64, u64) {
        let state = self.0.0.state();
        (state.written[interface as usize], state.lost[interface as usize])
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_closing = true;
        self.0.news.notify_one();
        let until = Instant::now() + FAREWELL;
        // A file that takes nothing any more keeps its thread, not us.
        while !state.is_over
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            state = self.0.over.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The same port, whose frames are written as well: received ones when they are taken, sent ones when they are queued.
/// Its counters are joined by `capture_frames` and `capture_lost`.
pub fn capture(port: Box<dyn Port>, name: &str, writer: &CaptureWriter) -> Box<dyn Port> {
    let recorder = Recorder { interface: writer.add(name), writer: writer.clone(), blocks: Vec::new(), frames: 0 };
    Box::new(Capture { port, recorder })
}

struct Recorder {
    writer: CaptureWriter,
    interface: u32,
    blocks: Vec<u8>,
    frames: u64,
}

impl Recorder {
    fn record(&mut self, at: Duration, direction: Direction, len: usize, write: impl FnOnce(&mut Vec<u8>)) {
        write::packet(&mut self.blocks, self.interface, at, direction, len, write);
        self.frames += 1;
        if self.blocks.len() >= CHUNK {
            self.hand_over();
        }
    }

    fn lent(&mut self, at: Duration, direction: Direction, head: &[u8], rest: Lent<'_>) {
        self.record(at, direction, head.len() + rest.len(), |to| {
            to.extend_from_slice(head);
            let start = to.len();
            to.resize(start + rest.len(), 0);
            rest.copy_to(0, &mut to[start..]);
        });
    }

    fn hand_over(&mut self) {
        if self.frames > 0 {
            self.writer.push(self.interface, &self.blocks, std::mem::take(&mut self.frames));
            self.blocks.clear();
        }
    }
}

struct Capture {
    port: Box<dyn Port>,
    recorder: Recorder,
}

impl Port for Capture {
    fn link(&self) -> Link {
        self.port.link()
    }

    fn peer(&self) -> Option<String> {
        self.port.peer()
    }

    fn generation(&self) -> u64 {
        self.port.generation()
    }

    fn wake_fd(&self) -> RawFd {
        self.port.wake_fd()
    }

    fn service(&mut self, now: Instant) {
        self.port.service(now);
    }

    fn deadline(&self) -> Option<Instant> {
        self.port.deadline()
    }

    fn mac(&self) -> Option<Mac> {
        self.port.mac()
    }

    fn mtu(&self) -> Option<usize> {
        self.port.mtu()
    }

    fn receive(&mut self, pool: &Pool, frames: &mut Vec<Slot>, max: usize) -> usize {
        let before = frames.len();
        let taken = self.port.receive(pool, frames, max);
        if taken > 0 {
            let now = since_1970();
            for frame in &frames[before..] {
                self.recorder.record(now, Direction::In, frame.len(), |to| to.extend_from_slice(frame));
            }
            self.recorder.hand_over();
        }
        taken
    }

    fn lend(&mut self, max: usize) -> Burst<'_> {
        let burst = self.port.lend(max);
        if !burst.is_empty() {
            let now = since_1970();
            burst.iter().for_each(|frame| self.recorder.lent(now, Direction::In, &[], *frame));
            self.recorder.hand_over();
        }
        burst
    }

    fn give_back(&mut self, dropped: usize) {
        self.port.give_back(dropped);
    }

    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        let sent = self.port.send(parts);
        if sent == Sent::Queued {
            let len = parts.iter().map(|part| part.len()).sum();
            self.recorder.record(since_1970(), Direction::Out, len, |to| {
                parts.iter().for_each(|part| to.extend_from_slice(part));
            });
        }
        sent
    }

    fn send_lent(&mut self, head: &[u8], rest: Lent<'_>) -> Sent {
        let sent = self.port.send_lent(head, rest);
        if sent == Sent::Queued {
            self.recorder.lent(since_1970(), Direction::Out, head, rest);
        }
        sent
    }

    fn room(&mut self) -> usize {
        self.port.room()
    }

    fn flush(&mut self) {
        self.recorder.hand_over();
        self.port.flush();
    }

    fn hand_over(&mut self) {
        self.port.hand_over();
    }

    fn arm(&mut self) -> bool {
        self.port.arm()
    }

    fn disarm(&mut self) {
        self.port.disarm();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let (written, lost) = self.recorder.writer.counts(self.recorder.interface);
        let mut counters = self.port.counters();
        counters.extend([("capture_frames", written), ("capture_lost", lost)]);
        counters
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.recorder.hand_over();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::port::pair::pair;
    use crate::port::pcap::read::{Next, Reader};

    fn fresh(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("libvnf-capture-{}-{name}.pcapng", std::process::id()))
    }

    /// The frames of a file that has nothing else wrong with it, taken away.
    fn frames(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        let mut reader = Reader::new(&bytes[..]).unwrap();
        let (mut found, mut frame) = (Vec::new(), Vec::new());
        loop {
            match reader.next(&mut frame) {
                Next::Frame(_) => found.push(frame.clone()),
                end => {
                    assert_eq!(end, Next::End);
                    return found;
                }
            }
        }
    }

    fn counter(port: &dyn Port, name: &str) -> u64 {
        port.counters().into_iter().find(|(found, _)| *found == name).unwrap().1
    }

    #[test]
    fn all_that_comes_and_goes_by_two_ports_is_in_one_file() {
        let path = fresh("two");
        let writer = CaptureWriter::create(&path).unwrap();
        let (near, mut far) = pair(1500, 8);
        let (other, _kept) = pair(1500, 8);
        let mut near = capture(Box::new(near), "near", &writer);
        let mut other = capture(Box::new(other), "other", &writer);
        drop(writer);
        assert_eq!(near.send(&[b"a", b" question"]), Sent::Queued);
        near.flush();
        let lent = far.lend(8);
        assert_eq!(other.send_lent(b"passed on: ", lent[0]), Sent::Queued);
        far.give_back(0);
        other.flush();
        far.send(&[b"an answer"]);
        far.flush();
        assert_eq!(near.lend(8).len(), 1);
        near.give_back(0);
        assert_eq!(near.send(&[&[0; 2000]]), Sent::TooLong);
        drop((near, other));
        let texts: [&[u8]; 3] = [b"a question", b"passed on: a question", b"an answer"];
        assert_eq!(frames(&path), texts);
    }

    #[test]
    fn what_is_taken_into_the_pool_is_written_as_well() {
        let path = fresh("pool");
        let pool = Pool::new(&crate::packet::PoolConfig { classes: vec![(64, 1)] }).unwrap();
        let (near, mut far) = pair(1500, 8);
        let mut near = capture(Box::new(near), "near", &CaptureWriter::create(&path).unwrap());
        far.send(&[b"fits"]);
        far.send(&[b"finds no slot"]);
        far.flush();
        let mut slots = Vec::new();
        assert_eq!(near.receive(&pool, &mut slots, 8), 2);
        assert_eq!((slots.len(), counter(near.as_ref(), "rx_pool_dry")), (1, 1));
        drop(near);
        // A port that copies by `lend` is written before it is known that there is no slot.
        assert_eq!(frames(&path)[0], b"fits");
    }

    #[test]
    fn a_file_that_takes_nothing_costs_frames_and_is_told_while_traffic_goes_on() {
        let writer = CaptureWriter::create(Path::new("/dev/full"));
        assert_eq!(writer.err().unwrap().raw_os_error(), Some(libc::ENOSPC));
        // A pipe whose reader never reads: the thread waits, and nobody else does.
        let (reader, pipe) = std::io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        let writer = CaptureWriter::create(Path::new(&path)).unwrap();
        let (near, mut far) = pair(9000, 4096);
        let mut near = capture(Box::new(near), "near", &writer);
        let frame = [0; 9000];
        for _ in 0..4096 {
            assert_eq!(near.send(&[&frame]), Sent::Queued);
            near.flush();
        }
        assert!(counter(near.as_ref(), "capture_lost") > 1000);
        let mut passed = 0;
        while !far.lend(32).is_empty() {
            far.give_back(0);
            passed += 1;
        }
        far.give_back(0);
        assert_eq!(passed, 4096 / 32);
        // The reader goes away: writing fails, the thread can end.
        drop((reader, pipe));
        drop((near, writer));
    }

    #[test]
    fn a_pipe_that_nobody_reads_and_a_directory_are_refused() {
        assert!(CaptureWriter::create(&std::env::temp_dir()).is_err());
        let path = std::ffi::CString::new(fresh("fifo").to_str().unwrap()).unwrap();
        // SAFETY: a path with its NUL.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let refusal = CaptureWriter::create(&fresh("fifo")).err().unwrap();
        fs::remove_file(fresh("fifo")).unwrap();
        assert_eq!(refusal.to_string(), "a pipe that nobody reads");
    }
}
