//! Counters of a port, each by the name it has outside.

/// A struct of counters, all public, with `list` for `Port::counters`.
macro_rules! counters {
    ($($(#[$about:meta])* $name:ident),+ $(,)?) => {
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$about])* pub $name: u64),+ }
        impl Counters {
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),+]
            }
        }
    };
}

pub(crate) use counters;
