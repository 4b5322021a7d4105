//! TokenRequest (`serviceaccounts/token`): checks life and bound pod as the real server does, and signs the token. `api` routes
//! here.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    api::{Answer, Request, Server},
    failure::{Cause, Failure, Outcome},
    path::Target,
    store::State,
};

/// Seconds that a token lives unless its request says otherwise.
const USUAL_LIFE: i64 = 3600;
/// Seconds; shorter and longer lives are refused.
const SHORTEST_LIFE: i64 = 600;
const LONGEST_LIFE: i64 = 1 << 32;

pub(super) fn create(server: &Server, request: &Request, target: &Target) -> Outcome<Answer> {
    if request.method != "POST" {
        return Err(Failure::method_not_allowed());
    }
    let name = &target.name;
    let mut body = request.json()?;
    let state = server.store().lock();
    let key = (target.namespace.clone(), name.clone());
    let account = state
        .get("/serviceaccounts", &key)
        .ok_or_else(|| Failure::not_found("", "serviceaccounts", name))?;
    let uid = text(account, "uid");
    let wanted = text(&body, "uid");
    if !wanted.is_empty() && wanted != uid {
        let why = format!(
            "the UID in the token request ({wanted}) does not match the UID of the service account ({uid})"
        );
        return Err(Failure::conflict("", "serviceaccounts", name, &why));
    }
    let spec = &mut body["spec"];
    if spec["audiences"].as_array().is_none_or(Vec::is_empty) {
        spec["audiences"] = json!([server.issuer().url()]);
    }
    let life = spec["expirationSeconds"].as_i64().unwrap_or(USUAL_LIFE);
    spec["expirationSeconds"] = life.into();
    check_life(life)?;
    let now = Timestamp::now();
    let ends = now + SignedDuration::from_secs(life);
    let mut about = json!({
        "namespace": target.namespace, "serviceaccount": { "name": name, "uid": uid },
    });
    if spec["boundObjectRef"].is_object() {
        bind(&state, &spec["boundObjectRef"], &key, &mut about)?;
    }
    let claims = json!({
        "iss": server.issuer().url(), "sub": format!("system:serviceaccount:{}:{name}", target.namespace),
        "aud": spec["audiences"], "iat": now.as_second(), "nbf": now.as_second(), "exp": ends.as_second(),
        "jti": uuid::Uuid::new_v4().to_string(), "kubernetes.io": about,
    });
    drop(state);
    body["apiVersion"] = "authentication.k8s.io/v1".into();
    body["kind"] = "TokenRequest".into();
    body["metadata"] = json!({
        "name": name, "namespace": target.namespace, "creationTimestamp": seconds(now),
    });
    body["status"] = json!({
        "token": server.issuer().sign(&claims)?, "expirationTimestamp": seconds(ends),
    });
    Ok(Answer::json(201, body))
}

/// A field of an object's metadata; empty when it is not there.
pub(super) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn check_life(seconds: i64) -> Outcome<()> {
    let why = match seconds {
        ..SHORTEST_LIFE => "may not specify a duration less than 10 minutes",
        SHORTEST_LIFE..=LONGEST_LIFE => return Ok(()),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let cause = Cause::invalid("spec.expirationSeconds", &seconds.into(), why);
    let (group, kind) = ("authentication.k8s.io", "TokenRequest");
    Err(Failure::invalid(group, kind, "", &[cause]))
}

/// Adds the claims of the pod that the token is bound to. Its phase does not matter.
fn bind(
    state: &State,
    reference: &Value,
    (namespace, account): &(String, String),
    about: &mut Value,
) -> Outcome<()> {
    let field = |name: &str| reference[name].as_str().unwrap_or_default();
    let (kind, name, uid) = (field("kind"), field("name"), field("uid"));
    if kind != "Pod" {
        let (group, version) = match field("apiVersion").split_once('/') {
            Some(parts) => parts,
            None => ("", field("apiVersion")),
        };
        let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
        return Err(Failure::bad_request(why));
    }
    let pod = state
        .get("/pods", &(namespace.clone(), name.to_owned()))
        .ok_or_else(|| Failure::not_found("", "pods", name))?;
    if pod["spec"]["serviceAccountName"] != account.as_str() {
        return Err(Failure::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        )));
    }
    if !uid.is_empty() && uid != text(pod, "uid") {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Failure::conflict("", "Pod", name, &why));
    }
    about["pod"] = json!({ "name": name, "uid": text(pod, "uid") });
    if let Some(node) = pod["spec"]["nodeName"]
        .as_str()
        .filter(|node| !node.is_empty())
    {
        about["node"] = json!({ "name": node });
        if let Some(found) = state.get("/nodes", &(String::new(), node.to_owned())) {
            about["node"]["uid"] = text(found, "uid").into();
        }
    }
    Ok(())
}
