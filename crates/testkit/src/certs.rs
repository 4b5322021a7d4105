//! TLS certificates and keys, made for one run of a test: an authority, and a server signed by it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize,
};

/// A server's certificate with its key, and the authority that signed it, as PEM files.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    /// The authority's certificate, for clients.
    pub ca: PathBuf,
    /// The server's certificate.
    pub cert: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
}

/// Who signs certificates.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority
            .distinguished_name
            .push(DnType::CommonName, "podid test authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        Ok(Self {
            certificate: authority.self_signed(&key)?.pem(),
            issuer: Issuer::new(authority, key),
        })
    }

    /// Its own certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate and its private key, as PEM, for a server with these names and addresses.
    ///
    /// # Errors
    /// When a name is none.
    pub fn server(&self, names: &[&str], addresses: &[IpAddr]) -> Result<(String, String)> {
        let subjects: Vec<String> = names
            .iter()
            .map(|name| (*name).to_owned())
            .chain(addresses.iter().map(IpAddr::to_string))
            .collect();
        let mut leaf = CertificateParams::new(subjects)?;
        leaf.distinguished_name
            .push(DnType::CommonName, "podid test server");
        self.sign(leaf, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate and its private key, as PEM, by which the API server knows a user of a group.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<(String, String)> {
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            leaf.distinguished_name
                .push(DnType::OrganizationName, group);
        }
        self.sign(leaf, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        mut leaf: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String)> {
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        leaf.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// Writes a new authority and a certificate signed by it for these names and addresses into a folder.
///
/// # Errors
/// When a name is none, or a file cannot be written.
pub fn server(folder: &Path, names: &[&str], addresses: &[IpAddr]) -> Result<ServerFiles> {
    let authority = Authority::new()?;
    let (certificate, key) = authority.server(names, addresses)?;
    let files = ServerFiles {
        ca: folder.join("ca.crt"),
        cert: folder.join("server.crt"),
        key: folder.join("server.key"),
    };
    std::fs::write(&files.ca, authority.certificate())?;
    std::fs::write(&files.cert, certificate)?;
    std::fs::write(&files.key, key)?;
    Ok(files)
}

/// A new RSA key pair as PEM, as kubeadm makes one for the tokens of service accounts: the private and the public key.
///
/// # Errors
/// When no key can be made.
pub fn key_pair() -> Result<(String, String)> {
    let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    Ok((pair.serialize_pem(), pair.public_key_pem()))
}
