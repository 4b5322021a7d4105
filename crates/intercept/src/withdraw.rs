//! Graceful withdrawal of the interception rules: `podid nmi --interception=withdraw` leaves a node without cutting connections.
//!
//! ```text
//! rules in place ──► new connections pass NMI by, its own are still delivered ──(`ending` returns)──► no rules
//! ```

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{Backend, Error, Keeper, Rules};

/// Seconds between looks, short because a relieved NMI may put its rules back once more and the kernel does not report all changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Lets new connections pass NMI by, delivers those that NMI has until `ending` returns, and then removes every rule. Returns what
/// was removed; where no rule is in place, it returns nothing, at once.
///
/// At shutdown it returns early. The rules that are in place then let new connections pass, and the next call removes them.
///
/// # Errors
/// When it cannot be found out what is in place, or be removed. Call again.
pub async fn withdraw(
    rules: &Rules,
    ending: impl AsyncFnOnce(),
    shutdown: &CancellationToken,
) -> Result<Vec<String>, Error> {
    let rules = Rules {
        withdrawing: true,
        ..rules.clone()
    };
    let Some(backend) = Backend::in_place().await? else {
        return Backend::cleanup(&rules).await;
    };
    let over = shutdown.child_token();
    let keeper = Keeper::new(backend, rules.clone(), LOOK_INTERVAL);
    let mut state = keeper.state();
    let ending = async {
        // The keeper, which holds the other end, lives longer.
        let _ = state.wait_for(|state| state.in_place).await;
        ending().await;
        over.cancel();
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(keeper.run(over.clone()), ending) } => {}
        () = shutdown.cancelled() => {}
    }
    if shutdown.is_cancelled() {
        return Ok(Vec::new());
    }
    Backend::cleanup(&rules).await
}
