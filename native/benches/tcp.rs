//! What the server of a TCP conversation costs: nanoseconds per echoed message, per connection, per bulk segment.
//!
//!     cargo bench --bench tcp [CONNECTIONS…]

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use libvnf_native::packet::{Pool, PoolConfig, Slot};
use libvnf_native::port::lent::Burst;
use libvnf_native::port::{Link, Port, Sent};
use libvnf_native::stack::tcp::{TcpConfig, TcpEvent, TcpId};
use libvnf_native::stack::{Cidr, Host, HostConfig};

/// Frames on their way, in buffers that are used again.
#[derive(Default)]
struct Wire {
    frames: Vec<Vec<u8>>,
    used: usize,
}

impl Port for Wire {
    fn link(&self) -> Link {
        Link::Up
    }
    fn generation(&self) -> u64 {
        1
    }
    fn wake_fd(&self) -> RawFd {
        -1
    }
    fn service(&mut self, _: Instant) {}
    fn deadline(&self) -> Option<Instant> {
        None
    }
    fn lend(&mut self, _max: usize) -> Burst<'_> {
        Burst::EMPTY
    }

    fn give_back(&mut self, _dropped: usize) {}

    fn receive(&mut self, _: &Pool, _: &mut Vec<Slot>, _: usize) -> usize {
        0
    }
    fn send(&mut self, parts: &[&[u8]]) -> Sent {
        if self.used == self.frames.len() {
            self.frames.push(Vec::with_capacity(2048));
        }
        let frame = &mut self.frames[self.used];
        frame.clear();
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        self.used += 1;
        Sent::Queued
    }
    fn flush(&mut self) {}
    fn arm(&mut self) -> bool {
        true
    }
    fn disarm(&mut self) {}
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

struct End {
    host: Host,
    port: Wire,
    pool: Pool,
    events: Vec<TcpEvent>,
    spent: Duration,
}

impl End {
    fn new(number: u8) -> Self {
        let cidr = |last: u8| Cidr { address: format!("10.0.0.{last}").parse().unwrap(), prefix: 24 };
        let host = Host::new(HostConfig {
            mac: [2, 0, 0, 0, 0, number],
            addresses: if number == 1 { (10..20).map(cidr).collect() } else { vec![cidr(2)] },
            virtual_addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: 1_500,
            tcp: TcpConfig { half_open_per_source: usize::MAX, ..TcpConfig::default() },
        });
        let pool = Pool::new(&PoolConfig { classes: vec![(2_048, 400_000)] }).unwrap();
        Self { host, port: Wire::default(), pool, events: Vec::new(), spent: Duration::ZERO }
    }

    /// A burst of frames, the events they mean, and what `react` does about them.
    fn turn(&mut self, from: &mut Wire, react: &mut dyn FnMut(&mut Host, TcpEvent)) {
        let mut slots = Vec::new();
        for frame in &from.frames[..from.used] {
            let mut slot = self.pool.take(frame.len()).unwrap();
            slot.copy_from_slice(frame);
            slots.push(slot);
        }
        from.used = 0;
        let now = Instant::now();
        while !slots.is_empty() {
            let burst = slots.len().min(32);
            for slot in slots.drain(..burst) {
                self.host.receive(slot, now, &self.pool, &mut self.port);
            }
            loop {
                self.host.tcp_events(&mut self.events);
                if self.events.is_empty() {
                    break;
                }
                for event in self.events.drain(..) {
                    react(&mut self.host, event);
                }
            }
            self.host.tcp_flush(now, &mut self.port);
        }
        if self.host.deadline().is_some_and(|at| at <= now) {
            self.host.on_timer(now, &mut self.port, &mut Vec::new());
        }
        self.host.tcp_flush(now, &mut self.port);
        self.spent += now.elapsed();
    }
}

fn echo(host: &mut Host, event: TcpEvent) {
    match event {
        TcpEvent::Accepted { id, .. } => drop(host.tcp_adopt(id, 0)),
        TcpEvent::Readable { id, .. } => {
            let mut message = [0; 2_048];
            let len = host
                .tcp_receive(id, |bytes| {
                    let len = bytes.len().min(2_048);
                    message[..len].copy_from_slice(&bytes[..len]);
                    (len, len)
                })
                .unwrap_or(0);
            if len > 0 {
                host.tcp_send(id, &message[..len]);
            }
            if host.tcp_ended(id) {
                host.tcp_close(id);
            }
        }
        _ => {}
    }
}

fn messages(connections: usize, count: usize, size: usize) {
    let (mut client, mut server) = (End::new(1), End::new(2));
    server.host.tcp_listen(None, 80, 0).unwrap();
    let mut open: Vec<TcpId> = Vec::new();
    let start = Instant::now();
    while open.len() < connections {
        let now = Instant::now();
        for _ in 0..256.min(connections - open.len()) {
            client.host.tcp_open("10.0.0.2:80".parse().unwrap(), 0, Duration::from_secs(5), now).unwrap();
        }
        let wanted = open.len() + 256.min(connections - open.len());
        client.host.tcp_flush(now, &mut client.port);
        while open.len() < wanted {
            server.turn(&mut client.port, &mut echo);
            client.turn(&mut server.port, &mut |_, event| {
                if let TcpEvent::Connected { id, .. } = event {
                    open.push(id);
                }
            });
        }
    }
    let connect = server.spent;
    let message = vec![7; size];
    let in_flight = connections.min(256);
    let (mut done, mut next) = (0, 0);
    server.spent = Duration::ZERO;
    let mut answered = vec![0_usize; 0];
    let mut sent = 0;
    while done < count {
        while sent - done < in_flight && sent < count {
            client.host.tcp_send(open[next], &message);
            next = (next + 1) % open.len();
            sent += 1;
        }
        client.host.tcp_flush(Instant::now(), &mut client.port);
        server.turn(&mut client.port, &mut echo);
        answered.clear();
        client.turn(&mut server.port, &mut |host, event| {
            if let TcpEvent::Readable { id, .. } = event {
                let len = host.tcp_receive(id, |bytes| (bytes.len(), bytes.len())).unwrap_or(0);
                answered.push(len);
            }
        });
        done += answered.iter().sum::<usize>() / size;
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    println!(
        "echo {size} B, {connections} connections: server {:.0} ns per message; {:.0} ns per handshake",
        server.spent.as_nanos() as f64 / count as f64,
        connect.as_nanos() as f64 / connections as f64
    );
}

fn requests(count: usize) {
    let (mut client, mut server) = (End::new(1), End::new(2));
    server.host.tcp_listen(None, 80, 0).unwrap();
    let (mut done, mut begun) = (0, 0);
    let start = Instant::now();
    while done < count {
        let now = Instant::now();
        while begun - done < 256 {
            client.host.tcp_open("10.0.0.2:80".parse().unwrap(), 0, Duration::from_secs(5), now).unwrap();
            begun += 1;
        }
        client.host.tcp_flush(now, &mut client.port);
        server.turn(&mut client.port, &mut echo);
        client.turn(&mut server.port, &mut |host, event| match event {
            TcpEvent::Connected { id, .. } => drop(host.tcp_send(id, &[7; 64])),
            TcpEvent::Readable { id, .. } => {
                host.tcp_receive(id, |bytes| (bytes.len(), ()));
                host.tcp_close(id);
                done += 1;
            }
            _ => {}
        });
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    println!(
        "connection per request: server {:.0} ns, client {:.0} ns",
        server.spent.as_nanos() as f64 / count as f64,
        client.spent.as_nanos() as f64 / count as f64
    );
}

fn bulk(bytes: usize) {
    let (mut client, mut server) = (End::new(1), End::new(2));
    server.host.tcp_listen(None, 80, 0).unwrap();
    let id = client.host.tcp_open("10.0.0.2:80".parse().unwrap(), 0, Duration::from_secs(5), Instant::now()).unwrap();
    client.host.tcp_flush(Instant::now(), &mut client.port);
    let (mut sent, mut got, piece) = (0, 0, vec![7; 65_536]);
    let start = Instant::now();
    while got < bytes {
        sent += client.host.tcp_send(id, &piece);
        client.host.tcp_flush(Instant::now(), &mut client.port);
        server.turn(&mut client.port, &mut |host, event| match event {
            TcpEvent::Accepted { id, .. } => drop(host.tcp_adopt(id, 0)),
            TcpEvent::Readable { id, .. } => {
                while let Some(len @ 1..) = host.tcp_receive(id, |bytes| (bytes.len(), bytes.len())) {
                    got += len;
                }
            }
            _ => {}
        });
        client.turn(&mut server.port, &mut |_, _| {});
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    let _ = sent;
    println!(
        "bulk: {:.2} Gbit/s through one thread; server {:.0} ns per segment",
        got as f64 * 8.0 / start.elapsed().as_nanos() as f64,
        server.spent.as_nanos() as f64 / (got as f64 / 1460.0)
    );
}

fn main() {
    let named: Vec<usize> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let all = if named.is_empty() { vec![100, 1_000, 10_000, 100_000] } else { named };
    for connections in all {
        messages(connections, 2_000_000, 64);
    }
    messages(100, 500_000, 1_024);
    requests(500_000);
    bulk(2_000_000_000);
}
