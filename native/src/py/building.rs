//! Frames made of the layers of `libvnf.packet`, and taken apart into them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyString, PyTuple, PyType};

use super::packet::with_bytes;
use crate::packet::arp;
use crate::packet::ethernet::Mac;
use crate::packet::layers::{
    self, Ethernet, First, Gtpu, Icmp, Ipv4, Ipv6, Layer, Parsed, Refused, Tcp, Udp, Vlan, parse,
};
use crate::port::options::link_address;

/// The classes of `libvnf.packet`, in the order of [`NAMES`].
static CLASSES: PyOnceLock<Vec<Py<PyType>>> = PyOnceLock::new();
const NAMES: [&str; 9] = ["Ethernet", "VLAN", "ARP", "IPv4", "IPv6", "ICMP", "UDP", "TCP", "GTPU"];

fn classes(py: Python<'_>) -> PyResult<&[Py<PyType>]> {
    let load = || {
        let module = py.import("libvnf.packet")?;
        NAMES.iter().map(|name| Ok(module.getattr(*name)?.cast_into::<PyType>()?.unbind())).collect::<PyResult<_>>()
    };
    CLASSES.get_or_try_init(py, load).map(Vec::as_slice)
}

/// One layer on its way in: its fields by name, and errors that name them.
struct Fields<'a, 'py> {
    layer: &'a Bound<'py, PyAny>,
    name: &'static str,
}

impl<'py> Fields<'_, 'py> {
    fn value(&self, field: &str) -> PyResult<Bound<'py, PyAny>> {
        self.layer.getattr(field)
    }

    fn wrong(&self, field: &str, value: &Bound<'_, PyAny>, wanted: &str, is_type: bool) -> PyErr {
        let value = value.repr().map_or_else(|_| "?".into(), |value| value.to_string());
        let message = format!("{}.{field}: {value}: expected {wanted}", self.name);
        if is_type { PyTypeError::new_err(message) } else { PyValueError::new_err(message) }
    }

    fn number<T: TryFrom<i64>>(&self, field: &str, most: u64) -> PyResult<T> {
        self.maybe(field, most)?.ok_or_else(|| {
            PyTypeError::new_err(format!("{}.{field}: None: expected a number from 0 to {most}", self.name))
        })
    }

    fn maybe<T: TryFrom<i64>>(&self, field: &str, most: u64) -> PyResult<Option<T>> {
        let value = self.value(field)?;
        if value.is_none() {
            return Ok(None);
        }
        let wrong = |is_type| self.wrong(field, &value, &format!("a number from 0 to {most}"), is_type);
        let number: i64 =
            value.extract().map_err(|error: PyErr| wrong(error.is_instance_of::<PyTypeError>(value.py())))?;
        match u64::try_from(number).ok().filter(|&number| number <= most).and_then(|_| T::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(false)),
        }
    }

    fn flag(&self, field: &str) -> PyResult<bool> {
        let value = self.value(field)?;
        value.extract().map_err(|_| self.wrong(field, &value, "True or False", true))
    }

    fn mac(&self, field: &str) -> PyResult<Mac> {
        let value = self.value(field)?;
        let text: Option<&Bound<'_, PyString>> = value.cast().ok();
        let Some(text) = text else {
            return Err(self.wrong(field, &value, "a text such as '02:00:00:00:00:01'", true));
        };
        let text = text.to_str()?;
        link_address(text).ok_or_else(|| self.wrong(field, &value, "six bytes such as 02:00:00:00:00:01", false))
    }

    fn ip(&self, field: &str) -> PyResult<(Bound<'py, PyAny>, Option<IpAddr>)> {
        let value = self.value(field)?;
        let address = value.extract().ok();
        Ok((value, address))
    }

    fn v4(&self, field: &str) -> PyResult<Ipv4Addr> {
        match self.ip(field)? {
            (_, Some(IpAddr::V4(address))) => Ok(address),
            (value, _) => Err(self.wrong(field, &value, "an IPv4 address", false)),
        }
    }

    fn v6(&self, field: &str) -> PyResult<Ipv6Addr> {
        match self.ip(field)? {
            (_, Some(IpAddr::V6(address))) => Ok(address),
            (value, _) => Err(self.wrong(field, &value, "an IPv6 address", false)),
        }
    }

    fn bytes(&self, field: &str) -> PyResult<Vec<u8>> {
        let value = self.value(field)?;
        with_bytes(&value, <[u8]>::to_vec).map_err(|_| self.wrong(field, &value, "bytes", true))
    }

    /// Pairs of a number and bytes.
    fn extensions(&self) -> PyResult<Vec<(u8, Vec<u8>)>> {
        let value = self.value("extensions")?;
        let wrong = || self.wrong("extensions", &value, "pairs of a type and bytes", true);
        let mut pairs = Vec::new();
        for pair in value.try_iter().map_err(|_| wrong())? {
            let (kind, content): (u8, Bound<'_, PyAny>) = pair?.extract().map_err(|_| wrong())?;
            pairs.push((kind, with_bytes(&content, <[u8]>::to_vec).map_err(|_| wrong())?));
        }
        Ok(pairs)
    }

    fn layer(&self) -> PyResult<Layer> {
        const WORD: u64 = 0xffff;
        const LONG: u64 = 0xffff_ffff;
        Ok(match self.name {
            "Ethernet" => Layer::Ethernet(Ethernet {
                source: self.mac("src_mac")?,
                destination: self.mac("dst_mac")?,
                ethertype: self.maybe("ethertype", WORD)?,
            }),
            "VLAN" => Layer::Vlan(Vlan {
                id: self.number("id", 4095)?,
                priority: self.number("priority", 7)?,
                drop_eligible: self.flag("drop_eligible")?,
                ethertype: self.maybe("ethertype", WORD)?,
            }),
            "ARP" => Layer::Arp(arp::Message {
                operation: match self.number("operation", WORD)? {
                    1_u16 => arp::Operation::Request,
                    2 => arp::Operation::Reply,
                    _ => return Err(self.wrong("operation", &self.value("operation")?, "1 or 2", false)),
                },
                sender_mac: self.mac("src_mac")?,
                sender: self.v4("src_ip")?,
                target_mac: self.mac("dst_mac")?,
                target: self.v4("dst_ip")?,
            }),
            "IPv4" => Layer::Ipv4(Ipv4 {
                source: self.v4("src_ip")?,
                destination: self.v4("dst_ip")?,
                protocol: self.maybe("protocol", 255)?,
                ttl: self.number("ttl", 255)?,
                dscp: self.number("dscp", 63)?,
                ecn: self.number("ecn", 3)?,
                identification: self.number("identification", WORD)?,
                dont_fragment: self.flag("dont_fragment")?,
                more_fragments: self.flag("more_fragments")?,
                fragment_offset: self.number("fragment_offset", WORD)?,
                options: self.bytes("options")?,
                checksum: self.maybe("checksum", WORD)?,
            }),
            "IPv6" => Layer::Ipv6(Ipv6 {
                source: self.v6("src_ip")?,
                destination: self.v6("dst_ip")?,
                next_header: self.maybe("next_header", 255)?,
                hop_limit: self.number("hop_limit", 255)?,
                dscp: self.number("dscp", 63)?,
                ecn: self.number("ecn", 3)?,
                flow_label: self.number("flow_label", 0xf_ffff)?,
                extensions: self.extensions()?,
            }),
            "ICMP" => Layer::Icmp(Icmp {
                kind: self.number("type", 255)?,
                code: self.number("code", 255)?,
                data: self.number("data", LONG)?,
                checksum: self.maybe("checksum", WORD)?,
            }),
            "UDP" => Layer::Udp(Udp {
                source_port: self.number("src_port", WORD)?,
                destination_port: self.number("dst_port", WORD)?,
                checksum: self.maybe("checksum", WORD)?,
            }),
            "TCP" => Layer::Tcp(Tcp {
                source_port: self.number("src_port", WORD)?,
                destination_port: self.number("dst_port", WORD)?,
                sequence: self.number("sequence", LONG)?,
                acknowledgement: self.number("acknowledgement", LONG)?,
                flags: self.number("flags", 255)?,
                window: self.number("window", WORD)?,
                urgent: self.number("urgent", WORD)?,
                options: self.bytes("options")?,
                checksum: self.maybe("checksum", WORD)?,
            }),
            _ => Layer::Gtpu(Gtpu {
                teid: self.number("teid", LONG)?,
                kind: self.number("type", 255)?,
                sequence: self.maybe("sequence", WORD)?,
                n_pdu: self.maybe("n_pdu", 255)?,
                extensions: self.extensions()?,
            }),
        })
    }
}

/// The bytes of `layers`, from the outside in, around `payload`.
#[pyfunction]
#[pyo3(signature = (layers, payload, /))]
pub fn build_frame<'py>(layers: &Bound<'py, PyTuple>, payload: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = layers.py();
    let classes = classes(py)?;
    let mut read = Vec::with_capacity(layers.len());
    for layer in layers {
        let kind = layer.get_type();
        let Some(at) = classes.iter().position(|class| class.is(&kind)) else {
            let message = format!("{}: expected layers ({})", layer.repr()?, NAMES.join(", "));
            return Err(PyTypeError::new_err(message));
        };
        read.push(Fields { layer: &layer, name: NAMES[at] }.layer()?);
    }
    let built = with_bytes(payload, |payload| layers::build(&read, payload))?;
    built.map(|frame| PyBytes::new(py, &frame)).map_err(|refused| {
        PyValueError::new_err(match refused {
            Refused::Value("options") => "options: expected a multiple of 4 bytes, up to 40".into(),
            Refused::Value("extensions") => {
                "extensions: expected types that exist, and content that fills whole units \
                (two bytes less than a multiple of 8 in IPv6, of 4 in GTP-U)"
                    .into()
            }
            Refused::Value("fragment_offset") => "IPv4.fragment_offset: expected bytes, a multiple of 8".into(),
            Refused::Value(field) => format!("{field}: a value that does not fit"),
            Refused::Unnamed(layer) => format!("{layer}: what follows has no type of its own: name it in {layer}"),
            Refused::Below(layer) => format!("{layer}: its checksum needs an IPv4 or IPv6 layer right below"),
            Refused::TooLong(layer) => format!("{layer}: longer than its length field can tell (65535)"),
        })
    })
}

/// The layers of a frame, and behind them their payload. `first`: 0, Ethernet; 1, IP; 2, an IP packet that is quoted.
#[pyfunction]
#[pyo3(signature = (data, first, /))]
pub fn parse_frame<'py>(data: &Bound<'py, PyAny>, first: u8) -> PyResult<Bound<'py, PyTuple>> {
    let py = data.py();
    let first = match first {
        0 => First::Ethernet,
        1 => First::Ip,
        2 => First::Quoted,
        _ => return Err(PyValueError::new_err(format!("first: {first}: expected 0 to 2"))),
    };
    let (layers, payload) = with_bytes(data, |bytes| {
        let Parsed { layers, payload } = parse(bytes, first);
        (layers, PyBytes::new(py, &bytes[payload]))
    })?;
    let mut items: Vec<Bound<'py, PyAny>> = Vec::with_capacity(layers.len() + 1);
    for layer in layers {
        items.push(value(py, layer)?);
    }
    items.push(payload.into_any());
    PyTuple::new(py, items)
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A layer on its way out: its class, called with the fields in their order.
fn value(py: Python<'_>, layer: Layer) -> PyResult<Bound<'_, PyAny>> {
    let class = |name| {
        let at = NAMES.iter().position(|known| *known == name).expect("a name of the table");
        classes(py).map(|classes| classes[at].bind(py))
    };
    let extensions = |pairs: Vec<(u8, Vec<u8>)>| {
        let pairs = pairs.iter().map(|(kind, content)| (*kind, PyBytes::new(py, content)));
        PyTuple::new(py, pairs.collect::<Vec<_>>())
    };
    match layer {
        Layer::Ethernet(of) => class("Ethernet")?.call1((mac_text(of.source), mac_text(of.destination), of.ethertype)),
        Layer::Vlan(of) => class("VLAN")?.call1((of.id, of.priority, of.drop_eligible, of.ethertype)),
        Layer::Arp(of) => {
            let operation = if of.operation == arp::Operation::Request { 1 } else { 2 };
            let (sender, target) = (of.sender.to_string(), of.target.to_string());
            class("ARP")?.call1((operation, mac_text(of.sender_mac), sender, mac_text(of.target_mac), target))
        }
        Layer::Ipv4(of) => class("IPv4")?.call1((
            of.source.to_string(),
            of.destination.to_string(),
            of.protocol,
            of.ttl,
            of.dscp,
            of.ecn,
            of.identification,
            of.dont_fragment,
            of.more_fragments,
            of.fragment_offset,
            PyBytes::new(py, &of.options),
            of.checksum,
        )),
        Layer::Ipv6(of) => class("IPv6")?.call1((
            of.source.to_string(),
            of.destination.to_string(),
            of.next_header,
            of.hop_limit,
            of.dscp,
            of.ecn,
            of.flow_label,
            extensions(of.extensions)?,
        )),
        Layer::Icmp(of) => class("ICMP")?.call1((of.kind, of.code, of.data, of.checksum)),
        Layer::Udp(of) => class("UDP")?.call1((of.source_port, of.destination_port, of.checksum)),
        Layer::Tcp(of) => class("TCP")?.call1((
            of.source_port,
            of.destination_port,
            of.sequence,
            of.acknowledgement,
            of.flags,
            of.window,
            of.urgent,
            PyBytes::new(py, &of.options),
            of.checksum,
        )),
        Layer::Gtpu(of) => class("GTPU")?.call1((of.teid, of.kind, of.sequence, of.n_pdu, extensions(of.extensions)?)),
    }
}
