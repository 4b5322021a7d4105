//! Startup that the long-running commands share: the async runtime, and the signals that end them.

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

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
