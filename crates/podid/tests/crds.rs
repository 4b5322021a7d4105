//! `podid crds` as its user runs it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::process::Command;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use podid_testkit::apiserver::ApiServer;
use serde_json::{Value, json};

const RESOURCE: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i";
const CLIENT: &str = "6f1c0000-0000-0000-0000-0000000022ab";

/// Objects that were there before the definitions had rules about values, and are malformed, in both spellings.
fn malformed() -> [(&'static str, Value); 3] {
    let identity = json!({
        "type": 0, "clientID": "reader", "resourceID": "/subscriptions/x", "tenantID": "a b",
        "auxiliaryTenantIDs": ["a/b"], "clientPassword": { "name": "A B" },
    });
    let older = json!({ "type": 0, "ClientID": "reader", "ResourceID": "/subscriptions/x" });
    let binding = json!({ "azureIdentity": "A", "selector": "a b", "serviceAccounts": ["a/b"] });
    [
        ("AzureIdentity", identity),
        ("AzureIdentity", older),
        ("AzureIdentityBinding", binding),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_values_are_refused_and_objects_from_before_stay_editable() {
    let server = ApiServer::start().await.unwrap();
    let client = server.client().await.unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in podid_api::crds::all().unwrap() {
        let before = podid_api::crds::without_value_rules(crd);
        let made = definitions.create(&PostParams::default(), &before).await;
        made.unwrap();
    }
    let kind = |kind: &str| -> Api<DynamicObject> {
        let version = GroupVersionKind::gvk("aadpodidentity.k8s.io", "v1", kind);
        Api::default_namespaced_with(client.clone(), &ApiResource::from_gvk(&version))
    };
    let object = |kind: &str, name: &str, spec: &Value| -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec,
        }))
        .unwrap()
    };
    let until = async |so: bool, kind_name: &str, object: &DynamicObject| {
        let tried = async {
            while kind(kind_name)
                .create(&PostParams::default(), object)
                .await
                .is_ok()
                != so
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let tried = tokio::time::timeout(Duration::from_secs(30), tried).await;
        tried.unwrap_or_else(|_| panic!("{}", object.name_any()));
    };
    for (n, (name, spec)) in malformed().iter().enumerate() {
        until(true, name, &object(name, &format!("old-{n}"), spec)).await;
    }
    let applied = tokio::process::Command::new(env!("CARGO_BIN_EXE_podid"))
        .args(["crds", "--apply", "--kubeconfig"])
        .arg(server.kubeconfig())
        .output();
    let applied = applied.await.unwrap();
    assert!(applied.status.success(), "{applied:?}");
    for (n, (name, spec)) in malformed().iter().enumerate() {
        // A generated name is another one at each attempt, until the rules are in force.
        let mut new = object(name, "", spec);
        new.metadata.name = None;
        new.metadata.generate_name = Some("new-".to_owned());
        until(false, name, &new).await;
        let (api, old) = (kind(name), format!("old-{n}"));
        let edit = async |patch: Value| {
            api.patch(&old, &PatchParams::default(), &Patch::Merge(patch))
                .await
        };
        edit(json!({ "metadata": { "labels": { "team": "a" } } }))
            .await
            .unwrap();
        edit(json!({ "metadata": { "finalizers": ["example.com/x"] } }))
            .await
            .unwrap();
        let (other, corrected) = match spec.get("selector") {
            Some(_) => (
                json!({ "weight": 7 }),
                json!({ "selector": "ab", "azureIdentity": "a" }),
            ),
            None => (
                json!({ "type": 1, "tenantID": "t", "clientPassword": { "namespace": "n" } }),
                json!({
                    "clientID": CLIENT, "ClientID": null, "resourceID": RESOURCE, "ResourceID": null,
                }),
            ),
        };
        let edited = edit(json!({ "spec": other })).await;
        assert!(edited.is_ok(), "{name} {old}: {edited:?}");
        let status = Patch::Merge(json!({ "status": { "conditions": [] } }));
        api.patch_status(&old, &PatchParams::default(), &status)
            .await
            .unwrap();
        for (field, value) in spec.as_object().unwrap() {
            if !value.is_string() {
                continue;
            }
            let refused =
                edit(json!({ "spec": { field: format!("{} /", value.as_str().unwrap()) } })).await;
            let said = refused.unwrap_err().to_string();
            assert!(
                said.contains(&format!("spec.{field}: Invalid value")),
                "{said}"
            );
        }
        edit(json!({ "spec": corrected })).await.unwrap();
    }
}

#[test]
fn crds_prints_the_four_definitions() {
    let out = Command::new(env!("CARGO_BIN_EXE_podid"))
        .arg("crds")
        .output()
        .unwrap();
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(text.matches("kind: CustomResourceDefinition").count(), 4);
    assert!(
        text.contains("spec.clientID is required"),
        "the rules that name a missing field are in it"
    );
}

#[test]
fn an_unknown_command_is_refused_with_the_usage() {
    let out = Command::new(env!("CARGO_BIN_EXE_podid"))
        .arg("crd")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("similar subcommand exists: 'crds'"));
}
