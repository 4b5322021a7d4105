//! Instance metadata service (IMDS) of one node: tokens of what is attached to its host, and the instance document. Started by
//! `Control::serve_imds`; the address that it listens on tells it which machine asks.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Json, Router, middleware};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::World;
use super::directory::{Attached, key};
use super::faults::layer;
use super::journal::Service;
use super::tokens::Subject;

/// Some of those that Azure has; the identity category is there since the first.
const VERSIONS: [&str; 6] = [
    "2018-02-01",
    "2018-10-01",
    "2019-08-01",
    "2020-06-01",
    "2021-02-01",
    "2025-04-07",
];

/// A node: the machine's own id, and that of the host that its identities are on.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) machine: String,
    pub(super) host: String,
}

type At = (Arc<World>, Arc<Node>);

pub(super) fn router(world: &Arc<World>, node: Node) -> Router {
    let seen = (Arc::clone(world), Service::Imds);
    Router::new()
        .route("/metadata/identity/oauth2/token", any(token))
        .route("/metadata/identity/info", any(info))
        .route("/metadata/instance", any(instance))
        .route("/metadata/versions", any(versions))
        .fallback(async || refused(StatusCode::NOT_FOUND, "not_found", "Not found"))
        .layer(middleware::from_fn_with_state(seen, layer))
        .with_state((Arc::clone(world), Arc::new(node)))
}

fn refused(status: StatusCode, error: &str, description: &str) -> Response {
    let body = json!({ "error": error, "error_description": description });
    (status, Json(body)).into_response()
}

fn invalid(description: &str) -> Response {
    refused(StatusCode::BAD_REQUEST, "invalid_request", description)
}

/// The query by name, once the rules that hold for every path are met.
fn admitted(
    method: &Method,
    headers: &HeaderMap,
    query: Option<String>,
    versioned: bool,
) -> Result<HashMap<String, String>, Box<Response>> {
    let no = |answer: Response| Err(Box::new(answer));
    if headers.get("metadata").is_none_or(|value| value != "true") {
        return no(invalid("Required metadata header not specified"));
    }
    if headers.contains_key("x-forwarded-for") {
        return no(invalid("Requests with X-Forwarded-For are refused"));
    }
    if method != Method::GET {
        let text = "Http method not allowed";
        return no(refused(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request",
            text,
        ));
    }
    let mut found = HashMap::new();
    let query = query.unwrap_or_default();
    for (name, value) in form(&query) {
        if found.insert(name, value).is_some() {
            return no(invalid("Duplicate query parameters"));
        }
    }
    let version = found.get("api-version").map(String::as_str);
    if versioned && !version.is_some_and(|version| VERSIONS.contains(&version)) {
        let body = json!({
            "error": "Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds",
            "newest-versions": ["2025-04-07", "2021-02-01", "2020-06-01"],
        });
        return no((StatusCode::BAD_REQUEST, Json(body)).into_response());
    }
    Ok(found)
}

pub(super) fn form(text: &str) -> impl Iterator<Item = (String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode(&text)
    };
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(move |pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let pair = tail
            .get(..2)
            .and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(value) if *first == b'%' => {
                bytes.push(value);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn token(
    State((world, node)): State<At>,
    method: Method,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let query = match admitted(&method, &headers, query, true) {
        Ok(query) => query,
        Err(answer) => return *answer,
    };
    let given = |name: &str| {
        query
            .get(name)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    };
    let Some(resource) = given("resource") else {
        return invalid("Required query variable 'resource' is missing");
    };
    let by_id = given("msi_res_id").or_else(|| given("mi_res_id"));
    let chosen = (given("client_id"), given("object_id"), by_id);
    let found = match find(&world, &node, chosen) {
        Ok(found) => found,
        Err(description) => return invalid(description),
    };
    let life = world.token_life();
    let now = Timestamp::now().as_second();
    let subject = Subject {
        tenant: &world.config.tenant,
        client_id: &found.client_id,
        principal_id: &found.principal_id,
        identity: Some(&found.id),
        host: Some(&node.host),
        proof: "2",
    };
    let Ok(token) = world.signer.token(&subject, resource, now, life) else {
        return refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            "unknown",
            "signing failed",
        );
    };
    let mut body = json!({
        "access_token": token, "client_id": found.client_id, "token_type": "Bearer", "resource": resource,
        "expires_in": life.to_string(), "ext_expires_in": life.to_string(), "expires_on": (now + life).to_string(),
        "not_before": (now - 300).to_string(), "refresh_token": "",
    });
    if chosen.2.is_some() {
        body["msi_res_id"] = json!(found.id);
    }
    Json(body).into_response()
}

type Chosen<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);

fn find(world: &World, node: &Node, chosen: Chosen<'_>) -> Result<Attached, &'static str> {
    let directory = world.directory.lock();
    let usable = directory.usable(&node.host, world.config.imds_delay);
    let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
    let one = |fits: &dyn Fn(&Attached) -> bool| {
        usable
            .iter()
            .find(|attached| fits(attached))
            .cloned()
            .ok_or("Identity not found")
    };
    match chosen {
        (Some(id), None, None) => one(&|attached| same(&attached.client_id, id)),
        (None, Some(id), None) => one(&|attached| same(&attached.principal_id, id)),
        (None, None, Some(id)) => one(&|attached| same(&attached.id, id)),
        (None, None, None) => {
            let system = directory
                .hosts
                .get(&key(&node.host))
                .and_then(|host| host.system.clone());
            match (system, usable.as_slice()) {
                (Some((principal_id, client_id)), _) => Ok(Attached {
                    id: node.machine.clone(),
                    client_id,
                    principal_id,
                    settled: tokio::time::Instant::now(),
                }),
                (None, [only]) => Ok(only.clone()),
                (None, []) => Err("Identity not found"),
                (None, _) => Err(
                    "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request",
                ),
            }
        }
        _ => Err("client_id, object_id and msi_res_id exclude one another"),
    }
}

async fn info(
    State((world, _)): State<At>,
    method: Method,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    match admitted(&method, &headers, query, true) {
        Ok(_) => Json(json!({ "tenantId": world.config.tenant })).into_response(),
        Err(answer) => *answer,
    }
}

async fn instance(
    State((world, node)): State<At>,
    method: Method,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    match admitted(&method, &headers, query, true) {
        Ok(_) => Json(machine(&world, &node)).into_response(),
        Err(answer) => *answer,
    }
}

fn machine(world: &World, node: &Node) -> Value {
    let location = world
        .directory
        .lock()
        .hosts
        .get(&key(&node.host))
        .map(|host| host.location.clone());
    json!({ "compute": {
        "azEnvironment": "AzurePublicCloud", "location": location, "resourceId": node.machine,
        "name": node.machine.rsplit('/').next(), "subscriptionId": world.config.subscription,
    } })
}

async fn versions(method: Method, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    match admitted(&method, &headers, query, false) {
        Ok(_) => {
            let headers = [(header::SERVER, "IMDS/podid-sim")];
            (headers, Json(json!({ "apiVersions": VERSIONS }))).into_response()
        }
        Err(answer) => *answer,
    }
}
