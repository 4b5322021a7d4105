//! Token cache: single flight, refresh ahead and negative caching for each identity and resource (`slot.rs`), and the map of
//! these slots. Every token request of a pod comes here once its grant is decided; a warm one takes no lock and asks nobody.
//!
//! The cache guards the metadata service and Entra against more questions than there are tokens, and pods against tokens that
//! are about to expire. [`Cache::retain`] and [`Cache::invalidate`] drop tokens together with what granted them; a fetch that is
//! under way then goes to a slot that nobody finds any more.

mod cached_token;
mod slot;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::FutureExt as _;
use jiff::Timestamp;
use parking_lot::Mutex;
use podid_policy::facts::{IdentityFacts, ObjectKey};
use tokio_util::task::TaskTracker;

pub use cached_token::CachedToken;
use slot::{Fetch, Flight, Landing, Outcome, Slot};

use crate::token::source::{SourceError, TokenSource};

/// The most slots of one identity: pods choose the resources, and must not fill the memory with them.
const MAX_RESOURCES: usize = 64;
/// Refreshes of one token begin at least this far apart, so that failing ones do not load the issuer.
const REFRESH_SPACING: Duration = Duration::from_secs(30);

/// Where a token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// From memory.
    Hit,
    /// From the issuer, by a fetch that this request began or joined.
    Fetched,
}

/// Tells the time; tests inject their own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The slots of one identity, valid while the AzureIdentity stays as it is.
struct IdentitySlots {
    identity: Arc<IdentityFacts>,
    by_resource: HashMap<Box<str>, Arc<Slot>>,
}

/// The token cache in front of a source of tokens.
pub struct Cache<S> {
    source: Arc<S>,
    /// Read without a lock; copied when a slot is added or dropped, which is rare.
    slots: ArcSwap<HashMap<ObjectKey, Arc<IdentitySlots>>>,
    /// Held by whoever replaces `slots`.
    slots_writer: Mutex<()>,
    floor: Duration,
    clock: Clock,
    /// Fetches outlive the requests that began them, since others may wait for the same token.
    fetches: TaskTracker,
}

impl<S: TokenSource> Cache<S> {
    /// A cache that serves only tokens which are valid for at least `floor`.
    pub fn new(source: Arc<S>, floor: Duration, clock: Clock) -> Self {
        Self {
            source,
            slots: ArcSwap::default(),
            slots_writer: Mutex::new(()),
            floor,
            clock,
            fetches: TaskTracker::new(),
        }
    }

    /// A token of `identity` for `resource`, and where it came from. With `bypass` the token in memory counts only if it was
    /// fetched within the last second.
    ///
    /// # Errors
    /// The source's error, for all requests that waited for the fetch and, for 1 to 30 seconds, for those that come after.
    pub async fn get(
        &self,
        identity: &Arc<IdentityFacts>,
        resource: &str,
        bypass: bool,
    ) -> Result<(Arc<CachedToken>, Served), Arc<SourceError>> {
        let slot = self.slot(identity, resource);
        let now = (self.clock)();
        let valid = || slot.valid_token(now, self.floor);
        let start = || self.start_fetch(&slot, identity, resource);
        if !bypass && let Some(token) = valid() {
            if token.refresh_on() <= now {
                slot.refresh_ahead(REFRESH_SPACING.min(self.floor), start);
            }
            return Ok((token, Served::Hit));
        }
        let (outcome, served) = match slot.single_flight(valid, start) {
            Fetch::Done(outcome) => (outcome, Served::Hit),
            Fetch::InFlight(flight) => (flight.await, Served::Fetched),
        };
        outcome.map(|token| (token, served))
    }

    /// Drops the tokens of every identity that is not in `granted` as it is now.
    pub fn retain(&self, granted: &HashMap<ObjectKey, Arc<IdentityFacts>>) {
        self.invalidate(|identity| granted.get(&identity.key).map(|now| &**now) != Some(identity));
    }

    /// Drops the tokens of the identities for which `is_stale` holds, and those that are being fetched for them.
    pub fn invalidate(&self, is_stale: impl Fn(&IdentityFacts) -> bool) {
        let slots = self.slots.load();
        if !slots.values().any(|slots| is_stale(&slots.identity)) {
            return;
        }
        let _writer = self.slots_writer.lock();
        let mut slots = HashMap::clone(&self.slots.load());
        slots.retain(|_, slots| !is_stale(&slots.identity));
        self.slots.store(Arc::new(slots));
    }

    /// The number of slots: of tokens that are held, being fetched, or were refused lately.
    pub fn len(&self) -> usize {
        let slots = self.slots.load();
        slots.values().map(|slots| slots.by_resource.len()).sum()
    }

    /// Whether there is no slot.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn slot(&self, identity: &Arc<IdentityFacts>, resource: &str) -> Arc<Slot> {
        let find = |all: &HashMap<ObjectKey, Arc<IdentitySlots>>| {
            let slots = all.get(&identity.key)?;
            let same = Arc::ptr_eq(&slots.identity, identity) || slots.identity == *identity;
            slots.by_resource.get(resource).filter(|_| same).cloned()
        };
        if let Some(slot) = find(&self.slots.load()) {
            return slot;
        }
        let _writer = self.slots_writer.lock();
        let mut all = HashMap::clone(&self.slots.load());
        if let Some(slot) = find(&all) {
            return slot;
        }
        let mut by_resource = match all.get(&identity.key) {
            Some(slots) if slots.identity == *identity => slots.by_resource.clone(),
            _ => HashMap::new(),
        };
        if by_resource.len() >= MAX_RESOURCES {
            // Resources that a pod made up have no token; other pods with the same identity keep theirs.
            by_resource.retain(|_, slot| slot.holds_token());
        }
        if by_resource.len() >= MAX_RESOURCES {
            by_resource.clear();
        }
        let slot = Arc::new(Slot::default());
        by_resource.insert(resource.into(), Arc::clone(&slot));
        let slots = IdentitySlots {
            identity: Arc::clone(identity),
            by_resource,
        };
        all.insert(identity.key.clone(), Arc::new(slots));
        self.slots.store(Arc::new(all));
        slot
    }

    /// Fetches a token in a task of its own.
    fn start_fetch(
        &self,
        slot: &Arc<Slot>,
        identity: &Arc<IdentityFacts>,
        resource: &str,
    ) -> Flight {
        let landing = Landing::new(Arc::clone(slot));
        let source = Arc::clone(&self.source);
        let clock = Arc::clone(&self.clock);
        let (identity, resource) = (Arc::clone(identity), resource.to_owned());
        let floor = self.floor;
        let task = self.fetches.spawn(async move {
            let fetched = source.token(&identity, &resource).await;
            let now = clock();
            let outcome: Outcome = match fetched {
                Ok(token) if token.remaining(now) < floor => Err(Arc::new(SourceError::ShortLived)),
                Ok(token) => {
                    let client_id = identity.client_id.as_str();
                    let jitter = fastrand::f64();
                    let token = CachedToken::new(token, &resource, client_id, now, jitter);
                    Ok(Arc::new(token))
                }
                Err(error) => Err(Arc::new(error)),
            };
            landing.land(outcome)
        });
        let outcome = async move {
            task.await.unwrap_or_else(|error| {
                let text = format!("the fetch was cut short: {error}");
                Err(Arc::new(SourceError::Unusable(text)))
            })
        };
        outcome.boxed().shared()
    }
}

#[cfg(test)]
mod tests;
