//! Columns: one header field of every frame of a batch.

use crate::packet::headers::{Headers, kind};

pub fn ttl(headers: &Headers, bytes: &[u8]) -> u8 {
    let at = usize::from(headers.network);
    if headers.is(kind::IPV4) {
        bytes[at + 8]
    } else if headers.is(kind::IPV6) {
        bytes[at + 7]
    } else {
        0
    }
}

pub fn tcp_flags(headers: &Headers, bytes: &[u8]) -> u8 {
    if headers.is(kind::TCP) { bytes[usize::from(headers.transport) + 13] } else { 0 }
}
