use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::read::{LONGEST_RECORD, Next, Reader, Record};
use super::write::{self, Direction};
use super::*;

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("libvnf-pcap-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Everything in the file: frames with their time stamps, and how it ends.
fn all(bytes: &[u8]) -> (Vec<(Duration, Vec<u8>)>, Next) {
    let mut reader = Reader::new(bytes).unwrap();
    let (mut found, mut frame) = (Vec::new(), Vec::new());
    loop {
        match reader.next(&mut frame) {
            Next::Frame(Record { at, .. }) => found.push((at, frame.clone())),
            Next::Foreign | Next::Nothing => {}
            end => return (found, end),
        }
    }
}

fn words(is_big: bool, words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| if is_big { word.to_be_bytes() } else { word.to_le_bytes() }).collect()
}

fn halves(is_big: bool, halves: &[u16]) -> Vec<u8> {
    halves.iter().flat_map(|half| if is_big { half.to_be_bytes() } else { half.to_le_bytes() }).collect()
}

fn pcap(is_big: bool, magic: u32, records: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut file = [words(is_big, &[magic]), halves(is_big, &[2, 4]), words(is_big, &[0, 0, 65_535, 1])].concat();
    for (seconds, fraction, bytes) in records {
        let len = bytes.len() as u32;
        file.extend(words(is_big, &[*seconds, *fraction, len, len]));
        file.extend_from_slice(bytes);
    }
    file
}

fn block(is_big: bool, kind: u32, body: &[u8]) -> Vec<u8> {
    let total = 12 + body.len().next_multiple_of(4) as u32;
    let mut block = [words(is_big, &[kind, total]), body.to_vec()].concat();
    block.resize(total as usize - 4, 0);
    block.extend(words(is_big, &[total]));
    block
}

fn section(is_big: bool) -> Vec<u8> {
    let body = [words(is_big, &[0x1a2b_3c4d]), halves(is_big, &[1, 0]), words(is_big, &[!0, !0])].concat();
    block(is_big, 0x0a0d_0d0a, &body)
}

/// An interface; its options follow.
fn interface(is_big: bool, link: u16, options: &[u8]) -> Vec<u8> {
    block(is_big, 1, &[&halves(is_big, &[link, 0])[..], &words(is_big, &[0]), options].concat())
}

fn enhanced(is_big: bool, interface: u32, ticks: u64, bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len() as u32;
    let head = words(is_big, &[interface, (ticks >> 32) as u32, ticks as u32, len, len]);
    block(is_big, 6, &[&head[..], bytes].concat())
}

#[test]
fn pcap_is_read_in_both_byte_orders_and_resolutions() {
    for is_big in [false, true] {
        for (magic, nanoseconds) in [(0xa1b2_c3d4, 500_000), (0xa1b2_3c4d, 500)] {
            let (found, end) = all(&pcap(is_big, magic, &[(7, 500, b"one"), (8, 0, b"")]));
            assert_eq!(found[0], (Duration::new(7, nanoseconds), b"one".to_vec()));
            assert_eq!((found.len(), end), (2, Next::End));
        }
    }
}

#[test]
fn pcapng_is_read_with_its_sections_interfaces_and_clocks() {
    let thousandths = [9, 0, 1, 0, 3, 0, 0, 0];
    let halves_of_a_second = [0, 9, 0, 1, 0x81, 0, 0, 0];
    let file = [
        section(false),
        interface(false, 1, &[]),
        interface(false, 101, &[]),
        interface(false, 1, &thousandths),
        block(false, 99, b"somebody else's"),
        enhanced(false, 0, 1_500_000, b"microseconds"),
        enhanced(false, 1, 0, b"no Ethernet"),
        enhanced(false, 2, 2_500, b"milliseconds"),
        block(false, 3, &[&words(false, &[6])[..], b"simple\0\0"].concat()),
        section(true),
        interface(true, 1, &halves_of_a_second),
        enhanced(true, 0, 7, b"halves"),
        block(true, 2, &[&halves(true, &[0, 0])[..], &words(true, &[0, 8, 3, 3]), b"old\0"].concat()),
    ]
    .concat();
    let (found, end) = all(&file);
    let texts: Vec<&[u8]> = found.iter().map(|(_, bytes)| bytes.as_slice()).collect();
    assert_eq!(texts, [&b"microseconds"[..], b"milliseconds", b"simple", b"halves", b"old"]);
    let times: Vec<u128> = found.iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!((times, end), (vec![1500, 2500, 2500, 3500, 4000], Next::End));
}

#[test]
fn what_is_written_is_read_back() {
    let at = Duration::new(1_700_000_000, 123_456_789);
    let mut pcapng = Vec::new();
    write::section(&mut pcapng);
    write::interface(&mut pcapng, "port0");
    write::packet(&mut pcapng, 0, at, Direction::In, 5, |to| to.extend_from_slice(b"abcde"));
    write::statistics(&mut pcapng, 0, at, 1, 2);
    let mut pcap = write::pcap_header().to_vec();
    write::pcap_record(&mut pcap, at, &[b"a", b"bcde"]);
    for file in [pcapng, pcap] {
        assert_eq!(all(&file), (vec![(at, b"abcde".to_vec())], Next::End));
    }
}

#[test]
fn a_file_that_ends_too_soon_is_truncated_wherever_that_is() {
    let whole = [section(false), interface(false, 1, &[]), enhanced(false, 0, 1, b"frame")].concat();
    let ends_of_blocks = [28, 28 + 20];
    for len in 28..whole.len() {
        let (found, end) = all(&whole[..len]);
        assert!(found.is_empty());
        assert_eq!(end, if ends_of_blocks.contains(&len) { Next::End } else { Next::Truncated }, "{len} bytes");
    }
    let whole = pcap(false, 0xa1b2_c3d4, &[(0, 0, b"one"), (0, 0, b"two")]);
    for len in 24 + 19 + 1..whole.len() {
        assert_eq!((all(&whole[..len]).0.len(), all(&whole[..len]).1), (1, Next::Truncated), "{len} bytes");
    }
}

#[test]
fn what_is_no_capture_is_told_why() {
    let raw = |link: u32| [pcap(false, 0xa1b2_c3d4, &[])[..20].to_vec(), words(false, &[link])].concat();
    let mut old = pcap(false, 0xa1b2_c3d4, &[]);
    old[4] = 1;
    let mut odd = section(false);
    odd[8] = 0;
    for (file, why) in [
        (Vec::new(), "is empty"),
        (b"\xd4\xc3\xb2\xa1 and no more".to_vec(), "ends after 16 bytes, within its header"),
        (b"\x1f\x8b\x08\x00".to_vec(), "is compressed: unpack it first (gunzip)"),
        (b"GET / HTTP".to_vec(), "is no capture: begins with [47, 45, 54, 20], neither pcap nor pcapng"),
        (raw(101), "has link type 101, only Ethernet (1) is supported"),
        (old, "is pcap of version 1, version 2 wanted"),
        (odd, "at byte 0: a section of no known byte order"),
    ] {
        assert_eq!(Reader::new(&file[..]).err().as_deref(), Some(why));
    }
    assert!(Reader::new(&raw(1)[..]).is_ok());
}

/// Why a file that has no frame cannot be right.
fn ends(file: &[u8]) -> String {
    let mut reader = match Reader::new(file) {
        Ok(reader) => reader,
        Err(why) => return why,
    };
    match reader.next(&mut Vec::new()) {
        Next::Malformed(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn lengths_that_cannot_be_end_the_reading_with_a_place() {
    let long = LONGEST_RECORD as u32 + 1;
    let begin = [section(false), interface(false, 1, &[])].concat();
    let mut ends_otherwise = [&begin[..], &enhanced(false, 0, 0, b"")].concat();
    *ends_otherwise.last_mut().unwrap() = 1;
    for (file, why) in [
        (
            [pcap(false, 0xa1b2_c3d4, &[]), words(false, &[0, 0, long, long])].concat(),
            "at byte 24: a record of 262145 bytes, more than 262144",
        ),
        ([&begin[..], &words(false, &[6, 13])].concat(), "at byte 48: a block of 13 bytes"),
        ([&begin[..], &words(false, &[6, 8])].concat(), "at byte 48: a block of 8 bytes"),
        ([&begin[..], &block(false, 6, &[0; 16])].concat(), "at byte 48: a frame's block of 16 bytes"),
        (
            [&begin[..], &block(false, 6, &words(false, &[0, 0, 0, 99, 99]))].concat(),
            "at byte 56: 99 bytes in a block of 20",
        ),
        ([&begin[..], &enhanced(false, 1, 0, b"")].concat(), "at byte 68: a frame of interface 1, of 1 described"),
        ([&section(false)[..], &block(false, 1, &[0; 4])].concat(), "at byte 28: an interface of 4 bytes"),
        (
            [&begin[..], &words(false, &[6, 1 << 20, 0, 0, 0, 4, 4])].concat(),
            "at byte 68: a frame's block of 1048544 bytes",
        ),
        ([&begin[..], &words(false, &[9, u32::MAX - 3])].concat(), "at byte 48: a block of 4294967292 bytes"),
        (words(false, &[0x0a0d_0d0a, 1 << 30, 0x1a2b_3c4d, 1]), "at byte 0: a section header of 1073741824 bytes"),
        (ends_otherwise, "at byte 76: a block of 32 bytes that ends with another length"),
    ] {
        assert_eq!(ends(&file), why);
    }
}

#[test]
fn much_that_has_no_frame_is_read_piece_by_piece() {
    let file = [&section(false)[..], &block(false, 9, &[0; 1 << 20]).repeat(3)].concat();
    let (mut reader, mut frame) = (Reader::new(&file[..]).unwrap(), Vec::new());
    let found: Vec<_> = (0..4).map(|_| reader.next(&mut frame)).collect();
    assert_eq!(found, [Next::Nothing, Next::Nothing, Next::Nothing, Next::End]);
}

fn counter(port: &Pcap, name: &str) -> u64 {
    port.counters().into_iter().find(|(found, _)| *found == name).unwrap().1
}

fn received(port: &mut Pcap, max: usize) -> Vec<Vec<u8>> {
    let burst = port.lend(max);
    let frames = burst
        .iter()
        .map(|frame| {
            let mut bytes = vec![0; frame.len()];
            frame.copy_to(0, &mut bytes);
            bytes
        })
        .collect();
    port.give_back(0);
    frames
}

#[test]
fn a_capture_is_played_once_or_again_and_again() {
    let scratch = Scratch::new();
    let input = scratch.file("in.pcap", &pcap(false, 0xa1b2_c3d4, &[(1, 0, b"one"), (9, 0, b"two"), (9, 0, b"")]));
    let config = PcapConfig { input: Some(input), ..PcapConfig::new("p") };
    let mut once = Pcap::new(config.clone()).unwrap();
    assert!(!once.arm());
    assert_eq!(received(&mut once, 32), [b"one", b"two"]);
    assert!(once.arm());
    assert!(matches!(once.link(), Link::Down(why) if why.ends_with("in.pcap: played to its end")));
    assert_eq!((counter(&once, "plays"), counter(&once, "rx_empty")), (1, 1));
    assert_eq!((once.send(&[b"x"]), counter(&once, "tx_down")), (Sent::Down, 1));
    let mut forever = Pcap::new(PcapConfig { repeat: true, ..config }).unwrap();
    let frames: Vec<_> = (0..4).flat_map(|_| received(&mut forever, 5)).collect();
    assert_eq!(frames.len(), 20);
    assert!(frames.chunks(2).all(|lap| lap == [b"one", b"two"]) && forever.link() == Link::Up);
}

#[test]
fn a_capture_without_a_frame_is_not_played_for_ever() {
    let scratch = Scratch::new();
    let input = scratch.file("in.pcap", &pcap(false, 0xa1b2_c3d4, &[(0, 0, &[0; 2000]), (0, 0, b"")]));
    let mut port =
        Pcap::new(PcapConfig { input: Some(input), repeat: true, mtu: 1500, ..PcapConfig::new("p") }).unwrap();
    assert!(received(&mut port, 32).is_empty() && port.arm());
    assert_eq!((counter(&port, "plays"), counter(&port, "rx_too_long")), (1, 1));
}

#[test]
fn recorded_frames_wait_for_their_time() {
    let scratch = Scratch::new();
    let records: [(u32, u32, &[u8]); 3] = [(5, 0, b"first"), (4, 0, b"earlier"), (3600, 0, b"an hour later")];
    let input = scratch.file("in.pcap", &pcap(false, 0xa1b2_c3d4, &records));
    let mut port = Pcap::new(PcapConfig { input: Some(input), pace: Pace::Recorded, ..PcapConfig::new("p") }).unwrap();
    assert_eq!(received(&mut port, 32), [&b"first"[..], b"earlier"]);
    assert!(port.arm());
    let wait = port.deadline().unwrap().saturating_duration_since(Instant::now());
    assert!(wait > Duration::from_secs(3000) && wait <= Duration::from_secs(3595));
}

#[test]
fn sent_frames_are_in_the_file_after_a_flush() {
    let scratch = Scratch::new();
    for name in ["out.pcap", "out.pcapng"] {
        let path = scratch.0.join(name);
        let mut port = Pcap::new(PcapConfig { output: Some(path.clone()), ..PcapConfig::new("p") }).unwrap();
        assert_eq!(port.send(&[b"he", b"llo"]), Sent::Queued);
        assert_eq!(all(&fs::read(&path).unwrap()).0, []);
        port.flush();
        assert_eq!(all(&fs::read(&path).unwrap()).0[0].1, b"hello");
        assert_eq!((port.link(), counter(&port, "tx_frames"), counter(&port, "tx_bytes")), (Link::Up, 1, 5));
    }
}

#[test]
fn a_full_disk_loses_frames_and_leaves_a_whole_file() {
    let file = File::options().write(true).open("/dev/full").unwrap();
    let mut sink = Sink::new(file);
    assert!(sink.write(b"record").is_err());
    assert!(sink.write(b"record").is_err());
}

#[test]
fn a_malformed_middle_ends_the_reading_and_is_told() {
    let scratch = Scratch::new();
    let file = [pcap(false, 0xa1b2_c3d4, &[(0, 0, b"one")]), vec![0xff; 40]].concat();
    let input = scratch.file("in.pcap", &file);
    let output = scratch.0.join("out.pcap");
    let config = PcapConfig { input: Some(input), output: Some(output), repeat: true, ..PcapConfig::new("p") };
    let mut port = Pcap::new(config).unwrap();
    assert_eq!(received(&mut port, 32), [b"one"]);
    assert!(matches!(port.link(), Link::Down(why) if why.contains("in.pcap: at byte 43: a record of 4294967295")));
    assert_eq!((counter(&port, "rx_malformed"), port.arm()), (1, true));
    assert_eq!(port.send(&[b"x"]), Sent::Queued);
}

#[test]
fn what_cannot_be_opened_is_one_line_and_nothing_is_made() {
    let scratch = Scratch::new();
    let (input, output) = (scratch.file("in.pcap", b"nonsense"), scratch.0.join("out.pcap"));
    let refusal = |input: Option<PathBuf>, output: Option<PathBuf>| {
        Pcap::new(PcapConfig { input, output, ..PcapConfig::new("p") }).err().unwrap().to_string()
    };
    let line = refusal(Some(input.clone()), Some(output.clone()));
    assert!(line.contains("in.pcap: is no capture") && !line.contains('\n') && !output.exists());
    assert!(refusal(Some(input.clone()), Some(input.clone())).contains("is read already"));
    fs::hard_link(&input, &output).unwrap();
    assert!(refusal(Some(input.clone()), Some(output)).contains("is read already"));
    assert_eq!(fs::read(&input).unwrap(), b"nonsense");
    let missing = refusal(Some(scratch.0.join("none")), None);
    assert!(missing.ends_with("none: No such file or directory"), "{missing}");
    assert!(refusal(Some(scratch.0.clone()), None).ends_with("is not a file"));
    assert!(refusal(None, Some(scratch.0.join("no/such"))).contains("No such file"));
}
