//! Layers into bytes, from the inside out: what is inside has its length then.

use super::{Ethernet, Gtpu, Icmp, Ipv4, Ipv6, Layer, Tcp, Udp, Vlan};
use crate::packet::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::packet::{ethernet, gtpu, icmp, ipv4, ipv6, protocol, tcp, udp, vlan};

/// Why layers are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A field's value does not fit, named as in the layer.
    Value(&'static str),
    /// The layer's next one is not named by a type that is known, nor by the layer.
    Unnamed(&'static str),
    /// The layer stands on none that its checksum needs.
    Below(&'static str),
    /// Longer than the layer's length field can tell.
    TooLong(&'static str),
}

pub fn build(layers: &[Layer], payload: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut body = payload.to_vec();
    for (at, layer) in layers.iter().enumerate().rev() {
        let (below, above) = (&layers[..at], layers.get(at + 1));
        let header = match layer {
            Layer::Ethernet(layer) => layer.emit(above)?,
            Layer::Vlan(layer) => layer.emit(above)?,
            Layer::Arp(message) => message.emit().to_vec(),
            Layer::Ipv4(layer) => layer.emit(above, &body)?,
            Layer::Ipv6(layer) => layer.emit(above, &body)?,
            Layer::Icmp(layer) => layer.emit(below, &body)?,
            Layer::Udp(layer) => layer.emit(below, &body)?,
            Layer::Tcp(layer) => layer.emit(below, &body)?,
            Layer::Gtpu(layer) => layer.emit(&body)?,
        };
        body.splice(..0, header);
    }
    Ok(body)
}

/// A length as its field has it.
fn length(len: usize, layer: &'static str) -> Result<u16, Refused> {
    u16::try_from(len).map_err(|_| Refused::TooLong(layer))
}

fn fits(is_right: bool, field: &'static str) -> Result<(), Refused> {
    if is_right { Ok(()) } else { Err(Refused::Value(field)) }
}

fn ethertype(of: Option<u16>, above: Option<&Layer>, layer: &'static str) -> Result<u16, Refused> {
    of.map_or_else(
        || match above {
            Some(Layer::Vlan(_)) => Ok(vlan::CUSTOMER),
            Some(Layer::Arp(_)) => Ok(ethernet::ARP),
            Some(Layer::Ipv4(_)) => Ok(ethernet::IPV4),
            Some(Layer::Ipv6(_)) => Ok(ethernet::IPV6),
            _ => Err(Refused::Unnamed(layer)),
        },
        Ok,
    )
}

fn protocol_of(of: Option<u8>, above: Option<&Layer>, is_v4: bool) -> Result<u8, Refused> {
    of.map_or_else(
        || match above {
            Some(Layer::Icmp(_)) => Ok(if is_v4 { protocol::ICMP } else { protocol::ICMPV6 }),
            Some(Layer::Tcp(_)) => Ok(protocol::TCP),
            Some(Layer::Udp(_)) => Ok(protocol::UDP),
            Some(Layer::Ipv4(_)) => Ok(protocol::IPV4),
            Some(Layer::Ipv6(_)) => Ok(protocol::IPV6),
            _ => Err(Refused::Unnamed(if is_v4 { "IPv4" } else { "IPv6" })),
        },
        Ok,
    )
}

/// The sum over the pseudo-header, with the length.
fn pseudo(below: &[Layer], protocol: u8, len: usize, layer: &'static str) -> Result<Sum, Refused> {
    let len = length(len, layer)?;
    match below.last() {
        Some(Layer::Ipv4(ip)) => Ok(pseudo_v4(ip.source, ip.destination, protocol).word(len)),
        Some(Layer::Ipv6(ip)) => Ok(pseudo_v6(ip.source, ip.destination, protocol).word(len)),
        _ => Err(Refused::Below(layer)),
    }
}

impl Ethernet {
    fn emit(&self, above: Option<&Layer>) -> Result<Vec<u8>, Refused> {
        let ethertype = ethertype(self.ethertype, above, "Ethernet")?;
        Ok(ethernet::emit(self.destination, self.source, ethertype).to_vec())
    }
}

impl Vlan {
    fn emit(&self, above: Option<&Layer>) -> Result<Vec<u8>, Refused> {
        fits(self.id <= vlan::ID, "id")?;
        fits(self.priority < 8, "priority")?;
        let Self { id, priority, drop_eligible, ethertype: named } = *self;
        let ethertype = ethertype(named, above, "VLAN")?;
        Ok(vlan::Tag { id, priority, drop_eligible, ethertype }.emit().to_vec())
    }
}

impl Ipv4 {
    fn emit(&self, above: Option<&Layer>, body: &[u8]) -> Result<Vec<u8>, Refused> {
        fits(self.options.len() <= 40 && self.options.len().is_multiple_of(4), "options")?;
        fits(self.dscp < 64, "dscp")?;
        fits(self.ecn < 4, "ecn")?;
        fits(self.fragment_offset.is_multiple_of(8), "fragment_offset")?;
        let len = ipv4::HEADER + self.options.len();
        length(len + body.len(), "IPv4")?;
        let fragment = ipv4::Fragment {
            identification: self.identification,
            offset: self.fragment_offset.into(),
            more: self.more_fragments,
            dont_fragment: self.dont_fragment,
        };
        let protocol = protocol_of(self.protocol, above, true)?;
        let payload_len = self.options.len() + body.len();
        let mut header = ipv4::emit(self.source, self.destination, protocol, payload_len, fragment).to_vec();
        header.extend_from_slice(&self.options);
        header[0] = 0x40 | (len / 4) as u8;
        header[1] = self.dscp << 2 | self.ecn;
        header[8] = self.ttl;
        header[10..12].fill(0);
        let checksum = self.checksum.unwrap_or_else(|| Sum::ZERO.bytes(&header).finish());
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        Ok(header)
    }
}

impl Ipv6 {
    fn emit(&self, above: Option<&Layer>, body: &[u8]) -> Result<Vec<u8>, Refused> {
        fits(self.dscp < 64, "dscp")?;
        fits(self.ecn < 4, "ecn")?;
        fits(self.flow_label < 1 << 20, "flow_label")?;
        let mut next = protocol_of(self.next_header, above, false)?;
        let mut extensions = Vec::new();
        for (kind, content) in self.extensions.iter().rev() {
            let units = (content.len() + 2) / 8;
            let is_whole = (content.len() + 2).is_multiple_of(8) && (1..=256).contains(&units);
            fits(ipv6::is_extension(*kind) && is_whole && (*kind != ipv6::FRAGMENT || units == 1), "extensions")?;
            extensions.splice(..0, [&[next, (units - 1) as u8][..], content].concat());
            next = *kind;
        }
        let len = length(extensions.len() + body.len(), "IPv6")?;
        let mut header = ipv6::emit(self.source, self.destination, next, len.into(), self.hop_limit);
        header[1..4].copy_from_slice(&self.flow_label.to_be_bytes()[1..]);
        ipv6::set_traffic_class(&mut header, self.dscp << 2 | self.ecn);
        Ok([&header[..], &extensions].concat())
    }
}

impl Icmp {
    fn emit(&self, below: &[Layer], body: &[u8]) -> Result<Vec<u8>, Refused> {
        let len = icmp::HEADER + body.len();
        let pseudo = match below.last() {
            Some(Layer::Ipv4(_)) => Sum::ZERO,
            _ => pseudo(below, protocol::ICMPV6, len, "ICMP")?,
        };
        let [a, b, c, d] = self.data.to_be_bytes();
        let mut header = [self.kind, self.code, 0, 0, a, b, c, d];
        let checksum = self.checksum.unwrap_or_else(|| pseudo.bytes(&header).bytes(body).finish());
        header[2..4].copy_from_slice(&checksum.to_be_bytes());
        Ok(header.to_vec())
    }
}

impl Udp {
    fn emit(&self, below: &[Layer], body: &[u8]) -> Result<Vec<u8>, Refused> {
        length(udp::HEADER + body.len(), "UDP")?;
        let sum = match (self.checksum, below.last()) {
            (Some(_), _) => Sum::ZERO,
            (None, Some(Layer::Ipv4(ip))) => pseudo_v4(ip.source, ip.destination, protocol::UDP),
            (None, Some(Layer::Ipv6(ip))) => pseudo_v6(ip.source, ip.destination, protocol::UDP),
            _ => return Err(Refused::Below("UDP")),
        };
        let mut header = udp::emit(self.source_port, self.destination_port, sum, body).to_vec();
        if let Some(checksum) = self.checksum {
            header[6..].copy_from_slice(&checksum.to_be_bytes());
        }
        Ok(header)
    }
}

impl Tcp {
    fn emit(&self, below: &[Layer], body: &[u8]) -> Result<Vec<u8>, Refused> {
        fits(self.options.len() <= 40 && self.options.len().is_multiple_of(4), "options")?;
        let bare = tcp::Bare {
            source_port: self.source_port,
            destination_port: self.destination_port,
            sequence: self.sequence,
            acknowledgement: self.acknowledgement,
            flags: self.flags,
            window: self.window,
        };
        let mut header = bare.emit(Sum::ZERO).to_vec();
        header.extend_from_slice(&self.options);
        header[12] = (header.len() as u8 / 4) << 4;
        header[16..18].fill(0);
        header[18..20].copy_from_slice(&self.urgent.to_be_bytes());
        let checksum = match self.checksum {
            Some(checksum) => checksum,
            None => pseudo(below, protocol::TCP, header.len() + body.len(), "TCP")?.bytes(&header).bytes(body).finish(),
        };
        header[16..18].copy_from_slice(&checksum.to_be_bytes());
        Ok(header)
    }
}

impl Gtpu {
    fn emit(&self, body: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut header = gtpu::emit(self.kind, self.teid, 0).to_vec();
        for (is_there, flag) in [
            (!self.extensions.is_empty(), gtpu::EXTENDED),
            (self.sequence.is_some(), gtpu::SEQUENCED),
            (self.n_pdu.is_some(), gtpu::NUMBERED),
        ] {
            header[0] |= if is_there { flag } else { 0 };
        }
        if header[0] & (gtpu::EXTENDED | gtpu::SEQUENCED | gtpu::NUMBERED) != 0 {
            header.extend_from_slice(&self.sequence.unwrap_or(0).to_be_bytes());
            header.extend_from_slice(&[self.n_pdu.unwrap_or(0), 0]);
        }
        for (kind, content) in &self.extensions {
            let units = (content.len() + 2) / 4;
            let is_whole = (content.len() + 2).is_multiple_of(4) && (1..256).contains(&units);
            fits(*kind != 0 && is_whole, "extensions")?;
            *header.last_mut().expect("has options") = *kind;
            header.push(units as u8);
            header.extend_from_slice(content);
            header.push(0);
        }
        let len = length(header.len() - gtpu::HEADER + body.len(), "GTPU")?;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        Ok(header)
    }
}
