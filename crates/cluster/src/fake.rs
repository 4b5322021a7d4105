//! Fake API server for unit tests: keeps one object, and an Endpoints object beside it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

#[derive(Default)]
struct State {
    object: Option<Value>,
    endpoints: Option<Value>,
    version: u64,
    cut: BTreeSet<String>,
    slow: Duration,
    writes: usize,
}

/// Keeps one object: GET, POST, PUT with resourceVersion, and merge PATCH.
#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<State>>);

impl Store {
    /// A client that can be [`cut`](Self::cut) off by its name.
    pub(crate) fn client(&self, who: &str) -> Client {
        let store = self.clone();
        let who = who.to_owned();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (store, who) = (store.clone(), who.clone());
            async move {
                if store.0.lock().cut.contains(&who) {
                    return Err(std::io::Error::other("cut off"));
                }
                let slow = store.0.lock().slow;
                tokio::time::sleep(slow).await;
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                Ok(store.answer(&parts.method, parts.uri.path(), body))
            }
        });
        Client::new(service, "default")
    }

    pub(crate) fn cut(&self, who: &str) {
        self.0.lock().cut.insert(who.to_owned());
    }

    pub(crate) fn mend(&self) {
        self.0.lock().cut.clear();
    }

    /// From now on every answer takes this long.
    pub(crate) fn slow_down(&self, slow: Duration) {
        self.0.lock().slow = slow;
    }

    pub(crate) fn put(&self, object: Value) {
        self.0.lock().object = Some(object);
    }

    pub(crate) fn object(&self) -> Value {
        self.0.lock().object.clone().unwrap_or_default()
    }

    pub(crate) fn put_endpoints(&self, object: Value) {
        self.0.lock().endpoints = Some(object);
    }

    pub(crate) fn endpoints(&self) -> Option<Value> {
        self.0.lock().endpoints.clone()
    }

    pub(crate) fn writes(&self) -> usize {
        self.0.lock().writes
    }

    fn answer(&self, method: &Method, path: &str, body: Value) -> Response<Body> {
        let mut state = self.0.lock();
        let state = &mut *state;
        let is_endpoints = path.contains("/endpoints/");
        let object = match is_endpoints {
            true => &mut state.endpoints,
            false => &mut state.object,
        };
        let version = object
            .as_ref()
            .map(|o| o["metadata"]["resourceVersion"].clone());
        let conflict = |asked: &Value| !asked.is_null() && Some(asked) != version.as_ref();
        let new = match (method, &*object) {
            (&Method::GET, Some(now)) => return response(200, now.clone()),
            (&Method::POST, Some(_)) => return refusal(409, "AlreadyExists"),
            (&Method::POST, None) => body,
            (_, None) => return refusal(404, "NotFound"),
            _ if conflict(&body["metadata"]["resourceVersion"]) => {
                return refusal(409, "Conflict");
            }
            (&Method::PATCH, Some(now)) => {
                let mut merged = now.clone();
                json_merge(&mut merged, &body);
                merged
            }
            _ => body,
        };
        state.version += 1;
        state.writes += 1;
        let mut new = new;
        new["metadata"]["resourceVersion"] = json!(state.version.to_string());
        *object = Some(new.clone());
        response(200, new)
    }
}

fn json_merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            json_merge(&mut target[key], value);
        }
    }
}

fn refusal(code: u16, reason: &str) -> Response<Body> {
    response(
        code,
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason }),
    )
}

fn response(code: u16, body: Value) -> Response<Body> {
    Response::builder()
        .status(StatusCode::from_u16(code).unwrap())
        .body(Body::from(body.to_string().into_bytes()))
        .unwrap()
}
