//! Entra: token endpoints, OpenID discovery and signing keys. Gives tokens to applications by secret, certificate or federated token,
//! and to managed identities by federated token.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::directory::{Principal, key};
use super::entra_error::{Refused, refuse};
use super::faults::layer;
use super::imds::form;
use super::journal::Service;
use super::tokens::Subject;
use super::{World, assertion, federation, reached_at};

/// The life of an application's token, in seconds; as Azure's most common.
const LIFE: i64 = 3599;

pub(super) fn router(world: &Arc<World>) -> Router {
    let seen = (Arc::clone(world), Service::Entra);
    Router::new()
        .route("/{tenant}/oauth2/token", post(v1))
        .route("/{tenant}/oauth2/v2.0/token", post(v2))
        .route(
            "/{tenant}/.well-known/openid-configuration",
            get(discovery_v1),
        )
        .route(
            "/{tenant}/v2.0/.well-known/openid-configuration",
            get(discovery_v2),
        )
        .route("/{tenant}/discovery/keys", get(keys))
        .route("/{tenant}/discovery/v2.0/keys", get(keys))
        .layer(middleware::from_fn_with_state(seen, layer))
        .with_state(Arc::clone(world))
}

async fn v1(
    State(world): State<Arc<World>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let fields: HashMap<_, _> = form(&body).collect();
    let base = base(&world, &headers, &tenant);
    let outcome = match text(&fields, "resource") {
        Ok(resource) => issue(&world, &base, &tenant, &fields, resource).await,
        Err(refused) => Err(refused),
    };
    match outcome {
        Ok(Issued {
            token,
            resource,
            now,
            life,
        }) => answer(json!({
            "token_type": "Bearer", "expires_in": life.to_string(), "ext_expires_in": life.to_string(),
            "expires_on": (now + life).to_string(), "not_before": (now - 300).to_string(),
            "resource": resource, "access_token": token,
        })),
        Err(refused) => refused.answer(),
    }
}

async fn v2(
    State(world): State<Arc<World>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let fields: HashMap<_, _> = form(&body).collect();
    let base = base(&world, &headers, &tenant);
    if fields.contains_key("resource") {
        let text = "The 'resource' request parameter is not supported.";
        return refuse("invalid_request", 901_002, text).answer();
    }
    let resource = text(&fields, "scope").and_then(|scope| {
        scope.strip_suffix("/.default").ok_or_else(|| {
            refuse("invalid_scope", 1_002_012, format!("The provided value for scope {scope} is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI)."))
        })
    });
    let outcome = match resource {
        Ok(resource) => issue(&world, &base, &tenant, &fields, resource).await,
        Err(refused) => Err(refused),
    };
    match outcome {
        Ok(Issued { token, life, .. }) => answer(json!({
            "token_type": "Bearer", "expires_in": life, "ext_expires_in": life, "access_token": token,
        })),
        Err(refused) => refused.answer(),
    }
}

fn answer(body: Value) -> Response {
    ([(header::CACHE_CONTROL, "no-store, no-cache")], Json(body)).into_response()
}

fn text<'a>(fields: &'a HashMap<String, String>, name: &str) -> Result<&'a str, Refused> {
    fields
        .get(name)
        .map(String::as_str)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| {
            let text = format!("The request body must contain the following parameter: '{name}'.");
            refuse("invalid_request", 900_144, text)
        })
}

/// A token, with what the answer says of it.
struct Issued {
    token: String,
    resource: String,
    now: i64,
    life: i64,
}

async fn issue(
    world: &World,
    base: &str,
    tenant: &str,
    fields: &HashMap<String, String>,
    resource: &str,
) -> Result<Issued, Refused> {
    let is_home = tenant.eq_ignore_ascii_case(&world.config.tenant);
    if !is_home && !world.directory.lock().tenants.contains(&key(tenant)) {
        let text = format!(
            "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud."
        );
        return Err(refuse("invalid_request", 90_002, text));
    }
    let kind = text(fields, "grant_type")?;
    if kind != "client_credentials" {
        let text = format!("The app requested an unsupported grant type '{kind}'.");
        return Err(refuse("unsupported_grant_type", 70_003, text));
    }
    let client_id = text(fields, "client_id")?;
    let found = world.directory.lock().principal(client_id);
    // A managed identity exists in its own tenant alone.
    let Some(principal) = found.filter(|found| is_home || found.identity.is_none()) else {
        let text = format!(
            "Application with identifier '{client_id}' was not found in the directory '{tenant}'."
        );
        return Err(refuse("unauthorized_client", 700_016, text));
    };
    let proof = prove(world, base, fields, client_id, &principal).await?;
    sign(world, tenant, client_id, &principal, resource, proof)
}

/// The proof that the client is the principal: 1 for a secret, 2 for an assertion.
async fn prove(
    world: &World,
    base: &str,
    fields: &HashMap<String, String>,
    client_id: &str,
    principal: &Principal,
) -> Result<&'static str, Refused> {
    let application = &principal.application;
    if !fields.contains_key("client_assertion") {
        if application.secret == text(fields, "client_secret")? {
            return Ok("1");
        }
        let text = format!(
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '{client_id}'."
        );
        return Err(refuse("invalid_client", 7_000_215, text));
    }
    let now = Timestamp::now().as_second();
    let presented = text(fields, "client_assertion")?;
    if text(fields, "client_assertion_type")? != assertion::TYPE {
        let text = "client_assertion_type is not a JWT's";
        return Err(refuse("invalid_request", 900_144, text));
    }
    if !assertion::is_own(presented, client_id) {
        federation::verify(world, client_id, principal, presented, now).await?;
        return Ok("2");
    }
    let audience = format!("{base}/oauth2/");
    let jti = assertion::verify(presented, application, client_id, &audience, now)
        .map_err(|text| refuse("invalid_client", 700_027, text))?;
    if !world.directory.lock().assertions.insert(jti) {
        let text = "Client assertion was presented before.";
        return Err(refuse("invalid_client", 700_027, text));
    }
    Ok("2")
}

fn sign(
    world: &World,
    tenant: &str,
    client_id: &str,
    principal: &Principal,
    resource: &str,
    proof: &'static str,
) -> Result<Issued, Refused> {
    let now = Timestamp::now().as_second();
    let life = match principal.identity {
        Some(_) => world.token_life(),
        None => LIFE,
    };
    let subject = Subject {
        tenant,
        client_id,
        principal_id: &principal.application.principal_id,
        identity: principal.identity.as_deref(),
        host: None,
        proof,
    };
    let token = world.signer.token(&subject, resource, now, life);
    let token = token.map_err(|_| {
        let text = "A transient error has occurred.";
        refuse("temporarily_unavailable", 90_033, text)
    })?;
    Ok(Issued {
        token,
        resource: resource.to_owned(),
        now,
        life,
    })
}

async fn keys(State(world): State<Arc<World>>) -> Response {
    let headers = [(header::CACHE_CONTROL, "max-age=86400, private")];
    (headers, Json(world.signer.jwks())).into_response()
}

async fn discovery_v1(
    State(world): State<Arc<World>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Response {
    discovery(
        &base(&world, &headers, &tenant),
        "oauth2/token",
        "discovery/keys",
        format!("https://sts.windows.net/{tenant}/"),
    )
}

async fn discovery_v2(
    State(world): State<Arc<World>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Response {
    let issuer = format!("https://login.microsoftonline.com/{tenant}/v2.0");
    discovery(
        &base(&world, &headers, &tenant),
        "oauth2/v2.0/token",
        "discovery/v2.0/keys",
        issuer,
    )
}

/// Where the client found this tenant.
fn base(world: &World, headers: &HeaderMap, tenant: &str) -> String {
    format!("http://{}/{tenant}", reached_at(headers, world.entra))
}

fn discovery(base: &str, token: &str, keys: &str, issuer: String) -> Response {
    let body = json!({
        "issuer": issuer,
        "token_endpoint": format!("{base}/{token}"),
        "jwks_uri": format!("{base}/{keys}"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "subject_types_supported": ["pairwise"],
        "response_types_supported": ["token"],
    });
    Json(body).into_response()
}
