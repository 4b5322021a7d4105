//! Long-running operations of ARM: polls an operation until it ends, as often as Azure asks by `Retry-After`. `compute.rs` waits
//! here after each PATCH.
//!
//! ```text
//!  202 with Azure-AsyncOperation or Location ──► wait ──► GET it ──► Succeeded | Failed | Canceled
//!                                                 ▲         │
//!                                                 └─────────┘ still running, or a transient error
//! ```

use std::time::Duration;

use http::{HeaderMap, Method};
use podid_policy::ids::HostKey;
use reqwest::Url;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::throttle::Class;
use super::{Answered, Arm};
use crate::error::{Error, ErrorKind, Service, retry_after};

/// An operation is polled for 15 minutes at most; what a longer one did shows when the host is read again.
const MAX_OPERATION_TIME: Duration = Duration::from_secs(15 * 60);
/// The first waits between polls where Azure asks for none: short, since most operations end within seconds.
const FIRST_POLL_DELAYS: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// The wait after those: 12 polls a minute, where Azure allows 15.
const POLL_DELAY: Duration = Duration::from_secs(5);
/// The longest wait, whatever Azure asks for, so that the end of an operation shows within a minute.
const MAX_POLL_DELAY: Duration = Duration::from_secs(60);

impl Arm {
    /// Waits until the operation that the answer `started` announces has ended; it announces none when the change is already made.
    pub(super) async fn await_operation(
        &self,
        host: &HostKey,
        started: &Answered,
    ) -> Result<(), Error> {
        let Some(url) = self.operation(&started.headers)? else {
            return match provisioning(&started.body) {
                Some("Failed" | "Canceled") => Err(Error::from_operation("Failed", &Value::Null)),
                _ => Ok(()),
            };
        };
        let until = Instant::now() + MAX_OPERATION_TIME;
        let mut delays = FIRST_POLL_DELAYS
            .into_iter()
            .chain(std::iter::repeat(POLL_DELAY));
        let mut asked = retry_after(&started.headers);
        loop {
            let wait = asked
                .or_else(|| delays.next())
                .unwrap_or(POLL_DELAY)
                .min(MAX_POLL_DELAY);
            if Instant::now() + wait > until {
                return Err(Error::new(
                    Service::Arm,
                    ErrorKind::Timeout,
                    "the operation has not ended within 15 minutes",
                ));
            }
            sleep(wait).await;
            let subscription = host.subscription();
            let call = self.call(
                subscription,
                Class::Operation,
                Method::GET,
                url.clone(),
                None,
                None,
            );
            asked = match call.await {
                Ok(answer) => {
                    if ended(&answer)? {
                        return Ok(());
                    }
                    retry_after(&answer.headers)
                }
                Err(error) if error.is_transient() => {
                    Some(error.retry_after().unwrap_or(POLL_DELAY))
                }
                // Azure deletes old operations; what this one did shows when the host is read again.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let text = "Azure has forgotten the operation";
                    return Err(Error::new(Service::Arm, ErrorKind::Conflict, text));
                }
                Err(error) => return Err(error),
            };
        }
    }

    /// The URL of the operation's state. It must be on ARM's own server, since the request to it carries a token.
    fn operation(&self, headers: &HeaderMap) -> Result<Option<Url>, Error> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let Some(text) = header("azure-asyncoperation").or_else(|| header("location")) else {
            return Ok(None);
        };
        let malformed = |what| Error::new(Service::Arm, ErrorKind::Malformed, what);
        let url =
            Url::parse(text).map_err(|_| malformed("the operation's address is not a URL"))?;
        if url.origin() == self.0.base.origin() {
            Ok(Some(url))
        } else {
            Err(malformed("the operation's address is on another server"))
        }
    }
}

/// An `Azure-AsyncOperation` has its state in `status`; a `Location` answers 202 until the end.
fn ended(answer: &Answered) -> Result<bool, Error> {
    let Some(status) = answer.body.get("status").and_then(Value::as_str) else {
        return Ok(answer.status != 202);
    };
    match status.to_ascii_lowercase().as_str() {
        "succeeded" => Ok(true),
        "failed" | "canceled" => Err(Error::from_operation(status, &answer.body["error"])),
        _ => Ok(false),
    }
}

fn provisioning(body: &Value) -> Option<&str> {
    body.get("properties")?.get("provisioningState")?.as_str()
}
