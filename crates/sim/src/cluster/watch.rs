//! The verb `watch`: a stream of changes from a resourceVersion on, with bookmarks, timeouts and streamed lists.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    api::{Request, Server},
    catalog::Kind,
    failure::{Cause, Failure, Outcome},
    path::Target,
    selector::Selector,
    store::Change,
    view::{self, Form},
};

/// How long a watch lasts when the client does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);
/// The most changes that one chunk carries.
const BATCH: usize = 500;

/// A watch that is about to be served.
#[derive(Debug)]
pub(super) struct Start {
    filter: Filter,
    cursor: u64,
    first: Vec<u8>,
    bookmarks: bool,
    timeout: Duration,
}

/// What of the changes a watch shows, and how.
#[derive(Debug)]
struct Filter {
    kind: Arc<Kind>,
    resource: String,
    namespace: String,
    selector: Selector,
    form: Form,
    columns_sent: bool,
}

impl Start {
    pub(super) fn read(
        server: &Server,
        request: &Request,
        kind: &Arc<Kind>,
        target: &Target,
        form: Form,
    ) -> Outcome<Self> {
        let labels = request.param("labelSelector");
        let mut filter = Filter {
            kind: Arc::clone(kind),
            resource: kind.resource(),
            namespace: target.namespace.clone(),
            selector: Selector::parse(labels, request.param("fieldSelector"), kind.fields)?,
            form,
            columns_sent: false,
        };
        let bookmarks = request.flag("allowWatchBookmarks");
        let streamed = streams_list(request, kind)?;
        let asked = request.number("resourceVersion")?.unwrap_or(0);
        let seconds = request.number("timeoutSeconds")?.filter(|s| *s > 0);
        let mut first = Vec::new();
        let state = server.store().lock();
        let cursor = if asked == 0 || streamed == Some(true) {
            if streamed != Some(false) {
                for (_, object) in state.list(&kind.resource(), &target.namespace) {
                    filter.write("ADDED", object, &mut first);
                }
            }
            state.version()
        } else if asked < state.compacted() {
            let message = format!("too old resource version: {asked} ({})", state.compacted());
            write_event("ERROR", &Failure::expired(message).body(), &mut first);
            u64::MAX
        } else {
            asked
        };
        if streamed == Some(true) {
            filter.bookmark(cursor, true, &mut first);
        }
        Ok(Self {
            filter,
            cursor,
            first,
            bookmarks,
            timeout: seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs),
        })
    }

    /// The body of the answer.
    pub(super) fn stream(
        self,
        server: &Server,
        shutdown: CancellationToken,
        store: Arc<Server>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let mut dropped = server.faults().dropped();
        dropped.mark_unchanged();
        let open = Open {
            over: self.cursor == u64::MAX,
            ends: Instant::now() + self.timeout,
            changes: server.store().changes(),
            first: Some(self.first).filter(|first| !first.is_empty()),
            filter: self.filter,
            cursor: self.cursor,
            bookmarks: self.bookmarks,
            server: store,
            dropped,
            shutdown,
        };
        futures::stream::unfold(open, |mut open| async move {
            let item = open.next().await?;
            Some((item, open))
        })
    }
}

/// Whether the client wants the present state first (as a streamed list); `None` when it does not say.
fn streams_list(request: &Request, kind: &Kind) -> Outcome<Option<bool>> {
    let initial = match request.param("sendInitialEvents") {
        "" => return Ok(None),
        text => text == "true",
    };
    if request.param("resourceVersionMatch") != "NotOlderThan" {
        let cause = Cause::new(
            "resourceVersionMatch",
            "FieldValueForbidden",
            "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
                .to_owned(),
        );
        return Err(Failure::invalid(&kind.group, "ListOptions", "", &[cause]));
    }
    Ok(Some(initial))
}

impl Filter {
    /// The event that a watch sees of a change, if it sees one.
    fn event(&mut self, change: &Change, out: &mut Vec<u8>) {
        if change.resource != self.resource
            || !self.namespace.is_empty() && change.key.0 != self.namespace
        {
            return;
        }
        let matches = |object: &Value| {
            self.selector.is_empty() || self.selector.matches(&view::present(&self.kind, object))
        };
        let before = change.before.as_deref().is_some_and(matches);
        let now = !change.deleted && matches(&change.object);
        let kind = match (before, now) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return,
        };
        self.show(kind, view::present(&self.kind, &change.object), out);
    }

    /// Writes an event when the object is selected.
    fn write(&mut self, kind: &str, stored: &Value, out: &mut Vec<u8>) {
        let object = view::present(&self.kind, stored);
        if self.selector.matches(&object) {
            self.show(kind, object, out);
        }
    }

    fn show(&mut self, kind: &str, object: Value, out: &mut Vec<u8>) {
        let mut shown = self.form.object(&self.kind, object);
        if matches!(self.form, Form::Table(_)) {
            if self.columns_sent {
                shown["columnDefinitions"] = Value::Null;
            }
            self.columns_sent = true;
        }
        write_event(kind, &shown, out);
    }

    fn bookmark(&mut self, version: u64, end_of_list: bool, out: &mut Vec<u8>) {
        let mut object = json!({
            "kind": self.kind.kind, "apiVersion": self.kind.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        });
        if end_of_list {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let shown = match self.form {
            Form::Table(_) => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
                "columnDefinitions": null, "rows": [],
            }),
            form => form.object(&self.kind, object),
        };
        write_event("BOOKMARK", &shown, out);
    }
}

fn write_event(kind: &str, object: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(
        json!({"type": kind, "object": object})
            .to_string()
            .as_bytes(),
    );
    out.push(b'\n');
}

/// A watch being served.
struct Open {
    server: Arc<Server>,
    filter: Filter,
    cursor: u64,
    first: Option<Vec<u8>>,
    over: bool,
    bookmarks: bool,
    ends: Instant,
    changes: watch::Receiver<u64>,
    dropped: watch::Receiver<u64>,
    shutdown: CancellationToken,
}

impl Open {
    /// The next chunk; `None` ends the watch in good order, an error cuts the connection.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first.into()));
        }
        let mut next_bookmark = Instant::now() + self.server.config().bookmark_interval;
        loop {
            if self.over {
                return None;
            }
            self.changes.mark_unchanged();
            let chunk = self.batch();
            if !chunk.is_empty() {
                return Some(Ok(chunk.into()));
            }
            let wake = if self.bookmarks {
                next_bookmark.min(self.ends)
            } else {
                self.ends
            };
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                _ = self.dropped.changed() => {
                    self.over = true;
                    return Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "watch dropped on request")));
                }
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep_until(wake) => {
                    self.over = Instant::now() >= self.ends;
                    next_bookmark = Instant::now() + self.server.config().bookmark_interval;
                    if self.bookmarks {
                        let mut out = Vec::new();
                        self.filter.bookmark(self.cursor, false, &mut out);
                        return Some(Ok(out.into()));
                    }
                }
            }
        }
    }

    /// The changes since the last chunk, a bounded number of them.
    fn batch(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let state = self.server.store().lock();
            let Some(changes) = state.since(self.cursor) else {
                let message = format!(
                    "too old resource version: {} ({})",
                    self.cursor,
                    state.compacted()
                );
                write_event("ERROR", &Failure::expired(message).body(), &mut out);
                self.over = true;
                return out;
            };
            let changes: Vec<Change> = changes.take(BATCH).cloned().collect();
            drop(state);
            let Some(last) = changes.last() else {
                return out;
            };
            self.cursor = last.version;
            for change in &changes {
                self.filter.event(change, &mut out);
            }
            if !out.is_empty() {
                return out;
            }
        }
    }
}
