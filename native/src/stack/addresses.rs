//! A host's addresses: what is ours, what cannot be a source, which way a packet leaves.

use std::net::{IpAddr, Ipv4Addr};

use super::{Cidr, HostConfig};

#[derive(Debug)]
pub(super) struct Addresses {
    own: Vec<Cidr>,
    shared: Vec<IpAddr>,
    gateways: Vec<IpAddr>,
}

/// The neighbour a packet goes to, and the address it leaves from unless the flow has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub next_hop: IpAddr,
    pub source: IpAddr,
}

impl Cidr {
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let apart = u32::from(own) ^ u32::from(other);
                apart.checked_shr(32 - u32::from(self.prefix.min(32))).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let apart = u128::from(own) ^ u128::from(other);
                apart.checked_shr(128 - u32::from(self.prefix.min(128))).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Is this the address of all hosts of the network (RFC 919)? Networks of two have none (RFC 3021).
    fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        let all_hosts = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        self.prefix < 31 && self.contains(address.into()) && u32::from(address) & all_hosts == all_hosts
    }
}

impl Addresses {
    pub fn new(config: &HostConfig) -> Self {
        Self {
            own: config.addresses.clone(),
            shared: config.virtual_addresses.clone(),
            gateways: config.gateways.clone(),
        }
    }

    pub fn add(&mut self, own: Cidr) {
        self.own.push(own);
    }

    pub fn own(&self) -> impl Iterator<Item = IpAddr> {
        self.own.iter().map(|cidr| cidr.address)
    }

    pub fn is_own(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.own().any(|own| own == address)
    }

    pub fn is_shared(&self, address: impl Into<IpAddr>) -> bool {
        self.shared.contains(&address.into())
    }

    /// Own or virtual: a packet to it is for us.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.is_own(address) || self.is_shared(address)
    }

    pub fn is_on_link(&self, address: IpAddr) -> bool {
        self.own.iter().any(|cidr| cidr.contains(address))
    }

    /// Can no station but a confused or a hostile one send from this address, or be reached at it (RFC 1122 §3.2.1.3,
    /// RFC 4291 §2.5, §2.7)? An IPv4 address mapped into IPv6 is never on the wire (RFC 4038 §4.2).
    pub fn is_martian(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.is_own(address)
            || match address {
                IpAddr::V4(v4) => {
                    matches!(v4.octets()[0], 0 | 127 | 224..) || self.own.iter().any(|cidr| cidr.is_broadcast(v4))
                }
                IpAddr::V6(v6) => {
                    v6.is_multicast() || v6.is_loopback() || v6.is_unspecified() || v6.to_ipv4_mapped().is_some()
                }
            }
    }

    /// `route`, then the same way from the other own addresses on that network.
    pub fn routes(&self, destination: IpAddr) -> Vec<Route> {
        let Some(best) = self.route(destination) else { return Vec::new() };
        let others = self.own.iter().filter(|cidr| cidr.contains(best.next_hop) && cidr.address != best.source);
        let others = others.map(|cidr| Route { source: cidr.address, ..best });
        std::iter::once(best).chain(others).collect()
    }

    /// The longest own prefix that contains `destination` (the first of those equally long), else the gateway of its
    /// family.
    pub fn route(&self, destination: IpAddr) -> Option<Route> {
        let towards = |next_hop| {
            let on_link = self.own.iter().filter(|cidr| cidr.contains(next_hop));
            on_link
                .min_by_key(|cidr| std::cmp::Reverse(cidr.prefix))
                .map(|cidr| Route { next_hop, source: cidr.address })
        };
        towards(destination).or_else(|| {
            let gateway = self.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == destination.is_ipv4())?;
            towards(gateway)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(own: &[(&str, u8)], gateways: &[&str]) -> Addresses {
        Addresses {
            own: own.iter().map(|&(address, prefix)| Cidr { address: address.parse().unwrap(), prefix }).collect(),
            shared: vec!["10.0.0.100".parse().unwrap()],
            gateways: gateways.iter().map(|gateway| gateway.parse().unwrap()).collect(),
        }
    }

    fn usual() -> Addresses {
        addresses(&[("10.0.0.2", 24), ("fd00::2", 64), ("fe80::2", 64)], &["10.0.0.1", "fe80::1"])
    }

    #[test]
    fn a_packet_leaves_to_its_neighbour_or_to_the_gateway() {
        for (destination, next_hop, source) in [
            ("10.0.0.7", "10.0.0.7", "10.0.0.2"),
            ("192.0.2.1", "10.0.0.1", "10.0.0.2"),
            ("fd00::7", "fd00::7", "fd00::2"),
            ("fe80::7", "fe80::7", "fe80::2"),
        ] {
            let route = Route { next_hop: next_hop.parse().unwrap(), source: source.parse().unwrap() };
            assert_eq!(usual().route(destination.parse().unwrap()), Some(route), "{destination}");
        }
        assert_eq!(addresses(&[("10.0.0.2", 24)], &[]).route("192.0.2.1".parse().unwrap()), None);
        assert_eq!(addresses(&[("10.0.0.2", 24)], &["10.9.0.1"]).route("192.0.2.1".parse().unwrap()), None);
        assert_eq!(addresses(&[("10.0.0.2", 24)], &[]).route("fd00::1".parse().unwrap()), None);
    }

    #[test]
    fn the_first_of_equally_near_addresses_is_the_source() {
        let two = addresses(&[("10.0.0.2", 24), ("10.0.0.3", 24), ("10.0.0.4", 8)], &[]);
        let sources: Vec<_> = two.routes("10.0.0.7".parse().unwrap()).iter().map(|route| route.source).collect();
        assert_eq!(sources, ["10.0.0.2", "10.0.0.3", "10.0.0.4"].map(|one| one.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn extreme_prefixes_neither_panic_nor_match_wrongly() {
        let all = Cidr { address: "10.0.0.2".parse().unwrap(), prefix: 0 };
        let one = Cidr { address: "10.0.0.2".parse().unwrap(), prefix: 32 };
        let one_v6 = Cidr { address: "fd00::2".parse().unwrap(), prefix: 128 };
        let other = "203.0.113.9".parse().unwrap();
        assert!(all.contains(other) && one.contains(one.address) && one_v6.contains(one_v6.address));
        assert!(!one.contains(other) && !one_v6.contains("fd00::3".parse().unwrap()) && !one_v6.contains(other));
    }

    #[test]
    fn martians_are_known() {
        for address in [
            "10.0.0.2",
            "10.0.0.255",
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "fd00::2",
            "::ffff:10.0.0.9",
        ] {
            assert!(usual().is_martian(address.parse::<IpAddr>().unwrap()), "{address}");
        }
        for address in ["10.0.0.1", "10.0.0.100", "8.8.8.8", "fd00::1", "fe80::1", "2001:db8::1"] {
            assert!(!usual().is_martian(address.parse::<IpAddr>().unwrap()), "{address}");
        }
        assert!(!addresses(&[("10.0.0.2", 31)], &[]).is_martian("10.0.0.3".parse::<IpAddr>().unwrap()));
    }
}
