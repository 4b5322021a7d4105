//! Alert rules and the dashboard: the real promtool takes them, each alert fires and does not fire when it should, and every
//! metric that they ask for is exported.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use podid_nmi::SourceError;
use podid_policy::facts::{IdentityFacts, IdentitySource, ObjectKey};
use podid_policy::ids::ClientId;
use podid_testkit::{ports, process, tools};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    tools::repository().join("deploy/monitoring")
}

fn promtool(arguments: &[&str]) -> Output {
    Command::new(tools::promtool().unwrap())
        .args(arguments)
        .current_dir(folder())
        .output()
        .unwrap()
}

#[test]
fn promtool_takes_the_rules_and_each_alert_fires_when_it_should() {
    for arguments in [
        ["check", "rules", "--lint=all", "alerts.yaml"].as_slice(),
        &["test", "rules", "alerts_test.yaml"],
    ] {
        let output = promtool(arguments);
        assert!(
            output.status.success(),
            "promtool {arguments:?}: {output:?}"
        );
    }
}

#[test]
fn every_alert_is_tried_in_both_directions_and_explained() {
    let read = |name: &str| std::fs::read_to_string(folder().join(name)).unwrap();
    let (rules, tried) = (read("alerts.yaml"), read("alerts_test.yaml"));
    let page = std::fs::read_to_string(tools::repository().join("docs/metrics.md")).unwrap();
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 5);
    for alert in alerts {
        assert!(
            tried.contains(&format!("alertname: {alert},")),
            "{alert} is not shown to be silent"
        );
        assert!(
            tried.contains(&format!("alertname=\"{alert}\"")),
            "{alert} is not shown to fire"
        );
        assert!(
            page.contains(&format!("### {alert}")),
            "docs/metrics.md does not say what to do about {alert}"
        );
    }
}

/// The names of metrics in a PromQL expression, without the suffixes that histograms add.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("podid_") || word.starts_with("aadpodidentity_"))
        .map(|word| {
            let bare = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| word.strip_suffix(suffix));
            match bare {
                Some(bare) if bare.ends_with("_seconds") => bare.to_owned(),
                _ => word.to_owned(),
            }
        })
        .collect()
}

fn exported() -> BTreeSet<String> {
    let text = format!("{}\n{}\n{}", node_agents(), controllers(), brokers());
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .flat_map(|line| {
            let mut words = line.split(' ');
            let (name, kind) = (words.next().unwrap().to_owned(), words.next().unwrap());
            // The format adds a suffix to counters that are declared without.
            let total = (kind == "counter").then(|| format!("{name}_total"));
            std::iter::once(name).chain(total)
        })
        .collect()
}

/// What a node agent exports once each of its metrics has something to tell.
fn node_agents() -> String {
    let metrics = podid_nmi::Metrics::default();
    metrics.answered(
        "token",
        200,
        "shop",
        "https://vault.azure.net",
        Duration::ZERO,
    );
    metrics.token("hit");
    metrics.refused("NoLabel");
    metrics.api_failed("get_pod_list");
    metrics.watch("Pod", &podid_cluster::watch::WatchStatus::default());
    let identity = IdentityFacts {
        key: ObjectKey::new("shop", "reader"),
        client_id: ClientId::parse("6f1c0000-0000-0000-0000-0000000022ab").unwrap(),
        source: IdentitySource::ServicePrincipal {
            certificate: false,
            tenant: "t".into(),
            auxiliary_tenants: Vec::new(),
            secret: ObjectKey::new("shop", "proof"),
            authority: None,
        },
        namespaced: false,
    };
    metrics.fetched(&identity, Duration::ZERO, Err(&SourceError::ShortLived));
    let (_keeper, state) = tokio::sync::watch::channel(podid_intercept::State::default());
    metrics.intercepted_by(state);
    metrics.text(0)
}

/// What a broker exports once each of its metrics has something to tell.
fn brokers() -> String {
    let metrics = podid_broker::Metrics::default();
    metrics.answered("token", "ok", Duration::ZERO);
    metrics.exchanged("ok", Duration::ZERO);
    metrics.watch("Pod", &podid_cluster::watch::WatchStatus::default());
    metrics.expires("authority", jiff::Timestamp::UNIX_EPOCH);
    metrics.text(0)
}

/// What a controller exports that has not even found its API server.
fn controllers() -> String {
    let [port] = ports::free_ports().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, NOWHERE).unwrap();
    let mut command = process::command(None, env!("CARGO_BIN_EXE_podid"));
    command
        .args([
            "mic",
            "--http-probe-port=0",
            &format!("--prometheus-port={port}"),
        ])
        .args(["--kubeconfig", kubeconfig.to_str().unwrap()])
        .env("USE_MSI", "true");
    let mic = process::Process::spawn(command, &folder.path().join("log")).unwrap();
    let started = Instant::now();
    loop {
        let url = format!("http://127.0.0.1:{port}/metrics");
        let output = Command::new("curl")
            .args(["-sf", "--noproxy", "*", &url])
            .output()
            .unwrap();
        if output.status.success() {
            return String::from_utf8(output.stdout).unwrap();
        }
        assert!(
            started.elapsed() < Duration::from_secs(20) && !mic.has_ended(),
            "{}",
            mic.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

const NOWHERE: &str = "
apiVersion: v1
kind: Config
current-context: nowhere
clusters: [{ name: nowhere, cluster: { server: 'http://127.0.0.1:1' } }]
contexts: [{ name: nowhere, context: { cluster: nowhere, user: nobody } }]
users: [{ name: nobody, user: {} }]
";

#[test]
fn every_metric_that_is_asked_for_is_exported_and_described() {
    let exported = exported();
    let rules = std::fs::read_to_string(folder().join("alerts.yaml")).unwrap();
    let dashboard = std::fs::read_to_string(folder().join("dashboard.json")).unwrap();
    let page = std::fs::read_to_string(tools::repository().join("docs/metrics.md")).unwrap();
    for (what, text) in [
        ("alerts.yaml", &rules),
        ("dashboard.json", &dashboard),
        ("docs/metrics.md", &page),
    ] {
        let asked = metrics_in(text);
        assert!(asked.len() > 5, "{what}");
        let unknown: Vec<_> = asked.difference(&exported).collect();
        assert!(
            unknown.is_empty(),
            "{what} names what nothing exports: {unknown:?}"
        );
    }
    let described = metrics_in(&page);
    let silent: Vec<_> = exported
        .iter()
        .filter(|name| {
            !name.ends_with("_total") || !exported.contains(name.trim_end_matches("_total"))
        })
        .filter(|name| !described.contains(*name) && !described.contains(&format!("{name}_total")))
        .collect();
    assert!(
        silent.is_empty(),
        "docs/metrics.md does not describe {silent:?}"
    );
}

#[test]
fn the_dashboard_is_one_that_grafana_loads() {
    let text = std::fs::read_to_string(folder().join("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels
        .iter()
        .map(|panel| panel["id"].as_i64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len(), "two panels have one id");
    let mut rules = Vec::new();
    for panel in panels {
        assert!(
            panel["gridPos"]["w"].is_i64()
                && panel["type"].is_string()
                && panel["title"].is_string()
        );
        for target in panel["targets"].as_array().unwrap() {
            // promtool knows PromQL; Grafana's variables are filled in first.
            let expression = target["expr"].as_str().unwrap().replace("$instance", "n1");
            rules.push(json!({ "record": format!("target:{}", rules.len()), "expr": expression }));
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("rules.json");
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    std::fs::write(&file, groups.to_string()).unwrap();
    let output = promtool(&["check", "rules", file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
}
