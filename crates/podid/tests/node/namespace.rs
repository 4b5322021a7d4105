//! A namespace of one test, with an identity and a binding for pods labelled `aadpodidbinding: myapp`.

use podid_sim::azure::Identity;
use serde_json::{Value, json};

use crate::world::{TOKEN, World, text};

/// Deleted on drop.
pub struct Namespace<'a> {
    pub world: &'a World,
    pub name: String,
    pub identity: Identity,
}

/// A pod of the application that waits for what a test has it do, on a node.
pub fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": {} },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node }, "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "app", "image": "APP" }],
        },
    })
}

/// The same with the label that the namespace's binding selects.
pub fn bound(mut pod: Value) -> Value {
    pod["metadata"]["labels"]["aadpodidbinding"] = json!("myapp");
    pod
}

/// A pod that may do to its own network what it likes.
pub fn network_admin(name: &str, node: &str) -> Value {
    let mut thief = pod(name, node);
    thief["spec"]["containers"][0]["securityContext"] =
        json!({ "capabilities": { "add": ["NET_ADMIN", "NET_RAW"] } });
    thief
}

/// Whether a pod reads what the node's own metadata service knows of the machine, which nmi gives to no pod.
pub fn reaches_node(namespace: &Namespace, pod: &str) -> bool {
    let url = "http://169.254.169.254/metadata/instance?api-version=2021-02-01";
    let said = namespace.exec(
        pod,
        &[
            "curl",
            "-sS",
            "--max-time",
            "10",
            "-H",
            "Metadata:true",
            url,
        ],
    );
    text(&said).contains("subscriptionId")
}

impl<'a> Namespace<'a> {
    pub fn new(world: &'a World, name: &str) -> Self {
        let identity = world.identity(name);
        world.kubectl(&["create", "namespace", name]);
        let namespace = Self {
            world,
            name: name.to_owned(),
            identity,
        };
        // Pods are refused before.
        namespace.within(&["wait", "--for=create", "serviceaccount/default"]);
        namespace.apply(&[
            json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": { "name": "reader" },
                "spec": { "type": 0, "resourceID": namespace.identity.id, "clientID": namespace.identity.client_id },
            }),
            json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": { "name": "reader" },
                "spec": { "azureIdentity": "reader", "selector": "myapp" },
            }),
        ]);
        namespace
    }

    /// Makes objects in the namespace; `APP` stands for the application's image.
    pub fn apply(&self, objects: &[Value]) {
        let objects: Vec<Value> = objects.to_vec();
        let mut text = Value::from(objects)
            .to_string()
            .replace("\"APP\"", &format!("\"{}\"", self.world.app));
        text = format!(r#"{{"apiVersion":"v1","kind":"List","items":{text}}}"#);
        self.world.apply_yaml(&self.name, &text);
    }

    pub fn kubectl(&self, words: &[&str]) -> String {
        self.world
            .kubectl(&[&["-n", &self.name][..], words].concat())
    }

    pub fn within(&self, words: &[&str]) -> String {
        self.world
            .kubectl_within(&[&["-n", &self.name][..], words].concat())
    }

    pub fn get(&self, words: &[&str]) -> Value {
        self.world.get(&[&["-n", &self.name][..], words].concat())
    }

    /// Makes pods and waits until they are ready.
    pub fn start(&self, pods: &[Value]) {
        self.apply(pods);
        let names = pods
            .iter()
            .map(|pod| format!("pod/{}", pod["metadata"]["name"].as_str().unwrap()));
        let names: Vec<String> = names.collect();
        let names = names.iter().map(String::as_str);
        self.within(
            &["wait", "--for=condition=Ready"]
                .into_iter()
                .chain(names)
                .collect::<Vec<_>>(),
        );
    }

    /// Runs a program in a pod.
    pub fn exec(&self, pod: &str, words: &[&str]) -> std::process::Output {
        let exec = ["-n", &self.name, "exec", "-i", pod, "--"];
        self.world
            .cluster
            .run_kubectl(&[&exec[..], words].concat(), "")
            .unwrap()
    }

    /// What a pod is answered when it asks for a token: the status, 0 for no answer, and the body.
    pub fn ask(&self, pod: &str) -> (u16, Value) {
        let curl = "curl -sS --max-time 20 -w \\n%{http_code} -H Metadata:true";
        let words: Vec<&str> = curl.split(' ').chain([TOKEN]).collect();
        let output = self.exec(pod, &words);
        let said = text(&output);
        let (body, status) = said.trim_end().rsplit_once('\n').unwrap_or_default();
        let body = serde_json::from_str(body).unwrap_or_default();
        (status.parse().unwrap_or(0), body)
    }

    /// What a pod is answered when it asks from an address that it has taken.
    pub fn ask_from(&self, pod: &str, address: &str) -> (u16, String) {
        let curl = format!(
            "curl -sS --max-time 5 --interface {address} -w \\n%{{http_code}} -H Metadata:true {TOKEN}"
        );
        let said = text(&self.exec(pod, &curl.split(' ').collect::<Vec<_>>()));
        let (body, status) = said.trim_end().rsplit_once('\n').unwrap_or(("", &said));
        (status.parse().unwrap_or(0), body.to_owned())
    }

    /// Whether an answer has a token of the namespace's identity.
    pub fn is_own(&self, (status, body): &(u16, Value)) -> bool {
        let token = body["access_token"].as_str();
        let claims = token.and_then(|token| self.world.azure.control.claims(token));
        *status == 200 && claims.is_some_and(|claims| claims["appid"] == self.identity.client_id)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.name, "--wait=false"];
        let _ = self.world.cluster.run_kubectl(&delete, "");
    }
}
