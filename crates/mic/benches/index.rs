//! Benchmark of the index: what an event costs the controller by the size of the cluster, without the API server and Azure. The cluster
//! has 5,000 nodes in 100 scale sets, 2,000 identities with a binding each, and 1,000 to 100,000 pods.
//!
//! `cargo bench -p podid-mic --bench index`. Each size runs in a process of its own, so that its memory can be measured. The benchmark
//! fails when an event costs much more in a big cluster than in a small one.

// A benchmark is a program that prints.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use podid_mic::bench::{OfflineController, Work};
use podid_policy::facts::{
    BindingFacts, IdentityFacts, IdentitySource, ObjectKey, PodFacts, PodPhase,
};
use podid_policy::ids::{ClientId, ResourceId};
use podid_policy::matching::BINDING_LABEL;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
const NODES: usize = 5_000;
const SETS: usize = 100;
const IDENTITIES: usize = 2_000;
const NAMESPACES: usize = 100;
/// The pods of an identity run on 5 scale sets.
const SPREAD: usize = 5;
/// The binding that is edited selects 5 pods in a cluster of any size.
const FEW: usize = 5;
/// Each kind of event is measured in 20 batches, of which the fastest counts.
const BATCHES: usize = 20;
/// A batch has 100 events.
const BATCH: usize = 100;
/// An event may cost three times as much at the largest size as at the smallest, because caches miss more often.
const TOLERANCE: f64 = 3.0;

/// What is measured of one size: what it is, its unit, and whether it must not grow with the size.
const FIGURES: [(&str, &str, bool); 10] = [
    ("first list, CPU", "ms", false),
    ("first plan, CPU", "ms", false),
    ("memory", "MiB", false),
    ("memory of a pod", "bytes", false),
    ("pod added", "µs", true),
    ("pod deleted", "µs", true),
    ("pod changed irrelevantly", "µs", true),
    ("binding of 5 pods edited", "µs", true),
    ("new identity on a host", "µs", false),
    ("comparison of a host, CPU", "µs", false),
];

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [size, _] = arguments.as_slice()
        && let Some(pods) = size.strip_prefix("--pods=")
    {
        for figure in measure(pods.parse()?)? {
            println!("{figure}");
        }
        return Ok(());
    }
    // Test runs start benchmarks, too; only `cargo bench` gives this argument.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let sizes = SIZES.map(measure_in_process);
    let [small, middle, large] = sizes;
    let (small, middle, large) = (small?, middle?, large?);
    let profile = if cfg!(debug_assertions) {
        "; DEBUG BUILD: these figures say nothing"
    } else {
        ""
    };
    println!("{NODES} nodes in {SETS} scale sets, {IDENTITIES} identities{profile}\n");
    println!(
        "{:<40}{:>12}{:>12}{:>12}",
        "pods", SIZES[0], SIZES[1], SIZES[2]
    );
    let mut grown = Vec::new();
    for (n, (what, unit, level)) in FIGURES.into_iter().enumerate() {
        let what = format!("{what}, {unit}");
        println!(
            "{what:<40}{:>12.2}{:>12.2}{:>12.2}",
            small[n], middle[n], large[n]
        );
        if level && large[n] > small[n] * TOLERANCE {
            grown.push(what);
        }
    }
    if grown.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the cost depends on the size of the cluster: {}",
        grown.join("; ")
    )
    .into())
}

/// Measures one size in a process of its own.
fn measure_in_process(pods: usize) -> Outcome<Vec<f64>> {
    let output = Command::new(std::env::current_exe()?)
        .args([format!("--pods={pods}"), "apart".to_owned()])
        .output()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{pods} pods: {errors}").into());
    }
    let figures = String::from_utf8(output.stdout)?;
    Ok(figures.lines().map(str::parse).collect::<Result<_, _>>()?)
}

fn measure(pods: usize) -> Outcome<Vec<f64>> {
    let mut controller = OfflineController::default();
    fill(&mut controller)?;
    let (empty, before) = (memory()?, cpu()?);
    for n in 0..pods {
        controller.pod(pod(n));
    }
    let listed = cpu()?;
    let planned = controller.lead();
    let led = cpu()?;
    // The pods of the binding that is edited count, too.
    let all = pods + FEW;
    if controller.objects() != all || planned.writes < all {
        return Err(format!("{} objects, {planned:?}", controller.objects()).into());
    }
    let grown = memory()? - empty;
    let mut figures = vec![
        millis(listed - before),
        millis(led - listed),
        memory()? as f64 / 1024.0 / 1024.0,
        grown as f64 / all as f64,
    ];
    let one = |work: Work| work.looked_at <= 4 && work.woken == 0;
    figures.push(events(one, |n| controller.pod(another(n)))?);
    figures.push(events(one, |n| controller.delete_pod(&another(n).key))?);
    let none = |work| work == Work::default();
    figures.push(events(none, |n| controller.pod(pod(n % pods)))?);
    let few = |work: Work| work.writes == FEW && work.woken == 0;
    figures.push(events(few, |n| {
        controller.binding(edited(1 + i32::try_from(n % 2).unwrap_or_default()))
    })?);
    let changed = |work: Work| work.changes >= 1 && work.woken <= 2;
    figures.push(events(changed, |n| controller.pod(newcomer(n)))?);
    let before = cpu()?;
    let work = controller.compare();
    figures.push(micros(cpu()? - before) / work.woken as f64);
    Ok(figures)
}

/// What an event costs, in microseconds: the mean of the fastest batch, which other processes disturb least. An event that causes more
/// work than `expected` allows is an error.
fn events(expected: impl Fn(Work) -> bool, mut event: impl FnMut(usize) -> Work) -> Outcome<f64> {
    let mut best = Duration::MAX;
    for batch in 0..BATCHES {
        let started = Instant::now();
        for n in batch * BATCH..(batch + 1) * BATCH {
            let work = event(n);
            if !expected(work) {
                return Err(format!("event {n} led to {work:?}").into());
            }
        }
        best = best.min(started.elapsed());
    }
    Ok(micros(best) / BATCH as f64)
}

fn fill(controller: &mut OfflineController) -> Outcome<()> {
    for n in 0..NODES {
        let (set, instance) = (n % SETS, n / SETS);
        controller.node(&node(n), &format!("azure:///subscriptions/5d1a0000-0000-4000-8000-00000000aaaa/resourceGroups/nodes/providers/Microsoft.Compute/virtualMachineScaleSets/aks-pool{set}-31045872-vmss/virtualMachines/{instance}"));
    }
    for n in 0..IDENTITIES {
        let namespace = namespace(n);
        controller.identity(identity(&namespace, &format!("identity-{n}"))?);
        controller.binding(BindingFacts {
            key: ObjectKey::new(&namespace, &format!("binding-{n}")),
            identity: format!("identity-{n}").into(),
            selector: format!("app-{n}").into(),
            weight: 0,
            service_accounts: Vec::new(),
        });
    }
    controller.identity(identity("few", "few")?);
    controller.binding(edited(0));
    for n in 0..FEW {
        controller.pod(facts("few", &format!("few-{n}"), "few", n));
    }
    Ok(())
}

fn identity(namespace: &str, name: &str) -> Outcome<IdentityFacts> {
    Ok(IdentityFacts {
        key: ObjectKey::new(namespace, name),
        client_id: ClientId::parse("00000000-0000-4000-8000-00000000c11e")?,
        source: IdentitySource::UserAssigned {
            resource_id: ResourceId::parse(&format!(
                "/subscriptions/5d1a0000-0000-4000-8000-00000000aaaa/resourceGroups/identities/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
            ))?,
        },
        namespaced: false,
    })
}

fn edited(weight: i32) -> BindingFacts {
    BindingFacts {
        key: ObjectKey::new("few", "few"),
        identity: "few".into(),
        selector: "few".into(),
        weight,
        service_accounts: Vec::new(),
    }
}

fn namespace(identity: usize) -> String {
    format!("team-{}", identity % NAMESPACES)
}

fn node(n: usize) -> String {
    format!("aks-pool{}-31045872-vmss{:06}", n % SETS, n / SETS)
}

/// Pod `n` of the cluster.
fn pod(n: usize) -> PodFacts {
    let identity = n % IDENTITIES;
    let set = (identity + n / IDENTITIES % SPREAD) % SETS;
    let instance = n / 7 % (NODES / SETS);
    let name = format!("app-{identity}-5f6d8c9b7-{n:06}");
    let selector = format!("app-{identity}");
    facts(
        &namespace(identity),
        &name,
        &selector,
        set + SETS * instance,
    )
}

/// A pod whose identity is on its host already in a cluster of any size.
fn another(n: usize) -> PodFacts {
    let identity = n % SIZES[0];
    let name = format!("another-{n:06}");
    let selector = format!("app-{identity}");
    facts(&namespace(identity), &name, &selector, identity % SETS)
}

/// A pod whose identity is not yet on its host.
fn newcomer(n: usize) -> PodFacts {
    let identity = n % IDENTITIES;
    let set = (identity + SPREAD + 1 + n / IDENTITIES) % SETS;
    let name = format!("newcomer-{n:06}");
    let selector = format!("app-{identity}");
    facts(&namespace(identity), &name, &selector, set)
}

fn facts(namespace: &str, name: &str, selector: &str, on: usize) -> PodFacts {
    PodFacts {
        key: ObjectKey::new(namespace, name),
        uid: format!("6b1f0c2e-0000-4000-8000-{on:012}").into(),
        labels: BTreeMap::from([(BINDING_LABEL.to_owned(), selector.to_owned())]),
        service_account: "default".into(),
        node: Some(node(on).into()),
        addresses: Vec::new(),
        host_network: false,
        phase: PodPhase::Live,
    }
}

/// The CPU time of this thread, exact to some milliseconds.
fn cpu() -> Outcome<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let spent = text.split(' ').next().unwrap_or_default();
    Ok(Duration::from_nanos(spent.parse()?))
}

/// The resident memory of this process, in bytes.
fn memory() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.ok_or("no VmRSS")?.trim_end_matches("kB").trim();
    Ok(number.parse::<u64>()? * 1024)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
