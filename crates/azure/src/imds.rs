//! IMDS client: the node's metadata service, which gives tokens of the identities that are attached to the node. The node agent
//! fetches pods' tokens here and forwards requests of exempted pods; the controller fetches its own token. Requests never go
//! through a proxy, and carry a socket mark by which podid's interception rules let them pass.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use podid_policy::ids::{ClientId, ResourceId};
use reqwest::Url;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::endpoints::join;
use crate::error::{Error, ErrorKind, Service};
use crate::token::Token;

/// The version of the IMDS token API.
const API_VERSION: &str = "2018-02-01";
/// The largest answer in bytes; tokens have a few KiB.
const MAX_ANSWER: usize = 256 * 1024;
/// A connection must be accepted within two seconds: the service is on the node's own host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The wait before the second attempt; it doubles with each further one.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The identity of a token request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The node's system-assigned identity.
    System,
    /// The user-assigned identity with this client id.
    Client(ClientId),
    /// The user-assigned identity with this ARM id.
    Resource(ResourceId),
}

/// A client of the metadata service.
#[derive(Clone)]
pub struct Imds {
    client: Client<Connector, Full<Bytes>>,
    base: Arc<Url>,
    deadline: Duration,
}

impl Imds {
    /// A client of the service at `base`. Its sockets carry `mark` (`SO_MARK`, needs CAP_NET_ADMIN), by which interception rules
    /// tell podid's own requests from those of pods. Fetching a token may take as long as `deadline`, retries included.
    pub fn new(base: &Url, mark: Option<u32>, deadline: Duration) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new())
                .pool_idle_timeout(Duration::from_secs(30))
                .build(Connector { mark }),
            base: Arc::new(base.clone()),
            deadline,
        }
    }

    /// A token of `identity` for `resource`. Transient failures are retried until the deadline.
    ///
    /// # Errors
    /// [`ErrorKind::IdentityNotFound`] when the identity is not attached to this node; else as [`ErrorKind`] says.
    pub async fn token(&self, identity: &Identity, resource: &str) -> Result<Token, Error> {
        let until = Instant::now() + self.deadline;
        let mut wait = FIRST_RETRY_DELAY;
        loop {
            let attempt = timeout_at(until, self.attempt(identity, resource));
            let error = match attempt.await {
                Ok(Ok(token)) => return Ok(token),
                Ok(Err(error)) => error,
                Err(_) => return Err(self.timed_out()),
            };
            let pause = error.retry_after().unwrap_or(wait);
            if !error.is_transient() || Instant::now() + pause >= until {
                return Err(error);
            }
            sleep(pause).await;
            wait *= 2;
        }
    }

    async fn attempt(&self, identity: &Identity, resource: &str) -> Result<Token, Error> {
        let mut url = join(&self.base, &["metadata", "identity", "oauth2", "token"]);
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("api-version", API_VERSION);
            query.append_pair("resource", resource);
            match identity {
                Identity::System => {}
                Identity::Client(id) => {
                    query.append_pair("client_id", id.as_str());
                }
                Identity::Resource(id) => {
                    query.append_pair("msi_res_id", id.as_str());
                }
            }
        }
        let request = Request::get(url.as_str())
            .header("metadata", "true")
            .body(Full::default())
            .map_err(|error| Error::new(Service::Imds, ErrorKind::BadRequest, error))?;
        let answer = self.send(request).await?;
        let (parts, body) = answer.into_parts();
        if parts.status.is_success() {
            Token::parse(Service::Imds, &body, resource, Timestamp::now())
        } else {
            let status = parts.status.as_u16();
            Err(Error::from_answer(
                Service::Imds,
                status,
                &parts.headers,
                &body,
            ))
        }
    }

    /// Forwards a request once, with nothing but its address changed.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] or [`ErrorKind::Unavailable`] without an answer, or with one that is too large.
    pub async fn forward(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let address = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        *request.uri_mut() = address.parse().map_err(|error: http::uri::InvalidUri| {
            Error::new(Service::Imds, ErrorKind::BadRequest, error)
        })?;
        // hyper writes the Host header of the new address.
        request.headers_mut().remove(http::header::HOST);
        let send = self.send(request.map(Full::new));
        timeout(self.deadline, send)
            .await
            .map_err(|_| self.timed_out())?
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Error> {
        let unavailable = |error: &dyn std::fmt::Display| {
            Error::new(Service::Imds, ErrorKind::Unavailable, error)
        };
        let answer = self.client.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            unavailable(&cause.unwrap_or_else(|| error.to_string()))
        })?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    }

    fn timed_out(&self) -> Error {
        let message = format!("nothing within {} s", self.deadline.as_secs_f32());
        Error::new(Service::Imds, ErrorKind::Timeout, message)
    }
}

/// Connects to the IP address in the URI, never through a proxy and never by a name.
#[derive(Clone)]
struct Connector {
    mark: Option<u32>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> std::io::Result<TokioIo<TcpStream>> {
        let other = |text: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, text);
        let host = uri
            .host()
            .ok_or_else(|| other("the metadata service's address has no host"))?;
        let ip = host
            .trim_matches(['[', ']'])
            .parse()
            .map_err(|_| other("the metadata service's address is not an IP address"))?;
        let address = SocketAddr::new(ip, uri.port_u16().unwrap_or(80));
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(mark) = self.mark {
            socket2::SockRef::from(&socket).set_mark(mark)?;
        }
        let stream = timeout(CONNECT_TIMEOUT, socket.connect(address))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        Ok(TokioIo::new(stream))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

#[cfg(test)]
mod tests;
