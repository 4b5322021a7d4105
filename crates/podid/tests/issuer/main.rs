//! `podid issuer` as its user runs it: against a real kube-apiserver's documents and tokens, and web servers that serve them well,
//! wrongly, slowly, without an end, or elsewhere.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod internet;

use std::path::Path;

use internet::{ADDRESS, Answer, Internet, PLAIN};
use podid_testkit::apiserver::{ApiServer, Options, TokenIssuer};
use podid_testkit::process::{command, text};
use serde_json::{Value, json};

/// Below the issuer's URL, the two documents.
const DISCOVERY: &str = "/cluster-1/.well-known/openid-configuration";
const JWKS: &str = "/cluster-1/openid/v1/jwks";
/// How a token begins, in base64.
const TOKEN: &str = "eyJ";

fn issuer() -> String {
    format!("https://{ADDRESS}/cluster-1")
}

struct World {
    api: ApiServer,
    internet: Internet,
    folder: tempfile::TempDir,
}

/// What podid printed, and how it ended.
struct Told {
    code: Option<i32>,
    text: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Each finding that is wrong, by its reason.
    fn wrong(&self) -> Vec<String> {
        let told = self.json();
        let checks = told["checks"].as_array().unwrap().iter();
        let wrong = checks.filter(|check| check["result"] == "wrong");
        let reasons = wrong.map(|check| {
            assert!(
                check["cause"].is_string() && check["next"].is_string(),
                "{check}"
            );
            check["reason"].as_str().unwrap().to_owned()
        });
        reasons.collect()
    }
}

impl World {
    async fn build(issuer: Option<String>) -> Self {
        let options = Options {
            issuer: issuer.map_or(TokenIssuer::ClusterInternal, TokenIssuer::Url),
            ..Options::default()
        };
        let api = ApiServer::start_with(options).await.unwrap();
        // No controller makes it.
        let made = api
            .run_kubectl(&["create", "serviceaccount", "default"], "")
            .await;
        assert!(made.unwrap().status.success());
        Self {
            internet: Internet::build(api.port()),
            api,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    async fn podid(&self, kubeconfig: &Path, flags: &[&str]) -> Told {
        let mut podid = command(None, env!("CARGO_BIN_EXE_podid"));
        podid
            .arg("issuer")
            .args(flags)
            .env("KUBECONFIG", kubeconfig)
            .env("SSL_CERT_FILE", &self.internet.ca);
        let output = self.internet.run(podid).await;
        let told = Told {
            code: output.status.code(),
            text: text(&output),
        };
        assert!(
            !told.text.contains(TOKEN),
            "a token is printed: {}",
            told.text
        );
        told
    }

    async fn ask(&self, flags: &[&str]) -> Told {
        self.podid(&self.api.kubeconfig(), flags).await
    }

    /// What the API server itself serves at a path.
    async fn own(&self, path: &str) -> String {
        let raw = self
            .api
            .run_kubectl(&["get", "--raw", path], "")
            .await
            .unwrap();
        assert!(raw.status.success(), "{raw:?}");
        String::from_utf8(raw.stdout).unwrap()
    }

    /// Writes a kubeconfig of this server, whose user is not the administrator.
    fn kubeconfig(&self, server: &str, authority: &Path, user: &Value) -> std::path::PathBuf {
        let path = self.folder.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": server, "certificate-authority": authority } }],
            "users": [{ "name": "test", "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }
}

fn ok(body: &str) -> Answer {
    Answer::Whole(
        "200 OK\r\nCache-Control: public, max-age=3600",
        body.to_owned(),
    )
}

fn missing() -> Answer {
    Answer::Whole("404 Not Found", String::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_real_api_server_issues_is_compared_with_what_is_published() {
    let world = World::build(Some(issuer())).await;
    let discovery = world.own("/.well-known/openid-configuration").await;
    let mut document: Value = serde_json::from_str(&discovery).unwrap();
    document["jwks_uri"] = format!("https://{ADDRESS}{JWKS}").into();
    let document = document.to_string();
    let keys = world.own("/openid/v1/jwks").await;
    let serve = |document: Answer, keys: Answer| {
        world.internet.site(move |path| match path {
            DISCOVERY => document.clone(),
            JWKS => keys.clone(),
            _ => missing(),
        });
    };

    serve(ok(&document), ok(&keys));
    let good = world.ask(&[]).await;
    assert_eq!(good.code, Some(0), "{}", good.text);
    assert!(
        good.text.contains("Entra can use this issuer"),
        "{}",
        good.text
    );
    let good = world.ask(&["--output=json"]).await.json();
    assert_eq!(
        (&good["issuer"], &good["usable"]),
        (&issuer().into(), &true.into())
    );
    let checks = good["checks"].as_array().unwrap();
    assert!(
        checks.iter().all(|check| check["result"] == "ok"),
        "{good:#}"
    );
    assert_eq!(good["keys"][0]["signs"], true);

    let other = |from: &str, to: &str| {
        assert!(document.contains(from), "{document}");
        ok(&document.replace(from, to))
    };
    let slash = other(&format!("\"{}\"", issuer()), &format!("\"{}/\"", issuer()));
    let plain = other("\"jwks_uri\":\"https:", "\"jwks_uri\":\"http:");
    let foreign_key =
        r#"{"keys":[{"kty":"RSA","kid":"other","alg":"RS256","n":"AQAB","e":"AQAB"}]}"#;
    let moved = Answer::Whole(
        "301 Moved Permanently\r\nLocation: https://elsewhere.example.com/",
        String::new(),
    );
    let page = ok("<html>not found</html>");
    for (document, keys, reason) in [
        (slash, ok(&keys), "IssuerDiffers"),
        (plain, ok(&keys), "JwksUriNotHttps"),
        (ok(&document), ok(foreign_key), "SigningKeyMissing"),
        (ok(&document), missing(), "NotFound"),
        (ok(&document), moved.clone(), "Redirected"),
        (ok(&document), Answer::Endless, "TooLarge"),
        (ok(&document), page.clone(), "Malformed"),
        (ok(&document), Answer::Trickle, "TimedOut"),
        (moved, ok(&keys), "Redirected"),
        (page, ok(&keys), "Malformed"),
        (Answer::Silent, ok(&keys), "TimedOut"),
        (Answer::Endless, ok(&keys), "TooLarge"),
        (
            Answer::Whole("403 Forbidden", String::new()),
            ok(&keys),
            "AccessRefused",
        ),
        (
            Answer::Whole("502 Bad Gateway", String::new()),
            ok(&keys),
            "UnexpectedStatus",
        ),
    ] {
        serve(document, keys);
        let flags = match reason {
            "TimedOut" => &["--output=json", "--timeout=1s"][..],
            _ => &["--output=json"],
        };
        let told = world.ask(flags).await;
        assert_eq!(
            (told.code, told.wrong()),
            (Some(3), vec![reason.to_owned()])
        );
    }

    // Where nothing listens, where nothing has a name, at the API server, whose certificate nobody else trusts, and without TLS.
    let plain = format!("https://{ADDRESS}:{PLAIN}/x");
    let api = format!("https://127.0.0.1:{}", world.api.port());
    for (url, reason) in [
        ("https://20.50.60.70:8443/x", "Unreachable"),
        ("https://issuer.invalid/x", "NameNotFound"),
        (&*api, "TlsFailed"),
        (&*plain, "TlsFailed"),
    ] {
        let told = world.ask(&["--output=json", "--issuer-url", url]).await;
        assert!(
            told.wrong().contains(&reason.to_owned()),
            "{url}: {}",
            told.text
        );
        assert_eq!(told.code, Some(3), "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_nobody_gave_an_issuer_gets_documents_to_publish() {
    let world = World::build(None).await;
    let told = world.ask(&[]).await;
    assert_eq!(told.code, Some(3), "{}", told.text);
    for part in [
        "wrong: ClusterInternal",
        "https://kubernetes.default.svc",
        "az aks update",
        "--write=DIRECTORY",
    ] {
        assert!(told.text.contains(part), "{part}: {}", told.text);
    }

    let site = world.folder.path().join("site");
    let write = format!("--write={}", site.display());
    let told = world.ask(&[&write]).await;
    assert_eq!(told.code, Some(1), "{}", told.text);
    assert!(
        told.text.contains("--write needs --issuer-url"),
        "{}",
        told.text
    );
    assert!(!site.exists());

    let issuer = issuer();
    let url = format!("--issuer-url={issuer}");
    let told = world.ask(&[&write, &url]).await;
    assert_eq!(told.code, Some(0), "{}", told.text);
    let step = format!(
        "Start kube-apiserver with --service-account-issuer={issuer}, and after it the former --service-account-issuer=https://kubernetes.default.svc"
    );
    assert!(told.text.contains(&step), "{}", told.text);

    // The web server has nothing but the files.
    let files = site.clone();
    world.internet.site(move |path| {
        let name = path.strip_prefix("/cluster-1/").unwrap_or_default();
        std::fs::read_to_string(files.join(name)).map_or(missing(), |body| ok(&body))
    });
    let told = world.ask(&[&url, "--output=json"]).await;
    assert_eq!(
        (told.code, told.wrong()),
        (Some(3), vec!["TokenIssuerDiffers".to_owned()])
    );

    // Without a token the API server's own word counts.
    let told = world
        .ask(&[&url, "--service-account=default/nobody", "--output=json"])
        .await;
    assert_eq!(told.json()["tokenIssuer"], Value::Null);
    assert_eq!(told.wrong(), ["TokenIssuerDiffers"]);

    let told = world.ask(&[&url, "--write=/proc/nowhere"]).await;
    assert_eq!(told.code, Some(1));
    assert!(
        told.text.contains("--write: /proc/nowhere"),
        "{}",
        told.text
    );

    // Who may not read the documents is told so.
    let stranger = json!({ "token": "of-the-test" });
    let kubeconfig = world.kubeconfig(
        &format!("https://127.0.0.1:{}", world.api.port()),
        world.api.authority(),
        &stranger,
    );
    let told = world.podid(&kubeconfig, &[]).await;
    assert_eq!(told.code, Some(1), "{}", told.text);
    assert!(
        told.text.contains("check the credential of the kubeconfig"),
        "{}",
        told.text
    );
    assert!(!told.text.contains("of-the-test"), "{}", told.text);

    an_api_server_that_is_none_is_not_read_for_ever(&world).await;
}

async fn an_api_server_that_is_none_is_not_read_for_ever(world: &World) {
    let user = json!({ "token": "of-the-test" });
    let kubeconfig = world.kubeconfig(&format!("https://{ADDRESS}"), &world.internet.ca, &user);
    let page = ok("<html>");
    for (answer, said) in [
        (Answer::Silent, "--timeout"),
        (Answer::Trickle, "--timeout"),
        (Answer::Endless, "more than 1048576 bytes"),
        (page, "no OIDC discovery document"),
        (missing(), "is this a kube-apiserver (--kubeconfig)?"),
    ] {
        world.internet.site(move |_| answer.clone());
        let told = world.podid(&kubeconfig, &["--timeout=1s"]).await;
        assert_eq!(told.code, Some(1), "{}", told.text);
        assert!(told.text.contains(said), "{said}: {}", told.text);
    }
}
