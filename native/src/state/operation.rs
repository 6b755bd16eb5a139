//! What the loop asks for, as pieces that are answered one by one, and what becomes of it when all are.

use std::collections::BTreeMap;

use super::answer::{Answer, Failure, Said, Value};
use super::bytes::Bytes;
use super::command::{Asked, Command, Entry, Misfit, Outcome, Write, claimed, scanned};
use super::header::Stored;
use super::request::{Cursor, Octets, Request, Writes};
use super::resp::Reply;
use super::script::Script;
use super::slots::{Table, Tables};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Slot(u16),
    Node(usize),
}

#[derive(Debug)]
pub struct Piece {
    pub command: Bytes,
    /// What it calls, and a node may not know.
    pub script: Option<&'static Script>,
    pub target: Target,
    /// It does not only read. To send it again does as good as no harm.
    pub writes: bool,
    /// How many replicas shall have it, and a key of its slot that may be written to find that out.
    pub replicas: u32,
    pub mark: Vec<u8>,
    pub asked: Asked,
}

impl Piece {
    fn of(command: Command, writes: bool) -> Self {
        let Command { slot, bytes, script, asked } = command;
        let (target, mark) = (Target::Slot(slot), Vec::new());
        Self { command: bytes, script, target, writes, replicas: 0, mark, asked }
    }
}

/// After a partition's prefix: written so that `WAIT` waits for what was written before it.
const MARK: &[u8] = b"\xffwait";
const SCANNED_AT_ONCE: usize = 1000;

pub struct Operation {
    request: Request,
    /// Of the topology that its scans are about.
    epoch: u64,
    stepped: bool,
    so_far: SoFar,
}

enum SoFar {
    Values(Vec<Result<Option<Value>, Failure>>),
    /// Only of entries that were not simply stored.
    Written(BTreeMap<u32, Result<Option<Value>, Failure>>),
    Found {
        cursor: Option<Cursor>,
        keys: Octets,
        entries: Vec<(Vec<u8>, Value)>,
        failure: Option<Failure>,
    },
    Claimed {
        entries: Vec<(Vec<u8>, Value)>,
        failure: Option<Failure>,
    },
    One(Option<Answer>),
}

impl Operation {
    /// `masters`: the nodes that serve slots, in an order that is theirs for as long as `epoch` is the same.
    pub fn begin(request: Request, tables: &Tables, masters: &[usize], epoch: u64) -> (Self, Vec<Piece>) {
        let handle = match &request {
            Request::Call { words } => {
                let words: Vec<&[u8]> = words.iter().collect();
                let command = Command::other(words.get(1).copied().unwrap_or_default(), &words);
                let so_far = SoFar::One(None);
                return (Self { request, epoch, stepped: false, so_far }, vec![Piece::of(command, true)]);
            }
            Request::Read { table, .. }
            | Request::Write { table, .. }
            | Request::Scan { table, .. }
            | Request::Drop { table }
            | Request::Claim { table, .. }
            | Request::Expired { table, .. }
            | Request::Lock { table, .. }
            | Request::Renew { table, .. }
            | Request::Unlock { table, .. } => *table,
        };
        let Some(table) = tables.get(handle) else {
            let answer = Some(Answer::Failed(Failure::Refused(format!("table {handle} is not open"))));
            return (Self { request, epoch, stepped: false, so_far: SoFar::One(answer) }, Vec::new());
        };
        let repeatable = |commands: Vec<Command>| commands.into_iter().map(|it| Piece::of(it, true)).collect();
        let (so_far, pieces) = match &request {
            Request::Read { keys, .. } => (SoFar::Values(vec![Ok(None); keys.len()]), read(table, keys)),
            Request::Write { writes, .. } => match write(table, writes) {
                Ok(pieces) => (SoFar::Written(BTreeMap::new()), pieces),
                Err(why) => {
                    let failed = (0..writes.keys.len() as u32).map(|index| (index, Err(Failure::Refused(why.clone()))));
                    (SoFar::Written(failed.collect()), Vec::new())
                }
            },
            Request::Scan { cursor, count, .. } => {
                let at = cursor.filter(|at| at.epoch == epoch).unwrap_or(Cursor { epoch, node: 0, cursor: 0 });
                let pieces = masters.get(at.node).map(|&node| scan(table, at.cursor, *count, node));
                // The last node's cursor is the last: `answered` finds the next one.
                let cursor = (at.node < masters.len()).then_some(Cursor { node: at.node, ..at });
                let failure = masters.is_empty().then(|| Failure::Unavailable("no node is known".to_owned()));
                let so_far = SoFar::Found { cursor, keys: Octets::default(), entries: Vec::new(), failure };
                (so_far, pieces.into_iter().collect())
            }
            Request::Drop { .. } => everywhere(table, masters),
            Request::Claim { now_ms, claim_ms, most, .. } => {
                let partitions = table.partitions.len();
                let mut pieces =
                    table.claim_expired(*now_ms, now_ms.saturating_add(*claim_ms), (most / partitions).max(1));
                // Too few for all of them: others next time.
                pieces.rotate_left((*now_ms % partitions as u64) as usize);
                pieces.truncate(*most);
                (SoFar::Claimed { entries: Vec::new(), failure: None }, repeatable(pieces))
            }
            Request::Expired { keys, versions, .. } => {
                let keys: Vec<&[u8]> = keys.iter().collect();
                (SoFar::One(None), repeatable(table.expired(&keys, versions)))
            }
            Request::Lock { key, owner, lease_ms, .. } => {
                (SoFar::One(None), repeatable(vec![table.lock(key, *owner, *lease_ms)]))
            }
            Request::Renew { key, owner, lease_ms, .. } => {
                (SoFar::One(None), repeatable(vec![table.renew(key, *owner, *lease_ms)]))
            }
            Request::Unlock { key, owner, .. } => (SoFar::One(None), repeatable(vec![table.unlock(key, *owner)])),
            Request::Call { .. } => unreachable!("handled above"),
        };
        (Self { request, epoch, stepped: false, so_far }, pieces)
    }

    /// Whether it was about nodes among which slots have moved since.
    pub fn is_outdated(&self, epoch: u64) -> bool {
        matches!((&self.request, &self.so_far), (Request::Drop { .. }, SoFar::One(None)) if self.epoch != epoch)
    }

    /// All of an outdated one: what was on its way from one node to another may have been on neither.
    pub fn begin_again(&mut self, tables: &Tables, masters: &[usize], epoch: u64) -> Vec<Piece> {
        let Request::Drop { table } = self.request else { return Vec::new() };
        let Some(table) = tables.get(table) else { return Vec::new() };
        self.epoch = epoch;
        let pieces;
        (self.so_far, pieces) = everywhere(table, masters);
        pieces
    }

    /// Whether it got on since the last call: an operation of many steps has time for each.
    pub fn took_a_step(&mut self) -> bool {
        std::mem::take(&mut self.stepped)
    }

    /// One piece was answered, perhaps again. `doubtful`: an earlier sending may have been carried out; `masters`: how
    /// many there are in this `epoch`. What is to be asked then; or why that is not an answer.
    pub fn answered(
        &mut self,
        piece: &Piece,
        reply: Reply<'_>,
        doubtful: bool,
        tables: &Tables,
        masters: usize,
        epoch: u64,
    ) -> Result<Vec<Piece>, String> {
        let wrong = |malformed: super::resp::Malformed| malformed.0.to_owned();
        match (&piece.asked, &mut self.so_far) {
            (Asked::Values(values), SoFar::Values(entries)) => {
                values.read(reply, |index, value| entries[index as usize] = checked(value)).map_err(wrong)?;
            }
            // What a write left untold, read again: a conflict.
            (Asked::Values(values), SoFar::Written(entries)) => {
                values.read(reply, |index, value| drop(entries.insert(index, checked(value)))).map_err(wrong)?;
            }
            (Asked::Values(values), SoFar::Found { keys, entries, .. }) => {
                // What is no entry as well: somebody looks for it.
                let found = |index: u32, value: Option<&[u8]>| {
                    if let Some(value) = value {
                        entries.push((keys.get(index as usize).to_vec(), value.to_vec()));
                    }
                };
                values.read(reply, found).map_err(wrong)?;
            }
            (Asked::Written(written), SoFar::Written(entries)) => {
                if !entries.is_empty() {
                    written.indexes.iter().for_each(|index| drop(entries.remove(index)));
                }
                let mut untold = Vec::new();
                let outcome = |index, outcome: Outcome<'_>| {
                    let outcome = match outcome {
                        Outcome::Conflict(value) => checked(value),
                        Outcome::Untold => return untold.push(index),
                        Outcome::NotOwner => Err(Failure::LockLost),
                        Outcome::Unknown => {
                            let why = "its answer was lost, and too many others have written since";
                            Err(Failure::Unknown(why.to_owned()))
                        }
                    };
                    entries.insert(index, outcome);
                };
                written.read(reply, doubtful, outcome).map_err(wrong)?;
                return Ok(self.read_again(&untold, tables));
            }
            (Asked::Claimed, SoFar::Claimed { entries, .. }) => {
                claimed(reply, |key, value| {
                    if let Ok(Some(value)) = checked(Some(value)) {
                        entries.push((key.to_vec(), value));
                    }
                })
                .map_err(wrong)?;
            }
            (Asked::Locked, SoFar::One(answer)) => match reply {
                Reply::Integer(fence) => *answer = Some(Answer::Fence(u64::try_from(fence).ok().filter(|&it| it > 0))),
                _ => return Err("not the answer to a lock".to_owned()),
            },
            (Asked::Held, SoFar::One(answer)) => match reply {
                // An earlier sending may have given it back.
                Reply::Integer(0) if !(doubtful && matches!(self.request, Request::Unlock { .. })) => {
                    *answer = Some(Answer::Failed(Failure::LockLost));
                }
                Reply::Integer(_) => *answer = Some(Answer::Done),
                _ => return Err("not the answer about a lock".to_owned()),
            },
            (Asked::Removed, SoFar::One(_)) => {}
            (Asked::Other, _) => return self.scanned(piece, reply, tables, masters, epoch),
            _ => return Err("an answer to another question".to_owned()),
        }
        Ok(Vec::new())
    }

    fn read_again(&self, untold: &[u32], tables: &Tables) -> Vec<Piece> {
        let Request::Write { table, writes } = &self.request else { return Vec::new() };
        let Some(table) = tables.get(*table).filter(|_| !untold.is_empty()) else { return Vec::new() };
        let keys: Vec<&[u8]> = untold.iter().map(|&index| writes.keys.get(index as usize)).collect();
        let mut pieces = table.read(&keys);
        for piece in &mut pieces {
            if let Asked::Values(values) = &mut piece.asked {
                values.indexes.iter_mut().for_each(|index| *index = untold[*index as usize]);
            }
        }
        pieces.into_iter().map(|piece| Piece::of(piece, false)).collect()
    }

    /// A read of several keys, whose answer cannot be taken, as reads of one: only that of the guilty one fails then.
    pub fn one_by_one(&self, piece: &Piece, tables: &Tables) -> Vec<Piece> {
        let Asked::Values(values) = &piece.asked else { return Vec::new() };
        let (table, keys) = match (&self.request, &self.so_far) {
            (Request::Read { table, keys }, _) | (Request::Scan { table, .. }, SoFar::Found { keys, .. }) => {
                (*table, keys)
            }
            (Request::Write { table, writes }, _) => (*table, &writes.keys),
            _ => return Vec::new(),
        };
        let Some(table) = tables.get(table).filter(|_| values.indexes.len() > 1) else { return Vec::new() };
        let single = |&index: &u32| {
            let mut pieces = table.read(&[keys.get(index as usize)]);
            if let Some(Command { asked: Asked::Values(values), .. }) = pieces.first_mut() {
                values.indexes = [index].into();
            }
            pieces
        };
        values.indexes.iter().flat_map(single).map(|piece| Piece::of(piece, false)).collect()
    }

    fn scanned(
        &mut self,
        piece: &Piece,
        reply: Reply<'_>,
        tables: &Tables,
        masters: usize,
        epoch: u64,
    ) -> Result<Vec<Piece>, String> {
        let (handle, count) = match &self.request {
            Request::Scan { table, count, .. } => (*table, *count),
            Request::Drop { table } => (*table, SCANNED_AT_ONCE),
            _ => {
                self.so_far = SoFar::One(Some(Answer::Said(Said::of(reply))));
                return Ok(Vec::new());
            }
        };
        let (Some(table), Target::Node(node)) = (tables.get(handle), piece.target) else { return Ok(Vec::new()) };
        self.stepped = true;
        let (next, names) = scanned(reply).map_err(|malformed| malformed.0.to_owned())?;
        let names = names.filter_map(|name| if let Reply::Data(name) = name { Some(name) } else { None });
        // Locks, fences and deadlines are no entries: they stay.
        let entry = |name| tables.find(name).filter(|(table, _)| *table == handle).map(|(_, key)| key);
        match &mut self.so_far {
            SoFar::Found { cursor, keys, .. } => {
                let Some(at) = *cursor else { return Ok(Vec::new()) };
                *keys = names.filter_map(entry).collect();
                let pieces = read(table, keys);
                let at = match next {
                    _ if at.epoch != epoch => Cursor { epoch, node: 0, cursor: 0 },
                    0 => Cursor { node: at.node + 1, cursor: 0, ..at },
                    next => Cursor { cursor: next, ..at },
                };
                *cursor = (at.node < masters).then_some(at);
                Ok(pieces)
            }
            _ => {
                let keys: Vec<&[u8]> = names.filter_map(entry).collect();
                let mut pieces: Vec<Piece> =
                    table.drop(&keys).into_iter().map(|piece| Piece::of(piece, true)).collect();
                if next != 0 {
                    pieces.push(scan(table, next, count, node));
                }
                Ok(pieces)
            }
        }
    }

    /// One piece will not be answered, or not as was asked.
    pub fn failed(&mut self, piece: &Piece, why: Failure) {
        match (&piece.asked, &mut self.so_far) {
            (Asked::Values(values), SoFar::Values(entries)) => {
                values.indexes.iter().for_each(|&index| entries[index as usize] = Err(why.clone()));
            }
            (Asked::Values(values), SoFar::Written(entries)) => {
                // They were conflicts: whatever keeps us from reading them, they have not been written.
                values.indexes.iter().for_each(|&index| drop(entries.insert(index, Err(why.clone()))));
            }
            (Asked::Written(written), SoFar::Written(entries)) => {
                for &index in &written.indexes {
                    entries.entry(index).or_insert_with(|| Err(why.clone()));
                }
            }
            (Asked::Values(values), SoFar::Found { keys, entries, .. }) if why == Failure::NoEntry => {
                let key = |index: &u32| (keys.get(*index as usize).to_vec(), Value::new());
                entries.extend(values.indexes.iter().map(key));
            }
            (_, SoFar::Found { failure, .. } | SoFar::Claimed { failure, .. }) => *failure = Some(why),
            (_, SoFar::One(answer)) => *answer = Some(Answer::Failed(why)),
            _ => {}
        }
    }

    pub fn finish(self) -> (Request, Answer) {
        (self.request, self.so_far.finish())
    }
}

impl SoFar {
    fn finish(self) -> Answer {
        match self {
            Self::Values(entries) => Answer::Values(entries),
            Self::Written(entries) => {
                let (mut conflicts, mut failed) = (Vec::new(), Vec::new());
                for (index, outcome) in entries {
                    match outcome {
                        Ok(value) => conflicts.push((index, value)),
                        Err(failure) => failed.push((index, failure)),
                    }
                }
                Answer::Written { conflicts, failed }
            }
            SoFar::Found { failure: Some(failure), .. } => Answer::Failed(failure),
            SoFar::Found { cursor, entries, .. } => Answer::Found { cursor, entries },
            SoFar::Claimed { mut entries, failure } => match failure {
                // What was claimed elsewhere is to be handled: nobody else will be given it.
                Some(failure) if entries.is_empty() => Answer::Failed(failure),
                _ => {
                    entries.sort_by_key(|(_, value)| Stored::parse(value).map_or(0, |stored| stored.deadline_ms));
                    Answer::Claimed(entries)
                }
            },
            SoFar::One(answer) => answer.unwrap_or(Answer::Done),
        }
    }
}

fn checked(value: Option<&[u8]>) -> Result<Option<Value>, Failure> {
    match value {
        Some(value) if Stored::parse(value).is_none() => Err(Failure::NoEntry),
        value => Ok(value.map(<[u8]>::to_vec)),
    }
}

fn read(table: &Table, keys: &Octets) -> Vec<Piece> {
    let keys: Vec<&[u8]> = keys.iter().collect();
    table.read(&keys).into_iter().map(|piece| Piece::of(piece, false)).collect()
}

fn write(table: &Table, writes: &Writes) -> Result<Vec<Piece>, String> {
    let mut deleted = writes.deleted.iter().peekable();
    let entry = |index: usize| Entry {
        key: writes.keys.get(index),
        payload: deleted.next_if_eq(&&index).is_none().then(|| writes.payloads.get(index)),
        expected: writes.expected.as_ref().map_or(0, |expected| expected[index]),
        deadline_ms: writes.deadlines.get(index).copied().unwrap_or(0),
        recent: if writes.recents.is_empty() { &[] } else { writes.recents.get(index) },
    };
    let entries: Vec<Entry<'_>> = (0..writes.keys.len()).map(entry).collect();
    let batch = Write {
        entries: &entries,
        first: writes.first,
        conditional: writes.expected.is_some(),
        update: writes.update,
        guard: writes.guard.as_ref().map(|(key, owner)| (&key[..], *owner)),
    };
    let pieces = table.write(&batch).map_err(|misfit| match misfit {
        Misfit::Recent(index) => format!("entry {index}: its list of recent updates is none"),
        Misfit::Guard(index) => format!("entry {index}: it is in another partition than its guard"),
    })?;
    Ok(pieces
        .into_iter()
        .map(|piece| {
            let mut piece = Piece::of(piece, true);
            if let (1.., Asked::Written(written)) = (writes.replicas, &piece.asked) {
                let home = &table.partitions[table.partition(writes.keys.get(written.indexes[0] as usize))];
                piece.mark = [&home.prefix, MARK].concat();
                piece.replicas = writes.replicas;
            }
            piece
        })
        .collect())
}

/// Scans of all nodes, to drop what they find; or why there are none.
fn everywhere(table: &Table, masters: &[usize]) -> (SoFar, Vec<Piece>) {
    let failure = || Answer::Failed(Failure::Unavailable("no node is known".to_owned()));
    let pieces = masters.iter().map(|&node| scan(table, 0, SCANNED_AT_ONCE, node)).collect();
    (SoFar::One(masters.is_empty().then(failure)), pieces)
}

fn scan(table: &Table, cursor: u64, count: usize, node: usize) -> Piece {
    let command = table.scan(cursor, count);
    let (command, target, mark) = (command.into(), Target::Node(node), Vec::new());
    Piece { command, script: None, target, writes: false, replicas: 0, mark, asked: Asked::Other }
}
