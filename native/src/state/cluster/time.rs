//! What time brings: operations that are over, leases that are due, pieces that were put off.

use super::*;

/// Less is what may lie between two readings of a clock.
const SUSPENSION: Duration = Duration::from_millis(100);

impl Cluster {
    pub fn tick(&mut self, now: Instant) {
        self.wake = None;
        self.renew_leases(now);
        self.expire(now);
        while let Some(Reverse((_, number))) = self.later.peek().filter(|Reverse((at, _))| *at <= now).copied() {
            self.later.pop();
            self.route(number, now);
        }
        let is_healthy = self.tell_health();
        if self.ask_at.is_none() {
            self.ask(if is_healthy { ASK_ANYWAY } else { ASK_AGAIN }, now);
        }
        for key in 0..self.nodes.len() * LANES {
            self.mind(key, is_healthy, now);
        }
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask_now(now);
        }
        self.prune();
        let timers = [
            self.deadlines.front().map(|&(at, _)| at),
            self.later.peek().map(|&Reverse((at, _))| at),
            self.ask_at,
            self.next_lease(),
        ];
        timers.into_iter().flatten().for_each(|at| self.wake_at(at));
    }

    pub(super) fn renewed(&mut self, lock: Lock, answer: &Answer, since: Instant) {
        match answer {
            Answer::Done => {
                self.counters.leases_renewed += 1;
                self.leases.renewed(&lock, since);
            }
            Answer::Failed(Failure::LockLost) if self.leases.gone(&lock) => {
                self.counters.leases_lost += 1;
                self.lapsed.push(lock);
            }
            // It is tried again while the lease lasts.
            _ => {}
        }
    }

    /// For how long the machine has been suspended since it was started. At the store leases have gone on meanwhile, and
    /// `Instant` has not: for leases that time is added.
    pub fn suspended(&mut self, total: Duration) {
        if total > self.suspended + SUSPENSION {
            self.suspended = total;
        }
    }

    pub(super) fn next_lease(&self) -> Option<Instant> {
        self.leases.next()?.checked_sub(self.suspended)
    }

    /// When the loop has shown last that it lives.
    pub fn beat(&mut self, at: Instant) {
        self.beat = at;
    }

    fn renew_leases(&mut self, now: Instant) {
        let lives = now.saturating_duration_since(self.beat) <= self.settings.stall_limit;
        let (due, mut lapsed) = self.leases.due(lives, now + self.suspended);
        self.counters.leases_lost += lapsed.len() as u64;
        self.lapsed.append(&mut lapsed);
        for (Lock { table, key, owner }, lease) in due {
            let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            // Numbers from the other end than the loop's.
            self.renewals += 1;
            self.submit(u64::MAX - self.renewals, Request::Renew { table, key, owner, lease_ms }, now);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.front().filter(|(deadline, _)| *deadline <= now) {
            self.deadlines.pop_front();
            let Some(under_way) = self.operations.get_mut(&id) else { continue };
            if under_way.operation.took_a_step() {
                // A long one (a scan, a drop) has time for each step.
                self.deadlines.push_back((deadline + self.settings.timeout, id));
                continue;
            }
            self.counters.timeouts += 1;
            for number in under_way.pieces.clone() {
                let Some(sending) = self.pieces.get(&number) else { continue };
                let why = if sending.why.is_empty() { self.reason(sending) } else { sending.why.clone() };
                let why = format!("no answer within {:?}: {why}", self.settings.timeout);
                let is_unknown = sending.piece.writes && (sending.sent || sending.doubtful);
                self.fail(number, if is_unknown { Failure::Unknown(why) } else { Failure::Unavailable(why) });
            }
        }
    }

    fn reason(&self, sending: &Sending) -> String {
        let node = match sending.piece.target {
            Target::Slot(slot) => self.owners.of(slot),
            Target::Node(node) => Some(node),
        };
        match node.and_then(|node| self.nodes.get(node)?.as_ref()) {
            Some(node) => match node.links.iter().find(|link| !link.why.is_empty()) {
                Some(link) => format!("{}: {}", node.address, link.why),
                None => format!("{} is slow", node.address),
            },
            None => "no node is known for it".to_owned(),
        }
    }
}
