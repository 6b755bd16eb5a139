//! Whole runs, in this process. They end when they have shown enough, not after a time: the machine may be busy.

mod bypass;
mod kernel;
mod streams;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Drive, Endpoint, LoadConfig, LoadError, Progress, Report, Respond, Transport, run};

const HOUR: Duration = Duration::from_secs(3600);

fn drive(endpoint: Endpoint) -> Drive {
    Drive {
        endpoint,
        connections: 4,
        requests_per_connection: None,
        outstanding: 16,
        rate: None,
        size: 64,
        request_id: None,
        verify: true,
        duration: HOUR,
        warmup: Duration::ZERO,
        timeout: Duration::from_secs(10),
        reset: false,
    }
}

/// A run that ends as soon as `enough` says so.
fn until(
    transport: Transport,
    drive: Drive,
    respond: Vec<Respond>,
    enough: impl Fn(&Progress) -> bool,
) -> Result<Report, LoadError> {
    let stop = AtomicBool::new(false);
    let config = LoadConfig { drive: Some(drive), respond, transport, cpu: None };
    run(config, &stop, &mut |progress| stop.store(enough(progress), Ordering::Relaxed))
}

fn hundreds_of_requests(progress: &Progress) -> bool {
    progress.requests >= 300
}
