//! The door for the node's own programs, such as a volume driver, which ask for the tokens of pods by name. A socket in the file
//! system, since the kernel tells who is at its other end.

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
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::http::error_body::{Due, Wire};
use crate::http::request::{CLIENT_REQUEST_ID, RequestRecord, finish};
use crate::http::response::{Answer, closing_bytes, json};
use crate::http::target::{host_request, is_host};
use crate::refusal::Refusal;
use crate::token::grant::{self, Requester};

/// Connections beyond this are closed at once.
const MAX_OPEN: usize = 64;
/// A connection without a request is closed after this.
const IDLE: Duration = Duration::from_secs(30);
/// After a failed accept the next one waits this long.
const BREATH: Duration = Duration::from_millis(50);
/// Whoever is refused has this long to read why.
const PARTING: Duration = Duration::from_millis(200);
/// Of a refused request so much is read and thrown away.
const MAX_DRAIN: u64 = 64 * 1024;
/// Longer names are none.
const MAX_NAME: usize = 253;

/// Binds the socket, in place of one that an earlier process left behind.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves it until shutdown.
pub(crate) async fn serve(
    listener: UnixListener,
    context: Arc<Context>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let own = fs::metadata("/proc/self")?.uid();
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(reason = %error, "a connection to the host's socket could not be accepted");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let is_node = stream
            .peer_cred()
            .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
        if !is_node {
            tracing::warn!(peer = ?stream.peer_cred().map(|peer| peer.uid()), reason = "NotTheNode", "refused");
            tasks.spawn(refuse(stream, Refusal::NotTheNode));
        } else if tasks.len() >= MAX_OPEN {
            tasks.spawn(refuse(stream, Refusal::Busy));
        } else {
            tasks.spawn(converse(stream, Arc::clone(&context), shutdown.clone()));
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
        // To close it with unread bytes would cost the client the answer.
        let mut rest = (&mut stream).take(MAX_DRAIN);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // Whoever does not read it does not need it.
    let _ = tokio::time::timeout(PARTING, talk).await;
}

async fn converse(stream: UnixStream, context: Arc<Context>, shutdown: CancellationToken) {
    let due = Due::default();
    let service = service_fn(|request| {
        let (context, due) = (&context, &due);
        async move {
            let answer = respond(context, &request).await;
            due.set();
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(Wire::new(stream, due.clone())), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(reason = %error, "a connection to the host's socket ended early");
    }
}

async fn respond(context: &Context, request: &Request<Incoming>) -> Answer {
    let started = Instant::now();
    let mut record = RequestRecord {
        endpoint: "host",
        client_request_id: request.headers().get(CLIENT_REQUEST_ID).cloned(),
        ..RequestRecord::default()
    };
    let outcome = token(context, request, &mut record).await;
    finish(context, outcome, &record, &"node", started)
}

async fn token(
    context: &Context,
    request: &Request<Incoming>,
    record: &mut RequestRecord,
) -> Result<Answer, Refusal> {
    if !is_host(request.uri().path()) {
        return Err(Refusal::NotFound);
    }
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    let asked = host_request(request.uri().query().unwrap_or_default())?;
    let pod = pod_named(request.headers()).ok_or(Refusal::NoPodNamed)?;
    record.pod = context.index.read().pod(&pod);
    record.resource.push_str(&asked.resource);
    let requester = Requester::Node(&pod);
    let (token, identity) =
        grant::token(context, requester, &asked, record.client_request_id()).await?;
    let all: Value = serde_json::from_slice(&token.body(Timestamp::now())).unwrap_or_default();
    // As in the original the primary one, where an application has several tenants.
    let token = all.get(0).unwrap_or(&all);
    let body = serde_json::json!({ "token": token, "clientid": identity.client_id.as_str() });
    Ok(json(body.to_string()))
}

fn pod_named(headers: &HeaderMap) -> Option<ObjectKey> {
    let named = |name| {
        let mut values = headers.get_all(name).iter();
        let text = values.next()?.to_str().ok()?;
        let is_one = values.next().is_none() && !text.is_empty() && text.len() <= MAX_NAME;
        is_one.then_some(text)
    };
    Some(ObjectKey::new(named("podns")?, named("podname")?))
}
