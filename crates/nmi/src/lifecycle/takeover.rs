//! Whose turn it is to serve: this node agent's, that of the one before it, or that of the one after it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use podid_intercept::handover::{End, Post, Predecessor, Successor};
use tokio::sync::watch::{Receiver, Sender};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http::drain::Parting;
use crate::lifecycle::servers::Duty;
use crate::{Listeners, NmiError};

/// After being told to end, a successor that has reported has this long to become ready. With the time for the last requests
/// this is within the 30 s that Kubernetes gives a pod to end.
const GETTING_READY: Duration = Duration::from_secs(15);
/// After being told to end, one that is only just starting has this long to report.
const REPORTING: Duration = Duration::from_secs(2);

/// The chain that this node agent is a link of.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where successors report; `None` when nothing is handed over.
    pub(crate) path: Option<PathBuf>,
    /// The one that serves until this one can.
    pub(crate) predecessor: Option<Predecessor>,
    /// Whether this one serves.
    pub(crate) on_duty: Sender<bool>,
    /// Announced when nobody is to serve after this one.
    pub(crate) parting: Parting,
}

impl Relay {
    /// Serves whenever it is this one's turn, until shutdown.
    pub(crate) async fn run(
        mut self,
        listeners: Listeners,
        begin: impl Fn(&Listeners) -> Result<Duty, NmiError>,
        ready: Receiver<bool>,
        shutdown: &CancellationToken,
    ) -> Result<(), NmiError> {
        if let Some(predecessor) = &mut self.predecessor {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = until(ready) => {}
                () = predecessor.ended() => tracing::warn!("the node agent before this one ended; serving from now on"),
            }
            predecessor.relieve().await;
        }
        let mut draining = JoinSet::new();
        let mut predecessor = self.predecessor.take();
        loop {
            let mut duty = begin(&listeners)?;
            self.on_duty.send_replace(true);
            let relief = tokio::select! {
                error = duty.failed() => return Err(error),
                never = self.let_go(&mut predecessor) => match never {},
                relief = self.relief(&listeners, shutdown) => relief,
            };
            self.on_duty.send_replace(false);
            draining.spawn(duty.end());
            let Some(successor) = relief else { break };
            if self.stand_by(successor, shutdown).await == Some(End::Alone) {
                tracing::warn!("the node agent after this one ended; serving again");
                continue;
            }
            // A third one may end and start anew: this one must not hold its ports.
            drop(listeners);
            shutdown.cancelled().await;
            if let Some(predecessor) = predecessor {
                predecessor.dismiss().await;
            }
            break;
        }
        while draining.join_next().await.is_some() {}
        Ok(())
    }

    /// Lets the one before this one go once it is never to serve again, lest it put back what is withdrawn. Does not return.
    async fn let_go(&self, predecessor: &mut Option<Predecessor>) -> Infallible {
        self.parting.0.announced.cancelled().await;
        if let Some(predecessor) = predecessor.take() {
            predecessor.dismiss().await;
        }
        std::future::pending().await
    }

    /// A successor that is ready; `None` when there is none at the end.
    async fn relief(
        &self,
        listeners: &Listeners,
        shutdown: &CancellationToken,
    ) -> Option<Successor> {
        let Some(post) = self.post() else {
            shutdown.cancelled().await;
            return None;
        };
        let sockets: Vec<_> = listeners.all().collect();
        loop {
            let mut successor = tokio::select! {
                successor = post.successor(&sockets) => successor,
                () = after(shutdown, REPORTING) => return None,
            };
            tracing::info!("the node agent after this one has the sockets and gets ready");
            tokio::select! {
                ready = successor.is_ready() => if ready {
                    return Some(successor);
                },
                () = after(shutdown, GETTING_READY) => return None,
            }
        }
    }

    fn post(&self) -> Option<Post> {
        let path = self.path.as_ref()?;
        Post::open(path)
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), reason = %error, "the next node agent cannot take over; its start is an outage of a moment");
            })
            .ok()
    }

    /// Waits at a successor's back; how it ended, or `None` at shutdown.
    async fn stand_by(
        &self,
        mut successor: Successor,
        shutdown: &CancellationToken,
    ) -> Option<End> {
        successor.begin().await;
        tracing::info!("the node agent after this one serves; standing by");
        tokio::select! {
            () = shutdown.cancelled() => None,
            end = successor.ended() => Some(end),
        }
    }
}

async fn until(mut ready: Receiver<bool>) {
    if ready.wait_for(|ready| *ready).await.is_err() {
        // What says so ended, which its own task reports.
        std::future::pending().await
    }
}

async fn after(shutdown: &CancellationToken, time: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(time).await;
}
