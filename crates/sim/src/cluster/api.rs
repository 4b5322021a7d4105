//! API server: its state, and the verb that a request means. `http` gives it each request; it goes on to `read`, `write`,
//! `delete` or `watch`.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Config, access_review,
    catalog::Kind,
    discovery,
    failure::{Failure, Outcome},
    faults::Faults,
    issuer::Issuer,
    openapi,
    path::Target,
    protobuf,
    store::Store,
    token_review,
    view::Form,
    write::Write,
};

/// Everything behind the port.
#[derive(Debug)]
pub(super) struct Server {
    config: Config,
    faults: Faults,
    store: Store,
    issuer: Issuer,
}

/// A request, read from HTTP.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub accept: String,
    pub content_type: String,
    pub body: Bytes,
}

/// What is sent back.
#[derive(Debug)]
pub(super) enum Answer {
    Json {
        code: u16,
        body: Value,
        content_type: &'static str,
        warnings: Vec<String>,
    },
    /// One of the issuer's, which caches may keep.
    Document {
        content_type: &'static str,
        body: Value,
    },
    Text(u16, &'static str),
    Watch(super::watch::Start),
}

impl Answer {
    pub(super) fn json(code: u16, body: Value) -> Self {
        Self::Json {
            code,
            body,
            content_type: "application/json",
            warnings: Vec::new(),
        }
    }
}

impl Request {
    /// A query parameter; empty when it is not given.
    pub(super) fn param(&self, name: &str) -> &str {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.param(name), "true" | "1")
    }

    /// A whole number in the query.
    pub(super) fn number(&self, name: &str) -> Outcome<Option<u64>> {
        match self.param(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Failure::bad_request(format!(
                    "invalid value {text:?} of the query parameter {name}"
                ))
            }),
        }
    }

    /// The body as JSON, from JSON or YAML.
    pub(super) fn json(&self) -> Outcome<Value> {
        let malformed = |why: String| {
            Failure::bad_request(format!("the object provided is unrecognized: {why}"))
        };
        let media = self
            .content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        match media {
            "application/yaml" => {
                let text = std::str::from_utf8(&self.body).map_err(|e| malformed(e.to_string()))?;
                serde_saphyr::from_str(text).map_err(|e| malformed(e.to_string()))
            }
            protobuf::MEDIA_TYPE => protobuf::read(&self.body).map_err(malformed),
            "" | "application/json" | "*/*" => {
                serde_json::from_slice(&self.body).map_err(|e| malformed(e.to_string()))
            }
            media if media.ends_with("patch+json") => {
                serde_json::from_slice(&self.body).map_err(|e| malformed(e.to_string()))
            }
            _ => Err(Failure::unsupported_media(
                "application/json, application/yaml",
            )),
        }
    }
}

impl Server {
    /// `url` is where it is reached, and its issuer.
    pub(super) fn new(config: Config, url: String) -> Self {
        let store = Store::new(config.history);
        let server = Self {
            issuer: Issuer::new(url),
            config,
            faults: Faults::new(),
            store,
        };
        server.furnish();
        server
    }

    /// Creates what every cluster has from the start.
    fn furnish(&self) {
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            self.post("/api/v1/namespaces", &json!({"metadata": {"name": name}}));
        }
        self.post(
            "/api/v1/namespaces/default/services",
            &json!({
                "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "targetPort": 6443}]},
            }),
        );
    }

    fn post(&self, path: &str, object: &Value) {
        let request = Request {
            method: "POST".to_owned(),
            path: path.to_owned(),
            body: object.to_string().into(),
            ..Request::default()
        };
        if let Err(failure) = self.answer(&request) {
            tracing::error!(
                reason = failure.message,
                "the simulated cluster lacks {path}"
            );
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(super) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn compact(&self) {
        self.store.lock().compact();
    }

    /// Does what a request asks.
    pub(super) fn answer(&self, request: &Request) -> Outcome<Answer> {
        if let Some(answer) = self.fixed(request)? {
            return Ok(answer);
        }
        let Some(target) = Target::parse(&request.path) else {
            return Ok(Answer::Text(404, "404 page not found\n"));
        };
        if let Some(answer) = self.review(request, &target)? {
            return Ok(answer);
        }
        let catalog = Arc::clone(&self.store.lock().catalog);
        let Some(kind) = catalog.find(&target.group, &target.version, &target.plural) else {
            if catalog.has_version(&target.group, &target.version) {
                return Err(Failure::no_resource());
            }
            return Ok(Answer::Text(404, "404 page not found\n"));
        };
        self.on_kind(request, &kind, &target)
    }

    /// Paths that name no object.
    fn fixed(&self, request: &Request) -> Outcome<Option<Answer>> {
        let path = request.path.trim_end_matches('/');
        if ["/healthz", "/readyz", "/livez"].contains(&path) {
            return Ok(Some(Answer::Text(200, "ok")));
        }
        if request.method != "GET" {
            return Ok(None);
        }
        if let Some(document) = self.issuer.document(path)? {
            return Ok(Some(document));
        }
        let catalog = Arc::clone(&self.store.lock().catalog);
        let answer = openapi::answer(&catalog, path)
            .or_else(|| discovery::answer(&catalog, path, &request.accept));
        Ok(answer)
    }

    /// Reviews of tokens and of access, which are answered and not stored.
    fn review(&self, request: &Request, target: &Target) -> Outcome<Option<Answer>> {
        let answer = match (target.group.as_str(), target.plural.as_str()) {
            ("authentication.k8s.io", "tokenreviews") => token_review::answer,
            ("authorization.k8s.io", "selfsubjectaccessreviews") => access_review::of_self,
            ("authorization.k8s.io", "subjectaccessreviews") => access_review::of_subject,
            ("authorization.k8s.io", "localsubjectaccessreviews") => access_review::of_local,
            _ => return Ok(None),
        };
        if request.method != "POST" {
            return Err(Failure::method_not_allowed());
        }
        // kubectl asks what it may itself in protobuf, and of that only the answer matters.
        let body = match target.plural.as_str() {
            "selfsubjectaccessreviews" => request.json().unwrap_or_default(),
            _ => request.json()?,
        };
        answer(self, &body).map(|body| Some(Answer::json(201, body)))
    }

    fn on_kind(&self, request: &Request, kind: &Arc<Kind>, target: &Target) -> Outcome<Answer> {
        let collection = target.name.is_empty();
        let status = match target.subresource.as_str() {
            "" => false,
            "status" if kind.status => true,
            "finalize" if kind.is("", "Namespace") => false,
            "token" if kind.is("", "ServiceAccount") => {
                return super::token_request::create(self, request, target);
            }
            _ => return Err(Failure::no_resource()),
        };
        if kind.namespaced
            && target.namespace.is_empty()
            && (!collection || request.method == "POST")
            || !kind.namespaced && !target.namespace.is_empty()
        {
            return Err(Failure::no_resource());
        }
        let form = Form::of(request);
        let writing = Write {
            server: self,
            request,
            kind,
            target,
            status,
        };
        let (code, body, warnings) = match (request.method.as_str(), collection) {
            ("GET", true) if request.flag("watch") => {
                return super::watch::Start::read(self, request, kind, target, form)
                    .map(Answer::Watch);
            }
            ("GET", true) => {
                let list = self.list(request, kind, target)?;
                return Ok(Answer::json(200, form.list(kind, list)));
            }
            ("GET", false) => (200, self.get(kind, target)?, Vec::new()),
            ("POST", true) => {
                let (object, warnings) = writing.create()?;
                (201, object, warnings)
            }
            ("PUT", false) => {
                let (object, warnings) = writing.replace()?;
                (200, object, warnings)
            }
            ("PATCH", false) => {
                let (object, warnings) = writing.patch()?;
                (200, object, warnings)
            }
            ("DELETE", false) => (200, self.delete(request, kind, target)?, Vec::new()),
            ("DELETE", true) => {
                return self
                    .delete_all(request, kind, target)
                    .map(|b| Answer::json(200, b));
            }
            _ => return Err(Failure::method_not_allowed()),
        };
        Ok(Answer::Json {
            code,
            body: form.object(kind, body),
            content_type: "application/json",
            warnings,
        })
    }
}
