//! Who serves which slot, as the cluster tells it (`CLUSTER SLOTS`) and as redirections correct it. Pure.
//!
//! What a node says is hostile until parsed: ranges, ports and the number of nodes are bounded.

use super::resp::{List, Reply};
use super::slots::SLOTS;

/// More masters than a cluster has (its specification recommends at most 1000).
pub const MAX_NODES: usize = 1024;
const NOBODY: u16 = u16::MAX;
const _: () = assert!(MAX_NODES < NOBODY as usize);

/// Where a node listens. The host is an address, a name, or the path of a Unix socket (and the port of no meaning).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl Address {
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port }
    }

    pub fn is_path(&self) -> bool {
        self.host.starts_with('/')
    }

    /// `host:port` of a redirection. Without a host it is that of the node that sent it (Redis 7: endpoint type
    /// `unknown-endpoint`).
    fn parse(text: &str, sender: &Self) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        Some(Self { host: host_of(host, sender)?, port: port.parse().ok().filter(|&port| port != 0)? })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_path() {
            f.write_str(&self.host)
        } else if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn host_of(host: &str, sender: &Address) -> Option<String> {
    match host {
        "" => Some(sender.host.clone()),
        // "?": a node that does not know its own name (Redis 7: endpoint type `hostname`).
        "?" => None,
        // RFC 1035 2.3.4: names have at most 255 octets.
        host if host.len() <= 255 && !host.starts_with('/') && host.bytes().all(|octet| octet.is_ascii_graphic()) => {
            Some(host.to_owned())
        }
        _ => None,
    }
}

/// Consecutive slots and their master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u16,
    pub last: u16,
    pub master: Address,
}

/// The answer of `sender` to `CLUSTER SLOTS`; None: that is none.
pub fn ranges(answer: Reply<'_>, sender: &Address) -> Option<Vec<Range>> {
    let Reply::List(entries) = answer else { return None };
    if entries.len() > usize::from(SLOTS) {
        return None;
    }
    entries
        .map(|entry| match entry {
            Reply::List(fields) => range(fields, sender),
            _ => None,
        })
        .collect()
}

/// First and last slot, the master, replicas. A node: host, port, and more.
fn range(mut fields: List<'_>, sender: &Address) -> Option<Range> {
    let mut slot = || match fields.next() {
        Some(Reply::Integer(slot)) => u16::try_from(slot).ok().filter(|&slot| slot < SLOTS),
        _ => None,
    };
    let (first, last) = (slot()?, slot()?);
    let Some(Reply::List(mut master)) = fields.next() else { return None };
    let host = match master.next()? {
        Reply::Nil => "",
        Reply::Data(host) => std::str::from_utf8(host).ok()?,
        _ => return None,
    };
    let Some(Reply::Integer(port)) = master.next() else { return None };
    let port = u16::try_from(port).ok().filter(|&port| port != 0)?;
    (first <= last).then_some(Range { first, last, master: Address { host: host_of(host, sender)?, port } })
}

/// What an error reply asks of the client (Redis Cluster specification, "Redirection and resharding").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The slot has another master now.
    Moved(u16, Address),
    /// This key has gone ahead of its slot.
    Ask(Address),
    /// The keys are on two nodes while their slot moves.
    TryAgain,
    /// The node does not know the script.
    LoadScript,
    /// It cannot now, and this or another node soon will.
    Wait,
    /// Nothing helps; the text is for people.
    None,
}

pub fn remedy(error: &str, sender: &Address) -> Remedy {
    let mut words = error.split(' ');
    let code = words.next().unwrap_or_default();
    let redirection = |mut words: std::str::Split<'_, char>| {
        let slot = words.next()?.parse().ok().filter(|&slot: &u16| slot < SLOTS)?;
        Some((slot, Address::parse(words.next()?, sender)?))
    };
    match code {
        "MOVED" => redirection(words).map_or(Remedy::Wait, |(slot, address)| Remedy::Moved(slot, address)),
        "ASK" => redirection(words).map_or(Remedy::Wait, |(_, address)| Remedy::Ask(address)),
        "TRYAGAIN" => Remedy::TryAgain,
        // What a script reads beyond the keys it was called with, while their slot moves.
        "ERR" if error.contains("non local key in a cluster node") => Remedy::TryAgain,
        "NOSCRIPT" => Remedy::LoadScript,
        "CLUSTERDOWN" | "LOADING" | "READONLY" | "MASTERDOWN" | "NOREPLICAS" | "BUSY" => Remedy::Wait,
        _ => Remedy::None,
    }
}

/// Some of the slots.
#[derive(Debug)]
pub struct SlotSet(Box<[u64]>);

impl Default for SlotSet {
    fn default() -> Self {
        Self(vec![0; usize::from(SLOTS) / 64].into())
    }
}

impl SlotSet {
    pub fn add(&mut self, slot: u16) {
        if let Some(word) = self.0.get_mut(usize::from(slot) / 64) {
            *word |= 1 << (slot % 64);
        }
    }

    pub fn has(&self, slot: u16) -> bool {
        self.0.get(usize::from(slot) / 64).is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }
}

/// The owner of every slot, as an index into the client's nodes.
pub struct Owners(Box<[u16]>);

impl Default for Owners {
    fn default() -> Self {
        Self(vec![NOBODY; usize::from(SLOTS)].into())
    }
}

impl Owners {
    pub fn of(&self, slot: u16) -> Option<usize> {
        self.0.get(usize::from(slot)).filter(|&&owner| owner != NOBODY).map(|&owner| usize::from(owner))
    }

    /// Whether that changed an owner.
    pub fn set(&mut self, first: u16, last: u16, owner: usize) -> bool {
        debug_assert!(owner < MAX_NODES);
        let slots = &mut self.0[usize::from(first)..=usize::from(last)];
        let changed = slots.iter().any(|&before| before != owner as u16);
        slots.fill(owner as u16);
        changed
    }

    pub fn iter(&self) -> impl Iterator<Item = Option<usize>> + '_ {
        self.0.iter().map(|&owner| (owner != NOBODY).then_some(usize::from(owner)))
    }

    pub fn first_without(&self) -> Option<usize> {
        self.0.iter().position(|&owner| owner == NOBODY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Address {
        Address::new("10.0.0.9", 7000)
    }

    #[test]
    fn redirections_name_a_slot_and_a_node() {
        let there = Address::new("10.0.0.1", 7001);
        assert_eq!(remedy("MOVED 3999 10.0.0.1:7001", &asked()), Remedy::Moved(3999, there.clone()));
        assert_eq!(remedy("ASK 3999 10.0.0.1:7001", &asked()), Remedy::Ask(there));
        assert_eq!(remedy("MOVED 1 :7001", &asked()), Remedy::Moved(1, Address::new("10.0.0.9", 7001)));
        assert_eq!(remedy("MOVED 1 fe80::1:7001", &asked()), Remedy::Moved(1, Address::new("fe80::1", 7001)));
    }

    #[test]
    fn redirections_to_nowhere_are_waited_out() {
        for text in [
            "MOVED",
            "MOVED 1",
            "MOVED 16384 a:1",
            "MOVED 1 a:0",
            "MOVED 1 a",
            "ASK 1 ?:7",
            "ASK x a:1",
            "MOVED -1 a:1",
        ] {
            assert_eq!(remedy(text, &asked()), Remedy::Wait, "{text}");
        }
    }

    #[test]
    fn what_the_client_cannot_cure_is_told() {
        for text in ["OOM command not allowed", "NOPERM x", "", "ERR", "WRONGTYPE x"] {
            assert_eq!(remedy(text, &asked()), Remedy::None, "{text}");
        }
    }

    #[test]
    fn an_owner_is_set_and_change_is_told() {
        let mut owners = Owners::default();
        assert_eq!(owners.first_without(), Some(0));
        assert!(owners.set(0, 16383, 1));
        assert!(!owners.set(5, 5, 1));
        assert!(owners.set(5, 5, 2));
        assert_eq!((owners.of(4), owners.of(5), owners.first_without()), (Some(1), Some(2), None));
    }
}
