//! A broker between the fakes, with an identity, a binding, two nodes and a pod on the first of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use podid_policy::facts::ObjectKey;
use podid_policy::matching::Scope;
use reqwest::Url;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{FakeApi, FakeEntra};
use crate::authority::keeper::{BUNDLE, Keeper};
use crate::client::{BrokerClient, ClientError};
use crate::context::Context;
use crate::protocol::{ErrorKind, IdentityRef, PodRef, PodToken, PodTokenRequest};
use crate::{Broker, Config};

pub(crate) const VAULT: &str = "https://vault.azure.net";

pub(crate) fn config() -> Config {
    let any = ([127, 0, 0, 1], 0).into();
    Config {
        namespace: "podid".to_owned(),
        authority_object: "podid-broker-ca".to_owned(),
        server_names: vec!["podid-broker.podid.svc".to_owned(), "127.0.0.1".to_owned()],
        scope: Scope::Namespaced,
        nmi_account: ObjectKey::new("podid", "podid-nmi"),
        mic_account: ObjectKey::new("podid", "podid-mic"),
        tenant: Some("home".to_owned()),
        assertion_audience: "api://AzureADTokenExchange".to_owned(),
        check_resource: "https://management.azure.com/".to_owned(),
        token_floor: Duration::from_secs(300),
        listen: any,
        probe: any,
        metrics: any,
    }
}

pub(crate) struct World {
    pub(crate) api: FakeApi,
    pub(crate) entra: FakeEntra,
    pub(crate) context: Arc<Context>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) url: Url,
    scratch: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a review says of a token of this account's pod on this node.
pub(crate) fn review(account: &str, audience: &str, node: Option<&str>) -> Value {
    let mut user = json!({ "username": format!("system:serviceaccount:{account}") });
    if let Some(node) = node {
        user["extra"] = json!({ "authentication.kubernetes.io/node-name": [node] });
    }
    json!({ "authenticated": true, "audiences": [audience], "user": user })
}

pub(crate) fn pod(name: &str, uid: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": name, "uid": uid, "labels": { "aadpodidbinding": "app" } },
        "spec": { "nodeName": node, "containers": [] }, "status": { "phase": "Running" },
    })
}

pub(crate) fn ours(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind,
        "metadata": { "namespace": "shop", "name": name }, "spec": spec,
    })
}

pub(crate) fn identity(name: &str) -> Value {
    let spec =
        json!({ "type": 0, "clientID": "6f1c0000-0000-0000-0000-0000000022ab", "federation": {} });
    ours("AzureIdentity", name, spec)
}

pub(crate) fn binding(name: &str, identity: &str) -> Value {
    let spec = json!({ "azureIdentity": identity, "selector": "app" });
    ours("AzureIdentityBinding", name, spec)
}

/// Everything that a token for the pod `web` needs.
fn furnish(api: &FakeApi) {
    for (plural, kind) in [("secrets", "Secret"), ("configmaps", "ConfigMap")] {
        let meta = json!({ "namespace": "podid", "name": "podid-broker-ca" });
        api.put(
            plural,
            json!({ "apiVersion": "v1", "kind": kind, "metadata": meta }),
        );
    }
    let meta = json!({ "namespace": "podid-identities", "name": "shop.reader" });
    api.put("serviceaccounts", json!({ "metadata": meta }));
    api.put("azureidentities", identity("reader"));
    api.put("azureidentitybindings", binding("reader", "reader"));
    api.put("pods", pod("web", "u1", "n1"));
    api.accept(
        "nmi-n1",
        review("podid:podid-nmi", "podid-broker", Some("n1")),
    );
    api.accept(
        "nmi-n2",
        review("podid:podid-nmi", "podid-broker", Some("n2")),
    );
    api.accept("mic", review("podid:podid-mic", "podid-broker", Some("n1")));
}

impl World {
    pub(crate) async fn start() -> Self {
        let api = FakeApi::default();
        furnish(&api);
        Self::over(api).await
    }

    /// With a cluster as it is.
    pub(crate) async fn over(api: FakeApi) -> Self {
        let entra = FakeEntra::start().await;
        let broker = Broker::new(config(), api.client(), entra.client());
        let context = Arc::clone(&broker.context);
        let listeners = broker.bind().unwrap();
        let address = listeners.https.local_addr().unwrap();
        let keeper = Keeper::new(&api.client(), &context.config);
        keeper.sync(&context, Timestamp::now()).await.unwrap();
        let shutdown = CancellationToken::new();
        let running = broker.run(listeners, shutdown.clone());
        let task = tokio::spawn(async move { running.await.unwrap() });
        let world = Self {
            url: Url::parse(&format!("https://{address}")).unwrap(),
            api,
            entra,
            context,
            shutdown,
            scratch: tempfile::tempdir().unwrap(),
            task,
        };
        world.copy_bundle();
        world.until("synced", || world.context.is_synced()).await;
        let first_look = || {
            world
                .context
                .metrics
                .text(0)
                .contains("\npodid_broker_authority_in_sync 1\n")
        };
        world.until("the first look at the CA", first_look).await;
        world
    }

    /// Does what the kubelet does: brings the ConfigMap to the clients.
    pub(crate) fn copy_bundle(&self) {
        let map = self
            .api
            .get("configmaps", "podid", "podid-broker-ca")
            .unwrap();
        let bundle = map["data"][BUNDLE].as_str().unwrap();
        std::fs::write(self.file(BUNDLE), bundle).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A client that has this token.
    pub(crate) fn client(&self, token: &str) -> BrokerClient {
        let file = self.file(&format!("token-{token}"));
        std::fs::write(&file, format!("{token}\n")).unwrap();
        let deadline = Duration::from_secs(20);
        BrokerClient::new(self.url.clone(), self.file(BUNDLE), file, deadline)
    }

    /// What a node agent is answered that asks for a pod's token.
    pub(crate) async fn ask(
        &self,
        token: &str,
        pod: &str,
        uid: &str,
    ) -> Result<PodToken, ClientError> {
        self.client(token).token(&request(pod, uid)).await
    }

    /// Why this request is refused.
    pub(crate) async fn refused(
        &self,
        token: &str,
        pod: &str,
        uid: &str,
    ) -> (u16, ErrorKind, String) {
        refusal(self.ask(token, pod, uid).await.map(drop))
    }

    /// Waits for what a watch brings.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        waited.unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// Deletes an object, and waits until the broker knows.
    pub(crate) async fn delete(&self, plural: &str, name: &str) {
        self.api.delete(plural, "shop", name);
        let key = ObjectKey::new("shop", name);
        self.until("deleted", || {
            let index = self.context.index.read();
            match plural {
                "pods" => index.pod(&key).is_none(),
                "azureidentities" => index.identity(&key).is_none(),
                _ => !index.binding_keys().contains(&key),
            }
        })
        .await;
    }
}

pub(crate) fn request(pod: &str, uid: &str) -> PodTokenRequest {
    PodTokenRequest {
        pod: PodRef {
            namespace: "shop".to_owned(),
            name: pod.to_owned(),
            uid: uid.to_owned(),
        },
        identity: reader(),
        resource: VAULT.to_owned(),
    }
}

pub(crate) fn reader() -> IdentityRef {
    IdentityRef {
        namespace: "shop".to_owned(),
        name: "reader".to_owned(),
    }
}

/// Status, kind and text of a refusal.
pub(crate) fn refusal(outcome: Result<(), ClientError>) -> (u16, ErrorKind, String) {
    match outcome {
        Err(ClientError::Refused {
            status,
            kind,
            message,
            ..
        }) => (status, kind, message),
        Ok(()) => panic!("it was given"),
        Err(other) => panic!("{other}"),
    }
}
