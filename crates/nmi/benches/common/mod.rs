//! What the benchmarks of requests have in common: servers on threads of their own, whose CPU time the kernel counts, and clients.

#![allow(dead_code, reason = "not every benchmark needs all of it")]

use std::collections::HashSet;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use podid_azure::entra::Entra;
use podid_azure::imds::Imds;
use podid_nmi::{Config, Nmi, Upstream};
use podid_policy::matching::Scope;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

pub const RESOURCE: &str = "https://vault.azure.net";
/// Pods share so many identities.
pub const IDENTITIES: u32 = 20;

pub struct Server {
    pub address: SocketAddr,
    /// Where the kernel counts the nanoseconds that its thread was on a CPU.
    schedstat: PathBuf,
}

/// Runs `role` on a thread of its own until the process ends; it tells its address when it is ready.
pub fn serve<F, R>(name: &'static str, role: R) -> Outcome<Server>
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
    pub fn cpu(&self) -> Outcome<Duration> {
        let text = std::fs::read_to_string(&self.schedstat)?;
        let nanos = text.split(' ').next().unwrap_or_default().parse()?;
        Ok(Duration::from_nanos(nanos))
    }
}

pub async fn bare(body: Bytes, told: mpsc::Sender<SocketAddr>) -> Outcome<()> {
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

pub async fn node_agent(surroundings: SocketAddr, told: mpsc::Sender<SocketAddr>) -> Outcome<()> {
    let config = Config {
        node: "node".into(),
        scope: Scope::Namespaced,
        assigned_first: false,
        pick_first: false,
        prefetch: Vec::new(),
        assignment_wait: Duration::from_secs(2),
        token_floor: Duration::from_secs(300),
        metadata_header_required: true,
        allowed_categories: Vec::new(),
        pod_requests: 1_000_000,
        host_token_socket: None,
        host_token_loopback: false,
        attestor: None,
        probe: ([127, 0, 0, 1], 0).into(),
        metrics: ([127, 0, 0, 1], 0).into(),
    };
    let base = format!("http://{surroundings}/");
    let client = kube::Client::try_from(kube::Config::new(base.parse()?))?;
    let url = podid_azure::clouds::parse_url("surroundings", &base)?;
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

/// An API server with pods that are granted identities, and a metadata service that counts what it is asked for.
pub async fn surroundings(
    pods: u32,
    trips: Arc<AtomicUsize>,
    told: mpsc::Sender<SocketAddr>,
) -> Outcome<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    told.send(listener.local_addr()?)?;
    let seen = Arc::<Mutex<HashSet<String>>>::default();
    let router = axum::Router::new().fallback(move |request: Request| {
        let (trips, seen) = (Arc::clone(&trips), Arc::clone(&seen));
        async move { answer(&request, pods, &trips, &seen) }
    });
    Ok(axum::serve(listener, router).await?)
}

fn answer(
    request: &Request,
    pods: u32,
    trips: &AtomicUsize,
    seen: &Mutex<HashSet<String>>,
) -> Body {
    let query = request.uri().query().unwrap_or_default();
    if query.contains("watch=true") {
        return Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
    }
    let path = request.uri().path();
    let answer = if path.starts_with("/metadata") {
        trips.fetch_add(1, Ordering::SeqCst);
        // As long as real ones are. What is asked for as due is due at once, and then not again; a query names one identity.
        let due = query.contains("due") && seen.lock().insert(query.to_owned());
        json!({
            "access_token": "x".repeat(1600), "expires_in": "86400", "token_type": "Bearer",
            "refresh_in": if due { "0" } else { "43200" },
        })
    } else if query.contains("podIP") {
        json!({ "metadata": {}, "items": [] })
    } else {
        let kind = path.rsplit('/').next().unwrap_or_default();
        json!({ "metadata": { "resourceVersion": "1" }, "items": objects(kind, pods) })
    };
    Body::from(answer.to_string())
}

fn objects(kind: &str, pods: u32) -> Vec<Value> {
    match kind {
        "pods" => (0..pods).map(pod).collect(),
        "azureidentities" => (0..IDENTITIES)
            .map(|n| {
                let id = format!("/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-{n}");
                let client = format!("6f1c0000-0000-0000-0000-{n:012}");
                custom("AzureIdentity", n, &json!({ "type": 0, "clientID": client, "resourceID": id }))
            })
            .collect(),
        "azureidentitybindings" => (0..IDENTITIES)
            .map(|n| custom("AzureIdentityBinding", n, &json!({ "azureIdentity": format!("id-{n}"), "selector": format!("app-{n}") })))
            .collect(),
        _ => Vec::new(),
    }
}

fn custom(kind: &str, n: u32, spec: &Value) -> Value {
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind,
        "metadata": { "namespace": "shop", "name": format!("id-{n}") }, "spec": spec,
    })
}

/// The address of the pod with this number; all of 127.0.0.0/8 is this machine.
pub fn source(pod: u32) -> Ipv4Addr {
    let [.., high, low] = pod.to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

pub fn pod(number: u32) -> Value {
    let (ip, selector) = (source(number), number % IDENTITIES);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "shop", "name": format!("pod-{number}"), "uid": format!("uid-{number}"),
            "labels": { "aadpodidbinding": format!("app-{selector}") },
        },
        "spec": { "nodeName": "node", "containers": [] },
        "status": { "phase": "Running", "podIP": ip },
    })
}

/// Asks until the watches have synced, and gives the body of the answer.
pub fn first_token(address: SocketAddr) -> Outcome<Vec<u8>> {
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

/// A keep-alive connection that sends the same request again and again.
pub struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Outcome<Self> {
        Self::connect_as(source(0), address, RESOURCE)
    }

    /// A client with the address of a pod, that asks for a resource.
    pub fn connect_as(from: Ipv4Addr, address: SocketAddr, resource: &str) -> Outcome<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into())?;
        socket.connect(&address.into())?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let request = format!(
            "GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource} HTTP/1.1\r\n\
             Host: 169.254.169.254\r\nMetadata: true\r\nUser-Agent: bench\r\n\r\n"
        );
        Ok(Self {
            stream,
            request: request.into_bytes(),
            buffer: Vec::with_capacity(8192),
        })
    }

    /// One request and its whole answer.
    pub fn ask(&mut self) -> Outcome<&[u8]> {
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
    pub fn token(&mut self) -> Outcome<()> {
        let answer = self.ask()?;
        if answer.starts_with(b"HTTP/1.1 200") {
            Ok(())
        } else {
            Err(format!("no token: {}", String::from_utf8_lossy(answer)).into())
        }
    }
}

pub fn head_length(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// The length of the whole answer, once its head is there.
pub fn length(answer: &[u8]) -> Option<usize> {
    let head = head_length(answer)?;
    let text = std::str::from_utf8(&answer[..head]).ok()?;
    let stated = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    })?;
    Some(head + stated.trim().parse::<usize>().ok()?)
}
