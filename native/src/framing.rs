//! Message boundaries in a byte stream.
