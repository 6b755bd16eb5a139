//! What a client is told, and how it greets a node.

use std::time::Duration;

use super::link::Phase;
use super::resp::{self, Reply};
use super::script;
use super::tls::Tls;
use super::topology::Address;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to begin. A single server: the first one.
    pub seeds: Vec<Address>,
    pub cluster: bool,
    /// None: the user `default`.
    pub username: Option<String>,
    pub password: Option<String>,
    /// None: in the clear.
    pub tls: Option<Tls>,
    /// How long an operation may take, retries and all.
    pub timeout: Duration,
    /// How long a node may owe an answer.
    pub silence: Duration,
    /// How long replicas may take.
    pub replica_timeout: Duration,
    /// How long locks are renewed without a sign of life from the loop.
    pub stall_limit: Duration,
    /// More than as many of the longest values as are read at once.
    pub longest_reply: usize,
    /// Beyond that new operations are refused.
    pub queued_operations: usize,
    pub queued_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seeds: Vec::new(),
            cluster: false,
            username: None,
            password: None,
            tls: None,
            timeout: Duration::from_secs(10),
            silence: Duration::from_secs(1),
            replica_timeout: Duration::from_secs(1),
            stall_limit: Duration::from_secs(120),
            longest_reply: 192 << 20,
            queued_operations: 65_536,
            queued_bytes: 64 << 20,
        }
    }
}

impl Settings {
    /// Commands that a node must agree to before a connection is used. `tables`: values are read and written on it, so
    /// the node tells who else writes them.
    pub fn greetings(&self, tables: bool) -> Vec<Vec<u8>> {
        let mut hello: Vec<&[u8]> = vec![b"HELLO", b"3"];
        if let Some(password) = &self.password {
            let user = self.username.as_deref().unwrap_or("default");
            hello.extend([&b"AUTH"[..], user.as_bytes(), password.as_bytes()]);
        }
        let mut greetings = vec![words(&hello)];
        if tables {
            greetings.push(words(&[b"CLIENT", b"TRACKING", b"ON", b"NOLOOP"]));
            greetings.extend(script::ALL.iter().map(|script| script.load()));
        }
        greetings
    }

    /// Whether the greeting that is answered next, of a connection for tables, is one of the scripts: they come last.
    pub fn is_script(phase: Phase) -> bool {
        matches!(phase, Phase::Greeting(left) if left <= script::ALL.len())
    }

    /// Whether the answer to a greeting says that this is the kind of server that was meant.
    pub fn fits(&self, answer: Reply<'_>) -> Result<(), String> {
        let Reply::List(mut map) = answer else { return Ok(()) };
        while let (Some(Reply::Data(name)), Some(value)) = (map.next(), map.next()) {
            let Reply::Data(mode) = value else { continue };
            if name == b"mode" && (mode == b"cluster") != self.cluster {
                return Err(if self.cluster {
                    "this is a single server, and was given as a cluster".to_owned()
                } else {
                    "this is a node of a cluster, and was given as a single server".to_owned()
                });
            }
        }
        Ok(())
    }
}

fn words(words: &[&[u8]]) -> Vec<u8> {
    let mut command = Vec::new();
    resp::command(&mut command, words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_goes_with_hello() {
        let settings = Settings { password: Some("x".into()), ..Settings::default() };
        let expected = b"*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$1\r\nx\r\n";
        assert_eq!(settings.greetings(false), [expected]);
    }
}
