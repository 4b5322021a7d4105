//! Client of the API server, directly or through a forward proxy (CONNECT) or a SOCKS5 proxy, as kubectl reaches it. Every command
//! that speaks to a cluster has it.
//!
//! ```text
//! kubeconfig's proxy-url ──► that one, whatever NO_PROXY says
//! none                   ──► HTTPS_PROXY, HTTP_PROXY, unless NO_PROXY or a loopback address
//! ```

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use http::Uri;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use podid_azure::proxy;
use tower::retry::RetryLayer;
use tower::timeout::TimeoutLayer;
use tower::{BoxError, ServiceBuilder};

/// Time limit for the head of an answer. The API server itself gives up after a minute (its `--request-timeout`), so that after
/// this the connection is dead, and the request is made again on another.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(65);
/// Time limit between two pieces of an answer. Watches are shorter: they are started anew before this.
const READ_TIMEOUT: Duration = Duration::from_secs(310);

/// A client for the API server: by `--kubeconfig`, `KUBECONFIG`, or the pod's own service account.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let read = match kubeconfig {
        Some(path) => Some(Kubeconfig::read_from(path).with_context(|| at(path))?),
        None => Kubeconfig::read().ok(),
    };
    let own = read.as_ref().and_then(proxy_url);
    let mut config = match (kubeconfig, read) {
        (Some(path), Some(read)) => {
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .with_context(|| at(path))?
        }
        _ => Config::infer().await.context(
            "the API server is not known; give --kubeconfig or KUBECONFIG, or run in a pod with a service account",
        )?,
    };
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // kube sets it from the kubeconfig or the environment alone: without one, the configuration is the service account's.
    let own = own.filter(|_| config.proxy_url.is_some());
    config.proxy_url = None;
    match between(&config.cluster_url, own.as_deref())? {
        None => {
            let client = ClientBuilder::try_from(config).context(NO_CLIENT)?;
            let limit = TimeoutLayer::new(ANSWER_TIMEOUT);
            Ok(client.with_layer(&limit).build())
        }
        Some(proxy) => by_proxy(&config, &proxy).context(NO_CLIENT),
    }
}

/// What fails when a client cannot be made.
const NO_CLIENT: &str = "no client for the API server";

fn at(path: &Path) -> String {
    format!("--kubeconfig {}", path.display())
}

/// The proxy-url of the current context's cluster.
fn proxy_url(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_ref()?;
    let mut contexts = kubeconfig.contexts.iter();
    let context = contexts.find(|context| &context.name == current)?;
    let name = &context.context.as_ref()?.cluster;
    let mut clusters = kubeconfig.clusters.iter();
    let cluster = clusters.find(|cluster| &cluster.name == name)?;
    let url = cluster.cluster.as_ref()?.proxy_url.clone()?;
    Some(url).filter(|url| !url.is_empty())
}

/// The proxy between here and the API server: its kubeconfig's `own`, else one of the environment.
fn between(server: &Uri, own: Option<&str>) -> anyhow::Result<Option<Intercept>> {
    let Some(own) = own else {
        let default = if server.scheme_str() == Some("http") {
            80
        } else {
            443
        };
        let port = server.port_u16().unwrap_or(default);
        return Ok(proxy::of_environment(port).intercept(server));
    };
    let only = Matcher::builder().all(own).build();
    // It is not quoted, as it may have a password.
    let usable = only.intercept(server).filter(|proxy| {
        matches!(
            proxy.uri().scheme_str(),
            Some("http" | "https" | "socks5" | "socks5h")
        )
    });
    let wrong = || anyhow!("the kubeconfig's proxy-url is no http, https or socks5 URL");
    usable.ok_or_else(wrong).map(Some)
}

fn by_proxy(config: &Config, proxy: &Intercept) -> anyhow::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    let to = proxy.uri().clone();
    if to
        .scheme_str()
        .is_some_and(|scheme| scheme.starts_with("socks"))
    {
        let socks = SocksV5::new(to, tcp);
        let socks = match proxy.raw_auth() {
            Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
            None => socks,
        };
        return client_over(config, socks);
    }
    if to.scheme_str() == Some("https") {
        let tls = config.rustls_https_connector_with_connector(tcp)?;
        return client_over(config, with_password(Tunnel::new(to, tls), proxy));
    }
    client_over(config, with_password(Tunnel::new(to, tcp), proxy))
}

fn with_password<C>(tunnel: Tunnel<C>, proxy: &Intercept) -> Tunnel<C> {
    match proxy.basic_auth() {
        Some(password) => tunnel.with_auth(password.clone()),
        None => tunnel,
    }
}

/// What kube builds of a configuration, over connections of this kind.
fn client_over<C>(config: &Config, connector: C) -> anyhow::Result<Client>
where
    C: tower::Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: std::error::Error + Send + Sync + 'static,
{
    let tls = config.rustls_https_connector_with_connector(connector)?;
    let mut timeouts = TimeoutConnector::new(tls);
    timeouts.set_connect_timeout(config.connect_timeout);
    timeouts.set_read_timeout(config.read_timeout);
    timeouts.set_write_timeout(config.write_timeout);
    timeouts.set_reset_reader_on_write(config.reset_reader_on_write);
    let http: legacy::Client<_, Body> = legacy::Builder::new(TokioExecutor::new()).build(timeouts);
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(ANSWER_TIMEOUT))
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}
