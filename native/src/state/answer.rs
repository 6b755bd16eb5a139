//! What becomes of what the loop asked for.

use super::request::Cursor;
use super::resp::Reply;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The store says no, or what it says is none of ours. Nothing was changed.
    Refused(String),
    /// It could not be asked in time. Nothing was changed.
    Unavailable(String),
    /// It may stand, now or in a moment, or on too few replicas.
    Unknown(String),
    /// The lock is no longer the owner's.
    LockLost,
    /// What stands under the key is no entry, whoever put it there.
    NoEntry,
}

/// An entry that is one, as it is stored.
pub type Value = Vec<u8>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Values(Vec<Result<Option<Value>, Failure>>),
    Written {
        conflicts: Vec<(u32, Option<Value>)>,
        failed: Vec<(u32, Failure)>,
    },
    /// Values that are no entries, too.
    Found {
        cursor: Option<Cursor>,
        entries: Vec<(Vec<u8>, Value)>,
    },
    Claimed(Vec<(Vec<u8>, Value)>),
    Fence(Option<u64>),
    Done,
    Said(Said),
    Failed(Failure),
}

impl Answer {
    pub fn weight(&self) -> usize {
        let pairs = |pairs: &[(Vec<u8>, Value)]| pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        match self {
            Self::Values(values) => {
                values.iter().map(|value| value.as_ref().map_or(0, |value| value.as_ref().map_or(0, Vec::len))).sum()
            }
            Self::Written { conflicts, .. } => {
                conflicts.iter().map(|(_, value)| value.as_ref().map_or(0, Vec::len)).sum()
            }
            Self::Found { entries, .. } | Self::Claimed(entries) => pairs(entries),
            Self::Said(said) => said.weight(),
            Self::Fence(_) | Self::Done | Self::Failed(_) => 0,
        }
    }

    /// There is no room for it: what only reads fails, and can be asked again. Whether it did.
    pub fn give_up(&mut self) -> bool {
        let failure = Failure::Unavailable("too many answers have not been taken".to_owned());
        match self {
            Self::Values(values) => values.iter_mut().for_each(|value| *value = Err(failure.clone())),
            Self::Found { .. } | Self::Claimed(_) => *self = Self::Failed(failure),
            _ => return false,
        }
        true
    }
}

/// A reply, kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Nil,
    Integer(i64),
    Data(Vec<u8>),
    List(Vec<Said>),
}

impl Said {
    pub(super) fn of(reply: Reply<'_>) -> Self {
        match reply {
            Reply::Nil => Self::Nil,
            Reply::Integer(value) => Self::Integer(value),
            Reply::Data(data) | Reply::Error(data) => Self::Data(data.to_vec()),
            Reply::List(list) | Reply::Push(list) => Self::List(list.map(Self::of).collect()),
        }
    }

    fn weight(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Data(data) => data.len(),
                Self::List(list) => list.iter().map(Self::weight).sum(),
                Self::Nil | Self::Integer(_) => 0,
            }
    }
}
