//! What a failed call means for a host.

use std::collections::{BTreeMap, BTreeSet};

use podid_policy::desired::AssignmentKey;
use podid_policy::ids::ResourceId;
use tokio::time::Instant;

use super::{Failure, Host, MAX_BACKOFF, REPORT_AFTER, Trouble};
use crate::config::Config;
use crate::host::cloud::{Fault, HostChange, HostError};
use crate::host::quarantine::Quarantine;

impl Host {
    /// Something failed; `change` is what was being carried out.
    pub(crate) fn failed(
        &mut self,
        now: Instant,
        config: &Config,
        error: &HostError,
        change: Option<&HostChange>,
        quarantine: &mut Quarantine,
    ) -> Failure {
        let batch = change.map_or(&[][..], |change| &change.attach);
        let mut apart = Vec::new();
        let mut news = false;
        if change.is_some() {
            self.unclaim(error.outcome_unknown);
        }
        if error.fault.is_of_identity() && !batch.is_empty() && !self.blames_what_is_there(error) {
            apart = self.mark_refused(now, config, error, batch, quarantine);
        } else {
            if error.fault == Fault::NoHost {
                self.seen = None;
                if self.wanted.is_empty() {
                    self.owned.clear();
                }
            } else if change.is_some() {
                self.looked = None;
            }
            news = self.pause(now, config, error, change.is_none());
        }
        let users = |of: &BTreeMap<ResourceId, BTreeSet<AssignmentKey>>| {
            let found = of
                .iter()
                .filter(|(id, _)| news || apart.contains(id))
                .flat_map(|(_, who)| who.clone());
            found.collect::<Vec<_>>()
        };
        let touched = [users(&self.wanted), users(&self.held)].concat();
        Failure {
            apart,
            touched: touched.into_iter().collect(),
        }
    }

    /// A change was not made; or it was `begun`, and what it did must be looked at. If what it was to attach is there later though it
    /// was not made, then somebody else has attached it.
    fn unclaim(&mut self, outcome_unknown: bool) {
        let claimed = std::mem::take(&mut self.claimed);
        if outcome_unknown {
            self.looked = None;
        } else {
            self.owned.retain(|id, _| !claimed.contains(id));
        }
    }

    /// Whether Azure blames an identity that is on the host already: it was deleted since, and spoils every change. One that
    /// podid attached is taken away first; another is for people to take away.
    fn blames_what_is_there(&mut self, error: &HostError) -> bool {
        let Some(seen) = &self.seen else {
            return false;
        };
        let there: Vec<&ResourceId> = error
            .identities
            .iter()
            .filter(|id| seen.user.contains_key(id))
            .collect();
        if error.fault == Fault::IdentityNotFound {
            let ours = there.iter().filter(|id| self.owned.contains_key(id));
            self.spoilt.extend(ours.map(|id| (*id).clone()));
        }
        !there.is_empty()
    }

    /// Azure refused to attach some of the batch. Returns those that are refused from now on.
    fn mark_refused(
        &mut self,
        now: Instant,
        config: &Config,
        error: &HostError,
        batch: &[ResourceId],
        quarantine: &mut Quarantine,
    ) -> Vec<ResourceId> {
        let named = |id: &&ResourceId| error.identities.contains(id);
        let mut guilty: Vec<_> = batch.iter().filter(named).cloned().collect();
        if guilty.is_empty() {
            guilty.extend(self.suspects.bisect(batch));
        } else {
            self.suspects.clear(batch);
        }
        let text = match error.fault {
            Fault::Refused => format!("{}: {}", self.key, error.text),
            _ => error.text.clone(),
        };
        for id in &guilty {
            self.owned.remove(id);
            let unit = config.retry_interval;
            quarantine.refuse(id, &self.key, (error.fault, &text), now, unit);
        }
        guilty
    }

    /// Says whether the reason that people are told is another one than before.
    fn pause(&mut self, now: Instant, config: &Config, error: &HostError, looking: bool) -> bool {
        let text = match error.fault {
            Fault::Throttled | Fault::Conflict | Fault::Unavailable => {
                format!("{} for {}; retried", error.fault.name(), self.key)
            }
            _ => error.text.clone(),
        };
        let before = self.trouble.as_ref();
        let attempts = before.map_or(0, |t| t.attempts) + 1;
        let news = before.is_none_or(|trouble| trouble.text != text) || attempts == REPORT_AFTER;
        let wait = config.retry_interval * (1u32 << (attempts - 1).min(16)).min(MAX_BACKOFF);
        self.trouble = Some(Trouble {
            until: now + wait.max(error.retry_after.unwrap_or_default()),
            attempts,
            fault: error.fault,
            text,
            looking,
        });
        news
    }
}
