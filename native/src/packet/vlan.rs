//! VLAN tags (IEEE 802.1Q §9.6): four bytes between the addresses and the Ethernet type, or another tag.

use super::{Malformed, u16_at};

pub const TAG: usize = 4;
/// Tag types: 802.1Q, and 802.1ad for the outer of two.
pub const CUSTOMER: u16 = 0x8100;
pub const SERVICE: u16 = 0x88a8;
/// Ids are 1 to 4094; 0 is a priority without a VLAN, 4095 reserved.
pub const ID: u16 = 0x0fff;

#[inline]
pub fn is_tag(ethertype: u16) -> bool {
    ethertype == CUSTOMER || ethertype == SERVICE
}

/// What stands behind a tag's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    pub id: u16,
    /// 0 to 7.
    pub priority: u8,
    pub drop_eligible: bool,
    /// Of what follows.
    pub ethertype: u16,
}

impl Tag {
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() < TAG {
            return Err(Malformed::Truncated);
        }
        let control = u16_at(bytes, 0);
        Ok(Self {
            id: control & ID,
            priority: (control >> 13) as u8,
            drop_eligible: control & 0x1000 != 0,
            ethertype: u16_at(bytes, 2),
        })
    }

    pub fn emit(&self) -> [u8; TAG] {
        let control = u16::from(self.priority) << 13 | u16::from(self.drop_eligible) << 12 | self.id & ID;
        let ([a, b], [c, d]) = (control.to_be_bytes(), self.ethertype.to_be_bytes());
        [a, b, c, d]
    }
}

/// A tag to be put between the addresses and the type that is there: its own type, and then its fields.
pub fn emit_before(kind: u16, priority: u8, id: u16) -> [u8; TAG] {
    let ([a, b], [c, d]) = (kind.to_be_bytes(), (u16::from(priority) << 13 | id & ID).to_be_bytes());
    [a, b, c, d]
}

/// Leaves priority and drop eligibility.
pub fn set_id(tag: &mut [u8], id: u16) {
    tag[0] = tag[0] & 0xf0 | (id >> 8) as u8 & 0x0f;
    tag[1] = id as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_and_value_are_the_same() {
        let tag = Tag { id: 0xabc, priority: 5, drop_eligible: true, ethertype: 0x0800 };
        assert_eq!(tag.emit(), [0xba, 0xbc, 8, 0]);
        assert_eq!(Tag::parse(&tag.emit()), Ok(tag));
        assert_eq!(Tag::parse(&[0; 3]), Err(Malformed::Truncated));
        assert_eq!(emit_before(SERVICE, 3, 5), [0x88, 0xa8, 0x60, 5]);
    }

    #[test]
    fn another_id_leaves_the_priority() {
        let mut tag = [0xba, 0xbc, 8, 0];
        set_id(&mut tag, 0x123);
        assert_eq!(tag, [0xb1, 0x23, 8, 0]);
    }
}
