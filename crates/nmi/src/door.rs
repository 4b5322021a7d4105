//! The front door: a connection becomes requests, a request becomes an answer.

use std::convert::Infallible;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HeaderName;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use podid_policy::facts::{IdentityFacts, PodFacts};
use podid_policy::verdict::Wanted;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::answer::{self, Refusal};
use crate::attest::Evidence;
use crate::cache::Served;
use crate::fairness::{Connection, Connections};
use crate::index::{Caller, Decision};
use crate::shared::Shared;
use crate::target::{Endpoint, MAX_TARGET, endpoint, token_request};

/// A connection without a request is closed after this.
const IDLE: Duration = Duration::from_secs(75);
/// Larger request heads are refused.
const MAX_HEAD: usize = 64 * 1024;
/// Larger bodies of exempted pods' requests are refused.
const MAX_BODY: usize = 64 * 1024;
/// After a failed accept (too many open files) the next one waits this long.
const BREATH: Duration = Duration::from_millis(50);

const METADATA: HeaderName = HeaderName::from_static("metadata");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

type Answer = Response<Full<Bytes>>;

/// Serves a listener until shutdown; requests under way are finished.
pub(crate) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let open = Arc::new(Connections::default());
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                match open.open(address) {
                    Some(place) => {
                        let talk = converse(
                            stream,
                            place,
                            address,
                            Arc::clone(&shared),
                            shutdown.clone(),
                        );
                        tasks.spawn(talk);
                    }
                    None => shared.metrics.dropped(),
                }
            }
            Err(error) => {
                tracing::warn!(reason = %error, "a connection could not be accepted");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn converse(
    stream: TcpStream,
    place: Connection,
    peer: IpAddr,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    // Answers are small and whole; waiting for more only delays them.
    let _ = stream.set_nodelay(true);
    shared.metrics.connections().inc();
    let visit = Visit {
        peer,
        place,
        uid: OnceLock::new(),
        attested: AtomicBool::new(false),
    };
    let service = service_fn(|request| {
        let answer = respond(&shared, request, &visit);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, reason = %error, "a connection ended early");
    }
    shared.metrics.connections().dec();
}

/// One connection: whoever opened it is the only one it serves, though its address pass to another pod.
struct Visit {
    peer: IpAddr,
    place: Connection,
    uid: OnceLock<Arc<str>>,
    /// Whether the pod is who it is for as long as the connection lasts.
    attested: AtomicBool,
}

impl Visit {
    fn is_of(&self, pod: &PodFacts) -> bool {
        *self.uid.get_or_init(|| Arc::clone(&pod.uid)) == pod.uid
    }

    /// Lets nobody through whom the node's kernel takes for somebody else than `pod`.
    async fn attest(&self, shared: &Shared, pod: &PodFacts) -> Result<(), Refusal> {
        let Some(attestor) = &shared.config.attestor else {
            return Ok(());
        };
        if self.attested.load(Ordering::Relaxed) {
            return Ok(());
        }
        match attestor.look(pod, self.peer).await {
            Evidence::Genuine { fleeting } => {
                self.attested.store(!fleeting, Ordering::Relaxed);
                Ok(())
            }
            Evidence::None => Ok(()),
            Evidence::Other => Err(Refusal::NotAttested {
                pod: pod.key.clone(),
                address: self.peer,
            }),
        }
    }
}

/// What the log and the metrics are told about a request.
#[derive(Default)]
struct Told {
    endpoint: &'static str,
    pod: Option<Arc<PodFacts>>,
    resource: String,
}

async fn respond(shared: &Shared, request: Request<Incoming>, visit: &Visit) -> Answer {
    let started = Instant::now();
    let mut told = Told::default();
    let outcome = route(shared, request, visit, &mut told).await;
    let answer = match outcome {
        Ok(answer) => answer,
        Err(refusal) => {
            shared.metrics.refused(refusal.name());
            tell(shared, &refusal, visit.peer, told.pod.as_deref());
            refusal.answer()
        }
    };
    let namespace = told.pod.as_ref().map_or("", |pod| &pod.key.namespace);
    let status = answer.status().as_u16();
    let took = started.elapsed();
    shared
        .metrics
        .answered(told.endpoint, status, namespace, &told.resource, took);
    answer
}

fn tell(shared: &Shared, refusal: &Refusal, peer: IpAddr, pod: Option<&PodFacts>) {
    let Some(left_out) = shared.quiet.admit() else {
        return;
    };
    if left_out > 0 {
        tracing::warn!(
            left_out,
            "more refusals than are logged; metrics count them all"
        );
    }
    let (name, namespace) = pod.map_or(("", ""), |pod| (&pod.key.name, &pod.key.namespace));
    tracing::info!(
        pod = name, namespace, %peer, status = refusal.status().as_u16(), reason = refusal.name(), detail = %refusal,
        "refused"
    );
}

async fn route(
    shared: &Shared,
    request: Request<Incoming>,
    visit: &Visit,
    told: &mut Told,
) -> Result<Answer, Refusal> {
    told.endpoint = "other";
    let caller = shared.caller(visit.peer);
    if let Some(Caller::Pod(pod)) = &caller {
        if !visit.is_of(pod) {
            return Err(Refusal::ChangedHands(visit.peer));
        }
        told.pod = Some(Arc::clone(pod));
        let exemption = shared.index.read().exemption(pod);
        if let Some(exception) = exemption {
            told.endpoint = "exempted";
            visit.attest(shared, pod).await?;
            tracing::debug!(pod = %pod.key, %exception, "passed on unchanged");
            return pass_on(shared, request).await;
        }
    }
    if request
        .uri()
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > MAX_TARGET)
    {
        return Err(Refusal::TooLong);
    }
    match endpoint(request.uri().path()) {
        Endpoint::Identity | Endpoint::Unknown => Err(Refusal::NotFound),
        Endpoint::Category(category) => {
            told.endpoint = "metadata";
            let allowed = &shared.config.allowed_categories;
            if !allowed
                .iter()
                .any(|name| name.eq_ignore_ascii_case(category))
            {
                return Err(Refusal::Category(category.to_owned()));
            }
            admissible(shared, &request)?;
            pass_on(shared, request).await
        }
        Endpoint::Token => {
            told.endpoint = "token";
            admissible(shared, &request)?;
            if visit.place.is_beyond_share() {
                return Err(Refusal::Busy);
            }
            token(shared, &request, visit, told).await
        }
    }
}

/// What holds for every request, known before anything is looked up, so that probes are answered at once.
fn admissible(shared: &Shared, request: &Request<Incoming>) -> Result<(), Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    let headers = request.headers();
    if headers.contains_key(FORWARDED_FOR) {
        return Err(Refusal::Forwarded);
    }
    let mut values = headers.get_all(METADATA).iter();
    let stated =
        values.next().is_some_and(|value| value == "true") && values.all(|value| value == "true");
    if stated || !shared.config.metadata_header_required {
        Ok(())
    } else {
        Err(Refusal::NoMetadataHeader)
    }
}

async fn token(
    shared: &Shared,
    request: &Request<Incoming>,
    visit: &Visit,
    told: &mut Told,
) -> Result<Answer, Refusal> {
    let query = token_request(request.uri().query().unwrap_or_default())?;
    told.resource.push_str(&query.resource);
    if let Some(Caller::Unknown | Caller::NotYet) = shared.caller(visit.peer) {
        shared.lookup.ask(visit.peer).await;
    }
    let (pod, identity) = granted(shared, visit, &query.wanted).await?;
    let (token, served) = shared
        .cache
        .get(&identity, &query.resource, query.bypass_cache)
        .await?;
    // While the token was fetched the grant may have gone, or gone to another identity.
    if served == Served::Fetched {
        match look(shared, visit, &query.wanted)? {
            Grant::Now(_, now) if now == identity => {}
            _ => return Err(Refusal::GrantChanged(pod.key.clone())),
        }
        visit.attest(shared, &pod).await?;
    }
    let how = match served {
        Served::Hit => "hit",
        Served::Fetched => "fetched",
    };
    shared.metrics.token(how);
    tracing::info!(
        target: "podid::audit", pod = %pod.key.name, namespace = %pod.key.namespace,
        service_account = %pod.service_account, identity = %identity.key, resource = %query.resource,
        door = "imds", cache = how, expires_on = token.expires_on().as_second(), "token issued"
    );
    Ok(answer::token(&token, Timestamp::now()))
}

/// The caller and the identity it is granted; waits a little for one that is on its way to the pod's host.
async fn granted(
    shared: &Shared,
    visit: &Visit,
    wanted: &Wanted,
) -> Result<(Arc<PodFacts>, Arc<IdentityFacts>), Refusal> {
    match look(shared, visit, wanted)? {
        Grant::Now(pod, identity) => {
            visit.attest(shared, &pod).await?;
            return Ok((pod, identity));
        }
        Grant::Soon(pod, _) => visit.attest(shared, &pod).await?,
    }
    // Subscribed before looking again, so that no change between the two is missed.
    let mut changes = shared.changes.subscribe();
    let until = tokio::time::Instant::now() + shared.config.assignment_wait;
    loop {
        let (pod, identity) = match look(shared, visit, wanted)? {
            Grant::Now(pod, identity) => return Ok((pod, identity)),
            Grant::Soon(pod, identity) => (pod, identity),
        };
        let changed = tokio::time::timeout_at(until, changes.changed()).await;
        if !matches!(changed, Ok(Ok(()))) {
            return Err(Refusal::NotAssigned {
                pod: pod.key.clone(),
                identity: identity.key.clone(),
            });
        }
    }
}

enum Grant {
    Now(Arc<PodFacts>, Arc<IdentityFacts>),
    Soon(Arc<PodFacts>, Arc<IdentityFacts>),
}

/// What the caller is granted as things are now: neither the pod nor the grant is remembered from before a wait.
fn look(shared: &Shared, visit: &Visit, wanted: &Wanted) -> Result<Grant, Refusal> {
    if !shared.is_synced() {
        return Err(Refusal::Starting);
    }
    let index = shared.index.read();
    let watched = index.caller(visit.peer);
    let pod = match shared.lookup.caller(visit.peer, watched) {
        Caller::Pod(pod) if visit.is_of(&pod) => pod,
        Caller::Pod(_) => return Err(Refusal::ChangedHands(visit.peer)),
        Caller::Ambiguous => return Err(Refusal::AmbiguousCaller(visit.peer)),
        Caller::NotYet => return Err(Refusal::UnknownYet(visit.peer)),
        Caller::Unknown => return Err(Refusal::UnknownCaller(visit.peer)),
    };
    match index.decide(&pod, wanted) {
        Decision::Grant(identity) => Ok(Grant::Now(pod, identity)),
        Decision::NotYet(identity) => Ok(Grant::Soon(pod, identity)),
        Decision::Refused(reason) => Err(Refusal::Denied(reason)),
        // It was not exempted a moment ago; the client asks again.
        Decision::Exempt(_) => Err(Refusal::GrantChanged(pod.key.clone())),
    }
}

async fn pass_on(shared: &Shared, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let (mut parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(|_| Refusal::TooLong)?
        .to_bytes();
    for name in [
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-length",
        "upgrade",
    ] {
        parts.headers.remove(name);
    }
    let answer = shared
        .upstream
        .imds()
        .forward(Request::from_parts(parts, body))
        .await
        .map_err(Refusal::Upstream)?;
    Ok(answer::forwarded(answer))
}

#[cfg(test)]
mod tests;
