//! A fake of Azure for tests with paused time: hosts, identities that do not exist, injected faults, and a journal of calls.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use podid_policy::ids::{ClientId, HostKey, ResourceId};
use tokio::time::{Instant, sleep};

use crate::host::cloud::{Fault, HostChange, HostClient, HostError, HostIdentities, MAX_CHANGE};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Get(HostKey),
    Patch(HostKey, HostChange),
    Identity(ResourceId),
}

#[derive(Default)]
pub(crate) struct AzureState {
    pub(crate) attached: BTreeMap<HostKey, BTreeSet<ResourceId>>,
    /// Identities that do not exist.
    pub(crate) missing: BTreeSet<ResourceId>,
    /// Whether a refusal names the missing identity.
    pub(crate) names: bool,
    /// Azure refuses these for another cause and names none.
    pub(crate) odd: BTreeSet<ResourceId>,
    /// Hosts of which Azure refuses every PATCH, and names no identity.
    pub(crate) invalid: BTreeSet<HostKey>,
    /// The next PATCHes fail with these and are not carried out.
    pub(crate) faults: VecDeque<HostError>,
    /// Each of the next PATCHes is carried out after this time, and its outcome cannot be read.
    pub(crate) unreadable: VecDeque<Duration>,
    /// The client ids of identities.
    pub(crate) clients: BTreeMap<ResourceId, ClientId>,
    /// The client ids under which identities are attached, where Azure shows them.
    pub(crate) shown: BTreeMap<(HostKey, ResourceId), ClientId>,
    /// Every call fails.
    pub(crate) down: bool,
    pub(crate) calls: Vec<(Instant, Call)>,
}

impl AzureState {
    fn carry_out(&mut self, host: &HostKey, change: &HostChange) {
        let there = self.attached.entry(host.clone()).or_default();
        there.extend(change.attach.iter().cloned());
        there.retain(|id| !change.detach.contains(id));
        for id in &change.detach {
            self.shown.remove(&(host.clone(), id.clone()));
        }
        for id in &change.attach {
            if let Some(client) = self.clients.get(id).cloned() {
                self.shown.insert((host.clone(), id.clone()), client);
            }
        }
    }
}

#[derive(Clone, Default)]
pub(crate) struct FakeAzure(pub(crate) Arc<Mutex<AzureState>>);

pub(crate) fn fault(fault: Fault, retry_after: Option<u64>) -> HostError {
    HostError {
        fault,
        text: format!("fault {}", fault.name()),
        identities: Vec::new(),
        retry_after: retry_after.map(Duration::from_secs),
        outcome_unknown: fault == Fault::Unavailable,
    }
}

impl FakeAzure {
    pub(crate) fn attached(&self, host: &HostKey) -> BTreeSet<ResourceId> {
        self.0
            .lock()
            .attached
            .get(host)
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn patches(&self) -> Vec<(Instant, HostKey, HostChange)> {
        let world = self.0.lock();
        let patches = world.calls.iter().filter_map(|(at, call)| match call {
            Call::Patch(host, change) => Some((*at, host.clone(), change.clone())),
            _ => None,
        });
        patches.collect()
    }

    pub(crate) fn gets(&self) -> usize {
        let world = self.0.lock();
        let gets = |(_, call): &&(Instant, Call)| matches!(call, Call::Get(_));
        world.calls.iter().filter(gets).count()
    }

    fn refusal(world: &AzureState, host: &HostKey, change: &HostChange) -> Option<HostError> {
        if world.invalid.contains(host) || change.attach.iter().any(|id| world.odd.contains(id)) {
            return Some(fault(Fault::Refused, None));
        }
        let bad: Vec<_> = change
            .attach
            .iter()
            .filter(|id| world.missing.contains(*id))
            .cloned()
            .collect();
        (!bad.is_empty()).then(|| HostError {
            fault: Fault::IdentityNotFound,
            text: "FailedIdentityOperation: an identity was not found".to_owned(),
            identities: if world.names { bad } else { Vec::new() },
            retry_after: None,
            outcome_unknown: false,
        })
    }
}

impl HostClient for FakeAzure {
    fn identities<'a>(
        &'a self,
        host: &'a HostKey,
    ) -> BoxFuture<'a, Result<HostIdentities, HostError>> {
        async move {
            sleep(Duration::from_millis(50)).await;
            let mut world = self.0.lock();
            world.calls.push((Instant::now(), Call::Get(host.clone())));
            if world.down {
                return Err(fault(Fault::Unavailable, None));
            }
            let there = world.attached.entry(host.clone()).or_default().clone();
            Ok(HostIdentities {
                system: false,
                user: there
                    .into_iter()
                    .map(|id| (id.clone(), world.shown.get(&(host.clone(), id)).cloned()))
                    .collect(),
                etag: Some("version".to_owned()),
            })
        }
        .boxed()
    }

    fn patch<'a>(
        &'a self,
        host: &'a HostKey,
        _seen: &'a HostIdentities,
        change: &'a HostChange,
    ) -> BoxFuture<'a, Result<Option<String>, HostError>> {
        async move {
            assert!(change.attach.len() + change.detach.len() <= MAX_CHANGE);
            let outcome = {
                let mut world = self.0.lock();
                let call = Call::Patch(host.clone(), change.clone());
                world.calls.push((Instant::now(), call));
                if world.down {
                    return Err(fault(Fault::Unavailable, None));
                }
                if let Some(error) = world.faults.pop_front() {
                    return Err(error);
                }
                if let Some(error) = Self::refusal(&world, host, change) {
                    return Err(error);
                }
                if let Some(time) = world.unreadable.pop_front() {
                    let (azure, host, change) = (self.0.clone(), host.clone(), change.clone());
                    tokio::spawn(async move {
                        sleep(time).await;
                        azure.lock().carry_out(&host, &change);
                    });
                    Err(fault(Fault::Unavailable, None))
                } else {
                    world.carry_out(host, change);
                    Ok(())
                }
            };
            sleep(Duration::from_secs(5)).await;
            outcome?;
            Ok(Some("version".to_owned()))
        }
        .boxed()
    }

    fn client_id<'a>(
        &'a self,
        id: &'a ResourceId,
    ) -> BoxFuture<'a, Result<Option<ClientId>, HostError>> {
        async move {
            sleep(Duration::from_millis(50)).await;
            let mut world = self.0.lock();
            world
                .calls
                .push((Instant::now(), Call::Identity(id.clone())));
            Ok(world.clients.get(id).cloned())
        }
        .boxed()
    }
}
