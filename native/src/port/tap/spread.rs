//! Which queue a frame goes by: one flow, one queue, for the kernel answers a flow by the queue it came from.

use crate::packet::{ethernet, protocol};

const ODD: u32 = 0x9e37_79b1;

/// The same for all frames of a flow, fragments taken for themselves.
pub fn spread(frame: &[u8]) -> u32 {
    let word =
        |at: usize| frame.get(at..at + 4).map_or(0, |word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let byte = |at: usize| frame.get(at).copied().unwrap_or(0);
    let carries_ports = |protocol| matches!(protocol, protocol::TCP | protocol::UDP);
    let ethertype = u16::from_be_bytes([byte(12), byte(13)]);
    let (addresses, ports) = match ethertype {
        ethernet::IPV4 => {
            // RFC 791: the flags' "more", and the offset.
            let is_fragment = byte(20) & 0x3f != 0 || byte(21) != 0;
            let ports = 14 + usize::from(byte(14) & 15) * 4;
            (26..34, (!is_fragment && carries_ports(byte(23))).then_some(ports))
        }
        ethernet::IPV6 => (22..54, carries_ports(byte(20)).then_some(54)),
        _ => return 0,
    };
    let mixed =
        addresses.step_by(4).chain(ports).fold(0u32, |sum, at| (sum ^ word(at)).wrapping_mul(ODD).rotate_left(13));
    mixed ^ mixed >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(source: u16, flags: u8) -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[20] = flags;
        frame[23] = protocol::UDP;
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame[34..36].copy_from_slice(&source.to_be_bytes());
        frame
    }

    #[test]
    fn flows_spread_and_a_flow_does_not() {
        let queues: std::collections::HashSet<u32> = (0..64).map(|source| spread(&udp(source, 0)) % 4).collect();
        assert_eq!(queues.len(), 4);
        let mut longer = udp(7, 0);
        longer.extend([1; 100]);
        assert_eq!(spread(&udp(7, 0)), spread(&longer));
    }

    #[test]
    fn fragments_of_a_datagram_stay_together() {
        assert_eq!(spread(&udp(7, 0x20)), spread(&udp(8, 0x20)));
        assert_eq!(spread(&[]), 0);
    }
}
