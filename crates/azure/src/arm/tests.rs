use super::*;
use crate::fake::{Answer, Fake, Seen};
use crate::imds::Identity;
use podid_policy::ids::ResourceId;
use podid_policy::ids::{ClientId, HostKey};
use serde_json::json;

const TOKEN: &str = r#"{"access_token":"t","expires_in":"3599"}"#;
const VM: &str = "azure:///subscriptions/s/resourceGroups/mc_rg/providers/Microsoft.Compute/virtualMachineScaleSets/pool1/virtualMachines/3";

fn id(name: &str) -> ResourceId {
    ResourceId::parse(&format!("/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}")).unwrap()
}

fn host() -> HostKey {
    HostKey::from_provider_id(VM).unwrap()
}

/// The metadata service and Resource Manager on one port; the first answer is the token's.
async fn start(answers: impl IntoIterator<Item = Answer>) -> (Fake, Arm) {
    let fake = Fake::start(std::iter::once(Answer::ok(TOKEN)).chain(answers)).await;
    let endpoints = Endpoints {
        imds: fake.url.clone(),
        authority: fake.url.clone(),
        arm: fake.url.clone(),
        arm_audience: "https://management.azure.com/".into(),
    };
    let credential = Credential::ManagedIdentity(Identity::System);
    (fake, Arm::new(&endpoints, credential, None).unwrap())
}

fn sent(seen: &Seen) -> Value {
    serde_json::from_slice(&seen.body).unwrap()
}

fn observed(system: bool, names: &[&str]) -> HostIdentity {
    HostIdentity {
        system,
        user: names.iter().map(|name| (id(name), None)).collect(),
        etag: Some("\"7\"".into()),
    }
}

async fn attach(arm: &Arm, name: &str) -> Result<(), Error> {
    let observed = HostIdentity::default();
    let updated = arm.update(&host(), &observed, &[id(name)], &[]).await;
    updated.map(drop)
}

#[tokio::test]
async fn a_host_is_read_in_one_request() {
    let body = json!({ "etag": "\"7\"", "identity": { "type": "SystemAssigned, UserAssigned", "userAssignedIdentities": { id("a").as_str(): { "clientId": "c" } } } });
    let (fake, arm) = start([Answer::ok(&body.to_string()), Answer::ok("{}")]).await;
    assert_eq!(
        arm.identities(&host()).await.unwrap(),
        observed(true, &["a"])
    );
    assert_eq!(
        arm.identities(&host()).await.unwrap(),
        HostIdentity::default()
    );
    let seen = fake.seen();
    assert_eq!(seen.len(), 3, "one token and two reads");
    assert_eq!(seen[1].headers["authorization"], "Bearer t");
    assert_eq!(
        seen[1].target,
        "/subscriptions/s/resourceGroups/mc_rg/providers/Microsoft.Compute/virtualMachineScaleSets/pool1?api-version=2024-11-01"
    );
}

#[tokio::test]
async fn an_identity_tells_its_client_id_or_that_it_is_no_more() {
    let client = "6f1c0000-0000-0000-0000-0000000022ab";
    let body = json!({ "properties": { "clientId": client } });
    let (fake, arm) = start([
        Answer::ok(&body.to_string()),
        Answer::status(404),
        Answer::ok("{}"),
    ])
    .await;
    let told = arm.client_id(&id("a")).await.unwrap();
    assert_eq!(told, Some(ClientId::parse(client).unwrap()));
    assert_eq!(arm.client_id(&id("a")).await.unwrap(), None);
    let error = arm.client_id(&id("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert_eq!(
        fake.seen()[1].target,
        format!("{}?api-version=2023-01-31", id("a").as_str())
    );
}

#[tokio::test]
async fn a_change_is_sent_as_differences_and_followed_to_its_end() {
    let (fake, arm) = start([
        Answer::ok("{}").with("azure-asyncoperation", "{base}/operations/1?s=x"),
        Answer::ok(r#"{"status":"InProgress"}"#).with("retry-after", "0"),
        Answer::status(503).with("retry-after", "0"),
        Answer::ok(r#"{"status":"Succeeded"}"#),
    ])
    .await;
    let known = observed(true, &["a", "b"]);
    arm.update(&host(), &known, &[id("c"), id("A")], &[id("B"), id("z")])
        .await
        .unwrap();
    let seen = fake.seen();
    assert_eq!(
        sent(&seen[1]),
        json!({ "identity": { "type": "SystemAssigned, UserAssigned", "userAssignedIdentities": { id("c").as_str(): {}, id("b").as_str(): null } } })
    );
    assert_eq!(seen[1].headers["if-match"], "\"7\"");
    assert_eq!(seen.len(), 5);
    assert_eq!(seen[4].target, "/operations/1?s=x");
}

#[tokio::test]
async fn nothing_to_do_is_not_sent() {
    let (fake, arm) = start([]).await;
    arm.update(&host(), &observed(false, &["a"]), &[id("A")], &[id("b")])
        .await
        .unwrap();
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn every_change_is_conditional_and_tells_the_next_version() {
    let (fake, arm) = start([Answer::ok(r#"{"etag":"\"8\""}"#), Answer::status(412)]).await;
    let next = arm
        .update(&host(), &observed(false, &["a"]), &[], &[id("a")])
        .await;
    assert_eq!(next.unwrap().as_deref(), Some("\"8\""));
    let error = arm
        .update(&host(), &observed(true, &["a"]), &[], &[id("a")])
        .await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Conflict);
    let seen = fake.seen();
    assert_eq!(sent(&seen[1]), json!({ "identity": { "type": "None" } }));
    assert_eq!(seen[1].headers["if-match"], "\"7\"");
    assert_eq!(
        sent(&seen[2]),
        json!({ "identity": { "type": "SystemAssigned" } })
    );
}

#[tokio::test]
async fn more_than_azure_takes_at_once_is_split() {
    let (fake, arm) = start([Answer::ok(r#"{"etag":"\"8\""}"#), Answer::ok("{}")]).await;
    let many: Vec<ResourceId> = (0..151).map(|n| id(&format!("n{n}"))).collect();
    arm.update(&host(), &HostIdentity::default(), &many, &[])
        .await
        .unwrap();
    let entries = |seen: &Seen| {
        sent(seen)["identity"]["userAssignedIdentities"]
            .as_object()
            .unwrap()
            .len()
    };
    let seen = fake.seen();
    assert_eq!((entries(&seen[1]), entries(&seen[2])), (150, 1));
    assert_eq!(seen[2].headers["if-match"], "\"8\"");
}

#[tokio::test]
async fn a_failed_operation_names_its_identities() {
    let gone = id("gone").as_str().to_lowercase();
    let failed = json!({ "status": "Failed", "error": { "code": "FailedIdentityOperation", "message": format!("Resource '{gone}' was not found.") } });
    let (_fake, arm) = start([
        Answer::new(202, "")
            .with("location", "{base}/operations/1")
            .with("retry-after", "0"),
        Answer::ok(&failed.to_string()),
    ])
    .await;
    let error = attach(&arm, "gone").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IdentityNotFound);
    assert_eq!(error.identities(), [id("gone")]);
}

#[tokio::test]
async fn a_token_is_not_sent_to_another_server() {
    let (fake, arm) =
        start([Answer::ok("{}").with("azure-asyncoperation", "http://127.0.0.1:1/operations/1")])
            .await;
    let error = attach(&arm, "a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert_eq!(fake.seen().len(), 2);
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let (fake, arm) = start([Answer::status(401), Answer::ok(TOKEN), Answer::status(401)]).await;
    let error = arm.identities(&host()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidCredential);
    assert_eq!(fake.seen().len(), 4);
}

#[tokio::test]
async fn a_throttled_subscription_is_left_alone_for_the_time() {
    let (fake, arm) = start([Answer::status(429).with("retry-after", "30")]).await;
    let first = arm.identities(&host()).await.unwrap_err();
    assert_eq!(first.retry_after(), Some(Duration::from_secs(30)));
    let second = arm.identities(&host()).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Throttled);
    assert_eq!(fake.seen().len(), 2, "the second is refused here");
}
