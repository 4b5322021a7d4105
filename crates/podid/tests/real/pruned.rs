//! Limits of bindings to service accounts after somebody has put AAD Pod Identity's definitions back: they hold, and it is said.

use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::cluster::text;
use crate::world::{World, until};

const DEFINITION: &str = "azureidentitybindings.aadpodidentity.k8s.io";
const LIMIT: &str = "aadpodidentity.k8s.io/service-accounts";

impl World {
    async fn kubectl_does(&self, arguments: &[&str], input: &str) -> String {
        let output = self.api.run_kubectl(arguments, input).await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn bound(&self, n: usize, name: &str, accounts: Option<&str>) -> Value {
        let identity = &self.identities[n];
        let spec = json!({ "type": 0, "resourceID": identity.id, "clientID": identity.client_id });
        let object = json!({ "metadata": { "name": name }, "spec": spec });
        self.create("AzureIdentity", object).await;
        let mut spec = json!({ "azureIdentity": name, "selector": name });
        if let Some(account) = accounts {
            spec["serviceAccounts"] = json!([account]);
        }
        json!({ "metadata": { "name": name }, "spec": spec })
    }

    /// AAD Pod Identity's definition of AzureIdentityBindings takes the place of podid's.
    async fn put_the_originals_definition(&self) {
        let found = self
            .kubectl_does(&["get", "crd", DEFINITION, "-o", "json"], "")
            .await;
        let mut crd: Value = serde_json::from_str(&found).unwrap();
        let text = json!({ "type": "string" });
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({
            "type": "object",
            "properties": {
                "apiVersion": text, "kind": text, "metadata": { "type": "object" },
                "spec": { "type": "object", "properties": {
                    "azureIdentity": text, "selector": text, "weight": { "type": "integer" },
                    "metadata": { "type": "object" },
                } },
                "status": { "type": "object", "properties": {
                    "availableReplicas": { "type": "integer", "format": "int32" }, "metadata": { "type": "object" },
                } },
            },
        });
        self.kubectl_does(&["replace", "-f", "-"], &crd.to_string())
            .await;
    }

    async fn is_assigned(&self, pod: &str) -> bool {
        let all = self.assignments().await;
        let of = format!("default/{pod}-");
        all.iter()
            .any(|(name, _, state)| name.starts_with(&of) && state == "Assigned")
    }
}

fn podid(world: &World, arguments: &[&str]) -> std::process::Output {
    let mut podid = std::process::Command::new(env!("CARGO_BIN_EXE_podid"));
    let podid = podid
        .args(arguments)
        .env("KUBECONFIG", world.api.kubeconfig());
    podid.output().unwrap()
}

fn annotation(object: &DynamicObject) -> Option<&String> {
    object.metadata.annotations.as_ref()?.get(LIMIT)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_binding_stays_limited_under_the_originals_definitions() {
    let world = World::new().await;
    let mic = world.start(&[]);
    let limited = world.bound(0, "limited", Some("batch")).await;
    world.create("AzureIdentityBinding", limited).await;
    let bindings = world.ours("AzureIdentityBinding");
    let noted = async |name: &str| annotation(&bindings.get(name).await.unwrap()).cloned();
    until!(mic, noted("limited").await.as_deref() == Some("batch"));

    world.put_the_originals_definition().await;
    let line = ["annotate", "azureidentitybinding", "limited", "touched=yes"];
    let pruned = async || {
        world
            .kubectl_does(&[&line[..], &["--overwrite"]].concat(), "")
            .await;
        let binding = bindings.get("limited").await.unwrap();
        binding.data["spec"].get("serviceAccounts").is_none()
    };
    until!(mic, pruned().await);
    // Somebody applies another one meanwhile, whose limit the API server drops at once.
    let mut applied = world.bound(1, "applied", Some("batch")).await;
    applied["apiVersion"] = json!("aadpodidentity.k8s.io/v1");
    applied["kind"] = json!("AzureIdentityBinding");
    let apply = ["apply", "--validate=false", "-f", "-"];
    world.kubectl_does(&apply, &applied.to_string()).await;
    let open = json!({ "azureIdentity": "applied", "selector": "open" });
    let open = json!({ "metadata": { "name": "open" }, "spec": open });
    world.create("AzureIdentityBinding", open).await;

    for (name, selector) in [("stray", "limited"), ("other", "applied"), ("free", "open")] {
        world.pod(name, selector).await;
    }
    until!(mic, world.is_assigned("free").await);
    let log = || mic.log();
    until!(mic, log().contains("prunes spec.serviceAccounts"));
    until!(mic, log().matches("stays limited to batch").count() == 2);
    assert_eq!(world.assignments().await.len(), 1);
    assert!(!world.is_assigned("stray").await && !world.is_assigned("other").await);
    let events = [
        "get",
        "events",
        "--field-selector",
        "reason=ServiceAccountsPruned",
        "-o",
        "name",
    ];
    let told = async || world.kubectl_does(&events, "").await.lines().count();
    until!(mic, told().await == 2);
    let status = podid(&world, &["status"]);
    assert_eq!(status.status.code(), Some(3), "{}", text(&status));
    let said = text(&status);
    assert!(said.contains("podid crds --apply"), "{said}");
    assert!(said.contains("default/applied, default/limited"), "{said}");

    // podid's definitions are back, but the limits are not yet.
    let put_back = podid(&world, &["crds", "--apply"]);
    assert!(put_back.status.success(), "{}", text(&put_back));
    world.pod("stray2", "limited").await;
    world.pod("free2", "open").await;
    until!(mic, world.is_assigned("free2").await);
    assert!(!world.is_assigned("stray2").await);
}
