//! One memif port on the command line, to try against any other implementation, and a bench of ours against ours.
//!
//! ```text
//! memif (server|client) PATH (rx|tx|echo) [seconds=N] [bytes=N] [count=N] [secret=TEXT] [cpu=N] [slots=N] [mtu=N] [sleep]
//! memif bench [seconds=N] [bytes=N]      two threads pinned to cpus 0 and 1, client to server
//! ```
//! `rx` counts, `tx` sends, `echo` sends back what came with its MAC addresses swapped; each prints its counters. `sleep`:
//! wait for wake-ups instead of polling. `count` ends after so many frames sent or received.
#![allow(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use libvnf_native::packet::{Pool, PoolConfig, Slot};
use libvnf_native::port::memif::{Memif, MemifConfig, Role};
use libvnf_native::port::{Link, Port, Sent};

const BURST: usize = 64;

struct Options {
    seconds: f64,
    bytes: usize,
    count: u64,
    cpu: Option<usize>,
    sleep: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("memif: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let positional = if arguments.first().is_some_and(|word| word == "bench") { 1 } else { 3 };
    if arguments.len() < positional {
        return Err("usage: memif (server|client) PATH (rx|tx|echo) [KEY=VALUE…], or memif bench".into());
    }
    let mut options = Options { seconds: 5.0, bytes: 60, count: u64::MAX, cpu: None, sleep: false };
    let mut config = MemifConfig::new("memif", "", Role::Client);
    for word in &arguments[positional..] {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse::<usize>().map_err(|error| format!("{word}: {error}"));
        match key {
            "seconds" => options.seconds = value.parse().map_err(|error| format!("{word}: {error}"))?,
            "bytes" => options.bytes = number()?,
            "count" => options.count = number()? as u64,
            "cpu" => options.cpu = Some(number()?),
            "sleep" => options.sleep = true,
            "secret" => config.secret = Some(value.as_bytes().to_vec()),
            "slots" => config.ring_slots = number()? as u32,
            "mtu" => config.mtu = number()?,
            _ => return Err(format!("unknown option {word}")),
        }
    }
    if positional == 1 {
        return bench(config, &options);
    }
    config.path = arguments[1].clone().into();
    config.role = if arguments[0] == "server" { Role::Server } else { Role::Client };
    let mut port = Memif::new(config).map_err(|error| error.to_string())?;
    let seconds = work(&mut port, &arguments[2], &options);
    report(&port, seconds);
    Ok(())
}

fn pin(cpu: usize) {
    // SAFETY: all zeros is a valid cpu_set_t, and it outlives the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn wait(port: &Memif, end: Instant) {
    let until = port.deadline().map_or(end, |deadline| deadline.min(end));
    let milliseconds = until.saturating_duration_since(Instant::now()).as_millis() as i32 + 1;
    let mut poll = libc::pollfd { fd: port.wake_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd is given.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
}

/// Returns for how many seconds the link was up.
fn work(port: &mut Memif, mode: &str, options: &Options) -> f64 {
    if let Some(cpu) = options.cpu {
        pin(cpu);
    }
    let pool = Pool::new(&PoolConfig { classes: vec![(2048, 1024), (16_384, 128)] }).expect("a pool");
    let mut frame = vec![0u8; options.bytes];
    frame[..14].copy_from_slice(b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x88\xb5");
    let mut frames: Vec<Slot> = Vec::with_capacity(BURST);
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(options.seconds);
    let (mut up_since, mut last_link, mut done) = (None, Link::Up, 0);
    while done < options.count {
        let now = Instant::now();
        if now >= end {
            break;
        }
        port.service(now);
        let link = port.link();
        if link != last_link {
            eprintln!("{:.3} {link:?}", start.elapsed().as_secs_f64());
            if link == Link::Up {
                up_since = Some(now);
            }
            last_link = link;
        }
        let mut idle = true;
        for _ in 0..BURST {
            if mode == "tx" {
                let burst = BURST.min((options.count - done) as usize);
                let sent = (0..burst).take_while(|_| port.send(&[&frame]) == Sent::Queued).count();
                port.flush();
                done += sent as u64;
                idle &= sent == 0 && last_link != Link::Up;
                if sent < burst {
                    std::hint::spin_loop();
                }
            }
            let taken = port.receive(&pool, &mut frames, BURST);
            idle &= taken == 0;
            if mode == "echo" {
                for slot in &frames {
                    if slot.len() >= 14 {
                        port.send(&[&slot[6..12], &slot[..6], &slot[12..]]);
                    }
                }
                port.flush();
            }
            if mode != "tx" {
                done += frames.len() as u64;
            }
            frames.clear();
        }
        if options.sleep && idle && port.arm() {
            wait(port, end);
            port.disarm();
        }
    }
    up_since.map_or(0.0, |since| since.elapsed().as_secs_f64())
}

fn report(port: &Memif, seconds: f64) {
    for (name, count) in port.counters().into_iter().filter(|(_, count)| *count > 0) {
        let rate = if name.ends_with("_frames") {
            format!(" ({:.3} M/s)", count as f64 / seconds / 1e6)
        } else {
            String::new()
        };
        println!("{name} {count}{rate}");
    }
}

fn bench(config: MemifConfig, options: &Options) -> Result<(), String> {
    let path = format!("@libvnf-bench-{}", std::process::id());
    let make = |role| {
        let config = MemifConfig { path: path.clone().into(), role, ..config.clone() };
        Memif::new(config).map_err(|error| error.to_string())
    };
    let (mut server, mut client) = (make(Role::Server)?, make(Role::Client)?);
    let with = |cpu| Options { cpu: Some(cpu), ..*options };
    std::thread::scope(|scope| {
        scope.spawn(|| work(&mut client, "tx", &with(1)));
        let seconds = work(&mut server, "rx", &with(0));
        println!("{} bytes, client to server:", options.bytes);
        report(&server, seconds);
    });
    Ok(())
}
