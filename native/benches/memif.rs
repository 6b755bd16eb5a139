//! Native forwarding between two memif ports: `forward A B` is the program under test, `generate A B [SIZE]` the load.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use libvnf_native::load::frames::{FrameOptions, run};
use libvnf_native::port::lent::BURST;
use libvnf_native::port::memif::{Memif, MemifConfig, Role};
use libvnf_native::port::{Port, Sent};

fn pass(from: &mut dyn Port, to: &mut dyn Port) -> usize {
    let burst = from.lend(BURST);
    let count = burst.len();
    for frame in burst.iter() {
        let _: Sent = to.send_lent(&[], *frame);
    }
    from.give_back(0);
    to.flush();
    count
}

fn forward(paths: &[String], role: Role) {
    let mut ports: Vec<Box<dyn Port>> = paths
        .iter()
        .map(|path| Box::new(Memif::new(MemifConfig::new("bench", path, role)).unwrap()) as Box<dyn Port>)
        .collect();
    println!("ready");
    loop {
        let now = Instant::now();
        ports.iter_mut().for_each(|port| port.service(now));
        for _ in 0..100 {
            let [left, right] = &mut ports[..] else { return };
            pass(&mut **left, &mut **right);
            pass(&mut **right, &mut **left);
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("forward") => forward(&words[1..3], Role::Server),
        Some("forward-client") => forward(&words[1..3], Role::Client),
        Some("generate") => {
            let size: usize = words[3].parse().unwrap();
            let options = FrameOptions {
                ports: words[1..3].iter().map(|path| format!("memif:{path},role={}", words[5])).collect(),
                size,
                both_ways: words[4] == "both",
                flows: std::env::var("FLOWS").map_or(1, |flows| flows.parse().unwrap()),
                duration_s: 1.0,
                cpu: Some(0),
                ..FrameOptions::default()
            };
            let report = run(&options, &AtomicBool::new(false), &mut |_| ()).unwrap();
            println!(
                "{size}: sent {:.2} received {:.2} Mpps; lost {} other {}",
                report.sent_rate / 1e6,
                report.rate / 1e6,
                report.sent - report.received,
                report.other
            );
        }
        Some("distance") => println!("{:.0}", libvnf_native::load::core_distance((0, 1)).unwrap()),
        _ => {}
    }
}
