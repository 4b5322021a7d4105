//! Startup that the long-running commands share: the async runtime, the client of the API server, and the signals that end them.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio_util::sync::CancellationToken;
use tower::timeout::TimeoutLayer;

/// Time limit for the head of an answer. The API server itself gives up after a minute (its `--request-timeout`), so that after
/// this the connection is dead, and the request is made again on another.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(65);
/// Time limit between two pieces of an answer. Watches are shorter: they are started anew before this.
const READ_TIMEOUT: Duration = Duration::from_secs(310);

/// Runs to completion on a runtime with `threads` workers; as many as cores with 0.
pub fn block_on<T>(
    threads: usize,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        runtime.worker_threads(threads);
    }
    runtime
        .enable_all()
        .build()
        .context("no runtime")?
        .block_on(work)
}

/// A client for the API server: by `--kubeconfig`, `KUBECONFIG`, or the pod's own service account.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path)
                .with_context(|| format!("--kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("--kubeconfig {}", path.display()))?
        }
        None => Config::infer().await.context(
            "the API server is not known; give --kubeconfig or KUBECONFIG, or run in a pod with a service account",
        )?,
    };
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    let client = ClientBuilder::try_from(config).context("no client for the API server")?;
    Ok(client
        .with_layer(&TimeoutLayer::new(ANSWER_TIMEOUT))
        .build())
}

/// Cancelled by SIGTERM and SIGINT.
pub fn shutdown() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let told = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(token)
}
