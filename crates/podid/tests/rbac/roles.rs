//! The roles of a service account of podid's on a real kube-apiserver, with a verb less for a while.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use podid_testkit::apiserver::ApiServer;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const NAMESPACE: &str = "podid";

pub struct Roles {
    account: &'static str,
    client: Client,
    all: Vec<Value>,
}

impl Roles {
    /// Those of `account` among the objects of an installation.
    pub fn of(account: &'static str, client: &Client, objects: Vec<Value>) -> Self {
        let is_its = |object: &Value| {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            object["rules"].is_array() && name.starts_with(account)
        };
        Self {
            account,
            client: client.clone(),
            all: objects.into_iter().filter(is_its).collect(),
        }
    }

    /// What they grant: kind and name of the role, resource and verb.
    pub fn granted(&self) -> Vec<(String, String, String, String)> {
        let mut granted = Vec::new();
        for role in &self.all {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            for rule in role["rules"].as_array().unwrap() {
                for resource in rule["resources"].as_array().unwrap() {
                    for verb in rule["verbs"].as_array().unwrap() {
                        let of = (text(&role["kind"]), text(&role["metadata"]["name"]));
                        granted.push((of.0, of.1, text(resource), text(verb)));
                    }
                }
            }
        }
        granted
    }

    /// Takes one verb on one resource away from a role.
    pub async fn without(&self, kind: &str, role: &str, resource: &str, verb: &str) {
        let mut less = self.role(kind, role).clone();
        let mut rules = Vec::new();
        for rule in less["rules"].as_array().unwrap() {
            // A rule for each resource, of which one has a verb less.
            for one in rule["resources"].as_array().unwrap() {
                let mut rule = rule.clone();
                rule["resources"] = json!([one]);
                if one == resource {
                    rule["verbs"].as_array_mut().unwrap().retain(|v| v != verb);
                }
                rules.push(rule);
            }
        }
        rules.retain(|rule| rule["verbs"] != json!([]));
        less["rules"] = json!(rules);
        self.put(&less).await;
        self.until_authorizer_follows().await;
    }

    pub async fn restore(&self, kind: &str, role: &str) {
        self.put(self.role(kind, role)).await;
        self.until_authorizer_follows().await;
    }

    fn role(&self, kind: &str, role: &str) -> &Value {
        let of = |r: &&Value| r["kind"] == kind && r["metadata"]["name"] == role;
        self.all.iter().find(of).unwrap()
    }

    async fn put(&self, role: &Value) {
        let kind = role["kind"].as_str().unwrap();
        let name = role["metadata"]["name"].as_str().unwrap();
        let group = "/apis/rbac.authorization.k8s.io/v1";
        let path = match role["metadata"]["namespace"].as_str() {
            Some(namespace) if kind == "Role" => {
                format!("{group}/namespaces/{namespace}/roles/{name}")
            }
            _ => format!("{group}/clusterroles/{name}"),
        };
        self.send("PUT", &path, Some(role)).await.unwrap();
    }

    /// The authorizer learns of changes by a watch, in order: once it knows a later one, it knows all.
    async fn until_authorizer_follows(&self) {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let name = format!(
            "probe-{}",
            COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        );
        let group = "/apis/rbac.authorization.k8s.io/v1";
        let subject =
            json!([{ "kind": "ServiceAccount", "name": self.account, "namespace": NAMESPACE }]);
        for (kind, plural, scope) in [
            ("ClusterRole", "clusterroles", ""),
            ("Role", "roles", "/namespaces/podid"),
            ("Role", "roles", "/namespaces/default"),
        ] {
            let place = if scope.ends_with("default") {
                "default"
            } else {
                "podid"
            };
            let rules =
                json!([{ "apiGroups": ["probe.podid.io"], "resources": [name], "verbs": ["get"] }]);
            let meta = json!({ "name": name });
            self.send("POST", &format!("{group}{scope}/{plural}"), Some(&json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": meta, "rules": rules,
            })))
            .await
            .unwrap();
            let binding = format!("{kind}Binding");
            let bindings = plural.replace("roles", "rolebindings");
            self.send("POST", &format!("{group}{scope}/{bindings}"), Some(&json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": binding, "metadata": meta, "subjects": subject,
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
            })))
            .await
            .unwrap();
            let mut attributes =
                json!({ "group": "probe.podid.io", "resource": name, "verb": "get" });
            if !scope.is_empty() {
                attributes["namespace"] = json!(place);
            }
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": { "user": format!("system:serviceaccount:{NAMESPACE}:{}", self.account), "resourceAttributes": attributes },
            });
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
                if self.send("POST", path, Some(&review)).await.unwrap()["status"]["allowed"]
                    == true
                {
                    break;
                }
                assert!(Instant::now() < deadline, "the authorizer does not follow");
                sleep(Duration::from_millis(20)).await;
            }
            for path in [
                format!("{group}{scope}/{plural}/{name}"),
                format!("{group}{scope}/{bindings}/{name}"),
            ] {
                self.send("DELETE", &path, None).await.unwrap();
            }
        }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, kube::Error> {
        send(&self.client, method, path, body).await
    }
}

/// As whoever the client is.
pub async fn send(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, kube::Error> {
    let body = body
        .map(|body| body.to_string().into_bytes())
        .unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("Content-Type", "application/json");
    client.request(request.body(body).unwrap()).await
}

/// A kubeconfig with a token of a service account of podid's.
pub async fn kubeconfig(api: &ApiServer, account: &str) -> String {
    let client = api.client().await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client, NAMESPACE);
    let request = TokenRequest::default();
    let params = PostParams::default();
    let made = accounts.create_token_request(account, &params, &request);
    let token = made.await.unwrap().status.unwrap().token;
    let admin = std::fs::read(api.kubeconfig()).unwrap();
    let mut config: Value = serde_json::from_slice(&admin).unwrap();
    config["users"][0]["user"] = json!({ "token": token });
    config.to_string()
}
