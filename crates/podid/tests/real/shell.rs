//! The commands of all pages, run by the shell, but for those of docs/take-over.md, which have a test of their own.

use std::os::unix::fs::symlink;
use std::path::Path;

use podid_testkit::tools;
use serde_json::json;

use crate::guide::Stage;
use crate::pages::Page;

/// What cannot be run here, and why not.
const LEFT_OUT: [(&str, &str); 7] = [
    ("az ", "it changes things in Azure"),
    (
        "docker ",
        "there is no container engine that can push; tools/image builds the same images",
    ),
    ("kubectl logs", "the API server asks a kubelet for them"),
    ("scripts/demo", "tests/demo.rs plays it"),
    (
        "podid mic",
        "it runs until it is told to end; tests/docs has its flags taken",
    ),
    (
        "podid nmi",
        "it runs until it is told to end; tests/docs has its flags taken",
    ),
    ("curl ", "it is for a pod; tests/e2e asks in this way"),
];

fn left_out(command: &str) -> Option<&'static str> {
    let words = |name: &str| {
        command.starts_with(name)
            || [" ", "(", "$("]
                .iter()
                .any(|before| command.contains(&format!("{before}{name}")))
    };
    LEFT_OUT
        .iter()
        .map(|(name, _)| *name)
        .find(|name| words(name))
}

/// What the pages name: the kind of the Prometheus Operator, and a namespace with an identity that a pod uses.
async fn furnish(stage: &Stage) {
    let identity = &stage.world.identities[0];
    let ours = "aadpodidentity.k8s.io/v1";
    for object in [
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": "podmonitors.monitoring.coreos.com" },
            "spec": {
                "group": "monitoring.coreos.com", "scope": "Namespaced",
                "names": { "plural": "podmonitors", "kind": "PodMonitor" },
                "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                } } }],
            },
        }),
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }),
        json!({
            "apiVersion": ours, "kind": "AzureIdentity", "metadata": { "name": "reader", "namespace": "shop" },
            "spec": { "type": 0, "resourceID": identity.id, "clientID": identity.client_id },
        }),
        json!({
            "apiVersion": ours, "kind": "AzureIdentityBinding", "metadata": { "name": "reader", "namespace": "shop" },
            "spec": { "azureIdentity": "reader", "selector": "web" },
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "namespace": "shop", "labels": { "aadpodidbinding": "web" } },
            "spec": { "nodeName": "n1", "containers": [{ "name": "app", "image": "app" }] },
        }),
    ] {
        stage.apply(&object).await;
    }
}

/// A folder with what a person has where they type: a checkout, their values, their certificate.
fn desk(folder: &Path) {
    let repository = tools::repository();
    symlink(repository.join("charts"), folder.join("charts")).unwrap();
    symlink(repository.join("deploy"), folder.join("deploy")).unwrap();
    let values = repository.join("crates/podid/tests/chart/original-values.yaml");
    symlink(values, folder.join("values.yaml")).unwrap();
    std::fs::write(folder.join("robot.pfx"), "a certificate").unwrap();
}

/// The command with what the reader is to fill in, where it may say something else than 0 with that.
fn filled_in(command: &str, stage: &Stage) -> String {
    let command = command
        .replace("<secret>", "hush")
        .replace("<password>", "hush")
        .replace("/usr/local/bin", stage.tools.path().to_str().unwrap());
    // 3 is the answer that something does not work, here that the issuer is not public.
    if command.contains("podid status") || command.contains("podid issuer") {
        return format!("{command} || test $? -eq 3");
    }
    if command.contains("auth can-i") {
        return format!("{command} || test $? -eq 1");
    }
    if command.starts_with("kubectl -n podid patch daemonset podid-nmi") {
        // Of those who installed with kubectl.
        let install = "podid manifests --registry=example.azurecr.io/podid | kubectl apply -f -";
        return format!("{install}; {command}");
    }
    if command.starts_with("kubectl create secret") {
        return format!("kubectl delete secret robot-secret -n shop --ignore-not-found; {command}");
    }
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_pages_work() {
    let mut stage = Stage::bare().await;
    let folder = tempfile::tempdir().unwrap();
    desk(folder.path());
    stage.place = folder.path().to_owned();
    furnish(&stage).await;
    let served = "kubectl wait --for=condition=Established crd/podmonitors.monitoring.coreos.com";
    stage.run(served).await;
    let mut pages = Page::all();
    pages.retain(|page| page.name != "take-over.md");
    // Installed is first what is looked at by the others and removed in the end.
    pages.sort_by_key(|page| page.name == "installation.md");
    let commands = pages.iter().flat_map(Page::commands);
    let install = pages.last().unwrap().commands().swap_remove(0);
    assert!(
        install.starts_with("helm upgrade --install podid"),
        "{install}"
    );
    let (mut ran, mut left) = (0, std::collections::BTreeSet::new());
    for command in std::iter::once(install).chain(commands) {
        if let Some(name) = left_out(&command) {
            left.insert(name);
            continue;
        }
        let filled_in = filled_in(&command, &stage);
        stage.run(&filled_in).await;
        ran += 1;
    }
    assert!(ran > 30, "{ran}");
    assert_eq!(
        left.len(),
        LEFT_OUT.len(),
        "only these are in the pages: {left:?}"
    );
}
