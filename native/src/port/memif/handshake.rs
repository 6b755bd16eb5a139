//! The lock-step of the control channel, for both roles: a message in, an effect and at most one message out. No I/O.
//!
//! ```text
//! server ─ HELLO ▶ client          server ◀ ADD_RING (client→server) ─ client     each answered
//! server ◀ INIT ─ client  (ACK)    server ◀ ADD_RING (server→client) ─ client     with an ACK
//! server ◀ ADD_REGION ─ client     server ◀ CONNECT ─ client, answered with CONNECTED
//! ```
//! DPDK and VPP send one queued message for each they receive: one missing ACK stalls them for ever. The caller
//! performs the effect first; when that fails it refuses instead of sending the reply.

use super::control::{AddRing, Hello, Init, MODE_ETHERNET, Message, SECRET_BYTES, Text, VERSION};
use super::ring::{Layout, MAX_LOG2_SLOTS};

/// The highest region index we accept: as many as DPDK makes for zero copy.
pub const MAX_REGION: u16 = 255;
/// The most rings per direction. A peer makes no more than HELLO allows, so none of its frames can wait in a ring nobody
/// reads.
pub const MAX_QUEUES: u16 = 64;

/// What the caller must do before it sends the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// As the server: the interface is this connection's from now on.
    Claim,
    /// As the server: map the descriptor that came along.
    MapRegion {
        bytes: u64,
    },
    /// As the server: remember the ring, and the eventfd that came along.
    AddRing(AddRing),
    /// As the client: make the region.
    CreateRegion(Layout),
    /// Frames may flow.
    Connected {
        peer: Text<32>,
    },
}

/// Which of its descriptors a client attaches to the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    Nothing,
    Region,
    Eventfd { client_to_server: bool, queue: u16 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub effect: Effect,
    pub reply: Option<Message>,
    pub attach: Attach,
}

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// We refuse; the peer is told why.
    Refused(String),
    /// The peer left, with these words.
    ByPeer(String),
}

fn refused<T>(reason: impl Into<String>) -> Result<T, End> {
    Err(End::Refused(reason.into()))
}

fn step(effect: Effect, reply: Message, attach: Attach) -> Result<Step, End> {
    Ok(Step { effect, reply: Some(reply), attach })
}

/// Before anything else: the peer's farewell, and descriptors where none belong (or too few, or too many).
fn examine(message: &Message, descriptors: usize) -> Result<(), End> {
    if let Message::Disconnect { reason, .. } = message {
        return Err(End::ByPeer(format!("peer: {reason}")));
    }
    let wanted = usize::from(matches!(message, Message::AddRegion { .. } | Message::AddRing(_)));
    if descriptors != wanted {
        return refused(format!("{} with {descriptors} descriptors, {wanted} wanted", message.kind()));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerState {
    /// From `Server::new`: HELLO went out.
    Greeted,
    /// From `Greeted`, by INIT.
    Configuring,
    /// From `Configuring`, by CONNECT.
    Connected,
}

/// One accepted connection.
#[derive(Debug)]
pub struct Server {
    state: ServerState,
    id: u32,
    secret: Option<[u8; SECRET_BYTES]>,
    name: Text<32>,
    most_queues: u16,
    regions: u16,
    /// By direction: client to server, server to client.
    rings: [u16; 2],
}

impl Server {
    pub fn new(id: u32, secret: Option<[u8; SECRET_BYTES]>, name: &str, most_queues: u16) -> Self {
        let name = Text::new(name);
        Self { state: ServerState::Greeted, id, secret, name, most_queues, regions: 0, rings: [0; 2] }
    }

    /// Sent unasked, right after accepting.
    pub fn hello(&self) -> Message {
        Message::Hello(Hello {
            name: self.name,
            min_version: VERSION,
            max_version: VERSION,
            max_region: MAX_REGION,
            max_s2c_ring: self.most_queues - 1,
            max_c2s_ring: self.most_queues - 1,
            max_log2_ring_slots: MAX_LOG2_SLOTS,
        })
    }

    pub fn connected(&self) -> Message {
        Message::Connected { name: self.name }
    }

    /// `taken`: another connection has the interface.
    pub fn handle(&mut self, message: &Message, descriptors: usize, taken: bool) -> Result<Step, End> {
        examine(message, descriptors)?;
        match (self.state, message) {
            (ServerState::Greeted, Message::Init(init)) => {
                self.admit(init, taken)?;
                self.state = ServerState::Configuring;
                step(Effect::Claim, Message::Ack, Attach::Nothing)
            }
            (ServerState::Configuring, Message::AddRegion { index, bytes }) => {
                if *index != self.regions || *index > MAX_REGION {
                    return refused(format!("region index {index}, {} wanted, at most {MAX_REGION}", self.regions));
                }
                self.regions += 1;
                step(Effect::MapRegion { bytes: *bytes }, Message::Ack, Attach::Nothing)
            }
            (ServerState::Configuring, Message::AddRing(ring)) => {
                self.accept_ring(ring)?;
                step(Effect::AddRing(*ring), Message::Ack, Attach::Nothing)
            }
            (ServerState::Configuring, Message::Connect { name }) => {
                if self.rings.contains(&0) {
                    let [c2s, s2c] = self.rings;
                    return refused(format!("CONNECT with {c2s} + {s2c} rings, some of each direction wanted"));
                }
                self.state = ServerState::Connected;
                step(Effect::Connected { peer: *name }, self.connected(), Attach::Nothing)
            }
            (state, other) => refused(format!("{} while {state:?}", other.kind())),
        }
    }

    fn admit(&self, init: &Init, taken: bool) -> Result<(), End> {
        if init.version != VERSION {
            return refused(format!("Version {:#06x}, {VERSION:#06x} wanted", init.version));
        }
        if init.id != self.id {
            return refused("ID not found");
        }
        if init.mode != MODE_ETHERNET {
            return refused(format!("Mode {}, {MODE_ETHERNET} (Ethernet) wanted", init.mode));
        }
        if let Some(secret) = self.secret {
            // Every byte is compared, so that the time tells nothing.
            let difference = secret.iter().zip(init.secret).fold(0, |sum, (ours, theirs)| sum | (ours ^ theirs));
            if init.secret == [0; SECRET_BYTES] {
                return refused("Secret required");
            }
            if difference != 0 {
                return refused("Incorrect secret");
            }
        }
        if taken { refused("Already connected") } else { Ok(()) }
    }

    fn accept_ring(&mut self, ring: &AddRing) -> Result<(), End> {
        let count = &mut self.rings[usize::from(!ring.client_to_server)];
        if ring.index != *count || ring.index >= self.most_queues {
            let most = self.most_queues - 1;
            return refused(format!("ring index {}, {count} wanted, at most {most}", ring.index));
        }
        if ring.region >= self.regions {
            return refused(format!("ring in region {}, {} known", ring.region, self.regions));
        }
        if ring.private_header_bytes != 0 {
            return refused(format!("private header of {} bytes, 0 wanted", ring.private_header_bytes));
        }
        *count += 1;
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientState {
    /// From `Client::new`.
    AwaitingHello,
    /// From `AwaitingHello`: INIT went out.
    AwaitingAdmission,
    /// From `AwaitingAdmission`: ADD_REGION went out.
    AddingRegion,
    /// From `AddingRegion`, and from each ring to the next: ADD_RING went out, client→server before server→client.
    AddingRing { client_to_server: bool, queue: u16 },
    /// From the last `AddingRing`: CONNECT went out.
    Connecting,
    /// From `Connecting`, by CONNECTED.
    Connected,
}

/// One connection to a server.
#[derive(Debug)]
pub struct Client {
    state: ClientState,
    id: u32,
    secret: [u8; SECRET_BYTES],
    name: Text<32>,
    /// What we would like; HELLO may make the rings smaller, and fewer.
    layout: Layout,
}

impl Client {
    pub fn new(id: u32, secret: Option<[u8; SECRET_BYTES]>, name: &str, layout: Layout) -> Self {
        let secret = secret.unwrap_or_default();
        Self { state: ClientState::AwaitingHello, id, secret, name: Text::new(name), layout }
    }

    pub fn handle(&mut self, message: &Message, descriptors: usize) -> Result<Step, End> {
        examine(message, descriptors)?;
        match (self.state, message) {
            (ClientState::AwaitingHello, Message::Hello(hello)) => {
                if !(hello.min_version..=hello.max_version).contains(&VERSION) {
                    let Hello { min_version, max_version, .. } = hello;
                    return refused(format!(
                        "Versions {min_version:#06x} to {max_version:#06x}, {VERSION:#06x} wanted"
                    ));
                }
                self.layout.log2_slots = self.layout.log2_slots.min(hello.max_log2_ring_slots);
                let most = hello.max_c2s_ring.min(hello.max_s2c_ring).saturating_add(1);
                self.layout.queues = self.layout.queues.min(most);
                if self.layout.log2_slots == 0 {
                    return refused("rings of one slot offered, 2 or more wanted");
                }
                self.state = ClientState::AwaitingAdmission;
                let Self { id, secret, name, .. } = *self;
                let init = Message::Init(Init { version: VERSION, id, mode: MODE_ETHERNET, secret, name });
                step(Effect::CreateRegion(self.layout), init, Attach::Nothing)
            }
            (ClientState::AwaitingAdmission, Message::Ack) => {
                self.state = ClientState::AddingRegion;
                let region = Message::AddRegion { index: 0, bytes: self.layout.region_bytes() };
                step(Effect::Nothing, region, Attach::Region)
            }
            (ClientState::AddingRegion, Message::Ack) => self.add_ring(true, 0),
            (ClientState::AddingRing { client_to_server, queue }, Message::Ack) if queue + 1 < self.layout.queues => {
                self.add_ring(client_to_server, queue + 1)
            }
            (ClientState::AddingRing { client_to_server: true, .. }, Message::Ack) => self.add_ring(false, 0),
            (ClientState::AddingRing { client_to_server: false, .. }, Message::Ack) => {
                self.state = ClientState::Connecting;
                step(Effect::Nothing, Message::Connect { name: self.name }, Attach::Nothing)
            }
            (ClientState::Connecting, Message::Connected { name }) => {
                self.state = ClientState::Connected;
                Ok(Step { effect: Effect::Connected { peer: *name }, reply: None, attach: Attach::Nothing })
            }
            (state, other) => refused(format!("{} while {state:?}", other.kind())),
        }
    }

    fn add_ring(&mut self, client_to_server: bool, queue: u16) -> Result<Step, End> {
        self.state = ClientState::AddingRing { client_to_server, queue };
        let ring = AddRing {
            client_to_server,
            index: queue,
            region: 0,
            offset: self.layout.ring_offset(client_to_server, queue),
            log2_slots: self.layout.log2_slots,
            private_header_bytes: 0,
        };
        step(Effect::Nothing, Message::AddRing(ring), Attach::Eventfd { client_to_server, queue })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { log2_slots: 10, buffer_bytes: 2048, queues: 1 };

    fn secret(text: &str) -> Option<[u8; SECRET_BYTES]> {
        let mut secret = [0; SECRET_BYTES];
        secret[..text.len()].copy_from_slice(text.as_bytes());
        Some(secret)
    }

    /// Both machines against each other: the effects on both sides, or who ended it how.
    fn play(client: &mut Client, server: &mut Server, taken: bool) -> Result<(Vec<Effect>, Vec<Effect>), End> {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        let mut message = server.hello();
        loop {
            let step = client.handle(&message, 0)?;
            theirs.push(step.effect);
            let Some(reply) = step.reply else { return Ok((theirs, ours)) };
            let step = server.handle(&reply, usize::from(step.attach != Attach::Nothing), taken)?;
            ours.push(step.effect);
            message = step.reply.unwrap();
        }
    }

    fn machines(theirs: Option<[u8; SECRET_BYTES]>, ours: Option<[u8; SECRET_BYTES]>) -> (Client, Server) {
        (Client::new(7, theirs, "client", LAYOUT), Server::new(7, ours, "server", 1))
    }

    #[test]
    fn the_two_roles_understand_each_other() {
        let (mut client, mut server) = machines(None, None);
        let (theirs, ours) = play(&mut client, &mut server, false).unwrap();
        assert_eq!(theirs.first(), Some(&Effect::CreateRegion(LAYOUT)));
        assert_eq!(theirs.last(), Some(&Effect::Connected { peer: Text::new("server") }));
        assert_eq!(ours[0], Effect::Claim);
        assert_eq!(ours[1], Effect::MapRegion { bytes: LAYOUT.region_bytes() });
        assert!(matches!(ours[2], Effect::AddRing(AddRing { client_to_server: true, offset: 0, .. })));
        assert!(matches!(ours[3], Effect::AddRing(AddRing { client_to_server: false, log2_slots: 10, .. })));
        assert_eq!(ours[4], Effect::Connected { peer: Text::new("client") });
    }

    #[test]
    fn secrets_are_required_compared_and_ignored_where_there_is_none() {
        let outcome = |theirs, ours| {
            let (mut client, mut server) = machines(theirs, ours);
            play(&mut client, &mut server, false).err()
        };
        assert_eq!(outcome(secret("abc"), secret("abc")), None);
        assert_eq!(outcome(secret("abc"), None), None);
        assert_eq!(outcome(None, secret("abc")), Some(End::Refused("Secret required".into())));
        assert_eq!(outcome(secret("abd"), secret("abc")), Some(End::Refused("Incorrect secret".into())));
        assert_eq!(outcome(secret("abcd"), secret("abc")), Some(End::Refused("Incorrect secret".into())));
    }

    #[test]
    fn a_second_client_and_a_wrong_id_are_refused_with_the_words_of_the_others() {
        let (mut client, mut server) = machines(None, None);
        assert_eq!(play(&mut client, &mut server, true), Err(End::Refused("Already connected".into())));
        let (mut client, mut server) = (Client::new(8, None, "client", LAYOUT), Server::new(7, None, "server", 1));
        assert_eq!(play(&mut client, &mut server, false), Err(End::Refused("ID not found".into())));
    }

    #[test]
    fn a_client_makes_its_rings_as_small_as_hello_wants() {
        let (mut client, server) = machines(None, None);
        let Message::Hello(mut hello) = server.hello() else { panic!("no HELLO") };
        hello.max_log2_ring_slots = 4;
        let effect = client.handle(&Message::Hello(hello), 0).unwrap().effect;
        assert_eq!(effect, Effect::CreateRegion(Layout { log2_slots: 4, ..LAYOUT }));
    }

    #[test]
    fn a_client_makes_as_many_rings_as_both_want() {
        for (theirs, ours, wanted) in [(3, 64, 3), (3, 2, 2), (1, 64, 1)] {
            let mut client = Client::new(7, None, "client", Layout { queues: theirs, ..LAYOUT });
            let (_, effects) = play(&mut client, &mut Server::new(7, None, "server", ours), false).unwrap();
            let rings: Vec<_> = effects
                .iter()
                .filter_map(|effect| match effect {
                    Effect::AddRing(ring) => Some((ring.client_to_server, ring.index)),
                    _ => None,
                })
                .collect();
            let all = [true, false].into_iter().flat_map(|way| (0..wanted).map(move |queue| (way, queue)));
            assert_eq!(rings, all.collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_comes_out_of_order_is_refused_in_every_state() {
        let (mut client, mut server) = machines(None, None);
        let mut message = server.hello();
        let stray = Message::Connected { name: Text::new("") };
        loop {
            assert!(matches!(server.handle(&stray, 0, false), Err(End::Refused(_))));
            assert!(matches!(client.handle(&server.hello(), 1), Err(End::Refused(_))));
            let step = client.handle(&message, 0).unwrap();
            assert!(matches!(client.handle(&Message::Connect { name: Text::new("") }, 0), Err(End::Refused(_))));
            let Some(reply) = step.reply else { break };
            message = server.handle(&reply, usize::from(step.attach != Attach::Nothing), false).unwrap().reply.unwrap();
        }
    }

    #[test]
    fn a_farewell_is_heard_in_every_state() {
        let farewell = Message::disconnect("so long");
        let (mut client, mut server) = machines(None, None);
        assert_eq!(client.handle(&farewell, 0), Err(End::ByPeer("peer: so long".into())));
        assert_eq!(server.handle(&farewell, 3, false), Err(End::ByPeer("peer: so long".into())));
    }

    #[test]
    fn rings_and_regions_beyond_what_hello_allows_are_refused() {
        let (_, mut server) = machines(None, None);
        let init = Init { version: VERSION, id: 7, mode: 0, secret: [0; SECRET_BYTES], name: Text::new("") };
        server.handle(&Message::Init(init), 0, false).unwrap();
        let ring = |client_to_server, index, region, private_header_bytes| {
            Message::AddRing(AddRing {
                client_to_server,
                index,
                region,
                offset: 0,
                log2_slots: 4,
                private_header_bytes,
            })
        };
        let mut refusal = |message: &Message, descriptors| match server.handle(message, descriptors, false) {
            Err(End::Refused(reason)) => reason,
            other => format!("{other:?}"),
        };
        assert!(refusal(&ring(true, 0, 0, 0), 1).contains("region 0, 0 known"));
        for index in 0..=MAX_REGION {
            assert!(refusal(&Message::AddRegion { index, bytes: 1 }, 1).contains("MapRegion"));
        }
        assert!(refusal(&Message::AddRegion { index: 256, bytes: 1 }, 1).contains("at most 255"));
        assert!(refusal(&Message::AddRegion { index: 3, bytes: 1 }, 1).contains("256 wanted"));
        assert!(refusal(&ring(true, 0, 0, 0), 0).contains("0 descriptors, 1 wanted"));
        assert!(refusal(&ring(true, 0, 0, 0), 2).contains("2 descriptors, 1 wanted"));
        assert!(refusal(&ring(true, 0, 256, 0), 1).contains("256 known"));
        assert!(refusal(&ring(true, 0, 0, 1), 1).contains("private header"));
        assert!(refusal(&ring(true, 1, 0, 0), 1).contains("0 wanted"));
        assert!(refusal(&ring(true, 0, 0, 0), 1).contains("AddRing"));
        assert!(refusal(&ring(true, 1, 0, 0), 1).contains("at most 0"));
        assert!(refusal(&Message::Connect { name: Text::new("") }, 0).contains("1 + 0 rings"));
    }
}
