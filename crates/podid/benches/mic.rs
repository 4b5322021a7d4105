//! What the controller costs a cluster: its memory and CPU, its calls to Azure, and how long pods wait, when 2,000 and then 8,000
//! pods come as fast as a real API server takes them, on 20 scale sets that take 0.2 s for a change; and then at rest.
//!
//! `cargo bench -p podid --bench mic`. `PODS` (2000,8000) and `REST` (60, in seconds) change its size. It needs kube-apiserver
//! and etcd (`tools/setup`), runs on this machine's loopback, ends by itself, and fails where a goal is missed.

// A benchmark is a program that prints.
#![allow(clippy::print_stdout)]
#![allow(clippy::unwrap_used, reason = "what it shares with the tests")]

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client};
use podid_api::assigned::AzureAssignedIdentity;
use podid_cluster::lenient::Lenient;
use podid_cluster::watch::{Change, WatchStatus};
use podid_sim::azure::{self, Control, HostKind};
use podid_testkit::apiserver::ApiServer;
use podid_testkit::process::{Process, command};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[path = "../tests/world/azure.rs"]
mod shared;

use shared::GROUP;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SETS: usize = 20;
const NODES: usize = 100;
const IDENTITIES: usize = 100;
const PATCH_TAKES: Duration = Duration::from_millis(200);
/// Requests in flight while pods are created.
const AT_ONCE: usize = 32;
/// Time limit for a phase of the benchmark.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(120);
/// All pods must have their identities so soon after the last was created.
const SOON: Duration = Duration::from_secs(5);
/// `/proc` counts CPU time in these.
const TICKS: f64 = 100.0;

/// An AzureAssignedIdentity, as far as it is counted.
#[derive(kube::Resource, Debug, Clone, Deserialize)]
#[resource(inherit = "AzureAssignedIdentity")]
struct Counted {
    metadata: ObjectMeta,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Status {
    status: String,
}

/// What a size has cost.
struct Figures {
    pods: usize,
    created: Duration,
    waited: Duration,
    memory: (f64, f64),
    cpu: f64,
    rest: f64,
    patches: usize,
    gets: usize,
    /// Writes of AzureAssignedIdentities and of Events.
    writes: (f64, f64),
    /// The memory of a controller that begins when all the pods are there, at its peak.
    successor: f64,
}

fn main() -> Outcome<()> {
    // Test runs build and start benchmarks too; only `cargo bench` says this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or(default.to_owned());
    let rest = Duration::from_secs(setting("REST", "60").parse()?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut all = Vec::new();
    for size in setting("PODS", "2000,8000").split(',') {
        all.push(runtime.block_on(measure(size.parse()?, rest))?);
    }
    let profile = if cfg!(debug_assertions) {
        "; DEBUG BUILD: these figures say nothing"
    } else {
        ""
    };
    println!(
        "{SETS} scale sets, {NODES} nodes, {IDENTITIES} identities, a PATCH takes {} ms{profile}\n",
        PATCH_TAKES.as_millis()
    );
    show(&all, rest)
}

fn show(all: &[Figures], rest: Duration) -> Outcome<()> {
    type Read = fn(&Figures) -> f64;
    let lines: [(String, Read, Option<Read>); 12] = [
        (
            "pods created, a second".into(),
            |f| f.pods as f64 / f.created.as_secs_f64(),
            None,
        ),
        (
            "last pod created to all Assigned, s".into(),
            |f| f.waited.as_secs_f64(),
            Some(|_| SOON.as_secs_f64()),
        ),
        (
            "PATCHes".into(),
            |f| f.patches as f64,
            Some(|f| if f.pods > 2000 { 40.0 } else { 20.0 }),
        ),
        ("GETs".into(), |f| f.gets as f64, Some(|_| SETS as f64)),
        (
            "AzureAssignedIdentity writes for a pod".into(),
            |f| f.writes.0 / f.pods as f64,
            None,
        ),
        (
            "Event writes for a pod".into(),
            |f| f.writes.1 / f.pods as f64,
            None,
        ),
        (
            "memory of a successor, MiB".into(),
            |f| f.successor,
            Some(|f| if f.pods > 2000 { 90.0 } else { 30.0 }),
        ),
        (
            "memory at its peak, MiB".into(),
            |f| f.memory.0,
            Some(|f| if f.pods > 2000 { 90.0 } else { 30.0 }),
        ),
        ("memory at rest, MiB".into(), |f| f.memory.1, None),
        ("CPU until all are Assigned, s".into(), |f| f.cpu, None),
        (
            "CPU for a pod, ms".into(),
            |f| f.cpu * 1e3 / f.pods as f64,
            None,
        ),
        (
            format!("CPU in {} s of rest, ms", rest.as_secs()),
            |f| f.rest * 1e3,
            Some(|_| 300.0),
        ),
    ];
    let head: String = all
        .iter()
        .map(|f| format!("{:>16}{:>8}", f.pods, "goal"))
        .collect();
    println!("{:<40}{head}", "pods");
    let mut missed = Vec::new();
    for (what, read, goal) in lines {
        let mut line = format!("{what:<40}");
        for figures in all {
            let (value, goal) = (read(figures), goal.map(|goal| goal(figures)));
            let said = goal.map_or(String::new(), |goal| format!("≤ {goal}"));
            line += &format!("{value:>16.2}{said:>8}");
            if goal.is_some_and(|goal| value > goal) {
                missed.push(format!("{what} with {} pods", figures.pods));
            }
        }
        println!("{line}");
    }
    if missed.is_empty() {
        return Ok(());
    }
    Err(format!("missed: {}", missed.join("; ")).into())
}

async fn measure(pods: usize, rest: Duration) -> Outcome<Figures> {
    let folder = tempfile::tempdir()?;
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let server = ApiServer::start().await?;
    server.install_crds().await?;
    let client = server.client().await?;
    let azure = shared::start(azure::Config {
        patch_latency: PATCH_TAKES,
        ..azure::Config::default()
    })
    .await;
    shared::write_azure(folder.path(), &azure);
    let control = azure.control.clone();
    furnish(&client, &control).await?;
    let mic = start(folder.path(), &server)?;
    wait_for(&mic, "leading").await?;
    let assigned = count(&client, stop.clone());

    let started = Instant::now();
    create(&client, pods).await?;
    let created = started.elapsed();
    let (waited, cpu) = until_assigned(&mic, assigned, pods).await?;
    let arm = |method: &str| {
        let journal = control.journal();
        let of_hosts = journal
            .iter()
            .filter(|entry| entry.path.contains("/virtualMachineScaleSets/"));
        of_hosts.filter(|entry| entry.method == method).count()
    };
    let (patches, gets) = (arm("PATCH"), arm("GET"));
    // What still has to be written, as Events, is not rest.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = self::cpu(&mic)?;
    tokio::time::sleep(rest).await;
    let rest = self::cpu(&mic)? - before;
    let writes = writes(&client).await?;
    let at_rest = (memory(&mic, "VmHWM:")?, memory(&mic, "VmRSS:")?);
    drop(mic);
    let mic = start(folder.path(), &server)?;
    wait_for(&mic, "leading").await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    Ok(Figures {
        pods,
        created,
        waited,
        memory: at_rest,
        cpu,
        rest,
        patches,
        gets,
        writes,
        successor: memory(&mic, "VmHWM:")?,
    })
}

/// How many AzureAssignedIdentities and Events the API server has been asked to write.
async fn writes(client: &Client) -> Outcome<(f64, f64)> {
    let metrics = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(metrics).await?;
    let verbs = ["POST", "PATCH", "PUT", "DELETE"].map(|verb| format!("verb=\"{verb}\""));
    let of = |resource: &str| {
        let resource = format!("resource=\"{resource}\"");
        let requests = text.lines().filter(|line| {
            line.starts_with("apiserver_request_total{")
                && line.contains(&resource)
                && verbs.iter().any(|verb| line.contains(verb))
        });
        let counts = requests.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counts.sum::<f64>()
    };
    Ok((of("azureassignedidentities"), of("events")))
}

/// Nodes, identities and their bindings, in Azure and in the cluster.
async fn furnish(client: &Client, azure: &Control) -> Outcome<()> {
    let sets: Vec<String> = (0..SETS)
        .map(|n| azure.create_host(HostKind::ScaleSet, GROUP, &format!("aks-pool{n}-vmss")))
        .collect();
    for n in 0..NODES {
        let provider = format!("azure://{}/virtualMachines/{}", sets[n % SETS], n / SETS);
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": node(n) }, "spec": { "providerID": provider },
        });
        post(client, "/api/v1/nodes", &node).await?;
    }
    let group = "/apis/aadpodidentity.k8s.io/v1/namespaces/default";
    for n in 0..IDENTITIES {
        let name = format!("identity-{n}");
        let made = azure.create_identity(GROUP, &name);
        let identity = json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": { "name": name },
            "spec": { "type": 0, "resourceID": made.id, "clientID": made.client_id },
        });
        post(client, &format!("{group}/azureidentities"), &identity).await?;
        let binding = json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": { "name": format!("binding-{n}") },
            "spec": { "azureIdentity": name, "selector": format!("app-{n}") },
        });
        post(client, &format!("{group}/azureidentitybindings"), &binding).await?;
    }
    Ok(())
}

fn node(n: usize) -> String {
    format!("aks-pool{}-vmss{:06}", n % SETS, n / SETS)
}

/// Starts `podid mic` as an application that may change hosts and assign identities.
fn start(folder: &Path, server: &ApiServer) -> Outcome<Process> {
    let (config, endpoints) = (folder.join("azure.json"), folder.join("cloud.json"));
    let mut mic = command(None, env!("CARGO_BIN_EXE_podid"));
    mic.args([
        "mic",
        "--http-probe-port=0",
        "--prometheus-port=0",
        "--namespace=default",
    ])
    .arg(format!("--cloudconfig={}", config.display()))
    .arg(format!("--kubeconfig={}", server.kubeconfig().display()))
    .env("AZURE_ENVIRONMENT_FILEPATH", endpoints);
    Ok(Process::spawn(mic, &folder.join("mic.log"))?)
}

async fn wait_for(mic: &Process, text: &str) -> Outcome<()> {
    let started = Instant::now();
    while !mic.log().contains(text) {
        if mic.has_ended() || started.elapsed() > CONDITION_TIMEOUT {
            return Err(format!("the controller does not say {text:?}: {}", mic.log()).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Pods as fast as the API server takes them, of one application after the other, spread over all nodes.
async fn create(client: &Client, pods: usize) -> Outcome<()> {
    let requests = futures::stream::iter(0..pods).map(|n| async move {
        let application = n / SETS % IDENTITIES;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("app-{application}-5f6d8c9b7-{n:06}"),
                "labels": { "aadpodidbinding": format!("app-{application}"), "app": "web", "pod-template-hash": "5f6d8c9b7" },
            },
            "spec": { "nodeName": node(n % NODES), "containers": [{ "name": "app", "image": "app" }] },
        });
        post(client, "/api/v1/namespaces/default/pods", &pod).await
    });
    requests.buffer_unordered(AT_ONCE).try_collect().await
}

async fn post(client: &Client, path: &str, body: &Value) -> Outcome<()> {
    let request = http::Request::post(path).header("content-type", "application/json");
    client
        .request_text(request.body(body.to_string().into_bytes())?)
        .await?;
    Ok(())
}

/// Counts the AzureAssignedIdentities that are Assigned.
fn count(client: &Client, stop: CancellationToken) -> watch::Receiver<usize> {
    let api: Api<Lenient<Counted>> = Api::all(client.clone());
    let (tell, told) = watch::channel(0);
    let mut assigned = HashSet::new();
    let sink = move |change| {
        if let Change::Applied(Counted { metadata, status }) = change
            && status.status == "Assigned"
            && assigned.insert(metadata.name)
        {
            tell.send_replace(assigned.len());
        }
    };
    let (health, _) = watch::channel(WatchStatus::default());
    tokio::spawn(podid_cluster::watch::watch(
        api,
        watcher::Config::default(),
        sink,
        health,
        stop,
    ));
    told
}

/// How long it took, and the CPU time of the controller until then.
async fn until_assigned(
    mic: &Process,
    mut assigned: watch::Receiver<usize>,
    pods: usize,
) -> Outcome<(Duration, f64)> {
    let started = Instant::now();
    let all = assigned.wait_for(|assigned| *assigned == pods);
    let reached = tokio::time::timeout(CONDITION_TIMEOUT, all).await.is_ok();
    if !reached {
        return Err(format!(
            "{} of {pods} are Assigned: {}",
            *assigned.borrow(),
            mic.log()
        )
        .into());
    }
    Ok((started.elapsed(), cpu(mic)?))
}

/// The CPU time of the controller, in seconds.
fn cpu(mic: &Process) -> Outcome<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", mic.pid()))?;
    let fields = text.rsplit(") ").next().unwrap_or_default();
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS)
}

/// A field of the controller's memory, in MiB.
fn memory(mic: &Process, field: &str) -> Outcome<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", mic.pid()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.ok_or("no such field")?.trim_end_matches("kB").trim();
    Ok(number.parse::<f64>()? / 1024.0)
}
