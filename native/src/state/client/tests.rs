//! The client against peers of this process.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::thread::Thread;
use super::*;
use crate::load::sys::sleep_on;
use crate::state::answer::Failure;
use crate::state::request::Octets;

const DEADLINE: Duration = Duration::from_secs(30);

fn client(address: Address) -> Client {
    let settings = Settings { seeds: vec![address], timeout: Duration::from_millis(500), ..Settings::default() };
    let client = Client::start(settings, 1).unwrap();
    client.add_table(Table::new("vnf", "t", 1, false).unwrap());
    client
}

fn read() -> Request {
    Request::Read { table: 0, keys: [&b"k"[..]].into_iter().collect::<Octets>() }
}

/// What is drained until `enough`, each time.
fn until(client: &Client, mut enough: impl FnMut(&Drained) -> bool) {
    let began = Instant::now();
    loop {
        let drained = client.drain();
        if enough(&drained) {
            return;
        }
        assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}");
        sleep_on(client.wake_fd(), Duration::from_millis(100));
    }
}

/// Why the read failed.
fn failure(client: &Client) -> String {
    let mut why = None;
    until(client, |drained| {
        for (_, answer) in &drained.done {
            if let Answer::Values(values) = answer
                && let [Err(Failure::Unavailable(text))] = &values[..]
            {
                why = Some(text.clone());
            }
        }
        why.is_some()
    });
    why.unwrap()
}

fn peer() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Address::new("127.0.0.1", port))
}

#[test]
fn a_peer_that_talks_nonsense_is_told_as_what_it_is() {
    let (listener, address) = peer();
    let client = client(address);
    client.submit(1, read()).unwrap();
    // As often as it comes, until it is gone.
    let nonsense = std::thread::spawn(move || {
        listener.incoming().take(4).for_each(|it| drop(it.and_then(|mut it| it.write_all(b"220 smtp ready\r\n"))));
    });
    failure(&client);
    assert!(client.statistics().iter().any(|(name, value)| *name == "garbage" && *value > 0));
    nonsense.join().unwrap();
}

#[test]
fn a_peer_that_takes_everything_and_says_nothing_costs_no_more_than_time() {
    let (listener, address) = peer();
    let client = client(address);
    client.submit(1, read()).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    assert!(peer.read(&mut [0; 1000]).unwrap() > 0);
    failure(&client);
}

#[test]
fn an_end_that_comes_together_with_data_is_seen_with_it() {
    let path = std::env::temp_dir().join(format!("vnf-client-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let settings = Settings { seeds: vec![Address::new(path.to_str().unwrap(), 0)], ..Settings::default() };
    let shared = Arc::new(Shared::new(&settings).unwrap());
    let mut thread = Thread::new(settings, 1, Epoll::new().unwrap(), &shared);
    thread.turn().unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    fs::remove_file(&path).unwrap();
    thread.turn().unwrap();
    assert!(peer.read(&mut [0; 1 << 16]).unwrap() > 0, "the greeting");
    peer.write_all(b"+OK\r\n").unwrap();
    drop(peer);
    assert_eq!(thread.sockets.len(), 1);
    thread.turn().unwrap();
    assert!(thread.sockets.is_empty());
}

#[test]
fn a_name_without_an_address_is_told() {
    let client = client(Address::new("no-such-name.invalid", 6379));
    client.submit(1, read()).unwrap();
    assert!(!failure(&client).is_empty());
}

#[test]
fn a_name_is_resolved() {
    let (listener, address) = peer();
    let _client = client(Address { host: "localhost".to_owned(), ..address });
    let (mut peer, _) = listener.accept().unwrap();
    let mut hello = [0; 8];
    peer.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"*2\r\n$5\r\n");
}

#[test]
fn closing_ends_the_thread_and_says_so() {
    let client = client(Address::new("127.0.0.1", 1));
    client.close();
    assert_eq!(client.drain().ended, Some(None));
    assert_eq!(client.submit(1, read()), Err(Refused::Closed));
}

#[test]
fn a_panic_ends_the_thread_and_is_told() {
    let client = client(Address::new("127.0.0.1", 1));
    // Indexes beyond its payloads: the binding refuses such a batch.
    let keys: Octets = [&b"k"[..]].into_iter().collect();
    let writes = Box::new(super::super::request::Writes { keys, ..Default::default() });
    client.submit(1, Request::Write { table: 0, writes }).unwrap();
    let mut why = None;
    until(&client, |drained| {
        why = drained.ended.clone();
        why.is_some()
    });
    assert_eq!(why, Some(Some("the store's thread panicked".to_owned())));
    assert_eq!(client.submit(2, read()), Err(Refused::Closed));
}
