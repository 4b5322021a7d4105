//! What the chart renders: by default what `podid manifests` prints, and each value where it belongs.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};

use crate::cluster::{IMAGES, PODID, find, objects, rendered, text, values};

/// What only one of the two has: helm makes the namespace, and its hook brings the definitions up to date.
const ONLY_MANIFESTS: [(&str, &str); 1] = [("Namespace", "podid")];
const ONLY_CHART: [(&str, &str); 4] = [
    ("ClusterRole", "podid-crds"),
    ("ClusterRoleBinding", "podid-crds"),
    ("Job", "podid-crds"),
    ("ServiceAccount", "podid-crds"),
];
/// What only the chart with the controller has: helm's hook detaches everything before podid is removed.
const ONLY_CHART_STANDARD: [(&str, &str); 8] = [
    ("ClusterRole", "podid-detach-all"),
    ("ClusterRoleBinding", "podid-detach-all"),
    ("Job", "podid-detach-all"),
    ("Role", "podid-detach-all"),
    ("RoleBinding", "podid-detach-all"),
    ("Role", "podid-detach-all-leader"),
    ("RoleBinding", "podid-detach-all-leader"),
    ("ServiceAccount", "podid-detach-all"),
];
/// Labels by which helm's objects are known.
const HELMS: [&str; 3] = [
    "helm.sh/chart",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
];

#[tokio::test]
async fn by_default_the_chart_is_what_podid_manifests_prints() {
    for (mode, flag, value) in [
        ("standard", None, "nmi.bootRules=false"),
        ("managed", None, "nmi.bootRules=false"),
        ("standard", Some("--boot-rules"), "nmi.bootRules=true"),
        ("standard", Some("--broker"), "broker.enabled=true"),
    ] {
        let output = Command::new(PODID)
            .args([
                "manifests",
                "--registry=example.azurecr.io/podid",
                "--mode",
                mode,
            ])
            .args(flag)
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let mut manifests = by_name(objects(&printed));
        let is_standard = mode == "standard";
        let mode = format!("operationMode={mode}");
        let given = ["--set", IMAGES, "--set", &mode, "--set", value];
        let mut chart = by_name(rendered(&given).await);
        remove(&mut manifests, &ONLY_MANIFESTS);
        remove(&mut chart, &ONLY_CHART);
        if is_standard {
            remove(&mut chart, &ONLY_CHART_STANDARD);
        }
        for object in chart.values_mut() {
            let labels = object["metadata"]["labels"].as_object_mut().unwrap();
            for label in HELMS {
                assert!(labels.remove(label).is_some(), "{label}");
            }
        }
        let names = |of: &BTreeMap<String, Value>| of.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&chart), names(&manifests), "{mode}");
        for (name, object) in &chart {
            assert_eq!(object, &manifests[name], "{mode}: {name}");
        }
    }
}

fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let named = objects.into_iter().map(|object| {
        let meta = &object["metadata"];
        let name = format!("{} {} {}", object["kind"], meta["namespace"], meta["name"]);
        (name, object)
    });
    named.collect()
}

fn remove(objects: &mut BTreeMap<String, Value>, these: &[(&str, &str)]) {
    for (kind, name) in these {
        let before = objects.len();
        objects.retain(|_, object| object["kind"] != *kind || object["metadata"]["name"] != *name);
        assert_eq!(objects.len() + 1, before, "{kind} {name}");
    }
}

#[tokio::test]
async fn every_old_value_is_where_it_belongs() {
    let every = rendered(&["-f", &values("every-value.yaml")]).await;
    let mic = find(&every, "Deployment", "aad-pod-identity-mic").unwrap();
    let nmi = find(&every, "DaemonSet", "aad-pod-identity-nmi").unwrap();
    let pod = |object: &Value| object["spec"]["template"].clone();
    let container = |object: &Value| pod(object)["spec"]["containers"][0].clone();
    assert_eq!(
        container(mic)["args"],
        json!([
            "--forceNamespaced=false",
            "--leader-election-namespace=kube-system",
            "--leader-election-name=lock",
            "--leader-election-duration=20s",
            "--http-probe-port=8081",
            "--prometheus-port=8890",
            "--syncRetryDuration=1800s",
            "--createDeleteBatch=10",
            "--update-user-msi-retry-interval=2s",
            "--identity-assignment-reconcile-interval=5m",
            "--immutable-user-msis=6f1c0000-0000-0000-0000-0000000022ab,6F1C0000-0000-0000-0000-0000000022AC",
            "--custom-user-agent=mine",
            "--log-format=json",
            "--v=5"
        ])
    );
    assert_eq!(
        container(nmi)["args"],
        json!([
            "--node=$(NODE_NAME)",
            "--operation-mode=standard",
            "--http-probe-port=8086",
            "--kubelet-config=/host/var/lib/kubelet/flags",
            "--forceNamespaced=false",
            "--prometheus-port=9091",
            "--ipt-update-interval-sec=30",
            "--block-instance-metadata=false",
            "--metadata-header-required=false",
            "--allow-network-plugin-kubenet=true",
            "--custom-user-agent=mine",
            "--log-format=text",
            "--v=8"
        ])
    );
    are_taken("mic", &container(mic)["args"]);
    are_taken("nmi", &container(nmi)["args"]);
    assert_eq!(mic["spec"]["replicas"], 3);
    assert_eq!(nmi["spec"]["updateStrategy"], json!({ "type": "OnDelete" }));
    let images = [
        "controller:v9",
        "agent@sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    ];
    for (object, image, class, team, pool, cpu, toleration) in [
        (
            mic,
            images[0],
            "system-node-critical",
            "a",
            "a",
            "250m",
            "CriticalAddonsOnly",
        ),
        (nmi, images[1], "high", "b", "b", "260m", "only"),
    ] {
        let (pod, container) = (pod(object), container(object));
        assert_eq!(
            container["image"],
            format!("example.azurecr.io/podid/{image}")
        );
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["resources"]["limits"]["cpu"], cpu);
        assert_eq!(pod["spec"]["priorityClassName"], class);
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{ "name": "pull" }]));
        assert_eq!(pod["spec"]["nodeSelector"]["pool"], pool);
        assert!(pod["spec"]["affinity"]["nodeAffinity"].is_object());
        assert_eq!(pod["spec"]["tolerations"][0]["key"], toleration);
        assert_eq!(pod["metadata"]["labels"]["team"], team);
        assert!(pod["metadata"]["annotations"]["note"].is_string());
    }
    let kubelet = json!({ "path": "/var/lib/kubelet", "type": "DirectoryOrCreate" });
    assert_eq!(pod(nmi)["spec"]["volumes"][1]["hostPath"], kubelet);
    assert_eq!(
        pod(mic)["spec"]["volumes"][0]["hostPath"]["path"],
        "/etc/kubernetes/cloud.json"
    );
    assert_eq!(
        pod(mic)["spec"]["topologySpreadConstraints"][0]["topologyKey"],
        "zone"
    );
    others_are_there(&every, mic);
}

fn others_are_there(every: &[Value], mic: &Value) {
    let mic_of = "aad-pod-identity-mic";
    let secret = &find(every, "Secret", mic_of).unwrap()["stringData"];
    assert_eq!(
        secret,
        &json!({ "Cloud": "AzureChinaCloud", "TenantID": "t", "ClientID": "c", "ClientSecret": "hush" })
    );
    let env = mic["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap();
    let named = |name: &str| {
        env.iter()
            .find(|variable| variable["name"] == name)
            .unwrap()
    };
    assert_eq!(
        named("AZURE_ENVIRONMENT_FILEPATH")["value"],
        "/etc/kubernetes/cloud.json"
    );
    let from = &named("CLIENT_SECRET")["valueFrom"]["secretKeyRef"];
    assert_eq!(
        (&from["name"], &from["key"]),
        (&json!(mic_of), &json!("ClientSecret"))
    );
    let budget = find(every, "PodDisruptionBudget", mic_of).unwrap();
    assert_eq!(budget["spec"]["minAvailable"], 1);
    let leader = find(every, "Role", "aad-pod-identity-mic-leader").unwrap();
    assert_eq!(leader["metadata"]["namespace"], "kube-system");
    assert!(
        every
            .iter()
            .all(|o| o["kind"] != "AzurePodIdentityException")
    );
    for name in ["identity-view", "identity-edit"] {
        assert!(find(every, "ClusterRole", name).is_some(), "{name}");
    }
    let nmi = find(every, "ClusterRole", "aad-pod-identity-nmi").unwrap();
    let secrets =
        json!({ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"] });
    assert!(nmi["rules"].as_array().unwrap().contains(&secrets));
    let app = find(every, "AzureIdentity", "app").unwrap();
    assert_eq!(app["metadata"]["namespace"], "default");
    assert_eq!(app["spec"]["clientPassword"]["name"], "app-secret");
    let binding = find(every, "AzureIdentityBinding", "app-binding").unwrap();
    assert_eq!(
        binding["spec"],
        json!({ "azureIdentity": "app", "selector": "app" })
    );
}

/// podid understands the flags: what it then lacks is a cluster, which is another exit code than 2.
fn are_taken(role: &str, args: &Value) {
    let args = args
        .as_array()
        .unwrap()
        .iter()
        .map(|arg| arg.as_str().unwrap());
    let output = Command::new(PODID)
        .arg(role)
        .args(args)
        .arg("--kubeconfig=/nowhere")
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

#[tokio::test]
async fn each_switch_changes_what_it_says_and_nothing_else() {
    let with = |more: &'static [&'static str]| async move {
        let mut arguments = vec!["--set", IMAGES];
        for value in more {
            arguments.extend(["--set", value]);
        }
        rendered(&arguments).await
    };
    let default = with(&[]).await;
    assert!(
        !text_of(&default).contains("secrets"),
        "nmi may read no Secret"
    );
    assert!(find(&with(&["crds.apply=false"]).await, "Job", "podid-crds").is_none());

    let none = with(&["rbac.enabled=false", "crds.apply=false"]).await;
    let rbac = [
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    ];
    assert!(
        none.iter()
            .all(|o| !rbac.contains(&o["kind"].as_str().unwrap()))
    );
    assert!(find(&none, "Job", "podid-detach-all").is_none());

    let named = with(&["rbac.secretNamespaces={shop,bank}"]).await;
    let roles: Vec<_> = named
        .iter()
        .filter(|o| o["kind"] == "Role" && o["metadata"]["name"] == "podid-nmi-secrets")
        .map(|o| o["metadata"]["namespace"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["shop", "bank"]);
    let nmi = find(&named, "ClusterRole", "podid-nmi").unwrap();
    assert_eq!(Some(nmi), find(&default, "ClusterRole", "podid-nmi"));

    let tainted = with(&["nmi.startupTaint=podid.io/agent-not-ready:NoSchedule"]).await;
    let rules = &find(&tainted, "ClusterRole", "podid-nmi").unwrap()["rules"];
    assert_eq!(
        rules[2],
        json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"] })
    );
    // A new node's taint keeps off what needs podid, and not podid's controller, which may be needed there.
    let tolerates = |objects: &[Value]| {
        let mic = find(objects, "Deployment", "podid-mic").unwrap();
        let tolerations = mic["spec"]["template"]["spec"]["tolerations"].as_array();
        tolerations
            .unwrap()
            .contains(&json!({ "key": "podid.io/agent-not-ready", "operator": "Exists" }))
    };
    assert!(tolerates(&tainted) && !tolerates(&default));
    let with_value = with(&["nmi.startupTaint=podid.io/agent-not-ready=true:NoSchedule"]).await;
    assert!(tolerates(&with_value));

    let host = with(&["nmi.interceptHostNetwork=pods", "nmi.interception=nftables"]).await;
    let pod = &find(&host, "DaemonSet", "podid-nmi").unwrap()["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][2]["hostPath"]["path"], "/sys/fs/cgroup");
    assert_eq!(pod["volumes"][3]["hostPath"]["path"], "/sys/fs/bpf");
    let nmi = &pod["containers"][0];
    assert_eq!(nmi["volumeMounts"][3]["mountPath"], "/host/sys/fs/bpf");
    assert_eq!(nmi["securityContext"]["capabilities"]["add"][2], "BPF");
    are_taken("nmi", &pod["containers"][0]["args"]);

    let limited = with(&["nmi.podRequestsPerSecond=20", "nmi.hostTokenLoopback=true"]).await;
    let pod = &find(&limited, "DaemonSet", "podid-nmi").unwrap()["spec"]["template"]["spec"];
    let given = pod["containers"][0]["args"].as_array().unwrap();
    assert!(given.contains(&json!("--pod-requests-per-second=20")));
    assert!(given.contains(&json!("--host-token-loopback")));
    are_taken("nmi", &pod["containers"][0]["args"]);

    let leaving = with(&["nmi.interception=withdraw"]).await;
    let pod = &find(&leaving, "DaemonSet", "podid-nmi").unwrap()["spec"]["template"]["spec"];
    let given = pod["containers"][0]["args"].as_array().unwrap();
    assert!(given.contains(&json!("--interception=withdraw")));
    are_taken("nmi", &pod["containers"][0]["args"]);

    let leaving = with(&["nmi.interception=withdraw", "nmi.bootRules=true"]).await;
    let pod = &find(&leaving, "DaemonSet", "podid-nmi").unwrap()["spec"]["template"]["spec"];
    let command = &pod["initContainers"][0]["command"];
    assert_eq!(
        command,
        &json!(["/podid", "boot-rules", "--remove=/host/etc"])
    );

    let federated = with(&["mic.cloudConfig=", "mic.serviceAccountAnnotations.a=b"]).await;
    let pod = &find(&federated, "Deployment", "podid-mic").unwrap()["spec"]["template"]["spec"];
    assert!(pod["volumes"].is_null());
    assert_eq!(
        pod["containers"][0]["securityContext"]["runAsNonRoot"],
        true
    );
}

/// A dead node's replica is replaced soon, whatever else the operator tolerates, unless a toleration names the taint itself.
#[tokio::test]
async fn mic_leaves_a_dead_node_soon_unless_told_otherwise() {
    let seconds = |objects: &[Value]| {
        let mic = find(objects, "Deployment", "podid-mic").unwrap();
        let all = mic["spec"]["template"]["spec"]["tolerations"].clone();
        ["not-ready", "unreachable"].map(|taint| {
            let key = format!("node.kubernetes.io/{taint}");
            let of = all.as_array().unwrap().iter().filter(|t| t["key"] == key);
            of.map(|t| t["tolerationSeconds"].as_u64())
                .collect::<Vec<_>>()
        })
    };
    let everything = "mic.tolerations[0].operator=Exists";
    for more in [&[][..], &["--set", everything]] {
        let objects = rendered(&[&["--set", IMAGES], more].concat()).await;
        assert_eq!(seconds(&objects), [[Some(30)], [Some(30)]], "{more:?}");
    }
    let own = r#"mic.tolerations=[{"key":"node.kubernetes.io/unreachable","operator":"Exists"}]"#;
    let objects = rendered(&["--set", IMAGES, "--set-json", own]).await;
    assert_eq!(seconds(&objects), [[Some(30)], [None]]);
}

/// The kubelet writes a Warning for each probe that fails, also of pods that are told to end.
#[tokio::test]
async fn a_pod_that_ends_in_a_rolling_update_is_asked_for_nothing_that_it_no_longer_has() {
    let objects = rendered(&["--set", IMAGES]).await;
    let container = |kind: &str, name: &str| {
        find(&objects, kind, name).unwrap()["spec"]["template"]["spec"]["containers"][0].clone()
    };
    let mic = container("Deployment", "podid-mic");
    assert!(mic["readinessProbe"].is_null() && mic["startupProbe"].is_object());
    // The node agent before and the one after it share the port, and the second waits before it says no.
    let nmi = container("DaemonSet", "podid-nmi");
    assert_eq!(nmi["readinessProbe"]["timeoutSeconds"], 3);
}

fn text_of(objects: &[Value]) -> String {
    objects.iter().map(Value::to_string).collect()
}
