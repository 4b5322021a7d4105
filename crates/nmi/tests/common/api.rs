//! A scripted API server: lists, watches and Secrets, which a test changes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};

/// An API server that lists the objects it is given and reports changes, while it is up.
pub struct ApiServer {
    pub objects: Mutex<BTreeMap<&'static str, Vec<Value>>>,
    pub events: broadcast::Sender<(&'static str, String)>,
    pub up: watch::Sender<bool>,
    version: AtomicUsize,
}

impl ApiServer {
    pub fn new(up: bool) -> Arc<Self> {
        let objects = super::objects::all();
        Arc::new(Self {
            objects: Mutex::new(objects),
            events: broadcast::Sender::new(16),
            up: watch::Sender::new(up),
            version: AtomicUsize::new(1),
        })
    }

    /// Deletes the objects of a kind, and reports that to the watches.
    pub fn delete(&self, kind: &'static str) {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        for mut object in self.objects.lock().insert(kind, Vec::new()).unwrap() {
            object["metadata"]["resourceVersion"] = version.to_string().into();
            let event = json!({ "type": "DELETED", "object": object });
            let _ = self.events.send((kind, format!("{event}\n")));
        }
    }

    pub fn answer(&self, request: &Request) -> Response {
        if !*self.up.borrow() {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let kind = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let version = self.version.load(Ordering::SeqCst);
        let query = request.uri().query().unwrap_or_default();
        if query.contains("watch=true") {
            let current = format!("resourceVersion={version}");
            return if query.split('&').any(|pair| pair == current) {
                self.watch(kind)
            } else {
                // It keeps no history, so that a client that missed an event lists anew.
                let gone = json!({ "kind": "Status", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410 });
                format!("{}\n", json!({ "type": "ERROR", "object": gone })).into_response()
            };
        }
        if let Some(secret) = self.secret(request.uri().path()) {
            return secret;
        }
        let items = self.objects.lock().get(&*kind).cloned().unwrap_or_default();
        json!({ "metadata": { "resourceVersion": version.to_string() }, "items": items })
            .to_string()
            .into_response()
    }

    /// Events until the server goes down.
    fn watch(&self, kind: String) -> Response {
        let events = self.events.subscribe();
        let lines = futures::stream::unfold((events, kind), |(mut events, kind)| async {
            loop {
                let (of, line) = events.recv().await.ok()?;
                if of == kind {
                    return Some((Ok::<_, Infallible>(line), (events, kind)));
                }
            }
        });
        let mut up = self.up.subscribe();
        let down = async move {
            let _ = up.wait_for(|up| !up).await;
        };
        Body::from_stream(lines.take_until(Box::pin(down))).into_response()
    }

    /// The Secret that a path names, if it names one.
    fn secret(&self, path: &str) -> Option<Response> {
        let name = path.split_once("/secrets/")?.1;
        let objects = self.objects.lock();
        let secrets = objects.get("secrets").into_iter().flatten();
        let found = secrets
            .into_iter()
            .find(|secret| secret["metadata"]["name"] == name);
        Some(match found {
            Some(secret) => secret.to_string().into_response(),
            None => {
                let status = json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "none" });
                (StatusCode::NOT_FOUND, status.to_string()).into_response()
            }
        })
    }

    /// Serves it, and returns its URL.
    pub async fn serve(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        let this = Arc::clone(self);
        let router = axum::Router::new().fallback(move |request: Request| {
            let answer = this.answer(&request);
            async { answer }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        base
    }
}
