//! Azure Resource Manager (ARM): authentication, managed identities and role assignments. `mod.rs` serves its router; the
//! requests for virtual machines and scale sets go on to `compute`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::directory::{Action, Identity, Role, key};
use super::faults::{FailedOperation, Fault, layer};
use super::journal::Service;
use super::{World, compute, federated_credentials, reached_at};

/// Larger bodies are refused.
const MAX_BODY: usize = 1024 * 1024;
const AUDIENCES: [&str; 3] = [
    "https://management.azure.com/",
    "https://management.azure.com",
    "https://management.core.windows.net/",
];

pub(super) fn router(world: &Arc<World>) -> Router {
    let seen = (Arc::clone(world), Service::Arm);
    let arm = Router::new()
        .fallback(dispatch)
        .layer(middleware::from_fn_with_state(seen, layer));
    // Beside Azure's own paths, for people: what was asked, and faults to inject.
    let own = Router::new()
        .route("/_sim/journal", get(journal).delete(forget))
        .route("/_sim/faults", post(inject).delete(mend));
    own.merge(arm).with_state(Arc::clone(world))
}

async fn journal(State(world): State<Arc<World>>) -> Response {
    Json(world.journal.all()).into_response()
}

async fn forget(State(world): State<Arc<World>>) -> StatusCode {
    world.journal.clear();
    StatusCode::NO_CONTENT
}

async fn inject(State(world): State<Arc<World>>, Json(fault): Json<Fault>) -> StatusCode {
    world.faults.add(fault);
    StatusCode::NO_CONTENT
}

async fn mend(State(world): State<Arc<World>>) -> StatusCode {
    world.faults.clear();
    StatusCode::NO_CONTENT
}

/// An error in Resource Manager's envelope.
pub(super) struct ArmError {
    pub(super) status: StatusCode,
    pub(super) error: Value,
    pub(super) retry_after: Option<u64>,
}

impl ArmError {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            error: json!({ "code": code, "message": message.into() }),
            retry_after: None,
        }
    }

    pub(super) fn not_found(path: &Parts<'_>) -> Self {
        let text = format!(
            "The Resource '{}/{}/{}' under resource group '{}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
            path.namespace, path.kind, path.name, path.group
        );
        Self::new(StatusCode::NOT_FOUND, "ResourceNotFound", text)
    }
}

impl axum::response::IntoResponse for ArmError {
    fn into_response(self) -> Response {
        let mut answer = (self.status, Json(json!({ "error": self.error }))).into_response();
        if let Some(seconds) = self.retry_after {
            answer
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        answer
    }
}

/// The caller, as its token says.
pub(super) struct Caller {
    pub(super) principal: String,
    pub(super) client_id: String,
}

/// `/subscriptions/{s}/resourceGroups/{g}/providers/{namespace}/{kind}/{name}`.
pub(super) struct Parts<'a> {
    pub(super) id: &'a str,
    pub(super) subscription: &'a str,
    pub(super) group: &'a str,
    pub(super) namespace: &'a str,
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
}

fn parts(path: &str) -> Option<Parts<'_>> {
    let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    match segments.as_slice() {
        [
            "subscriptions",
            subscription,
            groups,
            group,
            "providers",
            namespace,
            kind,
            name,
        ] if groups.eq_ignore_ascii_case("resourceGroups") => Some(Parts {
            id: path,
            subscription,
            group,
            namespace,
            kind,
            name,
        }),
        _ => None,
    }
}

async fn dispatch(State(world): State<Arc<World>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let fails = head.extensions.get::<FailedOperation>().cloned();
    answer(&world, &head.method, &head.uri, &head.headers, &body, fails)
        .await
        .unwrap_or_else(ArmError::into_response)
}

async fn answer(
    world: &Arc<World>,
    method: &Method,
    uri: &axum::http::Uri,
    headers: &HeaderMap,
    body: &Bytes,
    fails: Option<FailedOperation>,
) -> Result<Response, ArmError> {
    let caller = caller(world, headers)?;
    let query = uri.query().unwrap_or_default();
    if !query
        .split('&')
        .any(|pair| pair.starts_with("api-version=20"))
    {
        let text = "The api-version query parameter (?api-version=) is required for all requests.";
        return Err(ArmError::new(
            StatusCode::BAD_REQUEST,
            "MissingApiVersionParameter",
            text,
        ));
    }
    let path = uri.path();
    let lower = key(path);
    if lower.contains("/providers/microsoft.compute/locations/") {
        return compute::operation(world, path, query);
    }
    if let Some((scope, name)) = split(
        path,
        &lower,
        "/providers/microsoft.authorization/roleassignments/",
    ) {
        return assign_role(world, &caller, method, scope, name, body);
    }
    if let Some((scope, _)) = split(
        path,
        &format!("{lower}/"),
        "/providers/microsoft.authorization/roledefinitions/",
    ) {
        return Ok(role_definitions(scope, query));
    }
    if let Some((parent, rest)) = split(path, &lower, "/federatedidentitycredentials")
        && let Some(parent) = parts(parent)
        && let Some(name) = credential_name(rest)
    {
        let request = federated_credentials::Request {
            method,
            parent,
            name,
            query,
            body,
            host: reached_at(headers, world.arm),
        };
        return federated_credentials::answer(world, &caller, &request).await;
    }
    let Some(parts) = parts(path) else {
        let text = format!("The requested path '{path}' is not known to this simulator.");
        return Err(ArmError::new(
            StatusCode::NOT_FOUND,
            "InvalidResourceType",
            text,
        ));
    };
    if parts.kind.eq_ignore_ascii_case("userAssignedIdentities") {
        identity(world, &caller, method, &parts, body)
    } else if parts.namespace.eq_ignore_ascii_case("Microsoft.Compute") {
        match *method {
            Method::GET => compute::read(world, &caller, &parts),
            Method::PATCH => compute::patch(world, &caller, &parts, headers, body, fails),
            _ => Err(not_allowed()),
        }
    } else {
        Err(ArmError::not_found(&parts))
    }
}

/// What follows `/federatedIdentityCredentials`: nothing, or the name of one; else it is no path of theirs.
fn credential_name(rest: &str) -> Option<Option<&str>> {
    if rest.is_empty() {
        return Some(None);
    }
    let name = rest.strip_prefix('/')?;
    (!name.is_empty() && !name.contains('/')).then_some(Some(name))
}

pub(super) fn not_allowed() -> ArmError {
    let text = "The method is not allowed for this resource.";
    ArmError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", text)
}

/// `path` about a separator that is in lower case.
fn split<'a>(path: &'a str, lower: &str, separator: &str) -> Option<(&'a str, &'a str)> {
    let at = lower.find(separator)?;
    let rest = at + separator.len();
    Some((&path[..at], path.get(rest..).unwrap_or_default()))
}

fn caller(world: &World, headers: &HeaderMap) -> Result<Caller, ArmError> {
    let unauthorized = |code: &str, text: &str| ArmError::new(StatusCode::UNAUTHORIZED, code, text);
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(|| {
            unauthorized(
                "AuthenticationFailed",
                "Authentication failed. The 'Authorization' header is missing.",
            )
        })?;
    let claims = world
        .signer
        .verify(token, Timestamp::now().as_second())
        .ok_or_else(|| {
            unauthorized(
                "InvalidAuthenticationToken",
                "The access token is invalid or has expired.",
            )
        })?;
    let text = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
    if !AUDIENCES.contains(&text("aud").as_str()) {
        let said = format!(
            "The access token has been obtained for wrong audience or resource '{}'. It should exactly match with one of the allowed audiences 'https://management.core.windows.net/','https://management.azure.com/'.",
            text("aud")
        );
        return Err(unauthorized("InvalidAuthenticationTokenAudience", &said));
    }
    Ok(Caller {
        principal: text("oid"),
        client_id: text("appid"),
    })
}

/// Refuses a caller without a role.
pub(super) fn demand(
    world: &World,
    caller: &Caller,
    action: Action,
    verb: &str,
    scope: &str,
) -> Result<(), ArmError> {
    if !world.config.roles || world.directory.lock().may(&caller.principal, action, scope) {
        return Ok(());
    }
    let text = format!(
        "The client '{}' with object id '{}' does not have authorization to perform action '{verb}' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh your credentials.",
        caller.client_id, caller.principal
    );
    Err(ArmError::new(
        StatusCode::FORBIDDEN,
        "AuthorizationFailed",
        text,
    ))
}

fn identity(
    world: &World,
    caller: &Caller,
    method: &Method,
    parts: &Parts<'_>,
    body: &[u8],
) -> Result<Response, ArmError> {
    let verb = |verb: &str| format!("Microsoft.ManagedIdentity/userAssignedIdentities/{verb}");
    match *method {
        Method::GET => {
            demand(world, caller, Action::Read, &verb("read"), parts.id)?;
            let directory = world.directory.lock();
            let found = directory.identities.get(&key(parts.id));
            let found = found.ok_or_else(|| ArmError::not_found(parts))?;
            Ok(Json(shown(world, found)).into_response())
        }
        Method::PUT => {
            demand(
                world,
                caller,
                Action::WriteIdentity,
                &verb("write"),
                parts.id,
            )?;
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            let Some(location) = body["location"].as_str() else {
                let text = "The location property is required for this definition.";
                return Err(ArmError::new(
                    StatusCode::BAD_REQUEST,
                    "LocationRequired",
                    text,
                ));
            };
            let (new, is_new) = world.directory.lock().create_identity(
                parts.subscription,
                parts.group,
                parts.name,
                location,
            );
            let status = if is_new {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            Ok((status, Json(shown(world, &new))).into_response())
        }
        Method::DELETE => {
            demand(
                world,
                caller,
                Action::WriteIdentity,
                &verb("delete"),
                parts.id,
            )?;
            let deleted = world.directory.lock().delete_identity(parts.id);
            Ok(match deleted {
                true => StatusCode::OK,
                false => StatusCode::NO_CONTENT,
            }
            .into_response())
        }
        _ => Err(not_allowed()),
    }
}

fn shown(world: &World, identity: &Identity) -> Value {
    json!({
        "id": identity.id, "name": identity.id.rsplit('/').next(), "location": identity.location, "tags": {},
        "type": "Microsoft.ManagedIdentity/userAssignedIdentities",
        "properties": {
            "tenantId": world.config.tenant, "principalId": identity.principal_id, "clientId": identity.client_id,
        },
    })
}

fn assign_role(
    world: &World,
    caller: &Caller,
    method: &Method,
    scope: &str,
    name: &str,
    body: &[u8],
) -> Result<Response, ArmError> {
    if *method != Method::PUT {
        return Err(not_allowed());
    }
    demand(
        world,
        caller,
        Action::Grant,
        "Microsoft.Authorization/roleAssignments/write",
        scope,
    )?;
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let properties = &body["properties"];
    let bad = |code: &str, text: &str| ArmError::new(StatusCode::BAD_REQUEST, code, text);
    let role = properties["roleDefinitionId"]
        .as_str()
        .and_then(Role::find)
        .ok_or_else(|| {
            bad(
                "RoleDefinitionDoesNotExist",
                "The specified role definition does not exist in this simulator.",
            )
        })?;
    let principal = properties["principalId"]
        .as_str()
        .ok_or_else(|| bad("InvalidPrincipalId", "principalId is required."))?;
    world.directory.lock().grant(principal, role, scope);
    let (_, definition) = role.definition();
    let shown = json!({
        "id": format!("{scope}/providers/Microsoft.Authorization/roleAssignments/{name}"), "name": name,
        "type": "Microsoft.Authorization/roleAssignments",
        "properties": {
            "scope": scope, "principalId": principal, "principalType": "ServicePrincipal",
            "roleDefinitionId": format!("/subscriptions/{}/providers/Microsoft.Authorization/roleDefinitions/{definition}", world.config.subscription),
        },
    });
    Ok((StatusCode::CREATED, Json(shown)).into_response())
}

/// `az role assignment create` looks a role up by its name.
fn role_definitions(scope: &str, query: &str) -> Response {
    let filter = super::imds::form(query).find(|(name, _)| name == "$filter");
    let name = filter
        .as_ref()
        .and_then(|(_, text)| text.split('\'').nth(1));
    let found: Vec<Value> = name
        .and_then(Role::find)
        .into_iter()
        .map(|role| {
            let (name, id) = role.definition();
            json!({
                "id": format!("{scope}/providers/Microsoft.Authorization/roleDefinitions/{id}"), "name": id,
                "type": "Microsoft.Authorization/roleDefinitions", "properties": { "roleName": name, "type": "BuiltInRole" },
            })
        })
        .collect();
    Json(json!({ "value": found })).into_response()
}
