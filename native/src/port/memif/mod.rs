//! memif: Ethernet frames through shared memory. Both roles, against a peer that may do anything.
