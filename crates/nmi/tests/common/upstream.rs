//! A scripted metadata service and Entra in one, which keeps the bytes of every connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::objects::object;

/// The token for an identity of this name: a JWT with the claims `tid` and `oid`.
pub fn jwt(name: &str) -> String {
    use base64::Engine as _;
    let part = |value: serde_json::Value| {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let claims = json!({ "tid": "tenant", "oid": object(name) });
    format!("{}.{}.c2ln", part(json!({ "alg": "none" })), part(claims))
}

/// Status, further header lines, body.
pub type Reply = (u16, &'static str, String);
type Script = Box<dyn Fn(&str) -> Option<Reply> + Send>;

pub struct Upstream {
    pub address: SocketAddr,
    /// Each connection's bytes.
    seen: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    /// Answers need a permit each.
    pub gate: Semaphore,
    script: Mutex<Option<Script>>,
    at_once: AtomicUsize,
    pub most_at_once: AtomicUsize,
}

impl Upstream {
    pub async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            seen: Mutex::default(),
            gate: Semaphore::new(1_000_000),
            script: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
        });
        let server = Arc::clone(&this);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = Arc::clone(&server);
                tokio::spawn(async move { server.talk(stream).await });
            }
        });
        this
    }

    /// Answers by `script` from now on, and as usual where that says `None`.
    pub fn script(&self, script: impl Fn(&str) -> Option<Reply> + Send + 'static) {
        *self.script.lock() = Some(Box::new(script));
    }

    /// The bytes of each connection, as text.
    pub fn seen(&self) -> Vec<String> {
        let text =
            |bytes: &Arc<Mutex<Vec<u8>>>| String::from_utf8_lossy(&bytes.lock()).into_owned();
        self.seen.lock().iter().map(text).collect()
    }

    /// Forgets the connections so far.
    pub fn forget(&self) {
        self.seen.lock().clear();
    }

    /// How many tokens were asked for.
    pub fn tokens(&self) -> usize {
        let asked = |text: &String| text.contains("/oauth2/");
        self.seen().iter().filter(|text| asked(text)).count()
    }

    async fn talk(&self, mut stream: TcpStream) {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        self.seen.lock().push(Arc::clone(&bytes));
        let mut answered = false;
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            bytes.lock().extend_from_slice(&chunk[..read]);
            let text = String::from_utf8_lossy(&bytes.lock()).into_owned();
            // Bytes after the first request are kept too.
            if !answered && is_whole(&text) {
                answered = true;
                let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
                self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
                self.gate.acquire().await.unwrap().forget();
                let (status, headers, body) = self.reply(&text);
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
                    body.len()
                );
                self.at_once.fetch_sub(1, Ordering::SeqCst);
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    }

    fn reply(&self, request: &str) -> Reply {
        let scripted = self
            .script
            .lock()
            .as_ref()
            .and_then(|script| script(request));
        scripted.unwrap_or_else(|| (200, "", usual(request)))
    }
}

fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.to_ascii_lowercase();
    let length = length
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn usual(request: &str) -> String {
    if !request.contains("/oauth2/") {
        return match request.contains("/identity/info") {
            true => json!({ "tenantId": "tenant-of-the-node" }),
            false => json!({ "from": "the metadata service", "request": request }),
        }
        .to_string();
    }
    let name = request.split("userAssignedIdentities%2F").nth(1);
    let name = name.and_then(|rest| rest.split([' ', '&']).next());
    let token = jwt(name.unwrap_or("service-principal"));
    json!({ "access_token": token, "expires_in": "86399", "token_type": "Bearer" }).to_string()
}
