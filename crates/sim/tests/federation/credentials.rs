//! Federated identity credentials by Azure Resource Manager: its rules and refusals, and when Entra knows what was written.

use std::time::Duration;

use podid_sim::azure::{Config, FederatedCredential, Role};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};

use crate::World;
use crate::issuer::{AUDIENCE, Issuer, SUBJECT};

/// What Resource Manager answers: the status, and the body.
type Answer = (u16, Value);

impl World {
    async fn arm(&self, token: &str, method: Method, path: &str, body: &Value) -> Answer {
        let url = format!("{}{path}", self.arm);
        let url = match url.contains('?') {
            true => url,
            false => format!("{url}?api-version=2024-11-30"),
        };
        let request = self.http.request(method, url).bearer_auth(token);
        let answer = request.json(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    fn path(&self, name: &str) -> String {
        format!("{}/federatedIdentityCredentials{name}", self.identity.id)
    }

    /// As an administrator.
    async fn asked(&self, method: Method, name: &str, body: &Value) -> Answer {
        let token = self.azure.administrator_token().unwrap();
        self.arm(&token, method, &self.path(name), body).await
    }

    async fn put(&self, name: &str, issuer: &str, subject: &str) -> Answer {
        let name = format!("/{name}");
        self.asked(Method::PUT, &name, &body(issuer, subject)).await
    }
}

fn body(issuer: &str, subject: &str) -> Value {
    json!({ "properties": { "issuer": issuer, "subject": subject, "audiences": [AUDIENCE] } })
}

fn quick() -> Config {
    Config {
        credential_latency: Duration::ZERO,
        ..Config::default()
    }
}

fn code(answer: &Answer) -> (u16, &str) {
    (answer.0, answer.1["error"]["code"].as_str().unwrap())
}

#[tokio::test]
async fn a_credential_is_created_changed_listed_and_deleted() {
    let world = World::build(quick()).await;
    let empty = world.asked(Method::GET, "", &Value::Null).await;
    assert_eq!(empty, (200, json!({ "value": [] })));
    let (status, made) = world.put("shop-reader", "https://issuer/", "a").await;
    assert_eq!(status, 201);
    assert_eq!(made["id"], json!(world.path("/shop-reader")));
    assert_eq!(made["properties"]["audiences"], json!([AUDIENCE]));
    let again = world.put("Shop-Reader", "https://issuer/", "b").await;
    assert_eq!(
        (again.0, &again.1["properties"]["subject"]),
        (200, &json!("b"))
    );
    let (status, read) = world.asked(Method::GET, "/shop-reader", &Value::Null).await;
    assert_eq!((status, &read["properties"]["subject"]), (200, &json!("b")));
    assert_eq!(
        world.put("shop-writer", "https://issuer/", "a").await.0,
        201
    );

    let first = world
        .asked(Method::GET, "?api-version=2024-11-30&$top=1", &Value::Null)
        .await
        .1;
    assert_eq!(first["value"][0]["name"], "shop-reader");
    let next = first["nextLink"]
        .as_str()
        .unwrap()
        .strip_prefix(&world.arm)
        .unwrap();
    let token = world.azure.administrator_token().unwrap();
    let (_, second) = world.arm(&token, Method::GET, next, &Value::Null).await;
    assert_eq!(second["value"][0]["name"], "shop-writer");
    assert_eq!(second["nextLink"], Value::Null);

    let deleted = async || {
        world
            .asked(Method::DELETE, "/shop-reader", &Value::Null)
            .await
            .0
    };
    assert_eq!((deleted().await, deleted().await), (200, 204));
    let gone = world.asked(Method::GET, "/shop-reader", &Value::Null).await;
    assert_eq!(code(&gone), (404, "NotFound"));
    world.azure.delete_identity(&world.identity.id);
    let orphan = world.put("shop-reader", "https://issuer/", "a").await;
    assert_eq!(code(&orphan), (404, "ParentResourceNotFound"));
    assert_eq!(
        world.azure.federated_credentials(&world.identity.client_id),
        []
    );
}

#[rstest]
#[case::short("ab", body("i", "s"), "name 'ab' is invalid")]
#[case::dash("-abc", body("i", "s"), "name '-abc' is invalid")]
#[case::padded("abc=", body("i", "s"), "name 'abc=' is invalid")]
#[case::nothing("abc", json!({}), "empty properties")]
#[case::no_subject("abc", body("i", ""), "empty properties")]
#[case::two_audiences("abc", json!({ "properties": { "issuer": "i", "subject": "s", "audiences": ["a", "b"] } }), "exactly one audience")]
#[case::long("abc", body("i", &"s".repeat(601)), "600 characters")]
#[tokio::test]
async fn a_malformed_credential_is_refused(
    #[case] name: &str,
    #[case] body: Value,
    #[case] why: &str,
) {
    let world = World::build(quick()).await;
    let refused = world.asked(Method::PUT, &format!("/{name}"), &body).await;
    assert_eq!(code(&refused), (400, "BadRequest"));
    let text = refused.1["error"]["message"].as_str().unwrap();
    assert!(text.contains(why), "{text}");
}

#[tokio::test]
async fn twenty_credentials_are_the_most_and_no_two_are_alike() {
    let world = World::build(quick()).await;
    for n in 0..20 {
        let made = world
            .put(&format!("one-{n}"), "https://issuer", &format!("s{n}"))
            .await;
        assert_eq!(made.0, 201);
    }
    let more = world.put("more", "https://issuer", "s20").await;
    assert_eq!(code(&more), (400, "BadRequest"));
    assert!(more.1["error"]["message"].as_str().unwrap().contains("20"));
    let twin = world.put("twin", "https://issuer", "s3").await;
    assert_eq!(code(&twin), (409, "Conflict"));
    let changed = world.put("one-3", "https://issuer", "other").await;
    assert_eq!(changed.0, 200, "a change needs no further place");
}

#[tokio::test]
async fn two_writes_at_once_to_one_identity_conflict() {
    let world = World::build(Config {
        credential_latency: Duration::from_secs(2),
        ..Config::default()
    })
    .await;
    let (one, two) = tokio::join!(world.put("one", "i", "a"), world.put("two", "i", "b"));
    let conflict = match (one.0, two.0) {
        (201, 409) => two,
        (409, 201) => one,
        other => panic!("{other:?}"),
    };
    let name = "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity";
    assert_eq!(code(&conflict), (409, name));
    assert_eq!(
        world
            .azure
            .federated_credentials(&world.identity.client_id)
            .len(),
        1
    );
}

#[tokio::test]
async fn a_writer_needs_a_role_on_the_identity() {
    let world = World::build(quick()).await;
    let (client, principal) = world.azure.create_application("hush");
    let url = format!("{}/{}/oauth2/token", world.entra, world.azure.tenant());
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", &client),
        ("client_secret", "hush"),
        ("resource", "https://management.azure.com/"),
    ];
    let answer = world.http.post(url).form(&form).send().await.unwrap();
    let token: Value = answer.json().await.unwrap();
    let token = token["access_token"].as_str().unwrap();
    let write = async || {
        let wanted = body("i", "s");
        world
            .arm(token, Method::PUT, &world.path("/abc"), &wanted)
            .await
    };
    let refused = write().await;
    assert_eq!(code(&refused), (403, "AuthorizationFailed"));
    let text = refused.1["error"]["message"].as_str().unwrap();
    assert!(text.contains("userAssignedIdentities/federatedIdentityCredentials/write"));
    let scope = &world.identity.id;
    world
        .azure
        .assign_role(&principal, Role::ManagedIdentityContributor, scope);
    assert_eq!(write().await.0, 201);
}

#[tokio::test]
async fn entra_knows_a_credential_some_time_after_it_was_written() {
    let world = World::build(Config {
        credential_propagation: Duration::from_secs(3600),
        ..quick()
    })
    .await;
    let issuer = Issuer::serve().await;
    let assertion = issuer.sign(&issuer.add_key("k1"), &json!({}));
    assert_eq!(world.put("new", &issuer.url, SUBJECT).await.0, 201);
    assert_eq!(world.exchange(&assertion).await, Err(70_025));
    let old = FederatedCredential::new("old", &issuer.url, SUBJECT);
    world.azure.federate(&world.identity.client_id, old);
    world.exchange(&assertion).await.unwrap();
}

#[tokio::test]
async fn who_asks_before_the_credential_is_there_waits_longer() {
    let world = World::build(Config {
        negative_cache: Duration::from_secs(3600),
        ..quick()
    })
    .await;
    let issuer = Issuer::serve().await;
    let assertion = issuer.sign(&issuer.add_key("k1"), &json!({}));
    assert_eq!(world.exchange(&assertion).await, Err(70_025));
    assert_eq!(world.put("new", &issuer.url, SUBJECT).await.0, 201);
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(world.exchange(&assertion).await.err());
    }
    assert_eq!(told, [None, None, Some(70_025)], "the node that was asked");
}
