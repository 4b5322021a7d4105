//! Host token: gives programs of the node, such as a volume driver, the tokens of pods that they name.
//!
//! `lifecycle/servers.rs` runs the Unix socket where `--host-token-socket` is set: the kernel says which user is at its other end, and
//! only root and podid's own user are served. `request.rs` calls [`token`] where `--host-token-loopback` is set, for a loopback
//! connection whose other end is root's (`server.rs` asks the kernel); that is what the Key Vault CSI provider connects to.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use podid_policy::facts::ObjectKey;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::hold::Hold;
use crate::http::drain::Drain;
use crate::http::error_body::{ResponsePending, WithErrorBody};
use crate::http::request::{CLIENT_REQUEST_ID, RequestRecord, finish};
use crate::http::response::{Answer, closing_bytes, json};
use crate::http::target::{host_request, is_host};
use crate::refusal::{Refusal, excerpt};
use crate::token::grant::{self, Requester};

/// Open connections; beyond this the answer is 429. A node has few programs that ask.
const MAX_OPEN: usize = 64;
/// How long a connection may be without a request; the programs connect anew for each one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait after a failed accept, which is mostly for lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// How long a refused client may take to read the answer.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(200);
/// Bytes of a refused request that are read and dropped, so that the client does not lose the answer to a reset.
const MAX_DRAIN: u64 = 64 * 1024;
/// Longest name of a pod or a namespace in bytes (a DNS subdomain).
const MAX_NAME: usize = 253;

/// Binds the socket, in place of one that an earlier process left behind.
///
/// # Errors
/// The path cannot be used.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves it until shutdown; requests under way are finished.
///
/// # Errors
/// This process cannot learn its own user.
pub(crate) async fn serve(
    listener: UnixListener,
    context: Arc<Context>,
    drain: Drain,
) -> io::Result<()> {
    let own_user = fs::metadata("/proc/self")?.uid();
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = drain.started.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(reason = %error, "a connection to the host's socket could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let is_node = stream
            .peer_cred()
            .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own_user);
        if !is_node {
            tracing::warn!(peer = ?stream.peer_cred().map(|peer| peer.uid()), reason = "NotTheNode", "refused");
            tasks.spawn(refuse(stream, Refusal::NotTheNode));
        } else if tasks.len() >= MAX_OPEN {
            tasks.spawn(refuse(stream, Refusal::Busy));
        } else {
            tasks.spawn(serve_connection(
                stream,
                Arc::clone(&context),
                drain.clone(),
            ));
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn refuse(mut stream: UnixStream, why: Refusal) {
    let answer = closing_bytes(&why);
    let talk = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        let mut rest = (&mut stream).take(MAX_DRAIN);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // An error is the client's, which does not read the answer.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, talk).await;
}

async fn serve_connection(stream: UnixStream, context: Arc<Context>, drain: Drain) {
    let pending = ResponsePending::default();
    let service = service_fn(|request| {
        let (context, pending, drain) = (&context, &pending, &drain);
        async move {
            let hold = Hold::new(context, &drain.holds_ended);
            let answer = respond(context, &request, &hold).await;
            pending.set();
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(
            TokioIo::new(WithErrorBody::new(stream, pending.clone())),
            service,
        );
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.started.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(reason = %error, "a connection to the host's socket ended early");
    }
}

async fn respond(context: &Context, request: &Request<Incoming>, hold: &Hold<'_>) -> Answer {
    let started = Instant::now();
    let mut record = RequestRecord {
        endpoint: "host",
        client_request_id: request.headers().get(CLIENT_REQUEST_ID).cloned(),
        ..RequestRecord::default()
    };
    let outcome = token(context, request, hold, &mut record).await;
    finish(context, outcome, &record, &"node", started)
}

/// Answers with the token of the pod that a program of the node names.
///
/// # Errors
/// Why there is none.
pub(crate) async fn token(
    context: &Context,
    request: &Request<Incoming>,
    hold: &Hold<'_>,
    record: &mut RequestRecord,
) -> Result<Answer, Refusal> {
    if !is_host(request.uri().path()) {
        return Err(Refusal::NotFound(excerpt(request.uri().path())));
    }
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    let asked = host_request(request.uri().query().unwrap_or_default())?;
    let pod = named_pod(request.headers()).ok_or(Refusal::NoPodNamed)?;
    record.pod = context.index.read().pod(&pod);
    record.resource.push_str(&asked.resource);
    let requester = Requester::Node(&pod, hold);
    let (token, identity) =
        grant::token(context, requester, &asked, record.client_request_id()).await?;
    let all: Value = serde_json::from_slice(&token.body(Timestamp::now())).unwrap_or_default();
    // Of several tenants' tokens the first, the primary tenant's, as in AAD Pod Identity.
    let token = all.get(0).unwrap_or(&all);
    let body = serde_json::json!({ "token": token, "clientid": identity.client_id.as_str() });
    Ok(json(body.to_string()))
}

/// The pod that the request names: each header once, and no longer than a name can be.
fn named_pod(headers: &HeaderMap) -> Option<ObjectKey> {
    let only = |name| {
        let mut values = headers.get_all(name).iter();
        let text = values.next()?.to_str().ok()?;
        let is_one = values.next().is_none() && !text.is_empty() && text.len() <= MAX_NAME;
        is_one.then_some(text)
    };
    Some(ObjectKey::new(only("podns")?, only("podname")?))
}
