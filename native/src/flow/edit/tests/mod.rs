//! The oracle: the frame built anew with the values that were asked for, all checksums computed over all of it.

mod errors;
mod rewriting;
mod tunnels;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;
use crate::packet::layers::{Ethernet, Gtpu, Icmp, Ipv4, Ipv6, Layer, Tcp, Udp, Vlan, build};
use crate::port::lent::Lent;

fn ethernet() -> Layer {
    Ethernet::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).into()
}

fn tag(id: u16) -> Layer {
    Vlan { priority: 5, drop_eligible: true, ..Vlan::new(id) }.into()
}

fn v4(source: [u8; 4], destination: [u8; 4]) -> Ipv4 {
    Ipv4 { dont_fragment: true, ..Ipv4::new(source, destination) }
}

fn v6(source: &str, destination: &str) -> Ipv6 {
    Ipv6::new(source.parse::<Ipv6Addr>().unwrap(), destination.parse::<Ipv6Addr>().unwrap())
}

/// A packet of either version between two hosts that are called by a number.
fn ip(is_v4: bool, source: u8, destination: u8) -> Layer {
    if is_v4 {
        Layer::Ipv4(v4([10, 0, 0, source], [10, 0, 0, destination]))
    } else {
        Layer::Ipv6(v6(&format!("fd00::{source}"), &format!("fd00::{destination}")))
    }
}

fn address(is_v4: bool, host: u8) -> IpAddr {
    if is_v4 { Ipv4Addr::new(10, 0, 0, host).into() } else { format!("fd00::{host}").parse().unwrap() }
}

fn udp(source_port: u16, destination_port: u16) -> Layer {
    Udp::new(source_port, destination_port).into()
}

fn tcp(source_port: u16, destination_port: u16) -> Layer {
    Tcp { flags: 0x10, options: vec![1; 12], ..Tcp::new(source_port, destination_port) }.into()
}

fn icmp(kind: u8, code: u8, data: u32) -> Layer {
    Icmp::new(kind, code, data).into()
}

fn take(frame: &[u8]) -> (Head, Headers) {
    let mut head = Head::default();
    head.take(Lent::of(frame));
    let headers = Headers::read(head.bytes(), head.frame_len());
    (head, headers)
}

/// The frame that leaves.
fn whole(head: &Head, frame: &[u8]) -> Vec<u8> {
    let rest = head.rest(Lent::of(frame));
    let mut bytes = head.bytes().to_vec();
    let at = bytes.len();
    bytes.resize(at + rest.len(), 0);
    rest.copy_to(0, &mut bytes[at..]);
    assert_eq!(bytes.len(), head.frame_len());
    bytes
}

fn edited(frame: &[u8], edit: impl FnOnce(&mut Head, &Headers) -> Result<(), Failed>) -> Result<Vec<u8>, Failed> {
    let (mut head, headers) = take(frame);
    edit(&mut head, &headers)?;
    Ok(whole(&head, frame))
}

fn rewritten(frame: &[u8], to: Rewrite) -> Result<Vec<u8>, Failed> {
    edited(frame, |head, headers| rewrite(head, headers, &to))
}

fn frame(layers: &[Layer], payload: &[u8]) -> Vec<u8> {
    build(layers, payload).unwrap()
}

/// The same layers with the values of `to`.
fn with(layers: &[Layer], to: &Rewrite) -> Vec<Layer> {
    let mut layers = layers.to_vec();
    for layer in &mut layers {
        match layer {
            Layer::Ethernet(layer) => {
                layer.source = to.source_mac.unwrap_or(layer.source);
                layer.destination = to.destination_mac.unwrap_or(layer.destination);
            }
            Layer::Ipv4(layer) => {
                for (field, value) in [(&mut layer.source, to.source), (&mut layer.destination, to.destination)] {
                    if let Some(IpAddr::V4(value)) = value {
                        *field = value;
                    }
                }
                layer.ttl = to.ttl.unwrap_or(layer.ttl);
                layer.dscp = to.dscp.unwrap_or(layer.dscp);
            }
            Layer::Ipv6(layer) => {
                for (field, value) in [(&mut layer.source, to.source), (&mut layer.destination, to.destination)] {
                    if let Some(IpAddr::V6(value)) = value {
                        *field = value;
                    }
                }
                layer.hop_limit = to.ttl.unwrap_or(layer.hop_limit);
                layer.dscp = to.dscp.unwrap_or(layer.dscp);
            }
            Layer::Udp(Udp { source_port, destination_port, .. })
            | Layer::Tcp(Tcp { source_port, destination_port, .. }) => {
                *source_port = to.source_port.unwrap_or(*source_port);
                *destination_port = to.destination_port.unwrap_or(*destination_port);
            }
            Layer::Icmp(layer) => {
                let is_request = matches!(layer.kind, 8 | 13 | 128);
                if let Some(id) = if is_request { to.source_port } else { to.destination_port } {
                    layer.data = layer.data & 0xffff | u32::from(id) << 16;
                }
            }
            Layer::Vlan(_) | Layer::Arp(_) | Layer::Gtpu(_) => {}
        }
    }
    match (to.vlan, &mut layers[1]) {
        (None, _) => {}
        (Some(0), Layer::Vlan(_)) => drop(layers.remove(1)),
        (Some(0), _) => {}
        (Some(id), Layer::Vlan(tag)) => tag.id = id,
        (Some(id), _) => {
            layers.insert(1, Vlan::new(id).into());
        }
    }
    layers
}
