//! What a person does with the real `kubectl`.

use std::process::{Command, Output};

use podid_testkit::process::run_with_input;
use podid_testkit::tools::Kubernetes;

use crate::{Subject, resources};

/// Runs `kubectl` in the test's namespace.
fn run(s: &Subject, args: &[&str], input: &str) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut kubectl = Command::new(Kubernetes::find().unwrap().kubectl);
    kubectl
        .arg("--kubeconfig")
        .arg(s.kubeconfig.path())
        .args(["-n", &s.namespace])
        .args(args)
        .env("HOME", home.path());
    run_with_input(kubectl, input).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// What `kubectl` prints when it succeeds.
fn ok(s: &Subject, args: &[&str], input: &str) -> String {
    let output = run(s, args, input);
    assert!(
        output.status.success(),
        "kubectl {args:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// What `kubectl` complains of.
fn refused(s: &Subject, args: &[&str], input: &str) -> String {
    let output = run(s, args, input);
    assert!(
        !output.status.success(),
        "kubectl {args:?} succeeded: {}",
        text(&output.stdout)
    );
    text(&output.stderr)
}

const BINDING: &str = "\
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: { name: binding }
spec: { AzureIdentity: reader-id, Selector: myapp }
";
const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: { name: myapp, labels: { aadpodidbinding: myapp } }
spec:
  containers:
  - { name: app, image: example/app:1, env: [ { name: A, value: one }, { name: B, value: two } ] }
  - { name: side, image: example/side:1 }
";

pub async fn a_person_applies_reads_and_deletes(s: Subject) {
    resources::install(&s.client).await;
    assert_eq!(ok(&s, &["apply", "-f", "-"], POD), "pod/myapp created");
    assert_eq!(ok(&s, &["apply", "-f", "-"], POD), "pod/myapp unchanged");
    let newer = POD.replace("app:1", "app:2");
    assert_eq!(
        ok(&s, &["apply", "-f", "-"], &newer),
        "pod/myapp configured"
    );
    let images = ok(
        &s,
        &[
            "get",
            "pod",
            "myapp",
            "-o",
            "jsonpath={.spec.containers[*].image}",
        ],
        "",
    );
    assert_eq!(images, "example/app:2 example/side:1");
    ok(&s, &["label", "pod", "myapp", "stage=test"], "");
    ok(&s, &["annotate", "pod/myapp", "note=a b"], "");
    ok(&s, &["label", "pod", "myapp", "aadpodidbinding-"], "");
    ok(
        &s,
        &[
            "patch",
            "pod",
            "myapp",
            "--subresource=status",
            "-p",
            r#"{"status":{"phase":"Running"}}"#,
        ],
        "",
    );
    ok(
        &s,
        &[
            "wait",
            "pod/myapp",
            "--for=jsonpath={.status.phase}=Running",
            "--timeout=10s",
        ],
        "",
    );
    assert_eq!(
        ok(&s, &["get", "pods", "-l", "stage=test", "-o", "name"], ""),
        "pod/myapp"
    );
    ok(&s, &["delete", "pod", "myapp", "--timeout=20s"], "");
    let gone = refused(&s, &["get", "pod", "myapp"], "");
    assert_eq!(
        gone,
        "Error from server (NotFound): pods \"myapp\" not found"
    );

    let name = "azureidentitybinding.aadpodidentity.k8s.io/binding";
    assert_eq!(
        ok(&s, &["apply", "-f", "-"], BINDING),
        format!("{name} created")
    );
    let other = BINDING.replace("Selector: myapp", "Selector: other");
    assert_eq!(
        ok(&s, &["apply", "-f", "-"], &other),
        format!("{name} configured")
    );
    let merge = r#"{"spec":{"weight":3}}"#;
    ok(
        &s,
        &[
            "patch",
            "azureidentitybinding",
            "binding",
            "--type=merge",
            "-p",
            merge,
        ],
        "",
    );
    let weight = ok(
        &s,
        &[
            "get",
            "azureidentitybinding/binding",
            "-o",
            "jsonpath={.spec.weight}",
        ],
        "",
    );
    assert_eq!(weight, "3");
    ok(&s, &["delete", "-f", "-"], BINDING);
}

pub async fn a_person_creates_by_command(s: Subject) {
    ok(
        &s,
        &["create", "configmap", "map", "--from-literal=a=b"],
        "",
    );
    ok(
        &s,
        &[
            "create",
            "secret",
            "generic",
            "secret",
            "--from-literal=a=b",
        ],
        "",
    );
    let read = ["get", "secret", "secret", "-o", "jsonpath={.data.a}"];
    assert_eq!(ok(&s, &read, ""), "Yg==");
    let read = ["get", "configmap", "map", "-o", "jsonpath={.data.a}"];
    assert_eq!(ok(&s, &read, ""), "b");
    ok(&s, &["create", "serviceaccount", "robot"], "");
    assert!(!ok(&s, &["create", "token", "robot"], "").is_empty());
    let gone = [
        "delete",
        "configmap,secret,serviceaccount",
        "map",
        "secret",
        "robot",
        "--ignore-not-found",
    ];
    ok(&s, &gone, "");
    let another = format!("{}-more", s.namespace);
    let made = ok(&s, &["create", "ns", &another], "");
    assert_eq!(made, format!("namespace/{another} created"));
    let phase = ok(
        &s,
        &["get", "ns", &another, "-o", "jsonpath={.status.phase}"],
        "",
    );
    assert_eq!(phase, "Active");
    ok(&s, &["delete", "ns", &another, "--wait=false"], "");
}

pub async fn a_person_sees_columns(s: Subject) {
    resources::install(&s.client).await;
    let identity = "\
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: { name: reader-id }
spec: { type: 0, resourceID: RESOURCE, clientID: CLIENT }
";
    let identity = identity
        .replace("RESOURCE", RESOURCE)
        .replace("CLIENT", CLIENT);
    ok(&s, &["apply", "-f", "-"], &identity);
    ok(&s, &["apply", "-f", "-"], POD);
    let words = |args: &[&str], line: usize| -> Vec<String> {
        let printed = ok(&s, args, "");
        let line = printed.lines().nth(line).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(
        words(&["get", "azureidentities"], 0),
        [
            "NAME",
            "TYPE",
            "CLIENTID",
            "FEDERATION",
            "READY",
            "REASON",
            "AGE"
        ]
    );
    assert_eq!(
        words(&["get", "azureidentities"], 1)[..3],
        ["reader-id", "0", CLIENT]
    );
    let federated = identity
        .replace("reader-id", "without")
        .replace("type: 0", "federation: {}");
    ok(&s, &["apply", "-f", "-"], &federated);
    let federated = identity
        .replace("reader-id", "within")
        .replace("type: 0", "type: 1, federation: { audience: 'api://own' }");
    ok(&s, &["apply", "-f", "-"], &federated);
    assert_eq!(
        words(&["get", "azureidentities", "without"], 1)[1..3],
        [CLIENT, "{}"]
    );
    assert_eq!(
        words(&["get", "azureidentities", "within"], 1)[1..4],
        ["1", CLIENT, r#"{"audience":"api://own"}"#]
    );
    assert_eq!(
        words(&["get", "po"], 0),
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    );
    assert_eq!(
        words(&["get", "po"], 1)[..4],
        ["myapp", "0/2", "Pending", "0"]
    );
    let watched = run(&s, &["get", "pods", "-w", "--request-timeout=1s"], "");
    let watched = text(&watched.stdout);
    assert!(
        watched.starts_with("NAME") && watched.contains("\nmyapp "),
        "{watched}"
    );
    let wide = words(&["get", "pods", "-o", "wide"], 0);
    assert_eq!(wide[5..8], ["IP", "NODE", "NOMINATED"]);
    assert_eq!(
        words(&["get", "ns", &s.namespace], 1)[..2],
        [s.namespace.as_str(), "Active"]
    );
    let service = words(&["get", "svc", "-n", "default", "kubernetes"], 1);
    assert_eq!(service[..2], ["kubernetes", "ClusterIP"]);
    assert_eq!(service[4], "443/TCP");
}

pub async fn a_person_is_told_what_is_wrong(s: Subject) {
    resources::install(&s.client).await;
    let misspelt = BINDING.replace("Selector:", "Selektor:");
    let complaint = refused(&s, &["apply", "-f", "-"], &misspelt);
    assert!(
        complaint.contains("strict decoding error: unknown field \"spec.Selektor\""),
        "{complaint}"
    );
    let complaint = refused(&s, &["apply", "--validate=false", "-f", "-"], &misspelt);
    assert!(
        complaint.contains("spec.selector is required"),
        "{complaint}"
    );
    let complaint = refused(
        &s,
        &["apply", "-f", "-"],
        &POD.replace("image: example/side:1", "imagine: x"),
    );
    assert!(
        complaint.contains("unknown field \"spec.containers[1].imagine\""),
        "{complaint}"
    );
    let complaint = refused(&s, &["get", "nonsense"], "");
    assert_eq!(
        complaint,
        "error: the server doesn't have a resource type \"nonsense\""
    );
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: map }\n";
    ok(&s, &["create", "-f", "-"], map);
    let complaint = refused(&s, &["create", "-f", "-"], map);
    assert!(
        complaint.contains("configmaps \"map\" already exists"),
        "{complaint}"
    );
}

pub async fn a_person_explores(s: Subject) {
    resources::install(&s.client).await;
    let kinds = ok(&s, &["api-resources", "--no-headers"], "");
    for expected in [
        "pods",
        "azureidentities",
        "leases",
        "customresourcedefinitions",
    ] {
        assert!(
            kinds.lines().any(|line| line.starts_with(expected)),
            "{expected}: {kinds}"
        );
    }
    let versions = ok(&s, &["api-versions"], "");
    assert!(
        versions.contains("aadpodidentity.k8s.io/v1\n") && versions.contains("\nv1"),
        "{versions}"
    );
    ok(&s, &["apply", "-f", "-"], POD);
    let uid = ok(
        &s,
        &["get", "pod", "myapp", "-o", "jsonpath={.metadata.uid}"],
        "",
    );
    let event = format!(
        "apiVersion: v1\nkind: Event\nmetadata: {{ name: myapp.1 }}\ntype: Warning\nreason: Refused\nmessage: no binding\n\
         involvedObject: {{ kind: Pod, name: myapp, namespace: {0}, apiVersion: v1, uid: {uid} }}\nsource: {{ component: nmi }}\n",
        s.namespace
    );
    ok(&s, &["create", "-f", "-"], &event);
    let described = ok(&s, &["describe", "pod", "myapp"], "");
    for expected in [
        "Labels:",
        "aadpodidbinding=myapp",
        "example/side:1",
        "Refused",
        "no binding",
    ] {
        assert!(described.contains(expected), "{expected}: {described}");
    }
    let events = ok(
        &s,
        &[
            "get",
            "events.v1.events.k8s.io",
            "-o",
            "jsonpath={.items[0].note}",
        ],
        "",
    );
    assert_eq!(events, "no binding");
    let crd = "azureidentities.aadpodidentity.k8s.io";
    ok(
        &s,
        &[
            "wait",
            "--for=condition=established",
            "crd",
            crd,
            "--timeout=10s",
        ],
        "",
    );
    assert_eq!(ok(&s, &["auth", "can-i", "create", "pods"], ""), "yes");
    ok(&s, &["describe", "azureidentities"], "");
    ok(
        &s,
        &["delete", "pod", "myapp", "--force", "--grace-period=0"],
        "",
    );
}

const RESOURCE: &str = "/subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader-id";
const CLIENT: &str = "6f1c0000-0000-0000-0000-0000000022ab";

/// The three manifests as printed in the article that introduced these resources, with its placeholders filled in.
fn printed() -> [String; 3] {
    let fill = |yaml: &str| {
        yaml.replace("<your_managed_identity_name>", "reader-id")
            .replace(
                "<your_managed_identity_name from the previous step>",
                "reader-id",
            )
            .replace("<the managed identity id returned previously>", RESOURCE)
            .replace(
                "<the managed identity clientId returned previously>",
                CLIENT,
            )
            .replace("<your_app_selector_name>", "myapp")
    };
    [
        fill(include_str!(
            "../../../podid/src/demo/article/aadpodidentity.yaml"
        )),
        fill(include_str!(
            "../../../podid/src/demo/article/aadpodidentitybinding.yaml"
        )),
        fill(include_str!(
            "../../../podid/src/demo/article/aad-identity-exception.yaml"
        )),
    ]
}

pub async fn the_older_spelling_applies_as_printed(s: Subject) {
    resources::install(&s.client).await;
    for manifest in printed() {
        ok(&s, &["apply", "-f", "-"], &manifest);
    }
    let field =
        |kind: &str, path: &str| ok(&s, &["get", kind, "-o", &format!("jsonpath={path}")], "");
    assert_eq!(
        field("azureidentities", "{.items[0].spec.ClientID}"),
        CLIENT
    );
    assert_eq!(
        field("azureidentities", "{.items[0].spec.ResourceID}"),
        RESOURCE
    );
    assert_eq!(
        field("azureidentitybindings", "{.items[0].spec.Selector}"),
        "myapp"
    );
    assert_eq!(
        field("azurepodidentityexceptions", "{.items[0].spec.PodLabels}"),
        r#"{"noaad":true}"#
    );
    let today = printed()[0]
        .replace("ResourceID", "resourceID")
        .replace("ClientID", "clientID");
    ok(&s, &["replace", "-f", "-"], &today);
    assert!(ok(&s, &["get", "azureidentities"], "").contains(CLIENT));
}

pub async fn a_misspelt_field_is_refused_by_its_right_name(s: Subject) {
    resources::install(&s.client).await;
    let [identity, binding, exception] = printed();
    for (manifest, right, wrong, said) in [
        (
            &identity,
            "ClientID",
            "ClientId",
            "spec.clientID is required",
        ),
        (&identity, "ClientID", "clientid", "write spec.clientID"),
        (
            &identity,
            "ResourceID",
            "resourceId",
            "spec.resourceID is required",
        ),
        (
            &binding,
            "AzureIdentity: ",
            "azureidentity: ",
            "write spec.azureIdentity",
        ),
        (&exception, "PodLabels", "podlabels", "write spec.podLabels"),
    ] {
        let wrong = manifest.replace(&format!("  {right}"), &format!("  {wrong}"));
        let complaint = refused(&s, &["apply", "-f", "-"], &wrong);
        assert!(complaint.contains(said), "{complaint}");
    }
}
