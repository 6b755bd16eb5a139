//! Whole runs, in this process.

mod bypass;
mod kernel;

use std::time::Duration;

use super::{Drive, Endpoint};

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
        duration: Duration::from_millis(150),
        warmup: Duration::from_millis(10),
        timeout: Duration::from_secs(10),
        reset: false,
    }
}
