//! The verbs `get` and `list`: pages with `limit` and `continue`, and lists at a past resourceVersion.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{
    api::{Request, Server},
    catalog::Kind,
    failure::{Failure, Outcome},
    path::Target,
    selector::Selector,
    store::{Key, State},
    view,
};

/// The most objects in one answer when the client sets no limit.
const ALL: usize = usize::MAX;

impl Server {
    pub(super) fn get(&self, kind: &Kind, target: &Target) -> Outcome<Value> {
        let key = (target.namespace.clone(), target.name.clone());
        let state = self.store().lock();
        let stored = state
            .get(&kind.resource(), &key)
            .ok_or_else(|| Failure::not_found(&kind.group, &kind.plural, &target.name))?;
        Ok(view::present(kind, stored))
    }

    pub(super) fn list(&self, request: &Request, kind: &Kind, target: &Target) -> Outcome<Value> {
        let selector = Selector::parse(
            request.param("labelSelector"),
            request.param("fieldSelector"),
            kind.fields,
        )?;
        let limit = match request.number("limit")? {
            None | Some(0) => ALL,
            Some(limit) => usize::try_from(limit).unwrap_or(ALL),
        };
        let state = self.store().lock();
        let page = Page::of(request, &state)?;
        let objects = objects(&state, kind, target, page.version)?;
        let all = objects
            .into_iter()
            .filter(|(key, _)| page.after.as_ref().is_none_or(|after| key > after))
            .map(|(key, stored)| (key, view::present(kind, &stored)))
            .filter(|(_, object)| selector.matches(object));
        let mut found: Vec<(Key, Value)> = all.collect();
        let left = found.len().saturating_sub(limit);
        found.truncate(limit);
        let mut metadata = json!({"resourceVersion": page.version.to_string()});
        if left > 0
            && let Some((last, _)) = found.last()
        {
            metadata["continue"] = token(page.version, last).into();
            if selector.is_empty() {
                metadata["remainingItemCount"] = left.into();
            }
        }
        let items: Vec<Value> = found.into_iter().map(|(_, object)| object).collect();
        Ok(json!({
            "kind": kind.list_kind, "apiVersion": kind.api_version(), "metadata": metadata, "items": items,
        }))
    }
}

fn objects(
    state: &State,
    kind: &Kind,
    target: &Target,
    version: u64,
) -> Outcome<Vec<(Key, Arc<Value>)>> {
    let resource = kind.resource();
    if version == state.version() {
        let listed = state.list(&resource, &target.namespace);
        return Ok(listed.map(|(k, v)| (k.clone(), Arc::clone(v))).collect());
    }
    let past = state.at(&resource, version).ok_or_else(|| {
        Failure::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter.",
        )
    })?;
    let wanted = past
        .into_iter()
        .filter(|(key, _)| target.namespace.is_empty() || key.0 == target.namespace);
    Ok(wanted.collect())
}

/// Which part of which past a list wants.
struct Page {
    version: u64,
    after: Option<Key>,
}

impl Page {
    fn of(request: &Request, state: &State) -> Outcome<Self> {
        let newest = state.version();
        let asked = request.number("resourceVersion")?;
        match request.param("continue") {
            "" => {}
            _ if asked.is_some_and(|v| v != 0) => {
                return Err(Failure::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            token => return Self::resume(token),
        }
        if asked.is_some_and(|asked| asked > newest) {
            let asked = request.param("resourceVersion");
            let message = format!("Too large resource version: {asked}, current: {newest}");
            return Err(Failure::new(504, "Timeout", message));
        }
        let exact = request.param("resourceVersionMatch") == "Exact";
        Ok(Self {
            version: asked.filter(|_| exact).unwrap_or(newest),
            after: None,
        })
    }

    fn resume(token: &str) -> Outcome<Self> {
        let read = || -> Option<Self> {
            let json: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
            let (namespace, name) = json["start"].as_str()?.split_once('/')?;
            Some(Self {
                version: json["rv"].as_u64()?,
                after: Some((namespace.to_owned(), name.to_owned())),
            })
        };
        read().ok_or_else(|| Failure::bad_request("continue key is not valid"))
    }
}

fn token(version: u64, last: &Key) -> String {
    let start = format!("{}/{}", last.0, last.1);
    URL_SAFE_NO_PAD
        .encode(json!({"v": "meta.k8s.io/v1", "rv": version, "start": start}).to_string())
}
