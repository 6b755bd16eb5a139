//! Kernel sockets: one thread, one epoll for both ends. Descriptors are registered once, edge-triggered; what is read
//! is answered, and what may be sent is sent, right after each event, so that a request's clock starts when its bytes
//! leave.

mod client;
mod server;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use self::client::Client;
use self::server::Server;
use super::progress::{Clock, Ticker};
use super::sys::{self, Epoll, Event};
use super::{Drive, LoadError, PATIENCE_NS, Progress, Report, Respond};

/// Tokens of the server's descriptors have this bit; the client's have not.
const SERVER: u64 = 1 << 63;
/// Reads of one descriptor in a row: a flood must not keep the others waiting.
const READS_IN_A_ROW: usize = 32;

/// What a socket told when it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// All of it: epoll will tell when there is more.
    Dry,
    /// There may be more: come again.
    Flood,
}

pub fn run(
    drive: Option<&Drive>,
    respond: &[Respond],
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Report, LoadError> {
    sys::raise_file_limit();
    let clock = Clock::start();
    let mut epoll = Epoll::new().map_err(LoadError::system("epoll"))?;
    let mut client = drive.map(Client::new).transpose()?;
    let mut server = Server::new(respond, &epoll)?;
    let mut ticker = Ticker::new(progress);
    // Descriptors that had more to read than one turn allows, as if epoll had told of them again.
    let mut again: Vec<Event> = Vec::new();
    let mut wake = 0;
    loop {
        let now = clock.now();
        let sleep =
            if again.is_empty() { wake.min(now + PATIENCE_NS).min(ticker.next()).saturating_sub(now) } else { 0 };
        let told = epoll.wait(Duration::from_nanos(sleep)).map_err(LoadError::system("epoll"))?;
        let flooded = again.len();
        for index in 0..told + flooded {
            let event = if index < told { epoll.event(index) } else { again[index - told] };
            let read = if event.token & SERVER != 0 {
                server.on_event(event, &epoll)
            } else if let Some(client) = &mut client {
                let now = clock.now();
                let read = client.on_event(event, now, &epoll)?;
                client.pump(now, &epoll)?;
                read
            } else {
                Read::Dry
            };
            if read == Read::Flood {
                again.push(event);
            }
        }
        again.drain(..flooded);

        let now = clock.now();
        let stopped = stop.load(Ordering::Relaxed);
        wake = u64::MAX;
        if let Some(client) = &mut client {
            client.on_time(now, &epoll)?;
            client.pump(now, &epoll)?;
            wake = client.next_wake(now);
            if stopped {
                client.ledger.pace.cut(now);
            }
        }
        ticker.tick(now, client.as_ref().map(|client| &client.ledger), server.echoed);
        if stopped || client.as_ref().is_some_and(|client| client.finished(now)) {
            break;
        }
    }
    let report = client.map_or_else(Report::default, |client| client.ledger.report(client.opened));
    Ok(Report { echoed: server.echoed, connections_accepted: server.accepted, ..report })
}
