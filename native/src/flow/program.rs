//! A rule's actions, as they are run: the verdict is known at once, and the one step that most lists have besides it is
//! one pointer away. Rules that do the same share what is pointed to.

use std::sync::Arc;

use super::{Action, Limit, Verdict};

#[derive(Clone, PartialEq)]
pub(super) enum Program {
    Just(End),
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
            [step] => Self::One(end, Arc::new(step)),
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
        self.end().counts.then_some(Action::Count).into_iter().chain(self.steps().iter().copied()).chain(last).collect()
    }

    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        self.end().verdict
    }

    #[inline(always)]
    fn end(&self) -> &End {
        let (Self::Just(end) | Self::One(end, _) | Self::List(end, _)) = self;
        end
    }

    pub fn steps(&self) -> &[Action] {
        match self {
            Self::Just(_) => &[],
            Self::One(_, step) => std::slice::from_ref(step),
            Self::List(_, steps) => steps,
        }
    }

    pub fn limit(&self) -> Option<&Limit> {
        self.steps().iter().find_map(Action::limit)
    }

    /// Does it change addresses or ports?
    pub fn rewrites(&self) -> bool {
        self.steps().iter().any(|step| matches!(step, Action::Rewrite(_)))
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
