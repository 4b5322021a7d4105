//! The worker of one host: a task that asks for the next action, carries it out and reports the outcome.
//!
//! [`crate::Mic::run`] starts one for every host that the index names; it ends when the host is retired. Hosts never wait for one
//! another, and what changes while a PATCH is under way is coalesced into the next one. The lock of the index is never held across
//! a call to Azure or the API server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use podid_cluster::error_text::describe;
use podid_policy::desired::{AssignmentKey, DesiredState};
use podid_policy::facts::ObjectKey;
use podid_policy::ids::{HostKey, HostKind, ResourceId};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::host::cloud::{Fault, HostChange, HostError, HostIdentities};
use crate::host::{Action, Host, Owned, REPORT_AFTER};
use crate::index::{ClientIdAnswer, Index, client_id_of};
use crate::report::events;

/// Azure's answer about a client id is used for 10 minutes: the question comes up again with every read of every host.
const CLIENT_ID_ANSWER_TTL: Duration = Duration::from_secs(600);
/// Events about one identity or host go to at most 10 pods, so that thousands of pods do not flood the API server.
const MAX_POD_EVENTS: usize = 10;

/// Looks after a host until it is retired, or until shutdown.
pub(crate) async fn work(context: Arc<Context>, key: Arc<HostKey>, shutdown: CancellationToken) {
    let mut ready = context.ready.subscribe();
    let wake = match context.index.lock().hosts.get(&key) {
        Some(host) => host.wake.clone(),
        None => return,
    };
    // The error that was logged last, so that an outage is logged once and not at every attempt.
    let mut last_error = String::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            ready = ready.wait_for(|ready| *ready) => if ready.is_err() { return },
        }
        let next = {
            let mut index = context.index.lock();
            index.next_action(&key, Instant::now(), &context.config)
        };
        let Some(next) = next else {
            return;
        };
        if let Action::Wait(until) = next {
            let due = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = wake.notified() => {}
                () = due => {}
                _ = ready.wait_for(|ready| !*ready) => {}
            }
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = carry_out(&context, &key, next, &mut last_error) => {}
        }
    }
}

async fn carry_out(context: &Context, key: &HostKey, action: Action, last_error: &mut String) {
    match action {
        Action::Wait(_) | Action::Retire => {}
        Action::Read => read(context, key, last_error).await,
        Action::Verify(id) => verify(context, key, &id).await,
        Action::Record(owned) => record(context, key, owned, last_error).await,
        Action::Patch(seen, change) => patch(context, key, &seen, &change, last_error).await,
    }
}

/// Asks Azure which identities are on the host. Drift is logged, counted and reported.
async fn read(context: &Context, key: &HostKey, last_error: &mut String) {
    let started = Instant::now();
    let shown = context.host_client.identities(key).await;
    let operation = match key.kind() {
        HostKind::VirtualMachine => "vm_get",
        HostKind::ScaleSet => "vmss_get",
    };
    let fault = shown.as_ref().err().map(|error| error.fault);
    context.metrics.cloud(operation, started.elapsed(), fault);
    let shown = match shown {
        Ok(shown) => shown,
        Err(error) => return on_failed(context, key, &error, None, last_error),
    };
    last_error.clear();
    let there: Vec<ResourceId> = shown.user.keys().cloned().collect();
    let mut drifted = Vec::new();
    with_host(context, key, |desired, host| {
        let client_id = |who: &AssignmentKey| client_id_of(desired, who);
        let outcome = host.on_read(Instant::now(), shown, client_id);
        drifted = outcome.drifted;
        outcome.affected
    });
    on_attached(context, key, &there);
    for id in &drifted {
        tracing::warn!(host = %key, identity = %id, "somebody else has detached the identity; it is attached again");
        context.metrics.drifted();
        let text = format!("somebody else has detached it from {key}; it is attached again");
        report_identity(context, key, id, "IdentityDetached", &text);
    }
}

/// Asks Azure which client id is right, unless it has answered lately.
async fn verify(context: &Context, key: &HostKey, id: &ResourceId) {
    let is_answered = |index: &Index| {
        let answer = index.client_id_answers.get(id);
        answer.is_some_and(|answer| answer.asked_at.elapsed() < CLIENT_ID_ANSWER_TTL)
    };
    let answered = is_answered(&context.index.lock());
    if !answered {
        let started = Instant::now();
        let answer = context.host_client.client_id(id).await;
        let fault = answer.as_ref().err().map(|error| error.fault);
        let took = started.elapsed();
        context.metrics.cloud("identity_get", took, fault);
        let asked_at = Instant::now();
        let answer = ClientIdAnswer { asked_at, answer };
        let mut index = context.index.lock();
        index.client_id_answers.insert(id.clone(), answer);
    }
    let mut index = context.index.lock();
    let Index {
        desired,
        hosts,
        client_id_answers,
        ..
    } = &mut *index;
    let answer = client_id_answers.get(id);
    let answer = answer.and_then(|answer| answer.answer.as_ref().ok());
    let users = match hosts.get_mut(key) {
        Some(host) => host.on_verified(id, answer),
        None => return,
    };
    let identities = identities_of(desired, &users);
    drop(index);
    tracing::info!(host = %key, identity = %id, "the identity's client id on the host is not that of its AzureIdentity; see the condition of the AzureIdentity");
    context.recheck_conditions(identities);
}

/// Writes the ownership record.
async fn record(context: &Context, key: &HostKey, owned: Owned, last_error: &mut String) {
    match context.records.store(key, &owned).await {
        Ok(None) => with_host(context, key, |_, host| {
            host.on_recorded(owned);
            BTreeSet::new()
        }),
        Ok(Some(theirs)) => {
            tracing::info!(host = %key, "another leader has recorded what it attached; that counts too");
            with_host(context, key, |_, host| {
                host.adopt_foreign_record(theirs);
                BTreeSet::new()
            });
        }
        Err(error) => {
            let text = format!(
                "what podid attaches cannot be recorded: {}; check that RBAC allows get, list, create, patch and delete of configmaps in namespace {}",
                describe(&error),
                context.config.namespace
            );
            let error = HostError {
                fault: Fault::Unavailable,
                text,
                identities: Vec::new(),
                retry_after: None,
                outcome_unknown: false,
            };
            on_failed(context, key, &error, None, last_error);
        }
    }
}

/// Attaches and detaches.
async fn patch(
    context: &Context,
    key: &HostKey,
    seen: &HostIdentities,
    change: &HostChange,
    last_error: &mut String,
) {
    let started = Instant::now();
    let patched = context.host_client.patch(key, seen, change).await;
    let operation = match key.kind() {
        HostKind::VirtualMachine => "vm_update",
        HostKind::ScaleSet => "vmss_update",
    };
    let took = started.elapsed();
    let fault = patched.as_ref().err().map(|error| error.fault);
    context.metrics.cloud(operation, took, fault);
    match patched {
        Ok(version) => {
            last_error.clear();
            context.metrics.cycle(took);
            tracing::info!(host = %key, attached = names(&change.attach), detached = names(&change.detach), "host changed");
            with_host(context, key, |_, host| host.on_patched(change, version));
            on_attached(context, key, &change.attach);
        }
        Err(error) => on_failed(context, key, &error, Some(change), last_error),
    }
}

/// Tells a host about an outcome, and passes on which objects and conditions may have to change.
fn with_host(
    context: &Context,
    key: &HostKey,
    tell: impl FnOnce(&DesiredState, &mut Host) -> BTreeSet<AssignmentKey>,
) {
    let mut index = context.index.lock();
    let Index { desired, hosts, .. } = &mut *index;
    let Some(host) = hosts.get_mut(key) else {
        return;
    };
    let affected = tell(desired, host);
    let mut not_ready = identities_of(desired, &affected);
    not_ready.retain(|identity| !index.is_ready(identity));
    drop(index);
    context.recheck_conditions(not_ready);
    context.enqueue(affected);
}

fn identities_of(desired: &DesiredState, users: &BTreeSet<AssignmentKey>) -> BTreeSet<ObjectKey> {
    let assignments = users.iter().filter_map(|who| desired.get(who));
    assignments.map(|a| a.identity.key.clone()).collect()
}

/// These identities are on the host. Where one was refused there before, its quarantine ends and all hosts that need it go on.
fn on_attached(context: &Context, key: &HostKey, ids: &[ResourceId]) {
    let mut index = context.index.lock();
    for id in ids {
        if index.quarantine.on_attached(id, key) {
            index.wake_hosts_of(id);
        }
    }
}

fn on_failed(
    context: &Context,
    key: &HostKey,
    error: &HostError,
    change: Option<&HostChange>,
    last_error: &mut String,
) {
    let mut index = context.index.lock();
    let Index {
        desired,
        hosts,
        quarantine,
        ..
    } = &mut *index;
    let Some(host) = hosts.get_mut(key) else {
        return;
    };
    let failure = host.on_failed(Instant::now(), &context.config, error, change, quarantine);
    let trouble = host.trouble.as_ref().filter(|_| failure.refused.is_empty());
    let trouble = trouble.map(|t| (t.fault, t.text.clone(), t.attempts == REPORT_AFTER));
    let identities = identities_of(desired, &failure.affected);
    drop(index);
    context.recheck_conditions(identities);
    for id in &failure.refused {
        tracing::warn!(host = %key, identity = %id, reason = %error.text, "Azure refuses to attach the identity; it is tried again, alone, ever less often");
        report_identity(context, key, id, error.fault.name(), &error.text);
    }
    if let Some((fault, text, must_report)) = trouble {
        if *last_error != text {
            tracing::warn!(host = %key, fault = fault.name(), reason = %text, "the host's identities could not be read or changed; retried");
            last_error.clone_from(&text);
        }
        if must_report {
            report_host(context, key, &text);
        }
    }
    context.enqueue(failure.affected);
}

/// Records Events about an identity on a host: on its AzureIdentities and on its pods.
fn report_identity(
    context: &Context,
    key: &HostKey,
    id: &ResourceId,
    reason: &'static str,
    text: &str,
) {
    let mut identities = BTreeSet::new();
    let mut events = Vec::new();
    let mut pods = 0;
    {
        let index = context.index.lock();
        let host = index.hosts.get(key);
        let users = host.into_iter().flat_map(|host| host.users_of(id));
        for assignment in users.filter_map(|who| index.desired.get(who)) {
            let identity = &assignment.identity.key;
            let message = format!("{identity} on {key}: {text}");
            if identities.insert(identity.clone()) {
                let event = events::of_identity(&index, identity, reason, message.clone());
                events.push(event);
            }
            if pods < MAX_POD_EVENTS {
                pods += 1;
                events.push(events::of_pod(assignment, message));
            }
        }
    }
    for event in events {
        context.record_event(event);
    }
    context.recheck_conditions(identities);
}

/// Records Events on pods that wait for a host: it cannot be read or changed.
fn report_host(context: &Context, key: &HostKey, text: &str) {
    let events: Vec<_> = {
        let index = context.index.lock();
        let Some(host) = index.hosts.get(key) else {
            return;
        };
        let waiting = host.waiting_users();
        let waiting = waiting.filter_map(|who| index.desired.get(who));
        waiting
            .take(MAX_POD_EVENTS)
            .map(|pod| events::of_pod(pod, format!("{key}: {text}")))
            .collect()
    };
    for event in events {
        context.record_event(event);
    }
}

fn names(ids: &[ResourceId]) -> String {
    let names: Vec<&str> = ids.iter().map(ResourceId::name).collect();
    names.join(", ")
}
