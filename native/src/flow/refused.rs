//! Why a rule is not installed. What is installed can be run.

use std::fmt;
use std::time::Duration;

use super::{Action, Rule};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are as many rules as there may be.
    Full,
    /// The system has no memory for so many.
    Memory,
    /// There are as many kinds of matches as there may be.
    Shapes,
    /// A prefix is longer than its address.
    Prefix,
    /// Source and destination are of two versions of IP.
    Family,
    /// No VLAN id.
    Vlan,
    /// An action behind one that ends the list.
    Unreachable,
    /// The packet is changed, and then nothing is done with it.
    Unfinished,
    /// Two limits.
    Limits,
    /// A limit's rate or burst is not a positive number.
    Limit,
    /// It would end at once.
    Timeout,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "there are as many flows as there may be",
            Self::Memory => "there is no memory for so many flows",
            Self::Shapes => "there are 256 kinds of matches (fields, prefix lengths) already",
            Self::Prefix => "a prefix is longer than its address",
            Self::Family => "source and destination are of two versions of IP",
            Self::Vlan => "a VLAN id is 0 (untagged) to 4095",
            Self::Unreachable => "an action stands behind one that ends the list",
            Self::Unfinished => {
                "the packet is changed, but not sent on: end with forward, route, reply, accept or to_python"
            }
            Self::Limits => "one limit at most",
            Self::Limit => "a limit's rate and burst are positive numbers",
            Self::Timeout => "a timeout is longer than 0",
        })
    }
}

impl std::error::Error for Refused {}

impl Action {
    /// Does it decide what becomes of the packet?
    pub fn is_last(&self) -> bool {
        use Action::{Accept, Drop, Forward, Reply, Route, ToPython};
        matches!(self, Drop | Forward(_) | Route(_) | Reply | Accept | ToPython)
    }

    fn is_edit(&self) -> bool {
        matches!(self, Self::Rewrite(_) | Self::Encapsulate(_) | Self::Decapsulate)
    }
}

impl Rule {
    pub(super) fn check(&self) -> Result<(), Refused> {
        let before = &self.actions[..self.actions.len().saturating_sub(1)];
        if before.iter().any(Action::is_last) {
            return Err(Refused::Unreachable);
        }
        if !self.actions.last().is_some_and(Action::is_last) && self.actions.iter().any(Action::is_edit) {
            return Err(Refused::Unfinished);
        }
        let mut limits = 0;
        for action in &self.actions {
            let Action::Limit(limit) = action else { continue };
            let positive = |number: f64| number > 0.0 && number.is_finite();
            if !positive(limit.bits_per_s) || !positive(limit.burst_bytes) {
                return Err(Refused::Limit);
            }
            limits += 1;
        }
        if limits > 1 {
            return Err(Refused::Limits);
        }
        if [self.idle, self.hard].contains(&Some(Duration::ZERO)) { Err(Refused::Timeout) } else { Ok(()) }
    }
}
