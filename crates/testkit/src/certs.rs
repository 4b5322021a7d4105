//! TLS certificates and keys, made for one run of a test: an authority, and a server signed by it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

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

/// Writes a new authority and a certificate signed by it for these names and addresses into a folder.
///
/// # Errors
/// When a name is none, or a file cannot be written.
pub fn server(folder: &Path, names: &[&str], addresses: &[IpAddr]) -> Result<ServerFiles> {
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(DnType::CommonName, "podid test authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate()?;
    let authority_cert = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);

    let subjects: Vec<String> = names
        .iter()
        .map(|name| (*name).to_owned())
        .chain(addresses.iter().map(IpAddr::to_string))
        .collect();
    let mut leaf = CertificateParams::new(subjects)?;
    leaf.distinguished_name
        .push(DnType::CommonName, "podid test server");
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let leaf_key = KeyPair::generate()?;
    let leaf_cert = leaf.signed_by(&leaf_key, &issuer)?;

    let files = ServerFiles {
        ca: folder.join("ca.crt"),
        cert: folder.join("server.crt"),
        key: folder.join("server.key"),
    };
    std::fs::write(&files.ca, authority_cert.pem())?;
    std::fs::write(&files.cert, leaf_cert.pem())?;
    std::fs::write(&files.key, leaf_key.serialize_pem())?;
    Ok(files)
}

/// A new key pair as PEM: the private and the public key.
///
/// # Errors
/// When no key can be made.
pub fn key_pair() -> Result<(String, String)> {
    let pair = KeyPair::generate()?;
    Ok((pair.serialize_pem(), pair.public_key_pem()))
}
