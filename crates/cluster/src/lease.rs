//! Who leads: one candidate among several, by a `coordination.k8s.io/v1` Lease.
//!
//! A claim counts as expired when the Lease has been *seen unchanged* for its duration, so that clocks need not agree.

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

/// One of the processes that may lead.
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
    fn retry(&self) -> Duration {
        self.duration / 4
    }

    /// Leading ends this long after the last renewal, well before another may begin.
    fn deadline(&self) -> Duration {
        self.duration * 2 / 3
    }
}

/// What a candidate does about the lease now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    /// Nobody holds it, or its holder let it expire: take it.
    Acquire,
    /// This candidate holds it: renew it.
    Renew,
    /// Another holds it.
    Follow {
        /// The holder.
        holder: String,
    },
}

/// Decides for candidate `me` about a lease that has been seen unchanged for a while. A lease that states no duration counts
/// as `default` long.
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

/// Takes part until shutdown. `leading` is true only while the lease is provably this candidate's, and the leader lock that AAD
/// Pod Identity's own controller uses (an Endpoints object of the same name) is nobody else's. At shutdown both are given back,
/// so that the next leader need not wait.
pub async fn run_leader_election(
    client: Client,
    candidate: Candidate,
    leading: Sender<bool>,
    shutdown: CancellationToken,
) {
    let mut race = Race {
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
        followed: String::new(),
        trouble: String::new(),
    };
    let mut until = None;
    loop {
        let asked = Instant::now();
        let attempt = timeout(race.candidate.deadline(), race.attempt());
        let held = tokio::select! {
            () = shutdown.cancelled() => break,
            // However long the API server takes, leading ends in time.
            never = expire(&leading, until) => match never {},
            held = attempt => held.unwrap_or_else(|_| race.troubled("the API server does not answer")),
        };
        match held {
            Some(true) => until = Some(race.claimed + race.candidate.deadline()),
            Some(false) => until = None,
            None => {}
        }
        tell(&leading, until.is_some_and(|until| until > Instant::now()));
        tokio::select! {
            () = shutdown.cancelled() => break,
            never = expire(&leading, until) => match never {},
            () = sleep_until(asked + race.candidate.retry()) => {}
        }
    }
    if leading.send_replace(false) {
        race.release().await;
    }
}

/// Says at this time that leading is over, and never returns.
async fn expire(leading: &Sender<bool>, until: Option<Instant>) -> Infallible {
    if let Some(until) = until {
        sleep_until(until).await;
        tell(leading, false);
    }
    std::future::pending().await
}

fn tell(leading: &Sender<bool>, now: bool) {
    leading.send_if_modified(|was| {
        let news = *was != now;
        if news {
            tracing::info!(leading = now, "leadership changed");
        }
        *was = now;
        news
    });
}

struct Race {
    legacy_lock: LegacyLock,
    api: Api<Lease>,
    candidate: Candidate,
    /// The lease as this candidate last wrote it: a renewal of it needs no look at it first.
    held: Option<Lease>,
    /// When the last claim was sent.
    claimed: Instant,
    /// The lease as last seen, and since when it has looked so.
    seen: Option<(LeaseSpec, Instant)>,
    followed: String,
    trouble: String,
}

impl Race {
    /// One look and at most one write. `None`: nothing could be learnt.
    async fn attempt(&mut self) -> Option<bool> {
        let held = match self.step().await {
            Ok(true) => self.legacy_lock.try_acquire().await,
            other => other,
        };
        match held {
            Ok(held) => {
                self.trouble.clear();
                Some(held)
            }
            Err(error) => self.troubled(&describe(&error)),
        }
    }

    fn troubled(&mut self, reason: &str) -> Option<bool> {
        if self.trouble != reason {
            let lease = format!("{}/{}", self.candidate.namespace, self.candidate.name);
            tracing::warn!(%lease, %reason, "the leader lease cannot be read or written; check the API server and that RBAC allows get, create and update of leases, and get and patch of endpoints");
            reason.clone_into(&mut self.trouble);
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
                if self.followed != holder {
                    tracing::info!(%holder, "another leads");
                    self.followed = holder;
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

    /// This candidate's claim, from now; a renewal keeps what the first claim said.
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
        match timeout(Duration::from_secs(2), give_back).await {
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
