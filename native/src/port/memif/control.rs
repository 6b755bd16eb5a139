//! The control channel's messages: 128 bytes each, packed, little endian. Bytes in, values out.
//!
//! Offsets are those of FD.io's memif.h, version 2.0. Everything a peer wrote is only *parsed* here; whether it makes
//! sense is decided by `handshake` (order, counts) and `region`, `ring` (sizes, memory).

use std::fmt;

/// Every message has this size, on SOCK_SEQPACKET, with at most one descriptor beside it.
pub const MESSAGE_BYTES: usize = 128;
/// Version 2.0, the only one in use.
pub const VERSION: u16 = 0x0200;
/// `Init::mode` of an interface that carries Ethernet frames.
pub const MODE_ETHERNET: u8 = 0;
/// Bytes of a secret, padded with zeros.
pub const SECRET_BYTES: usize = 24;

/// Text of a fixed room, padded with zeros: what follows the first zero does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    /// Cut, at a character, to leave room for one terminating zero.
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(N - 1);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; N];
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Self(bytes)
    }

    fn parse(bytes: &[u8; MESSAGE_BYTES], at: usize) -> Self {
        let mut text = [0; N];
        for byte in bytes[at..at + N].iter().enumerate().take_while(|(_, byte)| **byte != 0) {
            text[byte.0] = *byte.1;
        }
        Self(text)
    }
}

/// A peer's text ends up in logs and terminals: anything that is not printable is escaped.
impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(N);
        String::from_utf8_lossy(&self.0[..end]).chars().try_for_each(|character| {
            if character.is_control() {
                write!(formatter, "{}", character.escape_default())
            } else {
                write!(formatter, "{character}")
            }
        })
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{self}\"")
    }
}

/// What the server offers as soon as it has accepted. The `max_*` are highest indices, not counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub name: Text<32>,
    pub min_version: u16,
    pub max_version: u16,
    pub max_region: u16,
    pub max_s2c_ring: u16,
    pub max_c2s_ring: u16,
    pub max_log2_ring_slots: u8,
}

/// Which interface the client wants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Init {
    pub version: u16,
    pub id: u32,
    pub mode: u8,
    pub secret: [u8; SECRET_BYTES],
    pub name: Text<32>,
}

/// A secret is not for logs.
impl fmt::Debug for Init {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Init(version {:#x}, id {}, mode {}, {:?})", self.version, self.id, self.mode, self.name)
    }
}

/// A ring within a region; its eventfd travels beside the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddRing {
    pub client_to_server: bool,
    pub index: u16,
    pub region: u16,
    pub offset: u32,
    pub log2_slots: u8,
    pub private_header_bytes: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Ack,
    Hello(Hello),
    Init(Init),
    /// A memfd travels beside the message.
    AddRegion {
        index: u16,
        bytes: u64,
    },
    AddRing(AddRing),
    Connect {
        name: Text<32>,
    },
    Connected {
        name: Text<32>,
    },
    Disconnect {
        code: u32,
        reason: Text<96>,
    },
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    Length(usize),
    Type(u16),
}

impl fmt::Display for ParseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(found) => {
                write!(formatter, "a control message of {found} bytes, {MESSAGE_BYTES} wanted")
            }
            Self::Type(found) => write!(formatter, "control message type {found}, 1 to 8 wanted"),
        }
    }
}

impl Message {
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let bytes: &[u8; MESSAGE_BYTES] = bytes.try_into().map_err(|_| ParseError::Length(bytes.len()))?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Ok(match u16_at(0) {
            1 => Self::Ack,
            2 => Self::Hello(Hello {
                name: Text::parse(bytes, 2),
                min_version: u16_at(34),
                max_version: u16_at(36),
                max_region: u16_at(38),
                max_s2c_ring: u16_at(40),
                max_c2s_ring: u16_at(42),
                max_log2_ring_slots: bytes[44],
            }),
            3 => {
                let mut secret = [0; SECRET_BYTES];
                secret.copy_from_slice(&bytes[9..9 + SECRET_BYTES]);
                Self::Init(Init {
                    version: u16_at(2),
                    id: u32_at(4),
                    mode: bytes[8],
                    secret,
                    name: Text::parse(bytes, 33),
                })
            }
            4 => Self::AddRegion { index: u16_at(2), bytes: u64_at(4) },
            5 => Self::AddRing(AddRing {
                client_to_server: u16_at(2) & 1 != 0,
                index: u16_at(4),
                region: u16_at(6),
                offset: u32_at(8),
                log2_slots: bytes[12],
                private_header_bytes: u16_at(13),
            }),
            6 => Self::Connect { name: Text::parse(bytes, 2) },
            7 => Self::Connected { name: Text::parse(bytes, 2) },
            8 => Self::Disconnect { code: u32_at(2), reason: Text::parse(bytes, 6) },
            other => return Err(ParseError::Type(other)),
        })
    }

    pub fn emit(&self) -> [u8; MESSAGE_BYTES] {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        match self {
            Self::Ack => put(0, &[1]),
            Self::Hello(hello) => {
                put(0, &[2]);
                put(2, &hello.name.0);
                put(34, &hello.min_version.to_le_bytes());
                put(36, &hello.max_version.to_le_bytes());
                put(38, &hello.max_region.to_le_bytes());
                put(40, &hello.max_s2c_ring.to_le_bytes());
                put(42, &hello.max_c2s_ring.to_le_bytes());
                put(44, &[hello.max_log2_ring_slots]);
            }
            Self::Init(init) => {
                put(0, &[3]);
                put(2, &init.version.to_le_bytes());
                put(4, &init.id.to_le_bytes());
                put(8, &[init.mode]);
                put(9, &init.secret);
                put(33, &init.name.0);
            }
            Self::AddRegion { index, bytes } => {
                put(0, &[4]);
                put(2, &index.to_le_bytes());
                put(4, &bytes.to_le_bytes());
            }
            Self::AddRing(ring) => {
                put(0, &[5]);
                put(2, &u16::from(ring.client_to_server).to_le_bytes());
                put(4, &ring.index.to_le_bytes());
                put(6, &ring.region.to_le_bytes());
                put(8, &ring.offset.to_le_bytes());
                put(12, &[ring.log2_slots]);
                put(13, &ring.private_header_bytes.to_le_bytes());
            }
            Self::Connect { name } => {
                put(0, &[6]);
                put(2, &name.0);
            }
            Self::Connected { name } => {
                put(0, &[7]);
                put(2, &name.0);
            }
            Self::Disconnect { code, reason } => {
                put(0, &[8]);
                put(2, &code.to_le_bytes());
                put(6, &reason.0);
            }
        }
        bytes
    }

    pub fn disconnect(reason: &str) -> Self {
        Self::Disconnect { code: 0, reason: Text::new(reason) }
    }

    /// The name the specification gives it, for messages to people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ack => "ACK",
            Self::Hello(_) => "HELLO",
            Self::Init(_) => "INIT",
            Self::AddRegion { .. } => "ADD_REGION",
            Self::AddRing(_) => "ADD_RING",
            Self::Connect { .. } => "CONNECT",
            Self::Connected { .. } => "CONNECTED",
            Self::Disconnect { .. } => "DISCONNECT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Message> {
        vec![
            Message::Ack,
            Message::Hello(Hello {
                name: Text::new("VPP v26"),
                min_version: 0x0200,
                max_version: 0x0201,
                max_region: 0x0102,
                max_s2c_ring: 0x0304,
                max_c2s_ring: 0x0506,
                max_log2_ring_slots: 14,
            }),
            Message::Init(Init {
                version: VERSION,
                id: 0x0403_0201,
                mode: MODE_ETHERNET,
                secret: *b"abcdefghijklmnopqrstuvwx",
                name: Text::new("DPDK 22.11"),
            }),
            Message::AddRegion { index: 1, bytes: 0x0807_0605_0403_0201 },
            Message::AddRing(AddRing {
                client_to_server: true,
                index: 2,
                region: 3,
                offset: 0x0d0c_0b0a,
                log2_slots: 10,
                private_header_bytes: 0,
            }),
            Message::Connect { name: Text::new("memif0/0") },
            Message::Connected { name: Text::new("net_memif0") },
            Message::Disconnect { code: 7, reason: Text::new("Incorrect secret") },
        ]
    }

    #[test]
    fn what_is_emitted_parses_to_the_same_value() {
        for message in one_of_each() {
            assert_eq!(Message::parse(&message.emit()), Ok(message));
        }
    }

    #[test]
    fn fields_stand_at_the_offsets_of_the_specification() {
        let [_, hello, init, region, ring, connect, _, disconnect] = one_of_each().try_into().unwrap();
        let hello = hello.emit();
        assert_eq!(hello[..9], *b"\x02\x00VPP v26");
        assert_eq!(hello[34..45], [0, 2, 1, 2, 2, 1, 4, 3, 6, 5, 14]);
        let init = init.emit();
        assert_eq!(init[..9], [3, 0, 0, 2, 1, 2, 3, 4, 0]);
        assert_eq!(init[9..43], *b"abcdefghijklmnopqrstuvwxDPDK 22.11");
        assert_eq!(region.emit()[..12], [4, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(ring.emit()[..15], [5, 0, 1, 0, 2, 0, 3, 0, 10, 11, 12, 13, 10, 0, 0]);
        assert_eq!(connect.emit()[..10], *b"\x06\x00memif0/0");
        assert_eq!(disconnect.emit()[..22], *b"\x08\x00\x07\x00\x00\x00Incorrect secret");
    }

    #[test]
    fn short_long_and_unknown_messages_say_what_they_were() {
        assert_eq!(Message::parse(&[1; 127]), Err(ParseError::Length(127)));
        assert_eq!(Message::parse(&[0; 129]), Err(ParseError::Length(129)));
        assert_eq!(Message::parse(&[9; 128]), Err(ParseError::Type(0x0909)));
        assert_eq!(Message::parse(&[0; 128]), Err(ParseError::Type(0)));
    }

    #[test]
    fn a_peers_text_cannot_write_to_a_terminal() {
        let mut bytes = Message::disconnect("").emit();
        bytes[6..].fill(0x1b);
        bytes[7] = 0xff;
        let Ok(Message::Disconnect { reason, .. }) = Message::parse(&bytes) else { panic!("no DISCONNECT") };
        let shown = reason.to_string();
        assert!(shown.starts_with("\\u{1b}\u{fffd}\\u{1b}") && !shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(Text::<6>::new("abcdé").to_string(), "abcd");
        assert_eq!(Text::<6>::new("abcde").to_string(), "abcde");
        assert_eq!(Text::<6>::new("abcdef").to_string(), "abcde");
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", one_of_each()[2]).contains("abcdef"));
    }
}
