//! Keeper of federated identities: the task that creates and deletes their service accounts and asks the broker about them.
//!
//! [`crate::Mic::run`] starts [`keep`]. It makes no call before the first federated identity is seen, and acts while this replica leads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use podid_cluster::watch::WatchStatus;
use podid_policy::facts::ObjectKey;
use podid_policy::federation::NAMESPACE;
use tokio::sync::watch::{self, Receiver};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::account_calls;
use super::checks::{BROKER_UNAVAILABLE, NO_ACCOUNT};
use crate::context::Context;

/// A service account that could not be created or deleted is tried again after 10 seconds.
const ACCOUNT_RETRY: Duration = Duration::from_secs(10);
/// How many identities the broker is asked about at once: few, so that pods' requests to it are not held up.
const MAX_CHECKS: usize = 8;

/// Keeps service accounts and checks until shutdown.
pub(crate) async fn keep(context: Arc<Context>, shutdown: CancellationToken) {
    let work = async {
        while context.index.lock().checks.identities().next().is_none() {
            context.federation_changed.notified().await;
        }
        let (sender, status) = watch::channel(WatchStatus::default());
        let watch = account_calls::watch(context.clone(), sender, shutdown.clone());
        tokio::join!(watch, act(&context, status));
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

async fn act(context: &Context, mut status: Receiver<WatchStatus>) {
    let mut ready = context.ready.subscribe();
    let mut last_error = String::new();
    while ready.wait_for(|ready| *ready).await.is_ok() {
        let seen = status.borrow_and_update().clone();
        let has_failed = keep_accounts(context, seen, &mut last_error).await;
        let retry = has_failed.then(|| Instant::now() + ACCOUNT_RETRY);
        check(context).await;
        let due = until_due(context, retry);
        tokio::select! {
            () = context.federation_changed.notified() => {}
            Ok(()) = status.changed() => {}
            () = due => {}
        }
    }
}

/// Waits until the next check is due, or until then.
async fn until_due(context: &Context, retry: Option<Instant>) {
    let next = {
        let index = context.index.lock();
        let can_check = |key: &_| context.broker.is_some() && index.accounts.has(key);
        index.checks.next_due(can_check)
    };
    match [next, retry].into_iter().flatten().min() {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Brings the service accounts into order. Gives whether that must be tried again.
async fn keep_accounts(context: &Context, watch: WatchStatus, last_error: &mut String) -> bool {
    if !watch.synced {
        if let Some(trouble) = watch.trouble {
            let text = format!(
                "the service accounts in the namespace {NAMESPACE} cannot be listed: {trouble}; check that the namespace and mic's Role in it are installed"
            );
            let all = identities(context).into_iter();
            tell(context, NO_ACCOUNT, all.map(|key| (key, text.clone())));
        }
        return false;
    }
    let failed = account_calls::reconcile(context).await;
    match failed.first() {
        Some((_, text)) if text != last_error => {
            tracing::warn!(reason = %text, "service accounts of federated identities are not in order; retried");
            last_error.clone_from(text);
        }
        Some(_) => {}
        None => last_error.clear(),
    }
    let has_failed = !failed.is_empty();
    let blocked = failed
        .into_iter()
        .filter_map(|(key, text)| Some((key?, text)));
    tell(context, NO_ACCOUNT, blocked);
    has_failed
}

/// Asks the broker about all identities that are due and have a service account.
async fn check(context: &Context) {
    let Some(broker) = &context.broker else {
        let text = "podid mic was given no --broker-url; install podid broker (broker.enabled=true of the chart, podid manifests --broker)";
        let all = identities(context).into_iter();
        let blocked = all.map(|key| (key, text.to_owned()));
        tell(context, BROKER_UNAVAILABLE, blocked);
        return;
    };
    let due = {
        let index = context.index.lock();
        index
            .checks
            .due(Instant::now(), |key| index.accounts.has(key))
    };
    let asked = futures::stream::iter(due).for_each_concurrent(MAX_CHECKS, async |facts| {
        let result = broker(facts.key.clone()).await;
        if let Err(error) = &result {
            tracing::info!(identity = %facts.key, reason = %error, "tokens of the federated identity cannot be had");
        }
        {
            let checks = &mut context.index.lock().checks;
            checks.on_checked(&facts, result, Instant::now());
        }
        context.recheck_conditions(BTreeSet::from([facts.key]));
    });
    asked.await;
}

fn identities(context: &Context) -> Vec<ObjectKey> {
    let index = context.index.lock();
    index.checks.identities().cloned().collect()
}

/// The broker cannot be asked about these identities.
fn tell(context: &Context, reason: &str, blocked: impl Iterator<Item = (ObjectKey, String)>) {
    let mut told = BTreeSet::new();
    for (identity, text) in blocked {
        let checks = &mut context.index.lock().checks;
        checks.on_blocked(&identity, reason, &text);
        told.insert(identity);
    }
    context.recheck_conditions(told);
}
