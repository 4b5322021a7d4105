//! A node, two pods and Azure as network namespaces that go away with the test.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "not every test file needs all of it, and tests may panic"
)]

pub mod group;
pub mod way;

use std::fmt::Display;
use std::fs::File;
use std::future::Future;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

pub const METADATA: &str = "169.254.169.254:80";
/// A client gives up after this.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);

/// A namespace, removed when dropped.
pub struct Namespace(String);

impl Namespace {
    fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "podid-{}-{}-{role}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        run(&format!("ip netns add {name}"));
        let namespace = Self(name);
        namespace.run("ip link set lo up");
        namespace
    }

    /// A pod as on a node without a bridge: a pair of links of its own, and a route for its address alone.
    pub fn routed(node: &Namespace, address: &str) -> Self {
        let pod = Self::new("pod");
        let link = format!(
            "v{:08x}",
            address
                .split('.')
                .fold(0_u32, |sum, part| sum << 8 | part.parse::<u32>().unwrap())
        );
        node.run(&format!(
            "ip link add {link} type veth peer name eth0 netns {}",
            pod.0
        ));
        node.run(&format!("ip link set {link} up"));
        node.run(&format!("sysctl -qw net.ipv4.conf.{link}.proxy_arp=1"));
        pod.run(&format!("ip addr add {address}/32 dev eth0"));
        pod.run("ip link set eth0 up");
        pod.run("ip route add 169.254.1.1 dev eth0 scope link");
        pod.run("ip route add default via 169.254.1.1");
        node.run(&format!("ip route add {address}/32 dev {link}"));
        pod
    }

    /// Runs a tool inside; panics with what it said unless it succeeds.
    pub fn run(&self, line: &str) -> String {
        run(&format!("ip netns exec {} {line}", self.0))
    }

    /// Runs `work` on a thread of its own inside.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.0);
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` on a runtime of its own inside.
    pub fn block_on<F: Future<Output: Send>>(&self, work: impl FnOnce() -> F + Send) -> F::Output {
        self.within(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(work())
        })
    }

    /// Connects from inside and returns what the other side answers.
    pub fn ask(&self, addr: &str) -> io::Result<String> {
        Client::connect(self, addr, None)?.ask()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A connection that asks more than once.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn connect(from: &Namespace, addr: &str, mark: Option<u32>) -> io::Result<Self> {
        let addr: SocketAddr = addr.parse().unwrap();
        from.within(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            if let Some(mark) = mark {
                socket.set_mark(mark)?;
            }
            socket.connect_timeout(&addr.into(), CLIENT_TIMEOUT)?;
            socket.set_read_timeout(Some(CLIENT_TIMEOUT))?;
            Ok(Self(BufReader::new(socket.into())))
        })
    }

    pub fn ask(&mut self) -> io::Result<String> {
        self.0.get_mut().write_all(b"who are you\n")?;
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

/// Answers each line with its name, the caller's address and its own. Dropping it closes every socket, as the end of its process would.
pub struct Server {
    sockets: Arc<Mutex<Vec<TcpStream>>>,
    asked: Arc<AtomicUsize>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(name: &'static str, listener: TcpListener) -> Self {
        listener.set_nonblocking(false).unwrap();
        let (sockets, asked) = (
            Arc::<Mutex<Vec<TcpStream>>>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let (taken, accepted, seen) = (
            listener.try_clone().unwrap(),
            sockets.clone(),
            asked.clone(),
        );
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                while let Ok((stream, peer)) = taken.accept() {
                    seen.fetch_add(1, Ordering::SeqCst);
                    accepted.lock().unwrap().push(stream.try_clone().unwrap());
                    scope.spawn(move || answer(name, stream, peer));
                }
                drop(taken);
            });
        });
        Self {
            sockets,
            asked,
            listener,
            thread: Some(thread),
        }
    }

    /// How many connections have been accepted.
    pub fn accepted(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        if let Ok(sockets) = self.sockets.lock() {
            for socket in sockets.iter() {
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// NMI's listeners.
pub struct Nmi(Vec<Server>);

impl Nmi {
    /// How many connections have been accepted.
    pub fn accepted(&self) -> usize {
        self.0.iter().map(Server::accepted).sum()
    }
}

fn answer(name: &str, stream: TcpStream, peer: SocketAddr) {
    let Ok(mut local) = stream.local_addr() else {
        return;
    };
    // The caller asked for this port, whichever it was translated to.
    let metadata: SocketAddr = METADATA.parse().unwrap();
    if local.ip() == metadata.ip() {
        local = metadata;
    }
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        if writeln!(lines.get_mut(), "{name} {} {local}", peer.ip()).is_err() {
            return;
        }
        line.clear();
    }
}

/// The node (10.77.0.1, 10.88.0.1), its pods (10.77.0.11 and .12) and Azure (10.88.0.2 and the metadata address) behind it.
pub struct World {
    pub node: Namespace,
    pub pod: Namespace,
    pub neighbour: Namespace,
    pub azure: Server,
    _elsewhere: Server,
    azure_place: Namespace,
}

impl World {
    pub fn new() -> Self {
        demand_tools();
        let (node, azure) = (Namespace::new("node"), Namespace::new("azure"));
        node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=1");
        node.run("ip link add br0 type bridge");
        node.run("ip addr add 10.77.0.1/24 dev br0");
        node.run("ip link set br0 up");
        node.run(&format!(
            "ip link add uplink type veth peer name eth0 netns {}",
            azure.0
        ));
        node.run("ip addr add 10.88.0.1/24 dev uplink");
        node.run("ip link set uplink up");
        node.run("ip route add default via 10.88.0.2");
        azure.run("ip addr add 10.88.0.2/24 dev eth0");
        azure.run("ip addr add 169.254.169.254/32 dev lo");
        azure.run("ip link set eth0 up");
        azure.run("ip route add 10.77.0.0/24 via 10.88.0.1");
        let (pod, neighbour) = (attach(&node, 11), attach(&node, 12));
        let serve =
            |port: &str| azure.within(|| TcpListener::bind(format!("0.0.0.0:{port}")).unwrap());
        let (metadata, other) = (serve("80"), serve("8080"));
        let world = Self {
            node,
            pod,
            neighbour,
            azure: Server::new("azure", metadata),
            _elsewhere: Server::new("elsewhere", other),
            azure_place: azure,
        };
        // What makes every refusal below mean something.
        assert_eq!(
            world.pod.ask(METADATA).unwrap(),
            "azure 10.77.0.11 169.254.169.254:80"
        );
        world.show_bridged(false);
        world
    }

    /// Whether packets on the bridge are shown to the IP rules, where the kernel can do that.
    pub fn show_bridged(&self, shown: bool) {
        let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        let can = || self.node.within(|| std::path::Path::new(path).exists());
        if shown && !can() {
            self.node.run("modprobe br_netfilter");
        }
        if can() {
            let value = u8::from(shown);
            self.node.run(&format!(
                "sysctl -qw net.bridge.bridge-nf-call-iptables={value}"
            ));
        }
    }

    /// Where Azure is.
    pub fn azure_place(&self) -> &Namespace {
        &self.azure_place
    }

    /// NMI as far as the network sees it: at this address, and with its port at the metadata address.
    pub fn nmi(&self, addr: &str) -> Nmi {
        let addr: SocketAddr = addr.parse().unwrap();
        let serve = |addr: SocketAddr| {
            let listen = || podid_intercept::listen(addr, true).unwrap();
            Server::new("nmi", self.node.within(listen))
        };
        let mut metadata: SocketAddr = METADATA.parse().unwrap();
        metadata.set_port(addr.port());
        let has_both = addr.ip().is_unspecified() || addr.ip() == metadata.ip();
        let bridged = (!has_both).then(|| serve(metadata));
        Nmi(std::iter::once(serve(addr)).chain(bridged).collect())
    }
}

fn attach(node: &Namespace, host: u8) -> Namespace {
    let pod = Namespace::new("pod");
    node.run(&format!(
        "ip link add veth{host} type veth peer name eth0 netns {}",
        pod.0
    ));
    node.run(&format!("ip link set veth{host} master br0 up"));
    pod.run(&format!("ip addr add 10.77.0.{host}/24 dev eth0"));
    pod.run("ip link set eth0 up");
    pod.run("ip route add default via 10.77.0.1");
    pod
}

fn demand_tools() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "packet tests make network namespaces: run them as root"
    );
    let tools = [
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("iptables-nft", "iptables"),
        ("iptables-legacy", "iptables"),
        ("conntrack", "conntrack"),
        ("sysctl", "procps"),
    ];
    for (tool, package) in tools {
        let found = Command::new(tool).arg("--help").output().is_ok();
        assert!(
            found,
            "{tool} is not on PATH: install the package {package}"
        );
    }
}

fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {}", said(&output.stderr));
    said(&output.stdout).to_string()
}

fn said(bytes: &[u8]) -> impl Display + '_ {
    String::from_utf8_lossy(bytes)
}
