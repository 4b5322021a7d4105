//! Leader election: one leader among the replicas of the controller, by a `coordination.k8s.io/v1` Lease as client-go keeps it.
//! `podid-mic` runs it beside its watches, and acts only while it says so.
//!
//! ```text
//!                the Lease is free, or was seen
//!                unchanged for its duration
//!   Following ───────────────────────────────► Leading ──┐ renews every
//!     ▲   ▲                                     │  ▲      │ duration / 4
//!     │   └── another candidate holds it ───────┘  └──────┘
//!     │                                         │
//!     └── no renewal for 2/3 of the duration ───┘
//! ```
//!
//! A claim expires when the Lease was *seen unchanged* for its duration, so that the clocks of candidates need not agree. A leader
//! stops at two thirds of the duration after its last renewal, also when the API server does not answer, so that two never lead
//! at once. AAD Pod Identity's own lock (`endpoints_lock.rs`) must be held as well.

use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch::Sender;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::endpoints_lock::LegacyLock;
use crate::error_text::describe;

/// Shutdown waits no longer than two seconds for the release; after that the next leader waits until the claim expires.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// A process that takes part in the election.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// This candidate's name, unique among its peers (the pod's name).
    pub identity: String,
    /// How long a claim lasts without renewal. Whole seconds, at least 1.
    pub duration: Duration,
}

impl Candidate {
    /// The time between two attempts: four fit into a claim.
    fn retry(&self) -> Duration {
        self.duration / 4
    }

    /// Leading ends this long after the last renewal, well before another may begin.
    fn deadline(&self) -> Duration {
        self.duration * 2 / 3
    }
}

/// The next step of a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    /// The lease is free or expired: take it.
    Acquire,
    /// This candidate holds it: renew it.
    Renew,
    /// Another holds it.
    Follow {
        /// The holder.
        holder: String,
    },
}

/// Decides for candidate `me` about a lease that was seen `unchanged` for so long. A lease without a duration lasts `default`.
fn decide(lease: &LeaseSpec, me: &str, unchanged: Duration, default: Duration) -> Decision {
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    if holder.is_empty() {
        return Decision::Acquire;
    }
    if holder == me {
        return Decision::Renew;
    }
    let duration = lease
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .map_or(default, Duration::from_secs);
    if unchanged >= duration {
        Decision::Acquire
    } else {
        Decision::Follow {
            holder: holder.to_owned(),
        }
    }
}

/// Takes part in the election until shutdown. `leading` is true only while this candidate provably holds the Lease, and the
/// Endpoints lock of the same name where that exists. At shutdown both are released, so that the next leader need not wait.
///
/// A trouble with the API server is logged once and retried; it never ends the election.
pub async fn run_leader_election(
    client: Client,
    candidate: Candidate,
    leading: Sender<bool>,
    shutdown: CancellationToken,
) {
    let mut election = Election {
        legacy_lock: LegacyLock::new(
            client.clone(),
            &candidate.namespace,
            &candidate.name,
            &candidate.identity,
            candidate.duration,
        ),
        api: Api::namespaced(client, &candidate.namespace),
        candidate,
        held: None,
        claimed: Instant::now(),
        seen: None,
        logged_leader: String::new(),
        logged_trouble: String::new(),
    };
    let mut until = None;
    loop {
        let asked = Instant::now();
        let attempt = timeout(election.candidate.deadline(), election.attempt());
        let held = tokio::select! {
            () = shutdown.cancelled() => break,
            // Leading ends in time even while the API server has not answered.
            never = expire(&leading, until) => match never {},
            held = attempt => held.unwrap_or_else(|_| election.troubled("the API server does not answer")),
        };
        match held {
            Some(true) => until = Some(election.claimed + election.candidate.deadline()),
            Some(false) => until = None,
            None => {}
        }
        set_leading(&leading, until.is_some_and(|until| until > Instant::now()));
        tokio::select! {
            () = shutdown.cancelled() => break,
            never = expire(&leading, until) => match never {},
            () = sleep_until(asked + election.candidate.retry()) => {}
        }
    }
    if leading.send_replace(false) {
        election.release().await;
    }
}

/// Ends leading at `until`, and never returns.
async fn expire(leading: &Sender<bool>, until: Option<Instant>) -> Infallible {
    if let Some(until) = until {
        sleep_until(until).await;
        set_leading(leading, false);
    }
    std::future::pending().await
}

fn set_leading(leading: &Sender<bool>, now: bool) {
    leading.send_if_modified(|was| {
        let news = *was != now;
        if news {
            tracing::info!(leading = now, "leadership changed");
        }
        *was = now;
        news
    });
}

struct Election {
    legacy_lock: LegacyLock,
    api: Api<Lease>,
    candidate: Candidate,
    /// The lease as this candidate last wrote it, so that a renewal is one request.
    held: Option<Lease>,
    /// When the last claim was sent, from which leading is counted.
    claimed: Instant,
    /// The lease as last seen, and since when it is unchanged.
    seen: Option<(LeaseSpec, Instant)>,
    /// The leader and the trouble about which the log was told, each once.
    logged_leader: String,
    logged_trouble: String,
}

impl Election {
    /// Whether the lease and the legacy lock are held now, after at most one write of each; `None` when that is not known.
    async fn attempt(&mut self) -> Option<bool> {
        let held = match self.step().await {
            Ok(true) => self.legacy_lock.try_acquire().await,
            other => other,
        };
        match held {
            Ok(held) => {
                self.logged_trouble.clear();
                Some(held)
            }
            Err(error) => self.troubled(&describe(&error)),
        }
    }

    fn troubled(&mut self, reason: &str) -> Option<bool> {
        if self.logged_trouble != reason {
            let lease = format!("{}/{}", self.candidate.namespace, self.candidate.name);
            tracing::warn!(%lease, %reason, "the leader lease cannot be read or written; check the API server and that RBAC allows get, create and update of leases, and get and patch of endpoints");
            reason.clone_into(&mut self.logged_trouble);
        }
        None
    }

    async fn step(&mut self) -> Result<bool, kube::Error> {
        if let Some(mut lease) = self.held.take() {
            let held = lease.spec.take().unwrap_or_default();
            if self.write(lease, self.claim(Some(&held))).await? {
                return Ok(true);
            }
        }
        let Some(mut lease) = self.api.get_opt(&self.candidate.name).await? else {
            return self.create().await;
        };
        let spec = lease.spec.take().unwrap_or_default();
        let now = Instant::now();
        let since = match &self.seen {
            Some((seen, since)) if *seen == spec => *since,
            _ => now,
        };
        self.seen = Some((spec.clone(), since));
        let me = &self.candidate.identity;
        match decide(&spec, me, now - since, self.candidate.duration) {
            Decision::Follow { holder } => {
                if self.logged_leader != holder {
                    tracing::info!(%holder, "another leads");
                    self.logged_leader = holder;
                }
                Ok(false)
            }
            Decision::Renew => self.write(lease, self.claim(Some(&spec))).await,
            Decision::Acquire => {
                let mut claim = self.claim(None);
                claim.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
                self.write(lease, claim).await
            }
        }
    }

    async fn create(&mut self) -> Result<bool, kube::Error> {
        let mut lease = Lease::default();
        lease.metadata.name = Some(self.candidate.name.clone());
        lease.spec = Some(self.claim(None));
        self.claimed = Instant::now();
        match self.api.create(&PostParams::default(), &lease).await {
            Ok(created) => Ok(self.keep(created)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn keep(&mut self, written: Lease) -> bool {
        self.held = Some(written);
        true
    }

    async fn write(&mut self, mut lease: Lease, spec: LeaseSpec) -> Result<bool, kube::Error> {
        lease.spec = Some(spec);
        lease.metadata.managed_fields = None;
        self.claimed = Instant::now();
        let written = self
            .api
            .replace(&self.candidate.name, &PostParams::default(), &lease)
            .await;
        match written {
            Ok(written) => Ok(self.keep(written)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// This candidate's claim from now on; a renewal keeps the first claim's acquire time and transitions.
    fn claim(&self, held: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.candidate.identity.clone()),
            lease_duration_seconds: i32::try_from(self.candidate.duration.as_secs().max(1)).ok(),
            acquire_time: held
                .and_then(|held| held.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            lease_transitions: held.and_then(|held| held.lease_transitions).or(Some(0)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    async fn release(&mut self) {
        let give_back = async {
            let lease = self.api.get(&self.candidate.name).await?;
            let spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(&*self.candidate.identity) {
                return Ok(false);
            }
            let freed = LeaseSpec {
                holder_identity: None,
                lease_duration_seconds: Some(1),
                ..spec
            };
            self.legacy_lock.release().await?;
            self.write(lease, freed).await
        };
        match timeout(RELEASE_TIMEOUT, give_back).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::info!(
                    reason = describe(&error),
                    "the leader lease was not given back"
                )
            }
            Err(_) => tracing::info!("the leader lease was not given back in time"),
        }
    }
}

#[cfg(test)]
mod tests;
