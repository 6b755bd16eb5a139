//! A rule's actions, as they are run: the verdict is known at once, and the one step that most lists have besides it is
//! one pointer away. Rules that do the same share what is pointed to.

use std::ptr::NonNull;
use std::sync::Arc;

use super::translation::Translation;
use super::{Action, Limit, Verdict};
use crate::packet::prefetch::prefetch;

#[derive(Clone, PartialEq)]
pub(super) enum Program {
    Just(End),
    /// One step, and such a rewriting.
    Translate(End, Arc<Translation>),
    One(End, Arc<Action>),
    List(End, Arc<Vec<Action>>),
}

/// Of the list of actions.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct End {
    verdict: Verdict,
    /// There is a `Count` in it.
    counts: bool,
}

// A quarter of a rule's first cache line.
const _: () = assert!(size_of::<Program>() == 16);

impl Program {
    pub const NOTHING: Self = Self::Just(End { verdict: Verdict::Miss, counts: false });

    /// Of a list that was checked. Counting is not a step: every rule counts.
    pub fn new(actions: &[Action]) -> Self {
        let verdict = actions.last().map_or(Verdict::Miss, verdict);
        let end = End { verdict, counts: actions.contains(&Action::Count) };
        let steps: Vec<Action> = actions.iter().filter(|action| is_step(action)).copied().collect();
        match steps[..] {
            [] => Self::Just(end),
            [step] => match Translation::of(&step) {
                Some(translation) => Self::Translate(end, Arc::new(translation)),
                None => Self::One(end, Arc::new(step)),
            },
            _ => Self::List(end, Arc::new(steps)),
        }
    }

    /// The list again, with `Count` before all.
    pub fn actions(&self) -> Vec<Action> {
        let last = match self.verdict() {
            Verdict::Miss => None,
            Verdict::Drop => Some(Action::Drop),
            Verdict::Forward(port) => Some(Action::Forward(port)),
            Verdict::Route(port) => Some(Action::Route(port)),
            Verdict::Reply => Some(Action::Reply),
            Verdict::Accept => Some(Action::Accept),
            Verdict::ToPython => Some(Action::ToPython),
        };
        let steps = match self {
            Self::Just(_) => Vec::new(),
            Self::Translate(_, translation) => vec![Action::Rewrite(translation.whole())],
            Self::One(_, step) => vec![**step],
            Self::List(_, steps) => steps.to_vec(),
        };
        self.end().counts.then_some(Action::Count).into_iter().chain(steps).chain(last).collect()
    }

    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        self.end().verdict
    }

    #[inline(always)]
    fn end(&self) -> &End {
        let (Self::Just(end) | Self::Translate(end, _) | Self::One(end, _) | Self::List(end, _)) = self;
        end
    }

    /// Asks for the steps.
    #[inline(always)]
    pub fn prefetch(&self) {
        match self {
            Self::Just(_) => {}
            Self::Translate(_, translation) => prefetch(NonNull::from(&**translation).cast(), 1, false),
            // It begins at a multiple of 16, and so ends at most 48 bytes into another line.
            Self::One(_, step) => prefetch(NonNull::from(&**step).cast(), size_of::<Action>() + 48, false),
            Self::List(_, steps) => prefetch(NonNull::from(&**steps).cast(), 1, false),
        }
    }

    pub fn limit(&self) -> Option<&Limit> {
        match self {
            Self::Just(_) | Self::Translate(..) => None,
            Self::One(_, step) => step.limit(),
            Self::List(_, steps) => steps.iter().find_map(Action::limit),
        }
    }

    /// Does it change addresses or ports?
    pub fn rewrites(&self) -> bool {
        match self {
            Self::Just(_) => false,
            Self::Translate(..) => true,
            Self::One(_, step) => matches!(**step, Action::Rewrite(_)),
            Self::List(_, steps) => steps.iter().any(|step| matches!(step, Action::Rewrite(_))),
        }
    }
}

impl End {
    #[inline(always)]
    pub fn verdict(self) -> Verdict {
        self.verdict
    }
}

impl Action {
    pub(super) fn limit(&self) -> Option<&Limit> {
        if let Self::Limit(limit) = self { Some(limit) } else { None }
    }
}

fn is_step(action: &Action) -> bool {
    !action.is_last() && *action != Action::Count
}

fn verdict(last: &Action) -> Verdict {
    match *last {
        Action::Drop => Verdict::Drop,
        Action::Forward(port) => Verdict::Forward(port),
        Action::Route(port) => Verdict::Route(port),
        Action::Reply => Verdict::Reply,
        Action::Accept => Verdict::Accept,
        Action::ToPython => Verdict::ToPython,
        Action::Count | Action::Rewrite(_) | Action::Encapsulate(_) | Action::Decapsulate | Action::Limit(_) => {
            Verdict::Miss
        }
    }
}
