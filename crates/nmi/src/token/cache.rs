//! Tokens, fetched once for all who wait, renewed before they expire, and dropped with what granted them.

mod cached_token;
mod slot;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::FutureExt as _;
use jiff::Timestamp;
use parking_lot::Mutex;
use podid_policy::facts::{IdentityFacts, ObjectKey};
use tokio_util::task::TaskTracker;

pub use cached_token::CachedToken;
use slot::{Flight, Outcome, Slot, UnderWay};

use crate::token::source::{SourceError, TokenSource};

/// Slots for resources that pods make up are bounded by this, per identity.
const MAX_RESOURCES: usize = 64;
/// After a fetch its failure, or for those who bypass the cache its success, holds this long, so that asking again and again
/// does not reach the issuer.
const HOLD: Duration = Duration::from_secs(1);
/// A failure is held no longer than this, whatever the issuer asks for.
const MAX_HOLD: Duration = Duration::from_secs(30);
/// Renewals of one token are at least this far apart.
const BREATH: Duration = Duration::from_secs(30);

/// How a token was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// From memory.
    Hit,
    /// Fetched for this request or together with others.
    Fetched,
}

/// Tells the time; tests tell another.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// One identity's tokens, while the identity stays as it is.
struct Tokens {
    identity: Arc<IdentityFacts>,
    resources: HashMap<Box<str>, Arc<Slot>>,
}

/// The cache, round a source.
pub struct Cache<S> {
    source: Arc<S>,
    /// Copied when a slot is added or dropped, which is rare; read without a lock.
    slots: ArcSwap<HashMap<ObjectKey, Arc<Tokens>>>,
    change: Mutex<()>,
    floor: Duration,
    clock: Clock,
    /// Fetches outlive the client that caused them: others may wait for the same.
    fetches: TaskTracker,
}

impl<S: TokenSource> Cache<S> {
    /// Tokens with less life than `floor` are not served.
    pub fn new(source: Arc<S>, floor: Duration, clock: Clock) -> Self {
        Self {
            source,
            slots: ArcSwap::default(),
            change: Mutex::new(()),
            floor,
            clock,
            fetches: TaskTracker::new(),
        }
    }

    /// A token of `identity` for `resource`; a new one with `fresh`.
    ///
    /// # Errors
    /// The source's, for all who waited for it.
    pub async fn get(
        &self,
        identity: &Arc<IdentityFacts>,
        resource: &str,
        fresh: bool,
    ) -> Result<(Arc<CachedToken>, Served), Arc<SourceError>> {
        let slot = self.slot(identity, resource);
        let now = (self.clock)();
        let fresh = fresh
            && slot
                .held(|last| last.error.is_none().then_some(()))
                .is_none();
        if !fresh
            && let Some(token) = slot.current.load_full()
            && token.token.remaining(now) >= self.floor
        {
            if token.refresh_on <= now {
                self.renew(&slot, identity, resource);
            }
            return Ok((token, Served::Hit));
        }
        if let Some(error) = slot.held(|last| last.error.clone()) {
            return Err(error);
        }
        let token = self.flight(&slot, identity, resource).await?;
        Ok((token, Served::Fetched))
    }

    /// Drops the tokens of every identity that is not in `granted` as it is now.
    pub fn retain(&self, granted: &HashMap<ObjectKey, Arc<IdentityFacts>>) {
        self.forget(|identity| granted.get(&identity.key).map(|now| &**now) != Some(identity));
    }

    /// Drops the tokens of these identities, and those that are being fetched for them when they come.
    pub fn forget(&self, those: impl Fn(&IdentityFacts) -> bool) {
        if !self
            .slots
            .load()
            .values()
            .any(|tokens| those(&tokens.identity))
        {
            return;
        }
        let _change = self.change.lock();
        let mut slots = HashMap::clone(&self.slots.load());
        slots.retain(|_, tokens| !those(&tokens.identity));
        self.slots.store(Arc::new(slots));
    }

    /// How many tokens are held.
    pub fn len(&self) -> usize {
        self.slots
            .load()
            .values()
            .map(|tokens| tokens.resources.len())
            .sum()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn slot(&self, identity: &Arc<IdentityFacts>, resource: &str) -> Arc<Slot> {
        let found = |slots: &HashMap<ObjectKey, Arc<Tokens>>| {
            let tokens = slots.get(&identity.key)?;
            let same = Arc::ptr_eq(&tokens.identity, identity) || tokens.identity == *identity;
            tokens.resources.get(resource).filter(|_| same).cloned()
        };
        if let Some(slot) = found(&self.slots.load()) {
            return slot;
        }
        let _change = self.change.lock();
        let mut slots = HashMap::clone(&self.slots.load());
        if let Some(slot) = found(&slots) {
            return slot;
        }
        let mut resources = match slots.get(&identity.key) {
            Some(tokens) if tokens.identity == *identity => tokens.resources.clone(),
            _ => HashMap::new(),
        };
        if resources.len() >= MAX_RESOURCES {
            // For what a pod made up there is no token: other pods with the same identity keep theirs.
            resources.retain(|_, slot| slot.current.load().is_some());
        }
        if resources.len() >= MAX_RESOURCES {
            resources.clear();
        }
        let slot = Arc::new(Slot::default());
        resources.insert(resource.into(), Arc::clone(&slot));
        let tokens = Tokens {
            identity: Arc::clone(identity),
            resources,
        };
        slots.insert(identity.key.clone(), Arc::new(tokens));
        self.slots.store(Arc::new(slots));
        slot
    }

    /// Joins the fetch that is under way, or starts one.
    fn flight(&self, slot: &Arc<Slot>, identity: &Arc<IdentityFacts>, resource: &str) -> Flight {
        let mut flight = slot.flight.lock();
        if let Some(flight) = flight.as_ref() {
            return flight.clone();
        }
        let fetch = fetch(
            Arc::clone(&self.source),
            Arc::clone(slot),
            Arc::clone(identity),
            resource.to_owned(),
            self.floor,
            Arc::clone(&self.clock),
        );
        let task = self.fetches.spawn(fetch);
        let outcome = async move {
            task.await.unwrap_or_else(|error| {
                let text = format!("the fetch was cut short: {error}");
                Err(Arc::new(SourceError::Unusable(text)))
            })
        };
        let new = outcome.boxed().shared();
        *flight = Some(new.clone());
        new
    }

    /// Fetches in the background while the present token is served.
    fn renew(&self, slot: &Arc<Slot>, identity: &Arc<IdentityFacts>, resource: &str) {
        if slot.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let now = tokio::time::Instant::now();
        let recent = slot
            .renewed
            .lock()
            .is_some_and(|at| now - at < BREATH.min(self.floor));
        if recent {
            slot.renewing.store(false, Ordering::Release);
            return;
        }
        *slot.renewed.lock() = Some(now);
        let flight = self.flight(slot, identity, resource);
        let slot = Arc::clone(slot);
        self.fetches.spawn(async move {
            if let Err(error) = flight.await {
                tracing::warn!(reason = %error, "a token could not be renewed");
                if !error.is_transient() {
                    slot.current.store(None);
                }
            }
            slot.renewing.store(false, Ordering::Release);
        });
    }
}

async fn fetch<S: TokenSource>(
    source: Arc<S>,
    slot: Arc<Slot>,
    identity: Arc<IdentityFacts>,
    resource: String,
    floor: Duration,
    clock: Clock,
) -> Outcome {
    // Whoever comes after this starts anew; whoever waits has the outcome.
    let _under_way = UnderWay(Arc::clone(&slot));
    let fetched = source.token(&identity, &resource).await;
    let now = clock();
    let outcome = match fetched {
        Ok(token) if token.remaining(now) < floor => Err(Arc::new(SourceError::ShortLived)),
        Ok(token) => {
            let id = identity.client_id.as_str();
            let token = Arc::new(CachedToken::new(token, &resource, id, now));
            slot.current.store(Some(Arc::clone(&token)));
            Ok(token)
        }
        Err(error) => Err(Arc::new(error)),
    };
    slot.note(&outcome);
    outcome
}

#[cfg(test)]
mod tests;
