//! Checks of federated credentials: which federated identities have been seen to work, why others do not, and when the broker is
//! asked next.
//!
//! The index tells [`Checks`] of each AzureIdentity; [`super::keeper`] asks for what is due and tells how it went. It guards pods from
//! the loss of what was attached before federation works, and Entra from being asked too often.

use std::collections::BTreeMap;
use std::time::Duration;

use podid_broker::client::ClientError;
use podid_broker::protocol::ErrorKind;
use podid_policy::desired::DesiredState;
use podid_policy::facts::{IdentityFacts, ObjectKey};
use podid_policy::ids::{HostKey, ResourceId};
use tokio::time::Instant;

use crate::host::REPORT_AFTER;

/// The reason of the condition while the broker gives no answer.
pub(super) const BROKER_UNAVAILABLE: &str = "BrokerUnavailable";
/// The reason of the condition while the service account cannot be made.
pub(super) const NO_ACCOUNT: &str = "ServiceAccountMissing";

/// What works is checked again in an hour: a federated credential may be deleted, and a check costs a request to Entra.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// The wait after a first failure, in which the broker's own watches mostly catch up; every further failure doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// The longest wait after a failure: whoever creates a federated credential sees it work within 5 minutes.
const MAX_RETRY: Duration = Duration::from_secs(300);

/// Why tokens of an identity cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// The likely cause and the next step.
    pub(crate) text: String,
}

/// The federated identities.
#[derive(Debug, Default)]
pub(crate) struct Checks(BTreeMap<ObjectKey, Check>);

/// What is known of one federated identity.
#[derive(Debug)]
struct Check {
    facts: IdentityFacts,
    /// What people are told; `None` while nothing is known.
    outcome: Option<Result<(), Failure>>,
    /// Whether it has worked with these facts.
    has_succeeded: bool,
    due: Instant,
    /// Failures in a row.
    failures: u32,
    /// Failures in a row that say nothing of the identity.
    unanswered: u32,
}

impl Check {
    /// `works` says that the condition of the AzureIdentity is of these facts, and says so.
    fn new(facts: IdentityFacts, works: bool, now: Instant) -> Self {
        let due = if works { now + CHECK_INTERVAL } else { now };
        Self {
            facts,
            outcome: works.then_some(Ok(())),
            has_succeeded: works,
            due,
            failures: 0,
            unanswered: 0,
        }
    }
}

impl Checks {
    /// An AzureIdentity exists and looks like this. `works` says that its condition says so of this generation; `edited` that the
    /// generation is new. Gives whether there is something to do.
    pub(crate) fn on_seen(
        &mut self,
        facts: &IdentityFacts,
        works: bool,
        edited: bool,
        now: Instant,
    ) -> bool {
        if !facts.is_federated() {
            return self.on_deleted(&facts.key);
        }
        match self.0.get_mut(&facts.key) {
            Some(check) if check.facts == *facts => {
                if edited {
                    check.due = now;
                }
                edited
            }
            _ => {
                let check = Check::new(facts.clone(), works, now);
                self.0.insert(facts.key.clone(), check);
                true
            }
        }
    }

    /// The AzureIdentity is gone, or not federated any more. Gives whether there is something to do.
    pub(crate) fn on_deleted(&mut self, identity: &ObjectKey) -> bool {
        self.0.remove(identity).is_some()
    }

    /// Another replica may have led meanwhile: the conditions are newer than what is known here.
    pub(crate) fn restart(&mut self, works: impl Fn(&ObjectKey) -> bool, now: Instant) {
        for (key, check) in &mut self.0 {
            *check = Check::new(check.facts.clone(), works(key), now);
        }
    }

    /// All federated identities.
    pub(crate) fn identities(&self) -> impl Iterator<Item = &ObjectKey> {
        self.0.keys()
    }

    /// The identities, of those that `can_check` takes, that the broker must be asked about now.
    pub(crate) fn due(
        &self,
        now: Instant,
        can_check: impl Fn(&ObjectKey) -> bool,
    ) -> Vec<IdentityFacts> {
        let due = self.0.values().filter(|check| check.due <= now);
        let due = due.filter(|check| can_check(&check.facts.key));
        due.map(|check| check.facts.clone()).collect()
    }

    /// When the next one of those that `can_check` takes is due.
    pub(crate) fn next_due(&self, can_check: impl Fn(&ObjectKey) -> bool) -> Option<Instant> {
        let known = self.0.iter().filter(|(key, _)| can_check(key));
        known.map(|(_, check)| check.due).min()
    }

    /// The broker was asked about an identity with these facts. A failure that says nothing of the identity is told only where it
    /// lasts, and never takes back that the identity works.
    pub(crate) fn on_checked(
        &mut self,
        asked: &IdentityFacts,
        result: Result<(), ClientError>,
        now: Instant,
    ) {
        let check = self.0.get_mut(&asked.key);
        let Some(check) = check.filter(|check| check.facts == *asked) else {
            return;
        };
        let Err(error) = result else {
            *check = Check::new(check.facts.clone(), true, now);
            return;
        };
        let backoff = FIRST_RETRY * (1 << check.failures.min(10));
        let wait = error.retry_after().unwrap_or(backoff);
        check.due = now + wait.clamp(FIRST_RETRY, MAX_RETRY);
        check.failures += 1;
        if says_nothing_of_identity(&error) {
            check.unanswered += 1;
            if check.has_succeeded || check.unanswered < REPORT_AFTER {
                return;
            }
        } else {
            check.unanswered = 0;
        }
        check.outcome = Some(Err(failure(error)));
    }

    /// The broker cannot be asked about an identity; it is asked as soon as it can be.
    pub(crate) fn on_blocked(&mut self, identity: &ObjectKey, reason: &str, text: &str) {
        if let Some(check) = self.0.get_mut(identity) {
            check.due = Instant::now();
            check.outcome = Some(Err(Failure {
                reason: reason.to_owned(),
                text: text.to_owned(),
            }));
        }
    }

    /// Whether tokens of an identity can be had, as far as that is known.
    pub(crate) fn outcome(&self, identity: &ObjectKey) -> Option<&Result<(), Failure>> {
        self.0.get(identity)?.outcome.as_ref()
    }

    /// Whether what was attached to the host stays there, because pods on it use it by federation that has not been seen to work.
    pub(crate) fn keeps_attached(
        &self,
        id: &ResourceId,
        host: &HostKey,
        desired: &DesiredState,
    ) -> bool {
        let unproven = self.0.values().filter(|check| !check.has_succeeded);
        let mut unproven = unproven.filter(|check| check.facts.resource_id() == Some(id));
        unproven.any(|check| {
            desired.assignments().any(|assignment| {
                assignment.identity.key == check.facts.key
                    && assignment.host.as_deref() == Some(host)
            })
        })
    }
}

/// Whether the failure is of the way to Entra, or of watches that are behind, and not of the identity.
fn says_nothing_of_identity(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { kind, .. } => matches!(
            kind,
            ErrorKind::UnknownIdentity
                | ErrorKind::NotFederated
                | ErrorKind::Throttled
                | ErrorKind::Unavailable
        ),
        ClientError::Unreachable { .. } | ClientError::File { .. } => true,
        ClientError::NotABroker { .. } => false,
    }
}

fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::Refused { kind, message, .. } => Failure {
            reason: reason(kind).to_owned(),
            text: message,
        },
        other => Failure {
            reason: BROKER_UNAVAILABLE.to_owned(),
            text: other.to_string(),
        },
    }
}

/// The reason of the condition.
fn reason(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::CredentialMissing => "CredentialMissing",
        ErrorKind::CredentialMismatch => "CredentialMismatch",
        ErrorKind::Propagating => "CredentialPropagating",
        ErrorKind::IssuerUnreachable => "IssuerUnreachable",
        ErrorKind::TenantRefused => "TenantRefused",
        ErrorKind::Throttled => "Throttled",
        ErrorKind::NoTenant => "NoTenant",
        // Its watches are behind, or what it asks does not answer.
        ErrorKind::UnknownIdentity | ErrorKind::NotFederated | ErrorKind::Unavailable => {
            BROKER_UNAVAILABLE
        }
        _ => "BrokerRefused",
    }
}

#[cfg(test)]
mod tests;
