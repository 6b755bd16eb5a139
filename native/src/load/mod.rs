//! The load generator and responder.
