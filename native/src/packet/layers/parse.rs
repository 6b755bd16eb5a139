//! Bytes into layers, as far as they are what the layer before says. What is malformed, or of no protocol that is known,
//! is payload; so is what a fragment carries, as its headers need not be whole.

use super::{Ethernet, First, Gtpu, Icmp, Ipv4, Ipv6, Layer, Tcp, Udp, Vlan};
use crate::packet::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::packet::headers::GTP_PORT;
use crate::packet::{arp, array, ethernet, gtpu, icmp, ipv4, ipv6, protocol, tcp, u16_at, udp, vlan};

/// The layers, and where in what was given their payload is. Padding behind it belongs to neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub layers: Vec<Layer>,
    pub payload: std::ops::Range<usize>,
}

/// Layers that are read at most; frames with tunnels in tunnels have ten.
const MOST: usize = 16;

pub fn parse(bytes: &[u8], first: First) -> Parsed {
    let is_quoted = first == First::Quoted;
    let mut parser = Parser { bytes, layers: Vec::new(), at: 0, end: bytes.len(), pseudo: Sum::ZERO, is_quoted };
    let mut next = if first == First::Ethernet { Some(Next::Ethernet) } else { parser.version() };
    while let Some(kind) = next
        && parser.layers.len() < MOST
    {
        next = parser.layer(kind);
    }
    Parsed { layers: parser.layers, payload: parser.at..parser.end }
}

#[derive(Clone, Copy)]
enum Next {
    Ethernet,
    Type(u16),
    /// IPv4's, or IPv6's.
    Protocol(u8, bool),
    Gtpu,
}

struct Parser<'a> {
    bytes: &'a [u8],
    layers: Vec<Layer>,
    at: usize,
    end: usize,
    /// Of the innermost IP header, without the length.
    pseudo: Sum,
    is_quoted: bool,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..self.end]
    }

    /// A layer of `len` bytes.
    fn push(&mut self, layer: Layer, len: usize) {
        self.layers.push(layer);
        self.at += len;
    }

    /// Bytes that state to be `len`, or as many of them as are quoted.
    fn stated(&self, len: usize) -> Option<&'a [u8]> {
        let rest = self.rest();
        rest.get(..if self.is_quoted { len.min(rest.len()) } else { len })
    }

    /// The checksum as a layer has it, `sum` being that over all that it covers.
    fn judged(&self, checksum: u16, sum: Sum) -> Option<u16> {
        (self.is_quoted || sum.finish() != 0).then_some(checksum)
    }

    /// Which IP it is that begins here.
    fn version(&self) -> Option<Next> {
        match self.rest().first()? >> 4 {
            4 => Some(Next::Type(ethernet::IPV4)),
            6 => Some(Next::Type(ethernet::IPV6)),
            _ => None,
        }
    }

    /// Reads one layer, if it is one; what is behind it.
    fn layer(&mut self, kind: Next) -> Option<Next> {
        match kind {
            Next::Ethernet => self.ethernet(),
            Next::Type(kind) if vlan::is_tag(kind) => self.vlan(),
            Next::Type(ethernet::ARP) => self.arp(),
            Next::Type(ethernet::IPV4) => self.ipv4(),
            Next::Type(ethernet::IPV6) => self.ipv6(),
            Next::Protocol(protocol::ICMP, true) => self.icmp(Sum::ZERO),
            Next::Protocol(protocol::ICMPV6, false) => self.icmp(self.pseudo.word(self.rest().len() as u16)),
            Next::Protocol(protocol::TCP, _) => self.tcp(),
            Next::Protocol(protocol::UDP, _) => self.udp(),
            Next::Protocol(protocol::IPV4, _) => self.ipv4(),
            Next::Protocol(protocol::IPV6, _) => self.ipv6(),
            Next::Gtpu => self.gtpu(),
            Next::Type(_) | Next::Protocol(..) => None,
        }
    }

    fn ethernet(&mut self) -> Option<Next> {
        let frame = ethernet::Frame::new_checked(self.rest()).ok()?;
        let (destination, source, kind) = (frame.destination(), frame.source(), frame.ethertype());
        self.push(Layer::Ethernet(Ethernet { destination, source, ethertype: Some(kind) }), ethernet::HEADER);
        Some(Next::Type(kind))
    }

    fn vlan(&mut self) -> Option<Next> {
        let vlan::Tag { id, priority, drop_eligible, ethertype } = vlan::Tag::parse(self.rest()).ok()?;
        self.push(Layer::Vlan(Vlan { id, priority, drop_eligible, ethertype: Some(ethertype) }), vlan::TAG);
        Some(Next::Type(ethertype))
    }

    fn arp(&mut self) -> Option<Next> {
        let message = arp::Message::parse(self.rest()).ok()?;
        self.push(Layer::Arp(message), arp::LENGTH);
        self.end = self.at;
        None
    }

    fn ipv4(&mut self) -> Option<Next> {
        let bytes = self.rest();
        let packet = ipv4::Packet::new_quoted(bytes).ok()?;
        let (header, total) = (packet.header_len(), usize::from(u16_at(bytes, 2)));
        if total < header {
            return None;
        }
        self.end = self.at + self.stated(total)?.len();
        let is_right = Sum::ZERO.bytes(&bytes[..header]).finish() == 0;
        let (source, destination, protocol) = (packet.source(), packet.destination(), packet.protocol());
        let layer = Ipv4 {
            source,
            destination,
            protocol: Some(protocol),
            ttl: bytes[8],
            dscp: bytes[1] >> 2,
            ecn: bytes[1] & 3,
            identification: packet.identification(),
            dont_fragment: bytes[6] & 0x40 != 0,
            more_fragments: packet.more_fragments(),
            fragment_offset: packet.fragment_offset() as u16,
            options: bytes[ipv4::HEADER..header].to_vec(),
            checksum: (!is_right).then(|| u16_at(bytes, 10)),
        };
        self.push(Layer::Ipv4(layer), header);
        self.pseudo = pseudo_v4(source, destination, protocol);
        (!packet.is_fragment()).then_some(Next::Protocol(protocol, true))
    }

    fn ipv6(&mut self) -> Option<Next> {
        let packet = ipv6::Packet::new_quoted(self.rest()).ok()?;
        let bytes = self.stated(ipv6::HEADER + usize::from(u16_at(packet.bytes(), 4)))?;
        let (next, upper, fragment) = ipv6::skip_extensions(bytes)?;
        if upper > bytes.len() {
            return None;
        }
        let (mut extensions, mut kind, mut at) = (Vec::new(), bytes[6], ipv6::HEADER);
        while at < upper {
            let len = if kind == ipv6::FRAGMENT { ipv6::FRAGMENT_HEADER } else { 8 + usize::from(bytes[at + 1]) * 8 };
            extensions.push((kind, bytes[at + 2..at + len].to_vec()));
            (kind, at) = (bytes[at], at + len);
        }
        let (source, destination) = (packet.source(), packet.destination());
        let layer = Ipv6 {
            source,
            destination,
            next_header: Some(next),
            hop_limit: packet.hop_limit(),
            dscp: (bytes[0] << 4 | bytes[1] >> 4) >> 2,
            ecn: bytes[1] >> 4 & 3,
            flow_label: u32::from_be_bytes(array(bytes, 0)) & 0xf_ffff,
            extensions,
        };
        self.end = self.at + bytes.len();
        self.push(Layer::Ipv6(layer), upper);
        self.pseudo = pseudo_v6(source, destination, next);
        fragment.is_none().then_some(Next::Protocol(next, false))
    }

    fn icmp(&mut self, pseudo: Sum) -> Option<Next> {
        let bytes = self.rest();
        let &[kind, code, high, low, a, b, c, d] = bytes.first_chunk::<{ icmp::HEADER }>()?;
        let checksum = self.judged(u16::from_be_bytes([high, low]), pseudo.bytes(bytes));
        let data = u32::from_be_bytes([a, b, c, d]);
        self.push(Layer::Icmp(Icmp { kind, code, data, checksum }), icmp::HEADER);
        None
    }

    fn udp(&mut self) -> Option<Next> {
        let bytes = self.rest();
        let &[a, b, c, d, e, f, g, h] = bytes.first_chunk::<{ udp::HEADER }>()?;
        let [source_port, destination_port, len, checksum] = [[a, b], [c, d], [e, f], [g, h]].map(u16::from_be_bytes);
        let bytes = self.stated(len.into()).filter(|bytes| bytes.len() >= udp::HEADER)?;
        self.end = self.at + bytes.len();
        let sum = self.pseudo.word(len).bytes(bytes);
        let checksum = if checksum == 0 { Some(0) } else { self.judged(checksum, sum) };
        self.push(Layer::Udp(Udp { source_port, destination_port, checksum }), udp::HEADER);
        (source_port == GTP_PORT || destination_port == GTP_PORT).then_some(Next::Gtpu)
    }

    fn tcp(&mut self) -> Option<Next> {
        let bytes = self.rest();
        if bytes.len() < tcp::HEADER {
            return None;
        }
        let segment = tcp::Segment::new_own(bytes);
        let options = bytes.get(tcp::HEADER..segment.header_len())?.to_vec();
        let sum = self.pseudo.word(bytes.len() as u16).bytes(bytes);
        let layer = Tcp {
            source_port: segment.source_port(),
            destination_port: segment.destination_port(),
            sequence: segment.sequence(),
            acknowledgement: segment.acknowledgement(),
            flags: bytes[13],
            window: segment.window(),
            urgent: u16_at(bytes, 18),
            options,
            checksum: self.judged(u16_at(bytes, 16), sum),
        };
        self.push(Layer::Tcp(layer), segment.header_len());
        None
    }

    fn gtpu(&mut self) -> Option<Next> {
        let message = gtpu::Message::new_checked(self.rest()).ok()?;
        let layer = Gtpu {
            teid: message.teid(),
            kind: message.kind(),
            sequence: message.sequence(),
            n_pdu: message.n_pdu(),
            extensions: message.extensions().map(|(kind, content)| (kind, content.to_vec())).collect(),
        };
        self.end = self.at + message.payload_at() + message.payload_len();
        self.push(Layer::Gtpu(layer), message.payload_at());
        if message.kind() == gtpu::G_PDU { self.version() } else { None }
    }
}
