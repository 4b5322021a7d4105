//! Leaving a node without cutting anybody off.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Backend, Error, Keeper, Rules};

/// A node agent that has just been relieved may put its rules back once more; that is undone this soon where the kernel does not tell.
const SOON: Duration = Duration::from_secs(1);

/// Lets new connections pass NMI by, hands it those that it has for as long as `ending` takes, and removes every rule then. Gives
/// what was removed; nothing, at once, where no rule is in place.
///
/// At shutdown it returns early. What is in place then lets new connections pass, and is removed by whoever calls this next.
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
    let found = Backend::in_place().await?;
    if found.is_empty() {
        return Backend::cleanup(&rules).await;
    }
    let over = shutdown.child_token();
    let (mut keeping, mut states) = (JoinSet::new(), Vec::new());
    for backend in found {
        let keeper = Keeper::new(backend, rules.clone(), SOON);
        states.push(keeper.state());
        let over = over.clone();
        keeping.spawn(async move { keeper.run(over).await });
    }
    let ending = async {
        for state in &mut states {
            // An error says that it is over.
            let _ = state.wait_for(|state| state.in_place).await;
        }
        if !over.is_cancelled() {
            ending().await;
        }
    };
    tokio::select! {
        () = over.cancelled() => {}
        () = ending => over.cancel(),
    }
    while keeping.join_next().await.is_some() {}
    if shutdown.is_cancelled() {
        return Ok(Vec::new());
    }
    Backend::cleanup(&rules).await
}
