//! The simulated Azure with Entra twice: as it is, and behind TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podid_sim::azure::{Config, Control};
use podid_testkit::certs::{self, ServerFiles};
use podid_testkit::net::{AZURE, Net};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::shared::{self, Running};

pub const ARM: u16 = 8081;
pub const ENTRA: u16 = 8082;
pub const ENTRA_TLS: u16 = 8443;

/// Starts it with the scale set `pool`; gives the file of the authority that signed the certificate of Entra behind TLS, too.
pub fn start(net: &Net, folder: &Path) -> (Control, Running, PathBuf) {
    let tls = certs::server(folder, &[], &[AZURE.into()]).unwrap();
    let authority = tls.ca.clone();
    let config = Config {
        address: AZURE.into(),
        arm_port: ARM,
        entra_port: ENTRA,
        patch_latency: Duration::from_millis(100),
        throttle: false,
        ..Config::default()
    };
    let (control, running) = shared::start_in_namespace(net, config, "pool", move || async move {
        let listener = TcpListener::bind((AZURE, ENTRA_TLS)).await.unwrap();
        behind_tls(listener, acceptor(&tls)).await;
    });
    (control, running, authority)
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
