//! A port's options, from pairs of text to values: the one place that knows their keys, their ranges and their words of
//! refusal, for `vnf run`, files and `vnf load` alike. A key of [`LISTS`] may come again and again, any other once.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::memif::control::SECRET_BYTES;
use super::memif::{MemifConfig, Role};
use crate::stack::tcp::TcpConfig;
use crate::stack::{Cidr, HostConfig};

pub const KEYS: [&str; 19] = [
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
    "tcp_rto_ms",
    "tcp_user_timeout_s",
    "tcp_handshake_timeout_s",
    "tcp_keep_alive_s",
    "tcp_time_wait_s",
    "tcp_half_open",
    "tcp_half_open_per_source",
    "tcp_buffer_bytes",
];

/// Keys with any number of values.
pub const LISTS: [&str; 3] = ["address", "virtual", "gateway"];

/// A memif port and the host behind it.
#[derive(Clone)]
pub struct PortOptions {
    pub memif: MemifConfig,
    pub host: HostConfig,
}

/// Without the secret.
impl fmt::Debug for PortOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("PortOptions").field(&self.memif.path).field(&self.host).finish()
    }
}

/// What holds where nothing is said.
#[derive(Clone, Copy, Debug)]
pub struct Defaults<'a> {
    /// What the port calls itself to its peer.
    pub name: &'a str,
    pub role: Role,
    /// `None`: made up from path, id and role.
    pub mac: Option<[u8; 6]>,
}

/// One line: which key, what was found (empty where `problem` says it, or nobody may read it), what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    pub key: String,
    pub found: String,
    pub problem: String,
}

impl fmt::Display for OptionError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found.as_str() {
            "" => write!(formatter, "{}: {}", self.key, self.problem),
            found => write!(formatter, "{}: '{found}': {}", self.key, self.problem),
        }
    }
}

impl std::error::Error for OptionError {}

fn refuse<T>(key: &str, found: &str, problem: impl Into<String>) -> Result<T, OptionError> {
    Err(OptionError { key: key.into(), found: found.into(), problem: problem.into() })
}

/// Whether `value` may stand at `key`.
pub fn check(key: &str, value: &str) -> Result<(), OptionError> {
    Draft::new("", Role::Server).set(key, value)
}

/// The whole of a port, which has a path and at least one address.
pub fn parse<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    defaults: Defaults<'_>,
) -> Result<PortOptions, OptionError> {
    let mut draft = Draft::new(defaults.name, defaults.role);
    let mut seen = Vec::new();
    for (key, value) in pairs {
        if seen.contains(&key) && !LISTS.contains(&key) {
            return refuse(key, value, "expected one value");
        }
        seen.push(key);
        draft.set(key, value)?;
    }
    if !seen.contains(&"path") {
        return refuse("path", "", "missing: the path of the memif control socket");
    }
    if draft.addresses.is_empty() {
        return refuse("address", "", "missing: expected at least one address such as 10.0.0.2/24");
    }
    let Draft { memif, mac, addresses, virtual_addresses, gateways, tcp } = draft;
    let mac = mac.or(defaults.mac).unwrap_or_else(|| made_up_mac(&memif));
    let host = HostConfig { mac, addresses, virtual_addresses, gateways, mtu: memif.mtu, tcp };
    Ok(PortOptions { memif, host })
}

/// Options as far as they have been read.
struct Draft {
    memif: MemifConfig,
    mac: Option<[u8; 6]>,
    addresses: Vec<Cidr>,
    virtual_addresses: Vec<IpAddr>,
    gateways: Vec<IpAddr>,
    tcp: TcpConfig,
}

impl Draft {
    fn new(name: &str, role: Role) -> Self {
        Self {
            memif: MemifConfig::new(name, "", role),
            mac: None,
            addresses: Vec::new(),
            virtual_addresses: Vec::new(),
            gateways: Vec::new(),
            tcp: TcpConfig::default(),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), OptionError> {
        let (memif, tcp) = (&mut self.memif, &mut self.tcp);
        match key {
            "path" => memif.path = path(key, value)?.into(),
            "role" => {
                memif.role = match value {
                    "server" => Role::Server,
                    "client" => Role::Client,
                    _ => return refuse(key, value, "expected server or client"),
                }
            }
            "id" => memif.id = number(key, value, 0, u64::from(u32::MAX))? as u32,
            "secret" => memif.secret = Some(secret(key, value)?),
            "ring_slots" => memif.ring_slots = power_of_two(key, value, 2, 16_384)? as u32,
            "buffer_bytes" => memif.buffer_bytes = number(key, value, 256, 65_536)? as u32,
            // RFC 791: the least every host takes; and a jumbo frame.
            "mtu" => memif.mtu = number(key, value, 576, 9216)? as usize,
            "mac" => self.mac = Some(mac(key, value)?),
            "address" => self.addresses.push(cidr(key, value)?),
            "virtual" => self.virtual_addresses.push(ip(key, value)?),
            "gateway" => self.gateways.push(ip(key, value)?),
            "tcp_rto_ms" => tcp.rto = Duration::from_millis(number(key, value, 5, 60_000)?),
            "tcp_user_timeout_s" => tcp.user_timeout = seconds(key, value, 0.1)?,
            "tcp_handshake_timeout_s" => tcp.handshake_timeout = seconds(key, value, 0.1)?,
            "tcp_keep_alive_s" => tcp.keep_alive = Some(seconds(key, value, 0.0)?).filter(|every| !every.is_zero()),
            "tcp_time_wait_s" => tcp.time_wait = seconds(key, value, 0.0)?,
            "tcp_half_open" => tcp.half_open_per_listener = number(key, value, 1, 1 << 20)? as usize,
            "tcp_half_open_per_source" => tcp.half_open_per_source = number(key, value, 1, 1 << 20)? as usize,
            "tcp_buffer_bytes" if value == "0" => tcp.buffers = TcpConfig::default().buffers,
            "tcp_buffer_bytes" => {
                tcp.buffers = vec![(power_of_two(key, value, 1024, 1 << 20)? as usize, usize::MAX)];
            }
            _ => return refuse(key, "", format!("unknown key: memif knows {}", KEYS.join(", "))),
        }
        Ok(())
    }
}

fn path<'a>(key: &str, value: &'a str) -> Result<&'a str, OptionError> {
    match value {
        "" => refuse(key, value, "missing: the path of the memif control socket"),
        // sun_path holds 108 bytes with its NUL (unix(7)).
        _ if value.len() > 107 || value.contains('\0') => {
            refuse(key, value, "the path of a Unix socket is at most 107 bytes")
        }
        _ => Ok(value),
    }
}

fn secret(key: &str, value: &str) -> Result<Vec<u8>, OptionError> {
    if !(1..=SECRET_BYTES).contains(&value.len()) || value.contains('\0') {
        return refuse(key, "", format!("{} bytes: expected 1 to {SECRET_BYTES} without NUL", value.len()));
    }
    Ok(value.into())
}

/// Digits only: neither a sign nor a space.
fn number(key: &str, value: &str, low: u64, high: u64) -> Result<u64, OptionError> {
    let number = Some(value).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit())).and_then(|t| t.parse().ok());
    match number {
        Some(number) if (low..=high).contains(&number) => Ok(number),
        _ => refuse(key, value, format!("expected a number from {low} to {high}")),
    }
}

fn power_of_two(key: &str, value: &str, low: u64, high: u64) -> Result<u64, OptionError> {
    match number(key, value, low, high) {
        Ok(number) if number.is_power_of_two() => Ok(number),
        _ => refuse(key, value, format!("expected a power of two from {low} to {high}")),
    }
}

fn seconds(key: &str, value: &str, low: f64) -> Result<Duration, OptionError> {
    const DAY: f64 = 86_400.0;
    let plain = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match value.parse::<f64>() {
        Ok(seconds) if plain && (low..=DAY).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => refuse(key, value, format!("expected seconds from {low} to {DAY}")),
    }
}

fn ip(key: &str, value: &str) -> Result<IpAddr, OptionError> {
    value.parse().or_else(|_| refuse(key, "", format!("'{value}' is not an IP address")))
}

pub fn cidr(key: &str, value: &str) -> Result<Cidr, OptionError> {
    let not = || refuse(key, "", format!("'{value}' is not an address such as 10.0.0.2/24 or fd00::2/64"));
    let (address, prefix) = value.split_once('/').unwrap_or((value, ""));
    let Ok(address) = address.parse::<IpAddr>() else { return not() };
    if !value.contains('/') {
        let wanted = "has no prefix length: expected an address such as 10.0.0.2/24";
        return refuse(key, "", format!("'{value}' {wanted}"));
    }
    match number(key, prefix, 0, if address.is_ipv4() { 32 } else { 128 }) {
        Ok(length) => Ok(Cidr { address, prefix: length as u8 }),
        Err(_) => not(),
    }
}

fn mac(key: &str, value: &str) -> Result<[u8; 6], OptionError> {
    let byte = |text: &str| {
        let is_hex = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u8::from_str_radix(text, 16).ok().filter(|_| is_hex)
    };
    let bytes: Option<Vec<u8>> = value.split(':').map(byte).collect();
    match bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) {
        // IEEE 802: the lowest bit of the first byte marks a group.
        Some(mac) if mac[0] & 1 == 1 => {
            refuse(key, value, "a port's address cannot be a group address (its first byte is odd)")
        }
        Some(mac) if mac != [0; 6] => Ok(mac),
        _ => refuse(key, value, "expected six bytes such as 02:00:00:00:00:02"),
    }
}

/// A locally administered address, the same for the same port.
fn made_up_mac(memif: &MemifConfig) -> [u8; 6] {
    use std::hash::{BuildHasher, Hasher};
    use std::os::unix::ffi::OsStrExt;
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write(memif.path.as_os_str().as_bytes());
    hasher.write_u32(memif.id);
    hasher.write_u8(u8::from(memif.role == Role::Server));
    let [.., a, b, c, d, e] = hasher.finish().to_be_bytes();
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults<'_> = Defaults { name: "b", role: Role::Server, mac: None };

    fn parsed(text: &str) -> Result<PortOptions, String> {
        let pairs = [("path", "/x"), ("address", "10.0.0.2/24")].into_iter();
        parse(pairs.chain(text.split_whitespace().map(|pair| pair.split_once('=').unwrap())), DEFAULTS)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_known_and_what_is_not_said_has_its_default() {
        for key in KEYS {
            assert!(!check(key, "?").is_err_and(|error| error.problem.contains("unknown")), "{key}");
        }
        let port = parsed("").unwrap();
        assert_eq!((port.memif.role, port.memif.ring_slots, port.host.mtu), (Role::Server, 1024, 1500));
        assert_eq!(port.host.tcp, TcpConfig::default());
        assert_eq!((port.host.mac[0], port.host.mac), (2, parsed("").unwrap().host.mac));
        assert_ne!(port.host.mac, parsed("id=1").unwrap().host.mac);
        let given = parse([("path", "/x"), ("address", "fd00::2/64")], Defaults { mac: Some([2; 6]), ..DEFAULTS });
        assert_eq!(given.unwrap().host.mac, [2; 6]);
    }

    #[test]
    fn the_keys_of_tcp_fill_its_configuration() {
        let tcp = parsed(
            "tcp_rto_ms=20 tcp_user_timeout_s=7 tcp_handshake_timeout_s=0.5 tcp_keep_alive_s=60 tcp_time_wait_s=1 \
             tcp_half_open=5 tcp_half_open_per_source=6 tcp_buffer_bytes=8192",
        );
        let wanted = TcpConfig {
            buffers: vec![(8192, usize::MAX)],
            half_open_per_listener: 5,
            half_open_per_source: 6,
            rto: Duration::from_millis(20),
            user_timeout: Duration::from_secs(7),
            handshake_timeout: Duration::from_millis(500),
            keep_alive: Some(Duration::from_secs(60)),
            time_wait: Duration::from_secs(1),
            ..TcpConfig::default()
        };
        assert_eq!(tcp.unwrap().host.tcp, wanted);
        assert_eq!(parsed("tcp_keep_alive_s=0 tcp_buffer_bytes=0").unwrap().host.tcp, TcpConfig::default());
    }

    #[test]
    fn a_refusal_says_what_was_found_and_what_is_allowed() {
        let refusals = [
            ("role=master", "role: 'master': expected server or client"),
            ("mtu=100", "mtu: '100': expected a number from 576 to 9216"),
            ("id=+1", "id: '+1': expected a number from 0 to 4294967295"),
            ("ring_slots=1000", "ring_slots: '1000': expected a power of two from 2 to 16384"),
            ("mac=2:0:0:0:0:0", "mac: '2:0:0:0:0:0': expected six bytes such as 02:00:00:00:00:02"),
            ("address=10.0.0.1/33", "address: '10.0.0.1/33' is not an address such as 10.0.0.2/24 or fd00::2/64"),
            ("gateway=x", "gateway: 'x' is not an IP address"),
            ("tcp_buffer_bytes=1000", "tcp_buffer_bytes: '1000': expected a power of two from 1024 to 1048576"),
            ("tcp_rto_ms=1", "tcp_rto_ms: '1': expected a number from 5 to 60000"),
            ("tcp_user_timeout_s=0", "tcp_user_timeout_s: '0': expected seconds from 0.1 to 86400"),
            ("tcp_time_wait_s=1e3", "tcp_time_wait_s: '1e3': expected seconds from 0 to 86400"),
            ("role=client role=client", "role: 'client': expected one value"),
        ];
        for (text, words) in refusals {
            assert_eq!(parsed(text).unwrap_err(), words);
        }
        assert!(parsed("slots=3").unwrap_err().starts_with("slots: unknown key: memif knows path, role"));
        let secret = parsed("secret=longer-than-twenty-four-bytes").unwrap_err();
        assert!(secret.contains("29 bytes: expected 1 to 24") && !secret.contains("longer"), "{secret}");
        assert_eq!(parse([("path", "/x")], DEFAULTS).unwrap_err().key, "address");
        assert_eq!(parse([("address", "10.0.0.2/24")], DEFAULTS).unwrap_err().key, "path");
    }
}
