//! GTP-U headers (3GPP TS 29.281 §5).
//!
//! A header has eight bytes; four more when any of its flags E, S and PN is set, whatever they then mean; and behind these,
//! with E, a chain of extension headers.

use super::{Malformed, array, u16_at};

/// Without options: all we send natively.
pub const HEADER: usize = 8;
/// Sequence number, N-PDU number and the first extension's type.
pub const OPTIONS: usize = 4;

/// Message types (§6.1).
pub const ECHO_REQUEST: u8 = 1;
pub const ECHO_RESPONSE: u8 = 2;
pub const ERROR_INDICATION: u8 = 26;
pub const END_MARKER: u8 = 254;
pub const G_PDU: u8 = 255;

/// Flags of the first byte, which begins with version 1 and the protocol type GTP.
pub const VERSION: u8 = 0b0011_0000;
pub const EXTENDED: u8 = 4;
pub const SEQUENCED: u8 = 2;
pub const NUMBERED: u8 = 1;

/// The one extension that data carries in 5G (§5.2.2.7): it is for whoever ends the tunnel, and says nothing that forbids
/// to pass the packet on.
pub const PDU_SESSION_CONTAINER: u8 = 0x85;
/// Extensions that are followed before a message is refused; real ones have one or two.
const MAX_EXTENSIONS: usize = 8;

/// A message whose header is whole and whose length is right.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    payload_at: usize,
    len: usize,
    needs_comprehension: bool,
}

impl<'a> Message<'a> {
    /// Bytes after the message's length are cut off.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let message = Self::new_partial(bytes, bytes.len())?;
        Ok(Self { bytes: &bytes[..message.len], ..message })
    }

    /// The beginning of what has `available` bytes: all headers are in `bytes`.
    #[inline]
    pub fn new_partial(bytes: &'a [u8], available: usize) -> Result<Self, Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed::Truncated);
        }
        if bytes[0] & 0xf0 != VERSION {
            return Err(Malformed::Version);
        }
        let len = HEADER + usize::from(u16_at(bytes, 2));
        if len > available {
            return Err(Malformed::Truncated);
        }
        let mut message = Self { bytes, payload_at: HEADER, len, needs_comprehension: false };
        if bytes[0] & (EXTENDED | SEQUENCED | NUMBERED) != 0 {
            message.payload_at += OPTIONS;
            if bytes[0] & EXTENDED != 0 {
                message.follow()?;
            }
        }
        if message.payload_at > len.min(bytes.len()) { Err(Malformed::Truncated) } else { Ok(message) }
    }

    /// §5.2.1: an extension begins with its length in units of four bytes and ends with the type of the next. With the
    /// upper bit of its type set, who ends the tunnel must know it.
    fn follow(&mut self) -> Result<(), Malformed> {
        for _ in 0..=MAX_EXTENSIONS {
            let kind = *self.bytes.get(self.payload_at - 1).ok_or(Malformed::Truncated)?;
            if kind == 0 {
                return Ok(());
            }
            self.needs_comprehension |= kind & 0x80 != 0 && kind != PDU_SESSION_CONTAINER;
            match *self.bytes.get(self.payload_at).ok_or(Malformed::Truncated)? {
                0 => return Err(Malformed::Field),
                units => self.payload_at += usize::from(units) * 4,
            }
        }
        Err(Malformed::Field)
    }

    pub fn kind(&self) -> u8 {
        self.bytes[1]
    }

    pub fn teid(&self) -> u32 {
        u32::from_be_bytes(array(self.bytes, 4))
    }

    pub fn sequence(&self) -> Option<u16> {
        (self.bytes[0] & SEQUENCED != 0).then(|| u16_at(self.bytes, 8))
    }

    pub fn n_pdu(&self) -> Option<u8> {
        (self.bytes[0] & NUMBERED != 0).then(|| self.bytes[10])
    }

    /// Type and content of each extension.
    pub fn extensions(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let (bytes, mut at) = (self.bytes, HEADER + OPTIONS);
        let mut kind = if bytes[0] & EXTENDED != 0 { bytes[at - 1] } else { 0 };
        std::iter::from_fn(move || {
            let end = at + usize::from(*bytes.get(at).filter(|_| kind != 0)?) * 4;
            let extension = (kind, bytes.get(at + 1..end - 1)?);
            (kind, at) = (bytes[end - 1], end);
            Some(extension)
        })
    }

    /// Is there an extension that who does not know it must not pass over?
    #[inline]
    pub fn needs_comprehension(&self) -> bool {
        self.needs_comprehension
    }

    #[inline]
    pub fn payload_at(&self) -> usize {
        self.payload_at
    }

    #[inline]
    pub fn payload_len(&self) -> usize {
        self.len - self.payload_at
    }

    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload_at..]
    }
}

/// A header without options.
#[inline]
pub fn emit(kind: u8, teid: u32, payload_len: usize) -> [u8; HEADER] {
    let ([a, b], [c, d, e, f]) = ((payload_len as u16).to_be_bytes(), teid.to_be_bytes());
    [VERSION, kind, a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const EXTENDED_MESSAGE: [u8; 22] = [
        0x36, 255, 0, 14, 1, 2, 3, 4,  // E and S, G-PDU, 14 bytes, TEID
        0, 7, 0, 0x85,                 // sequence number 7, then a PDU session container
        1, 0x10, 9, 0x20,              // type 1, QFI 9, then a service class indicator
        1, 42, 0, 0,                   // nothing more
        b'a', b'b',
    ];

    #[test]
    fn what_is_emitted_is_read_back() {
        let bytes = [&emit(G_PDU, 0x0102_0304, 2)[..], b"abc"].concat();
        assert_eq!(bytes[..8], [0x30, 255, 0, 2, 1, 2, 3, 4]);
        let message = Message::new_checked(&bytes).unwrap();
        assert_eq!((message.kind(), message.teid(), message.sequence()), (G_PDU, 0x0102_0304, None));
        assert_eq!((message.payload(), message.payload_len(), message.extensions().count()), (&b"ab"[..], 2, 0));
    }

    #[test]
    fn options_and_extensions_stand_before_the_payload() {
        let message = Message::new_checked(&EXTENDED_MESSAGE).unwrap();
        assert_eq!((message.sequence(), message.n_pdu(), message.payload()), (Some(7), None, &b"ab"[..]));
        assert_eq!(message.extensions().collect::<Vec<_>>(), [(0x85, &[0x10, 9][..]), (0x20, &[42, 0][..])]);
        assert!(!message.needs_comprehension());
    }

    #[test]
    fn what_only_its_receiver_may_judge_is_told() {
        let mut bytes = EXTENDED_MESSAGE;
        for (kind, is_needed) in [(0xc0, true), (0x82, true), (0x40, false)] {
            bytes[15] = kind;
            assert_eq!(Message::new_checked(&bytes).unwrap().needs_comprehension(), is_needed, "{kind:#x}");
        }
    }

    #[test]
    fn every_short_length_is_truncated_and_wrong_fields_are_told_apart() {
        for len in 0..EXTENDED_MESSAGE.len() {
            assert_eq!(Message::new_checked(&EXTENDED_MESSAGE[..len]).err(), Some(Malformed::Truncated), "{len}");
        }
        for (at, value, expected) in [
            (0, 0x56, Malformed::Version), // GTP version 2
            (0, 0x26, Malformed::Version), // GTP'
            (3, 15, Malformed::Truncated),
            (3, 11, Malformed::Truncated), // ends within its extensions
            (12, 0, Malformed::Field),     // an extension without a length
            (12, 9, Malformed::Truncated),
        ] {
            let mut bytes = EXTENDED_MESSAGE;
            bytes[at] = value;
            assert_eq!(Message::new_checked(&bytes).err(), Some(expected), "byte {at} = {value}");
        }
    }

    #[test]
    fn an_endless_chain_is_refused() {
        let chain = [&[0x34, 255, 0, 204, 0, 0, 0, 0, 0, 0, 0, 0x20][..], &[1, 0, 0, 0x20].repeat(50)].concat();
        assert_eq!(Message::new_checked(&chain).err(), Some(Malformed::Field));
    }
}
