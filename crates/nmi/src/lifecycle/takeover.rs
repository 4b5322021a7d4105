//! Takeover (hot restart): which node agent serves while one replaces another, so that no request fails.
//!
//! `lib.rs` runs it for the whole life of the process. The sockets pass over `podid_intercept::handover`, which draws the protocol.
//!
//! ```text
//!  GETTING READY ──ready, or predecessor died──► SERVING ──successor is ready──► STANDBY ──superseded──► RELEASED
//!      ▲ predecessor                             ▲     ▲                           │                  (ports closed)
//!    start ──────────────no predecessor──────────┘     └────the successor died─────┘
//! ```
//!
//! At shutdown, in whichever state, requests under way are drained and the process ends. A predecessor that stands by is told when a
//! third node agent serves ("superseded"), or when none is to serve any more ([`FinalDrain`]), so that it does not serve again.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use podid_intercept::handover::{HandoverListener, Predecessor, Successor, SuccessorEnd};
use tokio::sync::watch::{Receiver, Sender};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::NmiError;
use crate::http::drain::FinalDrain;
use crate::lifecycle::servers::{Listeners, Servers};

/// How long after shutdown a successor that has the sockets may take to become ready. With the drain this is within the 30 s that
/// Kubernetes gives a pod to end.
const SUCCESSOR_READY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long after shutdown a successor may take to connect: where nmi's pod is deleted, its next pod is started only then, within a second
/// or two on an idle node.
const SUCCESSOR_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What this node agent takes over from and hands over to.
#[derive(Debug)]
pub(crate) struct Takeover {
    /// The Unix socket that successors connect to; `None` when nothing is handed over.
    pub(crate) path: Option<PathBuf>,
    /// The node agent that serves until this one can.
    pub(crate) predecessor: Option<Predecessor>,
    /// Whether this node agent serves.
    pub(crate) serving: Sender<bool>,
    /// Started when no node agent is to serve after this one.
    pub(crate) final_drain: FinalDrain,
}

impl Takeover {
    /// Serves whenever no other node agent does, until shutdown.
    ///
    /// # Errors
    /// [`NmiError`] when a server failed.
    pub(crate) async fn run(
        mut self,
        listeners: Listeners,
        start: impl Fn(&Listeners) -> Result<Servers, NmiError>,
        ready: Receiver<bool>,
        shutdown: &CancellationToken,
    ) -> Result<(), NmiError> {
        if let Some(predecessor) = &mut self.predecessor {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = until(ready) => {}
                () = predecessor.ended() => tracing::warn!("the node agent before this one ended; serving from now on"),
            }
            predecessor.take_over().await;
        }
        let mut drains = JoinSet::new();
        let mut predecessor = self.predecessor.take();
        loop {
            let mut servers = start(&listeners)?;
            self.serving.send_replace(true);
            let successor = tokio::select! {
                error = servers.failed() => return Err(error),
                never = self.release_at_final_drain(&mut predecessor) => match never {},
                successor = self.ready_successor(&listeners, shutdown) => successor,
            };
            self.serving.send_replace(false);
            drains.spawn(servers.drain());
            let Some(successor) = successor else { break };
            if self.stand_by(successor, shutdown).await == Some(SuccessorEnd::Died) {
                tracing::warn!("the node agent after this one ended; serving again");
                continue;
            }
            // A third node agent that starts without the sockets needs the ports.
            drop(listeners);
            shutdown.cancelled().await;
            if let Some(predecessor) = predecessor {
                predecessor.release().await;
            }
            break;
        }
        while drains.join_next().await.is_some() {}
        Ok(())
    }

    /// Releases the predecessor once no node agent is to serve any more; if it served again it would put the withdrawn interception
    /// rules back. Does not return.
    async fn release_at_final_drain(&self, predecessor: &mut Option<Predecessor>) -> Infallible {
        self.final_drain.0.started.cancelled().await;
        if let Some(predecessor) = predecessor.take() {
            predecessor.release().await;
        }
        std::future::pending().await
    }

    /// A successor that has the sockets and is ready; `None` when there is none at shutdown.
    async fn ready_successor(
        &self,
        listeners: &Listeners,
        shutdown: &CancellationToken,
    ) -> Option<Successor> {
        let Some(handover) = self.handover() else {
            shutdown.cancelled().await;
            return None;
        };
        let sockets: Vec<_> = listeners.all().collect();
        loop {
            let mut successor = tokio::select! {
                successor = handover.accept(&sockets) => successor,
                () = after(shutdown, SUCCESSOR_CONNECT_TIMEOUT) => return None,
            };
            tracing::info!("the node agent after this one has the sockets and gets ready");
            tokio::select! {
                ready = successor.is_ready() => if ready {
                    return Some(successor);
                },
                () = after(shutdown, SUCCESSOR_READY_TIMEOUT) => return None,
            }
        }
    }

    fn handover(&self) -> Option<HandoverListener> {
        let path = self.path.as_ref()?;
        HandoverListener::open(path)
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), reason = %error, "the next node agent cannot take over; its start is an outage of a moment");
            })
            .ok()
    }

    /// Waits until the successor ends; `None` at shutdown.
    async fn stand_by(
        &self,
        mut successor: Successor,
        shutdown: &CancellationToken,
    ) -> Option<SuccessorEnd> {
        successor.confirm_stopped().await;
        tracing::info!("the node agent after this one serves; standing by");
        tokio::select! {
            () = shutdown.cancelled() => None,
            end = successor.ended() => Some(end),
        }
    }
}

async fn until(mut ready: Receiver<bool>) {
    if ready.wait_for(|ready| *ready).await.is_err() {
        // The sender's task has ended, which `lib.rs` sees and reports.
        std::future::pending().await
    }
}

async fn after(shutdown: &CancellationToken, time: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(time).await;
}
