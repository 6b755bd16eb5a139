//! What a user writes, as text, checked and turned into what a run needs: endpoints are URLs, a transport is
//! `kernel` or `memif:PATH,key=value,…`. [`parse`] opens nothing. Every refusal is one line that says what was found and
//! what was wanted.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use super::{Drive, Endpoint, IdField, LoadConfig, LoadError, PortTransport, Respond, Transport};
use crate::packet::{Pool, PoolConfig};
use crate::port;
use crate::port::capture::{self, CaptureWriter};
use crate::port::memif::Role;
use crate::port::options::{Defaults, PortOptions};
use crate::stack::Host;

/// One run as options: the keys of `run_load`'s dictionary.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// `tcp://host:port`, `udp://host:port` or `unix://path`; an empty host is loopback. `None`: only respond.
    pub endpoint: Option<String>,
    /// Endpoints to answer at. An empty host is loopback on kernel sockets and every address of a port.
    pub respond: Vec<String>,
    /// `kernel`, or a port such as `memif:PATH,address=10.0.0.1/24,…` (see [`port::options`]).
    pub transport: String,
    pub connections: usize,
    /// `None`: one per connection; with a rate at least 1,024, so that a slow server does not slow the schedule.
    pub outstanding: Option<usize>,
    pub requests_per_connection: Option<u64>,
    pub rate: Option<f64>,
    pub size: usize,
    /// `OFFSET:SIZE`
    pub id: Option<String>,
    pub verify: bool,
    pub duration_s: f64,
    pub warmup_s: f64,
    pub timeout_s: f64,
    pub reset: bool,
    pub cpu: Option<usize>,
    /// The file that what comes and goes by the port is written to.
    pub capture: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoint: None,
            respond: Vec::new(),
            transport: "kernel".into(),
            connections: 1,
            outstanding: None,
            requests_per_connection: None,
            rate: None,
            size: 128,
            id: None,
            verify: false,
            duration_s: 10.0,
            warmup_s: 1.0,
            timeout_s: 1.0,
            reset: false,
            cpu: None,
            capture: None,
        }
    }
}

/// A run, checked; its transport not opened yet.
#[derive(Clone, Debug)]
pub struct Plan {
    pub drive: Option<Drive>,
    pub respond: Vec<Respond>,
    pub transport: TransportOptions,
    pub cpu: Option<usize>,
    pub capture: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub enum TransportOptions {
    Kernel,
    /// The first address of a family is the client end's.
    Port(Box<PortOptions>),
}

/// Opens the plan's transport: after this everything is there but the peer.
pub fn open(plan: Plan) -> Result<LoadConfig, LoadError> {
    let Plan { drive, respond, transport, cpu, capture: file } = plan;
    let transport = match transport {
        TransportOptions::Kernel => Transport::Kernel,
        TransportOptions::Port(options) => {
            let (mut port, host) = port::open(*options).map_err(LoadError::system("transport"))?;
            if let Some(file) = file {
                let writer = CaptureWriter::create(&file)
                    .or_else(|error| refuse(format!("--capture {}: {error}", file.display())))?;
                port = capture::capture(port, "load", &writer);
            }
            let pool = Pool::new(&PoolConfig::default()).map_err(LoadError::system("packet pool"))?;
            Transport::Port(Box::new(PortTransport { port, host: Host::new(host), pool }))
        }
    };
    Ok(LoadConfig { drive, respond, transport, cpu })
}

fn refuse<T>(message: String) -> Result<T, LoadError> {
    Err(LoadError::Config(message))
}

pub(super) fn seconds(name: &str, value: f64) -> Result<Duration, LoadError> {
    Duration::try_from_secs_f64(value)
        .or_else(|_| refuse(format!("{name} {value}: expected a number of seconds, 0 or more")))
}

/// Checks everything that can be checked without opening anything.
pub fn parse(options: &Options) -> Result<Plan, LoadError> {
    let transport = parse_transport(&options.transport)?;
    let (kernel, anywhere) = match &transport {
        TransportOptions::Kernel => (true, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        TransportOptions::Port(_) => (false, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    let drive = match &options.endpoint {
        None => None,
        Some(text) => {
            let endpoint = parse_endpoint(text, kernel, kernel.then_some(anywhere))?;
            Some(parse_drive(options, endpoint)?)
        }
    };
    let respond = options
        .respond
        .iter()
        .map(|text| Ok(Respond { endpoint: parse_endpoint(text, kernel, Some(anywhere))?, size: options.size }))
        .collect::<Result<Vec<_>, LoadError>>()?;
    if drive.is_none() && respond.is_empty() {
        return refuse("nothing to do: expected an ENDPOINT or --respond ENDPOINT".into());
    }
    if kernel && options.capture.is_some() {
        return refuse("--capture: there is no port: what comes over kernel sockets, tcpdump records".into());
    }
    Ok(Plan { drive, respond, transport, cpu: options.cpu, capture: options.capture.clone() })
}

fn parse_drive(options: &Options, endpoint: Endpoint) -> Result<Drive, LoadError> {
    let at_once = if options.rate.is_some() { options.connections.max(1024) } else { options.connections };
    let drive = Drive {
        endpoint,
        connections: options.connections,
        requests_per_connection: options.requests_per_connection,
        outstanding: options.outstanding.unwrap_or(at_once),
        rate: options.rate,
        size: options.size,
        request_id: options.id.as_deref().map(parse_id).transpose()?,
        verify: options.verify,
        duration: seconds("duration", options.duration_s)?,
        warmup: seconds("warmup", options.warmup_s)?,
        timeout: seconds("timeout", options.timeout_s)?,
        reset: options.reset,
    };
    drive.check()?;
    Ok(drive)
}

fn parse_id(text: &str) -> Result<IdField, LoadError> {
    let field = text
        .split_once(':')
        .and_then(|(offset, size)| Some(IdField { offset: offset.parse().ok()?, size: size.parse().ok()? }));
    field.map_or_else(|| refuse(format!("id '{text}': expected OFFSET:SIZE, such as 0:8")), Ok)
}

/// `resolve`: a host may be a name, which the system is asked for. `anywhere`: what an empty host means, if anything.
fn parse_endpoint(text: &str, resolve: bool, anywhere: Option<IpAddr>) -> Result<Endpoint, LoadError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return refuse(format!("'{text}' is not an endpoint: expected tcp://, udp:// or unix://"));
    };
    match scheme {
        "unix" if rest.is_empty() => refuse(format!("'{text}': expected a path after unix://")),
        "unix" => Ok(Endpoint::Unix(rest.into())),
        "tcp" => Ok(Endpoint::Tcp(parse_address(text, rest, resolve, anywhere)?)),
        "udp" => Ok(Endpoint::Udp(parse_address(text, rest, resolve, anywhere)?)),
        "sctp" => refuse(format!("'{text}': the load generator speaks tcp://, udp:// and unix://, not sctp://")),
        _ => {
            let mut letters: Vec<_> = scheme.bytes().collect();
            letters.sort_unstable();
            let meant = match &letters[..] {
                b"cpt" => " (did you mean tcp://?)",
                b"dpu" => " (did you mean udp://?)",
                b"inux" => " (did you mean unix://?)",
                _ => "",
            };
            refuse(format!("'{text}' is not an endpoint: expected tcp://, udp:// or unix://{meant}"))
        }
    }
}

fn parse_address(text: &str, rest: &str, resolve: bool, anywhere: Option<IpAddr>) -> Result<SocketAddr, LoadError> {
    let Some((host, port)) = rest.rsplit_once(':') else {
        return refuse(format!("'{text}': expected a port, such as {text}:5000"));
    };
    let port = match port.parse() {
        Ok(port @ 1..) => port,
        _ => return refuse(format!("'{text}': port '{port}' is not between 1 and 65535")),
    };
    if host.is_empty() {
        return match anywhere {
            Some(address) => Ok(SocketAddr::new(address, port)),
            None => refuse(format!("'{text}': expected an address to send to")),
        };
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        if address.is_ipv6() && bare.len() == host.len() {
            return refuse(format!("'{text}': write an IPv6 address in brackets, such as [{host}]:{port}"));
        }
        return Ok(SocketAddr::new(address, port));
    }
    if !resolve {
        return refuse(format!("'{text}': '{host}' is not an address; names are resolved on kernel sockets only"));
    }
    match (bare, port).to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => Ok(address),
        Ok(None) => refuse(format!("'{text}': the host name '{host}' has no address")),
        Err(error) => refuse(format!("'{text}': the host name '{host}' was not resolved: {error}")),
    }
}

fn parse_transport(text: &str) -> Result<TransportOptions, LoadError> {
    if text == "kernel" {
        return Ok(TransportOptions::Kernel);
    }
    if !port::options::KINDS.contains(&text.split(':').next().unwrap_or(text)) {
        return refuse(format!("transport '{text}': expected kernel, {}", port::options::KINDS.join(", ")));
    }
    let options = parse_port("transport", text)?;
    if options.host.addresses.is_empty() {
        return refuse(format!(
            "transport '{text}': address: missing: expected at least one address such as 10.0.0.2/24"
        ));
    }
    Ok(TransportOptions::Port(Box::new(options)))
}

/// A port in its one-line form; `option` is what it stands at.
pub(super) fn parse_port(option: &str, text: &str) -> Result<PortOptions, LoadError> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    if !port::options::KINDS.contains(&kind) {
        return refuse(format!("{option} '{text}': expected {}", port::options::KINDS.join(", ")));
    }
    let places = port::options::positional(kind);
    let mut pairs = Vec::new();
    for (number, part) in rest.split(',').enumerate() {
        match (places.get(number), part.split_once('=')) {
            (Some(key), None) => pairs.push((*key, part)),
            // A path may have a '=' of its own.
            (Some(place), Some((key, _))) if number == 0 && !port::options::keys(kind).contains(&key) => {
                pairs.push((*place, part));
            }
            (_, Some(pair)) => pairs.push(pair),
            (_, None) => return refuse(format!("{option} '{kind}:{}': '{part}' is not key=value", pairs[0].1)),
        }
    }
    let defaults = Defaults { name: "load", role: Role::Client, mac: Some(random_mac()) };
    port::options::parse(kind, pairs.iter().copied(), defaults)
        .or_else(|error| refuse(format!("{option} '{kind}:{}': {error}", pairs[0].1)))
}

/// A locally administered address, another in every run.
fn random_mac() -> [u8; 6] {
    let random = RandomState::new().hash_one(0).to_ne_bytes();
    [(random[0] & 0xfc) | 0x02, random[1], random[2], random[3], random[4], random[5]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::options::Kind;
    use crate::stack::Cidr;

    fn endpoint(text: &str) -> Result<String, String> {
        let options = Options { endpoint: Some(text.into()), ..Options::default() };
        match parse(&options) {
            Ok(plan) => Ok(plan.drive.unwrap().endpoint.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn port(text: &str) -> Result<Box<PortOptions>, String> {
        match parse_transport(text).map_err(|error| error.to_string())? {
            TransportOptions::Port(options) => Ok(options),
            TransportOptions::Kernel => Err("kernel".into()),
        }
    }

    #[test]
    fn endpoints_are_urls_and_an_empty_host_is_loopback() {
        for text in ["tcp://10.0.0.2:5000", "udp://[fd00::1]:53", "unix:///run/b.sock"] {
            assert_eq!(endpoint(text).as_deref(), Ok(text));
        }
        assert_eq!(endpoint("udp://:5000").as_deref(), Ok("udp://127.0.0.1:5000"));
        assert!(endpoint("tcp://localhost:5000").is_ok());
    }

    #[test]
    fn what_is_not_an_endpoint_is_refused_in_one_line_that_helps() {
        let refusals = [
            ("tpc://10.0.0.2:5000", "expected tcp://, udp:// or unix:// (did you mean tcp://?)"),
            ("10.0.0.2:5000", "is not an endpoint"),
            ("sctp://10.0.0.2:5000", "not sctp://"),
            ("tcp://10.0.0.2", "expected a port"),
            ("tcp://10.0.0.2:0", "not between 1 and 65535"),
            ("tcp://10.0.0.2:65536", "not between 1 and 65535"),
            ("udp://fd00::1:53", "in brackets"),
            ("unix://", "expected a path"),
        ];
        for (text, wanted) in refusals {
            let refusal = endpoint(text).unwrap_err();
            assert!(refusal.contains(wanted) && refusal.contains(text) && !refusal.contains('\n'), "{refusal}");
        }
    }

    #[test]
    fn a_rate_leaves_room_for_a_slow_server_and_a_closed_loop_has_one_request_per_connection() {
        let of = |options: Options| {
            let options = Options { endpoint: Some("udp://:1".into()), ..options };
            parse(&options).unwrap().drive.unwrap().outstanding
        };
        assert_eq!(of(Options { connections: 7, ..Options::default() }), 7);
        assert_eq!(of(Options { connections: 7, rate: Some(10.0), ..Options::default() }), 1024);
        assert_eq!(of(Options { connections: 7, outstanding: Some(3), ..Options::default() }), 3);
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_before_anything_is_opened() {
        let good = Options { endpoint: Some("udp://:1".into()), ..Options::default() };
        let bad = [
            Options { id: Some("8".into()), ..good.clone() },
            Options { id: Some("-1:8".into()), ..good.clone() },
            Options { id: Some("124:8".into()), ..good.clone() },
            Options { duration_s: f64::NAN, ..good.clone() },
            Options { duration_s: 0.0, ..good.clone() },
            Options { timeout_s: -1.0, ..good.clone() },
            Options { warmup_s: f64::INFINITY, ..good.clone() },
            Options { size: 0, ..good.clone() },
            Options { connections: 0, ..good.clone() },
            Options { transport: "af_xdp:eth1".into(), ..good.clone() },
            Options { endpoint: None, ..good },
        ];
        for options in bad {
            assert!(matches!(parse(&options), Err(LoadError::Config(_))), "{options:?}");
        }
    }

    #[test]
    fn a_memif_is_a_path_and_options() {
        let text = "memif:/run/a.sock,id=3,role=server,secret=pst,address=10.0.0.1/24,address=10.0.0.3/24,\
                    address=fd00::1/64,virtual=10.0.0.100,gateway=10.0.0.254,mtu=9000,mac=02:00:00:00:00:0a,\
                    ring_slots=256";
        let PortOptions { kind: Kind::Memif(memif), host, .. } = *port(text).unwrap() else { panic!() };
        assert_eq!((memif.path.to_str(), memif.id, memif.role), (Some("/run/a.sock"), 3, Role::Server));
        assert_eq!((memif.secret.as_deref(), memif.ring_slots), (Some(&b"pst"[..]), 256));
        assert_eq!((host.addresses.len(), host.mac, host.mtu), (3, [2, 0, 0, 0, 0, 10], 9000));
        assert_eq!(host.addresses[1], Cidr { address: "10.0.0.3".parse().unwrap(), prefix: 24 });
        let least = port("memif:/run/a.sock,address=10.0.0.1/24").unwrap();
        assert!(matches!(&least.kind, Kind::Memif(memif) if memif.role == Role::Client));
        assert_eq!(least.host.mac[0] & 3, 2);
    }

    #[test]
    fn a_memif_without_an_address_or_with_a_wrong_option_is_refused() {
        let wrong = [
            "memif:",
            "memif:/run/a.sock",
            "memif:/run/a.sock,address=10.0.0.1",
            "memif:/run/a.sock,address=10.0.0.1/33",
            "memif:/run/a.sock,address=10.0.0.1/24,id=x",
            "memif:/run/a.sock,address=10.0.0.1/24,role=master",
            "memif:/run/a.sock,address=10.0.0.1/24,secret=",
            "memif:/run/a.sock,address=10.0.0.1/24,mtu=100",
            "memif:/run/a.sock,address=10.0.0.1/24,mac=01:00:00:00:00:00",
            "memif:/run/a.sock,address=10.0.0.1/24,mac=2:0:0:0:0:0",
            "memif:/run/a.sock,address=10.0.0.1/24,ring_slots=1000",
            "memif:/run/a.sock,address=10.0.0.1/24,slots=1024",
            "memif:/run/a.sock,address=10.0.0.1/24,verbose",
        ];
        for text in wrong {
            assert!(port(text).is_err(), "{text}");
        }
        assert_ne!(random_mac(), random_mac());
        assert_eq!(random_mac()[0] & 3, 2);
    }

    #[test]
    fn on_a_port_an_empty_host_answers_everywhere_and_drives_nowhere() {
        let transport = "memif:/run/a.sock,address=10.0.0.1/24".to_string();
        let respond = Options { respond: vec!["udp://:5000".into()], transport, ..Options::default() };
        let plan = parse(&respond).unwrap();
        assert!(matches!(plan.respond[0].endpoint, Endpoint::Udp(address) if address.ip().is_unspecified()));
        let drive = Options { endpoint: Some("udp://:5000".into()), ..respond };
        assert!(parse(&drive).unwrap_err().to_string().contains("an address to send to"));
    }
}
