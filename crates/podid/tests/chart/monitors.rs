//! PodMonitors: what the Prometheus Operator makes of them finds mic and nmi, by Prometheus' own discovery on a real kube-apiserver.

use std::process::Command;

use podid_testkit::apiserver::ApiServer;
use podid_testkit::tools;
use serde_json::{Value, json};

use crate::cluster::{IMAGES, find, rendered};

const ON: [&str; 6] = [
    "--set",
    IMAGES,
    "--set",
    "podMonitor.enabled=true",
    "--set",
    "nmi.prometheusPort=9095",
];

#[tokio::test]
async fn they_are_opt_in_and_say_what_the_values_say() {
    let none = rendered(&["--set", IMAGES]).await;
    assert!(none.iter().all(|object| object["kind"] != "PodMonitor"));
    let given = r#"podMonitor={"enabled":true,"labels":{"release":"prometheus"},"annotations":{"a":"b"},"interval":"5m","scrapeTimeout":"30s"}"#;
    let with_broker = ["--set", IMAGES, "--set", "broker.enabled=true"];
    let objects = rendered(&[&with_broker[..], &["--set-json", given]].concat()).await;
    for (name, endpoint) in [
        ("podid-mic", "metrics"),
        ("podid-nmi", ""),
        ("podid-broker", "metrics"),
    ] {
        let monitor = find(&objects, "PodMonitor", name).unwrap();
        assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
        assert_eq!(monitor["metadata"]["annotations"]["a"], "b");
        let at = &monitor["spec"]["podMetricsEndpoints"][0];
        assert_eq!(
            (&at["interval"], &at["scrapeTimeout"]),
            (&json!("5m"), &json!("30s"))
        );
        assert_eq!(at["port"].as_str().unwrap_or_default(), endpoint);
    }
    let managed = rendered(&[&ON[..], &["--set", "operationMode=managed"]].concat()).await;
    assert!(find(&managed, "PodMonitor", "podid-mic").is_none());
    assert!(find(&managed, "PodMonitor", "podid-broker").is_none());
}

/// The scrape job that the operator makes of a PodMonitor, as far as it decides what is asked.
fn job(monitor: &Value, server: &str) -> Value {
    let mut rules = Vec::new();
    for (label, value) in monitor["spec"]["selector"]["matchLabels"]
        .as_object()
        .unwrap()
    {
        let label = label.replace(['.', '/', '-'], "_");
        rules.push(json!({
            "action": "keep", "regex": value,
            "source_labels": [format!("__meta_kubernetes_pod_label_{label}")],
        }));
    }
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    if let Some(port) = endpoint["port"].as_str() {
        let source = ["__meta_kubernetes_pod_container_port_name"];
        rules.push(json!({ "action": "keep", "source_labels": source, "regex": port }));
    }
    for rule in endpoint["relabelings"].as_array().into_iter().flatten() {
        let mut snake = serde_json::Map::new();
        for (key, value) in rule.as_object().unwrap() {
            let key = match key.as_str() {
                "sourceLabels" => "source_labels",
                "targetLabel" => "target_label",
                other => other,
            };
            snake.insert(key.to_owned(), value.clone());
        }
        rules.push(Value::Object(snake));
    }
    json!({
        "job_name": monitor["metadata"]["name"], "relabel_configs": rules,
        "kubernetes_sd_configs": [{ "role": "pod", "kubeconfig_file": server }],
    })
}

/// A pod of the chart's workload, as it runs on a node with this address.
async fn run(api: &ApiServer, workload: &Value, address: &str) {
    let template = &workload["spec"]["template"];
    let name = format!(
        "{}-{}",
        workload["metadata"]["name"].as_str().unwrap(),
        address.len()
    );
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
        "metadata": { "name": name, "namespace": "podid", "labels": template["metadata"]["labels"] },
    });
    let spec = pod["spec"].as_object_mut().unwrap();
    spec.remove("priorityClassName");
    spec.remove("serviceAccountName");
    let output = api
        .run_kubectl(&["create", "-f", "-"], &pod.to_string())
        .await;
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let status = json!({ "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] } });
    let patch = [
        "-n",
        "podid",
        "patch",
        "pod",
        &name,
        "--subresource=status",
        "--type=merge",
        "-p",
    ];
    let status = status.to_string();
    let output = api
        .run_kubectl(&[&patch[..], &[&status]].concat(), "")
        .await;
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn prometheus_finds_mic_and_nmi_by_them() {
    let objects = rendered(&[&ON[..], &["--set", "nmi.bootRules=true"]].concat()).await;
    let api = ApiServer::start().await.unwrap();
    let made = api.run_kubectl(&["create", "namespace", "podid"], "").await;
    assert!(made.unwrap().status.success());
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "default", "namespace": "podid" },
    });
    let made = api
        .run_kubectl(&["apply", "-f", "-"], &account.to_string())
        .await;
    assert!(made.unwrap().status.success());
    let mic = find(&objects, "Deployment", "podid-mic").unwrap();
    let nmi = find(&objects, "DaemonSet", "podid-nmi").unwrap();
    run(&api, mic, "10.0.0.1").await;
    run(&api, nmi, "10.1.0.12").await;
    run(&api, nmi, "fd00::1").await;
    let folder = tempfile::tempdir().unwrap();
    for (name, expected) in [
        ("podid-mic", &["10.0.0.1:8888"][..]),
        ("podid-nmi", &["10.1.0.12:9095", "[fd00::1]:9095"]),
    ] {
        let monitor = find(&objects, "PodMonitor", name).unwrap();
        let kubeconfig = api.kubeconfig();
        let config = json!({ "scrape_configs": [job(monitor, kubeconfig.to_str().unwrap())] });
        let file = folder.path().join("prometheus.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let arguments = ["check", "service-discovery", "--timeout=10s"];
        let arguments = [&arguments[..], &[file.to_str().unwrap(), name]].concat();
        let promtool = Command::new(tools::promtool().unwrap())
            .args(&arguments)
            .output();
        let output = promtool.unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let kept = found.as_array().unwrap().iter();
        let kept = kept.filter_map(|target| target["labels"]["__address__"].as_str());
        let mut kept: Vec<_> = kept.collect();
        kept.sort_unstable();
        assert_eq!(kept, expected, "{name}: {found:#}");
    }
}
