//! The broker may do what it needs, each verb of it, and nothing else: with its token somebody has tokens of the service accounts that
//! stand for identities, and of no other.

use kube::Client;
use serde_json::json;

use crate::broker_world::World;
use crate::roles::send;

/// What does not come about with one verb less.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    /// The broker is ready.
    Ready,
    /// Nothing but what the broker says: it lists again and again.
    Watch,
    /// A pod has its token.
    Token,
    /// A pod that no watch reports is looked up.
    Pod,
    /// An identity that the watches do not bind to a pod is looked up.
    Identity,
}

/// Each verb of each resource that the broker has, and what it is for.
const RULES: [(&str, &str, Broken); 16] = {
    use Broken::{Identity, Pod, Ready, Token, Watch};
    [
        ("pods", "get", Pod),
        ("pods", "list", Ready),
        ("pods", "watch", Watch),
        ("azureidentities", "get", Identity),
        ("azureidentities", "list", Ready),
        ("azureidentities", "watch", Watch),
        ("azureidentitybindings", "list", Ready),
        ("azureidentitybindings", "watch", Watch),
        ("azurepodidentityexceptions", "list", Ready),
        ("azurepodidentityexceptions", "watch", Watch),
        ("tokenreviews", "create", Token),
        ("secrets", "get", Ready),
        ("secrets", "update", Ready),
        ("configmaps", "get", Ready),
        ("configmaps", "patch", Ready),
        ("serviceaccounts/token", "create", Token),
    ]
};

/// With everything that is granted, and then with one verb less after the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_broker_has_what_it_needs_and_nothing_else() {
    let world = World::build().await;
    let mut broker = world.start("all");
    world
        .until(&broker, "ready", async || world.is_ready().await)
        .await;
    world
        .until(&broker, "a token", async || world.has_token().await)
        .await;
    assert!(world.is_known_as_not_granted(1, "reader").await);
    assert!(world.is_known_as_not_granted(0, "unbound").await);
    world.applied_again_keeps_the_ca().await;
    broker.kill();

    let granted = world.roles.granted();
    assert_eq!(granted.len(), RULES.len(), "{granted:?}");
    for (kind, role, resource, verb) in granted {
        let named = |(r, v, _): &&(&str, &str, Broken)| *r == resource && *v == verb;
        let Some((.., broken)) = RULES.iter().find(named) else {
            panic!("{role} grants {verb} on {resource}, and nothing here says what for");
        };
        world.empty_ca().await;
        world.roles.without(&kind, &role, &resource, &verb).await;
        let mut broker = world.start(&format!("without-{verb}-{}", resource.replace('/', "-")));
        if *broken != Broken::Ready {
            world
                .until(&broker, "ready", async || world.is_ready().await)
                .await;
        }
        let holds = match broken {
            Broken::Ready | Broken::Watch => {
                let told = format!("cannot {verb} resource \\\"{resource}\\\"");
                let says = async || broker.log().contains(&told);
                world.until(&broker, &told, says).await;
                *broken == Broken::Ready && world.is_ready().await
            }
            Broken::Token => world.has_token().await,
            Broken::Pod => world.is_known_as_not_granted(1, "reader").await,
            Broken::Identity => world.is_known_as_not_granted(0, "unbound").await,
        };
        assert!(
            !holds,
            "{broken:?} without {verb} on {resource}: {}",
            broker.log()
        );
        broker.kill();
        world.roles.restore(&kind, &role).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_the_brokers_token_has_no_other_accounts_token() {
    let world = World::build().await;
    let config = std::fs::read_to_string(world.at("kubeconfig")).unwrap();
    let config = serde_json::from_str(&config).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .unwrap();
    let thief = Client::try_from(config).unwrap();
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "audiences": [] } });
    let token = async |namespace: &str, account: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = send(&thief, "POST", &path, Some(&request)).await;
        answer.map(drop).map_err(|error| error.to_string())
    };
    token("podid-identities", "default.reader").await.unwrap();
    for (namespace, account) in [
        ("podid", "podid-mic"),
        ("podid", "podid-nmi"),
        ("podid", "podid-broker"),
        ("default", "default"),
        ("kube-system", "default"),
    ] {
        let error = token(namespace, account).await.unwrap_err();
        assert!(
            error.contains("cannot create resource"),
            "{namespace}/{account}: {error}"
        );
    }
    // Nor by a Secret that the API server fills with a token, by a pod, or by a role of one's own.
    let meta = json!({ "name": "x", "annotations": { "kubernetes.io/service-account.name": "podid-mic" } });
    for (path, kind) in [
        (
            "/api/v1/namespaces/podid/secrets",
            json!({ "kind": "Secret", "type": "kubernetes.io/service-account-token" }),
        ),
        (
            "/api/v1/namespaces/podid/pods",
            json!({ "kind": "Pod", "spec": { "containers": [{ "name": "c", "image": "i" }] } }),
        ),
        (
            "/api/v1/namespaces/podid-identities/pods",
            json!({ "kind": "Pod", "spec": { "containers": [{ "name": "c", "image": "i" }] } }),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/podid/roles",
            json!({ "kind": "Role", "rules": [] }),
        ),
    ] {
        let mut object = kind;
        object["metadata"] = meta.clone();
        object["apiVersion"] = json!(if path.contains("rbac") {
            "rbac.authorization.k8s.io/v1"
        } else {
            "v1"
        });
        let error = send(&thief, "POST", path, Some(&object))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot create resource"), "{path}: {error}");
    }
    let other = send(&thief, "GET", "/api/v1/namespaces/podid/secrets", None).await;
    assert!(
        other
            .unwrap_err()
            .to_string()
            .contains("cannot list resource")
    );
}
