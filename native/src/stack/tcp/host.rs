//! The contract, to compile against while it is being built.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{AcceptHook, TcpEvent, TcpId};
use crate::port::Port;
use crate::stack::{BindError, Host, OpenError};

#[allow(unused_variables, clippy::missing_const_for_fn, clippy::unused_self)]
impl Host {
    pub fn tcp_listen(&mut self, address: Option<IpAddr>, port: u16, listener: u32) -> Result<(), BindError> {
        unimplemented!()
    }
    pub fn tcp_unlisten(&mut self, address: Option<IpAddr>, port: u16) {
        unimplemented!()
    }
    pub fn tcp_accept_hook(&mut self, hook: Option<AcceptHook>) {
        unimplemented!()
    }
    pub fn tcp_open(
        &mut self,
        remote: SocketAddr,
        owner: u32,
        timeout: Duration,
        now: Instant,
    ) -> Result<TcpId, OpenError> {
        unimplemented!()
    }
    pub fn tcp_adopt(&mut self, id: TcpId, owner: u32) -> bool {
        unimplemented!()
    }
    pub fn tcp_send(&mut self, id: TcpId, bytes: &[u8]) -> usize {
        unimplemented!()
    }
    pub fn tcp_room(&self, id: TcpId) -> usize {
        unimplemented!()
    }
    pub fn tcp_want_room(&mut self, id: TcpId) {
        unimplemented!()
    }
    pub fn tcp_receive<R>(&mut self, id: TcpId, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        unimplemented!()
    }
    pub fn tcp_want_data(&mut self, id: TcpId) {
        unimplemented!()
    }
    pub fn tcp_ended(&self, id: TcpId) -> bool {
        unimplemented!()
    }
    pub fn tcp_end(&mut self, id: TcpId) {
        unimplemented!()
    }
    pub fn tcp_close(&mut self, id: TcpId) {
        unimplemented!()
    }
    pub fn tcp_abort(&mut self, id: TcpId) {
        unimplemented!()
    }
    pub fn tcp_local(&self, id: TcpId) -> Option<SocketAddr> {
        unimplemented!()
    }
    pub fn tcp_remote(&self, id: TcpId) -> Option<SocketAddr> {
        unimplemented!()
    }
    pub fn tcp_events(&mut self, events: &mut Vec<TcpEvent>, now: Instant) {}
    pub fn tcp_flush(&mut self, now: Instant, port: &mut dyn Port) {}
}
