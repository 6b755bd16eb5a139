//! A port that the engine has opened, and its host: whose flow is whose, and what it tells of itself.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashMap;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{PyTraverseError, PyVisit};

use super::connection::Connection;
use super::endpoint::Endpoint;
use super::engine::Engine;
use super::frames::Handler;
use crate::flow::PortIndex;
use crate::forward::Counters;
use crate::packet::Slot;
use crate::packet::ethernet::mac_text;
use crate::port::queue::Queue;
use crate::port::{Link, Port};
use crate::stack::tcp::{TcpEvent, TcpId, Welcome};
use crate::stack::{Host, HostConfig};

pub struct Open {
    pub name: String,
    kind: &'static str,
    pub port: Box<dyn Port>,
    /// The far end, where that is the program itself.
    pub queue: Option<Queue>,
    pub host: Host,
    pub config: HostConfig,
    /// The link's generation that was announced.
    pub announced: u64,
    pub listeners: Vec<Py<Endpoint>>,
    /// By owner number. None: free, or a stream in a pool.
    pub flows: Vec<Option<Py<Connection>>>,
    pub free: Vec<u32>,
    /// Owners of flows that peers began, oldest first.
    pub begun_by_peers: VecDeque<u32>,
    /// TCP listeners' addresses and ports.
    pub served: Vec<(Option<IpAddr>, u16)>,
    /// Owners whose handshake is not over.
    pub connecting: HashMap<u32, (TcpId, SocketAddr)>,
    /// Told by the host, and not handled yet.
    pub events: Vec<TcpEvent>,
    pub gate: Arc<Gate>,
    pub unflushed: bool,
    /// What comes in is for `@vnf.frames`; only what that accepts is for the host.
    pub has_handler: bool,
    pub handler: Option<Handler>,
    /// The name as handlers write it.
    pub name_object: Option<Py<PyString>>,
    /// What it accepted, on its way to the host.
    pub accepted: Vec<Slot>,
    /// By which port frames leave that no rule matches.
    pub bridge: Option<PortIndex>,
    pub forwarding: Counters,
}

/// Where the host asks whether a stranger may come in: it does so while nothing of Python can be reached.
#[derive(Default)]
pub struct Gate {
    pub full: AtomicBool,
    refused: AtomicU64,
}

impl Gate {
    pub fn welcome(&self) -> Welcome {
        if !self.full.load(Ordering::Relaxed) {
            return Welcome::Accept;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Welcome::Refuse
    }

    /// How many have been refused since.
    pub fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }
}

impl Engine {
    pub fn add(&self, py: Python<'_>, open: Open) {
        self.names.with(py, |names| names.push(open.name.clone()));
        self.state.with(py, |state| state.ports.push(open));
    }
}

/// What a port tells of itself.
pub struct Row {
    name: String,
    kind: &'static str,
    link: Link,
    peer: Option<String>,
    mac: [u8; 6],
    addresses: Vec<String>,
    counters: Vec<(&'static str, u64)>,
}

impl Row {
    pub fn into_dict(self, py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let found = PyDict::new(py);
        found.set_item("name", self.name)?;
        found.set_item("type", self.kind)?;
        found.set_item(
            "link",
            match self.link {
                Link::Up => "up".into(),
                Link::Down(reason) => reason,
            },
        )?;
        found.set_item("peer", self.peer)?;
        found.set_item("mac", mac_text(self.mac))?;
        found.set_item("addresses", self.addresses)?;
        let counters = PyDict::new(py);
        for (name, value) in self.counters {
            counters.set_item(name, value)?;
        }
        found.set_item("counters", counters)?;
        Ok(found)
    }
}

impl Open {
    pub fn new(
        name: String,
        kind: &'static str,
        port: Box<dyn Port>,
        queue: Option<Queue>,
        config: HostConfig,
        seed: Option<u64>,
    ) -> Self {
        let host = match seed {
            Some(seed) => Host::seeded(config.clone(), seed),
            None => Host::new(config.clone()),
        };
        Self {
            name,
            kind,
            port,
            queue,
            host,
            config,
            announced: 0,
            listeners: Vec::new(),
            flows: Vec::new(),
            free: Vec::new(),
            begun_by_peers: VecDeque::new(),
            served: Vec::new(),
            connecting: HashMap::new(),
            events: Vec::new(),
            gate: Arc::default(),
            unflushed: false,
            has_handler: false,
            handler: None,
            name_object: None,
            accepted: Vec::new(),
            bridge: None,
            forwarding: Counters::default(),
        }
    }

    /// Whether `name` is the very object that it was called by before.
    pub fn is_named(&self, name: &Bound<'_, PyString>) -> bool {
        self.name_object.as_ref().is_some_and(|known| known.is(name))
    }

    pub fn place(&mut self, connection: Py<Connection>) -> u32 {
        match self.free.pop() {
            Some(owner) => {
                self.flows[owner as usize] = Some(connection);
                owner
            }
            None => {
                self.flows.push(Some(connection));
                self.flows.len() as u32 - 1
            }
        }
    }

    pub fn forget(&mut self, owner: u32) -> Option<Py<Connection>> {
        self.free.push(owner);
        // Numbers of flows that have ended leave the queue of peers before they outnumber those that have not.
        if self.begun_by_peers.len() > 64 + 2 * (self.flows.len() - self.free.len()) {
            let mut seen = vec![false; self.flows.len()];
            let flows = &self.flows;
            self.begun_by_peers.retain(|&of| {
                let first = !std::mem::replace(&mut seen[of as usize], true);
                first && of != owner && flows[of as usize].is_some()
            });
        }
        self.flows[owner as usize].take()
    }

    pub fn owner(&self, py: Python<'_>, owner: u32) -> Option<Py<Connection>> {
        self.flows.get(owner as usize)?.as_ref().map(|connection| connection.clone_ref(py))
    }

    pub fn has_accepted(&self) -> bool {
        !self.accepted.is_empty()
    }

    pub fn row(&self) -> Row {
        let addresses = &self.config.addresses;
        Row {
            name: self.name.clone(),
            kind: self.kind,
            link: self.port.link(),
            peer: self.port.peer(),
            mac: self.config.mac,
            addresses: addresses.iter().map(|cidr| format!("{}/{}", cidr.address, cidr.prefix)).collect(),
            counters: self.counters(),
        }
    }

    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [self.port.counters(), self.forwarding.list(), self.host.counters()].concat()
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.listeners.iter().try_for_each(|endpoint| visit.call(endpoint))?;
        self.flows.iter().try_for_each(|flow| visit.call(flow))?;
        self.handler.as_ref().map_or(Ok(()), |handler| handler.traverse(visit))
    }
}
