//! Message boundaries in a byte stream. Pure: bytes in, sizes out.
//!
//! A framing looks at what is buffered and says where the first message lies. It never consumes; the caller does.

/// The longest message any framing may announce.
pub const LARGEST_MESSAGE: usize = 16 << 20;

/// Where one message of a stream ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// Every message has this size.
    Fixed(usize),
    /// A big-endian field of `size` bytes at `offset` says how many bytes follow the field, after `adjust` is added.
    LengthPrefixed { size: usize, offset: usize, adjust: i64, strip: bool, limit: usize },
    /// A message ends where `delimiter` begins; the delimiter itself is not part of it.
    Delimiter { delimiter: Box<[u8]>, limit: usize },
}

/// What a framing says about the bytes buffered so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The first message is `start..end`; the next one begins at `next`.
    Message { start: usize, end: usize, next: usize },
    /// Not complete before this many bytes are buffered (a lower bound).
    More(usize),
    /// The stream cannot be framed any further.
    Broken(&'static str),
}

impl Framing {
    /// Looks for the first message in `bytes`. `searched` bytes are known to hold no delimiter end.
    pub fn cut(&self, bytes: &[u8], searched: usize) -> Cut {
        match self {
            Self::Fixed(size) => {
                if bytes.len() >= *size {
                    Cut::Message { start: 0, end: *size, next: *size }
                } else {
                    Cut::More(*size)
                }
            }
            Self::LengthPrefixed { size, offset, adjust, strip, limit } => {
                let header = offset + size;
                if bytes.len() < header {
                    return Cut::More(header);
                }
                let field = bytes[*offset..header].iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
                let Some(length) = i64::try_from(field).ok().and_then(|field| field.checked_add(*adjust)) else {
                    return Cut::Broken("length field out of range");
                };
                let Ok(length) = usize::try_from(length) else {
                    return Cut::Broken("negative length");
                };
                let end = match header.checked_add(length) {
                    Some(end) if end <= *limit => end,
                    _ => return Cut::Broken("message longer than its limit"),
                };
                if bytes.len() < end {
                    return Cut::More(end);
                }
                Cut::Message { start: if *strip { header } else { 0 }, end, next: end }
            }
            Self::Delimiter { delimiter, limit } => {
                let from = searched.saturating_sub(delimiter.len() - 1).min(bytes.len());
                match find(&bytes[from..], delimiter) {
                    Some(at) if from + at <= *limit => {
                        Cut::Message { start: 0, end: from + at, next: from + at + delimiter.len() }
                    }
                    Some(_) => Cut::Broken("message longer than its limit"),
                    None if bytes.len() >= limit + delimiter.len() => Cut::Broken("message longer than its limit"),
                    None => Cut::More(bytes.len() + 1),
                }
            }
        }
    }

    /// The size a datagram must have to be one message, when the framing knows it.
    pub fn datagram_fits(&self, len: usize) -> bool {
        match self {
            Self::Fixed(size) => len == *size,
            _ => true,
        }
    }
}

/// The first place of `needle` (not empty) in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, rest) = needle.split_first()?;
    let last = haystack.len().checked_sub(needle.len())?;
    let mut from = 0;
    while from <= last {
        let at = from + haystack[from..=last].iter().position(|byte| byte == first)?;
        if &haystack[at + 1..at + needle.len()] == rest {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixed(size: usize, offset: usize, adjust: i64, strip: bool) -> Framing {
        Framing::LengthPrefixed { size, offset, adjust, strip, limit: 1000 }
    }

    #[test]
    fn fixed_waits_for_its_size() {
        assert_eq!(Framing::Fixed(4).cut(b"abc", 0), Cut::More(4));
        assert_eq!(Framing::Fixed(4).cut(b"abcde", 0), Cut::Message { start: 0, end: 4, next: 4 });
    }

    #[test]
    fn a_length_counts_what_follows_the_field() {
        assert_eq!(prefixed(2, 0, 0, false).cut(b"\0\x03ab", 0), Cut::More(5));
        assert_eq!(prefixed(2, 0, 0, true).cut(b"\0\x03abcd", 0), Cut::Message { start: 2, end: 5, next: 5 });
        // Diameter (RFC 6733 §3): three bytes at offset 1, counting the four bytes of version and length too.
        assert_eq!(prefixed(3, 1, -4, false).cut(b"\x01\0\0\x06ab", 0), Cut::Message { start: 0, end: 6, next: 6 });
    }

    #[test]
    fn a_lying_length_breaks_the_stream() {
        assert_eq!(prefixed(3, 1, -4, false).cut(b"\x01\0\0\x03", 0), Cut::Broken("negative length"));
        assert_eq!(prefixed(4, 0, 0, false).cut(b"\xff\xff\xff\xff", 0), Cut::Broken("message longer than its limit"));
        assert_eq!(prefixed(8, 0, 0, false).cut(&[0xff; 8], 0), Cut::Broken("length field out of range"));
    }

    #[test]
    fn a_delimiter_is_found_across_pieces() {
        let lines = Framing::Delimiter { delimiter: (*b"\r\n").into(), limit: 5 };
        assert_eq!(lines.cut(b"abc\r", 0), Cut::More(5));
        assert_eq!(lines.cut(b"abc\r\nd", 4), Cut::Message { start: 0, end: 3, next: 5 });
        assert_eq!(lines.cut(b"abcdef\r\n", 0), Cut::Broken("message longer than its limit"));
        assert_eq!(lines.cut(b"abcdefg", 0), Cut::Broken("message longer than its limit"));
    }

    #[test]
    fn find_agrees_with_windows() {
        for haystack in [&b""[..], b"a", b"aab", b"abab", b"xxabxab", b"aaaaab"] {
            for needle in [&b"a"[..], b"ab", b"aab", b"b"] {
                let oracle = haystack.windows(needle.len()).position(|window| window == needle);
                assert_eq!(find(haystack, needle), oracle, "{needle:?} in {haystack:?}");
            }
        }
    }
}
