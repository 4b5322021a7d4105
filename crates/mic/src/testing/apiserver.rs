//! A fake of the API server in memory, with as much as this controller needs: list, watch, get, create, update, merge patch, delete, finalizers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The plural of the kind, the namespace and the name.
type Key = (String, String, String);

#[derive(Default)]
struct Store {
    objects: BTreeMap<Key, Value>,
    log: Vec<(u64, String, Value)>,
    watchers: Vec<(String, mpsc::UnboundedSender<Value>)>,
    version: u64,
    writes: Vec<String>,
    broken: Option<String>,
}

#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<Mutex<Store>>);

impl FakeApi {
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                Ok::<_, Infallible>(api.answer(&parts.method, &parts.uri, body))
            }
        });
        Client::new(service, "default")
    }

    /// From now on, writes fail whose path contains the text; `None` ends that.
    pub(crate) fn break_writes(&self, path: Option<&str>) {
        self.0.lock().broken = path.map(str::to_owned);
    }

    /// Whether somebody watches this plural.
    pub(crate) fn is_watched(&self, plural: &str) -> bool {
        let watchers = &self.0.lock().watchers;
        watchers.iter().any(|(watched, _)| watched == plural)
    }

    /// Method and path of every write so far, without those of Leases and Events.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.0.lock().writes.clone()
    }

    pub(crate) fn put(&self, plural: &str, mut object: Value) {
        let meta = &object["metadata"];
        let text = |name: &str| meta[name].as_str().unwrap_or_default().to_owned();
        let key = (plural.to_owned(), text("namespace"), text("name"));
        let mut store = self.0.lock();
        let kind = match store.objects.get(&key) {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", store.version));
        }
        store.set(key, kind, object);
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.0.lock().delete(&key);
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.0.lock().objects.get(&key).cloned()
    }

    pub(crate) fn count(&self, plural: &str, like: impl Fn(&Value) -> bool) -> usize {
        let store = self.0.lock();
        let found = store.objects.iter().filter(|(key, _)| key.0 == plural);
        found.filter(|(_, object)| like(object)).count()
    }

    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        let store = self.0.lock();
        let found = store.objects.iter().filter(|(key, _)| key.0 == plural);
        found.map(|(_, object)| object.clone()).collect()
    }

    fn answer(&self, method: &Method, uri: &http::Uri, body: Value) -> Answer {
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let rest = if parts[0] == "api" {
            &parts[2..]
        } else {
            &parts[3..]
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let query = uri.query().unwrap_or_default();
        let plural = rest[0].to_owned();
        let mut store = self.0.lock();
        if method == Method::GET && rest.len() == 1 {
            return if query.contains("watch=true") {
                store.watch(&plural, query)
            } else {
                store.list(&plural, namespace)
            };
        }
        let name = match rest.get(1) {
            Some(name) => (*name).to_owned(),
            None => body["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        };
        let key = (plural, namespace.to_owned(), name);
        if method == Method::GET {
            return match store.objects.get(&key) {
                Some(object) => response(200, object.clone()),
                None => refusal(404),
            };
        }
        if store
            .broken
            .as_deref()
            .is_some_and(|path| uri.path().contains(path))
        {
            return refusal(500);
        }
        if key.0 != "leases" && key.0 != "events" {
            store.writes.push(format!("{method} {}", uri.path()));
        }
        store.write(method, key, body)
    }
}

impl Store {
    fn write(&mut self, method: &Method, key: Key, body: Value) -> Answer {
        let known = self.objects.get(&key).cloned();
        let asked = &body["metadata"]["resourceVersion"];
        let new = match (method, known) {
            (&Method::POST, Some(_)) => return refusal(409),
            (&Method::POST, None) => {
                let mut body = body;
                body["metadata"]["uid"] = json!(format!("uid-{}", self.version));
                return response(201, self.set(key, "ADDED", body));
            }
            (_, None) => return refusal(404),
            (&Method::DELETE, Some(object)) => {
                let differs = |field: &str| {
                    let asked = &body["preconditions"][field];
                    !asked.is_null() && *asked != object["metadata"][field]
                };
                if differs("uid") || differs("resourceVersion") {
                    return refusal(409);
                }
                self.delete(&key);
                return response(200, object);
            }
            (_, Some(object))
                if !asked.is_null() && *asked != object["metadata"]["resourceVersion"] =>
            {
                return refusal(409);
            }
            (&Method::PATCH, Some(mut object)) => {
                merge(&mut object, &body);
                object
            }
            _ => body,
        };
        let meta = &new["metadata"];
        let finalizers = meta["finalizers"].as_array().map_or(0, Vec::len);
        if !meta["deletionTimestamp"].is_null() && finalizers == 0 {
            self.remove(&key);
            return response(200, new);
        }
        response(200, self.set(key, "MODIFIED", new))
    }

    fn set(&mut self, key: Key, kind: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.notify(&key.0, kind, &object);
        self.objects.insert(key, object.clone());
        object
    }

    fn delete(&mut self, key: &Key) {
        let Some(mut object) = self.objects.get(key).cloned() else {
            return;
        };
        if object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty())
        {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            self.set(key.clone(), "MODIFIED", object);
        } else {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(mut object) = self.objects.remove(key) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.notify(&key.0, "DELETED", &object);
        }
    }

    fn notify(&mut self, plural: &str, kind: &str, object: &Value) {
        let event = json!({ "type": kind, "object": object });
        self.log
            .push((self.version, plural.to_owned(), event.clone()));
        self.watchers
            .retain(|(of, sink)| of != plural || sink.send(event.clone()).is_ok());
    }

    fn list(&self, plural: &str, namespace: &str) -> Answer {
        let of = |key: &Key| key.0 == plural && (namespace.is_empty() || key.1 == namespace);
        let found = self.objects.iter().filter(|(key, _)| of(key));
        let items: Vec<_> = found.map(|(_, object)| object.clone()).collect();
        let metadata = json!({ "resourceVersion": self.version.to_string() });
        response(
            200,
            json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }),
        )
    }

    fn watch(&mut self, plural: &str, query: &str) -> Answer {
        let from = query
            .split('&')
            .find_map(|q| q.strip_prefix("resourceVersion="));
        let from: u64 = from.and_then(|v| v.parse().ok()).unwrap_or_default();
        let (sink, events) = mpsc::unbounded_channel();
        for (version, of, event) in &self.log {
            if *version > from && of == plural {
                let _ = sink.send(event.clone());
            }
        }
        self.watchers.push((plural.to_owned(), sink));
        let stream = futures::stream::unfold(events, |mut events| async move {
            let event = events.recv().await?;
            let line = Bytes::from(format!("{event}\n"));
            Some((Ok::<_, Infallible>(Frame::data(line)), events))
        });
        Response::new(StreamBody::new(stream).boxed_unsync())
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

fn refusal(code: u16) -> Answer {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    response(
        code,
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason }),
    )
}

fn response(code: u16, body: Value) -> Answer {
    Response::builder()
        .status(code)
        .body(http_body_util::Full::from(body.to_string()).boxed_unsync())
        .unwrap()
}
