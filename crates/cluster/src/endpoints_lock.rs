//! Legacy leader lock: the Endpoints lock of AAD Pod Identity's own controller, as client-go's leader election kept it before
//! there were Leases. `lease.rs` acquires it after the Lease, so that of the two controllers only one acts: podid waits while the
//! other one renews the lock, and the other one waits while podid does.
//!
//! podid never creates the Endpoints object: a cluster without it has never had the other controller.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Endpoints;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

/// The annotation in which client-go keeps the lock's record.
const ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
/// The prefix of podid's own candidates in the record; which of them leads is for the Lease to say.
const OWN_PREFIX: &str = "podid/";
/// An absent lock is looked for again after one minute: somebody may have deployed the other controller since.
const ABSENT_RECHECK_INTERVAL: Duration = Duration::from_secs(60);

/// client-go's `LeaderElectionRecord`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    holder_identity: String,
    lease_duration_seconds: i64,
    acquire_time: Option<Timestamp>,
    renew_time: Option<Timestamp>,
    leader_transitions: i64,
}

/// The lock, as one candidate sees it.
pub(crate) struct LegacyLock {
    api: Api<Endpoints>,
    name: String,
    me: String,
    duration: Duration,
    /// The lock as this candidate last wrote it, so that a renewal needs no read.
    held: Option<Endpoints>,
    /// The record as last seen, and since when it is unchanged.
    seen: Option<(String, Instant)>,
    absent_since: Option<Instant>,
    /// The holder about which the log was told, once.
    logged_holder: String,
}

impl LegacyLock {
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        name: &str,
        me: &str,
        duration: Duration,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            me: format!("{OWN_PREFIX}{me}"),
            duration,
            held: None,
            seen: None,
            absent_since: None,
            logged_holder: String::new(),
        }
    }

    /// Acquires or renews the lock. Gives false while the other controller holds it, and true where there is no lock at all.
    pub(crate) async fn try_acquire(&mut self) -> Result<bool, kube::Error> {
        if self
            .absent_since
            .is_some_and(|at| at.elapsed() < ABSENT_RECHECK_INTERVAL)
        {
            return Ok(true);
        }
        if let Some(lock) = self.held.take()
            && self.renew(lock).await?
        {
            return Ok(true);
        }
        let lock = self.api.get_opt(&self.name).await?;
        let Some(lock) = lock else {
            self.absent_since = Some(Instant::now());
            return Ok(true);
        };
        self.absent_since = None;
        let text = annotation(&lock);
        let record: Record = serde_json::from_str(&text).unwrap_or_default();
        if self.is_held_by_another(&text, &record) {
            return Ok(false);
        }
        self.logged_holder.clear();
        self.renew(lock).await
    }

    /// Writes this candidate's claim over the lock as it was read.
    async fn renew(&mut self, lock: Endpoints) -> Result<bool, kube::Error> {
        let record: Record = serde_json::from_str(&annotation(&lock)).unwrap_or_default();
        self.write(&lock, &self.claim(&record)).await
    }

    /// Gives the lock up, so that the other controller need not wait until it expires.
    pub(crate) async fn release(&mut self) -> Result<(), kube::Error> {
        let Some(lock) = self.api.get_opt(&self.name).await? else {
            return Ok(());
        };
        let record: Record = serde_json::from_str(&annotation(&lock)).unwrap_or_default();
        if record.holder_identity == self.me {
            let freed = Record {
                holder_identity: String::new(),
                lease_duration_seconds: 1,
                ..record
            };
            self.write(&lock, &freed).await?;
        }
        Ok(())
    }

    fn is_held_by_another(&mut self, text: &str, record: &Record) -> bool {
        let holder = record.holder_identity.as_str();
        if holder.is_empty() || holder.starts_with(OWN_PREFIX) {
            return false;
        }
        let now = Instant::now();
        let since = match &self.seen {
            Some((seen, since)) if seen == text => *since,
            _ => now,
        };
        self.seen = Some((text.to_owned(), since));
        let lasts = u64::try_from(record.lease_duration_seconds).unwrap_or_default();
        let lasts = match lasts {
            0 => self.duration,
            seconds => Duration::from_secs(seconds),
        };
        let held = now - since < lasts;
        if held && self.logged_holder != holder {
            tracing::warn!(%holder, lock = %self.name, "the controller of AAD Pod Identity leads; podid waits until it is gone: scale its Deployment mic to 0");
            holder.clone_into(&mut self.logged_holder);
        }
        if !held {
            tracing::info!(%holder, lock = %self.name, "the controller of AAD Pod Identity is gone; podid takes its lock");
        }
        held
    }

    fn claim(&self, record: &Record) -> Record {
        let now = Timestamp::now()
            .round(jiff::Unit::Second)
            .unwrap_or_default();
        let renewal = record.holder_identity == self.me;
        Record {
            holder_identity: self.me.clone(),
            lease_duration_seconds: i64::try_from(self.duration.as_secs()).unwrap_or(i64::MAX),
            acquire_time: record.acquire_time.filter(|_| renewal).or(Some(now)),
            renew_time: Some(now),
            leader_transitions: record.leader_transitions + i64::from(!renewal),
        }
    }

    /// Writes the record; false when somebody else has changed the object since it was read.
    async fn write(&mut self, lock: &Endpoints, record: &Record) -> Result<bool, kube::Error> {
        let text = serde_json::to_string(record).map_err(kube::Error::SerdeError)?;
        let patch = json!({
            "metadata": {
                "resourceVersion": lock.metadata.resource_version,
                "annotations": { ANNOTATION: text },
            },
        });
        let params = PatchParams::default();
        match self
            .api
            .patch(&self.name, &params, &Patch::Merge(patch))
            .await
        {
            Ok(written) => {
                self.held = Some(written);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The holder of the lock when that is the other controller; `None` when it is podid or nobody.
pub fn legacy_holder(lock: &Endpoints) -> Option<String> {
    let record: Record = serde_json::from_str(&annotation(lock)).ok()?;
    let holder = record.holder_identity;
    (!holder.is_empty() && !holder.starts_with(OWN_PREFIX)).then_some(holder)
}

fn annotation(lock: &Endpoints) -> String {
    let annotations = lock.metadata.annotations.as_ref();
    let text = annotations.and_then(|all| all.get(ANNOTATION));
    text.cloned().unwrap_or_default()
}
