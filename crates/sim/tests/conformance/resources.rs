//! Custom resources: podid's own definitions, and their schemas enforced.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt as _,
    api::{
        ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    },
    runtime::wait,
};
use serde_json::{Value, json};

use crate::{Subject, objects::refusal};

/// Installs podid's definitions where they are not there yet, and waits until they are served.
pub async fn install(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in podid_api::crds::all().unwrap() {
        match definitions
            .create(&PostParams::default(), &definition)
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => {
                made.unwrap();
            }
        }
        let name = definition.name_any();
        let established = wait::conditions::is_crd_established();
        let served = wait::await_condition(definitions.clone(), &name, established);
        tokio::time::timeout(Duration::from_secs(10), served)
            .await
            .unwrap()
            .unwrap();
    }
}

async fn kind(s: &Subject, name: &str) -> Api<DynamicObject> {
    install(&s.client).await;
    let gvk = GroupVersionKind::gvk("aadpodidentity.k8s.io", "v1", name);
    let plural = match name {
        "AzureIdentity" => "azureidentities",
        _ => "azureidentitybindings",
    };
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    let api = Api::namespaced_with(s.client.clone(), &s.namespace, &resource);
    // A real server serves a new kind a moment after it says so.
    let served = async {
        while api.list(&ListParams::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), served)
        .await
        .unwrap();
    api
}

fn object(kind: &str, name: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

const RESOURCE: &str = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i";

const CLIENT: &str = "6f1c0000-0000-0000-0000-0000000022ab";

pub async fn the_definitions_are_served(s: Subject) {
    let identities = kind(&s, "AzureIdentity").await;
    let spec = json!({"type": 0, "ResourceID": RESOURCE, "ClientID": CLIENT});
    let made = identities
        .create(
            &PostParams::default(),
            &object("AzureIdentity", "article", spec),
        )
        .await
        .unwrap();
    assert_eq!(made.data["spec"]["ResourceID"], RESOURCE);
    assert_eq!(made.metadata.generation, Some(1));
    let groups = s.client.list_api_groups().await.unwrap();
    assert!(
        groups
            .groups
            .iter()
            .any(|g| g.name == "aadpodidentity.k8s.io")
    );
    let kinds = s
        .client
        .list_api_group_resources("aadpodidentity.k8s.io/v1")
        .await
        .unwrap();
    let identity = kinds
        .resources
        .iter()
        .find(|r| r.name == "azureidentities")
        .unwrap();
    assert!(identity.namespaced && identity.kind == "AzureIdentity");
    assert!(
        kinds
            .resources
            .iter()
            .any(|r| r.name == "azureidentities/status")
    );
}

pub async fn unknown_fields_are_pruned_and_rules_refuse(s: Subject) {
    let bindings = kind(&s, "AzureIdentityBinding").await;
    let params = PostParams::default();
    let spec = json!({"azureIdentity": "i", "selector": "myapp", "selektor": "x"});
    let made = bindings
        .create(&params, &object("AzureIdentityBinding", "b", spec))
        .await
        .unwrap();
    assert_eq!(
        made.data["spec"],
        json!({"azureIdentity": "i", "selector": "myapp"})
    );
    let spec = json!({"azureIdentity": "i", "selektor": "myapp"});
    let refused = refusal(
        bindings
            .create(&params, &object("AzureIdentityBinding", "c", spec))
            .await,
    );
    assert_eq!((refused.0, refused.1.as_str()), (422, "Invalid"));
    assert_eq!(
        refused.2,
        "AzureIdentityBinding.aadpodidentity.k8s.io \"c\" is invalid: spec: Invalid value: \"object\": \
         spec.selector is required: the value of the pod label aadpodidbinding; check its spelling"
    );
}

pub async fn values_are_checked(s: Subject) {
    let identities = kind(&s, "AzureIdentity").await;
    let attempt = async |spec: Value| {
        let object = object("AzureIdentity", "x", spec);
        refusal(identities.create(&PostParams::default(), &object).await).2
    };
    let base = |field: &str, value: Value| {
        let mut spec = json!({"type": 0, "resourceID": RESOURCE, "clientID": CLIENT});
        spec[field] = value;
        spec
    };
    let about = "AzureIdentity.aadpodidentity.k8s.io \"x\" is invalid: ";
    for (spec, expected) in [
        (
            base("type", json!(7)),
            "spec.type: Unsupported value: 7: supported values: \"0\", \"1\", \"2\"",
        ),
        (
            base("type", json!("0")),
            "spec.type: Invalid value: \"string\": spec.type in body must be of type integer: \"string\"",
        ),
        (
            base("clientID", json!("c".repeat(129))),
            "spec.clientID: Too long: may not be more than 128 bytes",
        ),
    ] {
        let message = attempt(spec).await;
        assert!(
            message.starts_with(about) && message.contains(expected),
            "{message}"
        );
    }
    let bare: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": {"name": "x"},
    }))
    .unwrap();
    let refused = refusal(identities.create(&PostParams::default(), &bare).await);
    let expected = "[spec: Required value, <nil>: Invalid value: null: some validation rules were not checked because \
                    the object was invalid; correct the existing errors to complete validation]";
    assert_eq!(refused.2, format!("{about}{expected}"));
}

/// What federation needs not is not asked for, and where it cannot be it is refused.
pub async fn federation_is_for_types_0_and_1(s: Subject) {
    let identities = kind(&s, "AzureIdentity").await;
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let attempt = async |spec: Value| {
        let object = object("AzureIdentity", "x", spec);
        identities.create(&dry, &object).await
    };
    for spec in [
        json!({"clientID": CLIENT, "federation": {}}),
        json!({"type": 0, "ClientID": CLIENT, "ResourceID": RESOURCE, "federation": {"audience": "api://own"}}),
        json!({"type": 1, "clientID": CLIENT, "federation": {}}),
        json!({"type": 1, "clientID": CLIENT, "tenantID": "t", "federation": {}}),
    ] {
        let taken = attempt(spec.clone()).await;
        assert_eq!(taken.unwrap().data["spec"], spec);
    }
    for (spec, expected) in [
        (
            json!({"type": 2, "clientID": CLIENT, "tenantID": "t", "federation": {}}),
            "leave out one of them",
        ),
        (
            json!({"clientID": CLIENT}),
            "spec.resourceID is required for type 0 without spec.federation",
        ),
        (
            json!({"type": 1, "clientID": CLIENT}),
            "spec.tenantID is required for types 1 and 2 without spec.federation",
        ),
        (
            json!({"clientID": CLIENT, "federation": {"audience": "a b"}}),
            "spec.federation.audience: Invalid value: ",
        ),
        (json!({"federation": {}}), "spec.clientID is required"),
    ] {
        let refused = refusal(attempt(spec).await);
        assert_eq!(refused.0, 422, "{refused:?}");
        assert!(refused.2.contains(expected), "{}", refused.2);
    }
}

/// Malformed values are refused by the field's path, in both spellings; what podid reads is taken.
pub async fn malformed_ids_are_refused_by_name(s: Subject) {
    let identities = kind(&s, "AzureIdentity").await;
    let bindings = kind(&s, "AzureIdentityBinding").await;
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let identity = |field: &str, value: Value| {
        let mut spec = json!({"type": 0, "resourceID": RESOURCE, "clientID": CLIENT});
        spec[field] = value;
        object("AzureIdentity", "x", spec)
    };
    let binding = |field: &str, value: Value| {
        let mut spec = json!({"azureIdentity": "i", "selector": "s"});
        spec[field] = value;
        object("AzureIdentityBinding", "x", spec)
    };
    let no_group = RESOURCE.replace("/resourcegroups/g", "");
    let machine = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v";
    for (field, wrong, right) in [
        (
            "clientID",
            json!("reader-id"),
            json!("6F1C0000-0000-0000-0000-0000000022AB\n"),
        ),
        ("ClientID", json!(""), json!(CLIENT)),
        (
            "resourceID",
            json!(no_group),
            json!(RESOURCE.to_uppercase()),
        ),
        ("ResourceID", json!(machine), json!(format!(" {RESOURCE}"))),
        (
            "resourceID",
            json!(RESOURCE.replace("/g/", "/../")),
            json!(""),
        ),
        (
            "resourceID",
            json!(CLIENT),
            json!(RESOURCE.replace("/g/", "/r\u{e9}sum\u{e9}_(1).x/")),
        ),
        (
            "tenantID",
            json!("https://login.microsoftonline.com/t"),
            json!("contoso.onmicrosoft.com"),
        ),
        ("TenantID", json!("a b"), json!("")),
        (
            "auxiliaryTenantIDs",
            json!([CLIENT, "a/b"]),
            json!([CLIENT]),
        ),
        (
            "adEndpoint",
            json!("login.microsoftonline.com"),
            json!("https://login.microsoftonline.us"),
        ),
        ("ADEndpoint", json!("ftp://x/"), json!("")),
        (
            "clientPassword",
            json!({"name": "My Secret"}),
            json!({"name": "my-secret.v1", "namespace": "n"}),
        ),
        ("ClientPassword", json!({"Namespace": "a.b"}), json!({})),
    ] {
        let path = match &wrong {
            Value::Object(fields) => format!("{field}.{}", fields.keys().next().unwrap()),
            _ => field.to_owned(),
        };
        let refused = refusal(
            identities
                .create(&dry, &identity(field, wrong.clone()))
                .await,
        );
        assert_eq!(refused.0, 422, "{refused:?}");
        let expected = format!("spec.{path}: Invalid value: ");
        assert!(
            refused.2.contains(&expected) && refused.2.contains("must be"),
            "{}",
            refused.2
        );
        let taken = identities
            .create(&dry, &identity(field, right.clone()))
            .await;
        assert!(taken.is_ok(), "{field} {right}: {taken:?}");
    }
    for (field, wrong, right) in [
        (
            "azureIdentity",
            json!("My identity"),
            json!("my-identity.v1"),
        ),
        ("AzureIdentity", json!("-a"), json!(" a ")),
        ("selector", json!("my app"), json!("My_app.v1")),
        ("Selector", json!("app/"), json!("a")),
        (
            "serviceAccounts",
            json!(["a", "shop/a"]),
            json!(["a", "b.c"]),
        ),
    ] {
        let refused = refusal(bindings.create(&dry, &binding(field, wrong)).await);
        let expected = format!("spec.{field}: Invalid value: ");
        assert!(
            refused.2.contains(&expected) && refused.2.contains("must be"),
            "{}",
            refused.2
        );
        let taken = bindings.create(&dry, &binding(field, right.clone())).await;
        assert!(taken.is_ok(), "{field} {right}: {taken:?}");
    }
}

/// Ratcheting: a rule that comes later leaves values alone that an update does not change.
pub async fn a_later_rule_leaves_unchanged_values_alone(s: Subject) {
    let definitions: Api<CustomResourceDefinition> = Api::all(s.client.clone());
    let word = json!({"type": "string", "maxLength": 9});
    let mut crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "ratchets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"kind": "Ratchet", "plural": "ratchets"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": {"type": "object", "properties": {
                    "word": word, "other": word, "words": {"type": "array", "maxItems": 3, "items": word},
                }}},
            }}}],
        },
    });
    let definition: CustomResourceDefinition = serde_json::from_value(crd.clone()).unwrap();
    let made = definitions
        .create(&PostParams::default(), &definition)
        .await;
    made.unwrap();
    let gvk = GroupVersionKind::gvk("example.com", "v1", "Ratchet");
    let resource = ApiResource::from_gvk_with_plural(&gvk, "ratchets");
    let api: Api<DynamicObject> = Api::namespaced_with(s.client.clone(), &s.namespace, &resource);
    let until = async |so: &dyn Fn(bool) -> bool, name: &str| {
        let object = json!({
            "apiVersion": "example.com/v1", "kind": "Ratchet", "metadata": {"name": name},
            "spec": {"word": "BAD", "words": ["BAD"]},
        });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let tried = async {
            while !so(api.create(&PostParams::default(), &object).await.is_ok()) {
                let _ = api.delete(name, &kube::api::DeleteParams::default()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), tried)
            .await
            .unwrap();
    };
    until(&|taken| taken, "old").await;
    let fields = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        ["properties"];
    fields["word"]["x-kubernetes-validations"] =
        json!([{"rule": "self.matches('^[a-z]+$')", "message": "small"}]);
    fields["words"]["x-kubernetes-validations"] =
        json!([{"rule": "self.all(w, w.matches('^[a-z]+$'))", "message": "all small"}]);
    let versions = Patch::Merge(json!({"spec": {"versions": crd["spec"]["versions"]}}));
    let params = PatchParams::default();
    let ruled = definitions
        .patch("ratchets.example.com", &params, &versions)
        .await;
    ruled.unwrap();
    until(&|taken| !taken, "new").await;
    let edit = async |spec: Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        api.patch("old", &PatchParams::default(), &patch).await
    };
    assert!(edit(json!({"other": "x"})).await.is_ok());
    let refused = refusal(edit(json!({"word": "WORSE"})).await);
    assert!(
        refused
            .2
            .contains("spec.word: Invalid value: \"string\": small"),
        "{}",
        refused.2
    );
    let refused = refusal(edit(json!({"words": ["BAD", "a"]})).await);
    assert!(
        refused
            .2
            .contains("spec.words: Invalid value: \"array\": all small"),
        "{}",
        refused.2
    );
    assert!(edit(json!({"word": "good"})).await.is_ok());
    let refused = refusal(edit(json!({"word": "BAD"})).await);
    assert!(refused.2.contains("small"), "{}", refused.2);
}

pub async fn generation_counts_the_spec_only(s: Subject) {
    let identities = kind(&s, "AzureIdentity").await;
    let spec = json!({"type": 0, "resourceID": RESOURCE, "clientID": CLIENT});
    let mut wanted = object("AzureIdentity", "g", spec);
    wanted.data["status"] = json!({"set": "by its creator"});
    let made = identities
        .create(&PostParams::default(), &wanted)
        .await
        .unwrap();
    assert_eq!(made.data.get("status"), None);
    let params = PatchParams::default();
    let labelled = json!({"metadata": {"labels": {"a": "b"}}});
    let labelled = identities
        .patch("g", &params, &Patch::Merge(&labelled))
        .await
        .unwrap();
    assert_eq!(labelled.metadata.generation, Some(1));
    let status = json!({"status": {"conditions": []}, "spec": {"clientID": "6f1c0000-0000-0000-0000-0000000022ac"}});
    let reported = identities
        .patch_status("g", &params, &Patch::Merge(&status))
        .await
        .unwrap();
    assert_eq!(reported.metadata.generation, Some(1));
    assert_eq!(reported.data["spec"]["clientID"], CLIENT);
    assert_eq!(reported.data["status"], json!({"conditions": []}));
    let changed = json!({"spec": {"clientID": "6f1c0000-0000-0000-0000-0000000022ad"}, "status": {"ignored": true}});
    let changed = identities
        .patch("g", &params, &Patch::Merge(&changed))
        .await
        .unwrap();
    assert_eq!(changed.metadata.generation, Some(2));
    assert_eq!(changed.data["status"], json!({"conditions": []}));
    let strategic = Patch::Strategic(json!({"spec": {"clientID": "e"}}));
    assert_eq!(
        refusal(identities.patch("g", &params, &strategic).await).0,
        415
    );
    let mut blind = changed;
    blind.metadata.resource_version = None;
    let refused = refusal(
        identities
            .replace("g", &PostParams::default(), &blind)
            .await,
    );
    assert!(
        refused
            .2
            .contains("metadata.resourceVersion: Invalid value"),
        "{}",
        refused.2
    );
}
