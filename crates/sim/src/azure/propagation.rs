//! Propagation of federated credentials to the nodes of Entra's token service, which `federation` asks for a match.
//!
//! ```text
//!  write ──► a version ──► node 1 knows it after ⅓ of the delay · node 2 after ⅔ · node 3 after all of it
//!  requests go to node 1, 2, 3, 1, …: between ⅓ of the delay and its end, one succeeds and the next fails
//!  a request that matches nothing ──► its node keeps what it knew until the negative cache expires
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::federated_credentials::FederatedCredential;

/// Nodes of the token service.
const NODES: usize = 3;

/// How slowly the nodes learn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Until the last node knows a change.
    pub(super) delay: Duration,
    /// How long a node keeps what it knew when nothing matched.
    pub(super) negative_cache: Duration,
}

type Version = Vec<FederatedCredential>;

/// The federated credentials of one principal, and what each node knows of them.
#[derive(Debug, Default)]
pub(super) struct Propagated {
    /// With the time of each change, oldest first; none for what every node has always known.
    versions: VecDeque<(Option<Instant>, Version)>,
    /// What a node keeps, and until when.
    kept: [Option<(Instant, Version)>; NODES],
    asked: usize,
}

impl Propagated {
    /// What was written last.
    pub(super) fn current(&self) -> &[FederatedCredential] {
        self.versions.back().map_or(&[], |(_, version)| version)
    }

    /// Replaces all of them; the nodes learn it from `at` on.
    pub(super) fn write(&mut self, version: Version, at: Instant, pace: Pace) {
        let is_known = |changed: Option<Instant>| changed.is_none_or(|t| t + pace.delay <= at);
        while self.versions.get(1).is_some_and(|next| is_known(next.0)) {
            self.versions.pop_front();
        }
        self.versions.push_back((Some(at), version));
    }

    /// Replaces all of them on every node at once.
    pub(super) fn write_everywhere(&mut self, version: Version) {
        self.versions = VecDeque::from([(None, version)]);
        self.kept = Default::default();
    }

    /// Asks the next node for a match among what it knows.
    pub(super) fn ask<T, E>(
        &mut self,
        pace: Pace,
        find: impl FnOnce(&[FederatedCredential]) -> Result<T, E>,
    ) -> Result<T, E> {
        let (now, node) = (Instant::now(), self.asked % NODES);
        self.asked += 1;
        if let Some((until, version)) = &self.kept[node]
            && *until > now
        {
            return find(version);
        }
        let lag = pace.delay.mul_f64((node + 1) as f64 / NODES as f64);
        let is_known = |changed: Option<Instant>| changed.is_none_or(|t| t + lag <= now);
        let version = self.versions.iter().rev().find(|one| is_known(one.0));
        let version = version.map_or(&[][..], |(_, version)| version);
        let found = find(version);
        let kept = found
            .is_err()
            .then(|| (now + pace.negative_cache, version.to_vec()));
        self.kept[node] = kept;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        delay: Duration::from_secs(30),
        negative_cache: Duration::from_secs(120),
    };

    fn credential() -> Version {
        vec![FederatedCredential::new("c", "https://issuer", "subject")]
    }

    /// Which of the next requests, one per node, match.
    fn asked(propagated: &mut Propagated, pace: Pace) -> [bool; NODES] {
        [(); NODES].map(|()| {
            let found = propagated.ask(pace, |known| known.first().cloned().ok_or(()));
            found.is_ok()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_learn_one_after_the_other_and_forget_so() {
        let pace = Pace {
            negative_cache: Duration::ZERO,
            ..PACE
        };
        let mut propagated = Propagated::default();
        propagated.write(credential(), Instant::now(), pace);
        assert_eq!(asked(&mut propagated, pace), [false, false, false]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(asked(&mut propagated, pace), [true, false, false]);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(asked(&mut propagated, pace), [true, true, true]);
        propagated.write(Vec::new(), Instant::now(), pace);
        assert_eq!(asked(&mut propagated, pace), [true, true, true]);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(asked(&mut propagated, pace), [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_was_asked_too_early_knows_it_later() {
        let mut propagated = Propagated::default();
        let early = propagated.ask(PACE, |known| known.first().cloned().ok_or(()));
        assert!(early.is_err(), "node 1 has nothing yet");
        propagated.write(credential(), Instant::now(), PACE);
        tokio::time::advance(Duration::from_secs(31)).await;
        let order = asked(&mut propagated, PACE);
        assert_eq!(order, [true, true, false], "nodes 2 and 3, then node 1");
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(asked(&mut propagated, PACE), [true, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_past_is_forgotten() {
        let mut propagated = Propagated::default();
        for _ in 0..100 {
            propagated.write(credential(), Instant::now(), PACE);
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert!(propagated.versions.len() < 6);
    }
}
