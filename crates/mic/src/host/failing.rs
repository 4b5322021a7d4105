//! Failure handling and back-off: what a call that failed means for a host.
//!
//! The host's worker ([`super::worker`]) calls [`Host::on_failed`]. It guards two things: a bad identity is kept apart instead of
//! failing every PATCH with it, and a host or an Azure that fails is asked ever less often.
//!
//! ```text
//!   identity refused ──► is it on the host already? ── yes ─► podid's own: detach it, others': back off
//!                        │ no
//!                        ├─ Azure names it ────────────────► quarantine it
//!                        └─ Azure names none ──────────────► bisect: quarantine one, try the next half, or back off as below
//!   host refused ──────► back off; an identity that comes later is tried at once, as it tells whose fault it is
//!   GET finds no host ─► forget what was seen, back off
//!   outcome unknown ───► remember what was to be detached: when it is gone later, that is no drift; read, back off
//!   all else ──────────► read before the next PATCH, back off
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use podid_policy::desired::AssignmentKey;
use podid_policy::ids::ResourceId;
use tokio::time::Instant;

use super::outcome::users_of_all;
use super::{Host, REPORT_AFTER, Trouble};
use crate::config::Config;
use crate::host::cloud::{Fault, HostChange, HostError};
use crate::host::quarantine::{Blame, Quarantine};

/// The longest back-off, in retry intervals (5 minutes by default).
const MAX_BACKOFF: u32 = 300;

/// What a failure leads to.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    /// The identities that are in quarantine from now on.
    pub(crate) refused: Vec<ResourceId>,
    /// Assignments whose objects may have to change.
    pub(crate) affected: BTreeSet<AssignmentKey>,
}

impl Host {
    /// A call failed; `change` is the PATCH that was being carried out, if it was one.
    pub(crate) fn on_failed(
        &mut self,
        now: Instant,
        config: &Config,
        error: &HostError,
        change: Option<&HostChange>,
        quarantine: &mut Quarantine,
    ) -> Failure {
        let batch = change.map_or(&[][..], |change| &change.attach);
        if let Some(change) = change {
            self.unclaim(change, error.outcome_unknown, now);
        }
        let is_refused = error.fault.may_be_of_identity() && !batch.is_empty();
        let blame = if is_refused && !self.blames_attached(error) {
            self.blame(error, batch, quarantine)
        } else {
            Blame::Host
        };
        let (mut refused, mut is_news) = (Vec::new(), false);
        match blame {
            Blame::Identities(ids) => {
                self.mark_refused(now, config, error, &ids, quarantine);
                refused = ids;
            }
            Blame::Unknown => {}
            Blame::Host => {
                if change.is_some() {
                    self.observed.read_at = None;
                } else if error.fault == Fault::NoHost {
                    self.observed.identities = None;
                    if self.demand.wanted.is_empty() {
                        self.ownership.owned.clear();
                    }
                }
                is_news = self.back_off(now, config, error, change.is_none());
            }
        }
        let is_meant = |id: &ResourceId| is_news || refused.contains(id);
        let affected = users_of_all([&self.demand.wanted, &self.demand.held], is_meant);
        Failure { refused, affected }
    }

    /// A PATCH failed. Where it was not made, what it was to attach is not podid's: if it is on the host later, somebody else has
    /// attached it. Where the outcome is unknown, the next reads tell.
    fn unclaim(&mut self, change: &HostChange, outcome_unknown: bool, now: Instant) {
        if outcome_unknown {
            self.ownership.confirm_claims();
            self.ownership.on_detach_unconfirmed(&change.detach, now);
            self.observed.read_at = None;
        } else {
            self.ownership.unclaim();
        }
    }

    /// Whether Azure blames an identity that is on the host already: it was deleted since and fails every change. One that podid
    /// attached is detached first; an operator must detach any other.
    fn blames_attached(&mut self, error: &HostError) -> bool {
        let Some(seen) = &self.observed.identities else {
            return false;
        };
        let attached = error.identities.iter();
        let attached = attached.filter(|id| seen.user.contains_key(id));
        let attached: Vec<ResourceId> = attached.cloned().collect();
        let blames = !attached.is_empty();
        if error.fault == Fault::IdentityNotFound {
            let owned = &self.ownership.owned;
            let ours = attached.into_iter().filter(|id| owned.contains_key(id));
            self.doubts.dead.extend(ours);
        }
        blames
    }

    /// Azure refused to attach the batch: says whose fault that is, by the ids that Azure names, else by the bisection.
    fn blame(&mut self, error: &HostError, batch: &[ResourceId], quarantine: &Quarantine) -> Blame {
        let is_named = |id: &&ResourceId| error.identities.contains(id);
        let named: Vec<_> = batch.iter().filter(is_named).cloned().collect();
        if !named.is_empty() {
            self.doubts.suspects.clear(batch);
            return Blame::Identities(named);
        }
        let is_refused_elsewhere = batch.iter().all(|id| quarantine.contains(id));
        let is_of_identity = error.fault != Fault::Refused || is_refused_elsewhere;
        self.doubts.suspects.bisect(batch, is_of_identity)
    }

    /// These are in quarantine from now on.
    fn mark_refused(
        &mut self,
        now: Instant,
        config: &Config,
        error: &HostError,
        refused: &[ResourceId],
        quarantine: &mut Quarantine,
    ) {
        let text = match error.fault {
            Fault::Refused if error.identities.is_empty() => format!(
                "{}: {}; the host takes other identities and not this one",
                self.key, error.text
            ),
            Fault::Refused => format!("{}: {}", self.key, error.text),
            _ => error.text.clone(),
        };
        self.ownership.forget(refused);
        for id in refused {
            let unit = config.retry_interval;
            quarantine.refuse(id, &self.key, (error.fault, &text), now, unit);
        }
    }

    /// Does nothing on the host for a while. Says whether people are told something new.
    fn back_off(
        &mut self,
        now: Instant,
        config: &Config,
        error: &HostError,
        is_read: bool,
    ) -> bool {
        let fault = match error.fault {
            // Nothing else is to blame for a change, and only a read tells that a host is gone.
            Fault::Refused | Fault::NoHost if !is_read => Fault::HostRefused,
            fault => fault,
        };
        let before = self.trouble.as_ref();
        let attempts = before.map_or(0, |t| t.attempts) + 1;
        let same = before.filter(|t| t.fault == fault);
        let text = match same {
            // Azure's words about the moment differ each time.
            Some(same) if fault.is_of_moment() => same.text.clone(),
            _ if fault.is_of_moment() => format!("{}: {}", self.key, error.text),
            _ => error.text.clone(),
        };
        let is_news = same.is_none_or(|t| t.text != text) || attempts == REPORT_AFTER;
        let wait = config.retry_interval * (1u32 << (attempts - 1).min(16)).min(MAX_BACKOFF);
        self.trouble = Some(Trouble {
            until: now + wait.max(error.retry_after.unwrap_or(Duration::ZERO)),
            attempts,
            fault,
            text,
            ends_with_read: is_read,
        });
        is_news
    }

    /// A new identity is wanted: where it is open whether the host or its identities are to blame, it is tried at once.
    pub(super) fn retry_with_new(&mut self, now: Instant) {
        let is_open = !self.doubts.suspects.is_empty();
        let trouble = self.trouble.as_mut().filter(|_| is_open);
        if let Some(trouble) = trouble.filter(|t| t.fault == Fault::HostRefused) {
            trouble.until = now;
        }
    }
}
