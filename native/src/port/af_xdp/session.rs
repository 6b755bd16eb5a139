//! An open interface: its queues, the program that feeds them, what it was asked to let in. Dropped as one.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::admission::Admission;
use super::bpf::{AttachError, Link, SocketMap};
use super::queue::{Queue, Shape};
use super::{AfXdpConfig, Attach, Facts, Take};

/// Between two tries to have what a predecessor still holds.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) struct Session {
    interface: u32,
    /// Before the queues, so that nothing comes in any more when they go.
    link: Link,
    pub queues: Vec<Queue>,
    _admission: Admission,
}

impl Session {
    /// Opens all of it, or nothing; a refusal is one line.
    pub fn open(config: &AfXdpConfig, facts: &Facts, patience: Duration) -> io::Result<Self> {
        let name = &config.interface;
        let numbers = numbers(config, facts.queues)?;
        let until = Instant::now() + patience;
        let map_entries = numbers.iter().max().map_or(1, |last| last + 1);
        let refused = |error: io::Error| refusal(&error, &format!("no queue of {name}"), config);
        let queues = numbers.iter().enumerate().map(|(place, _)| {
            let (slots, frame_bytes, zero_copy) = (config.ring_slots, config.frame_bytes, config.zero_copy);
            Queue::new(Shape { slots, frame_bytes, sends: place == 0, zero_copy })
        });
        let queues = queues.collect::<io::Result<Vec<_>>>().map_err(refused)?;
        let map = SocketMap::new(map_entries).map_err(|error| refusal(&error, "no map of sockets", config))?;
        for (queue, number) in queues.iter().zip(&numbers) {
            patiently(until, || queue.bind(facts.index, *number, config.zero_copy)).map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::EBUSY) => told(&error, format!("another AF_XDP socket has queue {number} of {name}")),
                    Some(libc::EOPNOTSUPP | libc::EINVAL) if config.zero_copy => {
                        told(&error, format!("zero_copy: the driver of {name} cannot"))
                    }
                    _ => refusal(&error, &format!("queue {number} of {name} cannot be had"), config),
                }
            })?;
            map.insert(*number, queue.as_fd()).map_err(|error| refusal(&error, "no map of sockets", config))?;
        }
        let everything = config.take.contains(&Take::All);
        let admission = Admission::new(facts, everything, config.mac, &config.addresses)
            .map_err(|error| refusal(&error, &format!("{name} does not let in what is for us"), config))?;
        let link = attach(config, facts, &map, until)?;
        Ok(Self { interface: facts.index, link, queues, _admission: admission })
    }

    pub fn is_native(&self) -> bool {
        self.link.is_native
    }

    /// Whether this is still the interface of that number, which may have gone and come back.
    pub fn is_of(&self, interface: u32) -> bool {
        self.interface == interface && self.queues[0].wake_driver()
    }

    /// The queue that sends.
    #[inline]
    pub fn sender(&mut self) -> &mut Queue {
        &mut self.queues[0]
    }

    /// Frames that have not left.
    pub fn unsent(&mut self) -> u64 {
        u64::from(self.sender().waiting())
    }

    pub fn statistics(&self) -> impl Iterator<Item = libc::xdp_statistics> {
        self.queues.iter().filter_map(Queue::statistics)
    }
}

/// The queues to open: those that were named, or all.
fn numbers(config: &AfXdpConfig, there_are: u32) -> io::Result<Vec<u32>> {
    let mut numbers = config.queues.clone();
    if numbers.is_empty() {
        numbers.extend(0..there_are);
    }
    numbers.sort_unstable();
    numbers.dedup();
    match numbers.iter().find(|number| **number >= there_are) {
        None => Ok(numbers),
        Some(number) => {
            let (name, last) = (&config.interface, there_are - 1);
            let text = format!("queue: {number}: {name} has queues 0 to {last}");
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
    }
}

fn attach(config: &AfXdpConfig, facts: &Facts, map: &SocketMap, until: Instant) -> io::Result<Link> {
    let name = &config.interface;
    let attached = patiently(until, || {
        Link::attach(facts.index, config.attach, map, &config.take, &config.addresses).map_err(|error| match error {
            AttachError::TooManyAddresses => io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("address: {} are more than a program can tell apart", config.addresses.len()),
            ),
            AttachError::Load(error) => refusal(&error, "the kernel refuses our program", config),
            AttachError::Attach(error) => error,
        })
    });
    attached.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => told(&error, format!("another XDP program is attached to {name}")),
        Some(libc::EPERM) => refusal(&error, "", config),
        Some(_) if config.attach == Attach::Native => {
            told(&error, format!("attach: native: {name} refuses ({error}); expected attach=generic"))
        }
        Some(_) => told(&error, format!("no XDP program can be attached to {name}: {error}")),
        // Told already.
        None => error,
    })
}

/// Tries again while another still holds it.
fn patiently<T>(until: Instant, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

fn told(error: &io::Error, text: String) -> io::Error {
    io::Error::new(error.kind(), text)
}

/// What an error number means for the operator; `what` went wrong.
fn refusal(error: &io::Error, what: &str, config: &AfXdpConfig) -> io::Error {
    let text = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "not permitted: expected root, or CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF".into()
        }
        Some(libc::EAFNOSUPPORT) => "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)".into(),
        Some(libc::ENOSYS) => "this kernel has no bpf(2) (CONFIG_BPF_SYSCALL)".into(),
        // xdp_umem_account_pages of the kernel.
        Some(libc::ENOBUFS) => {
            let bytes = 2 * u64::from(config.ring_slots) * u64::from(config.frame_bytes);
            format!("ring_slots: {}: {bytes} bytes are more than may be locked (ulimit -l)", config.ring_slots)
        }
        Some(_) => format!("{what}: {error}"),
        None => return io::Error::new(error.kind(), error.to_string()),
    };
    told(error, text)
}
