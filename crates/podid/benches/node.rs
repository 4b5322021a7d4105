//! What the node agent costs its node: its memory with 250 pods at rest, at 200 requests a second, with a connection of every pod
//! open, and over many requests on those, which must not make it grow.
//!
//! `cargo bench -p podid --no-default-features --bench node`, as nodes run it. `PODS` (250) and `REQUESTS` (300,000; ten million
//! take some minutes) change its size. Everything is on this machine's loopback, and ends by itself.

// A benchmark is a program that prints.
#![allow(clippy::print_stdout)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::Client;
use podid_sim::azure::{self, Azure, HostKind};
use podid_sim::cluster::{self, Cluster};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const REQUEST: &[u8] = b"GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n";
/// Time limit for a node agent to answer its first request, and for one answer.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests a second, and for how long, as a busy node has them.
const BUSY: (u32, Duration) = (200, Duration::from_secs(10));
const CLIENTS: u64 = 4;

/// The node agent, ended with this.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> Outcome<()> {
    // Test runs build and start benchmarks too; only `cargo bench` says this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let number =
        |name: &str, default: u64| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (pods, requests) = (number("PODS", 250)?, number("REQUESTS", 300_000)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let folder = tempfile::tempdir()?;
    let stop = CancellationToken::new();
    let (kubeconfig, imds) = runtime.block_on(surroundings(folder.path(), pods, stop.clone()))?;
    let (agent, door) = start(&kubeconfig, imds)?;
    wait(door)?;
    let profile = if cfg!(debug_assertions) {
        "; DEBUG BUILD: these figures say nothing"
    } else {
        ""
    };
    println!("{pods} pods on the node{profile}\n");
    println!(
        "{:<44}{:>12}{:>12}{:>12}",
        "", "all", "anonymous", "of files"
    );
    show("at rest", &agent)?;
    trickle(door, pods)?;
    show(
        &format!("after {} s at {} requests/s", BUSY.1.as_secs(), BUSY.0),
        &agent,
    )?;
    let open = open(door, pods)?;
    show(&format!("with {pods} connections open"), &agent)?;
    for quarter in 1..=4 {
        let took = flood(&open, requests / 4)?;
        let rate = (requests / 4) as f64 / took.as_secs_f64();
        show(
            &format!("after {} requests ({rate:.0}/s)", quarter * requests / 4),
            &agent,
        )?;
    }
    stop.cancel();
    Ok(())
}

/// A simulated API server with the pods, and a simulated metadata service.
async fn surroundings(
    folder: &Path,
    pods: u64,
    stop: CancellationToken,
) -> Outcome<(std::path::PathBuf, SocketAddr)> {
    let azure = Azure::bind(azure::Config::default()).await?;
    let control = azure.control();
    let set = control.create_host(HostKind::ScaleSet, "rg", "pool1");
    let reader = control.create_identity("rg", "reader");
    control.attach(&set, &reader);
    let imds = control
        .serve_imds(&set, Some(0), (Ipv4Addr::LOCALHOST, 0).into())
        .await?;
    tokio::spawn(azure.run(stop.clone()));
    let cluster = Cluster::bind(cluster::Config::default()).await?;
    let kubeconfig = folder.join("kubeconfig");
    std::fs::write(&kubeconfig, cluster.kubeconfig())?;
    let config = kube::config::Kubeconfig::from_yaml(&cluster.kubeconfig())?;
    tokio::spawn(cluster.run(stop));
    let options = kube::config::KubeConfigOptions::default();
    let client = Client::try_from(kube::Config::from_custom_kubeconfig(config, &options).await?)?;
    for definition in podid_api::crds::all()? {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        send(&client, "POST", path, &serde_json::to_value(&definition)?).await?;
    }
    let group = "/apis/aadpodidentity.k8s.io/v1/namespaces/default";
    let identity = json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": { "name": "reader" },
        "spec": { "type": 0, "resourceID": reader.id, "clientID": reader.client_id },
    });
    send(
        &client,
        "POST",
        &format!("{group}/azureidentities"),
        &identity,
    )
    .await?;
    let binding = json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": { "name": "app" },
        "spec": { "azureIdentity": "reader", "selector": "app" },
    });
    send(
        &client,
        "POST",
        &format!("{group}/azureidentitybindings"),
        &binding,
    )
    .await?;
    for pod in 0..pods {
        register(&client, pod).await?;
    }
    Ok((kubeconfig, imds))
}

async fn register(client: &Client, n: u64) -> Outcome<()> {
    let name = format!("web-{n}-7d4b9c");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "aadpodidbinding": "app", "app": "web", "pod-template-hash": "7d4b9c" } },
        "spec": { "nodeName": "node", "containers": [{ "name": "app", "image": "app" }] },
    });
    let path = "/api/v1/namespaces/default/pods";
    send(client, "POST", path, &pod).await?;
    let status = json!({ "status": { "phase": "Running", "podIP": address(n) } });
    send(client, "PATCH", &format!("{path}/{name}/status"), &status).await
}

async fn send(client: &Client, method: &str, path: &str, body: &Value) -> Outcome<()> {
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind);
    client
        .request::<Value>(request.body(body.to_string().into_bytes())?)
        .await?;
    Ok(())
}

/// All of 127.0.0.0/8 is this machine.
fn address(pod: u64) -> Ipv4Addr {
    let [.., high, low] = pod.to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

fn start(kubeconfig: &Path, imds: SocketAddr) -> Outcome<(Agent, SocketAddr)> {
    let free = || -> Outcome<u16> {
        Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port())
    };
    let (door, probe, metrics) = (free()?, free()?, free()?);
    let child = Command::new(env!("CARGO_BIN_EXE_podid"))
        .args([
            "nmi",
            "--node=node",
            "--operation-mode=managed",
            "--interception=none",
            "--attest=address",
        ])
        .args([
            "--handover-socket=",
            &format!("--metadata-ip={}", imds.ip()),
            &format!("--metadata-port={}", imds.port()),
        ])
        .arg(format!("--nmi-port={door}"))
        .arg(format!("--http-probe-port={probe}"))
        .arg(format!("--prometheus-port={metrics}"))
        .env("KUBECONFIG", kubeconfig)
        .stderr(Stdio::null())
        .spawn()?;
    Ok((Agent(child), (Ipv4Addr::LOCALHOST, door).into()))
}

fn wait(door: SocketAddr) -> Outcome<()> {
    let started = Instant::now();
    while connect(door, 0).and_then(|stream| ask(&stream)).is_err() {
        if started.elapsed() > START_TIMEOUT {
            return Err("the node agent does not give a token".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn connect(door: SocketAddr, pod: u64) -> Outcome<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(address(pod)), 0).into())?;
    socket.connect(&door.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(START_TIMEOUT))?;
    Ok(socket.into())
}

fn ask(stream: &TcpStream) -> Outcome<()> {
    match exchange(stream)? {
        200 => Ok(()),
        status => Err(format!("no token, but {status}").into()),
    }
}

/// A request and its whole answer, whose status this gives: beyond its rate a pod is refused, which is a request all the same.
fn exchange(mut stream: &TcpStream) -> Outcome<u16> {
    stream.write_all(REQUEST)?;
    let mut bytes = [0; 16 * 1024];
    let mut read = 0;
    // The body ends with a field that is text.
    while !bytes[..read].ends_with(b"\"}") {
        match stream.read(&mut bytes[read..])? {
            0 => return Err("the connection was closed".into()),
            more => read += more,
        }
    }
    let status = bytes.get(9..12).ok_or("no status")?;
    Ok(std::str::from_utf8(status)?.parse()?)
}

/// One pod after the other, each on a connection of its own.
fn trickle(door: SocketAddr, pods: u64) -> Outcome<()> {
    let started = Instant::now();
    for n in 0..u64::from(BUSY.0) * BUSY.1.as_secs() {
        ask(&connect(door, n % pods)?)?;
        let due = started + Duration::from_secs(n) / BUSY.0;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// A connection of every pod, by client; each has been used.
fn open(door: SocketAddr, pods: u64) -> Outcome<Vec<Vec<TcpStream>>> {
    let of = |client: u64| {
        (client..pods).step_by(CLIENTS as usize).map(|pod| {
            let stream = connect(door, pod)?;
            ask(&stream)?;
            Ok(stream)
        })
    };
    (0..CLIENTS).map(|client| of(client).collect()).collect()
}

/// As many requests as the machine can do, over these connections. Each pod has its limit, so that the pods take turns.
fn flood(open: &[Vec<TcpStream>], requests: u64) -> Outcome<Duration> {
    let started = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = open
            .iter()
            .map(|mine| {
                scope.spawn(move || {
                    for stream in mine.iter().cycle().take((requests / CLIENTS) as usize) {
                        exchange(stream)?;
                    }
                    Outcome::Ok(())
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| "a client panicked")?)
    })?;
    Ok(started.elapsed())
}

fn show(when: &str, agent: &Agent) -> Outcome<()> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.0.id()))?;
    let field = |name: &str| -> Outcome<f64> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .ok_or("no such field")?;
        Ok(line.trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    };
    let (all, anonymous, files) = (field("VmRSS:")?, field("RssAnon:")?, field("RssFile:")?);
    println!("{when:<44}{all:>8.1} MiB{anonymous:>8.1} MiB{files:>8.1} MiB");
    Ok(())
}
