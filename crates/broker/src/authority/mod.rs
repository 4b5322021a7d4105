//! Certificate authority (CA) of the broker's own: the state of its keys, and when each is rotated.
//!
//! ```text
//!          no usable key            120 days before it expires         a day later, when all clients have it
//!  (none) ───────────────► current ───────────────────────────► next ─────────────────────────────────────► current
//!                             │                                                                                │
//!                             └──────────────── previous, which is trusted until it expires ◄──────────────────┘
//! ```
//!
//! `keeper.rs` advances it and keeps it in a Secret; `tls.rs` signs the server's certificate by `current`. Clients trust all three. It
//! guards running node agents: nothing is signed by a key that they have not had a day to learn of.

pub(crate) mod keeper;
pub(crate) mod tls;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

/// How long a CA certificate is valid.
const CA_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// How long before the current certificate expires its successor is made: four months, in which somebody notices what fails.
const SUCCESSION: Duration = Duration::from_secs(120 * 86_400);
/// How long a successor is published before it signs: a day, though the kubelet brings it to clients within two minutes.
const PUBLICATION: Duration = Duration::from_secs(86_400);
/// How far the clocks of clients may be behind: certificates are valid from so long before they are made.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
const NAME: &str = "podid broker CA";

/// The keys of the Secret.
const CURRENT: [&str; 2] = ["ca.crt", "ca.key"];
const NEXT: [&str; 2] = ["next-ca.crt", "next-ca.key"];
const PREVIOUS: &str = "previous-ca.crt";

/// A text of several things in PEM, and why it is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct AuthorityError(String);

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self(format!("a certificate could not be made: {error}"))
    }
}

/// A CA certificate with its validity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CaCertificate {
    pem: String,
    made: Timestamp,
    pub(crate) expires: Timestamp,
}

/// A CA certificate and its key.
#[derive(Clone)]
pub(crate) struct CaKey {
    pub(crate) certificate: CaCertificate,
    key: Zeroizing<String>,
}

/// The state of the CA, as the Secret holds it.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) current: CaKey,
    next: Option<CaKey>,
    previous: Option<CaCertificate>,
}

/// The content of a Secret.
pub(crate) type SecretContent = BTreeMap<String, ByteString>;

impl CaCertificate {
    fn parse(pem: &str) -> Result<Self, AuthorityError> {
        let wrong = || AuthorityError("it holds no CA certificate in PEM".to_owned());
        let (block, _) = Pem::read(std::io::Cursor::new(pem)).map_err(|_| wrong())?;
        let certificate = block.parse_x509().map_err(|_| wrong())?;
        if !certificate.is_ca() {
            return Err(wrong());
        }
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp());
        let validity = certificate.validity();
        Ok(Self {
            pem: pem.to_owned(),
            made: at(validity.not_before).map_err(|_| wrong())?,
            expires: at(validity.not_after).map_err(|_| wrong())?,
        })
    }
}

impl CaKey {
    fn new(now: Timestamp) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = params();
        params.not_before = system_time(now, CLOCK_SKEW).into();
        params.not_after = (SystemTime::from(now) + CA_LIFE).into();
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate: CaCertificate::parse(&pem)?,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    fn parse(certificate: &str, key: Zeroizing<String>) -> Result<Self, AuthorityError> {
        KeyPair::from_pem(&key).map_err(|_| AuthorityError("its key is none in PEM".to_owned()))?;
        Ok(Self {
            certificate: CaCertificate::parse(certificate)?,
            key,
        })
    }

    /// What signs certificates by this key.
    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, AuthorityError> {
        Ok(Issuer::new(params(), KeyPair::from_pem(&self.key)?))
    }
}

impl Authority {
    /// A CA with a new key.
    pub(crate) fn new(now: Timestamp) -> Result<Self, AuthorityError> {
        Ok(Self {
            current: CaKey::new(now)?,
            next: None,
            previous: None,
        })
    }

    /// The state after the steps that are due at `now`; `None` where none is.
    pub(crate) fn advance(&self, now: Timestamp) -> Result<Option<Self>, AuthorityError> {
        let after = |at: Timestamp, wait: Duration| at.checked_add(wait).unwrap_or(Timestamp::MAX);
        let is_expired = |certificate: &CaCertificate| certificate.expires <= now;
        if is_expired(&self.current.certificate) {
            return match &self.next {
                Some(next) if !is_expired(&next.certificate) => Ok(Some(self.promote(next))),
                _ => Self::new(now).map(Some),
            };
        }
        if let Some(next) = &self.next {
            let is_published = after(next.certificate.made, PUBLICATION + CLOCK_SKEW) <= now;
            return Ok(is_published.then(|| self.promote(next)));
        }
        if after(now, SUCCESSION) >= self.current.certificate.expires {
            let next = Some(CaKey::new(now)?);
            return Ok(Some(Self {
                next,
                ..self.clone()
            }));
        }
        let is_over = self.previous.as_ref().is_some_and(is_expired);
        Ok(is_over.then(|| Self {
            previous: None,
            ..self.clone()
        }))
    }

    fn promote(&self, next: &CaKey) -> Self {
        Self {
            current: next.clone(),
            next: None,
            previous: Some(self.current.certificate.clone()),
        }
    }

    /// The certificates that clients must trust, as PEM.
    pub(crate) fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| &next.certificate);
        let all = [
            Some(&self.current.certificate),
            next,
            self.previous.as_ref(),
        ];
        all.into_iter().flatten().map(|c| c.pem.as_str()).collect()
    }

    /// Reads the content of the Secret; `None` where it is empty.
    pub(crate) fn read(content: &SecretContent) -> Result<Option<Self>, AuthorityError> {
        let text = |name: &str| {
            let bytes = content.get(name)?;
            Some(String::from_utf8_lossy(&bytes.0).into_owned())
        };
        let pair = |[certificate, key]: [&str; 2]| {
            let (certificate, key) = (text(certificate)?, text(key)?);
            Some(CaKey::parse(&certificate, Zeroizing::new(key)))
        };
        let Some(current) = pair(CURRENT).transpose()? else {
            return Ok(None);
        };
        Ok(Some(Self {
            current,
            next: pair(NEXT).transpose()?,
            previous: text(PREVIOUS)
                .map(|pem| CaCertificate::parse(&pem))
                .transpose()?,
        }))
    }

    /// The content of the Secret.
    pub(crate) fn content(&self) -> SecretContent {
        let mut content = SecretContent::new();
        let mut put = |name: &str, text: &str| {
            content.insert(name.to_owned(), ByteString(text.as_bytes().to_vec()));
        };
        let next = self.next.as_ref().map(|next| (NEXT, next));
        for ([certificate, key], pair) in
            [Some((CURRENT, &self.current)), next].into_iter().flatten()
        {
            put(certificate, &pair.certificate.pem);
            put(key, &pair.key);
        }
        if let Some(previous) = &self.previous {
            put(PREVIOUS, &previous.pem);
        }
        content
    }
}

/// What every CA certificate of the broker has, so that its signing side can be made of the key alone.
fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// `ago` before `now`.
fn system_time(now: Timestamp, ago: Duration) -> SystemTime {
    SystemTime::from(now) - ago
}

#[cfg(test)]
mod tests;
