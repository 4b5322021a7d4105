//! The worker of one host. Hosts never wait for one another; what arrives while a change is under way goes into the next.

use podid_cluster::error_text::describe;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use podid_policy::desired::{Assignment, AssignmentKey, DesiredState};
use podid_policy::facts::ObjectKey;
use podid_policy::ids::{ClientId, HostKey, HostKind, ResourceId};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::host::cloud::{Fault, HostChange, HostError, HostIdentities};
use crate::host::{Host, Move, Owned, REPORT_AFTER};
use crate::index::{ClientIdAnswer, Index};
use crate::report::events;

/// What Azure told of an identity is believed this long.
const CLIENT_ID_ANSWER_TTL: Duration = Duration::from_secs(600);
/// At most this many pods of a refused identity are told by an Event.
const MAX_POD_EVENTS: usize = 10;

/// Looks after a host until nothing of podid's is left there, or shutdown.
pub(crate) async fn work(context: Arc<Context>, key: Arc<HostKey>, shutdown: CancellationToken) {
    let mut ready = context.ready.subscribe();
    let wake = match context.index.lock().hosts.get(&key) {
        Some(host) => host.wake.clone(),
        None => return,
    };
    let mut said = String::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            ready = ready.wait_for(|ready| *ready) => if ready.is_err() { return },
        }
        let Some(next) = next_move(&context, &key) else {
            return;
        };
        if let Move::Wait(until) = next {
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
            () = carry_out(&context, &key, next, &mut said) => {}
        }
    }
}

/// The next move; `None` when the host has just been forgotten.
fn next_move(context: &Context, key: &HostKey) -> Option<Move> {
    let mut index = context.index.lock();
    let Index {
        desired,
        hosts,
        quarantine,
        node_names,
        ..
    } = &mut *index;
    let host = hosts.get_mut(key)?;
    // A node's object may be gone while its pods run on; what they need may be here.
    for id in host.leaving() {
        let unseen = |a: &Assignment| !node_names.contains(&a.node);
        let needs = |a: &Assignment| unseen(a) && a.identity.resource_id() == Some(&id);
        if desired.unplaced().any(needs) {
            host.linger_anew(id, Instant::now());
        }
    }
    let client_id = |who: &AssignmentKey| client_id(desired, who);
    let next = host.next_move(Instant::now(), &context.config, quarantine, client_id);
    if next == Move::Retire {
        hosts.remove(key);
        return None;
    }
    Some(next)
}

fn client_id(desired: &DesiredState, who: &AssignmentKey) -> Option<ClientId> {
    Some(desired.get(who)?.identity.client_id.clone())
}

async fn carry_out(context: &Context, key: &HostKey, next: Move, said: &mut String) {
    match next {
        Move::Wait(_) | Move::Retire => {}
        Move::Look => look(context, key, said).await,
        Move::Verify(id) => verify(context, key, &id).await,
        Move::Record(owned) => record(context, key, owned, said).await,
        Move::Change(seen, change) => change_host(context, key, &seen, &change, said).await,
    }
}

async fn look(context: &Context, key: &HostKey, said: &mut String) {
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
        Err(error) => return failed(context, key, &error, None, said),
    };
    said.clear();
    let there: Vec<ResourceId> = shown.user.keys().cloned().collect();
    let mut drifted = Vec::new();
    with_host(context, key, |desired, host| {
        let of = |who: &AssignmentKey| client_id(desired, who);
        let looked = host.looked(Instant::now(), shown, of);
        drifted = looked.drifted;
        looked.touched
    });
    on_attached(context, key, &there);
    for id in &drifted {
        tracing::warn!(host = %key, identity = %id, "somebody else has detached the identity; it is attached again");
        context.metrics.drifted();
        let text = format!("somebody else has detached it from {key}; it is attached again");
        tell_users(context, key, id, "IdentityDetached", &text);
    }
}

/// Asks Azure which client id is right, unless it has told lately.
async fn verify(context: &Context, key: &HostKey, id: &ResourceId) {
    let lately = |index: &Index| {
        let truth = index.client_id_answers.get(id)?;
        (truth.asked.elapsed() < CLIENT_ID_ANSWER_TTL).then_some(())
    };
    if lately(&context.index.lock()).is_none() {
        let started = Instant::now();
        let told = context.host_client.client_id(id).await;
        let fault = told.as_ref().err().map(|error| error.fault);
        context
            .metrics
            .cloud("identity_get", started.elapsed(), fault);
        let asked = Instant::now();
        let truth = ClientIdAnswer { asked, told };
        context
            .index
            .lock()
            .client_id_answers
            .insert(id.clone(), truth);
    }
    let mut index = context.index.lock();
    let Index {
        desired,
        hosts,
        client_id_answers,
        ..
    } = &mut *index;
    let truth = client_id_answers
        .get(id)
        .and_then(|truth| truth.told.as_ref().ok());
    let users = match hosts.get_mut(key) {
        Some(host) => host.verified(id, truth),
        None => return,
    };
    let identities = identities_of(desired, &users);
    drop(index);
    tracing::info!(host = %key, identity = %id, "the identity's client id on the host is not that of its AzureIdentity; see the condition of the AzureIdentity");
    context.recheck_conditions(identities);
}

async fn record(context: &Context, key: &HostKey, owned: Owned, said: &mut String) {
    match context.records.store(key, &owned).await {
        Ok(None) => with_host(context, key, |_, host| {
            host.recorded(owned);
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
            failed(context, key, &error, None, said);
        }
    }
}

async fn change_host(
    context: &Context,
    key: &HostKey,
    seen: &HostIdentities,
    change: &HostChange,
    said: &mut String,
) {
    let started = Instant::now();
    let done = context.host_client.patch(key, seen, change).await;
    let operation = match key.kind() {
        HostKind::VirtualMachine => "vm_update",
        HostKind::ScaleSet => "vmss_update",
    };
    let took = started.elapsed();
    let fault = done.as_ref().err().map(|error| error.fault);
    context.metrics.cloud(operation, took, fault);
    match done {
        Ok(version) => {
            said.clear();
            context.metrics.cycle(took);
            tracing::info!(host = %key, attached = names(&change.attach), detached = names(&change.detach), "host changed");
            with_host(context, key, |_, host| host.changed(change, version));
            on_attached(context, key, &change.attach);
        }
        Err(error) => failed(context, key, &error, Some(change), said),
    }
}

/// Tells a host what happened and passes on whose objects and conditions may have to change.
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
    let touched = tell(desired, host);
    let mut doubtful = identities_of(desired, &touched);
    doubtful.retain(|identity| !index.is_ready(identity));
    drop(index);
    context.recheck_conditions(doubtful);
    context.enqueue(touched);
}

fn identities_of(desired: &DesiredState, users: &BTreeSet<AssignmentKey>) -> BTreeSet<ObjectKey> {
    let assignments = users.iter().filter_map(|who| desired.get(who));
    assignments.map(|a| a.identity.key.clone()).collect()
}

/// These are on the host: whoever waits for one that was refused there may go on.
fn on_attached(context: &Context, key: &HostKey, ids: &[ResourceId]) {
    let mut index = context.index.lock();
    for id in ids {
        if index.quarantine.on_attached(id, key) {
            index.wake_hosts_of(id);
        }
    }
}

fn failed(
    context: &Context,
    key: &HostKey,
    error: &HostError,
    change: Option<&HostChange>,
    said: &mut String,
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
    let failure = host.failed(Instant::now(), &context.config, error, change, quarantine);
    let lasting = host
        .trouble
        .as_ref()
        .is_some_and(|t| t.attempts == REPORT_AFTER);
    let doubtful = identities_of(desired, &failure.touched);
    drop(index);
    context.recheck_conditions(doubtful);
    for id in &failure.apart {
        tracing::warn!(host = %key, identity = %id, reason = %error.text, "Azure refuses to attach the identity; it is tried again, alone, ever less often");
        tell_users(context, key, id, error.fault.name(), &error.text);
    }
    if failure.apart.is_empty() {
        if *said != error.text {
            tracing::warn!(host = %key, fault = error.fault.name(), reason = %error.text, "the host's identities could not be read or changed; retried");
            said.clone_from(&error.text);
        }
        if lasting {
            tell_pods(context, key, error);
        }
    }
    context.enqueue(failure.touched);
}

/// Tells people about an identity on a host: Events on it and on its pods.
fn tell_users(context: &Context, key: &HostKey, id: &ResourceId, reason: &'static str, text: &str) {
    let mut identities = BTreeSet::new();
    let mut told = Vec::new();
    {
        let index = context.index.lock();
        let users = index.hosts.get(key).and_then(|host| host.wanted.get(id));
        let users = users.into_iter().flatten();
        for assignment in users.filter_map(|who| index.desired.get(who)) {
            let identity = &assignment.identity.key;
            let message = format!("{identity} on {key}: {text}");
            if identities.insert(identity.clone()) {
                told.push(events::of_identity(
                    &index,
                    identity,
                    reason,
                    message.clone(),
                ));
            }
            if told.len() < MAX_POD_EVENTS {
                told.push(events::of_pod(assignment, message));
            }
        }
    }
    for note in told {
        context.record_event(note);
    }
    context.recheck_conditions(identities);
}

/// Tells pods that wait for a host that it cannot be read or changed.
fn tell_pods(context: &Context, key: &HostKey, error: &HostError) {
    let told: Vec<_> = {
        let index = context.index.lock();
        let Some(host) = index.hosts.get(key) else {
            return;
        };
        let missing = |(id, _): &(&ResourceId, _)| host.has(id) != Some(true);
        let waiting = host.wanted.iter().filter(missing);
        let users = waiting.flat_map(|(_, users)| users);
        let assignments = users.filter_map(|who| index.desired.get(who));
        assignments
            .take(MAX_POD_EVENTS)
            .map(|pod| events::of_pod(pod, format!("{key}: {}", error.text)))
            .collect()
    };
    told.into_iter().for_each(|note| context.record_event(note));
}

fn names(ids: &[ResourceId]) -> String {
    let names: Vec<&str> = ids.iter().map(ResourceId::name).collect();
    names.join(", ")
}
