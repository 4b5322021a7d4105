//! A network namespace that has an address of the internet, a web server at it whose behaviour a test chooses, and a way to the API
//! server. Programs are run in it.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use podid_testkit::certs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// An address that the internet reaches; nothing is sent to the machine that has it.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(20, 50, 60, 70);
const HTTPS: u16 = 443;
/// Here the web server speaks plain HTTP.
pub const PLAIN: u16 = 8080;
/// The longest head of a request in bytes.
const HEAD: usize = 8192;
/// Between two bytes of a body that trickles.
const TRICKLE: Duration = Duration::from_millis(50);

/// What the web server does with a request for a path.
#[derive(Clone)]
pub enum Answer {
    /// A status with header lines, and a body.
    Whole(&'static str, String),
    /// Nothing, and the connection stays open.
    Silent,
    /// A body that never ends, as fast as it is read.
    Endless,
    /// A body that never ends, a byte at a time.
    Trickle,
}

pub type Site = Arc<dyn Fn(&str) -> Answer + Send + Sync>;
type Job = Box<dyn FnOnce() + Send>;

/// The namespace, while it is held.
pub struct Internet {
    jobs: Sender<Job>,
    site: Arc<Mutex<Site>>,
    /// The authority that the web server's certificate is by.
    pub ca: PathBuf,
    _folder: tempfile::TempDir,
}

impl Internet {
    /// Makes one. In it the API server of this port has the same port on loopback.
    pub fn build(api_port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = certs::server(folder.path(), &[], &[ADDRESS.into()]).unwrap();
        let chain = CertificateDer::pem_file_iter(&files.cert).unwrap();
        let chain = chain.collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (jobs, [web, plain, api]) = namespace(api_port);
        let site: Arc<Mutex<Site>> = Arc::new(Mutex::new(Arc::new(|_| Answer::Silent)));
        tokio::spawn(serve(web, TlsAcceptor::from(Arc::new(tls)), site.clone()));
        tokio::spawn(serve_plain(plain));
        tokio::spawn(forward(api, api_port));
        Self {
            jobs,
            site,
            ca: files.ca,
            _folder: folder,
        }
    }

    /// From now on the web server does this.
    pub fn site(&self, site: impl Fn(&str) -> Answer + Send + Sync + 'static) {
        *self.site.lock() = Arc::new(site);
    }

    /// Runs a program in the namespace to its end.
    pub async fn run(&self, mut command: Command) -> Output {
        let (told, output) = tokio::sync::oneshot::channel();
        let job = move || {
            let _ = told.send(command.output().unwrap());
        };
        self.jobs.send(Box::new(job)).unwrap();
        output.await.unwrap()
    }
}

/// A thread in a namespace of its own, which runs jobs there until nobody sends one any more, and listeners for the web server, its
/// plain port, and the API server. The namespace ends with them.
fn namespace(api_port: u16) -> (Sender<Job>, [TcpListener; 3]) {
    let (jobs, queue) = channel::<Job>();
    let (told, listeners) = channel();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let address = format!("{ADDRESS}/32");
        for words in [
            &["link", "set", "lo", "up"][..],
            &["addr", "add", &address, "dev", "lo"],
        ] {
            assert!(Command::new("ip").args(words).status().unwrap().success());
        }
        let places = [
            (ADDRESS, HTTPS),
            (ADDRESS, PLAIN),
            (Ipv4Addr::LOCALHOST, api_port),
        ];
        let listeners = places.map(|place| TcpListener::bind(place).unwrap());
        told.send(listeners).unwrap();
        for job in queue {
            job();
        }
    });
    (jobs, listeners.recv().unwrap())
}

fn listener(from: TcpListener) -> tokio::net::TcpListener {
    from.set_nonblocking(true).unwrap();
    tokio::net::TcpListener::from_std(from).unwrap()
}

async fn forward(api: TcpListener, port: u16) {
    let api = listener(api);
    while let Ok((mut from, _)) = api.accept().await {
        tokio::spawn(async move {
            let mut to = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                .await
                .unwrap();
            let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
        });
    }
}

async fn serve(web: TcpListener, tls: TlsAcceptor, site: Arc<Mutex<Site>>) {
    let web = listener(web);
    while let Ok((stream, _)) = web.accept().await {
        let (tls, site) = (tls.clone(), site.clone());
        tokio::spawn(async move {
            // A client that refuses the certificate ends the connection here.
            if let Ok(stream) = tls.accept(stream).await {
                let _ = answer(stream, &site).await;
            }
        });
    }
}

/// What a web server without TLS says to the handshake of a client that speaks it.
async fn serve_plain(web: TcpListener) {
    let web = listener(web);
    while let Ok((mut stream, _)) = web.accept().await {
        let _ = stream.read_u8().await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    }
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    site: &Mutex<Site>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(
        !head.to_lowercase().contains("\r\nauthorization:") || head.contains("of-the-test"),
        "a credential is sent to the issuer: {head}"
    );
    let path = head.split(' ').nth(1).unwrap_or_default();
    let answer = site.lock().clone()(path);
    match answer {
        Answer::Whole(status, body) => {
            let length = body.len();
            let whole = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            stream.write_all(whole.as_bytes()).await?;
            stream.shutdown().await
        }
        Answer::Silent => std::future::pending().await,
        Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(&[b' '; 4096]).await?;
            }
        }
        Answer::Trickle => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(b" ").await?;
                stream.flush().await?;
                tokio::time::sleep(TRICKLE).await;
            }
        }
    }
}
