//! Microsoft.Compute: GET and PATCH of the identities of virtual machines and scale sets, their long-running operations, and their
//! throttling. `arm` routes here; what it changes is what the metadata service of a node then knows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::arm::{ArmError, Caller, Parts, demand};
use super::directory::{Action, Attached, Directory, Host, HostKind, Operation, guid, key};
use super::faults::FailedOperation;
use super::{World, reached_at};

/// Azure refuses more entries, removals included, in one request.
const MAX_ENTRIES: usize = 150;
/// Writes of one host: at once, and per second after that.
const BURST: f64 = 12.0;
const REFILL: f64 = 4.0 / 60.0;

fn verb(host: HostKind, action: &str) -> String {
    let kind = match host {
        HostKind::VirtualMachine => "virtualMachines",
        HostKind::ScaleSet => "virtualMachineScaleSets",
    };
    format!("Microsoft.Compute/{kind}/{action}")
}

pub(super) fn read(
    world: &World,
    caller: &Caller,
    parts: &Parts<'_>,
) -> Result<Response, ArmError> {
    let action = verb(kind_of(parts), "read");
    demand(world, caller, Action::Read, &action, parts.id)?;
    let directory = world.directory.lock();
    let host = directory.hosts.get(&key(parts.id));
    let host = host.ok_or_else(|| ArmError::not_found(parts))?;
    Ok(shown(host, &[]))
}

fn kind_of(parts: &Parts<'_>) -> HostKind {
    if parts.kind.eq_ignore_ascii_case("virtualMachines") {
        HostKind::VirtualMachine
    } else {
        HostKind::ScaleSet
    }
}

/// A host as Azure shows it; ids in `fresh` without their clientId, which appears when the operation has ended.
fn shown(host: &Host, fresh: &[String]) -> Response {
    let now = Instant::now();
    let etag = format!("\"{}\"", host.etag);
    let busy = host.busy.is_some_and(|until| until > now);
    let mut body = json!({
        "id": host.id, "name": host.id.rsplit('/').next(), "location": host.location, "etag": etag,
        "properties": { "provisioningState": if busy { "Updating" } else { "Succeeded" } },
    });
    let kind = match (&host.system, host.user.is_empty()) {
        (Some(_), true) => Some("SystemAssigned"),
        (Some(_), false) => Some("SystemAssigned, UserAssigned"),
        (None, false) => Some("UserAssigned"),
        (None, true) => None,
    };
    if let Some(kind) = kind {
        body["identity"] = json!({ "type": kind });
        if let Some((principal, _)) = &host.system {
            body["identity"]["principalId"] = json!(principal);
        }
    }
    if !host.user.is_empty() {
        let map: Map<String, Value> = host
            .user
            .iter()
            .map(|(id, attached)| {
                let known = attached.settled <= now && !fresh.contains(id);
                let value =
                    json!({ "principalId": attached.principal_id, "clientId": attached.client_id });
                (attached.id.clone(), if known { value } else { json!({}) })
            })
            .collect();
        body["identity"]["userAssignedIdentities"] = Value::Object(map);
    }
    let mut answer = Json(body).into_response();
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        answer.headers_mut().insert(header::ETAG, etag);
    }
    answer
}

/// What a PATCH asks for.
struct Wish {
    kind: Option<String>,
    /// By the id as written: attach or not.
    entries: BTreeMap<String, bool>,
}

fn wish(body: &[u8]) -> Result<Wish, ArmError> {
    let bad = |code: &str, text: String| ArmError::new(StatusCode::BAD_REQUEST, code, text);
    let body: Value = serde_json::from_slice(body).map_err(|error| {
        bad(
            "InvalidRequestContent",
            format!("The request content was invalid: {error}."),
        )
    })?;
    let identity = &body["identity"];
    let mut entries = BTreeMap::new();
    let mut seen = Vec::new();
    for (id, value) in identity["userAssignedIdentities"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let plain = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        if !plain {
            return Err(bad(
                "InvalidIdentityValues",
                format!(
                    "Invalid value for the identities '{id}'. The 'UserAssignedIdentities' property keys should only be empty json objects, null or the resource exisiting property."
                ),
            ));
        }
        if seen.contains(&key(id)) {
            let mut error = bad(
                "InvalidParameter",
                format!(
                    "ResourceIdentity identityId '{id}' cannot be duplicated in the provided identityIds list."
                ),
            );
            error.error["target"] = json!("resourceIdentity.identityIds");
            return Err(error);
        }
        seen.push(key(id));
        entries.insert(id.clone(), !value.is_null());
    }
    Ok(Wish {
        kind: identity["type"]
            .as_str()
            .map(|kind| kind.replace(' ', "").to_ascii_lowercase()),
        entries,
    })
}

fn failed(host: &str, inner: &str) -> ArmError {
    let text = format!(
        "Identity operation for resource '{host}' failed with error 'Failed to perform resource identity operation. Status: 'BadRequest'. Response: '{{\"error\":{{\"code\":\"BadRequest\",\"message\":\"{inner}\"}}}}'.'."
    );
    ArmError::new(StatusCode::BAD_REQUEST, "FailedIdentityOperation", text)
}

pub(super) fn patch(
    world: &World,
    caller: &Caller,
    parts: &Parts<'_>,
    headers: &HeaderMap,
    body: &[u8],
    fails: Option<FailedOperation>,
) -> Result<Response, ArmError> {
    demand(
        world,
        caller,
        Action::WriteHost,
        &verb(kind_of(parts), "write"),
        parts.id,
    )?;
    let wish = wish(body)?;
    let mut directory = world.directory.lock();
    if !directory.hosts.contains_key(&key(parts.id)) {
        return Err(ArmError::not_found(parts));
    }
    admit(world, &mut directory, parts.id, headers)?;
    let attach: Vec<&String> = wish
        .entries
        .iter()
        .filter(|(_, on)| **on)
        .map(|(id, _)| id)
        .collect();
    may_assign(world, &directory, caller, parts, &attach)?;
    if wish.entries.len() > MAX_ENTRIES {
        let text = format!(
            "User Assigned Identities Number '{}' Assign exceed limit '150' in one request.",
            wish.entries.len()
        );
        return Err(failed(parts.id, &text));
    }
    for id in &attach {
        if !directory.identities.contains_key(&key(id)) {
            return Err(failed(
                parts.id,
                &format!("Resource '{}' was not found.", key(id)),
            ));
        }
    }
    let latency = directory.hosts.get(&key(parts.id)).and_then(|h| h.latency);
    let ends = Instant::now() + latency.unwrap_or(world.config.patch_latency);
    let (fresh, location) = change(&mut directory, parts.id, &wish, ends);
    let base = format!("http://{}", reached_at(headers, world.arm));
    let url = base + &start(world, &mut directory, &location, ends, fails);
    let Some(host) = directory.hosts.get(&key(parts.id)) else {
        return Err(ArmError::not_found(parts));
    };
    let mut answer = shown(host, &fresh);
    if let Ok(url) = HeaderValue::from_str(&url) {
        answer.headers_mut().insert("azure-asyncoperation", url);
        answer.headers_mut().insert(
            "azure-asyncnotification",
            HeaderValue::from_static("Enabled"),
        );
    }
    Ok(answer)
}

/// Throttling, conditions and concurrent writes.
fn admit(
    world: &World,
    directory: &mut Directory,
    id: &str,
    headers: &HeaderMap,
) -> Result<(), ArmError> {
    let Some(host) = directory.hosts.get_mut(&key(id)) else {
        return Ok(());
    };
    let now = Instant::now();
    if world.config.throttle {
        let (left, counted) = host.tokens;
        let left = (left + (now - counted).as_secs_f64() * REFILL).min(BURST);
        if left < 1.0 {
            let wait = ((1.0 - left) / REFILL).ceil();
            return Err(throttled(wait));
        }
        host.tokens = (left - 1.0, now);
    }
    let etag = format!("\"{}\"", host.etag);
    let condition = headers
        .get(header::IF_MATCH)
        .and_then(|value| value.to_str().ok());
    if let Some(asked) = condition.filter(|asked| *asked != "*" && *asked != etag) {
        let text = format!(
            "Etag provided in if-match header {asked} does not match etag {etag} of resource."
        );
        return Err(ArmError::new(
            StatusCode::PRECONDITION_FAILED,
            "PreconditionFailed",
            text,
        ));
    }
    if host.busy.is_some_and(|until| until > now) {
        let text = "The operation was interrupted by a conflicting concurrent write on the same entity. Please retry later.";
        return Err(ArmError::new(
            StatusCode::CONFLICT,
            "ConflictingConcurrentWriteNotAllowed",
            text,
        ));
    }
    Ok(())
}

fn throttled(wait: f64) -> ArmError {
    let mut error = ArmError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "OperationNotAllowed",
        "The server rejected the request because too many requests have been received for this subscription.",
    );
    error.error["details"] = json!([{ "code": "TooManyRequests", "target": "VMScaleSetActionsResource", "message": "{}" }]);
    error.error["innererror"] = json!({ "internalErrorCode": "TooManyRequestsReceived" });
    // A few seconds, by construction.
    error.retry_after = Some(Duration::from_secs_f64(wait.clamp(1.0, 3600.0)).as_secs());
    error
}

fn may_assign(
    world: &World,
    directory: &Directory,
    caller: &Caller,
    parts: &Parts<'_>,
    attach: &[&String],
) -> Result<(), ArmError> {
    if !world.config.roles {
        return Ok(());
    }
    let lacking: Vec<&str> = attach
        .iter()
        .filter(|id| !directory.may(&caller.principal, Action::Assign, id))
        .map(|id| id.as_str())
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let text = format!(
        "The client '{}' with object id '{}' has permission to perform action '{}' on scope '{}'; however, it does not have permission to perform action 'Microsoft.ManagedIdentity/userAssignedIdentities/assign/action' on the linked scope(s) '{}' or the linked scope(s) are invalid.",
        caller.client_id,
        caller.principal,
        verb(kind_of(parts), "write"),
        parts.id,
        lacking.join(",")
    );
    Err(ArmError::new(
        StatusCode::FORBIDDEN,
        "LinkedAuthorizationFailed",
        text,
    ))
}

/// Merges the map, or drops it when the type says that there are no user-assigned identities. Says which ids are new.
fn change(
    directory: &mut Directory,
    id: &str,
    wish: &Wish,
    ends: Instant,
) -> (Vec<String>, String) {
    let Directory {
        hosts, identities, ..
    } = directory;
    let Some(host) = hosts.get_mut(&key(id)) else {
        return Default::default();
    };
    let mut fresh = Vec::new();
    if let Some(kind) = &wish.kind {
        if !kind.contains("userassigned") {
            host.user.clear();
        }
        match (kind.contains("systemassigned"), &host.system) {
            (true, None) => host.system = Some((guid(), guid())),
            (false, Some(_)) => host.system = None,
            _ => {}
        }
    }
    for (id, on) in &wish.entries {
        if !on {
            host.user.remove(&key(id));
        } else if let Some(identity) = identities
            .get(&key(id))
            .filter(|_| !host.user.contains_key(&key(id)))
        {
            fresh.push(key(id));
            let attached = Attached {
                id: id.clone(),
                client_id: identity.client_id.clone(),
                principal_id: identity.principal_id.clone(),
                settled: ends,
            };
            host.user.insert(key(id), attached);
        }
    }
    host.etag += 1;
    host.busy = Some(ends);
    (fresh, host.location.clone())
}

/// Remembers an operation; its path and query are long and signed, as Azure's are.
fn start(
    world: &World,
    directory: &mut Directory,
    location: &str,
    ends: Instant,
    fails: Option<FailedOperation>,
) -> String {
    let id = guid();
    let mut noise = String::new();
    while noise.len() < 3072 {
        // Writing to a String does not fail.
        let _ = write!(noise, "{}", uuid::Uuid::new_v4().simple());
    }
    let query = format!(
        "p={}&api-version=2024-11-01&t=639000000000000000&c={noise}&s={}&h={}",
        guid(),
        guid(),
        guid()
    );
    let operation = Operation {
        query: query.clone(),
        started: Timestamp::now(),
        ends,
        error: fails.map(|fails| fails.0),
    };
    let path = format!(
        "/subscriptions/{}/providers/Microsoft.Compute/locations/{location}/operations/{id}?{query}",
        world.config.subscription
    );
    directory.operations.insert(id, operation);
    path
}

pub(super) fn operation(world: &World, path: &str, query: &str) -> Result<Response, ArmError> {
    let id = path.rsplit('/').next().unwrap_or_default();
    let directory = world.directory.lock();
    let found = directory
        .operations
        .get(id)
        .filter(|operation| operation.query == query);
    let Some(operation) = found else {
        let text = format!("Operation '{id}' was not found.");
        return Err(ArmError::new(StatusCode::NOT_FOUND, "NotFound", text));
    };
    let mut body = json!({ "startTime": operation.started.to_string(), "name": id });
    if operation.ends > Instant::now() {
        body["status"] = json!("InProgress");
    } else {
        body["endTime"] = json!(Timestamp::now().to_string());
        body["status"] = json!(if operation.error.is_some() {
            "Failed"
        } else {
            "Succeeded"
        });
        if let Some(error) = &operation.error {
            body["error"] = error.clone();
        }
    }
    Ok(Json(body).into_response())
}
