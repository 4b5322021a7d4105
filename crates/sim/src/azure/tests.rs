use super::*;

use std::collections::BTreeSet;

use podid_azure::arm::{Arm, HostIdentity};
use podid_azure::config::Credential;
use podid_azure::endpoints::Endpoints;
use podid_azure::entra::{self, Entra};
use podid_azure::imds::{Identity as Who, Imds};
use podid_azure::{ErrorKind, clouds};
use podid_policy::ids::{ClientId, HostKey, ResourceId};
use serde_json::{Value, json};

/// A scale set whose node's own identity runs the controller, and a virtual machine's worth of administrators.
struct Rig {
    azure: Control,
    set: String,
    host: HostKey,
    endpoints: Endpoints,
    arm: Arm,
    controller: Identity,
    stop: CancellationToken,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn config() -> Config {
    Config {
        patch_latency: Duration::from_millis(20),
        ..Config::default()
    }
}

fn url(mut address: SocketAddr) -> reqwest::Url {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    clouds::parse_url("test", &format!("http://{address}")).unwrap()
}

async fn rig(config: Config) -> Rig {
    let azure = Azure::bind(config).await.unwrap();
    let (control, stop) = (azure.control(), CancellationToken::new());
    let (entra, arm) = (url(azure.entra()), url(azure.arm()));
    tokio::spawn(azure.run(stop.clone()));
    let set = control.create_host(HostKind::ScaleSet, "mc_rg", "pool1");
    let controller = control.create_identity("mc_rg", "kubelet");
    control.attach(&set, &controller);
    let imds = control
        .serve_imds(&set, Some(0), ([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let endpoints = Endpoints {
        imds: url(imds),
        authority: entra,
        arm,
        arm_audience: "https://management.azure.com/".into(),
    };
    let credential =
        Credential::ManagedIdentity(Who::Client(ClientId::parse(&controller.client_id).unwrap()));
    Rig {
        host: HostKey::from_provider_id(&Control::provider_id(&set, 0)).unwrap(),
        arm: Arm::new(&endpoints, credential, None).unwrap(),
        azure: control,
        set,
        endpoints,
        controller,
        stop,
    }
}

impl Rig {
    fn operator(&self) {
        let principal = &self.controller.principal_id;
        self.azure
            .assign_role(principal, Role::VirtualMachineContributor, &self.set);
        let scope = format!("/subscriptions/{}", self.azure.subscription());
        self.azure
            .assign_role(principal, Role::ManagedIdentityOperator, &scope);
    }

    fn imds(&self) -> Imds {
        Imds::new(&self.endpoints.imds, None, Duration::from_secs(2))
    }

    async fn observed(&self) -> HostIdentity {
        self.arm.identities(&self.host).await.unwrap()
    }

    async fn attach(&self, ids: &[&str]) -> Result<(), podid_azure::Error> {
        let ids: Vec<ResourceId> = ids
            .iter()
            .map(|id| ResourceId::parse(id).unwrap())
            .collect();
        let observed = self.observed().await;
        let updated = self.arm.update(&self.host, &observed, &ids, &[]).await;
        updated.map(drop)
    }
}

#[tokio::test]
async fn an_identity_on_the_host_gives_tokens() {
    let rig = rig(config()).await;
    rig.operator();
    let reader = rig.azure.create_identity("rg", "reader");
    let who = Who::Resource(ResourceId::parse(&reader.id).unwrap());
    let early = rig
        .imds()
        .token(&who, "https://storage.azure.com")
        .await
        .unwrap_err();
    assert_eq!(early.kind(), ErrorKind::IdentityNotFound);
    rig.attach(&[&reader.id]).await.unwrap();
    let token = rig
        .imds()
        .token(&who, "https://storage.azure.com")
        .await
        .unwrap();
    let claims = rig.azure.claims(token.secret()).unwrap();
    assert_eq!(claims["aud"], "https://storage.azure.com");
    assert_eq!(claims["appid"], json!(reader.client_id));
    assert_eq!(claims["xms_mirid"], json!(reader.id));
    assert_eq!(claims["xms_az_rid"], json!(rig.set));
    assert!(
        claims["iss"]
            .as_str()
            .unwrap()
            .starts_with("https://sts.windows.net/")
    );
    let observed = rig.observed().await;
    assert_eq!(observed.user.len(), 2);
    rig.arm
        .update(
            &rig.host,
            &observed,
            &[],
            &[ResourceId::parse(
                &reader
                    .id
                    .to_uppercase()
                    .replace("/SUBSCRIPTIONS", "/subscriptions"),
            )
            .unwrap()],
        )
        .await
        .unwrap();
    assert!(
        !rig.azure
            .attached(&rig.set)
            .contains(&reader.id.to_lowercase())
    );
}

#[tokio::test]
async fn roles_are_needed_and_their_lack_is_explained() {
    let rig = rig(config()).await;
    let refused = rig.arm.identities(&rig.host).await.unwrap_err();
    assert_eq!(
        (refused.kind(), refused.code()),
        (ErrorKind::Forbidden, Some("AuthorizationFailed"))
    );
    let principal = &rig.controller.principal_id;
    rig.azure
        .assign_role(principal, Role::VirtualMachineContributor, &rig.set);
    let (a, b) = (
        rig.azure.create_identity("rg.x(1)", "a"),
        rig.azure.create_identity("rg", "b"),
    );
    let refused = rig.attach(&[&a.id, &b.id]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::IdentityForbidden);
    assert_eq!(refused.identities().len(), 2);
    rig.azure
        .assign_role(principal, Role::ManagedIdentityOperator, &b.id);
    let refused = rig.attach(&[&a.id, &b.id]).await.unwrap_err();
    assert_eq!(refused.identities(), [ResourceId::parse(&a.id).unwrap()]);
    rig.attach(&[&b.id]).await.unwrap();
}

#[tokio::test]
async fn a_batch_with_a_missing_identity_changes_nothing() {
    let rig = rig(config()).await;
    rig.operator();
    let good = rig.azure.create_identity("rg", "good");
    let gone = rig.azure.create_identity("rg", "gone");
    rig.azure.delete_identity(&gone.id);
    let refused = rig.attach(&[&good.id, &gone.id]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::IdentityNotFound);
    assert_eq!(refused.identities(), [ResourceId::parse(&gone.id).unwrap()]);
    assert_eq!(rig.azure.attached(&rig.set).len(), 1);
}

#[tokio::test]
async fn two_writers_conflict_and_too_many_are_throttled() {
    let slow = Config {
        patch_latency: Duration::from_millis(400),
        ..Config::default()
    };
    let rig = rig(slow).await;
    rig.operator();
    let ids: Vec<Identity> = (0..2)
        .map(|n| rig.azure.create_identity("rg", &format!("n{n}")))
        .collect();
    let (first, second) = ([ids[0].id.as_str()], [ids[1].id.as_str()]);
    let (one, two) = tokio::join!(rig.attach(&first), rig.attach(&second));
    let kinds: Vec<_> = [one, two]
        .into_iter()
        .filter_map(Result::err)
        .map(|e| e.kind())
        .collect();
    assert_eq!(kinds, [ErrorKind::Conflict]);
    let busy = rig_throttled().await;
    assert_eq!(busy.kind(), ErrorKind::Throttled);
    assert!(
        busy.retry_after()
            .is_some_and(|wait| wait >= Duration::from_secs(1))
    );
}

async fn rig_throttled() -> podid_azure::Error {
    let quick = Config {
        patch_latency: Duration::ZERO,
        ..Config::default()
    };
    let rig = rig(quick).await;
    rig.operator();
    for n in 0..20 {
        let id = rig.azure.create_identity("rg", &format!("n{n}")).id;
        if let Err(error) = rig.attach(&[&id]).await {
            assert_eq!(n, 12, "twelve at once are admitted");
            return error;
        }
    }
    panic!("never throttled");
}

#[tokio::test]
async fn an_operation_can_be_made_to_fail() {
    let rig = rig(config()).await;
    rig.operator();
    rig.azure.inject(Fault {
        service: Service::Arm,
        method: Some("PATCH".into()),
        path: "virtualMachineScaleSets".into(),
        action: Action::FailOperation {
            error: json!({ "code": "OperationPreempted", "message": "a newer one" }),
        },
        times: 1,
    });
    let reader = rig.azure.create_identity("rg", "reader");
    assert_eq!(
        rig.attach(&[&reader.id]).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
}

#[tokio::test]
async fn a_service_principal_gets_a_token_by_its_secret() {
    let rig = rig(config()).await;
    let (client, _) = rig.azure.create_application("hush");
    let client = ClientId::parse(&client).unwrap();
    let entra = Entra::new(&rig.endpoints.authority, Duration::from_secs(2)).unwrap();
    let tenant = rig.azure.tenant();
    let token = entra
        .client_credentials(
            tenant,
            &client,
            entra::Credential::Secret("hush"),
            "https://vault.azure.net",
            None,
        )
        .await
        .unwrap();
    assert_eq!(
        rig.azure.claims(token.secret()).unwrap()["aud"],
        "https://vault.azure.net"
    );
    for (tenant, secret, number) in [
        (tenant, "wrong", "AADSTS7000215"),
        ("elsewhere", "hush", "AADSTS90002"),
    ] {
        let refused = entra
            .client_credentials(
                tenant,
                &client,
                entra::Credential::Secret(secret),
                "r",
                None,
            )
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidCredential);
        assert!(refused.message().starts_with(number), "{refused}");
    }
    assert!(
        rig.azure
            .journal()
            .iter()
            .all(|entry| !entry.path.contains("hush"))
    );
}

#[tokio::test]
async fn the_second_version_of_the_token_endpoint_speaks_of_scopes() {
    let rig = rig(config()).await;
    let (client, _) = rig.azure.create_application("hush");
    let http = reqwest::Client::new();
    let endpoint = rig
        .endpoints
        .authority
        .join(&format!("{}/oauth2/v2.0/token", rig.azure.tenant()))
        .unwrap();
    let ask = |scope: &'static str, name: &'static str| {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", client.as_str()),
            ("client_secret", "hush"),
            (name, scope),
        ];
        http.post(endpoint.clone()).form(&form).send()
    };
    let good: Value = ask("https://vault.azure.net/.default", "scope")
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert!(good["expires_in"].is_number());
    let bad: Value = ask("https://vault.azure.net", "resource")
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(bad["error_codes"], json!([901_002]));
    let bad: Value = ask("https://vault.azure.net", "scope")
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(bad["error"], "invalid_scope");
}

#[tokio::test]
async fn an_address_in_an_answer_is_the_one_that_the_client_used() {
    let everywhere = Config {
        address: Ipv4Addr::UNSPECIFIED.into(),
        ..config()
    };
    let rig = rig(everywhere).await;
    rig.operator();
    let reader = rig.azure.create_identity("rg", "reader");
    // The client follows the operation's address, and refuses one that is not its own server's.
    rig.attach(&[&reader.id]).await.unwrap();
    let found = discovery(&rig).await;
    let authority = rig.endpoints.authority.as_str();
    for field in ["token_endpoint", "jwks_uri"] {
        let named = found[field].as_str().unwrap();
        assert!(named.starts_with(authority), "{field}: {named}");
    }
}

async fn discovery(rig: &Rig) -> Value {
    let tenant = rig.azure.tenant();
    let path = format!("{tenant}/.well-known/openid-configuration");
    let document = rig.endpoints.authority.join(&path).unwrap();
    reqwest::get(document).await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn tokens_verify_by_the_published_keys() {
    let rig = rig(config()).await;
    let token = rig.azure.administrator_token().unwrap();
    let http = reqwest::Client::new();
    let discovery = discovery(&rig).await;
    let keys: jsonwebtoken::jwk::JwkSet = http
        .get(discovery["jwks_uri"].as_str().unwrap())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
    assert_eq!(keys.keys.len(), 2);
    let key = jsonwebtoken::DecodingKey::from_jwk(keys.find(&kid).unwrap()).unwrap();
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    rules.set_audience(&["https://management.azure.com/"]);
    rules.set_issuer(&[discovery["issuer"].as_str().unwrap()]);
    jsonwebtoken::decode::<Value>(&token, &key, &rules).unwrap();
    let forged = token.replace('.', ".A");
    assert!(rig.azure.claims(&forged).is_none());
}

#[tokio::test]
async fn what_az_sends_creates_identities_and_grants() {
    let rig = rig(config()).await;
    let token = rig.azure.administrator_token().unwrap();
    let http = reqwest::Client::new();
    let base = rig.endpoints.arm.as_str().trim_end_matches('/').to_owned();
    let id = format!(
        "/subscriptions/{}/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/new",
        rig.azure.subscription()
    );
    let put = |url: String, body: Value| http.put(url).bearer_auth(&token).json(&body).send();
    let made = put(
        format!("{base}{id}?api-version=2024-11-30"),
        json!({ "location": "westeurope" }),
    )
    .await
    .unwrap();
    assert_eq!(made.status(), 201);
    let made: Value = made.json().await.unwrap();
    assert!(made["id"].as_str().unwrap().contains("/resourcegroups/"));
    let principal = &made["properties"]["principalId"];
    let filter = format!(
        "{base}{}/providers/Microsoft.Authorization/roleDefinitions?$filter=roleName%20eq%20'Managed%20Identity%20Operator'&api-version=2022-04-01",
        rig.set
    );
    let role: Value = http
        .get(filter)
        .bearer_auth(&token)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let role = &role["value"][0]["id"];
    let grant = format!(
        "{base}{id}/providers/Microsoft.Authorization/roleAssignments/g?api-version=2022-04-01"
    );
    let body = json!({ "properties": { "roleDefinitionId": role, "principalId": principal } });
    assert_eq!(
        put(grant.clone(), body.clone()).await.unwrap().status(),
        201
    );
    let nobody = http.put(grant).json(&body).send().await.unwrap();
    assert_eq!(nobody.status(), 401);
    let versionless = http
        .get(format!("{base}{id}"))
        .bearer_auth(&token)
        .send()
        .await
        .unwrap();
    let versionless: Value = versionless.json().await.unwrap();
    assert_eq!(versionless["error"]["code"], "MissingApiVersionParameter");
}

#[tokio::test]
async fn the_metadata_service_keeps_its_rules() {
    let rig = rig(config()).await;
    let http = reqwest::Client::new();
    let base = format!("{}metadata/identity/oauth2/token", rig.endpoints.imds);
    let ask = async |query: &str, header: &str, value: &str| {
        let answer = http
            .get(format!("{base}?{query}"))
            .header(header, value)
            .send()
            .await
            .unwrap();
        (
            answer.status().as_u16(),
            answer.json::<Value>().await.unwrap(),
        )
    };
    let good = "api-version=2018-02-01&resource=r";
    let (status, body) = ask(good, "metadata", "true").await;
    assert_eq!(status, 200);
    assert!(body["expires_on"].is_string() && body["expires_in"] == "86399");
    assert_eq!(
        ask(good, "metadata", "True").await.1["error_description"],
        "Required metadata header not specified"
    );
    assert_eq!(
        ask("resource=r", "metadata", "true").await.1["newest-versions"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        ask("api-version=2018-02-01", "metadata", "true").await.0,
        400
    );
    let twice = format!("{good}&resource=s");
    assert_eq!(
        ask(&twice, "metadata", "true").await.1["error_description"],
        "Duplicate query parameters"
    );
    let other = rig.azure.create_identity("rg", "other");
    rig.azure.attach(&rig.set, &other);
    assert!(
        ask(good, "metadata", "true").await.1["error_description"]
            .as_str()
            .unwrap()
            .starts_with("Multiple user assigned")
    );
    let by_object = format!("{good}&object_id={}", other.principal_id);
    assert_eq!(
        ask(&by_object, "metadata", "true").await.1["client_id"],
        json!(other.client_id)
    );
}

#[tokio::test]
async fn faults_come_as_often_as_told_and_the_journal_shows_them() {
    let rig = rig(config()).await;
    let http = reqwest::Client::new();
    let sim = |path: &str| format!("{}_sim/{path}", rig.endpoints.arm);
    let fault = json!({ "service": "imds", "path": "oauth2/token", "times": 1, "action": { "answer": { "status": 429, "retry_after": 0, "body": { "error": "busy" } } } });
    assert!(
        http.post(sim("faults"))
            .json(&fault)
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
    rig.azure.inject(Fault {
        service: Service::Imds,
        method: None,
        path: String::new(),
        action: Action::Drop,
        times: 1,
    });
    rig.imds().token(&Who::System, "r").await.unwrap();
    let journal: Vec<Value> = http
        .get(sim("journal"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let statuses: BTreeSet<u64> = journal
        .iter()
        .filter_map(|entry| entry["status"].as_u64())
        .collect();
    assert_eq!(statuses, BTreeSet::from([200, 429]));
    assert_eq!(journal.len(), 3);
}
