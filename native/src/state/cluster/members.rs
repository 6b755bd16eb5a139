//! The nodes of a cluster: which are connected, who is asked for the topology, and what follows from it.

use super::*;

pub type Gauges = [(&'static str, u64); 4];

impl Cluster {
    /// The node of that address, made if there is room for it.
    pub(super) fn node(&mut self, address: &Address, now: Instant) -> Option<usize> {
        if let Some(&at) = self.by_address.get(address) {
            return Some(at);
        }
        let at = match self.nodes.iter().position(Option::is_none) {
            Some(at) => at,
            None if self.nodes.len() < MAX_NODES => {
                self.nodes.push(None);
                self.nodes.len() - 1
            }
            None => return None,
        };
        let link = || Link::new(self.settings.longest_reply, now);
        self.nodes[at] = Some(Node {
            address: address.clone(),
            links: [link(), link()],
            is_seed: false,
            serves: false,
            waits: false,
            waiting: VecDeque::new(),
            written: VecDeque::new(),
            unmarked: false,
            answered: SlotSet::default(),
        });
        self.by_address.insert(address.clone(), at);
        self.wake_at(now);
        Some(at)
    }

    /// A node that is known to be there: its key came from a link, an owner, or [`Cluster::node`].
    pub(super) fn node_mut(&mut self, at: usize) -> &mut Node {
        self.nodes[at].as_mut().expect("a node in use")
    }

    pub(super) fn link_mut(&mut self, key: Key) -> &mut Link {
        &mut self.node_mut(key / LANES).links[key % LANES]
    }

    /// The link, if it still is that connection.
    pub(super) fn link(&mut self, key: Key, generation: u32) -> Option<&mut Link> {
        let link = &mut self.nodes.get_mut(key / LANES)?.as_mut()?.links[key % LANES];
        let is_it = link.generation == generation && !matches!(link.phase, Phase::Resting { .. });
        is_it.then_some(link)
    }

    pub fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// Links with something to send, some of them twice.
    pub fn take_dirty(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.dirty)
    }

    /// What is to be sent next, and on which connection.
    pub fn unsent(&self, key: Key) -> Option<(u32, &[u8])> {
        let link = &self.nodes.get(key / LANES)?.as_ref()?.links[key % LANES];
        Some((link.generation, link.unsent())).filter(|(_, bytes)| !bytes.is_empty())
    }

    pub fn wrote(&mut self, key: Key, generation: u32, count: usize) {
        if let Some(link) = self.link(key, generation) {
            link.wrote(count);
        }
    }

    /// When to call [`Cluster::tick`].
    pub fn wake(&self) -> Option<Instant> {
        self.wake
    }

    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// xorshift (Marsaglia 2003): enough to spread reconnections.
    pub(super) fn spread(&mut self) -> u8 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        (self.random >> 8) as u8
    }

    // --- topology -----------------------------------------------------------------------------------------------------

    /// Asks for the topology within `pause`.
    pub(super) fn ask(&mut self, pause: Duration, now: Instant) {
        if self.settings.cluster {
            let at = now + pause;
            self.ask_at = Some(self.ask_at.map_or(at, |before| before.min(at)));
            self.wake_at(at);
        }
    }

    pub(super) fn ask_now(&mut self, now: Instant) {
        if self.asked.is_some_and(|(_, since)| now < since + ASK_ANOTHER) {
            self.ask_at = Some(now + ASK_AGAIN);
            return;
        }
        self.ask_at = None;
        let up: Vec<usize> = (0..self.nodes.len())
            .filter(|&at| self.nodes[at].as_ref().is_some_and(|node| node.links[MAIN].is_up()))
            .collect();
        // One after the other: what one node knows may be old.
        self.ask_next = self.ask_next.wrapping_add(1);
        let Some(&at) = up.get(self.ask_next % up.len().max(1)) else { return };
        let key = at * LANES + MAIN;
        self.link_mut(key).push_words(Expected::Slots, &[b"CLUSTER", b"SLOTS"], now);
        self.asked = Some((key, now));
        self.counters.topology_asked += 1;
        self.touched(key, now);
    }

    pub(super) fn learn(&mut self, ranges: &[Range], now: Instant) {
        if ranges.is_empty() {
            // A node without a cluster. The others know better.
            return self.ask(ASK_AGAIN, now);
        }
        let mut owners = Owners::default();
        for Range { first, last, master } in ranges {
            if let Some(at) = self.node(master, now) {
                owners.set(*first, *last, at);
            }
        }
        if !owners.iter().eq(self.owners.iter()) {
            self.epoch += 1;
            let before = &self.owners;
            self.news.slots_stale(&self.tables, |slot| owners.of(slot) != before.of(slot));
            self.counters.topology_changes += 1;
        }
        self.incomplete = owners.first_without().is_some();
        self.owners = owners;
        self.find_who_serves();
        let mut homeless = std::mem::take(&mut self.orphans);
        for node in self.nodes.iter_mut().flatten() {
            let (follow, stay) = std::mem::take(&mut node.waiting).into_iter().partition(|(_, asking)| !asking);
            node.waiting = stay;
            let follow: VecDeque<(u64, bool)> = follow;
            homeless.extend(follow.into_iter().map(|(number, _)| number));
        }
        for number in homeless {
            self.route(number, now);
        }
        self.wake_at(now);
    }

    fn find_who_serves(&mut self) {
        self.nodes.iter_mut().flatten().for_each(|node| node.serves = false);
        for at in self.owners.iter().flatten() {
            if let Some(node) = &mut self.nodes[at] {
                node.serves = true;
            }
        }
    }

    // --- connections --------------------------------------------------------------------------------------------------

    /// Begins, watches and ends one connection.
    pub(super) fn mind(&mut self, key: Key, is_healthy: bool, now: Instant) {
        let Some(node) = self.nodes[key / LANES].as_mut() else { return };
        let needed = node.serves || !node.waiting.is_empty() || node.is_seed && !is_healthy;
        let lane = key % LANES;
        let silence =
            self.settings.silence + if lane == WAITING { self.settings.replica_timeout } else { Duration::ZERO };
        let link = &mut node.links[lane];
        let wanted = !link.expected.is_empty() || needed && (lane == MAIN || node.waits);
        match link.phase {
            Phase::Resting { until } if wanted => match until.filter(|&until| until > now) {
                Some(until) => self.wake_at(until),
                None => {
                    link.begin(now);
                    let order = Order::Connect(key, link.generation, node.address.clone());
                    self.orders.push(order);
                    self.wake_at(now + silence);
                }
            },
            Phase::Resting { .. } => {}
            _ if !wanted => {
                let generation = link.generation;
                link.rest();
                self.orders.push(Order::Close(key, generation));
                if lane == MAIN {
                    self.deaf(key / LANES);
                }
            }
            _ => {
                if let Some(at) = link.silent_at(silence) {
                    if at <= now {
                        let (generation, why) = (link.generation, format!("no answer for {silence:?}"));
                        self.counters.silences += 1;
                        return self.lost(key, generation, why, now);
                    }
                    self.wake_at(at);
                } else if let Some(at) = link.ping_at(self.settings.silence / 2) {
                    if at <= now {
                        link.push_words(Expected::Anything, &[b"PING"], now);
                        self.touched(key, now);
                    } else {
                        self.wake_at(at);
                    }
                }
            }
        }
    }

    /// Forgets nodes that nobody needs, and numbers of pieces that are gone.
    pub(super) fn prune(&mut self) {
        for at in 0..self.nodes.len() {
            let Some(node) = &mut self.nodes[at] else { continue };
            if node.waiting.len() > 1024 + 2 * self.pieces.len() {
                node.waiting.retain(|(number, _)| self.pieces.contains_key(number));
            }
            let rests = node.links.iter().all(|link| matches!(link.phase, Phase::Resting { .. }));
            if rests && !node.serves && !node.is_seed && node.waiting.is_empty() {
                self.by_address.remove(&node.address);
                self.nodes[at] = None;
            }
        }
        if self.orphans.len() > 1024 + 2 * self.pieces.len() {
            self.orphans.retain(|number| self.pieces.contains_key(number));
        }
    }

    pub(super) fn tell_health(&mut self) -> bool {
        let down = self.nodes.iter().flatten().find(|node| node.serves && !node.links[MAIN].is_up());
        // Before the topology is known, what the seeds say is the reason.
        let down = down
            .or_else(|| self.nodes.iter().flatten().find(|node| self.incomplete && !node.links[MAIN].why.is_empty()));
        let why = match down {
            Some(node) if node.links[MAIN].why.is_empty() => Some(format!("{}: connecting", node.address)),
            Some(node) => Some(format!("{}: {}", node.address, node.links[MAIN].why)),
            None if self.incomplete => Some("not every slot has a master".to_owned()),
            None => None,
        };
        let is_healthy = why.is_none();
        // On the first way up there is nothing to tell yet.
        let is_beginning = !self.news.has_told() && self.nodes.iter().flatten().all(|it| it.links[MAIN].why.is_empty());
        if is_healthy || !is_beginning {
            self.news.health(why);
        }
        is_healthy
    }

    /// Operations, nodes and connections now, for statistics.
    pub fn gauges(&self) -> Gauges {
        let nodes = || self.nodes.iter().flatten();
        let up = nodes().flat_map(|node| &node.links).filter(|link| link.is_up()).count();
        [
            ("operations_now", self.operations.len() as u64),
            ("pieces_now", self.pieces.len() as u64),
            ("nodes_now", nodes().count() as u64),
            ("connections_now", up as u64),
        ]
    }
}
