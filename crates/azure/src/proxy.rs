//! Forward proxy of the environment: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` as programs in Go read them, AAD Pod Identity and
//! kubectl among them. The clients of Entra and of Azure Resource Manager and the one of the API server come here; the client of the
//! metadata service (`imds.rs`) does not, because what goes through a proxy is not the node's own request.

use hyper_util::client::proxy::matcher::Matcher;

/// What no proxy of the environment is asked for: this machine, and the metadata service.
const NEVER: &str = "localhost,127.0.0.0/8,::1,169.254.169.254";
/// The port of Azure's endpoints.
const HTTPS: u16 = 443;

/// The proxies of the environment, for requests to `port`.
pub fn of_environment(port: u16) -> Matcher {
    Matcher::builder()
        .https(variable("HTTPS_PROXY"))
        .http(variable("HTTP_PROXY"))
        .no(never(&variable("NO_PROXY"), port))
        .build()
}

/// Lets a client use the proxies of the environment. One that is no URL is not used.
pub(crate) fn used_by(client: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    let [https, http, no] = ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"].map(variable);
    with(client, &https, &http, &no)
}

fn with(
    client: reqwest::ClientBuilder,
    https: &str,
    http: &str,
    no_proxy: &str,
) -> reqwest::ClientBuilder {
    let never = never(no_proxy, HTTPS);
    let proxies = [reqwest::Proxy::https(https), reqwest::Proxy::http(http)];
    // Without this reqwest reads the environment itself, and sends requests to this machine through a proxy.
    let direct = client.no_proxy();
    proxies.into_iter().flatten().fold(direct, |client, proxy| {
        client.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(&never)))
    })
}

/// A variable in upper case, else in lower case; empty without either.
fn variable(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let mut set = [name, &lower].into_iter().flat_map(std::env::var);
    let value = set.find(|value| !value.trim().is_empty());
    value.map_or_else(String::new, |value| value.trim().to_owned())
}

/// `NO_PROXY` with [`NEVER`], and without what the matcher does not know: a star before a domain, and a port.
fn never(no_proxy: &str, port: u16) -> String {
    let mut all = NEVER.to_owned();
    for entry in no_proxy.split(',') {
        let entry = entry.trim();
        let entry = entry
            .strip_prefix('*')
            .filter(|e| e.starts_with('.'))
            .unwrap_or(entry);
        let host = match entry.rsplit_once(':') {
            Some((host, of)) if of.parse() == Ok(port) && !bare_ipv6(host) => host,
            _ => entry,
        };
        all.push(',');
        all += host.trim_matches(['[', ']']);
    }
    all
}

/// Whether this is a part of an IPv6 address that has no brackets, of which the last number is no port.
fn bare_ipv6(host: &str) -> bool {
    host.contains(':') && !host.starts_with('[')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("", "https://api.example:6443/", true)]
    #[case("*", "https://api.example:6443/", false)]
    #[case("example", "https://api.example:6443/", false)]
    #[case(".example,", "https://api.example:6443/", false)]
    #[case(" , *.example ,", "https://api.example:6443/", false)]
    #[case("ple", "https://api.example:6443/", true)]
    #[case("api.example:6443", "https://api.example:6443/", false)]
    #[case("api.example:443", "https://api.example:6443/", true)]
    #[case("10.0.0.0/8,192.168.0.1", "https://10.1.2.3:6443/", false)]
    #[case("10.0.0.0/8", "https://11.1.2.3:6443/", true)]
    #[case("fd00::/8", "https://[fd00::1]:6443/", false)]
    #[case("[fd00::1]:6443", "https://[fd00::1]:6443/", false)]
    #[case("<local>, no/host", "https://api.example:6443/", true)]
    #[case("", "https://localhost:6443/", false)]
    #[case("", "https://127.1.2.3:6443/", false)]
    #[case("", "http://[::1]:6443/", false)]
    #[case("", "http://169.254.169.254/metadata/identity/oauth2/token", false)]
    fn what_is_asked_for_through_a_proxy(
        #[case] no_proxy: &str,
        #[case] url: &str,
        #[case] through: bool,
    ) {
        let url: http::Uri = url.parse().unwrap();
        let port = url.port_u16().unwrap_or(80);
        let proxies = Matcher::builder()
            .https("proxy.example:3128")
            .http("http://proxy.example:3128")
            .no(never(no_proxy, port))
            .build();
        assert_eq!(proxies.intercept(&url).is_some(), through);
    }

    /// What a proxy is asked for by a client with this `NO_PROXY`, in the first line; `None` where it is not asked.
    async fn asked(url: &str, no_proxy: &str) -> Option<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let client = with(reqwest::Client::builder(), &proxy, &proxy, no_proxy);
        let request = client.build().unwrap().get(url).send();
        let asked = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            let mut stream = tokio::io::BufReader::new(stream);
            tokio::io::AsyncBufReadExt::read_line(&mut stream, &mut line)
                .await
                .unwrap();
            line
        };
        tokio::select! {
            line = asked => Some(line.trim().to_owned()),
            failed = request => {
                assert!(failed.is_err());
                None
            }
        }
    }

    #[tokio::test]
    async fn azure_is_reached_through_the_proxy() {
        let line = asked("https://management.podid.invalid/subscriptions", "").await;
        assert_eq!(
            line.unwrap(),
            "CONNECT management.podid.invalid:443 HTTP/1.1"
        );
        let line = asked("http://arm.podid.invalid/x", "example.com").await;
        assert_eq!(line.unwrap(), "GET http://arm.podid.invalid/x HTTP/1.1");
        for (url, no_proxy) in [
            ("https://management.podid.invalid/", "*.podid.invalid"),
            ("http://127.0.0.1:1/", ""),
        ] {
            assert_eq!(asked(url, no_proxy).await, None, "{url}");
        }
    }
}
