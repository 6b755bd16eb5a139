//! What the table should do, said as simply as can be: a list of rules, all of which are asked for each packet.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::Duration;

use crate::flow::{
    Action, Counters, Expiry, Head, Listed, Match, PortIndex, Refused, Rewrite, Rule, Statistics, Verdict, edit,
};
use crate::packet::ethernet::{self, Mac};
use crate::packet::headers::{Headers, kind};
use crate::packet::{array, icmp};
use crate::stack::Cidr;

pub struct Known {
    pub m: Match,
    rule: Rule,
    statistics: Statistics,
    /// Milliseconds.
    installed: u64,
    seen: u64,
    /// In the bucket when it was last filled: thousandths of a bit.
    tokens: u64,
    filled: u64,
    order: u64,
}

pub struct Model {
    pub rules: Vec<Known>,
    pub counters: Counters,
    capacity: usize,
    installations: u64,
}

/// A packet's fields, and `None` what it has not.
struct Seen {
    port: PortIndex,
    macs: Option<(Mac, Mac)>,
    vlan: u16,
    ethertype: u16,
    addresses: Option<(IpAddr, IpAddr)>,
    protocol: Option<u8>,
    ports: Option<(u16, u16)>,
    teid: Option<u32>,
}

impl Seen {
    fn of(port: PortIndex, head: &Head, headers: &Headers) -> Self {
        let bytes = head.bytes();
        let is_well = headers.kinds & kind::MALFORMED == 0;
        let whole = is_well && !headers.is(kind::FRAGMENT);
        let asks = || icmp::asks(headers.protocol, bytes[usize::from(headers.transport)]).is_some();
        let has_ports = headers.kinds & (kind::TCP | kind::UDP) != 0 || whole && headers.is(kind::ICMP) && asks();
        let addresses = headers.addresses(bytes);
        Self {
            port,
            macs: (bytes.len() >= ethernet::HEADER).then(|| (array(bytes, 6), array(bytes, 0))),
            vlan: headers.vlan,
            ethertype: headers.ethertype,
            protocol: (is_well && addresses.is_some()).then_some(headers.protocol),
            ports: (whole && has_ports).then_some((headers.source_port, headers.destination_port)),
            teid: (whole && headers.is(kind::GTPU)).then_some(headers.teid),
            addresses,
        }
    }

    /// The flow's other direction, of a packet that an ICMP error quotes.
    fn of_quoted(port: PortIndex, head: &Head, headers: &Headers) -> Option<Self> {
        let quoted = headers.quoted(head.bytes()).filter(|_| !headers.is(kind::FRAGMENT))?;
        let (outer, inner) = (Self::of(port, head, headers), Self::of(port, head, &quoted));
        if outer.addresses?.1 != inner.addresses?.0 {
            return None;
        }
        let swap = |(a, b): (u16, u16)| (b, a);
        Some(Self {
            vlan: headers.vlan,
            addresses: inner.addresses.map(|(source, destination)| (destination, source)),
            ports: inner.ports.map(swap),
            ..inner
        })
    }

    fn matches(&self, m: &Match) -> bool {
        fn is<T: PartialEq>(wanted: Option<T>, found: Option<T>) -> bool {
            wanted.is_none() || wanted == found
        }
        let link = self.macs.is_some();
        let within = |cidr: Option<Cidr>, address: Option<IpAddr>| {
            cidr.is_none_or(|cidr| address.is_some_and(|address| cidr.contains(address)))
        };
        is(m.port, Some(self.port))
            && is(m.source_mac, self.macs.map(|macs| macs.0))
            && is(m.destination_mac, self.macs.map(|macs| macs.1))
            && is(m.vlan, link.then_some(self.vlan))
            && is(m.ethertype, link.then_some(self.ethertype))
            && within(m.source, self.addresses.map(|addresses| addresses.0))
            && within(m.destination, self.addresses.map(|addresses| addresses.1))
            && is(m.protocol, self.protocol)
            && is(m.source_port, self.ports.map(|ports| ports.0))
            && is(m.destination_port, self.ports.map(|ports| ports.1))
            && is(m.teid, self.teid)
    }
}

fn says(m: &Match) -> u32 {
    let field = |is: bool, bits: u32| if is { bits } else { 0 };
    let prefix = |cidr: Option<Cidr>| cidr.map_or(0, |cidr| u32::from(cidr.prefix));
    field(m.port.is_some(), 16)
        + field(m.source_mac.is_some(), 48)
        + field(m.destination_mac.is_some(), 48)
        + field(m.vlan.is_some(), 16)
        + field(m.ethertype.is_some(), 16)
        + prefix(m.source)
        + prefix(m.destination)
        + field(m.source.is_some() || m.destination.is_some(), 1)
        + field(m.protocol.is_some(), 8)
        + field(m.source_port.is_some(), 16)
        + field(m.destination_port.is_some(), 16)
        + field(m.teid.is_some(), 32)
}

fn is_exact(m: &Match) -> bool {
    let whole = |cidr: Option<Cidr>| cidr.is_some_and(|c| c.prefix == if c.address.is_ipv4() { 32 } else { 128 });
    whole(m.source)
        && whole(m.destination)
        && m.protocol.is_some()
        && m.source_port.is_some()
        && m.destination_port.is_some()
        && m.teid.is_none()
}

/// Without what is behind the prefixes.
fn normal(m: Match) -> Match {
    let network = |cidr: Cidr| {
        let mut bytes = match cidr.address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        for bit in usize::from(cidr.prefix)..bytes.len() * 8 {
            bytes[bit / 8] &= !(0x80 >> (bit % 8));
        }
        let address = match bytes.len() {
            4 => IpAddr::from(array::<4>(&bytes, 0)),
            _ => IpAddr::from(array::<16>(&bytes, 0)),
        };
        Cidr { address, ..cidr }
    };
    Match { source: m.source.map(network), destination: m.destination.map(network), ..m }
}

impl Known {
    fn rank(&self) -> (i32, u32, Reverse<u64>) {
        (self.m.priority, says(&self.m), Reverse(self.order))
    }

    fn rewrites(&self) -> bool {
        self.rule.actions.iter().any(|action| matches!(action, Action::Rewrite(_)))
    }

    fn end(&self) -> Option<(u64, Expiry)> {
        let after = |from: u64, timeout: Option<Duration>| timeout.map(|timeout| from + timeout.as_millis() as u64);
        let hard = after(self.installed, self.rule.hard).map(|at| (at, Expiry::Hard));
        let idle = after(self.seen, self.rule.idle).map(|at| (at, Expiry::Idle));
        [hard, idle].into_iter().flatten().min_by_key(|end| end.0)
    }

    fn statistics(&self, millis: u64) -> Statistics {
        Statistics { idle: Duration::from_millis(millis - self.seen), ..self.statistics }
    }
}

impl Model {
    pub fn new(capacity: usize) -> Self {
        Self { rules: Vec::new(), counters: Counters::default(), capacity, installations: 0 }
    }

    pub fn install(&mut self, m: Match, rule: Rule, millis: u64) -> Result<bool, Refused> {
        let m = normal(m);
        let known = self.rules.iter().position(|known| known.m == m);
        if known.is_none() && self.rules.len() == self.capacity {
            self.counters.refused += 1;
            return Err(Refused::Full);
        }
        if let Some(at) = known {
            self.rules.remove(at);
            self.counters.replaced += 1;
        }
        self.counters.installed += 1;
        self.installations += 1;
        let tokens = rule.actions.iter().find_map(|action| match action {
            Action::Limit(limit) => Some(limit.burst_bytes as u64 * 8_000),
            _ => None,
        });
        let (installed, seen, filled, order) = (millis, millis, millis, self.installations);
        let (statistics, tokens) = (Statistics::default(), tokens.unwrap_or(0));
        self.rules.push(Known { m, rule, statistics, installed, seen, tokens, filled, order });
        Ok(known.is_some())
    }

    pub fn remove(&mut self, m: &Match, millis: u64) -> Option<Statistics> {
        let m = normal(*m);
        let at = self.rules.iter().position(|known| known.m == m)?;
        self.counters.removed += 1;
        Some(self.rules.remove(at).statistics(millis))
    }

    pub fn expire(&mut self, millis: u64) -> Vec<(Match, Expiry, Statistics)> {
        let mut ended = Vec::new();
        let counters = &mut self.counters;
        self.rules.retain(|known| {
            let Some((_, why)) = known.end().filter(|&(at, _)| at <= millis) else { return true };
            match why {
                Expiry::Idle => counters.ended_idle += 1,
                Expiry::Hard => counters.ended_hard += 1,
            }
            ended.push((known.m, why, known.statistics(millis)));
            false
        });
        ended
    }

    pub fn deadline(&self) -> Option<u64> {
        self.rules.iter().filter_map(|known| known.end()).map(|(at, _)| at).min()
    }

    pub fn list(&self, millis: u64) -> Vec<Listed> {
        let listed =
            |known: &Known| Listed { flow: known.m, rule: known.rule.clone(), statistics: known.statistics(millis) };
        let mut list: Vec<Listed> = self.rules.iter().map(listed).collect();
        list.sort_by_key(|listed| format!("{:?}", listed.flow));
        list
    }

    pub fn process(&mut self, port: PortIndex, head: &mut Head, headers: &Headers, millis: u64) -> Verdict {
        let best = |seen: &Seen, may: &dyn Fn(&Known) -> bool| {
            let matching = self.rules.iter().enumerate().filter(|(_, known)| may(known) && seen.matches(&known.m));
            matching.max_by_key(|(_, known)| known.rank()).map(|(at, _)| at)
        };
        let direct = best(&Seen::of(port, head, headers), &|_| true);
        let about = Seen::of_quoted(port, head, headers).and_then(|seen| best(&seen, &|known| is_exact(&known.m)));
        let about = about.filter(|&at| self.rules[at].rewrites());
        let is_quote = about
            .is_some_and(|about| direct.is_none_or(|direct| self.rules[about].rank() >= self.rules[direct].rank()));
        let Some(at) = (if is_quote { about } else { direct }) else {
            self.counters.missed += 1;
            return Verdict::Miss;
        };
        self.counters.matched += 1;
        self.counters.translated += u64::from(is_quote);
        let known = &mut self.rules[at];
        let length = head.frame_len() as u64;
        known.statistics.packets += 1;
        known.statistics.bytes += length;
        for action in &known.rule.actions {
            if let Action::Limit(limit) = action {
                let fresh = (millis - known.filled) * limit.bits_per_s as u64;
                known.tokens = (known.tokens + fresh).min(limit.burst_bytes as u64 * 8_000);
            }
        }
        known.filled = millis;
        if !is_quote {
            known.seen = millis;
        }
        for action in &known.rule.actions {
            let headers = Headers::read(head.bytes(), head.frame_len());
            let done = match action {
                Action::Count => true,
                Action::Limit(_) if known.tokens < length * 8_000 => {
                    known.statistics.limited += 1;
                    self.counters.drop_limited += 1;
                    return Verdict::Drop;
                }
                Action::Limit(_) => {
                    known.tokens -= length * 8_000;
                    true
                }
                Action::Rewrite(to) if is_quote => translate(head, &headers, to),
                Action::Rewrite(to) => edit::rewrite(head, &headers, to).is_ok(),
                Action::Encapsulate(tunnel) => edit::encapsulate(head, &headers, tunnel).is_ok(),
                Action::Decapsulate => edit::decapsulate(head, &headers).is_ok(),
                Action::Drop => {
                    self.counters.drop_by_rule += 1;
                    return Verdict::Drop;
                }
                Action::Forward(port) => return Verdict::Forward(*port),
                Action::Route(port) => return Verdict::Route(*port),
                Action::Reply => return Verdict::Reply,
                Action::Accept => return Verdict::Accept,
                Action::ToPython => return Verdict::ToPython,
            };
            if !done {
                known.statistics.failed += 1;
                self.counters.drop_failed += 1;
                return Verdict::Drop;
            }
        }
        Verdict::Miss
    }
}

fn translate(head: &mut Head, headers: &Headers, to: &Rewrite) -> bool {
    let quoted = headers.quoted(head.bytes());
    quoted.is_some_and(|quoted| edit::translate_quoted(head, headers, &quoted, to).is_ok())
}
