//! Fault injection: a layer around every service of the simulated Azure, which writes the journal and delays, replaces or cuts
//! answers as a test has ordered by `Control::inject`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::World;
use super::journal::{Entry, Service};

/// What happens instead of, or before, the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// The answer comes later.
    Delay {
        /// By this many milliseconds.
        millis: u64,
    },
    /// Another answer comes.
    Answer {
        /// Its status.
        status: u16,
        /// Its body.
        #[serde(default)]
        body: Value,
        /// Its Retry-After, in seconds.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// The connection breaks in the middle of the answer.
    Drop,
    /// The request is carried out, and the connection breaks before its answer.
    DropAfter,
    /// The long-running operation that the request starts ends as failed.
    FailOperation {
        /// With this error.
        error: Value,
    },
}

/// A disturbance of the requests that it fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// Of this service.
    pub service: Service,
    /// With this method; any when absent.
    #[serde(default)]
    pub method: Option<String>,
    /// With this text in path and query, without regard to case.
    #[serde(default)]
    pub path: String,
    /// What happens.
    pub action: Action,
    /// How often.
    pub times: u32,
}

#[derive(Default)]
pub(super) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(super) fn add(&self, fault: Fault) {
        self.0.lock().push(fault);
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    fn take(&self, service: Service, method: &str, path: &str) -> Option<Action> {
        let mut faults = self.0.lock();
        let path = path.to_ascii_lowercase();
        let fault = faults.iter_mut().find(|fault| {
            fault.service == service
                && fault.times > 0
                && fault
                    .method
                    .as_ref()
                    .is_none_or(|m| m.eq_ignore_ascii_case(method))
                && path.contains(&fault.path.to_ascii_lowercase())
        })?;
        fault.times -= 1;
        let action = fault.action.clone();
        faults.retain(|fault| fault.times > 0);
        Some(action)
    }
}

/// The error that a fault wants the operation to end with.
#[derive(Clone)]
pub(super) struct FailedOperation(pub(super) Value);

/// The state of the layer: whose requests it sees.
pub(super) type Seen = (Arc<World>, Service);

/// Writes the journal and applies faults.
pub(super) async fn layer(
    State((world, service)): State<Seen>,
    mut request: Request,
    next: Next,
) -> Response {
    let method = request.method().to_string();
    let target = request
        .uri()
        .path_and_query()
        .map_or_else(String::new, ToString::to_string);
    let signed = target.contains("/operations/");
    let path = match target.split_once('?') {
        Some((path, _)) if signed => path.to_owned(),
        _ => target.clone(),
    };
    let answer = match world.faults.take(service, &method, &target) {
        None => next.run(request).await,
        Some(Action::Delay { millis }) => {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            next.run(request).await
        }
        Some(Action::Answer {
            status,
            body,
            retry_after,
        }) => prepared(status, &body, retry_after),
        Some(Action::Drop) => broken(),
        Some(Action::DropAfter) => {
            next.run(request).await;
            broken()
        }
        Some(Action::FailOperation { error }) => {
            request.extensions_mut().insert(FailedOperation(error));
            next.run(request).await
        }
    };
    let status = answer.status().as_u16();
    tracing::debug!(?service, method, path, status, "asked");
    world.journal.add(Entry {
        service,
        method,
        path,
        status,
        at: Timestamp::now(),
    });
    answer
}

fn prepared(status: u16, body: &Value, retry_after: Option<u64>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = match body {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let mut answer = (status, text).into_response();
    if let Some(seconds) = retry_after {
        answer
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

fn broken() -> Response {
    let cut = futures::stream::iter([Err::<axum::body::Bytes, _>(std::io::Error::other("cut"))]);
    Response::new(Body::from_stream(cut))
}
