//! TokenReview: whose token it is, and whether account and pod that it names are still there. `api` routes here.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    api::Server,
    failure::{Failure, Outcome},
    token_request::text,
};

/// Seconds after the end of its grace period for which a deleted pod's token still counts.
const LEEWAY: i64 = 60;

pub(super) fn answer(server: &Server, review: &Value) -> Outcome<Value> {
    let mut review = review.clone();
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        let why = "token is required for TokenReview in authentication";
        return Err(Failure::bad_request(why));
    }
    let own = json!([server.issuer().url()]);
    let wanted = match review["spec"]["audiences"].as_array() {
        Some(wanted) if !wanted.is_empty() => &review["spec"]["audiences"],
        _ => &own,
    };
    let status = match authenticate(server, token, wanted) {
        Ok(status) => status,
        Err(why) => json!({ "user": {}, "error": why }),
    };
    review["apiVersion"] = "authentication.k8s.io/v1".into();
    review["kind"] = "TokenReview".into();
    review["status"] = status;
    Ok(review)
}

fn authenticate(server: &Server, token: &str, wanted: &Value) -> Result<Value, String> {
    let claims = server.issuer().verify(token);
    let claims = claims.ok_or("invalid bearer token")?;
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (own, wanted) = (texts(&claims["aud"]), texts(wanted));
    let common: Vec<_> = wanted.iter().filter(|one| own.contains(one)).collect();
    if common.is_empty() {
        return Err(format!(
            "[invalid bearer token, token audiences {own:?} is invalid for the target audiences {wanted:?}]"
        ));
    }
    let about = &claims["kubernetes.io"];
    check_objects(server, about).map_err(|why| format!("[invalid bearer token, {why}]"))?;
    let namespace = about["namespace"].as_str().unwrap_or_default();
    let mut extra = Map::new();
    let mut tell = |name: &str, value: &Value| {
        if let Some(value) = value.as_str() {
            let name = format!("authentication.kubernetes.io/{name}");
            extra.insert(name, json!([value]));
        }
    };
    let id = claims["jti"].as_str().unwrap_or_default();
    tell("credential-id", &json!(format!("JTI={id}")));
    tell("pod-name", &about["pod"]["name"]);
    tell("pod-uid", &about["pod"]["uid"]);
    tell("node-name", &about["node"]["name"]);
    tell("node-uid", &about["node"]["uid"]);
    Ok(json!({
        "authenticated": true, "audiences": common,
        "user": {
            "username": claims["sub"], "uid": about["serviceaccount"]["uid"], "extra": extra,
            "groups": [
                "system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated",
            ],
        },
    }))
}

/// Whether the account and the pod of the token are those that are there now.
fn check_objects(server: &Server, about: &Value) -> Result<(), String> {
    let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = name(&about["namespace"]);
    let state = server.store().lock();
    let find = |resource: &str, reference: &Value| {
        let found = state.get(resource, &(namespace.clone(), name(&reference["name"])));
        found.map(Arc::clone)
    };
    let reference = &about["serviceaccount"];
    let missing = || format!("serviceaccounts {} not found", reference["name"]);
    let account = find("/serviceaccounts", reference).ok_or_else(missing)?;
    if reference["uid"] != text(&account, "uid") {
        return Err(format!(
            "service account UID ({}) does not match claim ({})",
            text(&account, "uid"),
            name(&reference["uid"])
        ));
    }
    let reference = &about["pod"];
    if reference.is_null() {
        return Ok(());
    }
    let invalidated = || "service account token has been invalidated".to_owned();
    let pod = find("/pods", reference).ok_or_else(invalidated)?;
    if reference["uid"] != text(&pod, "uid") {
        return Err(format!(
            "pod UID ({}) does not match service account pod ref claim ({})",
            text(&pod, "uid"),
            name(&reference["uid"])
        ));
    }
    let deleted = text(&pod, "deletionTimestamp").parse::<Timestamp>();
    let now = Timestamp::now().as_second();
    match deleted {
        Ok(at) if at.as_second() + LEEWAY < now => Err(invalidated()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Config;
    use jiff::SignedDuration;
    use rstest::rstest;

    #[rstest]
    #[case::stopping(-30, true)]
    #[case::gone_a_moment_ago(50, true)]
    #[case::gone(70, false)]
    fn a_deleted_pods_token_counts_for_a_minute(#[case] seconds: i64, #[case] counts: bool) {
        let server = Server::new(Config::default(), "http://issuer".to_owned());
        let deleted = Timestamp::now() - SignedDuration::from_secs(seconds);
        let mut state = server.store().lock();
        let key = |name: &str| ("default".to_owned(), name.to_owned());
        let account = json!({ "metadata": { "name": "app", "uid": "a" } });
        state.put("/serviceaccounts", key("app"), account);
        let pod = json!({ "metadata": { "name": "p", "uid": "p", "deletionTimestamp": deleted.to_string() } });
        state.put("/pods", key("p"), pod);
        drop(state);
        let about = json!({
            "namespace": "default", "serviceaccount": { "name": "app", "uid": "a" }, "pod": { "name": "p", "uid": "p" },
        });
        assert_eq!(check_objects(&server, &about).is_ok(), counts);
    }
}
