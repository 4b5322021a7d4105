//! Fault injection: latency, refused requests, dropped watches, forgotten history. Tests order them by a `FaultInjector`; `http`
//! and `watch` obey.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::api::Server;

/// What is to go wrong at present.
#[derive(Debug)]
pub(super) struct Faults {
    state: Mutex<State>,
    dropped: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    latency: Duration,
    failures: Option<Failures>,
}

#[derive(Debug)]
struct Failures {
    status: u16,
    remaining: usize,
    part: String,
}

impl Faults {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            dropped: watch::Sender::new(0),
        }
    }

    /// How long every answer is held back.
    pub(super) fn latency(&self) -> Duration {
        self.state.lock().latency
    }

    /// The status with which this request is to fail, if it is to.
    pub(super) fn failure(&self, method: &str, target: &str) -> Option<u16> {
        let mut state = self.state.lock();
        let failures = state.failures.as_mut()?;
        if !format!("{method} {target}").contains(&failures.part) {
            return None;
        }
        let status = failures.status;
        failures.remaining = failures.remaining.saturating_sub(1);
        if failures.remaining == 0 {
            state.failures = None;
        }
        Some(status)
    }

    /// Changes when every open watch is to be cut.
    pub(super) fn dropped(&self) -> watch::Receiver<u64> {
        self.dropped.subscribe()
    }
}

/// Injects faults into a [`super::Cluster`].
#[derive(Debug, Clone)]
pub struct FaultInjector {
    server: Arc<Server>,
}

impl FaultInjector {
    pub(super) fn new(server: &Arc<Server>) -> Self {
        Self {
            server: Arc::clone(server),
        }
    }

    /// Holds every answer (and the start of every watch) back by `latency`; zero ends it.
    pub fn set_latency(&self, latency: Duration) {
        self.server.faults().state.lock().latency = latency;
    }

    /// Answers the next `count` requests whose `METHOD /path?query` contains `part` with `status` (such as 500 or 503)
    /// instead of doing anything. An empty `part` means every request; `count` 0 ends it.
    pub fn fail_next(&self, count: usize, status: u16, part: &str) {
        let failures = (count > 0).then(|| Failures {
            status,
            remaining: count,
            part: part.to_owned(),
        });
        self.server.faults().state.lock().failures = failures;
    }

    /// Cuts every open watch in the middle of its stream, as a restarted server would.
    pub fn drop_watches(&self) {
        self.server.faults().dropped.send_modify(|n| *n += 1);
    }

    /// Forgets all history, so that a watch that resumes from an older resourceVersion gets 410 Gone.
    pub fn compact(&self) {
        self.server.compact();
    }
}
