//! What the client counts, by the names that statistics have.

macro_rules! counters {
    ($($name:ident: $what:literal,)*) => {
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $(#[doc = $what] pub $name: u64,)*
        }

        impl Counters {
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    connects: "connections that came up",
    disconnects: "connections that were lost",
    silences: "connections given up because the node owed an answer for too long",
    garbage: "answers that are not RESP3, or not what was asked for",
    retries: "commands sent again, or put off",
    moved: "commands sent to a slot's new master",
    asked: "commands that followed a key ahead of its slot",
    script_loads: "commands whose script a node had forgotten",
    refused: "commands that a node refused for good",
    timeouts: "operations not answered in time",
    late: "answers to commands that were given up",
    too_few_replicas: "commands that fewer replicas than asked had in time",
    topology_asked: "questions for the topology",
    topology_changes: "answers that differed from what was known",
    invalidations: "entries that others changed",
    answers_dropped: "answers given up because the loop left too many unread",
    leases_renewed: "renewals of locks",
    leases_lost: "locks whose lease ran out or went to another owner",
}
