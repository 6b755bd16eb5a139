//! What a user writes, as text, turned into a run.
