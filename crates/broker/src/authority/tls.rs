//! TLS of the server: a certificate that the CA signs for this process alone, replaced while connections are served.
//!
//! `keeper.rs` renews it; `http/server.rs` takes the current one for each new connection. Its key never leaves the process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::authority::{AuthorityError, CLOCK_SKEW, CaCertificate, CaKey, system_time};

/// How long a server certificate is valid: two weeks, and it is replaced after one.
const LIFE: Duration = Duration::from_secs(14 * 86_400);

/// The server's certificate.
#[derive(Default)]
pub(crate) struct ServerTls(ArcSwapOption<Leaf>);

struct Leaf {
    config: Arc<ServerConfig>,
    signed_by: CaCertificate,
    renew_at: Timestamp,
}

impl ServerTls {
    /// What new connections are served with; `None` before there is a certificate.
    pub(crate) fn current(&self) -> Option<Arc<ServerConfig>> {
        let leaf = self.0.load();
        leaf.as_ref().map(|leaf| Arc::clone(&leaf.config))
    }

    /// Replaces the certificate where it is old or of another CA; when the new one expires, where there is one.
    pub(crate) fn renew(
        &self,
        ca: &CaKey,
        names: &[String],
        now: Timestamp,
    ) -> Result<Option<Timestamp>, AuthorityError> {
        let leaf = self.0.load();
        let is_good = |leaf: &Arc<Leaf>| leaf.signed_by == ca.certificate && now < leaf.renew_at;
        if leaf.as_ref().is_some_and(is_good) {
            return Ok(None);
        }
        let limit = |at: Timestamp| at.min(ca.certificate.expires);
        let expires = limit(now.checked_add(LIFE).unwrap_or(Timestamp::MAX));
        let leaf = Leaf {
            config: Arc::new(server_config(ca, names, now, expires)?),
            signed_by: ca.certificate.clone(),
            renew_at: limit(now.checked_add(LIFE / 2).unwrap_or(Timestamp::MAX)),
        };
        self.0.store(Some(Arc::new(leaf)));
        Ok(Some(expires))
    }
}

fn server_config(
    ca: &CaKey,
    names: &[String],
    now: Timestamp,
    expires: Timestamp,
) -> Result<ServerConfig, AuthorityError> {
    let mut params = CertificateParams::new(names)?;
    let name = names.first().map_or("podid broker", String::as_str);
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = system_time(now, CLOCK_SKEW).into();
    params.not_after = SystemTime::from(expires).into();
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &ca.issuer()?)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .map_err(|error| AuthorityError(format!("a certificate could not be used: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
