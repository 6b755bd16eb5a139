//! A `redis-server` for one test, and connections to it.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libvnf_native::state::command;
use libvnf_native::state::resp::{self, Reader, Reply};

const DEADLINE: Duration = Duration::from_secs(20);

pub struct Server {
    child: Child,
    directory: PathBuf,
    /// Held open: it goes on writing.
    _log: BufReader<ChildStdout>,
}

impl Server {
    /// Nothing, and a line that says what to install, where there is no `redis-server`; but where CI is set, it must be.
    pub fn start(options: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("vnf-state-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--unixsocket", "socket", "--save", "", "--dir"]).arg(&directory).args(options);
        match command.current_dir(&directory).stdout(Stdio::piped()).spawn() {
            Ok(mut child) => {
                let mut log = BufReader::new(child.stdout.take().unwrap());
                let is_ready = |line: Result<String, _>| line.unwrap().contains("eady to accept connections");
                assert!(log.by_ref().lines().any(is_ready), "the server is not ready");
                Some(Self { child, directory, _log: log })
            }
            Err(why) if env::var_os("CI").is_none() => {
                eprintln!("not run: redis-server is missing ({why}); install Debian's package redis-server");
                None
            }
            Err(why) => panic!("redis-server: {why}"),
        }
    }

    /// A whole cluster of one node: it sees to it that all keys of a script are in one slot.
    pub fn clustered() -> Option<Self> {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, bus) = (free(), free());
        let [port, bus] = [port, bus].map(|listener| listener.local_addr().unwrap().port().to_string());
        let cluster = ["--bind", "127.0.0.1", "--cluster-enabled", "yes", "--port", &port, "--cluster-port", &bus];
        let server = Self::start(&cluster)?;
        let mut connection = server.connect();
        connection.ask(&[b"CLUSTER", b"ADDSLOTSRANGE", b"0", b"16383"]);
        let begun = Instant::now();
        while !connection.ask(&[b"CLUSTER", b"INFO"]).starts_with("cluster_state:ok") {
            assert!(begun.elapsed() < DEADLINE, "the cluster is not ready");
        }
        Some(server)
    }

    /// As a client greets it that wants to hear of changes.
    pub fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.directory.join("socket")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut connection = Connection { stream, reader: Reader::new(64 << 20), pushes: Vec::new() };
        connection.ask(&[b"HELLO", b"3"]);
        connection.ask(&[b"CLIENT", b"TRACKING", b"ON", b"NOLOOP"]);
        connection
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub struct Connection {
    stream: UnixStream,
    reader: Reader,
    /// Keys that others have changed.
    pub pushes: Vec<Vec<u8>>,
}

impl Connection {
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The answer to what was sent first.
    pub fn answer<T>(&mut self, look: impl FnOnce(Reply<'_>) -> T) -> T {
        loop {
            while let Some(reply) = self.reader.next().unwrap() {
                let Reply::Push(mut push) = reply else { return look(reply) };
                if let (Some(Reply::Data(b"invalidate")), Some(Reply::List(keys))) = (push.next(), push.next()) {
                    let key = |key| if let Reply::Data(key) = key { key.to_vec() } else { panic!("{key:?}") };
                    self.pushes.extend(keys.map(key));
                }
            }
            let read = self.stream.read(self.reader.room()).expect("an answer");
            assert!(read > 0, "the server has closed the connection");
            self.reader.filled(read);
        }
    }

    /// The answer as text.
    pub fn ask(&mut self, arguments: &[&[u8]]) -> String {
        let mut bytes = Vec::new();
        resp::command(&mut bytes, arguments);
        self.send(&bytes);
        self.answer(text)
    }

    /// Sends a piece; after its script, where the server does not know that.
    pub fn call<T>(&mut self, piece: &command::Command, look: impl FnOnce(Reply<'_>) -> T) -> T {
        self.send(&piece.bytes);
        let mut look = Some(look);
        let known = self.answer(|reply| match reply {
            Reply::Error(why) if why.starts_with(b"NOSCRIPT") => None,
            _ => look.take().map(|look| look(reply)),
        });
        known.unwrap_or_else(|| {
            let script = piece.script.expect("a script");
            self.send(&script.load());
            assert_eq!(self.answer(text).as_bytes(), script.digest());
            self.send(&piece.bytes);
            self.answer(look.take().unwrap())
        })
    }

    pub fn integer(&mut self, piece: &command::Command) -> i64 {
        self.call(piece, |reply| if let Reply::Integer(value) = reply { value } else { panic!("{}", text(reply)) })
    }
}

pub fn text(reply: Reply<'_>) -> String {
    match reply {
        Reply::Nil => "nil".into(),
        Reply::Integer(value) => value.to_string(),
        Reply::Data(data) => String::from_utf8_lossy(data).into_owned(),
        Reply::Error(why) => format!("error: {}", String::from_utf8_lossy(why)),
        Reply::List(list) | Reply::Push(list) => format!("[{}]", list.map(text).collect::<Vec<_>>().join(" ")),
    }
}
