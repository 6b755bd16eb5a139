//! What a fuzzer feeds the readers of frames with: any bytes, which must not panic, and of which both readers must say the
//! same. The fuzz target of `native/fuzz` and a test call it.

use super::headers::{GTP_PORT, Headers, kind};
use super::layers::{Ethernet, First, Gtpu, Icmp, Ipv4, Ipv6, Layer, Parsed, Tcp, Udp, Vlan, build, parse};
use super::{gtpu, u16_at};

/// A byte that says how much of the frame is seen, and the frame.
pub fn views(data: &[u8]) {
    let [seen, frame @ ..] = data else { return };
    let snapshot = &frame[..frame.len().min(usize::from(*seen))];
    lies_within(&Headers::read(snapshot, frame.len()), snapshot.len(), frame.len());
    let headers = Headers::read(frame, frame.len());
    lies_within(&headers, frame.len(), frame.len());
    let parsed = parse(frame, First::Ethernet);
    if !headers.is(kind::MALFORMED) && frame.len() <= usize::from(u16::MAX) {
        says_the_same(&headers, frame, &parsed);
    }
    is_built_again(frame, parsed, First::Ethernet);
    for first in [First::Ip, First::Quoted] {
        is_built_again(frame, parse(frame, first), First::Ip);
    }
    if let Some(quoted) = headers.quoted(frame) {
        assert!(quoted.network + 20 <= quoted.transport && quoted.end <= headers.end);
        assert!(quoted.transport + 8 <= quoted.end);
    }
}

/// Whoever goes by the offsets finds there what was promised.
fn lies_within(headers: &Headers, seen: usize, len: usize) {
    let [network, transport, end] = [headers.network, headers.transport, headers.end].map(usize::from);
    let is_ip = headers.kinds & (kind::IPV4 | kind::IPV6) != 0;
    // Columns go by the kind alone.
    assert!(!is_ip || network + if headers.is(kind::IPV4) { 20 } else { 40 } <= seen);
    if is_ip && !headers.is(kind::MALFORMED) {
        assert!(network + if headers.is(kind::IPV4) { 20 } else { 40 } <= seen.min(end) && end <= len);
    }
    if transport == 0 {
        return;
    }
    assert!(is_ip && !headers.is(kind::MALFORMED) && network < transport && transport <= end.min(seen));
    for (kind, least) in [(kind::TCP, 20), (kind::UDP, 8), (kind::ICMP, 8), (kind::GTPU, 16)] {
        assert!(!headers.is(kind) || transport + least <= end.min(seen));
    }
    assert!(!headers.is(kind::GTPU) || headers.is(kind::UDP));
}

/// What `headers` knows, the layers say too.
fn says_the_same(headers: &Headers, frame: &[u8], parsed: &Parsed) {
    let Some(Layer::Ethernet(ethernet)) = parsed.layers.first() else { panic!("{parsed:?}") };
    let tags: Vec<_> =
        parsed.layers[1..].iter().map_while(|l| if let Layer::Vlan(tag) = l { Some(tag) } else { None }).collect();
    assert_eq!(usize::from(headers.tags), tags.len().min(2));
    assert_eq!(headers.vlan, tags.first().map_or(0, |tag| tag.id));
    if tags.len() <= 2 {
        assert_eq!(Some(headers.ethertype), tags.last().map_or(ethernet.ethertype, |tag| tag.ethertype));
    }
    let mut upper = parsed.layers[1 + tags.len()..].iter();
    let ip = upper.next();
    let Some((source, destination)) = headers.addresses(frame) else {
        assert!(!matches!(ip, Some(Layer::Ipv4(_) | Layer::Ipv6(_))) || tags.len() > 2);
        return;
    };
    let (expected, protocol) = match ip {
        Some(Layer::Ipv4(ip)) => ((ip.source.into(), ip.destination.into()), ip.protocol),
        Some(Layer::Ipv6(ip)) => ((ip.source.into(), ip.destination.into()), ip.next_header),
        other => panic!("{other:?} of {headers:?}"),
    };
    assert_eq!(((source, destination), Some(headers.protocol)), (expected, protocol));
    let known = kind::TCP | kind::UDP | kind::ICMP;
    if headers.is(kind::FRAGMENT) {
        return;
    }
    match upper.next() {
        Some(Layer::Tcp(tcp)) => {
            assert_eq!((headers.source_port, headers.destination_port), (tcp.source_port, tcp.destination_port));
            assert_eq!(headers.kinds & known, kind::TCP);
        }
        Some(Layer::Udp(udp)) => {
            assert_eq!((headers.source_port, headers.destination_port), (udp.source_port, udp.destination_port));
            assert_eq!(headers.kinds & known, kind::UDP);
            let Some(Layer::Gtpu(gtpu)) = upper.next() else { return };
            let is_data = udp.destination_port == GTP_PORT && gtpu.kind == gtpu::G_PDU;
            assert_eq!(headers.is(kind::GTPU), is_data);
            assert_eq!(headers.teid, if is_data { gtpu.teid } else { 0 });
        }
        Some(Layer::Icmp(_)) => assert_eq!(headers.kinds & known, kind::ICMP),
        // A header that contradicts itself further on: `headers` looks at the ports only.
        None | Some(_) => {}
    }
    assert!(
        headers.transport == 0
            || !headers.is(kind::TCP)
            || headers.source_port == u16_at(frame, headers.transport.into())
    );
}

/// What was read of a frame builds one that reads the same, with its checksums right.
fn is_built_again(frame: &[u8], Parsed { mut layers, payload }: Parsed, first: First) {
    let payload = &frame[payload];
    for layer in &mut layers {
        match layer {
            Layer::Ipv4(layer) => layer.checksum = None,
            Layer::Udp(layer) => layer.checksum = None,
            Layer::Tcp(layer) => layer.checksum = None,
            Layer::Icmp(layer) => layer.checksum = None,
            _ => {}
        }
    }
    let built = build(&layers, payload).expect("what was read fits");
    let again = parse(&built, first);
    assert_eq!((&again.layers, &built[again.payload]), (&layers, payload));
}

/// A frame of every sort: what tests mutate, and what the fuzzer begins with.
pub fn frames() -> Vec<Vec<u8>> {
    let ethernet = Layer::from(Ethernet::new([2; 6], [4; 6]));
    let tag = Layer::from(Vlan { priority: 3, ..Vlan::new(5) });
    let (v4, v6) = (Ipv4::new([10, 0, 0, 1], [10, 0, 0, 2]), Ipv6::new([0xfd; 16], [0xfc; 16]));
    let optional = Layer::from(Ipv4 { options: vec![1; 8], ..v4.clone() });
    let first = Layer::from(Ipv4 { protocol: Some(17), more_fragments: true, ..v4.clone() });
    let later = Layer::from(Ipv4 { protocol: Some(17), fragment_offset: 8, ..v4.clone() });
    let extensions = vec![(0, vec![1, 4, 0, 0, 0, 0]), (60, vec![1, 4, 0, 0, 0, 0])];
    let extended = Layer::from(Ipv6 { extensions, ..v6.clone() });
    let extensions = vec![(44, vec![0, 1, 0, 0, 0, 9])];
    let fragment = Layer::from(Ipv6 { next_header: Some(17), extensions, ..v6.clone() });
    let (v4, v6) = (Layer::from(v4), Layer::from(v6));
    let udp = Layer::from(Udp::new(1000, 53));
    let bare = Layer::from(Udp { checksum: Some(0), ..Udp::new(1000, 53) });
    let tcp = Layer::from(Tcp { flags: 0x18, options: vec![2, 4, 5, 0xb4], ..Tcp::new(1000, 80) });
    let icmp = |kind, data| Layer::from(Icmp::new(kind, 0, data));
    let tunnel = Layer::from(Udp::new(GTP_PORT, GTP_PORT));
    let gtpu = Gtpu::new(7);
    let gtpu_5g = Gtpu { sequence: Some(3), extensions: vec![(0x85, vec![0x10, 9])], ..gtpu.clone() };
    let inner = [gtpu.into(), v4.clone(), tcp.clone()];
    let inner_5g = [gtpu_5g.into(), v6.clone(), udp.clone()];
    let quoted = |ip: &Layer, upper: &Layer| build(&[ip.clone(), upper.clone()], b"quoted").expect("a packet");
    let (quoted_v4, quoted_v6) = (quoted(&v4, &udp), quoted(&v6, &tcp));
    let frame = |layers: &[&[Layer]], payload: &[u8]| {
        build(&[&[ethernet.clone()][..], &layers.concat()].concat(), payload).expect("a frame")
    };
    vec![
        frame(&[&[v4.clone(), udp.clone()]], b"payload"),
        frame(&[&[v4.clone(), bare.clone()]], b"payload"),
        frame(&[&[v6.clone(), bare]], b"payload"),
        frame(&[&[tag.clone(), optional, tcp.clone()]], b"payload"),
        frame(&[&[tag.clone(), tag, extended, tcp]], b"payload"),
        frame(&[&[v6.clone(), udp]], b""),
        frame(&[&[v4.clone(), icmp(8, 0x0001_0002)]], b"payload"),
        frame(&[&[v6.clone(), icmp(129, 0x0001_0002)]], b"payload"),
        frame(&[&[v4.clone(), icmp(3, 0)]], &quoted_v4),
        frame(&[&[v6.clone(), icmp(2, 1280)]], &quoted_v6),
        frame(&[&[first]], &[1; 24]),
        frame(&[&[later]], &[1; 24]),
        frame(&[&[fragment]], &[1; 24]),
        frame(&[&[v4, tunnel.clone()], &inner], b"payload"),
        frame(&[&[v6, tunnel], &inner_5g], b"payload"),
    ]
}

/// Xorshift: the same numbers in every run.
#[cfg(test)]
pub(crate) struct Random(u64);

#[cfg(test)]
impl Random {
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.number() >> 16) as usize % end
    }

    /// Changes a byte: to an extreme, to any value, or one bit of it.
    pub fn mutate(&mut self, bytes: &mut [u8]) {
        let at = self.below(bytes.len());
        bytes[at] = [0, 0xff, self.number() as u8, bytes[at] ^ 1 << self.below(8)][self.below(4)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutated_frames_are_read_alike() {
        let seeds: Vec<Vec<u8>> = frames();
        let mut random = Random::new();
        for _ in 0..20_000 {
            let seed = &seeds[random.below(seeds.len())];
            let mut data = vec![random.below(256) as u8];
            data.extend_from_slice(
                &seed[..seed.len() - if random.below(4) == 0 { random.below(seed.len()) } else { 0 }],
            );
            for _ in 0..random.below(4) {
                random.mutate(&mut data);
            }
            views(&data);
        }
    }
}
