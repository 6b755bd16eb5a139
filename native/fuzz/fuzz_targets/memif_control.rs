//! Control messages: what parses is emitted to the same value, and no sequence of messages upsets either state machine.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libvnf_native::port::memif::control::{MESSAGE_BYTES, Message};
use libvnf_native::port::memif::handshake::{Client, Effect, MAX_REGION, Server};
use libvnf_native::port::memif::ring::Layout;

fuzz_target!(|input: &[u8]| {
    let layout = Layout { log2_slots: 4, buffer_bytes: 256 };
    let mut server = Server::new(0, None, "server");
    let mut client = Client::new(0, None, "client", layout);
    let (mut regions, mut connected) = (0, 0);
    // One byte says how many descriptors come along, then a message.
    for chunk in input.chunks(1 + MESSAGE_BYTES) {
        let Ok(message) = Message::parse(&chunk[1..]) else { continue };
        assert_eq!(Message::parse(&message.emit()), Ok(message));
        let _ = format!("{message:?}");
        let descriptors = usize::from(chunk[0] & 3);
        if let Ok(step) = server.handle(&message, descriptors, chunk[0] & 4 != 0) {
            assert!(step.reply.is_some(), "a missing answer stalls the peer for ever");
            match step.effect {
                Effect::MapRegion { .. } => regions += 1,
                Effect::AddRing(ring) => assert!(usize::from(ring.region) < regions),
                Effect::Connected { .. } => connected += 1,
                _ => {}
            }
        }
        let _ = client.handle(&message, descriptors);
    }
    assert!(regions <= usize::from(MAX_REGION) + 1 && connected <= 1);
});
