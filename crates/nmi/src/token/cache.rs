//! Tokens, fetched once for all who wait, renewed before they expire, and dropped with what granted them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use podid_azure::Token;
use podid_policy::facts::{IdentityFacts, ObjectKey};
use tokio_util::task::TaskTracker;

use crate::token::source::{SourceError, TokenSource};

/// Slots for resources that pods make up are bounded by this, per identity.
const MAX_RESOURCES: usize = 64;
/// A token that is renewed half-way has at least this life.
const LONG: Duration = Duration::from_secs(2 * 3600);
/// After a fetch its failure, or for those who bypass the cache its success, holds this long, so that asking again and again
/// does not reach the issuer.
const HOLD: Duration = Duration::from_secs(1);
/// A failure is held no longer than this, whatever the issuer asks for.
const MAX_HOLD: Duration = Duration::from_secs(30);
/// Renewals of one token are at least this far apart.
const BREATH: Duration = Duration::from_secs(30);

/// A token ready to be answered with.
pub struct CachedToken {
    token: Token,
    /// The answer's body up to the number of `expires_in`; several of an application with auxiliary tenants.
    heads: Vec<Head>,
    refresh_on: Timestamp,
}

struct Head {
    text: zeroize::Zeroizing<Vec<u8>>,
    expires_on: Timestamp,
}

impl Head {
    fn new(token: &Token, resource: &str, client_id: &str) -> Self {
        let fields = serde_json::json!({
            "access_token": token.secret(),
            "client_id": token.client_id.as_deref().unwrap_or(client_id),
            "expires_on": token.expires_on.as_second().to_string(),
            "not_before": token.not_before.as_second().to_string(),
            "refresh_token": "",
            "resource": resource,
            "token_type": "Bearer",
        });
        let mut text = fields.to_string().into_bytes();
        // The closing brace makes way for the one field that depends on the moment.
        text.pop();
        text.extend_from_slice(b",\"expires_in\":\"");
        Self {
            text: text.into(),
            expires_on: token.expires_on,
        }
    }

    fn put(&self, now: Timestamp, body: &mut BytesMut) {
        let life = self.expires_on.as_second().saturating_sub(now.as_second());
        let mut digits = [0_u8; 20];
        body.put_slice(&self.text);
        body.put_slice(decimal(u64::try_from(life).unwrap_or(0), &mut digits));
        body.put_slice(b"\"}");
    }
}

impl CachedToken {
    fn new(token: Token, resource: &str, client_id: &str, now: Timestamp) -> Self {
        let life = token.remaining(now);
        let due = if life >= LONG { life / 2 } else { life * 4 / 5 };
        // Different tokens are renewed at different times, though they came at once.
        let jitter = due.mul_f64(f64::from(fraction(token.secret())) / 2560.0);
        let due = due.saturating_sub(jitter);
        let due = SignedDuration::try_from(due).unwrap_or_default();
        let planned = now.checked_add(due).unwrap_or(token.expires_on);
        let all = std::iter::once(&token).chain(&token.auxiliary);
        let heads = all
            .map(|token| Head::new(token, resource, client_id))
            .collect();
        Self {
            refresh_on: token.refresh_on.map_or(planned, |asked| asked.min(planned)),
            heads,
            token,
        }
    }

    /// When it expires.
    pub fn expires_on(&self) -> Timestamp {
        self.token.expires_on
    }

    /// The answer's body at `now`: an object, or with auxiliary tenants a list with the primary one's first, as the original
    /// answers.
    pub fn body(&self, now: Timestamp) -> Bytes {
        let length: usize = self.heads.iter().map(|head| head.text.len() + 24).sum();
        let mut body = BytesMut::with_capacity(length + 2);
        match self.heads.as_slice() {
            [only] => only.put(now, &mut body),
            heads => {
                for (n, head) in heads.iter().enumerate() {
                    body.put_u8(if n == 0 { b'[' } else { b',' });
                    head.put(now, &mut body);
                }
                body.put_u8(b']');
            }
        }
        body.freeze()
    }
}

fn decimal(mut number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            return &buffer[at..];
        }
    }
}

/// A number from 0 to 255 that two tokens rarely share.
fn fraction(text: &str) -> u8 {
    text.bytes()
        .fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
}

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

type Outcome = Result<Arc<CachedToken>, Arc<SourceError>>;
type Flight = Shared<BoxFuture<'static, Outcome>>;

/// One identity's token for one resource.
#[derive(Default)]
struct Slot {
    current: ArcSwapOption<CachedToken>,
    flight: Mutex<Option<Flight>>,
    renewing: AtomicBool,
    renewed: Mutex<Option<tokio::time::Instant>>,
    landed: Mutex<Option<Landed>>,
}

/// The last fetch: how it ended, and until when that is the answer to those who would fetch again.
struct Landed {
    error: Option<Arc<SourceError>>,
    holds: tokio::time::Instant,
}

impl Slot {
    fn held<T>(&self, read: impl FnOnce(&Landed) -> Option<T>) -> Option<T> {
        let landed = self.landed.lock();
        let landed = landed.as_ref()?;
        (tokio::time::Instant::now() < landed.holds)
            .then(|| read(landed))
            .flatten()
    }

    fn note(&self, outcome: &Outcome) {
        let error = outcome.as_ref().err().cloned();
        let asked = error.as_ref().and_then(|error| error.retry_after());
        let hold = asked.unwrap_or(HOLD).clamp(HOLD, MAX_HOLD);
        *self.landed.lock() = Some(Landed {
            error,
            holds: tokio::time::Instant::now() + hold,
        });
    }
}

/// Makes way for the next fetch however this one ends, a panic included.
struct UnderWay(Arc<Slot>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        *self.0.flight.lock() = None;
    }
}

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
