//! What a connection is to its owner: the states that events and calls lead through, in one table.

use crate::stack::tcp::{Gone, TcpEvent};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Not begun.
    Nothing,
    /// Told of, not yet adopted.
    Offered,
    Opening,
    Open,
    /// This side has ended.
    Ended,
    /// Closed, aborted or told to be gone: nothing more may be told.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    // Calls.
    Open,
    Adopt,
    End,
    Close,
    Abort,
    // Events.
    Accepted,
    Connected,
    Readable,
    Writable,
    /// A reason that only a connection that is being opened can have.
    Failed,
    Lost,
}

const TABLE: &[(Life, Step, Life)] = &[
    (Life::Nothing, Step::Open, Life::Opening),
    (Life::Nothing, Step::Accepted, Life::Offered),
    (Life::Offered, Step::Adopt, Life::Open),
    (Life::Offered, Step::Abort, Life::Gone),
    (Life::Opening, Step::Connected, Life::Open),
    (Life::Opening, Step::Failed, Life::Gone),
    (Life::Opening, Step::Lost, Life::Gone),
    (Life::Opening, Step::Abort, Life::Gone),
    (Life::Open, Step::Readable, Life::Open),
    (Life::Open, Step::Writable, Life::Open),
    (Life::Open, Step::End, Life::Ended),
    (Life::Open, Step::Close, Life::Gone),
    (Life::Open, Step::Abort, Life::Gone),
    (Life::Open, Step::Lost, Life::Gone),
    (Life::Ended, Step::Readable, Life::Ended),
    (Life::Ended, Step::Close, Life::Gone),
    (Life::Ended, Step::Abort, Life::Gone),
    (Life::Ended, Step::Lost, Life::Gone),
];

impl Life {
    pub fn after(self, step: Step) -> Self {
        let row = TABLE.iter().find(|row| (row.0, row.1) == (self, step));
        row.unwrap_or_else(|| panic!("{step:?} of a connection that is {self:?}")).2
    }
}

impl From<&TcpEvent> for Step {
    fn from(event: &TcpEvent) -> Self {
        match event {
            TcpEvent::Accepted { .. } => Self::Accepted,
            TcpEvent::Connected { .. } => Self::Connected,
            TcpEvent::Readable { .. } => Self::Readable,
            TcpEvent::Writable { .. } => Self::Writable,
            TcpEvent::Closed { reason: Gone::Refused | Gone::Unreachable(_), .. } => Self::Failed,
            TcpEvent::Closed { reason: Gone::Reset | Gone::TimedOut, .. } => Self::Lost,
        }
    }
}
