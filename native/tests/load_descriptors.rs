//! Alone in its process, because it counts the process's descriptors.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libvnf_native::load::{Drive, Endpoint, LoadConfig, Respond, run};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_connection_per_request_leaks_no_descriptor() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = Endpoint::Tcp(address);
    let config = LoadConfig {
        respond: vec![Respond { endpoint: endpoint.clone(), size: 32 }],
        drive: Some(Drive {
            endpoint,
            connections: 8,
            requests_per_connection: Some(1),
            outstanding: 8,
            rate: None,
            size: 32,
            request_id: None,
            verify: true,
            duration: Duration::from_secs(3600),
            warmup: Duration::ZERO,
            timeout: Duration::from_secs(10),
            reset: false,
        }),
        ..LoadConfig::default()
    };
    let before = descriptors();
    let (mut most, stop) = (0, AtomicBool::new(false));
    let report = run(config, &stop, &mut |progress| {
        most = most.max(descriptors());
        stop.store(progress.requests > 1000, Ordering::Relaxed);
    })
    .unwrap();
    assert!(report.connections_opened > 1000, "{report:?}");
    assert!(most <= before + 40, "{most} descriptors during {} connections", report.connections_opened);
    assert_eq!(descriptors(), before);
}
