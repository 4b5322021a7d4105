//! Federated identity credentials of managed identities in Azure Resource Manager: create, get, list and delete, by Azure's rules.
//! `arm` routes here; Entra learns what is written by way of `propagation`.

use axum::Json;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::World;
use super::arm::{ArmError, Caller, Parts, demand, not_allowed};
use super::directory::{Action, Identity, key};
use super::imds::form;
use super::propagation::Propagated;

/// Of one identity or application, whoever made them.
const MOST: usize = 20;
/// Characters of issuer, subject and audience.
const LONGEST: usize = 600;
const TYPE: &str = "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials";
/// The audience that Azure's public cloud expects.
const AUDIENCE: &str = "api://AzureADTokenExchange";

/// Which tokens of another issuer stand for an identity or an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FederatedCredential {
    /// Its name, unique among those of its identity.
    pub name: String,
    /// The token's `iss`, to the byte.
    pub issuer: String,
    /// The token's `sub`, to the byte.
    pub subject: String,
    /// The token's only `aud`.
    pub audience: String,
}

impl FederatedCredential {
    /// One with the public cloud's audience.
    pub fn new(name: &str, issuer: &str, subject: &str) -> Self {
        Self {
            name: name.to_owned(),
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            audience: AUDIENCE.to_owned(),
        }
    }
}

/// The federated credentials of one identity or application.
#[derive(Debug, Default)]
pub(super) struct Federation {
    pub(super) known: Propagated,
    /// Until when a write is under way.
    writing: Option<Instant>,
}

/// A request for the federated credentials of an identity.
pub(super) struct Request<'a> {
    pub(super) method: &'a Method,
    /// The identity.
    pub(super) parent: Parts<'a>,
    /// Of one credential; of all where there is none.
    pub(super) name: Option<&'a str>,
    pub(super) query: &'a str,
    pub(super) body: &'a [u8],
    /// Where the client has reached Resource Manager.
    pub(super) host: String,
}

pub(super) async fn answer(
    world: &World,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<Response, ArmError> {
    let parent = &request.parent;
    let (action, verb) = match *request.method {
        Method::GET => (Action::Read, "read"),
        Method::PUT => (Action::WriteIdentity, "write"),
        Method::DELETE => (Action::WriteIdentity, "delete"),
        _ => return Err(not_allowed()),
    };
    demand(world, caller, action, &format!("{TYPE}/{verb}"), parent.id)?;
    let identity = world
        .directory
        .lock()
        .identities
        .get(&key(parent.id))
        .cloned();
    let identity = identity.ok_or_else(|| {
        let text = "The parent user-assigned identity doesn't exist.";
        ArmError::new(StatusCode::NOT_FOUND, "ParentResourceNotFound", text)
    })?;
    let answered = match (request.method, request.name) {
        (&Method::GET, Some(name)) => return read(world, &identity, name),
        (&Method::GET, None) => return Ok(list(world, &identity, request)),
        (&Method::PUT, Some(name)) => create(world, &identity, name, request.body)?,
        (&Method::DELETE, Some(name)) => delete(world, &identity, name)?,
        _ => return Err(not_allowed()),
    };
    tokio::time::sleep(world.config.credential_latency).await;
    Ok(answered)
}

fn shown(identity: &Identity, credential: &FederatedCredential) -> Value {
    json!({
        "id": format!("{}/federatedIdentityCredentials/{}", identity.id, credential.name),
        "name": credential.name, "type": TYPE,
        "properties": {
            "issuer": credential.issuer, "subject": credential.subject, "audiences": [credential.audience],
        },
    })
}

fn current(world: &World, identity: &Identity) -> Vec<FederatedCredential> {
    let directory = world.directory.lock();
    let federation = directory.federations.get(&key(&identity.client_id));
    federation.map_or_else(Vec::new, |found| found.known.current().to_vec())
}

fn read(world: &World, identity: &Identity, name: &str) -> Result<Response, ArmError> {
    let all = current(world, identity);
    let found = all
        .iter()
        .find(|known| known.name.eq_ignore_ascii_case(name));
    let found = found.ok_or_else(|| {
        let text = format!(
            "The Resource '{TYPE}/{name}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
        );
        ArmError::new(StatusCode::NOT_FOUND, "NotFound", text)
    })?;
    Ok(Json(shown(identity, found)).into_response())
}

/// A page of them: `$top` bounds it, and `$skiptoken` is how many came before.
fn list(world: &World, identity: &Identity, request: &Request<'_>) -> Response {
    let number = |wanted: &str| {
        let found = form(request.query).find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| value.parse::<usize>().ok())
    };
    let (skip, top) = (
        number("$skiptoken").unwrap_or(0),
        number("$top").unwrap_or(usize::MAX),
    );
    let all = current(world, identity);
    let page = all.iter().skip(skip).take(top);
    let page: Vec<Value> = page.map(|credential| shown(identity, credential)).collect();
    let next = skip + page.len();
    let mut body = json!({ "value": page });
    if next < all.len() {
        body["nextLink"] = json!(format!(
            "http://{}{}/federatedIdentityCredentials?api-version=2024-11-30&$top={top}&$skiptoken={next}",
            request.host, identity.id
        ));
    }
    Json(body).into_response()
}

fn create(
    world: &World,
    identity: &Identity,
    name: &str,
    body: &[u8],
) -> Result<Response, ArmError> {
    let credential = wanted(name, body)?;
    let mut is_new = true;
    change(world, identity, |all| {
        let twin = |other: &&FederatedCredential| {
            other.issuer == credential.issuer
                && other.subject == credential.subject
                && !other.name.eq_ignore_ascii_case(name)
        };
        if all.iter().any(|other| twin(&other)) {
            let text = "Issuer and subject combination already exists for this Managed Identity.";
            return Err(ArmError::new(StatusCode::CONFLICT, "Conflict", text));
        }
        let place = all
            .iter()
            .position(|known| known.name.eq_ignore_ascii_case(name));
        is_new = place.is_none();
        match place {
            Some(place) => {
                all[place].issuer.clone_from(&credential.issuer);
                all[place].subject.clone_from(&credential.subject);
                all[place].audience.clone_from(&credential.audience);
            }
            None if all.len() >= MOST => {
                let text = format!(
                    "Too many federated identity credentials: a managed identity may not have more than {MOST}."
                );
                return Err(bad(&text));
            }
            None => all.push(credential.clone()),
        }
        Ok(())
    })?;
    let body = shown(identity, &credential);
    if !is_new {
        return Ok(Json(body).into_response());
    }
    let location = [(
        header::LOCATION,
        body["id"].as_str().unwrap_or_default().to_owned(),
    )];
    Ok((StatusCode::CREATED, location, Json(body)).into_response())
}

fn delete(world: &World, identity: &Identity, name: &str) -> Result<Response, ArmError> {
    let mut status = StatusCode::NO_CONTENT;
    change(world, identity, |all| {
        let before = all.len();
        all.retain(|known| !known.name.eq_ignore_ascii_case(name));
        if all.len() < before {
            status = StatusCode::OK;
        }
        Ok(())
    })?;
    Ok(status.into_response())
}

/// Writes what `make` makes of them, unless another write is under way.
fn change(
    world: &World,
    identity: &Identity,
    make: impl FnOnce(&mut Vec<FederatedCredential>) -> Result<(), ArmError>,
) -> Result<(), ArmError> {
    let now = Instant::now();
    let mut directory = world.directory.lock();
    let federation = directory
        .federations
        .entry(key(&identity.client_id))
        .or_default();
    if federation.writing.is_some_and(|until| until > now) {
        let text = format!(
            "Too many Federated Identity Credentials are written concurrently for the managed identity '{}'. Concurrent Federated Identity Credentials writes under the same managed identity are not supported.",
            identity.id.to_ascii_lowercase()
        );
        let code = "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity";
        return Err(ArmError::new(StatusCode::CONFLICT, code, text));
    }
    let mut all = federation.known.current().to_vec();
    make(&mut all)?;
    let ends = now + world.config.credential_latency;
    federation.writing = Some(ends);
    federation.known.write(all, ends, world.config.pace());
    Ok(())
}

fn bad(text: &str) -> ArmError {
    ArmError::new(StatusCode::BAD_REQUEST, "BadRequest", text)
}

/// The credential that a body describes.
fn wanted(name: &str, body: &[u8]) -> Result<FederatedCredential, ArmError> {
    let is_word = |c: char| c.is_ascii_alphanumeric();
    let is_name = (3..=120).contains(&name.len())
        && name.starts_with(is_word)
        && name.chars().all(|c| is_word(c) || c == '-' || c == '_');
    if !is_name {
        return Err(bad(&format!(
            "Federated Identity Credential name '{name}' is invalid."
        )));
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let properties = &body["properties"];
    let text = |value: &Value| {
        let text = value.as_str().filter(|text| !text.is_empty());
        text.map(str::to_owned)
            .ok_or_else(|| bad("Federated Identity Credential from HTTP body has empty properties"))
    };
    let (issuer, subject) = (text(&properties["issuer"])?, text(&properties["subject"])?);
    let audience = match properties["audiences"].as_array().map(Vec::as_slice) {
        Some([one]) => text(one)?,
        _ => {
            return Err(bad(
                "Federated identity credentials must have exactly one audience.",
            ));
        }
    };
    let too_long = |text: &String| text.chars().count() > LONGEST;
    if [&issuer, &subject, &audience].into_iter().any(too_long) {
        let text = format!("Issuer, subject and audience may have {LONGEST} characters at most.");
        return Err(bad(&text));
    }
    Ok(FederatedCredential {
        name: name.to_owned(),
        issuer,
        subject,
        audience,
    })
}
