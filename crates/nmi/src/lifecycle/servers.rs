//! Servers: everything that listens while this node agent serves, and the graceful drain of it.
//!
//! `takeover.rs` starts them each time that this node agent begins to serve, and drains them when it stops.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;

use crate::context::Context;
use crate::error::{NmiError, TaskResult, socket, task_ended};
use crate::http::drain::Drain;
use crate::http::{host_token, server};
use crate::lifecycle::health;

const METADATA: &str = "the front door";
const HOST_TOKEN: &str = "the host's socket (--host-token-socket)";
const PROBE: &str = "the probe port";
const METRICS: &str = "the metrics port";

/// How long a listener is served that only a predecessor's rules lead to: they are replaced within a second or two, and connections
/// may be on their way.
const RETIRING_GRACE: Duration = Duration::from_secs(10);

/// The node agent's bound sockets. They stay open over a takeover, so that no connection is refused.
#[derive(Debug)]
pub struct Listeners {
    /// Connections that pods meant for the metadata service.
    pub metadata: Vec<TcpListener>,
    /// A predecessor's listener that this node agent's own rules do not lead to.
    pub(crate) retiring: Mutex<Option<TcpListener>>,
    /// `/healthz` and `/readyz`.
    pub probe: TcpListener,
    /// `/metrics`.
    pub metrics: TcpListener,
}

impl Listeners {
    /// All of them, as they are handed over.
    pub(crate) fn all(&self) -> impl Iterator<Item = &TcpListener> {
        self.metadata.iter().chain([&self.probe, &self.metrics])
    }
}

/// The tasks that serve, on duplicates of the listening sockets.
pub(crate) struct Servers {
    tasks: JoinSet<TaskResult>,
    drain: Drain,
}

impl Servers {
    /// Starts to accept connections.
    ///
    /// # Errors
    /// [`NmiError::Socket`].
    pub(crate) fn start(
        listeners: &Listeners,
        context: &Arc<Context>,
        active: &Receiver<bool>,
    ) -> Result<Self, NmiError> {
        let (mut tasks, drain) = (JoinSet::new(), Drain::default());
        for listener in &listeners.metadata {
            let listener = duplicate(METADATA, listener)?;
            let serve = server::serve(listener, Arc::clone(context), drain.clone());
            tasks.spawn(async move { ("door", socket(METADATA, serve.await)) });
        }
        if let Some(listener) = listeners.retiring.lock().take() {
            // It ends with the runtime.
            tokio::spawn(retire(listener, Arc::clone(context)));
        }
        let shutdown = || drain.started.clone();
        if let Some(path) = &context.config.host_token_socket {
            // Not handed over: each node agent binds the path anew when it begins to serve.
            let listener = socket(HOST_TOKEN, host_token::bind(path))?;
            let serve = host_token::serve(listener, Arc::clone(context), drain.clone());
            tasks.spawn(async move { ("host", socket(HOST_TOKEN, serve.await)) });
        }
        let serve = health::probe(
            duplicate(PROBE, &listeners.probe)?,
            Arc::clone(context),
            active.clone(),
            listeners
                .metadata
                .first()
                .and_then(|listener| listener.local_addr().ok()),
            shutdown(),
        );
        tasks.spawn(async move { ("probe", socket(PROBE, serve.await)) });
        let listener = duplicate(METRICS, &listeners.metrics)?;
        let serve = health::metrics(listener, Arc::clone(context), shutdown());
        tasks.spawn(async move { ("metrics", socket(METRICS, serve.await)) });
        Ok(Self { tasks, drain })
    }

    /// Returns when a task has ended, which none may.
    pub(crate) async fn failed(&mut self) -> NmiError {
        task_ended(self.tasks.join_next().await)
    }

    /// Stops accepting, and returns when the last request is answered or its time is up.
    pub(crate) async fn drain(mut self) {
        let drain = self.drain.clone();
        tokio::select! {
            () = async { while self.tasks.join_next().await.is_some() {} } => {}
            () = drain.run() => tracing::warn!("requests were under way for too long and are cut off"),
        }
    }
}

/// Serves a predecessor's listener for a while, and then drains it.
async fn retire(listener: TcpListener, context: Arc<Context>) {
    let drain = Drain::default();
    let end = async {
        tokio::time::sleep(RETIRING_GRACE).await;
        drain.run().await;
    };
    tokio::select! {
        served = server::serve(listener, context, drain.clone()) => {
            if let Err(error) = served {
                tracing::warn!(reason = %error, "the predecessor's listener could not be served");
            }
        }
        () = end => {}
    }
}

fn duplicate(what: &'static str, listener: &TcpListener) -> Result<TcpListener, NmiError> {
    socket(what, listener.try_clone())
}
