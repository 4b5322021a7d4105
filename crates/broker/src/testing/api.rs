//! A fake API server in memory, with as much as the broker needs: lists, watches, reviews, token requests, and two objects of the CA.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use jiff::{Timestamp, ToSpan as _};
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
    /// Objects that no list or watch of the whole cluster has yet.
    hidden: BTreeSet<Key>,
    watchers: Vec<(String, mpsc::UnboundedSender<Value>)>,
    /// Version, plural and event of each change, for watches that begin later.
    log: Vec<(u64, String, Value)>,
    /// What a review answers, by token.
    reviews: BTreeMap<String, Value>,
    version: u64,
    minted: usize,
    requests: Vec<String>,
    is_away: bool,
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
                let body = serde_json::from_slice(&body).unwrap_or_default();
                // Others take their turn, as with a real connection.
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(api.answer(&parts.method, &parts.uri, body))
            }
        });
        Client::new(service, "default")
    }

    /// Puts an object, which watches report.
    pub(crate) fn put(&self, plural: &str, object: Value) {
        let mut store = self.0.lock();
        let key = key_of(plural, &object);
        store.hidden.remove(&key);
        store.set(key, object);
    }

    /// Puts an object that watches do not report yet.
    pub(crate) fn put_ahead(&self, plural: &str, object: Value) {
        let mut store = self.0.lock();
        let key = key_of(plural, &object);
        store.hidden.insert(key.clone());
        store.objects.insert(key, object);
    }

    /// Deletes an object, which watches report.
    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut store = self.0.lock();
        if let Some(mut object) = store.objects.remove(&key) {
            store.version += 1;
            object["metadata"]["resourceVersion"] = json!(store.version.to_string());
            store.notify(plural, "DELETED", &object);
        }
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.0.lock().objects.get(&key).cloned()
    }

    /// From now on a review of this token is answered with this status.
    pub(crate) fn accept(&self, token: &str, status: Value) {
        self.0.lock().reviews.insert(token.to_owned(), status);
    }

    /// Whether every request fails.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.0.lock().is_away = is_away;
    }

    /// How many requests so far begin with this method and path.
    pub(crate) fn requests(&self, prefix: &str) -> usize {
        let store = self.0.lock();
        store
            .requests
            .iter()
            .filter(|r| r.starts_with(prefix))
            .count()
    }

    fn answer(&self, method: &Method, uri: &http::Uri, body: Value) -> Answer {
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let rest = match parts[0] {
            "api" => &parts[2..],
            _ => &parts[3..],
        };
        let mut store = self.0.lock();
        store.requests.push(format!("{method} {}", uri.path()));
        if store.is_away {
            return refusal(500);
        }
        let query = uri.query().unwrap_or_default();
        let is_watch = query.contains("watch=true");
        match (method, rest) {
            (&Method::POST, ["tokenreviews"]) => store.review(&body),
            (&Method::POST, ["namespaces", namespace, "serviceaccounts", name, "token"]) => {
                store.mint(namespace, name, &body)
            }
            (&Method::GET, [plural]) if is_watch => store.watch(plural, query),
            (&Method::GET, [plural]) => store.list(plural, None),
            (&Method::GET, ["namespaces", namespace, plural]) => {
                store.list(plural, Some(namespace))
            }
            (_, ["namespaces", namespace, plural, name]) => {
                let key = (
                    (*plural).to_owned(),
                    (*namespace).to_owned(),
                    (*name).to_owned(),
                );
                store.object(method, key, body)
            }
            _ => refusal(404),
        }
    }
}

impl Store {
    fn set(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.notify(&key.0, "MODIFIED", &object);
        self.objects.insert(key, object.clone());
        object
    }

    fn notify(&mut self, plural: &str, kind: &str, object: &Value) {
        let event = json!({ "type": kind, "object": object });
        self.log
            .push((self.version, plural.to_owned(), event.clone()));
        self.watchers
            .retain(|(of, sink)| of != plural || sink.send(event.clone()).is_ok());
    }

    fn object(&mut self, method: &Method, key: Key, body: Value) -> Answer {
        let Some(mut known) = self.objects.get(&key).cloned() else {
            return refusal(404);
        };
        let asked = &body["metadata"]["resourceVersion"];
        if method != Method::GET
            && !asked.is_null()
            && *asked != known["metadata"]["resourceVersion"]
        {
            return refusal(409);
        }
        match *method {
            Method::GET => response(200, &known),
            Method::PUT => response(200, &self.set(key, body)),
            _ => {
                known["data"] = body["data"].clone();
                response(200, &self.set(key, known))
            }
        }
    }

    fn list(&self, plural: &str, namespace: Option<&str>) -> Answer {
        let found = self.objects.iter().filter(|(key, _)| {
            key.0 == plural && namespace.map_or(!self.hidden.contains(key), |n| key.1 == n)
        });
        let items: Vec<_> = found.map(|(_, object)| object.clone()).collect();
        let metadata = json!({ "resourceVersion": self.version.to_string() });
        response(
            200,
            &json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }),
        )
    }

    fn watch(&mut self, plural: &str, query: &str) -> Answer {
        let fields = query.split('&');
        let mut from = fields.filter_map(|field| field.strip_prefix("resourceVersion="));
        let from: u64 = from
            .next()
            .and_then(|from| from.parse().ok())
            .unwrap_or_default();
        let (sink, events) = mpsc::unbounded_channel();
        for (version, of, event) in &self.log {
            if *version > from && of == plural {
                let _ = sink.send(event.clone());
            }
        }
        self.watchers.push((plural.to_owned(), sink));
        let stream = futures::stream::unfold(events, |mut events| async move {
            let event: Value = events.recv().await?;
            let line = Bytes::from(format!("{event}\n"));
            Some((Ok::<_, Infallible>(Frame::data(line)), events))
        });
        Response::new(StreamBody::new(stream).boxed_unsync())
    }

    fn review(&self, body: &Value) -> Answer {
        let token = body["spec"]["token"].as_str().unwrap_or_default();
        let refused = json!({ "authenticated": false, "error": "invalid bearer token" });
        let status = self.reviews.get(token).unwrap_or(&refused);
        response(201, &json!({ "spec": body["spec"], "status": status }))
    }

    fn mint(&mut self, namespace: &str, name: &str, body: &Value) -> Answer {
        let key = (
            "serviceaccounts".to_owned(),
            namespace.to_owned(),
            name.to_owned(),
        );
        if !self.objects.contains_key(&key) {
            return refusal(404);
        }
        self.minted += 1;
        let claims = json!({
            "iss": "https://issuer.example/", "aud": body["spec"]["audiences"],
            "sub": format!("system:serviceaccount:{namespace}:{name}"), "jti": self.minted,
        });
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        let expires = Timestamp::now() + 1.hour();
        response(
            201,
            &json!({
                "metadata": {}, "spec": body["spec"],
                "status": { "token": format!("e30.{claims}.c2ln"), "expirationTimestamp": expires.to_string() },
            }),
        )
    }
}

fn key_of(plural: &str, object: &Value) -> Key {
    let text = |name: &str| {
        object["metadata"][name]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (plural.to_owned(), text("namespace"), text("name"))
}

fn refusal(code: u16) -> Answer {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason,
    });
    response(code, &status)
}

fn response(code: u16, body: &Value) -> Answer {
    let body = Full::from(body.to_string()).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}
