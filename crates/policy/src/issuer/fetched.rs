//! Fetch errors of an OIDC issuer's documents, with the likely cause and the next step of each. The HTTP client of `podid issuer`
//! tells them apart.

use std::time::Duration;

use super::{Check, Outcome, Reason, shown};

/// Why a document could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchError {
    /// DNS does not know the host.
    NameNotFound,
    /// No connection, or one that broke; with the system's words.
    Unreachable(String),
    /// No TLS, or a certificate that is not one that everybody trusts; with the reason.
    TlsFailed(String),
    /// It took longer than this.
    TimedOut(Duration),
    /// A redirect, which is not followed; with its target.
    Redirected(u16, String),
    /// Another status than 200.
    Status(u16),
    /// More than this many bytes.
    TooLarge(usize),
    /// Not the document that is expected; with what is wrong.
    Malformed(String),
}

impl FetchError {
    /// The stable kind.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NameNotFound => Reason::NameNotFound,
            Self::Unreachable(_) => Reason::Unreachable,
            Self::TlsFailed(_) => Reason::TlsFailed,
            Self::TimedOut(_) => Reason::TimedOut,
            Self::Redirected(..) => Reason::Redirected,
            Self::Status(401 | 403) => Reason::AccessRefused,
            Self::Status(404) => Reason::NotFound,
            Self::Status(_) => Reason::UnexpectedStatus,
            Self::TooLarge(_) => Reason::TooLarge,
            Self::Malformed(_) => Reason::Malformed,
        }
    }

    /// The check of the document at `url` that this error decides.
    pub fn check(&self, name: &'static str, url: &str) -> Check {
        let found = format!("{}: {}", shown(url), self.text());
        let (cause, next) = self.advice();
        Check::found(name, Outcome::Wrong, found, self.reason(), cause, next)
    }

    /// What happened.
    fn text(&self) -> String {
        match self {
            Self::NameNotFound => "the host is not known".to_owned(),
            Self::Unreachable(why) => format!("no answer: {}", shown(why)),
            Self::TlsFailed(why) => format!("TLS failed: {}", shown(why)),
            Self::TimedOut(limit) => format!("not read within {} s", limit.as_secs_f32()),
            Self::Redirected(status, to) => format!("{status}, a redirect to {}", shown(to)),
            Self::Status(status) => format!("answers {status}"),
            Self::TooLarge(most) => format!("more than {most} bytes"),
            Self::Malformed(why) => shown(why),
        }
    }

    /// The likely cause, and the next step.
    fn advice(&self) -> (&'static str, &'static str) {
        match self {
            Self::NameNotFound => (
                "DNS has no such name, or only that of a private network has it",
                "look the name up at a public DNS server, and correct the record or the issuer",
            ),
            Self::Unreachable(_) => (
                "nothing listens there, or a firewall lets this machine not through; a firewall that keeps Entra out makes it fail with AADSTS50166 or AADSTS90061",
                "open the web server to all networks: Entra reads from Microsoft's own addresses. If this machine has no way to the internet, run this on one that has",
            ),
            Self::TlsFailed(_) => (
                "the certificate is not by a public authority (the API server's own never is), has expired, or is for another name; or what listens there is not https",
                "publish the two documents on a web server with a certificate of a public authority: podid issuer --issuer-url=https://… --write=DIRECTORY writes them",
            ),
            Self::TimedOut(_) => (
                "the web server is slow, or a firewall drops packets; Entra does not wait long either, and fails with AADSTS50166 or AADSTS90061",
                "make it answer within a second: two static files on a storage account or a CDN do",
            ),
            Self::Redirected(..) => (
                "the web server sends readers elsewhere (to a slash at the end, to www, to a login page); Entra reads the document at the issuer's own URL",
                "have the web server answer 200 at this very URL, or make the final URL the issuer",
            ),
            Self::Status(401 | 403) => (
                "it cannot be read without a login; a kube-apiserver refuses anonymous readers, and so does a storage account that is not public",
                "make the two documents readable by everybody. For a kube-apiserver that the internet reaches: kubectl create clusterrolebinding anonymous-issuer-discovery --clusterrole=system:service-account-issuer-discovery --group=system:unauthenticated",
            ),
            Self::Status(404) => (
                "the document is not there: not uploaded, below another folder, or the web server hides names that begin with a dot",
                "upload what podid issuer --write=DIRECTORY writes, with its folders; for a storage account's $web with --overwrite",
            ),
            Self::Status(_) => (
                "the web server answers with something else than the document",
                "see the web server's log, and run this again",
            ),
            Self::TooLarge(_) => (
                "what is served there is not the document, which has a few KiB",
                "upload what podid issuer --write=DIRECTORY writes",
            ),
            Self::Malformed(_) => (
                "what is served there is not the document but, say, an error page with the status 200",
                "upload what podid issuer --write=DIRECTORY writes, and look at the URL with curl",
            ),
        }
    }
}
