//! The Python module `libvnf._native`: the only place that knows Python.
//!
//! * `core`, `dispatch`, `coroutine`, `endpoint` — the batch, the calling of handlers, what connections have in common.
//! * `connection`, `life`, `inbound`, `outbound` — one connection; `wire` — what is under it.
//! * `commit` — what is sent waits for what was written.
//! * `request`, `packet`, `framing`, `client` — the values that handlers get and give; `building` — frames from layers
//!   and back.
//! * `sockets`, `stream`, `datagrams` — kernel sockets; `protocol` — the way in from asyncio transports; `engine`, `opened`,
//!   `flows`, `tcp`, `ports` — from bypass ports; `tracing`, `capture` — what became of their frames, and a file of them.
//! * `forwarding`, `flow_rules` — frames that only pass through, and the rules for them; `bridging` — `vnf bridge`.
//! * `splice_relay` — two connections joined; `splicer`, `loader`, `store` — faces of `crate::splice`, `crate::load` and
//!   `crate::state`.

mod bridging;
mod building;
mod capture;
mod cell;
mod client;
mod commit;
mod connection;
mod core;
mod coroutine;
mod datagrams;
mod dispatch;
mod endpoint;
mod engine;
mod flow_rules;
mod flows;
mod forwarding;
mod frames;
mod framing;
mod inbound;
mod life;
mod loader;
mod opened;
mod outbound;
mod packet;
mod ports;
mod protocol;
mod request;
mod sockets;
mod splice_relay;
mod splicer;
mod store;
mod stream;
mod tcp;
mod tracing;
mod wire;

use pyo3::prelude::*;

#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<bridging::Bridge>()?;
    module.add_class::<capture::Capture>()?;
    module.add_class::<client::Client>()?;
    module.add_class::<connection::Connection>()?;
    module.add_class::<core::Core>()?;
    module.add_class::<coroutine::Driver>()?;
    module.add_class::<datagrams::Datagrams>()?;
    module.add_class::<endpoint::Endpoint>()?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<engine::Target>()?;
    module.add_class::<flow_rules::FlowTable>()?;
    module.add_class::<frames::Batch>()?;
    module.add_class::<frames::Column>()?;
    module.add_class::<frames::Frame>()?;
    module.add_class::<framing::Delimiter>()?;
    module.add_class::<framing::Field>()?;
    module.add_class::<framing::Fixed>()?;
    module.add_class::<framing::LengthPrefixed>()?;
    module.add_class::<packet::Packet>()?;
    module.add_class::<protocol::DatagramProtocol>()?;
    module.add_class::<protocol::StreamProtocol>()?;
    module.add_class::<request::Request>()?;
    module.add_class::<sockets::Sockets>()?;
    module.add_class::<sockets::SocketTarget>()?;
    module.add_class::<splicer::Splice>()?;
    module.add_class::<store::StoreClient>()?;
    module.add_class::<stream::Stream>()?;
    module.add_function(wrap_pyfunction!(frames::attach_frames, module)?)?;
    module.add_function(wrap_pyfunction!(ports::drops, module)?)?;
    module.add_function(wrap_pyfunction!(building::build_frame, module)?)?;
    module.add_function(wrap_pyfunction!(building::parse_frame, module)?)?;
    module.add_function(wrap_pyfunction!(ports::port_kinds, module)?)?;
    module.add_function(wrap_pyfunction!(ports::port_check, module)?)?;
    module.add_function(wrap_pyfunction!(ports::port_option, module)?)?;
    module.add_function(wrap_pyfunction!(loader::run_load, module)?)?;
    module.add_function(wrap_pyfunction!(loader::generate_frames, module)?)?;
    module.add_function(wrap_pyfunction!(loader::core_distance_ns, module)?)?;
    module.add_function(wrap_pyfunction!(tracing::trace_start, module)?)?;
    module.add_function(wrap_pyfunction!(tracing::trace_stop, module)?)?;
    module.add_function(wrap_pyfunction!(tracing::trace_take, module)?)?;
    module.add_function(wrap_pyfunction!(splice_relay::pass_inbox, module)?)?;
    module.add_function(wrap_pyfunction!(splice_relay::relay, module)?)?;
    Ok(())
}
