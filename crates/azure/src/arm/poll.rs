//! Long-running operations: followed to their end, at the pace that Azure asks for.

use std::time::Duration;

use http::{HeaderMap, Method};
use podid_policy::ids::HostKey;
use reqwest::Url;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::throttle::Class;
use super::{Answered, Arm};
use crate::error::{Error, ErrorKind, Service, retry_after};

/// An operation that takes longer is left alone; what it did shows when the host is read again.
const DEADLINE: Duration = Duration::from_secs(15 * 60);
/// The pace while Azure asks for none: quick at first, since most operations end within seconds, then such that the limit of
/// 15 reads a minute holds.
const PACE: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
const SLOW: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(60);

impl Arm {
    /// Waits for the end of the operation that `started` announces; at once when it announces none.
    pub(super) async fn settle(&self, host: &HostKey, started: &Answered) -> Result<(), Error> {
        let Some(url) = self.operation(&started.headers)? else {
            return match provisioning(&started.body) {
                Some("Failed" | "Canceled") => Err(Error::from_operation("Failed", &Value::Null)),
                _ => Ok(()),
            };
        };
        let until = Instant::now() + DEADLINE;
        let mut pace = PACE.into_iter().chain(std::iter::repeat(SLOW));
        let mut asked = retry_after(&started.headers);
        loop {
            let wait = asked.or_else(|| pace.next()).unwrap_or(SLOW).min(LONGEST);
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
                Err(error) if error.is_transient() => Some(error.retry_after().unwrap_or(SLOW)),
                // Azure forgets operations; what this one did shows when the host is read again.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let text = "Azure has forgotten the operation";
                    return Err(Error::new(Service::Arm, ErrorKind::Conflict, text));
                }
                Err(error) => return Err(error),
            };
        }
    }

    /// Where the operation's state is. It must be the same server, since the request carries a token.
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

/// An operation's state is in `status`; a `Location` answers 202 until the end.
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
