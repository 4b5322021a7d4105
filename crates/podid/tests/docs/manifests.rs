//! Every manifest of the pages is taken by a real kube-apiserver, and understood by podid; kubectl commands run against what
//! they made.

use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use podid_api::binding::AzureIdentityBinding;
use podid_api::exception::AzurePodIdentityException;
use podid_api::identity::AzureIdentity;
use podid_testkit::apiserver::ApiServer;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::pages::Page;

const NAMESPACES: [&str; 4] = ["podid", "shop", "team-a", "team-b"];
/// What kubectl is tried with: what needs neither a kubelet nor what a reader is to fill in.
const TRIED: [&str; 10] = [
    "get",
    "describe",
    "explain",
    "events",
    "api-resources",
    "auth",
    "label",
    "patch",
    "wait",
    "podid",
];
/// What the commands speak of, next to the pages' own manifests.
const THERE: &str = "
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop, labels: { app: web, aadpodidbinding: reader } }
spec: { containers: [{ name: web, image: 'registry.example.com/web:1' }] }
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureAssignedIdentity
metadata: { name: web-shop-reader, namespace: shop, finalizers: [azureassignedidentity.finalizers.aadpodidentity.k8s.io] }
spec: { pod: web, podNamespace: shop, nodename: node-1 }
";

/// A manifest of a page, what a reader is to fill in filled in.
struct Manifest {
    page: String,
    text: String,
    objects: Vec<Value>,
}

fn manifests() -> Vec<Manifest> {
    let mut found = Vec::new();
    for page in Page::all() {
        let yaml = page.blocks.iter().filter(|block| block.language == "yaml");
        for block in yaml.filter(|block| block.text.starts_with("apiVersion:")) {
            let text = filled_in(&block.text);
            let objects = serde_saphyr::from_multiple(&text);
            let objects = objects.unwrap_or_else(|error| panic!("{}: {error}\n{text}", page.name));
            found.push(Manifest {
                page: page.name.clone(),
                text,
                objects,
            });
        }
    }
    found
}

/// `<what to fill in>` becomes an id.
pub fn filled_in(text: &str) -> String {
    let mut parts = text.split('<');
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (_, rest) = part.split_once('>').unwrap();
        filled += "6f1c0000-0000-0000-0000-0000000022ab";
        filled += rest;
    }
    filled
}

#[test]
fn podid_understands_every_object_of_its_own() {
    fn read<T: DeserializeOwned>(object: &Value) -> T {
        serde_json::from_value(object.clone()).unwrap()
    }
    let mut seen = 0;
    for manifest in manifests() {
        for object in &manifest.objects {
            let outcome = match object["kind"].as_str().unwrap() {
                "AzureIdentity" => read::<AzureIdentity>(object).facts().map(|_| ()),
                "AzureIdentityBinding" => read::<AzureIdentityBinding>(object).facts().map(|_| ()),
                "AzurePodIdentityException" => read::<AzurePodIdentityException>(object)
                    .facts()
                    .map(|_| ()),
                _ => continue,
            };
            seen += 1;
            let text = &manifest.text;
            outcome.unwrap_or_else(|error| panic!("{}: {error}\n{text}", manifest.page));
        }
    }
    assert!(seen > 3, "{seen}");
}

#[tokio::test]
async fn a_real_api_server_takes_every_manifest_and_answers_every_kubectl_command() {
    let api = ApiServer::start().await.unwrap();
    api.install_crds().await.unwrap();
    for namespace in NAMESPACES {
        let create = ["create", "namespace", namespace];
        let made = api.run_kubectl(&create, "").await.unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    let manifests = manifests();
    let own = manifests
        .iter()
        .map(|manifest| (&*manifest.page, &*manifest.text));
    for (page, text) in own.chain([("the test", THERE)]) {
        let apply = ["apply", "--validate=strict", "-f", "-"];
        let output = api.run_kubectl(&apply, text).await.unwrap();
        assert!(output.status.success(), "{page}: {output:?}\n{text}");
    }
    works(&api, "reader").await;
    is_refused_as_shown(&api).await;
    let path = tempfile::tempdir().unwrap();
    symlink(
        env!("CARGO_BIN_EXE_podid"),
        path.path().join("kubectl-podid"),
    )
    .unwrap();
    let mut ran = 0;
    for page in Page::all() {
        for command in page.commands() {
            let Some(line) = tried(&command) else {
                continue;
            };
            let output = kubectl(&api, path.path(), line);
            ran += 1;
            // 3 is how `podid status` says that something is wrong, which is so here: nobody leads.
            let fine = output.status.success() || output.status.code() == Some(3);
            assert!(fine, "{}: {command}: {output:?}", page.name);
        }
    }
    assert!(ran > 3, "{ran}");
}

/// Says, as mic would, that the identity is attached.
async fn works(api: &ApiServer, identity: &str) {
    let ready =
        r#"{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Attached"}]}}"#;
    let patch = [
        "patch",
        "azureidentity",
        identity,
        "-n",
        "shop",
        "--subresource=status",
        "--type=merge",
        "-p",
        ready,
    ];
    let output = api.run_kubectl(&patch, "").await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

async fn is_refused_as_shown(api: &ApiServer) {
    let lacking = "
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: { name: reader }
spec: { type: 0, resourceID: /subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i }
";
    let output = api
        .run_kubectl(&["apply", "-f", "-"], lacking)
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let shown = Page::all().into_iter().flat_map(|page| page.blocks);
    assert!(shown.into_iter().any(|block| block.text == said), "{said}");
}

/// The arguments of a kubectl command that is tried, up to the first pipe.
fn tried(command: &str) -> Option<&str> {
    let line = command.split(" | ").next()?.strip_prefix("kubectl ")?;
    let verb = line.split(' ').next()?;
    (TRIED.contains(&verb) && !line.contains(['<', '…'])).then_some(line)
}

fn kubectl(api: &ApiServer, path: &std::path::Path, line: &str) -> Output {
    let words = line.split(' ').map(|word| word.trim_matches('\''));
    let search = format!(
        "{}:{}",
        path.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    Command::new(api.kubectl())
        .args(words)
        .env("KUBECONFIG", api.kubeconfig())
        .env("KUBECACHEDIR", path.join("cache"))
        .env("PATH", search)
        .output()
        .unwrap()
}
