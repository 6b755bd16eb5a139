//! A port's options, from a Python dictionary to an open port.

use std::net::IpAddr;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::port::Port;
use crate::port::memif::{Memif, MemifConfig, Role};
use crate::stack::{Cidr, HostConfig};

pub struct PortOptions {
    memif: MemifConfig,
    pub host: HostConfig,
}

const KEYS: [&str; 12] = [
    "type",
    "path",
    "role",
    "id",
    "secret",
    "ring_slots",
    "buffer_bytes",
    "mtu",
    "mac",
    "address",
    "virtual",
    "gateway",
];

fn refuse<T>(message: String) -> PyResult<T> {
    Err(PyValueError::new_err(message))
}

/// The value of `key` as text, or as several texts.
fn texts(options: &Bound<'_, PyDict>, key: &str) -> PyResult<Vec<String>> {
    match options.get_item(key)?.filter(|value| !value.is_none()) {
        None => Ok(Vec::new()),
        Some(value) if value.is_instance_of::<PyString>() => Ok(vec![value.extract()?]),
        Some(value) => {
            value.extract::<Vec<String>>().or_else(|_| refuse(format!("{key}: expected text, or a list of texts")))
        }
    }
}

fn number<T: std::str::FromStr>(options: &Bound<'_, PyDict>, key: &str, default: T) -> PyResult<T> {
    match options.get_item(key)?.filter(|value| !value.is_none()) {
        None => Ok(default),
        Some(value) => {
            let text = value.str()?.to_string();
            text.parse().or_else(|_| refuse(format!("{key}: {text:?}: expected a number in range")))
        }
    }
}

pub fn cidr(text: &str) -> PyResult<Cidr> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let Ok(address) = address.parse::<IpAddr>() else {
        return refuse(format!("address: {text:?}: expected an address such as 10.0.0.2/24"));
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = if prefix.is_empty() { Ok(most) } else { prefix.parse() };
    match prefix {
        Ok(prefix) if prefix <= most => Ok(Cidr { address, prefix }),
        _ => refuse(format!("address: {text:?}: expected a prefix length of at most {most}")),
    }
}

fn ip(key: &str, text: &str) -> PyResult<IpAddr> {
    text.parse().or_else(|_| refuse(format!("{key}: {text:?} is not an IP address")))
}

fn mac(text: &str) -> PyResult<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    match bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) {
        Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(mac),
        _ => refuse(format!("mac: {text:?}: expected a unicast address such as 02:00:00:00:00:01")),
    }
}

/// A locally administered address, the same for the same port.
fn made_up_mac(path: &str, id: u32, server: bool) -> [u8; 6] {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write(path.as_bytes());
    hasher.write_u32(id);
    hasher.write_u8(u8::from(server));
    let [.., a, b, c, d, e] = hasher.finish().to_be_bytes();
    [0x02, a, b, c, d, e]
}

impl PortOptions {
    pub fn parse(name: &str, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        for key in options.keys() {
            let key: String = key.extract()?;
            if !KEYS.contains(&key.as_str()) {
                return refuse(format!("{key}: expected one of {}", KEYS.join(", ")));
            }
        }
        match texts(options, "type")?.first().map(String::as_str) {
            Some("memif") => {}
            other => return refuse(format!("type: {:?}: expected memif", other.unwrap_or_default())),
        }
        let Some(path) = texts(options, "path")?.pop() else {
            return refuse("path: expected the path of a socket".into());
        };
        let role = match texts(options, "role")?.first().map_or("server", String::as_str) {
            "server" => Role::Server,
            "client" => Role::Client,
            other => return refuse(format!("role: {other:?}: expected server or client")),
        };
        let mut memif = MemifConfig::new(name, &path, role);
        memif.id = number(options, "id", 0)?;
        memif.secret = texts(options, "secret")?.pop().map(String::into_bytes);
        memif.ring_slots = number(options, "ring_slots", memif.ring_slots)?;
        memif.buffer_bytes = number(options, "buffer_bytes", memif.buffer_bytes)?;
        memif.mtu = number(options, "mtu", memif.mtu)?;
        let addresses = texts(options, "address")?.iter().map(|text| cidr(text)).collect::<PyResult<Vec<_>>>()?;
        if addresses.is_empty() {
            return refuse("address: expected at least one address such as 10.0.0.2/24".into());
        }
        let every =
            |key: &str| -> PyResult<Vec<IpAddr>> { texts(options, key)?.iter().map(|text| ip(key, text)).collect() };
        let host = HostConfig {
            mac: match texts(options, "mac")?.first() {
                Some(text) => mac(text)?,
                None => made_up_mac(&path, memif.id, role == Role::Server),
            },
            addresses,
            virtual_addresses: every("virtual")?,
            gateways: every("gateway")?,
            mtu: memif.mtu,
            tcp: Default::default(),
        };
        Ok(Self { memif, host })
    }

    pub fn open(&self) -> PyResult<Box<dyn Port>> {
        let opened = Memif::new(self.memif.clone());
        match opened {
            Ok(port) => Ok(Box::new(port)),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                Err(PyValueError::new_err(error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }
}
