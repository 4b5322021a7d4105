//! Steps of the demo, as data: what happens, why, and the code that does it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use kube::Api;
use podid_api::assigned::{AssignmentState, AzureAssignedIdentity};
use podid_api::binding::AzureIdentityBinding;
use podid_sim::azure::{Role, Service};
use serde_json::json;

use super::stage::Stage;

/// What the application of the story asks tokens for.
pub const STORAGE: &str = "https://storage.azure.com";
const IDENTITY: &str = "reader-id";
const SELECTOR: &str = "myapp";

const MYAPP: IpAddr = pod(1);
const STRAY: IpAddr = pod(2);
const STRANGER: IpAddr = pod(3);
const EXEMPT: IpAddr = pod(4);

/// Pods are told apart by their addresses; on this machine these are loopback's.
const fn pod(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 1, n))
}

type Act = for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, anyhow::Result<String>>;

/// One step.
pub struct Step {
    /// The part of the story.
    pub section: &'static str,
    /// What happens.
    pub title: &'static str,
    /// Why, for someone who has not read about it.
    pub why: &'static str,
    /// Does it, and says what was seen.
    pub act: Act,
}

const ARTICLE: &str = "From an identity to a token";
const PROTECTION: &str = "What it protects";

/// The story.
pub const STEPS: &[Step] = &[
    Step {
        section: ARTICLE,
        title: "a cluster and an Azure are up",
        why: "Both are simulated, from memory, and speak the real protocols: kubectl and the Azure SDKs work against them.",
        act: |stage| up(stage).boxed_local(),
    },
    Step {
        section: ARTICLE,
        title: "podid is deployed",
        why: "mic attaches identities to the machines that need them; nmi answers the metadata endpoint on every node.",
        act: |stage| deployed(stage).boxed_local(),
    },
    Step {
        section: ARTICLE,
        title: "az identity create -n reader-id",
        why: "A managed identity, with the role to read blobs. It has no password that anyone could lose.",
        act: |stage| identity(stage).boxed_local(),
    },
    Step {
        section: ARTICLE,
        title: "az role assignment create, for mic",
        why: "mic may put this identity on machines, and no other: Managed Identity Operator on it alone.",
        act: |stage| operator(stage).boxed_local(),
    },
    Step {
        section: ARTICLE,
        title: "kubectl apply -f aadpodidentity.yaml",
        why: "The cluster learns of the identity. The file is written the old way (ResourceID, ClientID), and works.",
        act: |stage| azure_identity(stage).boxed_local(),
    },
    Step {
        section: ARTICLE,
        title: "kubectl apply -f aadpodidentitybinding.yaml",
        why: "An administrator decides which pods may use it: those labelled aadpodidbinding=myapp in this namespace.",
        act: |stage| binding(stage).boxed_local(),
    },
    Step {
        section: ARTICLE,
        title: "pod myapp-7d4 starts with the label",
        why: "mic sees it, attaches the identity to the scale set of its node, and says so in an AzureAssignedIdentity.",
        act: |stage| assigned(stage).boxed_local(),
    },
    Step {
        section: ARTICLE,
        title: "the app asks for a token",
        why: "As ManagedIdentityCredential does, with nothing configured. The second time the answer comes from memory.",
        act: |stage| token(stage).boxed_local(),
    },
    Step {
        section: PROTECTION,
        title: "a pod without the label asks",
        why: "On the same node, so that Azure itself would have given it the token. The answer says what is missing.",
        act: |stage| stray(stage).boxed_local(),
    },
    Step {
        section: PROTECTION,
        title: "a pod of another namespace copies the label",
        why: "A label is easily copied. Bindings reach pods of their own namespace only, unless you decide otherwise.",
        act: |stage| stranger(stage).boxed_local(),
    },
    Step {
        section: PROTECTION,
        title: "an exempted pod asks",
        why: "AzurePodIdentityException lets it through to the node's own metadata service, its request unchanged.",
        act: |stage| exempted(stage).boxed_local(),
    },
    Step {
        section: PROTECTION,
        title: "a token is rotated under a running client",
        why: "Tokens made to live for seconds are renewed before they expire; the client never waits and never fails.",
        act: |stage| rotated(stage).boxed_local(),
    },
    Step {
        section: PROTECTION,
        title: "the binding is deleted",
        why: "The token in memory goes at once, and with its last pod gone the identity leaves the scale set.",
        act: |stage| revoked(stage).boxed_local(),
    },
];

async fn up(stage: &mut Stage) -> anyhow::Result<String> {
    stage.build().await?;
    let world = stage.world()?;
    let server = world.client.apiserver_version().await?;
    let imds = &world.endpoints.imds;
    Ok(format!(
        "Kubernetes {} · metadata {}:{}",
        server.git_version,
        imds.host_str().unwrap_or_default(),
        imds.port_or_known_default().unwrap_or_default()
    ))
}

async fn deployed(stage: &mut Stage) -> anyhow::Result<String> {
    let definitions = podid_api::crds::all()?;
    let kinds = definitions.len();
    for definition in definitions {
        stage.create(serde_json::to_value(definition)?).await?;
    }
    stage.deploy().await?;
    stage
        .until(async |world| {
            let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
                Api::namespaced(world.client.clone(), "default");
            let lease = leases.get_opt("aad-pod-identity-mic").await?;
            let holder = lease.and_then(|lease| lease.spec?.holder_identity);
            Ok(holder.is_some_and(|holder| !holder.is_empty()))
        })
        .await
        .context("no mic leads")?;
    // nmi holds an unknown caller until it has read the cluster's objects.
    stage
        .ask_until(pod(200), 400)
        .await
        .context("nmi is not ready")?;
    Ok(format!("{kinds} kinds · mic is leader · nmi is ready"))
}

async fn identity(stage: &mut Stage) -> anyhow::Result<String> {
    let subscription = stage.world()?.azure.subscription().to_owned();
    let group = format!("/subscriptions/{subscription}/resourceGroups/demo");
    let path = format!(
        "{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{IDENTITY}?api-version=2024-11-30"
    );
    stage.az(&path, json!({ "location": "westeurope" })).await?;
    let reader = stage.world()?.azure.create_identity("demo", IDENTITY);
    let scope = format!(
        "{group}/providers/Microsoft.Storage/storageAccounts/demo/blobServices/default/containers/blobs"
    );
    stage
        .assign_role(&reader.principal_id, Role::StorageBlobDataReader, &scope)
        .await?;
    let shown = format!(
        "client id {}… · Storage Blob Data Reader on container blobs",
        &reader.client_id[..8]
    );
    stage.reader = Some(reader);
    Ok(shown)
}

async fn operator(stage: &mut Stage) -> anyhow::Result<String> {
    let (principal, reader) = (
        stage.controller()?.principal_id.clone(),
        stage.reader()?.id.clone(),
    );
    stage
        .assign_role(&principal, Role::ManagedIdentityOperator, &reader)
        .await?;
    Ok(format!("Managed Identity Operator on {IDENTITY}"))
}

async fn azure_identity(stage: &mut Stage) -> anyhow::Result<String> {
    let reader = stage.reader()?;
    let yaml = include_str!("article/aadpodidentity.yaml")
        .replace("<your_managed_identity_name>", IDENTITY)
        .replace("<the managed identity id returned previously>", &reader.id)
        .replace(
            "<the managed identity clientId returned previously>",
            &reader.client_id,
        );
    stage.apply(&yaml).await?;
    Ok(format!("AzureIdentity default/{IDENTITY}"))
}

async fn binding(stage: &mut Stage) -> anyhow::Result<String> {
    let yaml = include_str!("article/aadpodidentitybinding.yaml")
        .replace(
            "<your_managed_identity_name from the previous step>",
            IDENTITY,
        )
        .replace("<your_app_selector_name>", SELECTOR);
    stage.apply(&yaml).await?;
    Ok(format!("selector {SELECTOR} -> {IDENTITY}"))
}

async fn assigned(stage: &mut Stage) -> anyhow::Result<String> {
    let started = Instant::now();
    stage
        .start_pod(
            "default",
            "myapp-7d4",
            json!({ "aadpodidbinding": SELECTOR }),
            MYAPP,
        )
        .await?;
    stage
        .until(async |world| {
            let all: Api<AzureAssignedIdentity> = Api::all(world.client.clone());
            let all = all.list(&Default::default()).await?;
            Ok(all
                .iter()
                .filter_map(|one| one.facts().ok())
                .any(|one| one.state == AssignmentState::Assigned))
        })
        .await
        .context("no AzureAssignedIdentity became Assigned")?;
    let patches = patches(stage)?;
    ensure!(patches == 1, "{patches} PATCH where one does");
    let took = started.elapsed().as_secs_f64();
    Ok(format!(
        "{IDENTITY} is on vmss/pool1 after {took:.1} s (1 PATCH)"
    ))
}

fn patches(stage: &Stage) -> anyhow::Result<usize> {
    let journal = stage.world()?.azure.journal();
    Ok(journal
        .iter()
        .filter(|entry| entry.service == Service::Arm && entry.method == "PATCH")
        .count())
}

async fn token(stage: &mut Stage) -> anyhow::Result<String> {
    let first = stage.ask_until(MYAPP, 200).await?;
    let second = stage.expect(MYAPP, 200).await?;
    let token = second.token().context("no token")?;
    let claims = stage
        .world()?
        .azure
        .claims(token)
        .context("the token was not made by this Azure")?;
    ensure!(
        claims["aud"] == STORAGE,
        "the token is for {}",
        claims["aud"]
    );
    ensure!(
        claims["appid"] == stage.reader()?.client_id,
        "the token is someone else's"
    );
    let seconds: u64 = second.body["expires_in"]
        .as_str()
        .unwrap_or_default()
        .parse()?;
    let hours = (seconds + 1800) / 3600;
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    Ok(format!(
        "200 in {:.1} ms, then {:.1} ms · for {} · {} h",
        ms(first.took),
        ms(second.took),
        claims["aud"].as_str().unwrap_or_default(),
        hours
    ))
}

fn refused(status: u16, explanation: &str) -> String {
    format!("{status}: {explanation}")
}

async fn stray(stage: &mut Stage) -> anyhow::Result<String> {
    stage
        .start_pod("default", "stray", json!({ "app": "stray" }), STRAY)
        .await?;
    let answer = known(stage, STRAY, "stray").await?;
    Ok(refused(answer.0, &answer.1))
}

async fn stranger(stage: &mut Stage) -> anyhow::Result<String> {
    stage
        .create(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "other" } }))
        .await?;
    stage
        .start_pod(
            "other",
            "copycat",
            json!({ "aadpodidbinding": SELECTOR }),
            STRANGER,
        )
        .await?;
    let answer = known(stage, STRANGER, "other/copycat").await?;
    Ok(refused(answer.0, &answer.1))
}

/// The refusal of a pod, once nmi knows it by name.
async fn known(stage: &Stage, from: IpAddr, name: &str) -> anyhow::Result<(u16, String)> {
    loop {
        let answer = stage.ask(from, STORAGE).await?;
        if answer.token().is_some() {
            bail!("it got a token");
        }
        if answer.explanation().contains(name) {
            ensure!(answer.status == 400, "status {}", answer.status);
            return Ok((answer.status, answer.explanation().to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn exempted(stage: &mut Stage) -> anyhow::Result<String> {
    stage
        .apply(include_str!("article/aad-identity-exception.yaml"))
        .await?;
    stage
        .start_pod("default", "agent", json!({ "noaad": "true" }), EXEMPT)
        .await?;
    let before = stage.world()?.azure.journal().len();
    // Two identities are on the machine and the request names none, which the metadata service refuses in its own words.
    loop {
        let answer = stage.ask(EXEMPT, STORAGE).await?;
        if answer
            .explanation()
            .starts_with("Multiple user assigned identities")
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let journal = stage.world()?.azure.journal();
    let asked = journal
        .iter()
        .skip(before)
        .filter(|entry| entry.service == Service::Imds);
    let path = asked.map(|entry| entry.path.clone()).next_back();
    let path = path.context("the metadata service was not asked")?;
    ensure!(
        path.contains("resource=https%3A%2F%2Fstorage.azure.com"),
        "the request was changed: {path}"
    );
    Ok("answered by the node's own metadata service".to_owned())
}

async fn rotated(stage: &mut Stage) -> anyhow::Result<String> {
    let vault = "https://vault.azure.net";
    stage.world()?.azure.set_token_life(Duration::from_secs(4));
    let first = stage.ask(MYAPP, vault).await?;
    let first = first.token().context("no token")?.to_owned();
    let (mut asked, mut slowest) = (1, Duration::ZERO);
    loop {
        let answer = stage.ask(MYAPP, vault).await?;
        let token = answer
            .token()
            .with_context(|| format!("request {asked} failed: {}", answer.explanation()))?;
        ensure!(
            stage.world()?.azure.claims(token).is_some(),
            "request {asked} got an expired token"
        );
        asked += 1;
        slowest = slowest.max(answer.took);
        if token != first {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage
        .world()?
        .azure
        .set_token_life(Duration::from_secs(86_399));
    Ok(format!(
        "{asked} requests, none failed, slowest {:.1} ms",
        slowest.as_secs_f64() * 1e3
    ))
}

async fn revoked(stage: &mut Stage) -> anyhow::Result<String> {
    let started = Instant::now();
    stage
        .delete::<AzureIdentityBinding>("myapp-azure-identity-binding")
        .await?;
    let answer = stage.ask_until(MYAPP, 400).await?;
    let gone = started.elapsed().as_millis();
    ensure!(answer.token().is_none(), "it still got a token");
    let reader = stage.reader()?.id.to_lowercase();
    stage
        .until(async |world| Ok(!world.azure.attached(&world.set).contains(&reader)))
        .await
        .context("the identity stayed on the scale set")?;
    let left = started.elapsed().as_secs_f64();
    Ok(format!(
        "no token after {gone} ms · off vmss/pool1 after {left:.1} s"
    ))
}
