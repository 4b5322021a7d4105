//! The worker of one host. Hosts never wait for one another; what arrives while a change is under way goes into the next.

use std::collections::BTreeSet;
use std::sync::Arc;

use podid_policy::desired::AssignmentKey;
use podid_policy::ids::{HostKey, HostKind, ResourceId};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::controller::State;
use crate::host::{Host, Move, Owned};
use crate::hosts::{Fault, HostChange, HostError, OnHost};
use crate::notes;

/// At most this many pods of a refused identity are told by an Event.
const TOLD_PODS: usize = 10;

/// Looks after a host until nothing of podid's is left there, or shutdown.
pub(crate) async fn work(context: Arc<Context>, key: Arc<HostKey>, shutdown: CancellationToken) {
    let mut ready = context.ready.subscribe();
    let wake = match context.state.lock().hosts.get(&key) {
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
    let mut state = context.state.lock();
    let State { desired, hosts, .. } = &mut *state;
    let host = hosts.get_mut(key)?;
    let client_id = |who: &AssignmentKey| Some(desired.get(who)?.identity.client_id.clone());
    let next = host.next_move(Instant::now(), &context.config, client_id);
    if next == Move::Retire {
        hosts.remove(key);
        return None;
    }
    Some(next)
}

async fn carry_out(context: &Context, key: &HostKey, next: Move, said: &mut String) {
    match next {
        Move::Wait(_) | Move::Retire => {}
        Move::Look => look(context, key, said).await,
        Move::Record(owned) => record(context, key, owned, said).await,
        Move::Change(seen, change) => change_host(context, key, &seen, &change, said).await,
    }
}

async fn look(context: &Context, key: &HostKey, said: &mut String) {
    let started = Instant::now();
    let shown = context.azure.identities(key).await;
    let operation = match key.kind() {
        HostKind::VirtualMachine => "vm_get",
        HostKind::ScaleSet => "vmss_get",
    };
    let took = started.elapsed();
    context.metrics.cloud(operation, took, shown.is_ok());
    match shown {
        Ok(shown) => {
            said.clear();
            with_host(context, key, |host| host.looked(Instant::now(), shown));
        }
        Err(error) => failed(context, key, &error, None, said),
    }
}

async fn record(context: &Context, key: &HostKey, owned: Owned, said: &mut String) {
    match context.records.store(key, &owned).await {
        Ok(()) => with_host(context, key, |host| {
            host.recorded(owned);
            BTreeSet::new()
        }),
        Err(error) => {
            let text = format!(
                "what podid attaches cannot be recorded: {error}; check that RBAC allows get, list, create, patch and delete of configmaps in namespace {}",
                context.config.namespace
            );
            let error = HostError {
                fault: Fault::Unavailable,
                text,
                identities: Vec::new(),
                retry_after: None,
            };
            failed(context, key, &error, None, said);
        }
    }
}

async fn change_host(
    context: &Context,
    key: &HostKey,
    seen: &OnHost,
    change: &HostChange,
    said: &mut String,
) {
    let started = Instant::now();
    let done = context.azure.patch(key, seen, change).await;
    let operation = match key.kind() {
        HostKind::VirtualMachine => "vm_update",
        HostKind::ScaleSet => "vmss_update",
    };
    let took = started.elapsed();
    context.metrics.cloud(operation, took, done.is_ok());
    match done {
        Ok(()) => {
            said.clear();
            context.metrics.cycle(took);
            tracing::info!(host = %key, attached = names(&change.attach), detached = names(&change.detach), "host changed");
            with_host(context, key, |host| host.changed(change));
        }
        Err(error) => failed(context, key, &error, Some(change), said),
    }
}

/// Tells a host what happened and passes on whose objects and conditions may have to change.
fn with_host(
    context: &Context,
    key: &HostKey,
    tell: impl FnOnce(&mut Host) -> BTreeSet<AssignmentKey>,
) {
    let (touched, doubtful) = {
        let mut state = context.state.lock();
        let Some(host) = state.hosts.get_mut(key) else {
            return;
        };
        let touched = tell(host);
        let doubtful = touched
            .iter()
            .filter_map(|who| Some(state.desired.get(who)?.identity.key.clone()))
            .filter(|identity| state.is_refused(identity))
            .collect();
        (touched, doubtful)
    };
    context.doubt_conditions(doubtful);
    context.look_at(touched);
}

fn failed(
    context: &Context,
    key: &HostKey,
    error: &HostError,
    change: Option<&HostChange>,
    said: &mut String,
) {
    let mut apart = Vec::new();
    with_host(context, key, |host| {
        let now = Instant::now();
        let (refused, touched) = host.failed(now, &context.config, error, change);
        apart = refused;
        touched
    });
    for id in &apart {
        tracing::warn!(host = %key, identity = %id, reason = %error.text, "Azure refuses to attach the identity; it is tried again, alone, ever less often");
        tell_refused(context, key, id, &error.text);
    }
    if apart.is_empty() && *said != error.text {
        tracing::warn!(host = %key, fault = error.fault.name(), reason = %error.text, "the host's identities could not be read or changed; retried");
        said.clone_from(&error.text);
    }
}

/// Tells people about a refused identity: Events on it and on its pods, and its condition.
fn tell_refused(context: &Context, key: &HostKey, id: &ResourceId, text: &str) {
    let mut identities = BTreeSet::new();
    let mut told = Vec::new();
    {
        let state = context.state.lock();
        let users = state.hosts.get(key).and_then(|host| host.wanted.get(id));
        let users = users.into_iter().flatten();
        for assignment in users.filter_map(|who| state.desired.get(who)) {
            let identity = &assignment.identity.key;
            let message = format!("{identity} cannot be attached to {key}: {text}");
            if identities.insert(identity.clone()) {
                told.push(notes::of_identity(&state, identity, message.clone()));
            }
            if told.len() < TOLD_PODS {
                told.push(notes::of_pod(assignment, message));
            }
        }
    }
    for note in told {
        context.note(note);
    }
    context.doubt_conditions(identities);
}

fn names(ids: &[ResourceId]) -> String {
    let names: Vec<&str> = ids.iter().map(ResourceId::name).collect();
    names.join(", ")
}
