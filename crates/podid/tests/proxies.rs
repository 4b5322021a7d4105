//! Forward proxy and SOCKS5 proxy on the way to a real kube-apiserver: podid reaches it where kubectl does, by the proxies that
//! kubectl asks. The proxies are the test's own, and the only ones that know the server's name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use podid_testkit::apiserver::ApiServer;
use podid_testkit::process;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;

/// A name that no resolver knows.
const NAME: &str = "api.podid.invalid";

/// A proxy, and what it was asked for: host and port, and credentials where there are some.
#[derive(Clone)]
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(socks: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
        };
        let own = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let own = own.clone();
                tokio::spawn(async move {
                    match socks {
                        true => own.socks(client).await,
                        false => own.connect(client).await,
                    }
                });
            }
        });
        proxy
    }

    /// CONNECT of HTTP.
    async fn connect(self, mut client: TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        let target = head.strip_prefix("CONNECT ")?.split(' ').next()?;
        let mut asked = target.to_owned();
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        if let Some((_, proof)) =
            lines.find(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"))
        {
            let proof = STANDARD.decode(proof.strip_prefix("Basic ")?).ok()?;
            asked = format!("{}@{asked}", String::from_utf8(proof).ok()?);
        }
        let port = target.rsplit_once(':')?.1.parse().ok()?;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
        self.forward(client, asked, port).await
    }

    /// RFC 1928, and the user name of RFC 1929 where the client has one.
    async fn socks(self, mut client: TcpStream) -> Option<()> {
        let mut methods = [0; 255];
        let [_, count] = [client.read_u8().await.ok()?, client.read_u8().await.ok()?];
        let methods = &mut methods[..usize::from(count)];
        client.read_exact(methods).await.ok()?;
        let mut asked = String::new();
        if methods.contains(&2) {
            client.write_all(&[5, 2]).await.ok()?;
            client.read_u8().await.ok()?;
            let (user, password) = (text(&mut client).await?, text(&mut client).await?);
            asked = format!("{user}:{password}@");
            client.write_all(&[1, 0]).await.ok()?;
        } else {
            client.write_all(&[5, 0]).await.ok()?;
        }
        let mut request = [0; 4];
        client.read_exact(&mut request).await.ok()?;
        let host = match request[3] {
            1 => std::net::Ipv4Addr::from(client.read_u32().await.ok()?).to_string(),
            3 => text(&mut client).await?,
            _ => return None,
        };
        let port = client.read_u16().await.ok()?;
        client
            .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
            .await
            .ok()?;
        self.forward(client, format!("{asked}{host}:{port}"), port)
            .await
    }

    async fn forward(self, mut client: TcpStream, asked: String, port: u16) -> Option<()> {
        self.asked.lock().push(asked);
        let mut server = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        copy_bidirectional(&mut client, &mut server).await.ok()?;
        Some(())
    }
}

/// A text with its length before it.
async fn text(client: &mut TcpStream) -> Option<String> {
    let mut text = vec![0; client.read_u8().await.ok()?.into()];
    client.read_exact(&mut text).await.ok()?;
    String::from_utf8(text).ok()
}

/// `HTTP` and `SOCKS` stand for the addresses of the proxies, `DEAD` for one where nothing listens.
#[rstest]
#[case::http(NAME, Some("http://HTTP"), &[], "http")]
#[case::socks5(NAME, Some("socks5://SOCKS"), &[], "socks")]
#[case::socks5_with_password(NAME, Some("socks5://me:p%40ss@SOCKS"), &[], "socks me:p@ss@")]
#[case::also_on_this_machine("127.0.0.1", Some("http://HTTP"), &[], "http")]
#[case::whatever_the_environment_says(NAME, Some("http://HTTP"), &[("HTTPS_PROXY", "http://DEAD"), ("NO_PROXY", "*")], "http")]
#[case::environment(NAME, None, &[("HTTPS_PROXY", "http://HTTP")], "http")]
#[case::lower_case(NAME, None, &[("https_proxy", "http://HTTP")], "http")]
#[case::without_a_scheme(NAME, None, &[("HTTPS_PROXY", "HTTP")], "http")]
#[case::with_password(NAME, None, &[("HTTPS_PROXY", "http://me:p%40ss@HTTP")], "http me:p@ss@")]
#[case::socks5_of_the_environment(NAME, None, &[("HTTPS_PROXY", "socks5://SOCKS")], "socks")]
#[case::a_list_with_gaps(NAME, None, &[("HTTPS_PROXY", "http://HTTP"), ("NO_PROXY", ", example.com,,")], "http")]
#[case::the_proxys_own_address_is_no_exception(NAME, None, &[("HTTPS_PROXY", "http://HTTP"), ("NO_PROXY", "127.0.0.1,localhost")], "http")]
#[case::for_http_alone("127.0.0.1", None, &[("HTTP_PROXY", "http://DEAD")], "")]
#[case::not_for_this_machine("127.0.0.1", None, &[("HTTPS_PROXY", "http://DEAD")], "")]
#[tokio::test(flavor = "multi_thread")]
async fn podid_reaches_the_api_server_where_kubectl_does(
    #[case] server: &str,
    #[case] proxy_url: Option<&str>,
    #[case] variables: &[(&str, &str)],
    #[case] asked: &str,
) {
    // One for all cases, as it takes seconds to start; it ends with this process.
    static API: OnceCell<ApiServer> = OnceCell::const_new();
    let api = API.get_or_init(|| async { ApiServer::start().await.unwrap() });
    let api = api.await;
    let (http, socks) = (Proxy::start(false).await, Proxy::start(true).await);
    let filled = |text: &str| {
        let text = text.replace("HTTP", &http.address.to_string());
        let text = text.replace("SOCKS", &socks.address.to_string());
        text.replace("DEAD", "127.0.0.1:1")
    };
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(api.kubeconfig()).unwrap()).unwrap();
    let cluster = &mut config["clusters"][0]["cluster"];
    let direct = cluster["server"].as_str().unwrap().to_owned();
    let (_, port) = direct.rsplit_once(':').unwrap();
    cluster["server"] = json!(format!("https://{server}:{port}"));
    cluster["tls-server-name"] = json!("localhost");
    if let Some(url) = proxy_url {
        cluster["proxy-url"] = json!(filled(url));
    }
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let [kubectl, podid] = [api.kubectl(), Path::new(env!("CARGO_BIN_EXE_podid"))];
    for (program, arguments) in [
        (kubectl, ["get", "namespaces"]),
        (podid, ["crds", "--apply"]),
    ] {
        http.asked.lock().clear();
        socks.asked.lock().clear();
        let mut command = process::command(None, program);
        command
            .args(arguments)
            .env("KUBECONFIG", &kubeconfig)
            .env("KUBECACHEDIR", folder.path())
            .envs(variables.iter().map(|(name, value)| (name, filled(value))));
        let output = tokio::process::Command::from(command)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}: {output:?}", program.display());
        let (kind, who) = asked.split_once(' ').unwrap_or((asked, ""));
        let expected = format!("{who}{server}:{port}");
        for (proxy, of) in [(&http, "http"), (&socks, "socks")] {
            let asked = proxy.asked.lock().clone();
            assert_eq!(asked.is_empty(), kind != of, "{}: {of}", program.display());
            assert!(asked.iter().all(|asked| *asked == expected), "{asked:?}");
        }
    }
}

#[tokio::test]
async fn a_proxy_url_that_is_none_is_refused_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": { "server": "https://127.0.0.1:1", "proxy-url": "ftp://me:hush@proxy" } }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }],
        "users": [{ "name": "x", "user": {} }],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let mut command = process::command(None, env!("CARGO_BIN_EXE_podid"));
    command
        .args(["crds", "--apply"])
        .env("KUBECONFIG", &kubeconfig);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("proxy-url"),
        "{said}"
    );
    assert!(!said.contains("hush"), "{said}");
}
