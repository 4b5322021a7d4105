//! Error texts of the API server for operators: its own message where it answered, else the chain of causes, and the next step.

use kube::core::Status;
use kube::runtime::watcher;

/// The message of the API server where it answered, else why there is no answer.
pub fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => message(status),
        other => with_causes(other),
    }
}

/// Why a watch of `kind` is interrupted, and what to do about it.
pub(crate) fn describe_watch(kind: &str, error: &watcher::Error) -> String {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status,
        other => {
            return format!(
                "{}; check that the API server is reachable",
                with_causes(other)
            );
        }
    };
    let message = message(status);
    match status.code {
        401 => format!(
            "the API server does not accept podid's token: {message}; check that its service account is still there"
        ),
        403 => format!("{message}; check that RBAC allows list and watch"),
        404 => format!(
            "the API server does not know the kind {kind}; if it is one of podid's, install the definitions: podid crds --apply"
        ),
        _ => message,
    }
}

fn message(status: &Status) -> String {
    match status.message.trim() {
        "" => format!("{} {}", status.code, status.reason),
        text => text.to_owned(),
    }
}

/// An error with its causes, each text once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16, message: &str) -> watcher::Error {
        let status = Status {
            code,
            message: message.to_owned(),
            reason: "Failed to parse error data".to_owned(),
            ..Status::default()
        };
        watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn each_answer_has_its_next_step() {
        for (code, step) in [
            (401, "service account"),
            (403, "RBAC allows list and watch"),
            (404, "podid crds --apply"),
        ] {
            let text = describe_watch("AzureIdentity", &answered(code, "page not found"));
            assert!(text.contains(step), "{text}");
            assert!(!text.contains("Status {"), "{text}");
        }
        let text = describe_watch("Pod", &watcher::Error::NoResourceVersion);
        assert!(text.contains("reachable"), "{text}");
    }

    #[test]
    fn what_is_behind_an_error_is_said_once() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let text = describe(&kube::Error::Service(Box::new(refused)));
        assert_eq!(text.matches("connection refused").count(), 1, "{text}");
    }
}
