//! Tokens of service accounts (TokenRequest), their review, the issuer's documents, and access reviews.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Request;
use k8s_openapi::api::{
    authentication::v1::TokenReview,
    authorization::v1::SubjectAccessReview,
    core::v1::{Node, Pod, ServiceAccount},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{Subject, objects::refusal};

const AUDIENCE: &str = "api://AzureADTokenExchange";

async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

async fn account(s: &Subject, name: &str) -> ServiceAccount {
    let accounts = Api::namespaced(s.client.clone(), &s.namespace);
    create(&accounts, json!({ "metadata": { "name": name } })).await
}

async fn pod(s: &Subject, name: &str, account: &str, node: Option<&str>) -> Pod {
    let pods = Api::namespaced(s.client.clone(), &s.namespace);
    let object = json!({ "metadata": { "name": name }, "spec": {
        "nodeName": node, "serviceAccountName": account, "containers": [{ "name": "c", "image": "example/app:1" }],
    } });
    create(&pods, object).await
}

/// Posts a TokenRequest.
async fn request(s: &Subject, account: &str, body: Value) -> kube::Result<Value> {
    let path = format!(
        "/api/v1/namespaces/{}/serviceaccounts/{account}/token",
        s.namespace
    );
    let mut body = body;
    body["apiVersion"] = "authentication.k8s.io/v1".into();
    body["kind"] = "TokenRequest".into();
    let request = Request::post(path).header("content-type", "application/json");
    let request = request.body(body.to_string().into_bytes()).unwrap();
    s.client.request(request).await
}

async fn token(s: &Subject, account: &str, spec: Value) -> String {
    let made = request(s, account, json!({ "spec": spec })).await.unwrap();
    made["status"]["token"].as_str().unwrap().to_owned()
}

fn bound(pod: &Pod) -> Value {
    json!({ "kind": "Pod", "apiVersion": "v1", "name": pod.name_any(), "uid": pod.uid() })
}

/// The header and the claims of a token.
fn parts(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| {
        let part = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        serde_json::from_slice(&part).unwrap_or_default()
    });
    (parts.next().unwrap(), parts.next().unwrap())
}

async fn document(s: &Subject, path: &str) -> Value {
    let request = Request::get(path).body(Vec::new()).unwrap();
    s.client.request(request).await.unwrap()
}

async fn review(s: &Subject, token: &str, audiences: &[&str]) -> Value {
    let reviews: Api<TokenReview> = Api::all(s.client.clone());
    let spec = json!({ "metadata": {}, "spec": { "token": token, "audiences": audiences } });
    let made = create(&reviews, spec).await;
    serde_json::to_value(made.status).unwrap()
}

/// That a review does not accept the token, and why.
async fn rejection(s: &Subject, token: &str, audiences: &[&str]) -> String {
    let status = review(s, token, audiences).await;
    assert_eq!(status.get("authenticated"), None, "{status}");
    assert_eq!(status["user"], json!({}), "{status}");
    status["error"].as_str().unwrap().to_owned()
}

pub async fn a_token_says_whose_it_is(s: Subject) {
    let account = account(&s, "app").await;
    let spec = json!({ "audiences": [AUDIENCE], "expirationSeconds": 3600 });
    let made = request(&s, "app", json!({ "spec": spec })).await.unwrap();
    assert_eq!(made["metadata"]["name"], "app");
    assert_eq!(made["metadata"]["namespace"], json!(s.namespace));
    assert_eq!(made["spec"]["audiences"], json!([AUDIENCE]));
    assert_eq!(made["spec"]["expirationSeconds"], 3600);
    let (header, claims) = parts(made["status"]["token"].as_str().unwrap());
    let names: Vec<&String> = header.as_object().unwrap().keys().collect();
    assert_eq!(names, ["alg", "kid"]);
    assert_eq!(header["alg"], "RS256");
    let seconds = |name: &str| claims[name].as_i64().unwrap();
    let subject = format!("system:serviceaccount:{}:app", s.namespace);
    assert_eq!(
        (&claims["sub"], &claims["aud"]),
        (&json!(subject), &json!([AUDIENCE]))
    );
    assert_eq!(seconds("exp") - seconds("iat"), 3600);
    assert_eq!(seconds("nbf"), seconds("iat"));
    let expires: jiff::Timestamp = made["status"]["expirationTimestamp"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(expires.as_second(), seconds("exp"));
    assert_eq!(claims["jti"].as_str().unwrap().len(), 36);
    assert_eq!(
        claims["kubernetes.io"],
        json!({
            "namespace": s.namespace, "serviceaccount": { "name": "app", "uid": account.uid() },
        })
    );
    let usual = request(&s, "app", json!({ "spec": {} })).await.unwrap();
    assert_eq!(usual["spec"]["expirationSeconds"], 3600);
    let (_, plain) = parts(usual["status"]["token"].as_str().unwrap());
    assert_eq!(plain["aud"], json!([claims["iss"]]));
}

pub async fn the_issuer_publishes_its_key(s: Subject) {
    account(&s, "app").await;
    let token = token(&s, "app", json!({ "audiences": [AUDIENCE] })).await;
    let (header, claims) = parts(&token);
    let discovery = document(&s, "/.well-known/openid-configuration").await;
    assert_eq!(discovery["issuer"], claims["iss"]);
    assert_eq!(discovery["response_types_supported"], json!(["id_token"]));
    assert_eq!(discovery["subject_types_supported"], json!(["public"]));
    assert_eq!(
        discovery["id_token_signing_alg_values_supported"],
        json!(["RS256"])
    );
    let uri = discovery["jwks_uri"].as_str().unwrap();
    assert!(uri.ends_with("/openid/v1/jwks"), "{uri}");
    let set = document(&s, "/openid/v1/jwks").await;
    let [key] = set["keys"].as_array().unwrap().as_slice() else {
        panic!("{set}")
    };
    let kinds = ["kty", "alg", "use"].map(|name| key[name].as_str().unwrap());
    assert_eq!(kinds, ["RSA", "RS256", "sig"]);
    assert_eq!(key["kid"], header["kid"]);
    for (path, media) in [
        ("/.well-known/openid-configuration", "application/json"),
        ("/openid/v1/jwks", "application/jwk-set+json"),
    ] {
        let request = Request::get(path).body(kube::client::Body::empty());
        let answer = s.client.send(request.unwrap()).await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap();
        assert_eq!(header("content-type"), media);
        assert_eq!(header("cache-control"), "public, max-age=3600");
    }
    let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_value(set).unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(&keys.keys[0]).unwrap();
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    rules.set_audience(&[AUDIENCE]);
    jsonwebtoken::decode::<Value>(&token, &key, &rules).unwrap();
}

pub async fn the_life_of_a_token_has_bounds(s: Subject) {
    account(&s, "app").await;
    for (seconds, why) in [
        (599, "may not specify a duration less than 10 minutes"),
        (
            1_i64 << 33,
            "may not specify a duration larger than 2^32 seconds",
        ),
    ] {
        let spec = json!({ "audiences": [AUDIENCE], "expirationSeconds": seconds });
        let refused = refusal(request(&s, "app", json!({ "spec": spec })).await);
        let text = format!(
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: {seconds}: {why}"
        );
        assert_eq!(refused, (422, "Invalid".into(), text));
    }
    token(
        &s,
        "app",
        json!({ "audiences": [AUDIENCE], "expirationSeconds": 600 }),
    )
    .await;
    let unknown = refusal(request(&s, "nobody", json!({ "spec": {} })).await);
    let text = "serviceaccounts \"nobody\" not found".to_owned();
    assert_eq!(unknown, (404, "NotFound".into(), text));
    let uid = "6f1c0000-0000-0000-0000-0000000022ab";
    let stale = json!({ "metadata": { "uid": uid }, "spec": {} });
    let (code, reason, text) = refusal(request(&s, "app", stale).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"), "{text}");
    assert!(text.contains(uid), "{text}");
}

pub async fn a_token_can_be_bound_to_a_pod(s: Subject) {
    account(&s, "app").await;
    account(&s, "other").await;
    let node = format!("{}-node", s.namespace);
    let bare = pod(&s, "bare", "app", None).await;
    let (_, claims) = parts(&token(&s, "app", json!({ "boundObjectRef": bound(&bare) })).await);
    let named = json!({ "name": "bare", "uid": bare.uid() });
    assert_eq!(claims["kubernetes.io"]["pod"], named);
    assert_eq!(claims["kubernetes.io"]["node"], Value::Null);
    let placed = pod(&s, "placed", "app", Some(&node)).await;
    let spec = json!({ "boundObjectRef": bound(&placed) });
    let (_, claims) = parts(&token(&s, "app", spec.clone()).await);
    assert_eq!(claims["kubernetes.io"]["node"], json!({ "name": node }));
    let nodes: Api<Node> = Api::all(s.client.clone());
    let made = create(&nodes, json!({ "metadata": { "name": node } })).await;
    let (_, claims) = parts(&token(&s, "app", spec).await);
    assert_eq!(
        claims["kubernetes.io"]["node"],
        json!({ "name": node, "uid": made.uid() })
    );
    nodes.delete(&node, &DeleteParams::default()).await.unwrap();

    let ask = async |account: &str, reference: Value| {
        let spec = json!({ "boundObjectRef": reference });
        refusal(request(&s, account, json!({ "spec": spec })).await)
    };
    let mut gone = bound(&bare);
    gone["name"] = "gone".into();
    let expected = (404, "NotFound".into(), "pods \"gone\" not found".into());
    assert_eq!(ask("app", gone).await, expected);
    let mut anew = bound(&bare);
    anew["uid"] = "6f1c0000-0000-0000-0000-0000000022ab".into();
    let text = "Operation cannot be fulfilled on Pod \"bare\": the UID in the bound object reference (6f1c0000-0000-0000-0000-0000000022ab) does not match the UID in record. The object might have been deleted and then recreated";
    assert_eq!(
        ask("app", anew).await,
        (409, "Conflict".into(), text.into())
    );
    let text = "cannot bind token for serviceaccount \"other\" to pod running with different serviceaccount name.";
    assert_eq!(
        ask("other", bound(&bare)).await,
        (400, "BadRequest".into(), text.into())
    );
    let map = json!({ "kind": "ConfigMap", "apiVersion": "v1", "name": "x" });
    let text = "cannot bind token to object of type /v1, Kind=ConfigMap";
    assert_eq!(
        ask("app", map).await,
        (400, "BadRequest".into(), text.into())
    );
}

pub async fn a_review_says_whose_token_it_is(s: Subject) {
    let account = account(&s, "app").await;
    let node = format!("{}-node", s.namespace);
    let pod = pod(&s, "p", "app", Some(&node)).await;
    let spec = json!({ "audiences": ["podid-broker", "other"], "boundObjectRef": bound(&pod) });
    let token = token(&s, "app", spec).await;
    let (_, claims) = parts(&token);
    let status = review(&s, &token, &["else", "podid-broker"]).await;
    assert_eq!(status["authenticated"], true);
    assert_eq!(status["audiences"], json!(["podid-broker"]));
    let namespace = &s.namespace;
    assert_eq!(
        status["user"],
        json!({
            "username": format!("system:serviceaccount:{namespace}:app"), "uid": account.uid(),
            "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/credential-id": [format!("JTI={}", claims["jti"].as_str().unwrap())],
                "authentication.kubernetes.io/node-name": [node],
                "authentication.kubernetes.io/pod-name": ["p"],
                "authentication.kubernetes.io/pod-uid": [pod.uid()],
            },
        })
    );
}

pub async fn a_review_rejects_what_is_not_good_now(s: Subject) {
    account(&s, "app").await;
    let (one, two) = (
        pod(&s, "one", "app", None).await,
        pod(&s, "two", "app", None).await,
    );
    let of = async |pod: &Pod| {
        token(
            &s,
            "app",
            json!({ "audiences": ["a"], "boundObjectRef": bound(pod) }),
        )
        .await
    };
    let (first, second) = (of(&one).await, of(&two).await);
    let text = rejection(&s, &first, &["b"]).await;
    assert_eq!(
        text,
        "[invalid bearer token, token audiences [\"a\"] is invalid for the target audiences [\"b\"]]"
    );
    let server = rejection(&s, &first, &[]).await;
    assert!(
        server.contains("token audiences [\"a\"] is invalid"),
        "{server}"
    );
    let (signed, _) = first.rsplit_once('.').unwrap();
    rejection(&s, &format!("{signed}.c2VhbA"), &["a"]).await;
    rejection(&s, "nonsense", &["a"]).await;
    let reviews: Api<TokenReview> = Api::all(s.client.clone());
    let empty = serde_json::from_value(json!({ "metadata": {}, "spec": { "token": "" } })).unwrap();
    let refused = refusal(reviews.create(&PostParams::default(), &empty).await);
    let text = "token is required for TokenReview in authentication".to_owned();
    assert_eq!(refused, (400, "BadRequest".into(), text));

    let pods: Api<Pod> = Api::namespaced(s.client.clone(), &s.namespace);
    let finished = json!({ "status": { "phase": "Succeeded" } });
    let patch = kube::api::Patch::Merge(&finished);
    pods.patch_status("two", &Default::default(), &patch)
        .await
        .unwrap();
    let status = review(&s, &second, &["a"]).await;
    assert_eq!(status["authenticated"], true, "a finished pod's counts");
    let now = DeleteParams::default().grace_period(0);
    pods.delete("one", &now).await.unwrap();
    let rejected = async |token: &str| {
        // A real server keeps a good review for ten seconds.
        for _ in 0..100 {
            let status = review(&s, token, &["a"]).await;
            if status.get("authenticated").is_none() {
                return status["error"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        panic!("still good");
    };
    let gone = rejected(&first).await;
    assert!(
        gone.contains("service account token has been invalidated"),
        "{gone}"
    );
    let other = pod(&s, "one", "app", None).await;
    let anew = rejected(&first).await;
    let text = format!(
        "[invalid bearer token, pod UID ({}) does not match service account pod ref claim ({})]",
        other.uid().unwrap(),
        one.uid().unwrap()
    );
    assert_eq!(anew, text);
    let accounts: Api<ServiceAccount> = Api::namespaced(s.client.clone(), &s.namespace);
    accounts.delete("app", &now).await.unwrap();
    let orphan = rejected(&second).await;
    let text = "[invalid bearer token, serviceaccounts \"app\" not found]";
    assert_eq!(orphan, text);
}

async fn access(s: &Subject, spec: Value) -> kube::Result<Value> {
    let reviews: Api<SubjectAccessReview> = Api::all(s.client.clone());
    let object = serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap();
    let made = reviews.create(&PostParams::default(), &object).await?;
    Ok(serde_json::to_value(made.status).unwrap())
}

pub async fn access_is_what_roles_give(s: Subject) {
    let namespace = &s.namespace;
    let rbac = |kind: &str, name: &str| json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": { "name": name } });
    let mut role = rbac("Role", "user");
    role["rules"] = json!([{ "apiGroups": ["cid.wi.aks.azure.com"], "resources": ["6f1c"], "verbs": ["use-managed-identity"] }, {
        "apiGroups": [""], "resources": ["*/log", "pods/*"], "resourceNames": ["one"], "verbs": ["*"] }]);
    let mut binding = rbac("RoleBinding", "grant");
    binding["roleRef"] =
        json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "user" });
    binding["subjects"] =
        json!([{ "kind": "ServiceAccount", "name": "app", "namespace": namespace }]);
    create::<k8s_openapi::api::rbac::v1::Role>(&Api::namespaced(s.client.clone(), namespace), role)
        .await;
    create::<k8s_openapi::api::rbac::v1::RoleBinding>(
        &Api::namespaced(s.client.clone(), namespace),
        binding,
    )
    .await;
    let user = format!("system:serviceaccount:{namespace}:app");
    let group = "cid.wi.aks.azure.com";
    let asked = async |user: &str, attributes: Value| {
        let mut attributes = attributes;
        if attributes["namespace"].is_null() {
            attributes["namespace"] = json!(namespace);
        }
        access(
            &s,
            json!({ "user": user, "resourceAttributes": attributes }),
        )
        .await
        .unwrap()
    };
    let identity = json!({ "group": group, "resource": "6f1c", "verb": "use-managed-identity" });
    // A real server learns of the binding by its own watch.
    for _ in 0..100 {
        if asked(&user, identity.clone()).await["allowed"] == true {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let allowed = asked(&user, identity.clone()).await;
    let reason = format!(
        "RBAC: allowed by RoleBinding \"grant/{namespace}\" of Role \"user\" to ServiceAccount \"app/{namespace}\""
    );
    assert_eq!(allowed, json!({ "allowed": true, "reason": reason }));
    let denied = json!({ "allowed": false });
    let with = |name: &str, value: &str| {
        let mut other = identity.clone();
        other[name] = value.into();
        other
    };
    assert_eq!(asked(&user, with("resource", "6F1C")).await, denied);
    assert_eq!(asked(&user, with("verb", "get")).await, denied);
    assert_eq!(asked(&user, with("namespace", "default")).await, denied);
    assert_eq!(
        asked("system:serviceaccount:default:app", identity.clone()).await,
        denied
    );
    let log = json!({ "resource": "pods", "subresource": "log", "name": "one", "verb": "get" });
    assert_eq!(asked(&user, log.clone()).await["allowed"], true);
    let exec = json!({ "resource": "pods", "subresource": "exec", "name": "one", "verb": "get" });
    assert_eq!(asked(&user, exec).await, denied, "pods/* is no wildcard");
    let mut other = log.clone();
    other["name"] = "two".into();
    assert_eq!(asked(&user, other).await, denied);
    let cluster = access(
        &s,
        json!({ "user": user, "resourceAttributes": { "group": group, "resource": "6f1c", "verb": "use-managed-identity" } }),
    );
    assert_eq!(
        cluster.await.unwrap(),
        denied,
        "a RoleBinding counts in its namespace"
    );
    let master = json!({ "user": "x", "groups": ["system:masters"], "nonResourceAttributes": { "path": "/x", "verb": "get" } });
    assert_eq!(access(&s, master).await.unwrap()["allowed"], true);
}

pub async fn access_for_a_group_in_the_whole_cluster(s: Subject) {
    let namespace = &s.namespace;
    let rules = json!([{ "nonResourceURLs": ["/x/*"], "verbs": ["get"] }, { "apiGroups": ["*"], "resources": ["things"], "verbs": ["list"] }]);
    let roles: Api<k8s_openapi::api::rbac::v1::ClusterRole> = Api::all(s.client.clone());
    create(
        &roles,
        json!({ "metadata": { "name": namespace }, "rules": rules }),
    )
    .await;
    let bindings: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> = Api::all(s.client.clone());
    let binding = json!({ "metadata": { "name": namespace },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace },
        "subjects": [{ "kind": "Group", "name": "team", "apiGroup": "rbac.authorization.k8s.io" }] });
    create(&bindings, binding).await;
    let group = json!([namespace, "team"]);
    let asked = async |what: Value| {
        let mut spec = what;
        spec["user"] = "somebody".into();
        access(&s, spec).await.unwrap()
    };
    let path = |path: &str| json!({ "groups": group, "nonResourceAttributes": { "path": path, "verb": "get" } });
    for _ in 0..100 {
        if asked(path("/x/y")).await["allowed"] == true {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let reason = format!(
        "RBAC: allowed by ClusterRoleBinding \"{namespace}\" of ClusterRole \"{namespace}\" to Group \"team\""
    );
    assert_eq!(
        asked(path("/x/y")).await,
        json!({ "allowed": true, "reason": reason })
    );
    assert_eq!(asked(path("/y")).await["allowed"], false);
    let things = json!({ "groups": group, "resourceAttributes": { "group": "g", "resource": "things", "verb": "list", "namespace": "any" } });
    assert_eq!(asked(things.clone()).await["allowed"], true);
    let mut alone = things;
    alone["groups"] = json!([]);
    assert_eq!(asked(alone).await["allowed"], false);
    bindings
        .delete(namespace, &DeleteParams::default())
        .await
        .unwrap();
    roles
        .delete(namespace, &DeleteParams::default())
        .await
        .unwrap();
}

pub async fn an_access_review_is_about_somebody_and_something(s: Subject) {
    let attributes = json!({ "resource": "pods", "verb": "get" });
    let invalid = async |spec: Value| {
        let (code, reason, text) = refusal(access(&s, spec).await);
        assert_eq!((code, reason.as_str()), (422, "Invalid"));
        text
    };
    let nobody = invalid(json!({ "resourceAttributes": attributes })).await;
    assert!(
        nobody.contains("at least one of user or group must be specified"),
        "{nobody}"
    );
    let nothing = invalid(json!({ "user": "x" })).await;
    let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
    assert!(nothing.contains(why), "{nothing}");
}
