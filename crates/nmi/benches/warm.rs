//! A warm token request beside a bare hyper server that answers with the same bytes, in one run over loopback:
//! `cargo bench -p podid-nmi --bench warm`. `PODS` (default 30) is the number of pods on the node.
//!
//! Each server runs on one thread of its own, whose CPU time the kernel counts; the clients run on others.

// A benchmark is a program that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use podid_azure::entra::Entra;
use podid_azure::imds::Imds;
use podid_nmi::{Config, Nmi, Upstream};
use podid_policy::matching::Scope;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const RESOURCE: &str = "https://vault.azure.net";
const WARM_UP: usize = 2_000;
const REQUESTS: usize = 20_000;
const CONNECTIONS: usize = 4;
/// Runs of each server, in turn, so that a disturbance of the machine meets both; the best one counts.
const ROUNDS: usize = 3;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome<()> {
    // Test runs build and start benchmarks too; only `cargo bench` says this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let pods = match std::env::var("PODS") {
        Ok(text) => text.parse()?,
        Err(_) => 30,
    };
    let surroundings = serve("surroundings", move |told| surroundings(pods, told))?;
    let nmi = serve("nmi", move |told| node_agent(surroundings.address, told))?;
    let body = first_token(nmi.address)?;
    let length = body.len();
    let bare = serve("bare", move |told| bare(Bytes::from(body), told))?;
    let mut best: [Option<Figures>; 2] = [None, None];
    for _ in 0..ROUNDS {
        for (server, best) in [&bare, &nmi].into_iter().zip(&mut best) {
            let figures = measure(server)?;
            if best.as_ref().is_none_or(|best| figures.cpu < best.cpu) {
                *best = Some(figures);
            }
        }
    }
    let [Some(bare), Some(nmi)] = best else {
        return Err("nothing was measured".into());
    };
    let profile = if cfg!(debug_assertions) {
        "; DEBUG BUILD: these figures say nothing"
    } else {
        ""
    };
    println!("{pods} pods on the node, body of {length} bytes{profile}");
    println!("              p50        p99   requests/s   CPU/request");
    show("bare hyper", &bare);
    show("nmi, warm", &nmi);
    let ratio = nmi.cpu.as_secs_f64() / bare.cpu.as_secs_f64();
    println!("CPU per warm token: {ratio:.2} x bare hyper");
    Ok(())
}

fn show(name: &str, figures: &Figures) {
    let Figures {
        p50,
        p99,
        rate,
        cpu,
    } = figures;
    println!("{name:<11}{p50:>9.1?}  {p99:>9.1?} {rate:>12.0}  {cpu:>12.1?}");
}

struct Server {
    address: SocketAddr,
    /// Where the kernel counts the nanoseconds that its thread was on a CPU.
    schedstat: PathBuf,
}

/// Runs `role` on a thread of its own until the process ends; it tells its address when it is ready.
fn serve<F, R>(name: &'static str, role: R) -> Outcome<Server>
where
    F: Future<Output = Outcome<()>>,
    R: FnOnce(mpsc::Sender<SocketAddr>) -> F + Send + 'static,
{
    let (tell, told) = mpsc::channel();
    let (tell_thread, told_thread) = mpsc::channel();
    thread::Builder::new().name(name.into()).spawn(move || {
        let run = || -> Outcome<()> {
            let this = std::fs::read_link("/proc/thread-self")?;
            tell_thread.send(this)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(role(tell))
        };
        if let Err(error) = run() {
            eprintln!("{name}: {error}");
        }
    })?;
    let patience = Duration::from_secs(20);
    let this = told_thread.recv_timeout(patience)?;
    Ok(Server {
        address: told.recv_timeout(patience)?,
        schedstat: PathBuf::from("/proc").join(this).join("schedstat"),
    })
}

impl Server {
    fn cpu(&self) -> Outcome<Duration> {
        let text = std::fs::read_to_string(&self.schedstat)?;
        let nanos = text.split(' ').next().unwrap_or_default().parse()?;
        Ok(Duration::from_nanos(nanos))
    }
}

async fn bare(body: Bytes, told: mpsc::Sender<SocketAddr>) -> Outcome<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    told.send(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let body = body.clone();
        tokio::spawn(async move {
            let answer = service_fn(|_| {
                let mut answer = http::Response::new(Full::new(body.clone()));
                let json = http::HeaderValue::from_static("application/json; charset=utf-8");
                answer.headers_mut().insert("content-type", json);
                async { Ok::<_, Infallible>(answer) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

async fn node_agent(surroundings: SocketAddr, told: mpsc::Sender<SocketAddr>) -> Outcome<()> {
    let config = Config {
        node: "node".into(),
        scope: Scope::Namespaced,
        assigned_first: true,
        pick_first: false,
        prefetch: Vec::new(),
        assignment_wait: Duration::from_secs(2),
        token_floor: Duration::from_secs(300),
        metadata_header_required: true,
        allowed_categories: Vec::new(),
        pod_requests: 1_000_000,
        host_token_socket: None,
        attestor: None,
        probe: ([127, 0, 0, 1], 0).into(),
        metrics: ([127, 0, 0, 1], 0).into(),
    };
    let base = format!("http://{surroundings}/");
    let client = kube::Client::try_from(kube::Config::new(base.parse()?))?;
    let url = podid_azure::clouds::url("surroundings", &base)?;
    let deadline = Duration::from_secs(5);
    let imds = Imds::new(&url, None, deadline);
    let upstream = Upstream::new(imds, Entra::new(&url, deadline)?, client.clone(), false);
    let (_active, active) = watch::channel(true);
    let nmi = Nmi::new(config, client, upstream, active);
    let door = TcpListener::bind("127.0.0.1:0")?;
    let address = door.local_addr()?;
    let listeners = nmi.bind(vec![door])?;
    told.send(address)?;
    Ok(nmi.run(listeners, CancellationToken::new()).await?)
}

/// An API server with one granted pod among many, and a metadata service.
async fn surroundings(pods: u32, told: mpsc::Sender<SocketAddr>) -> Outcome<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    told.send(listener.local_addr()?)?;
    let router = axum::Router::new().fallback(move |request: Request| async move {
        let query = request.uri().query().unwrap_or_default();
        if query.contains("watch=true") {
            return Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
        }
        let path = request.uri().path();
        let answer = if path.starts_with("/metadata") {
            // As long as real ones are.
            json!({ "access_token": "x".repeat(1600), "expires_in": "86400", "resource": RESOURCE, "token_type": "Bearer" })
        } else {
            let kind = path.rsplit('/').next().unwrap_or_default();
            json!({ "metadata": { "resourceVersion": "1" }, "items": objects(kind, pods) })
        };
        Body::from(answer.to_string())
    });
    Ok(axum::serve(listener, router).await?)
}

fn objects(kind: &str, pods: u32) -> Vec<Value> {
    let named = |name: &str| json!({ "namespace": "shop", "name": name });
    let custom = |kind: &str, spec: Value| {
        vec![json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": named("reader"), "spec": spec,
            "status": { "status": "Assigned" },
        })]
    };
    match kind {
        "pods" => (0..pods).map(pod).collect(),
        "azureidentities" => custom(
            "AzureIdentity",
            json!({
                "type": 0, "clientID": "6f1c0000-0000-0000-0000-0000000022ab",
                "resourceID": "/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader",
            }),
        ),
        "azureidentitybindings" => custom(
            "AzureIdentityBinding",
            json!({ "azureIdentity": "reader", "selector": "app" }),
        ),
        "azureassignedidentities" => custom(
            "AzureAssignedIdentity",
            json!({
                "pod": "pod-0", "podNamespace": "shop", "nodename": "node",
                "azureIdentityRef": { "metadata": named("reader") },
            }),
        ),
        _ => Vec::new(),
    }
}

/// The pod with number 0 is the client; the others fill the node.
fn pod(number: u32) -> Value {
    let ip = match number {
        0 => "127.0.0.1".to_owned(),
        n => format!("10.1.{}.{}", n / 250, n % 250 + 1),
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "shop", "name": format!("pod-{number}"), "uid": format!("uid-{number}"),
            "labels": { "aadpodidbinding": "app" },
        },
        "spec": { "nodeName": "node", "containers": [] },
        "status": { "phase": "Running", "podIP": ip },
    })
}

/// Asks until the watches have synced, and gives the body of the answer.
fn first_token(address: SocketAddr) -> Outcome<Vec<u8>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut client = Client::connect(address)?;
        let answer = client.ask()?;
        if answer.starts_with(b"HTTP/1.1 200") {
            let head = head_length(answer).ok_or("no head")?;
            return Ok(answer[head..].to_vec());
        }
        if Instant::now() > deadline {
            return Err(format!("no token: {}", String::from_utf8_lossy(answer)).into());
        }
        thread::yield_now();
    }
}

struct Figures {
    p50: Duration,
    p99: Duration,
    /// Requests per second over several connections.
    rate: f64,
    /// CPU time of the server's thread for one request, kernel included.
    cpu: Duration,
}

fn measure(server: &Server) -> Outcome<Figures> {
    let mut client = Client::connect(server.address)?;
    for _ in 0..WARM_UP {
        client.token()?;
    }
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let start = Instant::now();
        client.token()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let (cpu, start) = (server.cpu()?, Instant::now());
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(|| many(server.address, REQUESTS / CONNECTIONS)))
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| "a client panicked")?)
    })?;
    let took = start.elapsed();
    let cpu = server.cpu()? - cpu;
    Ok(Figures {
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
        rate: REQUESTS as f64 / took.as_secs_f64(),
        cpu: cpu / u32::try_from(REQUESTS)?,
    })
}

fn many(address: SocketAddr, requests: usize) -> Outcome<()> {
    let mut client = Client::connect(address)?;
    for _ in 0..requests {
        client.token()?;
    }
    Ok(())
}

/// A keep-alive connection that sends the same request again and again.
struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let request = format!(
            "GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource={RESOURCE} HTTP/1.1\r\n\
             Host: 169.254.169.254\r\nMetadata: true\r\nUser-Agent: bench\r\n\r\n"
        );
        Ok(Self {
            stream,
            request: request.into_bytes(),
            buffer: Vec::with_capacity(8192),
        })
    }

    /// One request and its whole answer.
    fn ask(&mut self) -> Outcome<&[u8]> {
        self.stream.write_all(&self.request)?;
        self.buffer.clear();
        let mut chunk = [0; 8192];
        let mut whole = usize::MAX;
        while self.buffer.len() < whole {
            let read = self.stream.read(&mut chunk)?;
            if read == 0 {
                return Err("the connection was closed".into());
            }
            self.buffer.extend_from_slice(&chunk[..read]);
            if whole == usize::MAX {
                whole = length(&self.buffer).unwrap_or(whole);
            }
        }
        Ok(&self.buffer)
    }

    /// One request that must be answered with a token: refusals would be fast and mean nothing.
    fn token(&mut self) -> Outcome<()> {
        let answer = self.ask()?;
        if answer.starts_with(b"HTTP/1.1 200") {
            Ok(())
        } else {
            Err(format!("no token: {}", String::from_utf8_lossy(answer)).into())
        }
    }
}

fn head_length(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// The length of the whole answer, once its head is there.
fn length(answer: &[u8]) -> Option<usize> {
    let head = head_length(answer)?;
    let text = std::str::from_utf8(&answer[..head]).ok()?;
    let stated = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    })?;
    Some(head + stated.trim().parse::<usize>().ok()?)
}
