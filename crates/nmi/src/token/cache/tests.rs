use super::slot::MAX_ERROR_REUSE;
use super::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use jiff::SignedDuration;
use podid_azure::error::Service;
use podid_azure::{Error, ErrorKind, Token};
use podid_policy::facts::IdentitySource;
use podid_policy::ids::{ClientId, ResourceId};
use tokio::sync::Semaphore;

const FLOOR: Duration = Duration::from_secs(300);

/// Gives tokens named by the order of the requests, each when a permit is there.
struct Fake {
    asked: AtomicUsize,
    life: Mutex<Duration>,
    fails: Mutex<Option<ErrorKind>>,
    panics: AtomicBool,
    gate: Semaphore,
}

impl TokenSource for Fake {
    async fn token(&self, _: &IdentityFacts, resource: &str) -> Result<Token, SourceError> {
        let n = self.asked.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
        if let Some(kind) = *self.fails.lock() {
            return Err(Error::new(Service::Imds, kind, "told to fail").into());
        }
        let life = SignedDuration::try_from(*self.life.lock()).unwrap();
        let expires = Timestamp::now().checked_add(life).unwrap();
        Ok(Token::new(format!("t{n}").into(), resource, expires))
    }
}

struct Rig {
    fake: Arc<Fake>,
    cache: Arc<Cache<Fake>>,
}

fn rig(permits: usize, life: u64) -> Rig {
    let fake = Arc::new(Fake {
        asked: AtomicUsize::new(0),
        life: Mutex::new(Duration::from_secs(life)),
        fails: Mutex::new(None),
        panics: AtomicBool::new(false),
        gate: Semaphore::new(permits),
    });
    let cache = Arc::new(Cache::new(
        Arc::clone(&fake),
        FLOOR,
        Arc::new(Timestamp::now),
    ));
    Rig { fake, cache }
}

fn identity(client: &str) -> Arc<IdentityFacts> {
    Arc::new(IdentityFacts {
        key: ObjectKey::new("shop", "reader"),
        client_id: ClientId::parse(client).unwrap(),
        source: IdentitySource::UserAssigned {
            resource_id: ResourceId::parse("/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader").unwrap(),
        },
        namespaced: false,
    })
}

fn reader() -> Arc<IdentityFacts> {
    identity("6f1c0000-0000-0000-0000-0000000022ab")
}

fn secret(token: &CachedToken) -> String {
    let body: serde_json::Value = serde_json::from_slice(&token.body(Timestamp::now())).unwrap();
    body["access_token"].as_str().unwrap().to_owned()
}

impl Rig {
    async fn get(&self) -> Result<(String, Served), String> {
        let got = self.cache.get(&reader(), "r", false).await;
        got.map(|(token, served)| (secret(&token), served))
            .map_err(|error| error.name().to_owned())
    }

    fn asked(&self) -> usize {
        self.fake.asked.load(Ordering::SeqCst)
    }
}

fn hit(name: &str) -> Result<(String, Served), String> {
    Ok((name.to_owned(), Served::Hit))
}

fn fetched(name: &str) -> Result<(String, Served), String> {
    Ok((name.to_owned(), Served::Fetched))
}

/// Until no outcome of an earlier fetch is reused.
async fn later() {
    tokio::time::advance(MAX_ERROR_REUSE + Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_fetched_once() {
    let rig = rig(10, 3600);
    assert_eq!(rig.get().await, fetched("t0"));
    assert_eq!(rig.get().await, hit("t0"));
    rig.cache.get(&reader(), "other", false).await.unwrap();
    assert_eq!((rig.asked(), rig.cache.len()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn bypassing_the_cache_gives_a_new_token_at_most_once_a_second() {
    let rig = rig(10, 3600);
    assert_eq!(rig.get().await, fetched("t0"));
    let bypass = async || {
        let (token, _) = rig.cache.get(&reader(), "r", true).await.unwrap();
        secret(&token)
    };
    assert_eq!(bypass().await, "t0");
    later().await;
    assert_eq!(bypass().await, "t1");
    for _ in 0..100 {
        assert_eq!(bypass().await, "t1");
    }
    assert_eq!(rig.get().await, hit("t1"));
    assert_eq!(rig.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_panics_does_not_stand_in_the_way_of_the_next() {
    let rig = rig(10, 3600);
    rig.fake.panics.store(true, Ordering::SeqCst);
    assert_eq!(rig.get().await, Err("identity_unusable".to_owned()));
    rig.fake.panics.store(false, Ordering::SeqCst);
    assert_eq!(rig.get().await, fetched("t1"));
}

#[tokio::test]
async fn all_who_wait_get_one_token_even_when_the_first_leaves() {
    let rig = rig(0, 3600);
    let cache = Arc::clone(&rig.cache);
    let first = tokio::spawn(async move { cache.get(&reader(), "r", false).await.map(|_| ()) });
    while rig.asked() == 0 {
        tokio::task::yield_now().await;
    }
    first.abort();
    let waiting = futures::future::join_all((0..50).map(|_| rig.get()));
    let (answers, ()) = tokio::join!(waiting, async { rig.fake.gate.add_permits(1) });
    assert!(answers.iter().all(|answer| *answer == fetched("t0")));
    assert_eq!(rig.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_all_and_kept_for_a_moment_only() {
    let rig = rig(10, 3600);
    *rig.fake.fails.lock() = Some(ErrorKind::Unavailable);
    for _ in 0..100 {
        assert_eq!(rig.get().await, Err("unavailable".to_owned()));
    }
    assert_eq!(rig.asked(), 1, "asking again does not reach the issuer");
    *rig.fake.fails.lock() = None;
    later().await;
    assert_eq!(rig.get().await, fetched("t1"));
}

#[tokio::test(start_paused = true)]
async fn a_token_about_to_expire_is_not_served() {
    let rig = rig(10, 200);
    assert_eq!(rig.get().await, Err("short_lived".to_owned()));
    *rig.fake.life.lock() = Duration::from_secs(310);
    later().await;
    assert_eq!(rig.get().await, fetched("t1"));
}

/// A rig whose token is due for renewal.
async fn due() -> Rig {
    let rig = rig(10, 3600);
    rig.get().await.unwrap();
    let slot = rig.cache.slot(&reader(), "r");
    let expires = Timestamp::now()
        .checked_add(SignedDuration::from_secs(400))
        .unwrap();
    let mut old = Token::new("old".to_owned().into(), "r", expires);
    old.refresh_on = Some(Timestamp::UNIX_EPOCH);
    slot.replace_token(CachedToken::new(old, "r", "c", Timestamp::now(), 0.0));
    rig
}

async fn settle(rig: &Rig) {
    let slot = rig.cache.slot(&reader(), "r");
    while slot.is_fetching() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_token_is_renewed_behind_its_users_backs() {
    let rig = due().await;
    assert_eq!(rig.get().await, hit("old"));
    settle(&rig).await;
    assert_eq!(rig.get().await, hit("t1"));
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_token_unless_it_cannot_be_had_again() {
    let rig = due().await;
    *rig.fake.fails.lock() = Some(ErrorKind::Timeout);
    assert_eq!(rig.get().await, hit("old"));
    settle(&rig).await;
    assert_eq!(rig.get().await, hit("old"));
    assert_eq!(rig.asked(), 2, "renewals keep their distance");
    let rig = due().await;
    *rig.fake.fails.lock() = Some(ErrorKind::IdentityNotFound);
    assert_eq!(rig.get().await, hit("old"));
    settle(&rig).await;
    assert_eq!(rig.get().await, Err("identity_not_found".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn only_a_refresh_that_is_refused_drops_the_token() {
    let rig = due().await;
    rig.fake.panics.store(true, Ordering::SeqCst);
    assert_eq!(rig.get().await, hit("old"));
    settle(&rig).await;
    assert_eq!(rig.get().await, hit("old"), "a panic says nothing of it");
    let rig = due().await;
    later().await;
    *rig.fake.fails.lock() = Some(ErrorKind::IdentityNotFound);
    let bypassed = rig.cache.get(&reader(), "r", true).await;
    assert_eq!(
        bypassed.map(|_| ()).unwrap_err().name(),
        "identity_not_found"
    );
    assert_eq!(rig.get().await, hit("old"), "nor does a bypass");
}

#[tokio::test]
async fn tokens_go_with_what_granted_them() {
    let rig = rig(10, 3600);
    rig.get().await.unwrap();
    let granted = |identity: Arc<IdentityFacts>| HashMap::from([(identity.key.clone(), identity)]);
    rig.cache.retain(&granted(reader()));
    assert_eq!(rig.get().await, hit("t0"));
    let other = identity("6f1c0000-0000-0000-0000-0000000022ac");
    rig.cache.retain(&granted(Arc::clone(&other)));
    assert!(rig.cache.is_empty());
    rig.get().await.unwrap();
    let (token, served) = rig.cache.get(&other, "r", false).await.unwrap();
    assert_eq!(
        served,
        Served::Fetched,
        "an identity that changed is another one"
    );
    assert!(
        std::str::from_utf8(&token.body(Timestamp::now()))
            .unwrap()
            .contains("22ac")
    );
}

#[tokio::test(start_paused = true)]
async fn made_up_resources_do_not_drive_out_tokens_that_others_use() {
    let rig = rig(1_000_000, 86_400);
    rig.get().await.unwrap();
    *rig.fake.fails.lock() = Some(ErrorKind::BadRequest);
    for n in 0..MAX_RESOURCES * 3 {
        let made_up = format!("made-up-{n}");
        assert!(rig.cache.get(&reader(), &made_up, false).await.is_err());
    }
    assert!(matches!(rig.get().await, Ok((_, Served::Hit))));
}

#[tokio::test]
async fn made_up_resources_do_not_fill_the_memory() {
    let rig = rig(10_000, 3600);
    for n in 0..MAX_RESOURCES * 3 {
        rig.cache
            .get(&reader(), &format!("r{n}"), false)
            .await
            .unwrap();
    }
    assert!(rig.cache.len() <= MAX_RESOURCES);
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_never_comes_is_asked_for_ever_less_often() {
    let rig = rig(100, 3600);
    *rig.fake.fails.lock() = Some(ErrorKind::IdentityNotFound);
    let mut seconds = Vec::new();
    for second in 0..20 {
        let before = rig.asked();
        assert_eq!(rig.get().await, Err("identity_not_found".to_owned()));
        if rig.asked() > before {
            seconds.push(second);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(seconds, [0, 1, 3, 7, 11, 15, 19]);
    *rig.fake.fails.lock() = None;
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(rig.get().await, fetched("t7"));
}
