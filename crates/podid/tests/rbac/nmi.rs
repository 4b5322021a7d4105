//! Whoever has a node has its nmi's token: it may do what nmi needs, each verb of it, and nothing else.

use std::collections::BTreeSet;

use crate::node::{Node, PODS, TAINT};

/// What does not come about with one verb less.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    /// nmi is ready, and a pod has its token.
    Tokens,
    /// Nothing but what nmi says: it lists again and again.
    Watch,
    /// A service principal's token is had.
    Principal,
    /// A token is given no more after its Secret is gone.
    Revocation,
    /// The startup taint is lifted.
    Taint,
}

/// Each verb of each resource that nmi has, and what it is for.
const RULES: [(&str, &str, Broken); 15] = {
    use Broken::{Principal, Revocation, Taint, Tokens, Watch};
    [
        ("pods", "list", Tokens),
        ("pods", "watch", Watch),
        ("azureidentities", "list", Tokens),
        ("azureidentities", "watch", Watch),
        ("azureidentitybindings", "list", Tokens),
        ("azureidentitybindings", "watch", Watch),
        ("azurepodidentityexceptions", "list", Tokens),
        ("azurepodidentityexceptions", "watch", Watch),
        ("azureassignedidentities", "list", Tokens),
        ("azureassignedidentities", "watch", Watch),
        ("secrets", "get", Principal),
        ("secrets", "list", Revocation),
        ("secrets", "watch", Watch),
        ("nodes", "get", Taint),
        ("nodes", "patch", Taint),
    ]
};
const OPTIONS: [&str; 4] = [
    "--set",
    "rbac.secretNamespaces={default}",
    "--set",
    "nmi.startupTaint=podid.io/agent-not-ready:NoSchedule",
];
const ATTACHED: std::net::Ipv4Addr = PODS[0].1;
const ROBOT: std::net::Ipv4Addr = PODS[1].1;

/// With everything that the chart may grant, and then with one verb less after the other.
#[tokio::test(flavor = "multi_thread")]
async fn nmi_has_what_it_needs_and_nothing_else() {
    let node = Node::build("standard", &OPTIONS).await;
    node.taint().await;
    let mut nmi = node.start("all");
    let has = async |address| node.ask(address).await.0 == 200;
    node.until(&nmi, "ready", async || node.is_ready().await)
        .await;
    node.until(&nmi, "a token", async || has(ATTACHED).await)
        .await;
    node.until(&nmi, "a principal's", async || has(ROBOT).await)
        .await;
    node.until(&nmi, TAINT, async || !node.is_tainted().await)
        .await;
    // A Secret that is gone takes its tokens along.
    node.delete_secret().await;
    node.until(&nmi, "revocation", async || node.ask(ROBOT).await.0 == 403)
        .await;
    node.put_secret().await;
    nmi.kill();

    let granted = node.roles.granted();
    assert_eq!(granted.len(), RULES.len(), "{granted:?}");
    for (kind, role, resource, verb) in granted {
        let named = |(r, v, _): &&(&str, &str, Broken)| *r == resource && *v == verb;
        let Some((.., broken)) = RULES.iter().find(named) else {
            panic!("{role} grants {verb} on {resource}, and nothing here says what for");
        };
        node.roles.without(&kind, &role, &resource, &verb).await;
        node.taint().await;
        let mut nmi = node.start(&format!("without-{verb}-{resource}"));
        if *broken != Broken::Tokens {
            node.until(&nmi, "ready", async || node.is_ready().await)
                .await;
            node.until(&nmi, "a token", async || has(ATTACHED).await)
                .await;
        }
        // Whatever it asks for by `get` it does not ask for before that.
        let refused = *broken != Broken::Tokens && !has(ROBOT).await;
        let told = match *broken {
            Broken::Principal => "secret_missing".to_owned(),
            _ => format!("cannot {verb} resource \\\"{resource}\\\""),
        };
        node.until(&nmi, &told, async || nmi.log().contains(&told))
            .await;
        let holds = match broken {
            Broken::Tokens => node.is_ready().await || has(ATTACHED).await,
            Broken::Watch => false,
            Broken::Principal => !refused,
            Broken::Taint => !node.is_tainted().await,
            Broken::Revocation => {
                node.delete_secret().await;
                let stays = has(ROBOT).await;
                node.put_secret().await;
                !stays
            }
        };
        assert!(
            !holds,
            "{broken:?} without {verb} on {resource}: {}",
            nmi.log()
        );
        nmi.kill();
        node.roles.restore(&kind, &role).await;
    }
}

fn pairs(kinds: &[&str], verbs: &[&str]) -> BTreeSet<(String, String)> {
    let mut pairs = BTreeSet::new();
    for kind in kinds {
        pairs.extend(
            verbs
                .iter()
                .map(|verb| (kind.to_string(), verb.to_string())),
        );
    }
    pairs
}

/// By the API server's own word, as the account itself.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_nmis_token_can_look_and_change_nothing() {
    let kinds = [
        "pods",
        "azureidentities",
        "azureidentitybindings",
        "azurepodidentityexceptions",
        "azureassignedidentities",
    ];
    let node = pairs(&["nodes"], &["get"]);
    let look = &pairs(&kinds, &["list", "watch"]) | &node;
    let plain = Node::build("standard", &[]).await;
    for namespace in ["default", "kube-system", "podid"] {
        let may = BTreeSet::from_iter(plain.may(namespace).await);
        assert_eq!(may, look, "{namespace}");
    }
    let managed = Node::build("managed", &[]).await;
    let may = BTreeSet::from_iter(managed.may("default").await);
    assert_eq!(may, &pairs(&kinds[..4], &["list", "watch"]) | &node);
    // That is enough there.
    let nmi = managed.start("managed");
    managed
        .until(&nmi, "a token", async || {
            managed.ask(ATTACHED).await.0 == 200
        })
        .await;

    let more = Node::build("standard", &OPTIONS).await;
    let taint = pairs(&["nodes"], &["get", "patch"]);
    let secrets = pairs(&["secrets"], &["get", "list", "watch"]);
    let elsewhere = BTreeSet::from_iter(more.may("kube-system").await);
    assert_eq!(elsewhere, &look | &taint);
    let there = BTreeSet::from_iter(more.may("default").await);
    assert_eq!(there, &(&look | &taint) | &secrets);
}
