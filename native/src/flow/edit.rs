//! Changes to a packet, on its head.

use super::{Encapsulate, Head, Rewrite};
use crate::packet::headers::Headers;

/// Why a packet cannot be changed like this: it stays what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

pub fn rewrite(_head: &mut Head, _headers: &Headers, _rewrite: &Rewrite) -> Result<(), Failed> {
    Err(Failed)
}

pub fn translate_quoted(_head: &mut Head, _headers: &Headers, _rewrite: &Rewrite) -> Result<(), Failed> {
    Err(Failed)
}

pub fn encapsulate(_head: &mut Head, _headers: &Headers, _tunnel: &Encapsulate) -> Result<(), Failed> {
    Err(Failed)
}

pub fn decapsulate(_head: &mut Head, _headers: &Headers) -> Result<(), Failed> {
    Err(Failed)
}
