//! Two ports in one process, back to back: what one sends the other receives. For tests, benches and fuzzing.
