//! Install, upgrade, rollback and uninstall; and coming from the original.

use serde_json::{Value, json};

use crate::cluster::{Cluster, IMAGES, values};

const CRDS: [&str; 4] = [
    "azureassignedidentities.aadpodidentity.k8s.io",
    "azureidentities.aadpodidentity.k8s.io",
    "azureidentitybindings.aadpodidentity.k8s.io",
    "azurepodidentityexceptions.aadpodidentity.k8s.io",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_release_lives() {
    let cluster = Cluster::start().await;
    let notes = cluster.upgrades(&["--set", IMAGES]).await;
    assert!(
        notes.contains("rollout status deployment/podid-mic"),
        "{notes}"
    );
    assert!(
        !notes.contains("Mind:") && !notes.contains("without effect"),
        "{notes}"
    );
    let mic = cluster.get("deployment", "podid", "podid-mic").await;
    // The API server keeps the field by which a roll does not put both replicas on one node.
    let spread = &mic["spec"]["template"]["spec"]["topologySpreadConstraints"];
    assert_eq!(spread[0]["matchLabelKeys"], json!(["pod-template-hash"]));
    assert!(
        !cluster
            .get("azurepodidentityexception", "podid", "mic")
            .await
            .is_null()
    );
    // What the hook needed is not left behind.
    assert!(
        cluster
            .get("clusterrole", "podid", "podid-crds")
            .await
            .is_null()
    );

    every_set_of_values_is_taken(&cluster).await;

    let managed = cluster.get("deployment", "podid", "podid-mic").await;
    assert!(managed.is_null(), "managed mode has no controller");
    cluster.helms(&["rollback", "podid", "1"]).await;
    assert_eq!(
        args(&cluster).await,
        json!(["--cloudconfig=/etc/kubernetes/azure.json"])
    );

    a_failed_hook_changes_nothing(&cluster).await;

    cluster.helms(&["uninstall", "podid"]).await;
    assert!(
        cluster
            .get("daemonset", "podid", "podid-nmi")
            .await
            .is_null()
    );
    for crd in CRDS {
        let crd = cluster.get("crd", "podid", crd).await;
        assert!(!crd.is_null(), "users' objects would be gone with it");
    }
}

/// Each set is an upgrade from the one before. The API server says whether it takes every field.
async fn every_set_of_values_is_taken(cluster: &Cluster) {
    let every = values("every-value.yaml");
    let sets: [&[&str]; 6] = [
        &[
            "-f",
            &every,
            "--set",
            "nameOverride=",
            "--set",
            "nmi.tag=v9",
        ],
        &[
            "--set",
            "adminsecret.useMSI=true",
            "--set",
            "adminsecret.userAssignedMSIClientID=c",
        ],
        &[
            "--set",
            "rbac.secretNamespaces={default}",
            "--set",
            "nmi.startupTaint=podid.io/agent-not-ready:NoSchedule",
        ],
        &[
            "--set",
            "nmi.interceptHostNetwork=pods",
            "--set",
            "mic.podDisruptionBudget.maxUnavailable=1",
            "--set",
            "nmi.bootRules=true",
            "--set",
            "broker.enabled=true",
        ],
        &[
            "--set",
            "mic.cloudConfig=",
            "--set",
            "mic.extraArgs={--linger=1m}",
            "--set",
            "rbac.enabled=false",
        ],
        &["--set", "operationMode=managed"],
    ];
    for more in sets {
        cluster.upgrades(&[&["--set", IMAGES], more].concat()).await;
        let nmi = cluster.get("daemonset", "podid", "podid-nmi").await;
        assert!(!nmi.is_null(), "{more:?}");
    }
}

async fn a_failed_hook_changes_nothing(cluster: &Cluster) {
    cluster.break_jobs(true);
    let failed = cluster
        .upgrade(&["--set", IMAGES, "--set", "mic.linger=5m"])
        .await;
    assert!(!failed.status.success());
    assert_eq!(
        args(cluster).await,
        json!(["--cloudconfig=/etc/kubernetes/azure.json"])
    );
    let job = cluster.get("job", "podid", "podid-crds").await;
    assert!(!job.is_null(), "its log says why");
    cluster.break_jobs(false);
    cluster
        .upgrades(&["--set", IMAGES, "--set", "mic.linger=5m"])
        .await;
    assert_eq!(
        args(cluster).await,
        json!(["--cloudconfig=/etc/kubernetes/azure.json", "--linger=5m"])
    );
}

async fn args(cluster: &Cluster) -> Value {
    let mic = cluster.get("deployment", "podid", "podid-mic").await;
    mic["spec"]["template"]["spec"]["containers"][0]["args"].clone()
}

/// The original's chart brought definitions of its own, which belong to no release, and its users brought objects.
#[tokio::test(flavor = "multi_thread")]
async fn the_originals_values_and_definitions_are_taken() {
    let cluster = Cluster::start().await;
    for crd in CRDS {
        cluster
            .kubectl(&["create", "-f", "-"], &old_definition(crd))
            .await;
    }
    let served = [
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "crd",
    ];
    cluster.kubectl(&[&served[..], &CRDS].concat(), "").await;
    let theirs = json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
        "metadata": { "name": "reader", "namespace": "default" },
        "spec": { "type": 0, "clientID": "6f1c0000-0000-0000-0000-0000000022ab" },
    });
    cluster
        .kubectl(&["create", "-f", "-"], &theirs.to_string())
        .await;

    let original = values("original-values.yaml");
    let images = ["--set", IMAGES, "--set", "mic.tag=", "--set", "nmi.tag="];
    let notes = cluster
        .upgrades(&[&["-f", &original], &images[..]].concat())
        .await;
    for told in [
        "forceNamespaced=false",
        "rbac.allowAccessToSecrets",
        "nmi.updateStrategy without maxSurge",
    ] {
        assert!(notes.contains(told), "{notes}");
    }
    let crd = cluster.get("crd", "default", CRDS[1]).await;
    let text = crd["spec"]["versions"][0].to_string();
    assert!(
        text.contains("x-kubernetes-validations"),
        "not brought up to date: {text}"
    );
    let kept = cluster.get("azureidentity", "default", "reader").await;
    assert_eq!(kept["spec"], theirs["spec"]);
}

/// A definition such as the original's: without rules, and without labels of helm's.
fn old_definition(name: &str) -> String {
    let plural = name.split('.').next().unwrap();
    let kind = match plural {
        "azureidentities" => "AzureIdentity",
        "azureidentitybindings" => "AzureIdentityBinding",
        "azureassignedidentities" => "AzureAssignedIdentity",
        _ => "AzurePodIdentityException",
    };
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": name, "annotations": { "api-approved.kubernetes.io": "unapproved" } },
        "spec": {
            "group": "aadpodidentity.k8s.io", "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List") },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "properties": { "spec": any, "status": any },
            } } }],
        },
    })
    .to_string()
}
