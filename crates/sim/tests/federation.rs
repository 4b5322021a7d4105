//! Workload identity federation at the simulated Azure: federated credentials by Resource Manager, and assertions that Entra
//! verifies by the issuer that they name, a real kube-apiserver among them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "federation/credentials.rs"]
mod credentials;
#[path = "federation/issuer.rs"]
mod issuer;

use std::time::Duration;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client, Config as ClientConfig};
use podid_azure::entra::{Credential, Entra};
use podid_policy::ids::ClientId;
use podid_sim::azure::{Azure, Config, Control, FederatedCredential, Identity};
use podid_sim::cluster::{self, Cluster};
use podid_testkit::apiserver::{ApiServer, Options, TokenIssuer};
use rstest::rstest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use issuer::{AUDIENCE, Issuer, SUBJECT};

/// A simulated Azure with one identity.
struct World {
    azure: Control,
    entra: String,
    arm: String,
    http: reqwest::Client,
    identity: Identity,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn build(config: Config) -> Self {
        let azure = Azure::bind(config).await.unwrap();
        let (control, stop) = (azure.control(), CancellationToken::new());
        let (entra, arm) = (
            format!("http://{}", azure.entra()),
            format!("http://{}", azure.arm()),
        );
        tokio::spawn(azure.run(stop.clone()));
        Self {
            identity: control.create_identity("rg", "reader"),
            azure: control,
            entra,
            arm,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            stop,
        }
    }

    /// Entra's answer to an assertion for the identity: a token, or the number of the AADSTS code.
    async fn exchange(&self, assertion: &str) -> Result<String, u64> {
        let url = format!("{}/{}/oauth2/v2.0/token", self.entra, self.azure.tenant());
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.identity.client_id),
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_assertion", assertion),
            ("scope", "https://vault.azure.net/.default"),
        ];
        let answer = self.http.post(url).form(&form).send().await.unwrap();
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        match body["access_token"].as_str() {
            Some(token) => Ok(token.to_owned()),
            None => {
                let number = body["error_codes"][0].as_u64().unwrap();
                let is_client = body["error"] == "invalid_client";
                assert_eq!(status, if is_client { 401 } else { 400 }, "{body}");
                let text = body["error_description"].as_str().unwrap();
                assert!(text.starts_with(&format!("AADSTS{number}: ")), "{text}");
                Err(number)
            }
        }
    }

    /// Lets an issuer's tokens for the subject stand for the identity.
    fn trust(&self, issuer: &str) {
        let credential = FederatedCredential::new("one", issuer, SUBJECT);
        self.azure.federate(&self.identity.client_id, credential);
    }
}

/// A token of a new service account, for Entra.
async fn service_account_token(client: Client) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
    let account = serde_json::from_value(json!({ "metadata": { "name": "app" } })).unwrap();
    accounts
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    let request: TokenRequest = serde_json::from_value(json!({
        "metadata": {}, "spec": { "audiences": [AUDIENCE], "expirationSeconds": 3600 },
    }))
    .unwrap();
    let parameters = PostParams::default();
    let made = accounts.create_token_request("app", &parameters, &request);
    made.await.unwrap().status.unwrap().token
}

#[tokio::test]
async fn the_token_of_a_real_servers_service_account_becomes_one_of_azure() {
    let server = ApiServer::start_with(Options {
        issuer: TokenIssuer::Published,
        ..Options::default()
    })
    .await
    .unwrap();
    let assertion = service_account_token(server.client().await.unwrap()).await;
    let world = World::build(Config::default()).await;
    assert_eq!(world.exchange(&assertion).await, Err(70_025));
    world.trust(&server.issuer());
    let unreadable = world.exchange(&assertion).await;
    assert_eq!(
        unreadable,
        Err(50_166),
        "nobody trusts the server's certificate"
    );
    let authority = std::fs::read(server.authority()).unwrap();
    world.azure.trust_issuers_by(&authority).unwrap();

    let entra = reqwest::Url::parse(&world.entra).unwrap();
    let entra = Entra::new(&entra, Duration::from_secs(10)).unwrap();
    let client = ClientId::parse(&world.identity.client_id).unwrap();
    let tenant = world.azure.tenant();
    let proof = Credential::Federated(&assertion);
    let resource = "https://database.windows.net/";
    let token = entra.client_credentials(tenant, &client, proof, resource, None);
    let claims = world.azure.claims(token.await.unwrap().secret()).unwrap();
    assert_eq!(claims["aud"], resource, "to the byte");
    assert_eq!(claims["appid"], json!(world.identity.client_id));
    assert_eq!(claims["oid"], json!(world.identity.principal_id));
    assert_eq!(
        claims["xms_az_rid"],
        Value::Null,
        "no machine stands for it"
    );
    let day = claims["exp"].as_i64().unwrap() - jiff::Timestamp::now().as_second();
    assert!(
        day > 80_000,
        "{day} s is a managed identity's, not an application's"
    );
}

#[tokio::test]
async fn the_simulated_cluster_is_an_issuer_too() {
    let cluster = Cluster::bind(cluster::Config::default()).await.unwrap();
    let url = format!("http://{}", cluster.addr());
    let world = World::build(Config::default()).await;
    tokio::spawn(cluster.run(world.stop.clone()));
    let client = Client::try_from(ClientConfig::new(url.parse().unwrap())).unwrap();
    let assertion = service_account_token(client).await;
    world.trust(&url);
    world.exchange(&assertion).await.unwrap();
}

#[tokio::test]
async fn the_issuer_of_a_real_server_can_be_read_by_anybody() {
    let server = ApiServer::start_with(Options {
        issuer: TokenIssuer::Published,
        ..Options::default()
    })
    .await
    .unwrap();
    let authority = std::fs::read(server.authority()).unwrap();
    let anonymous = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&authority).unwrap()])
        .no_proxy()
        .build()
        .unwrap();
    let read = async |url: String| -> Value {
        let answer = anonymous.get(url).send().await.unwrap();
        answer.error_for_status().unwrap().json().await.unwrap()
    };
    let issuer = server.issuer();
    let discovery = read(format!("{issuer}/.well-known/openid-configuration")).await;
    assert_eq!(discovery["issuer"], issuer);
    let keys = read(discovery["jwks_uri"].as_str().unwrap().to_owned()).await;
    assert_eq!(keys["keys"][0]["alg"], "RS256");
    let pods = anonymous.get(format!("{issuer}/api/v1/pods")).send().await;
    assert_eq!(pods.unwrap().status(), 403, "nothing else is open");
}

/// What is wrong with an assertion, as changes of its claims, and the AADSTS code for it.
#[rstest]
#[case::nothing(json!({}), None)]
#[case::no_array(json!({ "aud": AUDIENCE }), None)]
#[case::issuer(json!({ "iss": "https://elsewhere.example" }), Some(700_211))]
#[case::slash(json!({ "iss": "+/" }), Some(700_211))]
#[case::subject(json!({ "sub": "system:serviceaccount:default:other" }), Some(700_213))]
#[case::capital(json!({ "sub": "system:serviceaccount:default:App" }), Some(7_002_138))]
#[case::audience(json!({ "aud": ["https://kubernetes.default.svc"] }), Some(700_212))]
#[case::two_audiences(json!({ "aud": [AUDIENCE, "other"] }), Some(700_212))]
#[case::expired(json!({ "exp": -400 }), Some(700_024))]
#[case::just_expired(json!({ "exp": -200 }), None)]
#[case::not_yet(json!({ "nbf": 400 }), Some(700_024))]
#[case::no_end(json!({ "exp": null }), Some(50_027))]
#[case::entras_own(json!({ "iss": "https://login.microsoftonline.com/t/v2.0" }), Some(700_222))]
#[tokio::test]
async fn an_assertion_is_refused_for_what_is_wrong_with_it(
    #[case] change: Value,
    #[case] number: Option<u64>,
) {
    let world = World::build(Config::default()).await;
    let issuer = Issuer::serve().await;
    let key = issuer.add_key("k1");
    world.trust(&issuer.url);
    let told = world.exchange(&issuer.sign(&key, &change)).await;
    assert_eq!(told.err(), number);
}

#[tokio::test]
async fn a_signature_is_verified_by_the_published_key_of_its_name() {
    let world = World::build(Config::default()).await;
    let issuer = Issuer::serve().await;
    world.trust(&issuer.url);
    let first = issuer.add_key("k1");
    let good = issuer.sign(&first, &json!({}));
    world.exchange(&good).await.unwrap();
    world
        .exchange(&good)
        .await
        .expect("an assertion is good for many exchanges");
    let stranger = issuer::Key::generate("k1");
    let forged = world.exchange(&issuer.sign(&stranger, &json!({}))).await;
    assert_eq!(forged, Err(700_027));
    let unpublished = issuer::Key::generate("k2");
    let unknown = world.exchange(&issuer.sign(&unpublished, &json!({}))).await;
    assert_eq!(unknown, Err(7_000_272));
    let (signed, _) = good.rsplit_once('.').unwrap();
    assert_eq!(world.exchange(&format!("{signed}.")).await, Err(700_027));
    assert_eq!(world.exchange("nonsense").await, Err(50_027));

    let second = issuer.add_key("k2");
    let rotated = issuer.sign(&second, &json!({}));
    world.exchange(&rotated).await.unwrap();
    issuer.remove_key("k1");
    assert_eq!(world.exchange(&good).await, Err(7_000_272));
}

#[tokio::test]
async fn entra_keeps_keys_for_a_while_and_a_hundred_at_most() {
    let world = World::build(Config {
        issuer_cache: Duration::from_secs(3600),
        ..Config::default()
    })
    .await;
    let issuer = Issuer::serve().await;
    world.trust(&issuer.url);
    let key = issuer::Key::generate("the last");
    for n in 0..100 {
        issuer.publish(&key, &format!("k{n}"));
    }
    issuer.publish(&key, "the last");
    let beyond = issuer.sign(&key, &json!({}));
    assert_eq!(world.exchange(&beyond).await, Err(7_000_272));
    issuer.remove_key("k0");
    let kept = world.exchange(&beyond).await;
    assert_eq!(
        kept,
        Err(7_000_272),
        "Entra goes on with the keys that it has"
    );

    let other = Issuer::serve().await;
    other.publish(&key, "the last");
    world.trust(&other.url);
    let good = other.sign(&key, &json!({}));
    world.exchange(&good).await.unwrap();
    other.stop();
    world
        .exchange(&good)
        .await
        .expect("an issuer that is away is not noticed");
}

#[tokio::test]
async fn an_issuer_that_says_another_name_or_is_away_is_unreadable() {
    let world = World::build(Config::default()).await;
    let issuer = Issuer::serve().await;
    let key = issuer.add_key("k1");
    let slash = format!("{}/", issuer.url);
    world.trust(&slash);
    let other = issuer.sign(&key, &json!({ "iss": slash }));
    assert_eq!(world.exchange(&other).await, Err(50_166));
    world.trust(&issuer.url);
    issuer.stop();
    let good = issuer.sign(&key, &json!({}));
    assert_eq!(world.exchange(&good).await, Err(50_166));
}

#[tokio::test]
async fn an_application_and_an_identity_have_their_own_tenants_and_lives() {
    let world = World::build(Config::default()).await;
    let (issuer, elsewhere) = (Issuer::serve().await, world.azure.create_tenant());
    let key = issuer.add_key("k1");
    let (application, _) = world.azure.create_application("hush");
    let ids = [&world.identity.client_id, &application];
    let mut lives = Vec::new();
    for id in ids {
        let credential = FederatedCredential::new("one", &issuer.url, SUBJECT);
        world.azure.federate(id, credential);
        for tenant in [world.azure.tenant(), &elsewhere] {
            let url = format!("{}/{tenant}/oauth2/v2.0/token", world.entra);
            let assertion = issuer.sign(&key, &json!({}));
            let form = [
                ("grant_type", "client_credentials"),
                ("client_id", id),
                (
                    "client_assertion_type",
                    "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                ),
                ("client_assertion", &assertion),
                ("scope", "https://vault.azure.net/.default"),
            ];
            let answer = world.http.post(url).form(&form).send().await.unwrap();
            let body: Value = answer.json().await.unwrap();
            lives.push((body["expires_in"].as_i64(), body["error_codes"][0].as_i64()));
        }
    }
    let hour = (Some(3599), None);
    let expected = [(Some(86_399), None), (None, Some(700_016)), hour, hour];
    assert_eq!(lives, expected);
}
