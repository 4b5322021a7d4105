//! AAD Pod Identity's nmi, as far as a node notices it: a server on loopback, and a redirect to it in the table nat, which it looks
//! after as the real one does, only more often.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::enter;

const ADDRESS: &str = "127.0.0.1:2579";
const CHAIN: &str = "aad-metadata";
const RULE: &str = "! -s 127.0.0.1/32 -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:2579";
/// The real one looks once a minute.
const INTERVAL: Duration = Duration::from_millis(150);

pub struct Original {
    nat: Nat,
    accepted: Arc<AtomicUsize>,
    leaving: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Original {
    /// Starts it in the network namespace `node`, with this variant of iptables.
    pub fn start(node: &str, tool: &'static str) -> Self {
        let (accepted, leaving) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let node = node.to_owned();
        let nat = Nat {
            node: node.clone(),
            tool,
        };
        let (count, over) = (accepted.clone(), leaving.clone());
        let (bound, is_bound) = mpsc::channel();
        // As with the real one, connections live until the process ends: here, the test.
        std::thread::spawn(move || {
            enter(&node);
            let listener = listen();
            bound.send(()).unwrap();
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                count.fetch_add(1, Ordering::Relaxed);
                let over = over.clone();
                std::thread::spawn(move || serve(stream, &over));
            }
        });
        is_bound.recv().unwrap();
        nat.look();
        let (same, over) = (nat.clone(), leaving.clone());
        let keeper = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                same.look();
                std::thread::sleep(INTERVAL);
            }
        });
        Self {
            nat,
            accepted,
            leaving,
            keeper: Some(keeper),
        }
    }

    /// How many connections it was given.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Takes its redirect away, as it does when it is told to end; whoever is connected is still served.
    pub fn leave(mut self) {
        self.leaving.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            keeper.join().unwrap();
        }
        assert!(self.nat.ask(&format!("-D PREROUTING -j {CHAIN}")).0);
        assert!(self.nat.ask(&format!("-F {CHAIN}")).0);
        assert!(self.nat.ask(&format!("-X {CHAIN}")).0);
        // It gives its port up when it has accepted the last.
        let node = self.nat.node.clone();
        let waking = std::thread::spawn(move || {
            enter(&node);
            let _ = TcpStream::connect(ADDRESS);
        });
        waking.join().unwrap();
    }
}

/// Its port, once the one before it has given it up.
fn listen() -> TcpListener {
    loop {
        if let Ok(listener) = TcpListener::bind(ADDRESS) {
            return listener;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Its chain in the table nat of a node.
#[derive(Clone)]
struct Nat {
    node: String,
    tool: &'static str,
}

impl Nat {
    /// Exactly these entries and a jump, or all is made anew, and the jump put first.
    fn look(&self) {
        let chain = self.ask(&format!("-S {CHAIN}")).1;
        let hooked = self.ask("-S PREROUTING").1;
        let jump = format!("-A PREROUTING -j {CHAIN}");
        if chain.lines().count() == 3 && hooked.lines().any(|line| line.trim() == jump) {
            return;
        }
        self.ask(&format!("-N {CHAIN}"));
        assert!(self.ask(&format!("-F {CHAIN}")).0);
        assert!(self.ask(&format!("-A {CHAIN} {RULE}")).0);
        assert!(self.ask(&format!("-A {CHAIN} -j RETURN")).0);
        if !hooked.lines().any(|line| line.trim() == jump) {
            assert!(self.ask(&format!("-I PREROUTING 1 -j {CHAIN}")).0);
        }
    }

    fn ask(&self, line: &str) -> (bool, String) {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.node, self.tool])
            .args("-w 5 -t nat".split(' '))
            .args(line.split(' '))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said)
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        self.leaving.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// Answers everything with a token. At the end it says that it closes: what it breaks itself is not looked at here.
fn serve(stream: TcpStream, leaving: &AtomicBool) {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        if line.trim().is_empty() {
            let body = r#"{"access_token":"of the original"}"#;
            let last = leaving.load(Ordering::Relaxed);
            let close = if last { "Connection: close\r\n" } else { "" };
            let length = body.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{close}\r\n{body}");
            if lines.get_mut().write_all(answer.as_bytes()).is_err() || last {
                return;
            }
        }
        line.clear();
    }
}
