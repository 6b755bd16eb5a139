//! Control messages: what parses is emitted to the same value, and no sequence of messages upsets either state machine.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libvnf_native::port::memif::control::{AddRing, Init, MESSAGE_BYTES, MODE_ETHERNET, Message, Text, VERSION};
use libvnf_native::port::memif::handshake::{Client, Effect, MAX_REGION, Server};
use libvnf_native::port::memif::ring::Layout;

/// A message that would be right somewhere in the handshake.
fn proper(kind: u8, index: u16) -> Message {
    let name = Text::new("fuzz");
    match kind {
        0 => Message::Ack,
        1 => Server::new(0, None, "server", 4).hello(),
        2 => Message::Init(Init { version: VERSION, id: 0, mode: MODE_ETHERNET, secret: [0; 24], name }),
        3 => Message::AddRegion { index, bytes: 4096 },
        4 | 5 => Message::AddRing(AddRing {
            client_to_server: kind == 4,
            index: index & 3,
            region: index,
            offset: 0,
            log2_slots: 3,
            private_header_bytes: 0,
        }),
        6 => Message::Connect { name },
        _ => Message::Connected { name },
    }
}

fuzz_target!(|input: &[u8]| {
    let mut server = Server::new(0, None, "server", 4);
    let mut client = Client::new(0, None, "client", Layout { log2_slots: 4, buffer_bytes: 256, queues: 2 });
    let (mut regions, mut connected) = (0, 0);
    let mut input = input;
    // The first byte says how many descriptors come along, whether the interface is taken, and whether raw bytes follow
    // or a proper message with one byte changed.
    while let [how, rest @ ..] = input {
        let bytes = if let (0x80.., Some((raw, after))) = (*how, rest.split_first_chunk::<MESSAGE_BYTES>()) {
            input = after;
            *raw
        } else if let [at, value, after @ ..] = rest {
            input = after;
            let mut bytes = proper(how >> 4 & 7, regions as u16).emit();
            if let Some(byte) = bytes.get_mut(usize::from(*at)) {
                *byte = *value;
            }
            bytes
        } else {
            break;
        };
        let Ok(message) = Message::parse(&bytes) else { continue };
        assert_eq!(Message::parse(&message.emit()), Ok(message));
        let _ = format!("{message:?}");
        let descriptors = usize::from(how & 3);
        if let Ok(step) = server.handle(&message, descriptors, how & 4 != 0) {
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
