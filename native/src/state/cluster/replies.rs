//! What nodes say to pieces, and what follows: done, to be asked elsewhere or later, to reach replicas first.

use super::*;

impl Cluster {
    // --- replies to pieces --------------------------------------------------------------------------------------------

    pub(super) fn piece_replied(&mut self, key: Key, number: u64, reply: Reply<'_>, now: Instant) {
        let Some(sending) = self.pieces.get_mut(&number) else {
            self.counters.late += 1;
            return;
        };
        sending.sent = false;
        if let (Target::Slot(slot), Some(node)) = (sending.piece.target, &mut self.nodes[key / LANES]) {
            node.answered.add(slot);
        }
        let reply = match reply {
            // A list or a hash, say: no entry. `MGET` has nil for it, and a write replaces it.
            Reply::Error(error) if error.starts_with(b"WRONGTYPE") && sending.piece.asked.is_values() => Reply::Nil,
            Reply::Error(error) => return self.refused(key, number, &words(error), now),
            reply => reply,
        };
        let Some(UnderWay { operation, .. }) = self.operations.get_mut(&sending.operation) else { return };
        let masters = self.nodes.iter().flatten().filter(|node| node.serves).count();
        let pieces = operation.answered(&sending.piece, reply, sending.doubtful, &self.tables, masters, self.epoch);
        let is_outdated = operation.is_outdated(self.epoch);
        match pieces {
            Ok(pieces) if sending.piece.replicas == 0 => {
                let id = sending.operation;
                self.add(id, pieces, now);
                self.forget(number);
                if is_outdated {
                    self.begin_again(id, now);
                }
                self.finish_if_over(id);
            }
            Ok(pieces) => {
                sending.doubtful = true;
                let id = sending.operation;
                let lane = sending.lane;
                self.add(id, pieces, now);
                let at = key / LANES;
                let node = self.nodes[at].as_mut().filter(|node| node.links[WAITING].generation == lane);
                match node {
                    Some(node) => {
                        node.written.push_back(number);
                        self.wait(at, now);
                    }
                    None => self.again(number, "the connection for WAIT was lost", now),
                }
            }
            Err(why) => {
                self.counters.garbage += 1;
                self.fail(number, Failure::Refused(why));
            }
        }
    }

    /// What stands in front of the connection is not asked for again: it would end the next one as well.
    pub(super) fn answer_too_long(&mut self, key: Key, generation: u32, now: Instant) {
        let Some(link) = self.link(key, generation) else { return };
        let Some(&Expected::Piece(number)) = link.expected.front() else { return };
        link.expected.pop_front();
        let Some(sending) = self.pieces.get_mut(&number) else { return };
        let Some(UnderWay { operation, .. }) = self.operations.get(&sending.operation) else { return };
        let singles = operation.one_by_one(&sending.piece, &self.tables);
        let id = sending.operation;
        if singles.is_empty() {
            sending.doubtful |= sending.piece.writes;
            let failure = match sending.piece.asked.is_values() {
                // No table stores what is as long.
                true => Failure::NoEntry,
                false => Failure::Refused(format!("the answer is longer than {}", self.settings.longest_reply)),
            };
            return self.fail(number, failure);
        }
        self.add(id, singles, now);
        self.forget(number);
    }

    pub(super) fn refused(&mut self, key: Key, number: u64, error: &str, now: Instant) {
        let at = key / LANES;
        let sender = self.node_mut(at).address.clone();
        let Some(sending) = self.pieces.get_mut(&number) else { return };
        error.clone_into(&mut sending.why);
        let remedy = match remedy(error, &sender) {
            Remedy::Moved(..) | Remedy::Ask(_) if !self.settings.cluster => {
                let why = format!("{sender} is a node of a cluster, and was given as a single server: {error}");
                return self.fail(number, Failure::Refused(why));
            }
            Remedy::Moved(..) | Remedy::Ask(_) if sending.redirections >= REDIRECTIONS => Remedy::Wait,
            remedy => remedy,
        };
        match remedy {
            Remedy::Moved(slot, address) => {
                sending.redirections += 1;
                self.counters.moved += 1;
                self.ask(ASK_SOON, now);
                match self.node(&address, now) {
                    Some(there) => {
                        if self.owners.set(slot, slot, there) {
                            self.epoch += 1;
                            self.news.slots_stale(&self.tables, |it| it == slot);
                        }
                        self.node_mut(there).serves = true;
                        self.give(there, number, false, now);
                    }
                    None => self.put_off(number, PUT_OFF, now),
                }
            }
            Remedy::Ask(address) => {
                sending.redirections += 1;
                self.counters.asked += 1;
                match self.node(&address, now) {
                    Some(there) => self.give(there, number, true, now),
                    None => self.put_off(number, PUT_OFF, now),
                }
            }
            Remedy::LoadScript
                if sending.script_loads < SCRIPT_LOADS
                    && let Some(script) = sending.piece.script =>
            {
                sending.script_loads += 1;
                self.counters.script_loads += 1;
                self.link_mut(key).push(Expected::Anything, &script.load(), now);
                self.give(at, number, false, now);
            }
            Remedy::TryAgain => self.put_off(number, TRY_AGAIN, now),
            Remedy::Wait => {
                sending.redirections = 0;
                self.ask(ASK_SOON, now);
                self.put_off(number, PUT_OFF, now);
            }
            Remedy::LoadScript | Remedy::None => {
                self.counters.refused += 1;
                self.fail(number, Failure::Refused(error.to_owned()));
            }
        }
    }

    pub(super) fn put_off(&mut self, number: u64, pause: Duration, now: Instant) {
        self.counters.retries += 1;
        self.later.push(Reverse((now + pause, number)));
        self.wake_at(now + pause);
    }

    // --- replicas -----------------------------------------------------------------------------------------------------

    /// Lets a `WAIT` go for what is written, if there is room for one. `WAIT` is about what its own connection wrote last;
    /// replication is in order, so a mark written after the pieces stands for them.
    pub(super) fn wait(&mut self, at: usize, now: Instant) {
        let settings = &self.settings;
        let Some(node) = self.nodes[at].as_mut() else { return };
        loop {
            let link = &mut node.links[WAITING];
            let under_way = link.expected.iter().filter(|expected| matches!(expected, Expected::Wait(_))).count();
            if under_way >= WAITS || !link.is_up() {
                return;
            }
            // Pieces that ask for as many replicas share a WAIT.
            let mut numbers = Vec::new();
            let mut mark = None;
            while let Some(&number) = node.written.front() {
                match self.pieces.get(&number) {
                    Some(sending) => match (&mark, &sending.piece.mark) {
                        (Some((replicas, _)), _) if *replicas != sending.piece.replicas => break,
                        _ if numbers.len() >= SHARE_A_WAIT => break,
                        (None, key) => mark = Some((sending.piece.replicas, key.clone())),
                        (Some(_), _) => {}
                    },
                    None => {
                        node.written.pop_front();
                        continue;
                    }
                }
                numbers.push(number);
                node.written.pop_front();
            }
            let Some((replicas, key)) = mark else { return };
            link.push_words(Expected::Mark, &[b"SET", &key, b"", b"PX", b"1000"], now);
            let timeout = settings.replica_timeout.as_millis().to_string();
            link.push_words(
                Expected::Wait(numbers),
                &[b"WAIT", replicas.to_string().as_bytes(), timeout.as_bytes()],
                now,
            );
            let key = at * LANES + WAITING;
            if self.dirty.last() != Some(&key) {
                self.dirty.push(key);
            }
            self.wake = Some(self.wake.map_or(now + settings.silence, |wake| wake.min(now + settings.silence)));
        }
    }

    pub(super) fn waited(&mut self, at: usize, numbers: Vec<u64>, reply: Reply<'_>, now: Instant) {
        let is_marked = !std::mem::take(&mut self.node_mut(at).unmarked);
        let reached = match reply {
            Reply::Integer(reached) if is_marked => Some(reached),
            _ => None,
        };
        for number in numbers {
            let Some(sending) = self.pieces.get(&number) else { continue };
            let (id, wanted) = (sending.operation, sending.piece.replicas);
            match reached {
                Some(reached) if reached >= i64::from(wanted) => {
                    self.forget(number);
                    self.finish_if_over(id);
                }
                Some(reached) => {
                    self.counters.too_few_replicas += 1;
                    self.fail(number, Failure::Unknown(format!("{reached} of {wanted} replicas have it")));
                }
                None => self.again(number, "WAIT was refused", now),
            }
        }
        self.wait(at, now);
    }
}
