//! Interception task of `podid nmi`: puts the node's rules in place and repairs them, or withdraws them, while this node agent is
//! the one that serves.

use std::time::Duration;

use podid_intercept::{Keeper, Rules, withdraw};
use podid_nmi::FinalDrain;
use tokio::sync::watch::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// Wait before the next attempt when the rules could not be withdrawn.
const WITHDRAW_RETRY_DELAY: Duration = Duration::from_secs(5);

/// How long a node agent that is told to end goes on withdrawing, in seconds. Its drain and what follows it are within the 30 s that
/// Kubernetes gives a pod to end.
const WITHDRAWAL_TIMEOUT: Duration = Duration::from_secs(20);

/// The work on the node's rules.
pub enum InterceptionTask {
    /// Rules that are there stay as they are.
    None,
    /// The keeper puts the rules in place and repairs them.
    Keep(Keeper),
    /// The rules are removed once the connections that they caught are drained.
    Withdraw(Rules, FinalDrain),
}

impl InterceptionTask {
    /// When the node agent ends that is told to. One that withdraws ends after that: `helm uninstall` may come before the last node is
    /// done, since the kubelet's first probe of a new node agent may be answered by the one before it.
    pub fn shutdown(
        &self,
        told: CancellationToken,
        serving: Receiver<bool>,
        mut active: Receiver<bool>,
    ) -> CancellationToken {
        if !matches!(self, Self::Withdraw(..)) {
            return told;
        }
        let shutdown = CancellationToken::new();
        let ends = shutdown.clone();
        tokio::spawn(async move {
            told.cancelled().await;
            if *serving.borrow() {
                let withdrawn = active.wait_for(|withdrawn| *withdrawn);
                let _ = tokio::time::timeout(WITHDRAWAL_TIMEOUT, withdrawn).await;
            }
            ends.cancel();
        });
        shutdown
    }

    /// Works while this node agent serves, and sets `active` to whether the rules are as wanted.
    pub async fn run(self, serving: Receiver<bool>, active: Sender<bool>) {
        match self {
            Self::None => {}
            Self::Keep(keeper) => {
                let mut state = keeper.state();
                let follow = async {
                    while state.changed().await.is_ok() {
                        active.send_replace(state.borrow_and_update().in_place);
                    }
                };
                tokio::select! {
                    () = follow => {}
                    () = while_serving(serving, async |stop| keeper.run(stop).await) => {}
                }
            }
            Self::Withdraw(rules, drain) => {
                while_serving(serving, async |stop| {
                    withdraw_rules(&rules, &drain, &active, &stop).await;
                })
                .await;
            }
        }
    }
}

async fn while_serving(mut serving: Receiver<bool>, work: impl AsyncFn(CancellationToken)) {
    while serving.wait_for(|serving| *serving).await.is_ok() {
        let stop = CancellationToken::new();
        let stopping = async {
            // An error means that the servers have ended.
            let _ = serving.wait_for(|serving| !serving).await;
            stop.cancel();
        };
        tokio::join!(work(stop.clone()), stopping);
    }
}

async fn withdraw_rules(
    rules: &Rules,
    drain: &FinalDrain,
    active: &Sender<bool>,
    stop: &CancellationToken,
) {
    tracing::warn!(
        "--interception=withdraw: podid leaves this node. New requests reach whoever else redirects them, or the node's own metadata service; those under way are answered"
    );
    loop {
        let outcome = withdraw(rules, async || drain.run().await, stop).await;
        if stop.is_cancelled() {
            return;
        }
        match outcome {
            Ok(removed) => {
                for removed in removed {
                    tracing::info!(removed, "withdrawn");
                }
                tracing::info!("no rule of podid's is on this node any more");
                active.send_replace(true);
                return;
            }
            Err(error) => {
                tracing::warn!(reason = %error, "the rules could not be withdrawn; trying again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(WITHDRAW_RETRY_DELAY) => {}
                }
            }
        }
    }
}
