//! Interception task of `podid nmi`: puts the node's rules in place and repairs them, or withdraws them, while this node agent is
//! the one that serves.

use std::time::Duration;

use podid_intercept::{Keeper, Rules, withdraw};
use podid_nmi::FinalDrain;
use tokio::sync::watch::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// Wait before the next attempt when the rules could not be withdrawn.
const WITHDRAW_RETRY_DELAY: Duration = Duration::from_secs(5);

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
