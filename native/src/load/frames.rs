//! Frames at full speed: a generator and sink on one port or two, for what forwards, filters or answers between them.
//!
//! One thread sends a template, in which four bytes count the flows, and counts what comes back as expected: by default
//! with the template's EtherType. It looks at the first bytes of each frame, so that those cross to its cpu as they would
//! for any receiver. On one port it expects an echo; of two the first sends and the second receives, or both do both.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::options::{parse_port, seconds};
use super::{LoadError, sys};
use crate::packet::checksum::{self, Sum};
use crate::port::lent::{BURST, LONGEST, Lent};
use crate::port::{self, Link, Port, Sent};

/// Bytes of a frame that are written anew for each; the rest is the template's.
const HEAD: usize = 64;
/// An Ethernet header and at least one byte.
const SHORTEST: usize = 15;
/// Ports are serviced, and the clock is read, once in so many turns.
const TURNS_PER_LOOK: u32 = 16;
const TICK: Duration = Duration::from_millis(100);
/// After the last frame was sent, the silence that means that what is missing is lost.
const SILENCE: Duration = Duration::from_millis(500);

/// One run as options: the keys of `generate_frames`' dictionary.
#[derive(Clone, Debug, PartialEq)]
pub struct FrameOptions {
    /// One or two, such as `memif:PATH,role=client`.
    pub ports: Vec<String>,
    /// The template. `None`: Ethernet, IPv4 and UDP from 10.0.0.0 on to 192.0.2.1, `size` bytes in all.
    pub frame: Option<Vec<u8>>,
    pub size: usize,
    pub flows: u32,
    /// Where the number of the flow is added to a 32-bit field: the IPv4 source, an F-TEID …
    pub vary_at: usize,
    /// Internet checksums that cover that field; one that is 0 stays 0.
    pub checksums_at: Vec<usize>,
    /// What a frame must be to count as received, but for what varies between flows. `None`: of the template's EtherType.
    pub expect: Option<Vec<u8>>,
    pub both_ways: bool,
    /// The most frames under way at a time; one that is lost is under way for ever. `None`: any number.
    pub outstanding: Option<u64>,
    /// Frames per second, over all ports. `None`: as many as there is room for.
    pub rate: Option<f64>,
    pub duration_s: f64,
    pub warmup_s: f64,
    /// How long a port may be without a peer at the beginning.
    pub timeout_s: f64,
    pub cpu: Option<usize>,
}

impl Default for FrameOptions {
    fn default() -> Self {
        Self {
            ports: Vec::new(),
            frame: None,
            size: 60,
            flows: 1,
            vary_at: 26,
            checksums_at: vec![24, 40],
            expect: None,
            both_ways: false,
            outstanding: None,
            rate: None,
            duration_s: 1.0,
            warmup_s: 0.3,
            timeout_s: 5.0,
            cpu: None,
        }
    }
}

/// What a run found. `rate` and `sent_rate` are of the time after the warm-up, all counts of the whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrameReport {
    pub seconds: f64,
    pub rate: f64,
    pub sent_rate: f64,
    pub sent: u64,
    pub received: u64,
    pub received_bytes: u64,
    /// Frames that are not as expected.
    pub other: u64,
    pub counters: Vec<Vec<(&'static str, u64)>>,
}

fn refuse<T>(message: impl Into<String>) -> Result<T, LoadError> {
    Err(LoadError::Config(message.into()))
}

/// Ethernet, IPv4 and UDP, `size` bytes in all, to TEST-NET-1 (RFC 5737) and the port "discard" (RFC 863).
pub fn datagram(size: usize) -> Result<Vec<u8>, LoadError> {
    const HEADERS: usize = 14 + 20 + 8;
    if !(HEADERS..=LONGEST).contains(&size) {
        return refuse(format!("size {size}: expected {HEADERS} to {LONGEST} bytes"));
    }
    let (source, destination) = (Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(192, 0, 2, 1));
    let [ip_bytes, udp_bytes] = [14, 34].map(|headers| (size - headers) as u16);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    // RFC 791 §3.1: don't fragment, time to live 64, protocol 17.
    let [high, low] = ip_bytes.to_be_bytes();
    frame.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(source.octets().into_iter().chain(destination.octets()));
    let [high, low] = udp_bytes.to_be_bytes();
    frame.extend([4, 0, 0, 9, high, low, 0, 0]);
    frame.resize(size, 0);
    let ip = Sum::ZERO.bytes(&frame[14..34]).finish();
    let udp = checksum::pseudo_v4(source, destination, 17).word(udp_bytes).bytes(&frame[34..]).finish();
    frame[24..26].copy_from_slice(&ip.to_be_bytes());
    // RFC 768: a checksum of 0 means none.
    frame[40..42].copy_from_slice(&if udp == 0 { u16::MAX } else { udp }.to_be_bytes());
    Ok(frame)
}

/// The template and how flows differ.
struct Flows {
    heads: Vec<Vec<u8>>,
    rest: Vec<u8>,
    first: u32,
    count: u32,
    next: u32,
    vary_at: usize,
    /// Where, and the checksum's sum without the varying field.
    checksums: Vec<(usize, u32)>,
    expected: Option<Vec<u8>>,
}

impl Flows {
    fn new(options: &FrameOptions) -> Result<Self, LoadError> {
        let frame = options.frame.clone().map_or_else(|| datagram(options.size), Ok)?;
        if !(SHORTEST..=LONGEST).contains(&frame.len()) {
            return refuse(format!("a frame of {} bytes: expected {SHORTEST} to {LONGEST}", frame.len()));
        }
        let mut head = frame[..frame.len().min(HEAD)].to_vec();
        let within = |at: usize, bytes: usize| at.checked_add(bytes).is_some_and(|end| end <= head.len());
        if options.flows == 0 {
            return refuse("flows 0: expected 1 or more");
        }
        let (varies, mut checksums, mut first) = (options.flows > 1, Vec::new(), 0);
        if varies {
            let vary_at = options.vary_at;
            if !within(vary_at, 4) || !vary_at.is_multiple_of(2) {
                return refuse(format!(
                    "vary_at {vary_at}: expected an even offset of four bytes in the first {}",
                    head.len()
                ));
            }
            let field: [u8; 4] = std::array::from_fn(|byte| head[vary_at + byte]);
            first = u32::from_be_bytes(field);
            for &at in &options.checksums_at {
                if !within(at, 2) {
                    return refuse(format!("checksums_at {at}: expected two bytes in the first {}", head.len()));
                }
                let found = u16::from_be_bytes([head[at], head[at + 1]]);
                if found != 0 {
                    // RFC 1624 §3: HC' = ~(~HC + ~m + m'); here ~HC + ~m.
                    let sum = u32::from(!found) + u32::from(!(first >> 16) as u16) + u32::from(!first as u16);
                    checksums.push((at, sum));
                }
            }
        }
        let rest = frame[head.len()..].to_vec();
        head.truncate(HEAD);
        let (count, expected) = (if varies { options.flows } else { 0 }, options.expect.clone());
        Ok(Self {
            heads: vec![head; BURST],
            rest,
            first,
            count,
            next: 0,
            vary_at: options.vary_at,
            checksums,
            expected,
        })
    }

    /// Whether this is what we wait for.
    #[inline]
    fn expects(&self, frame: Lent<'_>) -> bool {
        let Some(expected) = &self.expected else {
            let mut head = [0; 14];
            frame.copy_head(&mut head);
            return head[12..] == self.heads[0][12..14];
        };
        let mut found = vec![0; frame.len()];
        frame.copy_head(&mut found);
        let varies = |at: usize| {
            let checksum = self.checksums.iter().any(|(checksum, _)| (*checksum..checksum + 2).contains(&at));
            self.count > 0 && (checksum || (self.vary_at..self.vary_at + 4).contains(&at))
        };
        found.len() == expected.len() && (0..found.len()).all(|at| found[at] == expected[at] || varies(at))
    }

    /// Makes the next `count` heads.
    #[inline]
    fn prepare(&mut self, count: usize) {
        if self.count == 0 {
            return;
        }
        for head in &mut self.heads[..count] {
            let value = self.first.wrapping_add(self.next);
            self.next = if self.next + 1 == self.count { 0 } else { self.next + 1 };
            head[self.vary_at..self.vary_at + 4].copy_from_slice(&value.to_be_bytes());
            for &(at, sum) in &self.checksums {
                let sum = sum + (value >> 16) + (value & 0xffff);
                let sum = (sum & 0xffff) + (sum >> 16);
                let sum = (sum & 0xffff) + (sum >> 16);
                head[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            }
        }
    }
}

/// Waits until every port has its peer, and that takes frames: one that joins two of our ports has both then, and loses none
/// between them.
fn connect(ports: &mut [Box<dyn Port>], timeout: Duration, stop: &AtomicBool) -> Result<(), LoadError> {
    let begun = Instant::now();
    loop {
        let now = Instant::now();
        ports.iter_mut().for_each(|port| port.service(now));
        let down = ports.iter_mut().enumerate().find_map(|(number, port)| match port.link() {
            Link::Up if port.room() > 0 => None,
            Link::Up => Some((number, "its peer offers no buffers".into())),
            Link::Down(why) => Some((number, why)),
        });
        let Some((number, why)) = down else { return Ok(()) };
        if stop.load(Ordering::Relaxed) || now.duration_since(begun) > timeout {
            return Err(LoadError::Down { port: number, why });
        }
        std::thread::yield_now();
    }
}

/// Opens the ports and runs on the calling thread until the duration is over or `stop` is set. `progress` is told, about ten
/// times a second, how many frames have come back.
pub fn run(options: &FrameOptions, stop: &AtomicBool, progress: &mut dyn FnMut(u64)) -> Result<FrameReport, LoadError> {
    if !(1..=2).contains(&options.ports.len()) {
        return refuse(format!("{} ports: expected one or two", options.ports.len()));
    }
    let parsed = options.ports.iter().map(|text| parse_port("port", text)).collect::<Result<Vec<_>, _>>()?;
    let warmup = seconds("warmup", options.warmup_s)?;
    let duration = seconds("duration", options.duration_s)?;
    let timeout = seconds("timeout", options.timeout_s)?;
    let flows = Flows::new(options)?;
    let _pinned = options.cpu.map(sys::Pinned::to).transpose().map_err(LoadError::system("cannot pin to that cpu"))?;
    let open = |options| port::open(options).map(|(port, _)| port).map_err(LoadError::system("port"));
    let mut ports = parsed.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
    connect(&mut ports, timeout, stop)?;
    let senders = if options.both_ways { ports.len() } else { 1 };
    let mut run = Run { flows, ports, senders, report: FrameReport::default(), progress, told: Instant::now() };
    run.go(options, warmup, duration, stop);
    run.report.counters = run.ports.iter().map(|port| port.counters()).collect();
    Ok(run.report)
}

struct Run<'a> {
    flows: Flows,
    ports: Vec<Box<dyn Port>>,
    /// How many of the ports send.
    senders: usize,
    report: FrameReport,
    progress: &'a mut dyn FnMut(u64),
    told: Instant,
}

impl Run<'_> {
    fn go(&mut self, options: &FrameOptions, warmup: Duration, duration: Duration, stop: &AtomicBool) {
        let begun = Instant::now();
        let (start, end) = (begun + warmup, begun + warmup + duration);
        let mut at_start = None;
        let mut now = begun;
        while now < end && !stop.load(Ordering::Relaxed) {
            if now >= start && at_start.is_none() {
                at_start = Some((now, self.report.sent, self.report.received));
            }
            let due = options.rate.map(|rate| (rate * (now - begun).as_secs_f64()) as u64);
            for _ in 0..TURNS_PER_LOOK {
                let got = self.receive();
                let FrameReport { sent, received, other, .. } = self.report;
                let room = options.outstanding.map_or(u64::MAX, |most| (most + received + other).saturating_sub(sent));
                let due = due.map_or(u64::MAX, |due| due.saturating_sub(sent));
                self.send(room.min(due).min(BURST as u64) as usize);
                if got == 0 && self.report.sent == sent {
                    // What is measured may share this core.
                    std::hint::spin_loop();
                }
            }
            now = self.look();
        }
        let (start, sent, received) = at_start.unwrap_or((now, self.report.sent, self.report.received));
        self.report.seconds = (now - start).as_secs_f64();
        let per_second = |count: u64| count as f64 / self.report.seconds.max(1e-9);
        self.report.sent_rate = per_second(self.report.sent - sent);
        self.report.rate = per_second(self.report.received - received);
        let mut last = now;
        while now - last < SILENCE && self.report.received + self.report.other < self.report.sent {
            if self.receive() > 0 {
                last = now;
            }
            now = self.look();
        }
    }

    /// What need not be done for every burst; the time.
    fn look(&mut self) -> Instant {
        let now = Instant::now();
        self.ports.iter_mut().for_each(|port| port.service(now));
        if now - self.told >= TICK {
            self.told = now;
            (self.progress)(self.report.received);
        }
        now
    }

    fn receive(&mut self) -> usize {
        let mut count = 0;
        for port in &mut self.ports {
            let burst = port.lend(BURST);
            count += burst.len();
            for frame in burst.in_turn() {
                let expected = self.flows.expects(frame);
                self.report.received += u64::from(expected);
                self.report.other += u64::from(!expected);
                self.report.received_bytes += frame.len() as u64;
            }
            port.give_back(0);
        }
        count
    }

    /// Sends up to `most` frames, over all ports.
    fn send(&mut self, most: usize) {
        let share = most.div_ceil(self.senders);
        let mut left = most;
        for port in &mut self.ports[..self.senders] {
            let count = share.min(left).min(port.room());
            left -= count;
            self.flows.prepare(count);
            for head in &self.flows.heads[..count] {
                self.report.sent += u64::from(port.send(&[head, &self.flows.rest]) == Sent::Queued);
            }
            port.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memif::{Memif, MemifConfig, Role};
    use std::path::PathBuf;

    fn sums_are_right(frame: &[u8]) -> bool {
        let pseudo = Sum::ZERO.bytes(&frame[26..34]).word(17).word((frame.len() - 34) as u16);
        Sum::ZERO.bytes(&frame[14..34]).finish() == 0 && pseudo.bytes(&frame[34..]).finish() == 0
    }

    fn flows(options: &FrameOptions) -> Result<Flows, String> {
        Flows::new(options).map_err(|error| error.to_string())
    }

    #[test]
    fn a_datagram_of_any_size_is_right_and_so_is_each_of_its_flows() {
        for size in [42, 43, 60, 63, 64, 65, 349, 1514, 9018] {
            let options = FrameOptions { size, flows: 70_000, ..FrameOptions::default() };
            let mut flows = flows(&options).unwrap();
            for number in (0..140_000u32).step_by(BURST) {
                flows.prepare(BURST);
                let frame = [&flows.heads[3][..], &flows.rest].concat();
                assert!(frame.len() == size && sums_are_right(&frame), "{size} {number}");
                let source = u32::from_be_bytes(frame[26..30].try_into().unwrap());
                assert_eq!(source, 0x0a00_0000 + (number + 3) % 70_000);
            }
        }
    }

    #[test]
    fn options_that_cannot_work_say_why() {
        let refusal = |options| flows(&options).err().unwrap();
        let plain = FrameOptions::default;
        assert_eq!(refusal(FrameOptions { size: 41, ..plain() }), "size 41: expected 42 to 9234 bytes");
        assert!(refusal(FrameOptions { frame: Some(vec![0; 14]), ..plain() }).contains("expected 15 to 9234"));
        assert_eq!(refusal(FrameOptions { flows: 0, ..plain() }), "flows 0: expected 1 or more");
        let far = FrameOptions { flows: 2, vary_at: 58, ..plain() };
        assert_eq!(refusal(far), "vary_at 58: expected an even offset of four bytes in the first 60");
        let far = FrameOptions { flows: 2, checksums_at: vec![59], ..plain() };
        assert_eq!(refusal(far), "checksums_at 59: expected two bytes in the first 60");
        let run = |ports: &[&str]| {
            let ports = ports.iter().map(ToString::to_string).collect();
            run(&FrameOptions { ports, ..plain() }, &AtomicBool::new(false), &mut |_| ()).unwrap_err().to_string()
        };
        assert_eq!(run(&[]), "0 ports: expected one or two");
        assert_eq!(run(&["vhost:/x"]), "port 'vhost:/x': expected memif, af_xdp, tap, pcap");
    }

    #[test]
    fn what_is_expected_is_told_from_what_is_not() {
        let frame = datagram(60).unwrap();
        let expects = |flow_count, expect: Option<&[u8]>, found: &[u8]| {
            let expect = expect.map(<[u8]>::to_vec);
            let options = FrameOptions { flows: flow_count, expect, ..FrameOptions::default() };
            flows(&options).unwrap().expects(Lent::of(found))
        };
        let with = |at: usize| {
            let mut other = frame.clone();
            other[at] ^= 1;
            other
        };
        assert!(expects(1, None, &with(50)) && !expects(1, None, &with(13)));
        assert!(expects(1, Some(&frame), &frame));
        for at in [0, 24, 29, 41, 59] {
            assert!(!expects(1, Some(&frame), &with(at)), "{at}");
            assert_eq!(expects(2, Some(&frame), &with(at)), [24, 29, 41].contains(&at));
        }
        assert!(!expects(1, Some(&frame), &frame[..59]) && !expects(1, None, &frame[..12]));
    }

    fn fresh_path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("libvnf-frames-{name}-{}.sock", std::process::id()))
    }

    /// Sends what comes by the first port out of the last until told to stop.
    fn forward(ports: &mut [Memif], stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            ports.iter_mut().for_each(|port| port.service(now));
            for from in 0..ports.len() {
                let frames: Vec<Vec<u8>> = ports[from]
                    .lend(BURST)
                    .iter()
                    .map(|frame| {
                        let mut copy = vec![0; frame.len()];
                        frame.copy_to(0, &mut copy);
                        copy
                    })
                    .collect();
                ports[from].give_back(0);
                let to = ports.len() - 1 - from;
                for frame in &frames {
                    assert_eq!(ports[to].send(&[frame]), Sent::Queued);
                }
                ports[to].flush();
            }
        }
    }

    #[test]
    fn what_an_echo_or_a_bridge_returns_is_counted() {
        for (names, both_ways) in [(&["echo"][..], false), (&["left", "right"], false), (&["this", "that"], true)] {
            let paths: Vec<_> = names.iter().map(|name| fresh_path(name)).collect();
            let server = |path| Memif::new(MemifConfig::new("dut", path, Role::Server)).unwrap();
            let mut ports: Vec<_> = paths.iter().map(server).collect();
            let options = FrameOptions {
                ports: paths.iter().map(|path| format!("memif:{},role=client", path.display())).collect(),
                flows: 3,
                rate: Some(20_000.0),
                duration_s: 0.1,
                warmup_s: 0.05,
                both_ways,
                ..FrameOptions::default()
            };
            let stop = AtomicBool::new(false);
            let report = std::thread::scope(|scope| {
                let under_test = scope.spawn(|| forward(&mut ports, &stop));
                let report = run(&options, &stop, &mut |_| ());
                stop.store(true, Ordering::Relaxed);
                under_test.join().unwrap();
                report.unwrap()
            });
            assert!(report.sent > 0 && report.received > 0, "{report:?}");
            assert_eq!((report.received, report.other), (report.sent, 0));
            assert_eq!(report.received_bytes, 60 * report.received);
            assert_eq!(report.counters.len(), paths.len());
        }
    }
}
