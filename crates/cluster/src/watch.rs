//! Informer (client-go's word; a reflector without a store): lists and watches one kind of object, hands each change to its
//! caller's index, and tells how the watch is doing. `watches.rs` of the controller and of the node agent start one for each kind.
//!
//! ```text
//!  connect ──► list: Applied, Applied, ... ──► Listed ──► watch: Applied or Deleted, ...
//!     ▲                                                     │
//!     └──────────── back-off after an interruption ◄────────┘
//! ```
//!
//! The index holds everything once [`Change::Listed`] came, and it is behind while [`WatchStatus::trouble`] says why.

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures::{Stream, StreamExt as _, pin_mut};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use podid_policy::facts::ObjectKey;
use serde::de::DeserializeOwned;
use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;

use crate::error_text::describe_watch;
use crate::lenient::Lenient;

/// One step of a list or a watch.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<K> {
    /// The object exists and looks like this.
    Applied(K),
    /// The object is gone, or can no longer be read.
    Deleted(ObjectKey),
    /// The list is complete: each object in this set came as [`Change::Applied`], and any other one is gone.
    Listed(BTreeSet<ObjectKey>),
}

/// Whether a watch is up to date.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchStatus {
    /// Whether a complete list has been seen since the start.
    pub synced: bool,
    /// Why the watch is interrupted at the moment; `None` while it runs.
    pub trouble: Option<String>,
    /// How many objects could not be read since the start.
    pub malformed: u64,
}

/// Watches `K` until shutdown and gives each change to `sink`. An interruption shows in `status` and is retried with back-off, as
/// often as it takes. An object that cannot be read is logged, counted, and treated as deleted.
pub async fn watch<K>(
    api: Api<Lenient<K>>,
    config: watcher::Config,
    sink: impl FnMut(Change<K>),
    health: Sender<WatchStatus>,
    shutdown: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let stream = watcher::watcher(api, config).default_backoff();
    follow(stream, sink, &health, shutdown).await;
}

/// Gives the events of a watcher to `sink`; apart from [`watch`] so that tests can script the events.
async fn follow<K, S>(
    stream: S,
    mut sink: impl FnMut(Change<K>),
    health: &Sender<WatchStatus>,
    shutdown: CancellationToken,
) where
    K: Resource<DynamicType = ()>,
    S: Stream<Item = Result<Event<Lenient<K>>, watcher::Error>>,
{
    pin_mut!(stream);
    let mut listing = BTreeSet::new();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            None => return,
            Some(Err(error)) => interrupted::<K>(&error, health),
            Some(Ok(event)) => {
                // kube sends `Init` before the server has answered.
                if !matches!(event, Event::Init) {
                    health.send_if_modified(|h| h.trouble.take().is_some());
                }
                step(event, &mut listing, &mut sink, health);
            }
        }
    }
}

fn step<K: Resource<DynamicType = ()>>(
    event: Event<Lenient<K>>,
    listing: &mut BTreeSet<ObjectKey>,
    sink: &mut impl FnMut(Change<K>),
    health: &Sender<WatchStatus>,
) {
    match event {
        Event::Init => listing.clear(),
        Event::InitApply(object) => {
            if let Some(object) = readable(object, health) {
                listing.insert(key(&object));
                sink(Change::Applied(object));
            }
        }
        Event::InitDone => {
            sink(Change::Listed(std::mem::take(listing)));
            health.send_if_modified(|h| !std::mem::replace(&mut h.synced, true));
        }
        Event::Apply(object) => {
            let gone = key(&object);
            match readable(object, health) {
                Some(object) => sink(Change::Applied(object)),
                None => sink(Change::Deleted(gone)),
            }
        }
        Event::Delete(object) => sink(Change::Deleted(key(&object))),
    }
}

fn readable<K: Resource<DynamicType = ()>>(
    object: Lenient<K>,
    health: &Sender<WatchStatus>,
) -> Option<K> {
    let name = key(&object);
    match object.0 {
        Ok(object) => Some(object),
        Err(error) => {
            let kind = K::kind(&());
            tracing::warn!(%kind, object = %name, reason = %error.error, "object cannot be read and is ignored");
            health.send_modify(|h| h.malformed += 1);
            None
        }
    }
}

fn interrupted<K: Resource<DynamicType = ()>>(
    error: &watcher::Error,
    health: &Sender<WatchStatus>,
) {
    let text = describe_watch(&K::kind(&()), error);
    health.send_if_modified(|h| {
        let news = h.trouble.as_deref() != Some(&text);
        if news {
            tracing::warn!(kind = %K::kind(&()), reason = %text, "watch interrupted");
            h.trouble = Some(text);
        }
        news
    });
}

fn key(object: &impl kube::ResourceExt) -> ObjectKey {
    ObjectKey::new(&object.namespace().unwrap_or_default(), &object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt as _;
    use serde_json::json;

    type Object = Lenient<ConfigMap>;

    fn object(name: &str, data: serde_json::Value) -> Object {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "namespace": "ns", "name": name }, "data": data,
        }))
        .unwrap()
    }

    fn good(name: &str) -> Object {
        object(name, json!({ "a": "b" }))
    }

    fn bad(name: &str) -> Object {
        object(name, json!("not a map"))
    }

    async fn told(
        events: Vec<Result<Event<Object>, watcher::Error>>,
    ) -> (Vec<String>, WatchStatus) {
        let (health, seen) = tokio::sync::watch::channel(WatchStatus::default());
        let mut told = Vec::new();
        let sink = |change: Change<ConfigMap>| {
            told.push(match change {
                Change::Applied(object) => format!("+{}", object.name_any()),
                Change::Deleted(key) => format!("-{key}"),
                Change::Listed(keys) => format!("={}", keys.len()),
            });
        };
        follow(
            futures::stream::iter(events),
            sink,
            &health,
            CancellationToken::new(),
        )
        .await;
        let health = seen.borrow().clone();
        (told, health)
    }

    #[tokio::test]
    async fn a_list_and_its_changes_are_told_in_order() {
        let (told, health) = told(vec![
            Ok(Event::Init),
            Ok(Event::InitApply(good("one"))),
            Ok(Event::InitApply(good("two"))),
            Ok(Event::InitDone),
            Ok(Event::Apply(good("three"))),
            Ok(Event::Delete(good("one"))),
        ])
        .await;
        assert_eq!(told, ["+one", "+two", "=2", "+three", "-ns/one"]);
        assert_eq!(
            health,
            WatchStatus {
                synced: true,
                ..WatchStatus::default()
            }
        );
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_read_is_counted_and_gone() {
        let (told, health) = told(vec![
            Ok(Event::Init),
            Ok(Event::InitApply(bad("one"))),
            Ok(Event::InitDone),
            Ok(Event::Apply(good("two"))),
            Ok(Event::Apply(bad("two"))),
        ])
        .await;
        assert_eq!(told, ["=0", "+two", "-ns/two"]);
        assert_eq!(health.malformed, 2);
    }

    #[tokio::test]
    async fn an_interruption_shows_until_the_next_event() {
        let interruption = || Err(watcher::Error::NoResourceVersion);
        let (_, health) = told(vec![Ok(Event::Init), interruption()]).await;
        assert!(health.trouble.unwrap().contains("is reachable"));
        assert!(!health.synced);
        let (_, health) = told(vec![interruption(), Ok(Event::Init)]).await;
        assert!(health.trouble.is_some(), "nothing was heard of the server");
        let (_, health) = told(vec![interruption(), Ok(Event::Init), Ok(Event::InitDone)]).await;
        assert_eq!(
            health,
            WatchStatus {
                synced: true,
                ..WatchStatus::default()
            }
        );
    }
}
