//! A port's options, from pairs of text to values: the one place that knows the kinds of ports, their keys, their ranges
//! and their words of refusal, for `vnf run`, files and `vnf load` alike. A key of [`LISTS`] may come again and again, any
//! other once.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::af_xdp::{AfXdpConfig, Attach, Take};
use super::memif::control::SECRET_BYTES;
use super::memif::{MemifConfig, Role};
use super::pcap::{Pace, PcapConfig};
use super::tap::{Layer, TapConfig};
use crate::stack::tcp::TcpConfig;
use crate::stack::{Cidr, HostConfig};

/// The kinds of ports.
pub const KINDS: [&str; 4] = ["memif", "af_xdp", "tap", "pcap"];

/// What every port knows: the host behind it.
const HOST_KEYS: [&str; 13] = [
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

/// The keys of one kind. The first ones have a place of their own in the one-line form: `memif:PATH`, `pcap:INPUT,OUTPUT`.
fn own_keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "memif" => &["path", "role", "id", "secret", "ring_slots", "buffer_bytes", "queues"],
        "af_xdp" => &["interface", "queue", "take", "attach", "zero_copy", "ring_slots", "frame_bytes"],
        "tap" => &["interface", "layer", "queues"],
        "pcap" => &["input", "output", "pace", "repeat"],
        _ => &[],
    }
}

/// How many of its own keys a kind takes without their names in the one-line form.
pub fn positional(kind: &str) -> &'static [&'static str] {
    &own_keys(kind)[..if kind == "pcap" { 2 } else { 1 }]
}

/// Every key of one kind, its own first.
pub fn keys(kind: &str) -> Vec<&'static str> {
    [own_keys(kind), &HOST_KEYS].concat()
}

/// Keys with any number of values.
pub const LISTS: [&str; 5] = ["address", "virtual", "gateway", "queue", "take"];

/// What a port stands on.
#[derive(Clone)]
pub enum Kind {
    Memif(MemifConfig),
    AfXdp(AfXdpConfig),
    Tap(TapConfig),
    Pcap(PcapConfig),
}

/// A port and the host behind it.
#[derive(Clone)]
pub struct PortOptions {
    pub kind: Kind,
    pub host: HostConfig,
    /// What was not said the open port may know better.
    pub mac_is_given: bool,
    pub mtu_is_given: bool,
}

impl PortOptions {
    /// Its name among [`KINDS`].
    pub fn kind_name(&self) -> &'static str {
        kind_name(&self.kind)
    }
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Memif(_) => "memif",
        Kind::AfXdp(_) => "af_xdp",
        Kind::Tap(_) => "tap",
        Kind::Pcap(_) => "pcap",
    }
}

/// Without the secret.
impl fmt::Debug for PortOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("PortOptions").field(&self.kind_name()).field(&self.host).finish()
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

/// Whether `value` may stand at `key` of a port of `kind`.
pub fn check(kind: &str, key: &str, value: &str) -> Result<(), OptionError> {
    Draft::new(kind, "", Role::Server)?.set(key, value)
}

/// The whole of a port.
pub fn parse<'a>(
    kind: &str,
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    defaults: Defaults<'_>,
) -> Result<PortOptions, OptionError> {
    let mut draft = Draft::new(kind, defaults.name, defaults.role)?;
    let mut seen = Vec::new();
    for (key, value) in pairs {
        if seen.contains(&key) && !LISTS.contains(&key) {
            return refuse(key, value, "expected one value");
        }
        seen.push(key);
        draft.set(key, value)?;
    }
    draft.finish(defaults.mac)
}

/// Options as far as they have been read.
struct Draft {
    kind: Kind,
    mtu: Option<usize>,
    mac: Option<[u8; 6]>,
    addresses: Vec<Cidr>,
    virtual_addresses: Vec<IpAddr>,
    gateways: Vec<IpAddr>,
    tcp: TcpConfig,
}

impl Draft {
    fn new(kind: &str, name: &str, role: Role) -> Result<Self, OptionError> {
        let kind = match kind {
            "memif" => Kind::Memif(MemifConfig::new(name, "", role)),
            "af_xdp" => Kind::AfXdp(AfXdpConfig::new(name, "")),
            "tap" => Kind::Tap(TapConfig::new(name, "")),
            "pcap" => Kind::Pcap(PcapConfig::new(name)),
            _ => return refuse("type", kind, format!("expected {}", KINDS.join(", "))),
        };
        Ok(Self {
            kind,
            mtu: None,
            mac: None,
            addresses: Vec::new(),
            virtual_addresses: Vec::new(),
            gateways: Vec::new(),
            tcp: TcpConfig::default(),
        })
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), OptionError> {
        let tcp = &mut self.tcp;
        match key {
            // RFC 791: the least every host takes; and a jumbo frame.
            "mtu" => self.mtu = Some(number(key, value, 576, 9216)? as usize),
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
            _ => {
                let known = match &mut self.kind {
                    Kind::Memif(memif) => set_memif(memif, key, value)?,
                    Kind::AfXdp(af_xdp) => set_af_xdp(af_xdp, key, value)?,
                    Kind::Tap(tap) => set_tap(tap, key, value)?,
                    Kind::Pcap(pcap) => set_pcap(pcap, key, value)?,
                };
                if !known {
                    let kind = kind_name(&self.kind);
                    return refuse(key, "", format!("unknown key: {kind} knows {}", keys(kind).join(", ")));
                }
            }
        }
        Ok(())
    }

    fn finish(self, default_mac: Option<[u8; 6]>) -> Result<PortOptions, OptionError> {
        let Self { mut kind, mtu, mac, addresses, virtual_addresses, gateways, tcp } = self;
        match &mut kind {
            Kind::Memif(memif) if memif.path.as_os_str().is_empty() => {
                return refuse("path", "", "missing: the path of the memif control socket");
            }
            Kind::AfXdp(AfXdpConfig { interface, .. }) | Kind::Tap(TapConfig { interface, .. })
                if interface.is_empty() =>
            {
                return refuse("interface", "", "missing: the name of the network interface");
            }
            Kind::Pcap(PcapConfig { input: None, output: None, .. }) => {
                return refuse("input", "", "missing: a capture to read, to write, or both");
            }
            Kind::Memif(memif) => memif.mtu = mtu.unwrap_or(memif.mtu),
            Kind::AfXdp(af_xdp) => {
                (af_xdp.mtu, af_xdp.mac) = (mtu, mac);
                af_xdp.addresses = addresses.iter().map(|cidr| cidr.address).collect();
                af_xdp.addresses.extend(&virtual_addresses);
            }
            Kind::Tap(tap) => tap.mtu = mtu,
            Kind::Pcap(pcap) => pcap.mtu = mtu.unwrap_or(pcap.mtu),
        }
        let made_up = mac.or(default_mac).unwrap_or_else(|| made_up_mac(&kind));
        if let Kind::Tap(tap) = &mut kind {
            tap.mac = made_up;
        }
        let mtu_or_usual = mtu.unwrap_or(1500);
        let host = HostConfig { mac: made_up, addresses, virtual_addresses, gateways, mtu: mtu_or_usual, tcp };
        Ok(PortOptions { kind, host, mac_is_given: mac.is_some(), mtu_is_given: mtu.is_some() })
    }
}

/// Whether the key is one of memif's; so with the others below.
fn set_memif(memif: &mut MemifConfig, key: &str, value: &str) -> Result<bool, OptionError> {
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
        "queues" => memif.queues = number(key, value, 1, 64)? as u16,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_af_xdp(af_xdp: &mut AfXdpConfig, key: &str, value: &str) -> Result<bool, OptionError> {
    match key {
        "interface" => af_xdp.interface = interface(key, value)?,
        "queue" => af_xdp.queues.push(number(key, value, 0, 1023)? as u32),
        "take" => af_xdp.take.push(take(key, value)?),
        "attach" => {
            af_xdp.attach = match value {
                "auto" => Attach::Auto,
                "native" => Attach::Native,
                "generic" => Attach::Generic,
                _ => return refuse(key, value, "expected auto, native or generic"),
            }
        }
        "zero_copy" => af_xdp.zero_copy = boolean(key, value)?,
        "ring_slots" => af_xdp.ring_slots = power_of_two(key, value, 64, 16_384)? as u32,
        "frame_bytes" => af_xdp.frame_bytes = power_of_two(key, value, 2048, 4096)? as u32,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_tap(tap: &mut TapConfig, key: &str, value: &str) -> Result<bool, OptionError> {
    match key {
        "interface" => tap.interface = interface(key, value)?,
        "layer" => {
            tap.layer = match value {
                "ethernet" => Layer::Ethernet,
                "ip" => Layer::Ip,
                _ => return refuse(key, value, "expected ethernet or ip"),
            }
        }
        "queues" => tap.queues = number(key, value, 1, 64)? as u16,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_pcap(pcap: &mut PcapConfig, key: &str, value: &str) -> Result<bool, OptionError> {
    match key {
        "input" => pcap.input = file(value),
        "output" => pcap.output = file(value),
        "pace" => {
            pcap.pace = match value {
                "full" => Pace::Full,
                "recorded" => Pace::Recorded,
                _ => return refuse(key, value, "expected full or recorded"),
            }
        }
        "repeat" => pcap.repeat = boolean(key, value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// A path, or nothing.
fn file(value: &str) -> Option<PathBuf> {
    Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty())
}

/// A name as `dev_valid_name` of the kernel takes it.
fn interface(key: &str, value: &str) -> Result<String, OptionError> {
    let odd = |c: char| c.is_whitespace() || c == '/' || c == ':' || c == '\0';
    match value {
        "" => refuse(key, value, "missing: the name of the network interface"),
        "." | ".." => refuse(key, value, "is not the name of a network interface"),
        _ if value.len() > 15 || value.contains(odd) => {
            refuse(key, value, "is not the name of a network interface: at most 15 bytes, no space, / or :")
        }
        _ => Ok(value.into()),
    }
}

fn take(key: &str, value: &str) -> Result<Take, OptionError> {
    let port = |text: &str| {
        number(key, text, 1, 65_535)
            .map(|port| port as u16)
            .or_else(|_| refuse(key, value, "expected a port from 1 to 65535"))
    };
    match value.split_once(':') {
        None if value == "addresses" => Ok(Take::Addresses),
        None if value == "all" => Ok(Take::All),
        Some(("udp", number)) => Ok(Take::Udp(port(number)?)),
        Some(("tcp", number)) => Ok(Take::Tcp(port(number)?)),
        _ => refuse(key, value, "expected addresses, all, udp:PORT or tcp:PORT"),
    }
}

fn boolean(key: &str, value: &str) -> Result<bool, OptionError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => refuse(key, value, "expected true or false"),
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

/// Six bytes such as `02:00:00:00:00:02`, of whomever.
pub fn link_address(text: &str) -> Option<[u8; 6]> {
    let byte = |text: &str| {
        // from_str_radix takes a sign.
        let is_hex = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u8::from_str_radix(text, 16).ok().filter(|_| is_hex)
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes?.try_into().ok()
}

fn mac(key: &str, value: &str) -> Result<[u8; 6], OptionError> {
    match link_address(value) {
        // IEEE 802: the lowest bit of the first byte marks a group.
        Some(mac) if mac[0] & 1 == 1 => {
            refuse(key, value, "a port's address cannot be a group address (its first byte is odd)")
        }
        Some(mac) if mac != [0; 6] => Ok(mac),
        _ => refuse(key, value, "expected six bytes such as 02:00:00:00:00:02"),
    }
}

/// A locally administered address, the same for the same port.
fn made_up_mac(kind: &Kind) -> [u8; 6] {
    use std::hash::{BuildHasher, Hasher};
    use std::os::unix::ffi::OsStrExt;
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    match kind {
        Kind::Memif(memif) => {
            hasher.write(memif.path.as_os_str().as_bytes());
            hasher.write_u32(memif.id);
            hasher.write_u8(u8::from(memif.role == Role::Server));
        }
        Kind::AfXdp(AfXdpConfig { interface, .. }) | Kind::Tap(TapConfig { interface, .. }) => {
            hasher.write(interface.as_bytes());
        }
        Kind::Pcap(pcap) => {
            for path in [&pcap.input, &pcap.output].into_iter().flatten() {
                hasher.write(path.as_os_str().as_bytes());
            }
        }
    }
    let [.., a, b, c, d, e] = hasher.finish().to_be_bytes();
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults<'_> = Defaults { name: "b", role: Role::Server, mac: None };

    fn parsed(text: &str) -> Result<PortOptions, String> {
        let pairs = [("path", "/x"), ("address", "10.0.0.2/24")].into_iter();
        parse("memif", pairs.chain(text.split_whitespace().map(|pair| pair.split_once('=').unwrap())), DEFAULTS)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_known_and_what_is_not_said_has_its_default() {
        for (kind, key) in KINDS.iter().flat_map(|kind| keys(kind).into_iter().map(move |key| (kind, key))) {
            assert!(!check(kind, key, "?").is_err_and(|error| error.problem.contains("unknown")), "{kind}: {key}");
        }
        let port = parsed("").unwrap();
        let Kind::Memif(memif) = &port.kind else { panic!() };
        assert_eq!((memif.role, memif.ring_slots, port.host.mtu), (Role::Server, 1024, 1500));
        assert_eq!(port.host.tcp, TcpConfig::default());
        assert_eq!((port.host.mac[0], port.host.mac), (2, parsed("").unwrap().host.mac));
        assert_ne!(port.host.mac, parsed("id=1").unwrap().host.mac);
        let given =
            parse("memif", [("path", "/x"), ("address", "fd00::2/64")], Defaults { mac: Some([2; 6]), ..DEFAULTS });
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
            ("queues=0", "queues: '0': expected a number from 1 to 64"),
        ];
        for (text, words) in refusals {
            assert_eq!(parsed(text).unwrap_err(), words);
        }
        assert!(parsed("slots=3").unwrap_err().starts_with("slots: unknown key: memif knows path, role"));
        let secret = parsed("secret=longer-than-twenty-four-bytes").unwrap_err();
        assert!(secret.contains("29 bytes: expected 1 to 24") && !secret.contains("longer"), "{secret}");
        let missing = [("memif", "path"), ("af_xdp", "interface"), ("tap", "interface"), ("pcap", "input")];
        for (kind, key) in missing {
            assert_eq!(parse(kind, [("address", "10.0.0.2/24")], DEFAULTS).unwrap_err().key, key);
        }
        assert_eq!(
            parse("vhost", [], DEFAULTS).unwrap_err().to_string(),
            "type: 'vhost': expected memif, af_xdp, tap, pcap"
        );
    }

    #[test]
    fn each_kind_has_keys_of_its_own() {
        let of = |kind, pairs: &[(&'static str, &'static str)]| parse(kind, pairs.iter().copied(), DEFAULTS);
        let port = of("af_xdp", &[("interface", "eth1"), ("queue", "0"), ("queue", "1"), ("address", "10.0.0.2/24")]);
        let Kind::AfXdp(config) = port.unwrap().kind else { panic!() };
        assert_eq!((config.queues, config.addresses), (vec![0, 1], vec!["10.0.0.2".parse::<IpAddr>().unwrap()]));
        let port = of("tap", &[("interface", "vnf0"), ("layer", "ip"), ("mtu", "1400")]).unwrap();
        assert!(port.mtu_is_given && !port.mac_is_given && port.host.mtu == 1400);
        let port = of("pcap", &[("input", "in.pcap"), ("output", ""), ("pace", "recorded")]).unwrap();
        let Kind::Pcap(config) = port.kind else { panic!() };
        assert_eq!((config.input, config.output), (Some("in.pcap".into()), None));
        for (kind, key, value) in [
            ("af_xdp", "interface", "a/b"),
            ("af_xdp", "take", "udp:0"),
            ("af_xdp", "take", "sctp:5"),
            ("tap", "interface", "sixteen-letters-"),
            ("tap", "path", "/x"),
            ("pcap", "repeat", "maybe"),
        ] {
            assert!(check(kind, key, value).is_err(), "{kind} {key}={value}");
        }
        assert_eq!(check("af_xdp", "take", "udp:53"), Ok(()));
        assert_eq!((positional("pcap"), positional("tap")), (&["input", "output"][..], &["interface"][..]));
    }
}
