//! The simulated Azure, on a thread in its own network namespace. Entra is there twice: as it is, and behind TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use podid_sim::azure::{Azure, Config, Handle, HostKind};
use podid_testkit::certs::{self, ServerFiles};
use podid_testkit::net::{AZURE, METADATA, Net};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub const GROUP: &str = "nodes";
pub const ARM: u16 = 8081;
pub const ENTRA: u16 = 8082;
pub const ENTRA_TLS: u16 = 8443;

pub struct Running {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    /// Who signed the certificate of Entra behind TLS.
    pub authority: std::path::PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts it, with the scale set `pool`, on whose first machine the metadata service is the node's.
pub fn start(net: &Net, folder: &Path) -> (Handle, Running) {
    let place = std::fs::File::open(format!("/run/netns/{}", net.name("azure"))).unwrap();
    let tls = certs::server(folder, &[], &[AZURE.into()]).unwrap();
    let authority = tls.ca.clone();
    let stop = CancellationToken::new();
    let (ready, handle) = mpsc::channel();
    let told = stop.clone();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(place, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let azure = Azure::bind(Config {
                address: AZURE.into(),
                arm_port: ARM,
                entra_port: ENTRA,
                patch_latency: Duration::from_millis(100),
                throttle: false,
                ..Config::default()
            });
            let azure = azure.await.unwrap();
            let handle = azure.handle();
            let set = handle.create_host(HostKind::ScaleSet, GROUP, "pool");
            let imds = SocketAddr::from((METADATA, 80));
            handle.serve_imds(&set, Some(0), imds).await.unwrap();
            let front = TcpListener::bind((AZURE, ENTRA_TLS)).await.unwrap();
            ready.send(handle).unwrap();
            tokio::select! {
                ended = azure.run(told) => ended.unwrap(),
                () = behind_tls(front, acceptor(&tls)) => {}
            }
        });
    });
    let running = Running {
        stop,
        thread: Some(thread),
        authority,
    };
    (handle.recv().unwrap(), running)
}

fn acceptor(files: &ServerFiles) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(&files.cert).unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key);
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

/// Entra, for whoever trusts the certificate.
async fn behind_tls(listener: TcpListener, acceptor: TlsAcceptor) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // Whoever does not trust it ends the connection, which is what a test waits for.
            let Ok(mut client) = acceptor.accept(stream).await else {
                return;
            };
            let mut entra = TcpStream::connect((AZURE, ENTRA)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut entra).await;
        });
    }
}
