//! Clients that ask without a pause, and count what fails. They do what every HTTP client does, and no more: a connection that
//! the server has closed is not used again, and a connect that fails is tried again for a second.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use podid_testkit::net::METADATA;

/// A connect that fails is tried again for this long, as every HTTP client does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time limit for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const TARGET: &str =
    "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";

/// How a client uses connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// One for each request, with this pause between them.
    Fresh(Duration),
    /// The same for as long as the server keeps it.
    Kept(Duration),
}

/// Clients in pods. They end when this is dropped, or asked how it went.
pub struct Load {
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Starts a client for each habit in each of the network namespaces `pods`.
    pub fn start(pods: &[String], habits: &[Habit]) -> Self {
        let (over, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let clients = pods
            .iter()
            .flat_map(|pod| habits.iter().map(move |&habit| (pod, habit)))
            .map(|(pod, habit)| {
                let (over, served) = (over.clone(), served.clone());
                let pod = pod.to_owned();
                std::thread::spawn(move || {
                    enter(&pod);
                    client(habit, &over, &served)
                })
            })
            .collect();
        Self {
            over,
            served,
            clients,
        }
    }

    /// How many requests were answered with a token so far.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Ends it and gives what failed.
    pub fn failures(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let ended = self
            .clients
            .into_iter()
            .map(|client| client.join().unwrap());
        ended.flatten().collect()
    }
}

/// Moves this thread into a network namespace.
pub fn enter(namespace: &str) {
    let path = File::open(format!("/run/netns/{namespace}")).unwrap();
    setns(path, CloneFlags::CLONE_NEWNET).unwrap();
}

fn client(habit: Habit, over: &AtomicBool, served: &AtomicUsize) -> Vec<String> {
    let (mut failures, mut kept) = (Vec::new(), None);
    while !over.load(Ordering::Relaxed) {
        match request(habit, kept.take()) {
            Ok(connection) => {
                served.fetch_add(1, Ordering::Relaxed);
                kept = connection;
            }
            Err(error) => failures.push(format!("{habit:?}: {error}")),
        }
        let (Habit::Fresh(pause) | Habit::Kept(pause)) = habit;
        std::thread::sleep(pause);
    }
    failures
}

/// A request, and the connection if it can be used again.
fn request(habit: Habit, kept: Option<Connection>) -> io::Result<Option<Connection>> {
    let mut connection = match kept.filter(Connection::is_open) {
        Some(connection) => connection,
        None => Connection::open()?,
    };
    let close = connection.ask(matches!(habit, Habit::Fresh(_)))?;
    Ok((!close).then_some(connection))
}

/// A connection to the metadata address.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects, and tries for a second.
    pub fn open() -> io::Result<Self> {
        let started = Instant::now();
        loop {
            match TcpStream::connect_timeout(&(METADATA, 80).into(), CONNECT_TIMEOUT) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
                    return Ok(Self(BufReader::new(stream)));
                }
                Err(error) if started.elapsed() > CONNECT_TIMEOUT => {
                    return Err(io::Error::new(error.kind(), format!("connect: {error}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Whether the server has not closed it.
    pub fn is_open(&self) -> bool {
        let stream = self.0.get_ref();
        stream.set_nonblocking(true).unwrap();
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Asks for a token; whether the connection is over after it.
    pub fn ask(&mut self, close: bool) -> io::Result<bool> {
        let header = if close { "Connection: close\r\n" } else { "" };
        let request = format!(
            "GET {TARGET} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n{header}\r\n"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut length, mut last, mut status) = (0, close, String::new());
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("closed after {status:?}"),
                ));
            }
            let lower = line.trim().to_ascii_lowercase();
            if status.is_empty() {
                status.clone_from(&lower);
            }
            if let Some(value) = lower.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            last |= lower == "connection: close";
            if lower.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body);
        if !status.contains(" 200 ") || !body.contains("access_token") {
            return Err(io::Error::other(format!("{status}: {body}")));
        }
        Ok(last)
    }
}
