//! One turn of serving: from the first accepted connection to the last answer.

use std::net::TcpListener;
use std::sync::Arc;

use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;

use crate::context::Context;
use crate::http::drain::{Closing, LAST_REQUESTS};
use crate::http::{host_token, server};
use crate::lifecycle::health;
use crate::{Listeners, NmiError, Part, fault, named};

const HOST: &str = "the host's socket (--host-token-socket)";

/// What serves, at copies of the listening sockets: the sockets themselves outlive the turn.
pub(crate) struct Duty {
    tasks: JoinSet<Part>,
    closing: Closing,
}

impl Duty {
    /// Begins to accept.
    pub(crate) fn begin(
        listeners: &Listeners,
        context: &Arc<Context>,
        active: &Receiver<bool>,
    ) -> Result<Self, NmiError> {
        let (mut tasks, closing) = (JoinSet::new(), Closing::default());
        for door in &listeners.doors {
            let door = copy("the front door", door)?;
            let serve = server::serve(door, Arc::clone(context), closing.clone());
            tasks.spawn(async move { ("door", named("the front door", serve.await)) });
        }
        let over = || closing.announced.clone();
        if let Some(path) = &context.config.host_token_socket {
            // Of its own: whoever serves has the path.
            let socket = named(HOST, host_token::bind(path))?;
            let serve = host_token::serve(socket, Arc::clone(context), over());
            tasks.spawn(async move { ("host", named(HOST, serve.await)) });
        }
        let probe = health::health(
            copy("the probe port", &listeners.probe)?,
            Arc::clone(context),
            active.clone(),
            listeners
                .doors
                .first()
                .and_then(|door| door.local_addr().ok()),
            over(),
        );
        tasks.spawn(async move { ("probe", named("the probe port", probe.await)) });
        let metrics = copy("the metrics port", &listeners.metrics)?;
        let metrics = health::metrics(metrics, Arc::clone(context), over());
        tasks.spawn(async move { ("metrics", named("the metrics port", metrics.await)) });
        Ok(Self { tasks, closing })
    }

    /// Returns when a part ended, which none may.
    pub(crate) async fn failed(&mut self) -> NmiError {
        fault(self.tasks.join_next().await)
    }

    /// Accepts no more, and returns when the last request is answered or its time is up.
    pub(crate) async fn end(mut self) {
        let closing = async {
            self.closing.close().await;
            tokio::time::sleep(LAST_REQUESTS).await;
        };
        tokio::select! {
            () = async { while self.tasks.join_next().await.is_some() {} } => {}
            () = closing => tracing::warn!("requests were under way for too long and are cut off"),
        }
    }
}

fn copy(what: &'static str, listener: &TcpListener) -> Result<TcpListener, NmiError> {
    named(what, listener.try_clone())
}
