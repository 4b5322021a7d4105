//! Interception task of `podid nmi`: puts the node's rules in place and repairs them, or withdraws them, while this node agent is the
//! one that serves.

use std::time::Duration;

use podid_intercept::{Keeper, Rules, withdraw};
use podid_nmi::FinalDrain;
use tokio::sync::watch::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// After a failed attempt to withdraw the rules.
const AGAIN: Duration = Duration::from_secs(5);

/// What is done with the rules.
pub enum Keeping {
    /// They are left as they are.
    Nothing,
    /// They are put in place and repaired.
    Rules(Keeper),
    /// They are removed, once whoever was intercepted has been served.
    Withdrawal(Rules, FinalDrain),
}

impl Keeping {
    /// Does it whenever it is this node agent that serves; tells whether what is wanted is so.
    pub async fn run(self, serving: Receiver<bool>, active: Sender<bool>) {
        match self {
            Self::Nothing => {}
            Self::Rules(keeper) => {
                let mut state = keeper.state();
                let follow = async {
                    while state.changed().await.is_ok() {
                        active.send_replace(state.borrow_and_update().in_place);
                    }
                };
                tokio::select! {
                    () = follow => {}
                    () = turns(serving, async |turn| keeper.run(turn).await) => {}
                }
            }
            Self::Withdrawal(rules, drain) => {
                turns(serving, async |turn| {
                    leave(&rules, &drain, &active, &turn).await;
                })
                .await;
            }
        }
    }
}

async fn turns(mut serving: Receiver<bool>, work: impl AsyncFn(CancellationToken)) {
    while serving.wait_for(|serving| *serving).await.is_ok() {
        let turn = CancellationToken::new();
        let over = async {
            // An error says that it has ended.
            let _ = serving.wait_for(|serving| !serving).await;
            turn.cancel();
        };
        tokio::join!(work(turn.clone()), over);
    }
}

async fn leave(rules: &Rules, drain: &FinalDrain, active: &Sender<bool>, turn: &CancellationToken) {
    tracing::warn!(
        "--interception=withdraw: podid leaves this node. New requests reach whoever else redirects them, or the node's own metadata service; those under way are answered"
    );
    loop {
        let outcome = withdraw(rules, async || drain.run().await, turn).await;
        if turn.is_cancelled() {
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
                    () = turn.cancelled() => return,
                    () = tokio::time::sleep(AGAIN) => {}
                }
            }
        }
    }
}
