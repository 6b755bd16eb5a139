//! A connection whose handshake is under way, with what it has brought along so far.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::config::MemifConfig;
use super::control::Message;
use super::handshake::{self, Attach, Effect, End, Step};
use super::kick;
use super::region::{Region, prove_eventfd};
use super::ring::{COOKIE, Layout, Ring};
use super::socket::{Control, Incoming};

pub enum Machine {
    Server(handshake::Server),
    Client(handshake::Client),
}

/// A ring with its eventfd.
pub type Wired = (Ring, Arc<OwnedFd>);

pub struct HalfOpen {
    pub token: u64,
    pub control: Control,
    pub machine: Machine,
    pub deadline: Instant,
    /// It passed INIT: the interface is reserved for it.
    pub claimed: bool,
    pub regions: Vec<Arc<Region>>,
    region_bytes: usize,
    pub layout: Layout,
    /// Client to server, server to client; in the order of their queues.
    pub rings: [Vec<Wired>; 2],
    /// What the peer calls its end, once it has said so.
    pub named: String,
}

pub enum Progress {
    /// Nothing more to read now.
    Waits,
    /// A message was handled.
    Moves,
    /// A client wants another interface of our socket.
    Elsewhere {
        id: u32,
        message: Message,
    },
    Connected,
    Ended(End),
}

impl HalfOpen {
    pub fn new(token: u64, control: Control, machine: Machine, deadline: Instant, layout: Layout) -> Self {
        let (claimed, regions, rings, named) = (false, Vec::new(), [Vec::new(), Vec::new()], String::new());
        Self { token, control, machine, deadline, claimed, regions, region_bytes: 0, layout, rings, named }
    }

    /// Reads one message, performs what it asks for and answers.
    pub fn proceed(&mut self, taken: bool, config: &MemifConfig) -> Progress {
        match self.control.receive() {
            Incoming::Nothing => Progress::Waits,
            Incoming::Closed => Progress::Ended(End::ByPeer("peer closed the connection".into())),
            Incoming::Garbage(reason) => Progress::Ended(End::Refused(reason)),
            Incoming::Message(message @ Message::Init(init), descriptors)
                if init.id != config.id && descriptors.is_empty() && !self.claimed =>
            {
                Progress::Elsewhere { id: init.id, message }
            }
            Incoming::Message(message, descriptors) => self.handle(&message, descriptors, taken, config),
        }
    }

    pub fn handle(
        &mut self,
        message: &Message,
        descriptors: Vec<OwnedFd>,
        taken: bool,
        config: &MemifConfig,
    ) -> Progress {
        let step = match &mut self.machine {
            Machine::Server(server) => server.handle(message, descriptors.len(), taken),
            Machine::Client(client) => client.handle(message, descriptors.len()),
        };
        let done = step.and_then(|step| {
            self.perform(step.effect, descriptors.into_iter().next(), config).map_err(End::Refused)?;
            Ok(step)
        });
        match done {
            Err(end) => Progress::Ended(end),
            // A server's CONNECTED goes out once everything is in place.
            Ok(Step { effect: Effect::Connected { peer }, .. }) => {
                self.named = peer.to_string();
                Progress::Connected
            }
            Ok(Step { reply: Some(reply), attach, .. }) => match self.control.send(&reply, self.attached(attach)) {
                Ok(()) => Progress::Moves,
                Err(error) => Progress::Ended(End::ByPeer(format!("control socket: {error}"))),
            },
            Ok(Step { reply: None, .. }) => Progress::Moves,
        }
    }

    fn attached(&self, attach: Attach) -> Option<BorrowedFd<'_>> {
        match attach {
            Attach::Nothing => None,
            Attach::Region => self.regions.first().and_then(|region| region.memfd()),
            Attach::Eventfd { client_to_server, queue } => {
                let rings = &self.rings[usize::from(!client_to_server)];
                rings.get(usize::from(queue)).map(|(_, eventfd)| eventfd.as_fd())
            }
        }
    }

    fn perform(&mut self, effect: Effect, descriptor: Option<OwnedFd>, config: &MemifConfig) -> Result<(), String> {
        match (effect, descriptor) {
            (Effect::Claim, _) => self.claimed = true,
            (Effect::MapRegion { bytes }, Some(memfd)) => {
                let most = config.max_region_bytes_total;
                let sum = usize::try_from(bytes).ok().and_then(|bytes| self.region_bytes.checked_add(bytes));
                let Some(sum) = sum.filter(|sum| *sum <= most) else {
                    return Err(format!("region of {bytes} bytes beside {}: at most {most}", self.region_bytes));
                };
                self.regions.push(Arc::new(Region::from_peer(memfd, bytes)?));
                self.region_bytes = sum;
            }
            (Effect::AddRing(ring), Some(eventfd)) => {
                let region = self.regions.get(usize::from(ring.region)).ok_or("ring in an unknown region")?;
                let wired = (Ring::new(region, ring.offset, ring.log2_slots)?, Arc::new(prove_eventfd(eventfd)?));
                self.rings[usize::from(!ring.client_to_server)].push(wired);
            }
            (Effect::CreateRegion(layout), _) => self.create(layout)?,
            (Effect::Connected { .. }, _) => {
                for (ring, _) in self.rings.iter().flatten() {
                    let cookie = ring.cookie();
                    if cookie != COOKIE {
                        return Err(format!("ring cookie {cookie:#x}, {COOKIE:#x} wanted"));
                    }
                }
            }
            (Effect::Nothing, _) => {}
            (Effect::MapRegion { .. } | Effect::AddRing(_), None) => return Err("a descriptor is missing".into()),
        }
        Ok(())
    }

    /// As a client: the region, and the rings in it.
    fn create(&mut self, layout: Layout) -> Result<(), String> {
        let text = |error: io::Error| format!("cannot share memory: {error}");
        let region = Arc::new(Region::create(c"memif", layout.region_bytes() as usize).map_err(text)?);
        for client_to_server in [true, false] {
            for queue in 0..layout.queues {
                let ring = Ring::new(&region, layout.ring_offset(client_to_server, queue), layout.log2_slots)?;
                ring.initialise();
                let eventfd = kick::eventfd().map_err(text)?;
                self.rings[usize::from(!client_to_server)].push((ring, Arc::new(eventfd)));
            }
        }
        self.regions.push(region);
        self.layout = layout;
        Ok(())
    }
}
