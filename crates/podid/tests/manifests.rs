//! `podid manifests` as its user runs it: everything that it prints is taken by a real kube-apiserver, into its last field.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

use std::process::{Command, Output};

use podid_testkit::apiserver::ApiServer;
use podid_testkit::process::text;

const PODID: &str = env!("CARGO_BIN_EXE_podid");

fn podid(arguments: &[&str]) -> Output {
    Command::new(PODID).args(arguments).output().unwrap()
}

fn manifests(more: &[&str]) -> String {
    let basic = ["manifests", "--registry=example.azurecr.io/podid"];
    let output = podid(&[&basic, more].concat());
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

async fn kubectl(api: &ApiServer, arguments: &[&str], input: &str) -> String {
    let output = api.run_kubectl(arguments, input).await.unwrap();
    assert!(
        output.status.success(),
        "kubectl {arguments:?}: {}",
        text(&output)
    );
    text(&output)
}

/// As docs/installation.md says it: definitions, then everything; again for an upgrade; and away with it.
#[tokio::test(flavor = "multi_thread")]
async fn every_mode_is_taken_by_a_cluster() {
    let api = ApiServer::start().await.unwrap();
    let kubeconfig = api.kubeconfig();
    let crds = ["crds", "--apply", "--kubeconfig"];
    let applied = podid(&[&crds[..], &[kubeconfig.to_str().unwrap()]].concat());
    assert!(applied.status.success(), "{}", text(&applied));
    assert_eq!(text(&applied).matches("is up to date").count(), 4);

    // What kubectl does not know is an error, so that no field is misspelt.
    let apply = [
        "apply",
        "--validate=strict",
        "--warnings-as-errors",
        "-f",
        "-",
    ];
    let standard = manifests(&[]);
    kubectl(&api, &apply, &standard).await;
    kubectl(&api, &apply, &standard).await;
    let get = ["-n", "podid", "get", "deployment,daemonset", "-o", "name"];
    let there = kubectl(&api, &get, "").await;
    assert_eq!(
        there.split_whitespace().collect::<Vec<_>>(),
        ["deployment.apps/podid-mic", "daemonset.apps/podid-nmi"]
    );
    // No controller ends the namespace here.
    kubectl(&api, &["delete", "--wait=false", "-f", "-"], &standard).await;
    // Whoever removes podid keeps the objects, and with them the definitions.
    let crds = kubectl(&api, &["get", "crds", "-o", "name"], "").await;
    assert_eq!(crds.matches("aadpodidentity.k8s.io").count(), 4);

    for more in [["--mode=managed"], ["--mode=cleanup"]] {
        let printed = manifests(&[&more[..], &["--namespace=kube-system"]].concat());
        assert!(!printed.contains("kind: Namespace"), "{printed}");
        let applied = podid(&[
            "crds",
            "--apply",
            "--kubeconfig",
            kubeconfig.to_str().unwrap(),
        ]);
        assert!(applied.status.success(), "{}", text(&applied));
        kubectl(&api, &apply, &printed).await;
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (arguments, says) in [
        (&["manifests"][..], "--registry"),
        (
            &["manifests", "--registry=https://x.io"],
            "without https://",
        ),
        (
            &["manifests", "--registry=x.io", "--mode=manged"],
            "managed",
        ),
        (
            &["manifests", "--registry=x.io", "--namespace=Podid"],
            "lower-case",
        ),
        (&["crds", "--kubeconfig=x"], "--apply"),
    ] {
        let output = podid(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output).contains(says), "{}", text(&output));
    }
}
