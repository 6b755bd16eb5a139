//! Packets: the pool they live in and checked views of their headers.

pub mod pool;

pub use pool::{Pool, PoolConfig, Slot};
