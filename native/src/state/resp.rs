//! RESP3, the protocol of Redis (its specification: "Redis serialization protocol"): commands out, replies in.
//!
//! A reply is looked through as its octets come, each octet once, and only a whole one is handed out: a [`Reply`] borrows
//! from the buffer and its lists are iterators over what has been found to be in order. Nothing is allocated on the word
//! of the peer: not for a length or a count that it announces, only for what it has sent.
//!
//! Not read: streamed lists and strings, and attributes. No server sends them unasked; they are errors.

use std::fmt;

/// Lists in lists. `CLUSTER SLOTS`, the deepest of what we ask, has four.
const DEPTH: usize = 8;
/// A line: an error is the longest.
const LONGEST_LINE: usize = 64 * 1024;
/// Elements of one list.
const MOST_ELEMENTS: usize = 1 << 20;
/// What is read at once, and what an idle connection keeps.
const READ_BYTES: usize = 64 * 1024;

/// More than was agreed to: the only one of these that says something about what was asked for.
pub const TOO_LONG: Malformed = Malformed("too long a reply");

/// Why these octets are not RESP3, or more than was agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    Nil,
    /// Truth values too: 0 and 1.
    Integer(i64),
    /// A string of any kind; a double or a big number by its letters.
    Data(&'a [u8]),
    Error(&'a [u8]),
    /// An array or a set; a map by its keys and values in turn.
    List(List<'a>),
    /// Not an answer: something the server tells by itself.
    Push(List<'a>),
}

/// The elements of a list, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for List<'a> {
    type Item = Reply<'a>;

    fn next(&mut self) -> Option<Reply<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (reply, rest) = element(self.rest)?;
        self.rest = rest;
        Some(reply)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for List<'_> {}

/// The first element of octets that have been looked through, and what comes after it.
fn element(octets: &[u8]) -> Option<(Reply<'_>, &[u8])> {
    let Ok(Some(head)) = Head::read(octets, 0) else { return None };
    let after = &octets[head.bytes..];
    Some(match head.what {
        What::Line(reply) => (reply, after),
        What::Blob { length, kind } => {
            let (data, rest) = after.split_at_checked(length)?;
            (kind.reply(data), rest.get(2..)?)
        }
        What::List { elements, is_push } => {
            let list = List { rest: after, left: elements };
            let mut look = Look::default();
            look.enter(elements).ok()?;
            let end = if elements == 0 { 0 } else { look.on(after, usize::MAX).ok()?? };
            (if is_push { Reply::Push(list) } else { Reply::List(list) }, &after[end..])
        }
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blob {
    Data,
    Error,
    Verbatim,
}

impl Blob {
    fn reply(self, data: &[u8]) -> Reply<'_> {
        match self {
            Self::Data => Reply::Data(data),
            Self::Error => Reply::Error(data),
            // Three letters that name its form, and a colon.
            Self::Verbatim => Reply::Data(data.get(4..).unwrap_or_default()),
        }
    }
}

/// What a line says is to come.
enum What<'a> {
    Line(Reply<'a>),
    Blob { length: usize, kind: Blob },
    List { elements: usize, is_push: bool },
}

struct Head<'a> {
    /// Of the line, with its end.
    bytes: usize,
    what: What<'a>,
}

impl<'a> Head<'a> {
    /// Nothing until the line is whole; of the line, `known` octets are known not to be its end.
    #[inline]
    fn read(octets: &'a [u8], known: usize) -> Result<Option<Self>, Malformed> {
        let Some(&first) = octets.first() else { return Ok(None) };
        let Some(end) = octets[known..].iter().position(|&octet| octet == b'\n').map(|at| known + at) else {
            if !b"_:+-$*,(#=!%~>".contains(&first) {
                return Err(Malformed("an unknown type"));
            }
            return if octets.len() > LONGEST_LINE { Err(Malformed("a line without an end")) } else { Ok(None) };
        };
        if end < 2 || octets[end - 1] != b'\r' {
            return Err(Malformed("a line that does not end in CR LF"));
        }
        let line = &octets[1..end - 1];
        let blob = |kind| count(line, usize::MAX).map(|n| n.map(|length| What::Blob { length, kind }));
        let list = |is_push, each: usize| {
            count(line, MOST_ELEMENTS).map(|n| n.map(|n| What::List { elements: n * each, is_push }))
        };
        let what = match first {
            b':' => Some(What::Line(Reply::Integer(integer(line)?))),
            b'$' => blob(Blob::Data)?,
            b'*' | b'~' => list(false, 1)?,
            b'+' | b',' | b'(' => Some(What::Line(Reply::Data(line))),
            b'-' => Some(What::Line(Reply::Error(line))),
            b'_' if line.is_empty() => None,
            b'#' if line == b"t" || line == b"f" => Some(What::Line(Reply::Integer((line == b"t").into()))),
            b'>' => list(true, 1)?,
            b'%' => list(false, 2)?,
            b'=' => blob(Blob::Verbatim)?,
            b'!' => blob(Blob::Error)?,
            _ => return Err(Malformed("an unknown type")),
        };
        Ok(Some(Self { bytes: end + 1, what: what.unwrap_or(What::Line(Reply::Nil)) }))
    }
}

fn integer(line: &[u8]) -> Result<i64, Malformed> {
    let (digits, sign) = line.strip_prefix(b"-").map_or((line, 1), |digits| (digits, -1));
    if !(1..=19).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed("not a number"));
    }
    // Counted downwards: there is one negative number more than positive ones.
    let value = digits.iter().try_fold(0_i64, |value, digit| value.checked_mul(10)?.checked_sub((digit - b'0').into()));
    value.and_then(|value| value.checked_mul(-sign)).ok_or(Malformed("a number beyond 64 bits"))
}

/// A length: −1 is RESP2's nil.
#[inline]
fn count(line: &[u8], most: usize) -> Result<Option<usize>, Malformed> {
    match integer(line)? {
        -1 => Ok(None),
        value => match usize::try_from(value) {
            Ok(value) if value <= most => Ok(Some(value)),
            _ => Err(Malformed("a length out of range")),
        },
    }
}

/// How far a reply has been looked through.
#[derive(Clone, Debug, Default)]
struct Look {
    at: usize,
    /// Octets of the line at `at` that are not its end.
    known: usize,
    /// Elements still to come, of each list that is open.
    open: [usize; DEPTH],
    depth: usize,
}

impl Look {
    fn enter(&mut self, elements: usize) -> Result<(), Malformed> {
        *self.open.get_mut(self.depth).ok_or(Malformed("too many lists in lists"))? = elements;
        self.depth += 1;
        Ok(())
    }

    /// Goes on; the length of the whole once it is there.
    fn on(&mut self, octets: &[u8], most: usize) -> Result<Option<usize>, Malformed> {
        loop {
            let Some(head) = Head::read(&octets[self.at..], self.known)? else {
                self.known = octets.len() - self.at;
                return if octets.len() > most { Err(TOO_LONG) } else { Ok(None) };
            };
            let mut next = self.at + head.bytes;
            let mut is_whole = true;
            match head.what {
                What::Line(_) => {}
                What::Blob { length, kind } => {
                    if length > most.saturating_sub(next) {
                        return Err(TOO_LONG);
                    }
                    let Some(end) = octets.get(next + length..next + length + 2) else { return Ok(None) };
                    if end != b"\r\n" {
                        return Err(Malformed("a string that is not as long as it says"));
                    }
                    if kind == Blob::Verbatim && octets[next..next + length].get(3) != Some(&b':') {
                        return Err(Malformed("a verbatim string without its form"));
                    }
                    next += length + 2;
                }
                What::List { is_push: true, .. } if self.depth > 0 => return Err(Malformed("a push within a reply")),
                What::List { elements, .. } => {
                    is_whole = elements == 0;
                    if !is_whole {
                        self.enter(elements)?;
                    }
                }
            }
            (self.at, self.known) = (next, 0);
            while is_whole && self.depth > 0 {
                let left = &mut self.open[self.depth - 1];
                *left -= 1;
                is_whole = *left == 0;
                self.depth -= usize::from(is_whole);
            }
            if is_whole {
                return Ok(Some(next));
            }
        }
    }
}

/// The replies of a connection: [`Reader::room`], read into it, [`Reader::filled`], then [`Reader::next`] until there is
/// none. After an error there is nothing more to be read from this connection.
#[derive(Debug)]
pub struct Reader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    look: Look,
    most: usize,
}

impl Reader {
    /// Replies longer than `most` octets are errors.
    pub fn new(most: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, look: Look::default(), most }
    }

    /// Where to read to.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > 16 * READ_BYTES {
                self.buffer = Vec::new();
            }
        }
        if self.buffer.len() - self.end < READ_BYTES / 4 {
            if self.start >= self.end - self.start {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            // Twice what is there, so that a long reply is moved seldom.
            let wanted = (2 * self.end).max(READ_BYTES);
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted, 0);
            }
        }
        &mut self.buffer[self.end..]
    }

    /// So many octets were read into the room.
    pub fn filled(&mut self, octets: usize) {
        self.end = (self.end + octets).min(self.buffer.len());
    }

    /// The next whole reply.
    #[expect(clippy::should_implement_trait, reason = "it lends what it returns, which no Iterator can")]
    pub fn next(&mut self) -> Result<Option<Reply<'_>>, Malformed> {
        let octets = &self.buffer[self.start..self.end];
        let Some(length) = self.look.on(octets, self.most)? else { return Ok(None) };
        self.look = Look::default();
        self.start += length;
        element(&octets[..length]).map(|(reply, _)| Some(reply)).ok_or(Malformed("a reply that is not whole"))
    }
}

// --- commands ---------------------------------------------------------------------------------------------------------

/// Appends a command.
pub fn command(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    arguments_follow(out, arguments.len());
    arguments.iter().for_each(|argument| bulk(out, argument));
}

/// Appends the beginning of a command: so many [`bulk`]s come, its name among them.
#[inline]
pub fn arguments_follow(out: &mut Vec<u8>, arguments: usize) {
    line(out, b'*', arguments);
}

#[inline]
pub fn bulk(out: &mut Vec<u8>, argument: &[u8]) {
    bulk_follows(out, argument.len());
    out.extend_from_slice(argument);
    out.extend_from_slice(b"\r\n");
}

/// Appends the beginning of an argument: so many octets come, and CR LF.
#[inline]
pub fn bulk_follows(out: &mut Vec<u8>, octets: usize) {
    line(out, b'$', octets);
}

/// Appends a number as an argument.
pub fn number(out: &mut Vec<u8>, number: u64) {
    let (text, at) = digits(number);
    bulk(out, &text[at..]);
}

#[inline]
fn line(out: &mut Vec<u8>, first: u8, number: usize) {
    let (mut text, at) = digits(number as u64);
    text[at - 1] = first;
    out.extend_from_slice(&text[at - 1..]);
    out.extend_from_slice(b"\r\n");
}

/// A number's digits, from an index that is never 0.
#[inline]
fn digits(mut number: u64) -> ([u8; 21], usize) {
    let mut text = [0; 21];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return (text, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1 << 20;

    fn reader(octets: &[u8]) -> Reader {
        let mut reader = Reader::new(MOST);
        feed(&mut reader, octets);
        reader
    }

    fn feed(reader: &mut Reader, mut octets: &[u8]) {
        while !octets.is_empty() {
            let room = reader.room();
            let taken = octets.len().min(room.len());
            room[..taken].copy_from_slice(&octets[..taken]);
            reader.filled(taken);
            octets = &octets[taken..];
        }
    }

    /// A reply as text, all of it.
    fn text(reply: Reply<'_>) -> String {
        let all = |list: List<'_>| list.map(text).collect::<Vec<_>>().join(" ");
        match reply {
            Reply::Nil => "nil".into(),
            Reply::Integer(value) => value.to_string(),
            Reply::Data(data) => format!("'{}'", data.escape_ascii()),
            Reply::Error(why) => format!("error '{}'", why.escape_ascii()),
            Reply::List(list) => format!("[{}]", all(list)),
            Reply::Push(list) => format!("push [{}]", all(list)),
        }
    }

    fn all(reader: &mut Reader) -> Result<Vec<String>, Malformed> {
        let mut found = Vec::new();
        while let Some(reply) = reader.next()? {
            found.push(text(reply));
        }
        Ok(found)
    }

    /// Every type of the specification.
    const EVERYTHING: &[(&[u8], &str)] = &[
        (b"+OK\r\n", "'OK'"),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", "error 'MOVED 3999 127.0.0.1:6381'"),
        (b":-9223372036854775808\r\n", "-9223372036854775808"),
        (b":9223372036854775807\r\n", "9223372036854775807"),
        (b"$0\r\n\r\n", "''"),
        (b"$4\r\na\r\nb\r\n", "'a\\r\\nb'"),
        (b"$-1\r\n", "nil"),
        (b"*-1\r\n", "nil"),
        (b"_\r\n", "nil"),
        (b"#t\r\n", "1"),
        (b"#f\r\n", "0"),
        (b",3.25\r\n", "'3.25'"),
        (b"(3492890328409238509324850943850943825024385\r\n", "'3492890328409238509324850943850943825024385'"),
        (b"!9\r\nERR\r\nwhat\r\n", "error 'ERR\\r\\nwhat'"),
        (b"=7\r\ntxt:one\r\n", "'one'"),
        (b"*0\r\n", "[]"),
        (b"*3\r\n:1\r\n*2\r\n$1\r\na\r\n_\r\n*0\r\n", "[1 ['a' nil] []]"),
        (b"%2\r\n+a\r\n:1\r\n+b\r\n~1\r\n:2\r\n", "['a' 1 'b' [2]]"),
        (b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n", "push ['invalidate' ['k']]"),
    ];

    #[test]
    fn every_type_is_read() {
        for (octets, expected) in EVERYTHING {
            assert_eq!(all(&mut reader(octets)).unwrap(), [*expected]);
        }
    }

    #[test]
    fn replies_are_the_same_however_they_are_cut() {
        let octets: Vec<u8> = EVERYTHING.iter().flat_map(|(octets, _)| *octets).copied().collect();
        let expected: Vec<_> = EVERYTHING.iter().map(|(_, text)| *text).collect();
        for step in [1, 2, 3, 7, 64, octets.len()] {
            let (mut reader, mut found) = (Reader::new(MOST), Vec::new());
            for part in octets.chunks(step) {
                feed(&mut reader, part);
                found.append(&mut all(&mut reader).unwrap());
            }
            assert_eq!(found, expected, "in steps of {step}");
        }
    }

    #[test]
    fn what_is_not_resp_is_an_error() {
        for (octets, why) in [
            (&b"HTTP/1.1 400 Bad Request\r\n"[..], "an unknown type"),
            (b"\0", "an unknown type"),
            (b"?\r\n", "an unknown type"),
            (b"+OK\n", "a line that does not end in CR LF"),
            (b"\n", "a line that does not end in CR LF"),
            (b":\r\n", "not a number"),
            (b":-\r\n", "not a number"),
            (b":+1\r\n", "not a number"),
            (b":1 \r\n", "not a number"),
            (b":10000000000000000000\r\n", "not a number"),
            (b":9223372036854775808\r\n", "a number beyond 64 bits"),
            (b"$1\r\nabc", "a string that is not as long as it says"),
            (b"$-2\r\n", "a length out of range"),
            (b"$1048577\r\n", "too long a reply"),
            (b"$9223372036854775807\r\n", "too long a reply"),
            (b"*1048577\r\n", "a length out of range"),
            (b"*-2\r\n", "a length out of range"),
            (b"*?\r\n", "not a number"),
            (b"|1\r\n", "an unknown type"),
            (b"#x\r\n", "an unknown type"),
            (b"_x\r\n", "an unknown type"),
            (b"=3\r\nabc\r\n", "a verbatim string without its form"),
            (b"*1\r\n>1\r\n:1\r\n", "a push within a reply"),
        ] {
            assert_eq!(all(&mut reader(octets)), Err(Malformed(why)), "{}", octets.escape_ascii());
        }
    }

    #[test]
    fn depth_lines_and_replies_have_an_end() {
        assert_eq!(all(&mut reader(&b"*1\r\n".repeat(DEPTH))), Ok(vec![]));
        assert_eq!(all(&mut reader(&b"*1\r\n".repeat(DEPTH + 1))), Err(Malformed("too many lists in lists")));
        let line = [&b"-"[..], &vec![b'x'; LONGEST_LINE]].concat();
        assert_eq!(all(&mut reader(&line)), Err(Malformed("a line without an end")));
        let mut many = b"*1048576\r\n".to_vec();
        (0..MOST / 4).for_each(|_| many.extend(b":1\r\n"));
        assert_eq!(all(&mut reader(&many)), Err(TOO_LONG));
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut reader = Reader::new(usize::MAX);
        feed(&mut reader, b"*1000000\r\n$100000000000\r\n");
        assert_eq!(reader.next(), Ok(None));
        assert_eq!(reader.buffer.len(), READ_BYTES);
    }

    #[test]
    fn a_long_reply_is_read_and_its_memory_given_back() {
        let mut reader = Reader::new(4 * MOST);
        let long = vec![b'x'; 3 * MOST];
        let mut octets = Vec::new();
        command(&mut octets, &[b"a", &long]);
        for part in octets.chunks(10_000) {
            assert_eq!(reader.next(), Ok(None));
            feed(&mut reader, part);
        }
        let Ok(Some(Reply::List(mut list))) = reader.next() else { panic!("a list") };
        assert_eq!((list.next(), list.next(), list.next()), (Some(Reply::Data(b"a")), Some(Reply::Data(&long)), None));
        assert_eq!(reader.room().len(), READ_BYTES);
    }

    #[test]
    fn a_command_is_an_array_of_strings() {
        let mut out = Vec::new();
        command(&mut out, &[b"SET", b"", b"1234567890"]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$10\r\n1234567890\r\n");
    }
}
