//! The host as its peers see it: frames in, frames out.
