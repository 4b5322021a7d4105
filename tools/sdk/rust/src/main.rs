//! Asks for tokens with azure_identity and object_store; see ../README.md.

use std::time::Instant;

use azure_core::credentials::TokenCredential as _;
use azure_identity::{ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId};
use futures::future::join_all;
use object_store::azure::{AzureConfigKey, AzureCredential, MicrosoftAzureBuilder};
use serde_json::{Value, json};

type Answer = Result<String, Box<dyn std::error::Error>>;

async fn with_credential(case: &Value) -> Answer {
    let id = |name: &str| case[name].as_str().map(str::to_owned);
    let named = id("client").map(UserAssignedId::ClientId);
    let named = named.or_else(|| id("resource").map(UserAssignedId::ResourceId));
    let options = ManagedIdentityCredentialOptions {
        user_assigned_id: named.or_else(|| id("object").map(UserAssignedId::ObjectId)),
        ..Default::default()
    };
    let credential = ManagedIdentityCredential::new(Some(options))?;
    let token = credential.get_token(&["https://vault.azure.net/.default"], None).await?;
    Ok(token.token.secret().to_owned())
}

async fn with_object_store(case: &Value) -> Answer {
    let mut builder = MicrosoftAzureBuilder::new().with_account("account").with_container_name("container");
    for (name, key) in [
        ("client", AzureConfigKey::ClientId),
        ("resource", AzureConfigKey::MsiResourceId),
        ("object", AzureConfigKey::ObjectId),
    ] {
        if let Some(id) = case[name].as_str() {
            builder = builder.with_config(key, id);
        }
    }
    let store = builder.build()?;
    match store.credentials().get_credential().await?.as_ref() {
        AzureCredential::BearerToken(token) => Ok(token.clone()),
        _ => Err("the credential is no token".into()),
    }
}

/// The version of a crate in the lockfile.
fn version(name: &str) -> String {
    let mut packages = include_str!("../Cargo.lock").split("[[package]]\n");
    let start = format!("name = \"{name}\"\nversion = \"");
    let version = packages.find_map(|package| package.strip_prefix(&start)?.split('"').next());
    version.unwrap_or_default().to_owned()
}

async fn ask(case: &Value) -> Value {
    let started = Instant::now();
    let (name, answer) = match case["how"].as_str() {
        Some("object_store") => ("object_store", with_object_store(case).await),
        _ => ("azure_identity", with_credential(case).await),
    };
    let mut said = match answer {
        Ok(token) => json!({ "token": token }),
        Err(error) => json!({ "error": in_full(error.as_ref()) }),
    };
    said["seconds"] = started.elapsed().as_secs_f64().into();
    said["version"] = version(name).into();
    said
}

/// An error with its causes, as applications print it.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    rustls::crypto::ring::default_provider().install_default().expect("the only one");
    let cases = std::env::args().nth(1).expect("a list of cases");
    let cases: Vec<Value> = serde_json::from_str(&cases).expect("JSON");
    for said in join_all(cases.iter().map(ask)).await {
        println!("{said}");
    }
}
