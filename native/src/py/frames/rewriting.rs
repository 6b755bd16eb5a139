//! New values of header fields, from the keywords that an author writes.

use std::net::IpAddr;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::flow::Rewrite;
use crate::flow::edit::Failed;
use crate::packet::ethernet::Mac;
use crate::port::options::link_address;

const NAMES: &str = "src_mac, dst_mac, vlan, src_ip, dst_ip, src_port, dst_port, ttl, dscp";
/// 4095 is reserved (IEEE 802.1Q §9.6); 0 takes the tag off.
const LARGEST_VLAN: u16 = 4094;
const LARGEST_DSCP: u8 = 63;

/// `ValueError` says what is allowed; no keyword at all is a `TypeError`.
pub fn parse(values: Option<&Bound<'_, PyDict>>) -> PyResult<Rewrite> {
    let mut to = Rewrite::default();
    let Some(values) = values else { return Err(PyTypeError::new_err(format!("rewrite: expected some of {NAMES}"))) };
    for (name, value) in values {
        let name: String = name.extract()?;
        match name.as_str() {
            "src_mac" => to.source_mac = Some(mac(&name, &value)?),
            "dst_mac" => to.destination_mac = Some(mac(&name, &value)?),
            "vlan" => to.vlan = Some(number(&name, &value, LARGEST_VLAN)?),
            "src_ip" => to.source = Some(address(&name, &value)?),
            "dst_ip" => to.destination = Some(address(&name, &value)?),
            "src_port" => to.source_port = Some(number(&name, &value, u16::MAX)?),
            "dst_port" => to.destination_port = Some(number(&name, &value, u16::MAX)?),
            "ttl" => to.ttl = Some(number(&name, &value, u8::MAX)?),
            "dscp" => to.dscp = Some(number(&name, &value, LARGEST_DSCP)?),
            _ => return Err(PyTypeError::new_err(format!("rewrite: {name:?}: expected some of {NAMES}"))),
        }
    }
    Ok(to)
}

/// Why a rewrite is not possible, for people.
pub fn error(failed: Failed) -> PyErr {
    let why = match failed {
        Failed::NoEthernet => "the frame is too short",
        Failed::NoIp => "it is no IP packet, or malformed",
        Failed::OtherVersion => "the address is of the other version of IP",
        Failed::NoPort => "its protocol has no such port",
        Failed::SourceRoute => "its destination depends on a source route",
        Failed::NoRoom => "it would be too long",
        Failed::HopLimit | Failed::NoQuote | Failed::NoGPdu | Failed::Congestion | Failed::GroupSource => {
            "its headers do not allow it"
        }
    };
    PyValueError::new_err(format!("rewrite: {why}"))
}

fn number<N>(name: &str, value: &Bound<'_, PyAny>, largest: N) -> PyResult<N>
where
    N: TryFrom<i64> + PartialOrd + std::fmt::Display,
{
    let found: i64 = value.extract()?;
    N::try_from(found)
        .ok()
        .filter(|number| *number <= largest)
        .ok_or_else(|| PyValueError::new_err(format!("{name}: {found}: expected 0 to {largest}")))
}

fn address(name: &str, value: &Bound<'_, PyAny>) -> PyResult<IpAddr> {
    let text = value.str()?;
    let text = text.to_str()?;
    text.parse().map_err(|_| PyValueError::new_err(format!("{name}: {text:?}: expected an IP address")))
}

fn mac(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Mac> {
    let text: String = value.extract()?;
    link_address(&text)
        .ok_or_else(|| PyValueError::new_err(format!("{name}: {text:?}: expected a link address, 02:00:00:00:00:01")))
}
