//! What a fuzzer feeds the edits with: any frame, any values. No panic; what was a right checksum stays one and what was
//! wrong stays wrong; a tunnelled packet comes out as it went in. The fuzz target of `native/fuzz` and a test call it.

use std::net::IpAddr;

use crate::flow::edit::{decapsulate, encapsulate, hop, reply, rewrite, set_vlan, translate_quoted};
use crate::flow::{Encapsulate, Head, Rewrite};
use crate::packet::headers::Headers;
use crate::packet::layers::{First, Icmp, Layer, Tcp, Udp, parse};
use crate::port::lent::Lent;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn word(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn address(&mut self, is_v4: bool) -> Option<IpAddr> {
        if is_v4 { self.array::<4>().map(Into::into) } else { self.array::<16>().map(Into::into) }
    }

    /// Bits of `which` say what is asked for.
    fn rewrite(&mut self, which: u8) -> Option<Rewrite> {
        let is_v4 = which & 0x80 == 0;
        Some(Rewrite {
            source: if which & 1 != 0 { self.address(is_v4) } else { None },
            destination: if which & 2 != 0 { self.address(is_v4) } else { None },
            source_port: if which & 4 != 0 { self.word() } else { None },
            destination_port: if which & 8 != 0 { self.word() } else { None },
            ttl: if which & 16 != 0 { self.byte() } else { None },
            dscp: if which & 32 != 0 { self.byte().map(|dscp| dscp & 63) } else { None },
            vlan: if which & 64 != 0 { self.word().map(|id| id & 0xfff) } else { None },
            ..Rewrite::default()
        })
    }
}

/// One edit and its values, and then the frame.
pub fn edits(data: &[u8]) {
    let _ = edit(&mut Input(data));
}

fn edit(input: &mut Input<'_>) -> Option<()> {
    let (verb, which) = (input.byte()?, input.byte()?);
    let to = input.rewrite(which)?;
    let is_v4 = which & 0x80 == 0;
    let tunnel = Encapsulate {
        teid: u32::from_be_bytes(input.array()?),
        source: input.address(is_v4)?,
        destination: input.address(is_v4)?,
        source_port: input.word()?,
    };
    let frame = input.0;
    let mut head = Head::default();
    head.take(Lent::of(frame));
    let headers = Headers::read(head.bytes(), head.frame_len());
    let done = match verb % 6 {
        0 => rewrite(&mut head, &headers, &to),
        1 => {
            let quoted = headers.quoted(head.bytes())?;
            translate_quoted(&mut head, &headers, &quoted, &to)
        }
        2 => hop(&mut head, &headers),
        3 => set_vlan(&mut head, &headers, to.vlan.unwrap_or(0)).and_then(|()| reply(&mut head)),
        4 => encapsulate(&mut head, &headers, &tunnel),
        _ => decapsulate(&mut head, &headers),
    };
    if done.is_err() {
        return None;
    }
    let after = whole(&head, frame);
    match verb % 6 {
        // Behind many tags neither reader goes on.
        0..4 if headers.network == 0 => {}
        0..4 => assert_eq!(judged(&after), judged(frame)),
        4 => {
            let headers = Headers::read(head.bytes(), head.frame_len());
            assert_eq!(decapsulate(&mut head, &headers), Ok(()));
            assert_eq!(whole(&head, frame), frame);
        }
        _ => assert!(after.len() + 36 <= frame.len()),
    }
    Some(())
}

fn whole(head: &Head, frame: &[u8]) -> Vec<u8> {
    let rest = head.rest(Lent::of(frame));
    let mut bytes = head.bytes().to_vec();
    let at = bytes.len();
    bytes.resize(at + rest.len(), 0);
    rest.copy_to(0, &mut bytes[at..]);
    assert_eq!(bytes.len(), head.frame_len());
    bytes
}

/// Which checksums are right, from the outside in, down to the first transport.
fn judged(frame: &[u8]) -> Vec<bool> {
    let (mut checksums, mut has_pseudo_header) = (Vec::new(), false);
    let parsed = parse(frame, First::Ethernet);
    for layer in parsed.layers {
        match layer {
            Layer::Ipv4(ip) => checksums.push(ip.checksum.is_none()),
            Layer::Icmp(Icmp { kind: 0, code: 0, data: 0, checksum: Some(0) })
                if !has_pseudo_header && frame[parsed.payload.clone()].iter().all(|&byte| byte == 0) =>
            {
                // Nothing but zeros: wrong by the letter, as a sum of 0 is not one of -0, and right by arithmetic.
                checksums.push(true);
                break;
            }
            Layer::Udp(Udp { checksum, .. })
            | Layer::Tcp(Tcp { checksum, .. })
            | Layer::Icmp(Icmp { checksum, .. }) => {
                checksums.push(checksum.is_none());
                break;
            }
            // Its checksums cover the last destination, which `parse` does not look for.
            Layer::Ipv6(ip) if ip.extensions.iter().any(|&(kind, _)| kind == 43) => break,
            Layer::Ipv6(_) => has_pseudo_header = true,
            _ => {}
        }
    }
    checksums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::fuzzing::{Random, frames};

    #[test]
    fn mutated_frames_are_edited_without_harm() {
        let seeds = frames();
        let mut random = Random::new();
        for _ in 0..30_000 {
            let mut frame = seeds[random.below(seeds.len())].clone();
            for _ in 0..random.below(3) {
                random.mutate(&mut frame);
            }
            // The values are read before the frame: as many bytes as they take at most, and more.
            let values: Vec<u8> = (0..200).map(|_| [0, 0xff, random.below(256) as u8][random.below(3)]).collect();
            let mut input = Input(&values);
            let (verb, which) = (input.byte().expect("a byte"), input.byte().expect("a byte"));
            input.rewrite(which).expect("values");
            let is_v4 = which & 0x80 == 0;
            let taken = values.len() - input.0.len() + 4 + if is_v4 { 8 } else { 32 } + 2;
            let data = [&[verb, which][..], &values[2..taken], &frame].concat();
            edits(&data);
        }
    }
}
