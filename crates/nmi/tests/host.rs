//! The host token socket: programs of the node ask for the tokens of pods.

// Helpers of tests may panic, as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use common::client::{Answer, answers};
use common::objects::{BOTH, READER, WEB, WRITER};
use common::rig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// A path for a socket, in a folder that is removed with it.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("podid-host-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("host.sock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn ask(socket: &Path, request: &str) -> Answer {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let request = format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    answers(&bytes, false).remove(0)
}

const GET: &str = "GET /host/token/?resource=https://vault.azure.net HTTP/1.1\r\n";

#[tokio::test]
async fn a_pods_token_is_given_in_the_originals_shape() {
    let place = Place::new();
    let socket = place.socket();
    // What an earlier process left behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let _rig = rig(|config| config.host_token_socket = Some(socket.clone())).await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = ask(&socket, &format!("{GET}podname: web\r\npodns: shop")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    assert_eq!(body["clientid"], READER);
    assert_eq!(body["token"]["resource"], "https://vault.azure.net");
    assert!(body["token"]["access_token"].is_string());
    let named = GET.replace("resource=", &format!("client_id={WRITER}&resource="));
    let answer = ask(&socket, &format!("{named}podname: both\r\npodns: shop")).await;
    assert_eq!(answer.json()["clientid"], WRITER);
}

#[tokio::test]
async fn what_cannot_be_given_is_said() {
    let place = Place::new();
    let rig = rig(|config| config.host_token_socket = Some(place.socket())).await;
    rig.upstream.forget();
    for (request, status) in [
        (format!("{GET}podname: web"), 400),
        (format!("{GET}podns: shop"), 400),
        (format!("{GET}podname: web\r\npodname: both\r\npodns: shop"), 400),
        (format!("{GET}podname: bare\r\npodns: shop"), 400),
        (format!("{GET}podname: nobody\r\npodns: shop"), 400),
        (format!("{GET}podname: web\r\npodns: elsewhere"), 400),
        (format!("{GET}podname: exempt\r\npodns: shop"), 400),
        (format!("{GET}podname: soon\r\npodns: shop"), 500),
        ("GET /host/token HTTP/1.1\r\npodname: web\r\npodns: shop".to_owned(), 400),
        ("POST /host/token?resource=r HTTP/1.1\r\npodname: web\r\npodns: shop".to_owned(), 405),
        ("GET /metadata/identity/oauth2/token?resource=r HTTP/1.1\r\npodname: web\r\npodns: shop".to_owned(), 404),
        ("nonsense".to_owned(), 400),
    ] {
        let answer = ask(&place.socket(), &request).await;
        assert_eq!(answer.status, status, "{request}: {answer:?}");
        assert!(answer.json()["error_description"].is_string());
    }
    assert!(rig.upstream.seen().is_empty());
}

#[tokio::test]
async fn over_the_network_there_is_none() {
    let place = Place::new();
    let rig = rig(|config| config.host_token_socket = Some(place.socket())).await;
    for from in [WEB, BOTH] {
        let request = format!(
            "{GET}Host: x\r\nMetadata: true\r\npodname: both\r\npodns: shop\r\nConnection: close\r\n\r\n"
        );
        let answer = rig.raw(from, &request).await;
        assert_eq!(answer.status, 403);
        assert!(answer.description().contains("--host-token-socket"));
    }
}

/// The unmodified Key Vault provider asks as root from the host's network; everybody else is refused as without the flag.
#[tokio::test]
async fn over_loopback_root_of_the_node_is_served_and_nobody_else() {
    let rig = rig(|config| config.host_token_loopback = true).await;
    let port = rig.listener.port();
    let ask = async |setpriv: &[&str], more: &[&str]| {
        let mut command = tokio::process::Command::new("setpriv");
        command.args(setpriv).args([
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "-w",
            "\n%{http_code}",
            "-H",
            "podname: web",
            "-H",
            "podns: shop",
        ]);
        command.args(more);
        command.arg(format!(
            "http://127.0.0.1:{port}/host/token/?resource=https://vault.azure.net"
        ));
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        (status.to_owned(), body)
    };
    let (status, body) = ask(&["--reuid=0"], &[]).await;
    assert_eq!(status, "200", "{body}");
    assert_eq!(body["clientid"], READER);
    assert!(body["token"]["access_token"].is_string());
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let (status, body) = ask(&nobody, &[]).await;
    assert_eq!(status, "403", "{body}");
    let (status, body) = ask(&["--reuid=0"], &["-H", "Via: 1.1 proxy"]).await;
    assert_eq!(status, "400", "{body}");
    // Without the flag it is as before.
    let rig = common::rig(|_| {}).await;
    let request =
        format!("{GET}Host: x\r\npodname: web\r\npodns: shop\r\nConnection: close\r\n\r\n");
    assert_eq!(rig.raw(WEB, &request).await.status, 403);
}
