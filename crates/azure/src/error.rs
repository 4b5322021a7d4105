//! Error taxonomy of Azure's answers: one [`ErrorKind`] for IMDS, Entra and ARM alike, which says whose fault it is and whether to
//! retry. All clients of this crate give it; callers match on the kind, and operators read the text with its next step.

mod classify;
mod federation;

use std::fmt;
use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use podid_policy::ids::ResourceId;
use serde_json::Value;

use classify::{ArmError, Verdict, classify};
pub use federation::{FaultOwner, FederationFault, Healing};

/// The longest text of Azure in an error, in characters; the rest is cut.
const MAX_MESSAGE: usize = 600;
/// The longest wait that a server may ask for by `Retry-After`: an hour, so that a mistake of it does not stop podid for days.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The node's metadata service.
    Imds,
    /// Entra's token endpoint.
    Entra,
    /// Azure Resource Manager.
    Arm,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Service::Imds => "the metadata service",
            Service::Entra => "Entra",
            Service::Arm => "Azure Resource Manager",
        })
    }
}

/// What went wrong, as code matches on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Too many requests; ask again after [`Error::retry_after`].
    Throttled,
    /// No connection, or a server error; ask again.
    Unavailable,
    /// No answer in time; ask again.
    Timeout,
    /// Someone else writes to the same resource; read it again and retry.
    Conflict,
    /// The host or resource does not exist.
    NotFound,
    /// Identities ([`Error::identities`], where Azure names them) do not exist, or are not attached to the host.
    IdentityNotFound,
    /// The caller lacks a role on the resource.
    Forbidden,
    /// The caller lacks a role on identities ([`Error::identities`]).
    IdentityForbidden,
    /// The host's own settings or state are refused, or a lock keeps it as it is; no identity is the cause.
    HostRefused,
    /// The subscription is unknown, disabled, not registered or at its quota.
    Subscription,
    /// The caller's own credential is refused.
    InvalidCredential,
    /// The request is refused as it stands, because of [`Error::identities`] where Azure names any.
    BadRequest,
    /// The answer is not what the protocol says.
    Malformed,
}

impl ErrorKind {
    /// A stable name for metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Throttled => "throttled",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Conflict => "conflict",
            ErrorKind::NotFound => "not_found",
            ErrorKind::IdentityNotFound => "identity_not_found",
            ErrorKind::Forbidden => "forbidden",
            ErrorKind::IdentityForbidden => "identity_forbidden",
            ErrorKind::HostRefused => "host_refused",
            ErrorKind::Subscription => "subscription_refused",
            ErrorKind::InvalidCredential => "invalid_credential",
            ErrorKind::BadRequest => "bad_request",
            ErrorKind::Malformed => "malformed",
        }
    }

    fn advice(self, service: Service) -> &'static str {
        match self {
            ErrorKind::IdentityNotFound if service == Service::Imds => {
                "it learns of an identity some time after Azure has attached it, mostly within a minute, so that this may pass by itself; if it lasts, check that the identity is attached to this node, and spec.resourceID and spec.clientID of the AzureIdentity (`az identity show`)"
            }
            ErrorKind::Throttled => "requests are spaced out until it recovers",
            ErrorKind::Unavailable | ErrorKind::Timeout => {
                "retried; check the network path and the Azure status page if it lasts"
            }
            ErrorKind::Conflict => "retried after reading the resource again",
            ErrorKind::NotFound => {
                "check that what Azure names exists and that the node's providerID is right"
            }
            ErrorKind::IdentityNotFound => {
                "check spec.resourceID and spec.clientID of the AzureIdentity (`az identity show`)"
            }
            ErrorKind::Forbidden => {
                "grant the controller's identity `Virtual Machine Contributor` on the node resource group"
            }
            ErrorKind::IdentityForbidden => {
                "grant the controller's identity `Managed Identity Operator` on the identities"
            }
            ErrorKind::HostRefused => "correct the host in Azure; no identity is the cause of it",
            ErrorKind::Subscription => "put the subscription right as Azure says",
            ErrorKind::InvalidCredential => "check the client id, the secret and the tenant",
            ErrorKind::BadRequest if service == Service::Arm => {
                "correct what Azure's message is about"
            }
            ErrorKind::BadRequest => "the request is not retried as it stands",
            ErrorKind::Malformed => "check that the endpoint is really Azure's and not a proxy",
        }
    }
}

/// An error of one of the three services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    service: Service,
    kind: ErrorKind,
    status: Option<u16>,
    code: Option<String>,
    message: String,
    advice: &'static str,
    retry_after: Option<Duration>,
    identities: Vec<ResourceId>,
    accepted: bool,
    federation_fault: Option<FederationFault>,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        match (self.status, &self.code) {
            (Some(status), Some(code)) => write!(f, " answered {status} {code}")?,
            (Some(status), None) => write!(f, " answered {status}")?,
            (None, _) => f.write_str(" gave no answer")?,
        }
        write!(f, ": {}; {}", self.message, self.advice)
    }
}

impl Error {
    /// An error without an answer.
    pub fn new(service: Service, kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self {
            service,
            kind,
            status: None,
            code: None,
            message: clip(&message.to_string()),
            advice: kind.advice(service),
            retry_after: None,
            identities: Vec::new(),
            accepted: false,
            federation_fault: None,
        }
    }

    /// Who answered, or should have.
    pub fn service(&self) -> Service {
        self.service
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The HTTP status; `None` without an answer.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Azure's own code.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Azure's own text, shortened.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How long Azure asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The identities that the answer names as the cause.
    pub fn identities(&self) -> &[ResourceId] {
        &self.identities
    }

    /// What is wrong with a federated exchange, where Entra says so.
    pub fn federation_fault(&self) -> Option<FederationFault> {
        self.federation_fault
    }

    /// Whether Azure had accepted the change and failed later, so that it may be done in part.
    pub fn may_be_partial(&self) -> bool {
        self.accepted
    }

    pub(crate) fn after_acceptance(self) -> Self {
        Self {
            accepted: true,
            ..self
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Throttled
                | ErrorKind::Unavailable
                | ErrorKind::Timeout
                | ErrorKind::Conflict
        )
    }

    pub(crate) fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Reads an error answer of any of the three services.
    pub(crate) fn from_answer(
        service: Service,
        status: u16,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Self {
        let is_foreign = !body.is_empty() && !body.trim_ascii_start().starts_with(b"{");
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let (code, message) = code_and_message(&body);
        let verdict = match service {
            // A proxy's page says nothing of what Azure has.
            Service::Arm if is_foreign && matches!(status, 400..=407 | 410 | 411) => {
                Verdict::plain(service, ErrorKind::Malformed)
            }
            Service::Arm => classify(&ArmError::new(status, wrapped(&body))),
            Service::Imds => Verdict::plain(service, imds_kind(status, &message)),
            Service::Entra => Verdict::plain(
                service,
                entra_kind(status, code.unwrap_or_default(), &message),
            ),
        };
        let message = match message.as_str() {
            "" if is_foreign => "the answer is not Azure's JSON".to_owned(),
            "" => "no explanation".to_owned(),
            message => clip(message),
        };
        Self {
            service,
            kind: verdict.kind,
            status: Some(status),
            code: code.map(clip),
            message,
            advice: verdict.advice,
            retry_after: retry_after(headers),
            identities: verdict.identities,
            accepted: false,
            federation_fault: None,
        }
    }

    /// Reads Entra's error answer to a federated assertion.
    pub(crate) fn from_federated_answer(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let error = Self::from_answer(Service::Entra, status, headers, body);
        if error.is_transient() {
            return error;
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(fault) = FederationFault::of(&body) else {
            return error;
        };
        let wait = match fault.healing() {
            Healing::After(wait) => Some(wait),
            Healing::Never | Healing::FreshAssertion => None,
        };
        Self {
            kind: fault.kind(),
            advice: fault.advice(),
            retry_after: error.retry_after.or(wait),
            federation_fault: Some(fault),
            ..error
        }
    }

    /// The failure that a long-running operation reports in its `error`.
    pub(crate) fn from_operation(status: &str, error: &Value) -> Self {
        let mut error = error.clone();
        if error["code"].as_str().is_none() {
            error = serde_json::json!({ "code": status });
        }
        let verdict = classify(&ArmError::new(400, &error));
        let text = |name: &str| error[name].as_str().unwrap_or_default();
        Self {
            code: Some(clip(text("code"))),
            identities: verdict.identities,
            advice: verdict.advice,
            ..Self::new(
                Service::Arm,
                verdict.kind,
                format!("the operation ended as {status}: {}", text("message")),
            )
        }
    }
}

/// The error of ARM's answer, with or without the wrapper around it.
fn wrapped(body: &Value) -> &Value {
    body.get("error").filter(|e| e.is_object()).unwrap_or(body)
}

/// `error` is an object (ARM), a word (IMDS, Entra), or missing around its content (some ARM providers).
fn code_and_message(body: &Value) -> (Option<&str>, String) {
    let text =
        |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    match body.get("error") {
        Some(Value::String(code)) => {
            let message = text(body, "error_description").unwrap_or_default();
            (Some(code), message)
        }
        Some(error @ Value::Object(_)) => (
            error.get("code").and_then(Value::as_str),
            text(error, "message").unwrap_or_default(),
        ),
        _ => (
            body.get("code").and_then(Value::as_str),
            text(body, "message").unwrap_or_default(),
        ),
    }
}

fn imds_kind(status: u16, message: &str) -> ErrorKind {
    match status {
        400 if message.to_ascii_lowercase().contains("identity not found") => {
            ErrorKind::IdentityNotFound
        }
        429 => ErrorKind::Throttled,
        // The documentation of the metadata service says to retry 404, 410 and 5xx.
        404 | 410 | 500.. => ErrorKind::Unavailable,
        401 | 403 => ErrorKind::Forbidden,
        _ => ErrorKind::BadRequest,
    }
}

fn entra_kind(status: u16, code: &str, message: &str) -> ErrorKind {
    match (status, code) {
        (429, _) => ErrorKind::Throttled,
        (500.., _) | (_, "temporarily_unavailable") => ErrorKind::Unavailable,
        (_, "invalid_client" | "unauthorized_client") | (401, _) => ErrorKind::InvalidCredential,
        (_, "invalid_request") if message.contains("AADSTS90002") => ErrorKind::InvalidCredential,
        _ => ErrorKind::BadRequest,
    }
}

/// Reads `Retry-After`, in seconds or as an HTTP date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
    let wait = match text.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = httpdate::parse_http_date(text.trim()).ok()?;
            let at = Timestamp::try_from(at).ok()?;
            Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// The first line, shortened: further lines of Entra are trace ids.
fn clip(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars()
        .filter(|c| !c.is_control())
        .take(MAX_MESSAGE)
        .collect()
}

#[cfg(test)]
mod tests;
