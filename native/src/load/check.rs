//! What a client end may be asked for: behind [`Drive::check`] every size, count and field is proved to fit.

use std::ops::Range;

use super::{Drive, Endpoint, LoadError};

/// The largest UDP payload over IPv4.
const DATAGRAM_BYTES: usize = 65_507;
const STREAM_BYTES: usize = 1 << 20;
const MOST: usize = 1 << 20;
/// What may wait to be sent, over all connections.
const WAITING_BYTES: usize = 1 << 30;

impl Drive {
    /// Refuses what contradicts itself, saying what was found and what was wanted.
    pub fn check(&self) -> Result<(), LoadError> {
        let refuse = |message: String| Err(LoadError::Config(message));
        let largest = if self.is_udp() { DATAGRAM_BYTES } else { STREAM_BYTES };
        if !(1..=largest).contains(&self.size) {
            return refuse(format!("size {}: expected 1 to {largest} bytes for {}", self.size, self.endpoint));
        }
        for (name, value) in [("connections", self.connections), ("outstanding", self.outstanding)] {
            if !(1..=MOST).contains(&value) {
                return refuse(format!("{name} {value}: expected 1 to {MOST}"));
            }
        }
        if self.size * self.outstanding > WAITING_BYTES {
            let (size, outstanding) = (self.size, self.outstanding);
            return refuse(format!("size {size} × outstanding {outstanding}: expected at most {WAITING_BYTES} bytes"));
        }
        if self.requests_per_connection == Some(0) {
            return refuse("requests per connection 0: expected at least 1".into());
        }
        if let Some(rate) = self.rate
            && !(rate.is_finite() && rate > 0.0)
        {
            return refuse(format!("rate {rate}: expected more than 0 requests per second"));
        }
        if self.duration.is_zero() || self.timeout.is_zero() {
            return refuse("duration and timeout: expected more than 0 seconds".into());
        }
        let id = self.id_bytes();
        if !(1..=8).contains(&id.len()) || id.end > self.size {
            let (offset, bytes, size) = (id.start, id.len(), self.size);
            return refuse(format!("id {offset}:{bytes}: expected 1 to 8 bytes within a message of {size}"));
        }
        // At least one bit is left to tell a request from the one that had its place before.
        if self.by_id() && u64::from(self.place_bits()) >= 8 * id.len() as u64 {
            let (outstanding, bytes) = (self.outstanding, id.len());
            return refuse(format!(
                "outstanding {outstanding}: an id of {bytes} bytes tells no more than {} requests apart",
                1_u64 << (8 * bytes - 1)
            ));
        }
        Ok(())
    }

    pub(super) fn is_udp(&self) -> bool {
        matches!(self.endpoint, Endpoint::Udp(_))
    }

    /// Where the id is written, whether or not replies are matched by it: it makes every request differ.
    pub(super) fn id_bytes(&self) -> Range<usize> {
        match self.request_id {
            Some(field) => field.offset..field.offset.saturating_add(field.size),
            None => 0..self.size.min(8),
        }
    }

    /// Requests in flight per connection, at most.
    pub(super) fn share(&self) -> usize {
        self.outstanding.div_ceil(self.connections)
    }

    /// Whether replies are matched by their id, rather than by their order.
    pub(super) fn by_id(&self) -> bool {
        self.request_id.is_some() || (self.is_udp() && self.share() > 1)
    }

    /// Bits that number the places of requests in flight.
    pub(super) fn place_bits(&self) -> u32 {
        usize::BITS - (self.outstanding - 1).leading_zeros()
    }
}
