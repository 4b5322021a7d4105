//! Client certificate of a service principal: read from PFX or PEM, and the client assertions (RFC 7523) that its key signs.
//! `entra.rs` sends them in place of a client secret.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PSS_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use p12_keystore::Pkcs12Archive;
use podid_policy::ids::ClientId;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::pfx;

/// The largest file in bytes; a chain with its key has some KiB.
const MAX_FILE: usize = 256 * 1024;
/// The longest chain, leaf included; real ones have two to four certificates.
const MAX_CHAIN: usize = 8;
/// An assertion is valid for ten minutes (in seconds), the longest that Entra recommends: one that is stolen is soon useless.
const ASSERTION_LIFE: i64 = 600;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It is too large.
    #[error("it is larger than {MAX_FILE} bytes")]
    TooLarge,
    /// It is neither PEM nor PFX.
    #[error("it is neither PEM (a certificate and its private key) nor PFX (PKCS#12)")]
    Unreadable,
    /// The PFX's password is wrong or missing.
    #[error("the PFX cannot be opened with this password")]
    WrongPassword,
    /// The PFX asks for so much work that it would keep the node busy.
    #[error(
        "the PFX demands more than {max} rounds of key derivation; export it anew",
        max = pfx::MAX_ROUNDS
    )]
    TooSlow,
    /// The private key is missing.
    #[error("there is no private key in it; export the certificate together with its key")]
    NoKey,
    /// The certificate is missing.
    #[error("there is no certificate in it that belongs to the private key")]
    NoCertificate,
    /// The private key cannot be used.
    #[error("its private key is not RSA of at least 2048 bits, or is encrypted; Entra takes RSA")]
    NotRsa,
    /// It is not valid now.
    #[error("it is valid from {from} to {until} only; renew it")]
    NotValidNow {
        /// From when.
        from: Timestamp,
        /// Until when.
        until: Timestamp,
    },
}

/// A certificate with its private key, and its issuers.
pub struct Certificate {
    key: KeyPair,
    /// The leaf first.
    chain: Vec<Vec<u8>>,
    from: Timestamp,
    until: Timestamp,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads PEM or PFX, whichever `file` is; `password` is the PFX's, empty when it has none.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn read(file: &[u8], password: &str) -> Result<Self, CertificateError> {
        if file.len() > MAX_FILE {
            return Err(CertificateError::TooLarge);
        }
        let is_pem = file.windows(11).any(|part| part == b"-----BEGIN ");
        let (key, certificates) = if is_pem {
            from_pem(file)?
        } else {
            from_pfx(file, password)?
        };
        if certificates.len() > MAX_CHAIN {
            return Err(CertificateError::Unreadable);
        }
        Self::of(key, certificates)
    }

    fn of(key: KeyPair, mut chain: Vec<Vec<u8>>) -> Result<Self, CertificateError> {
        let ours = chain
            .iter()
            .position(|der| belongs(der, &key))
            .ok_or(CertificateError::NoCertificate)?;
        chain.swap(0, ours);
        let (from, until) = validity(&chain[0]).ok_or(CertificateError::Unreadable)?;
        Ok(Self {
            key,
            chain,
            from,
            until,
        })
    }

    /// A client assertion for the token endpoint `audience`, signed by PS256. Its header has the certificate's SHA-256 thumbprint, and
    /// the chain for applications that trust by subject name and issuer.
    ///
    /// # Errors
    /// [`CertificateError::NotValidNow`], or [`CertificateError::NotRsa`] when the key does not sign.
    pub fn assertion(
        &self,
        client_id: &ClientId,
        audience: &str,
        now: Timestamp,
    ) -> Result<Zeroizing<String>, CertificateError> {
        if now < self.from || now >= self.until {
            return Err(CertificateError::NotValidNow {
                from: self.from,
                until: self.until,
            });
        }
        let leaf = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.chain[0]);
        let chain: Vec<_> = self.chain.iter().map(|der| STANDARD.encode(der)).collect();
        let header = json!({
            "alg": "PS256", "typ": "JWT", "x5t#S256": URL_SAFE_NO_PAD.encode(leaf), "x5c": chain,
        });
        let at = now.as_second();
        let claims = json!({
            "aud": audience, "iss": client_id.as_str(), "sub": client_id.as_str(),
            "jti": uuid::Uuid::new_v4().to_string(), "iat": at, "nbf": at, "exp": at + ASSERTION_LIFE,
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut signed = Zeroizing::new(format!("{}.{}", part(&header), part(&claims)));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(
                &RSA_PSS_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .map_err(|_| CertificateError::NotRsa)?;
        signed.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut signed);
        Ok(signed)
    }
}

type Parts = (KeyPair, Vec<Vec<u8>>);

fn from_pem(file: &[u8]) -> Result<Parts, CertificateError> {
    let key = PrivateKeyDer::from_pem_slice(file).map_err(|_| CertificateError::NoKey)?;
    let key = match &key {
        PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
        PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
        _ => return Err(CertificateError::NotRsa),
    };
    let key = key.map_err(|_| CertificateError::NotRsa)?;
    let certificates = CertificateDer::pem_slice_iter(file)
        .map(|der| der.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| CertificateError::Unreadable)?;
    Ok((key, certificates))
}

fn from_pfx(file: &[u8], password: &str) -> Result<Parts, CertificateError> {
    match pfx::rounds(file) {
        None => return Err(CertificateError::Unreadable),
        Some(rounds) if rounds > pfx::MAX_ROUNDS => return Err(CertificateError::TooSlow),
        Some(_) => {}
    }
    let archive = Pkcs12Archive::from_pkcs12(file, password).map_err(|error| match error {
        // A wrong password shows as a wrong MAC, or as garbage after decryption.
        p12_keystore::error::Error::MacError(_)
        | p12_keystore::error::Error::UnpadError
        | p12_keystore::error::Error::Pkcs5Error(_) => CertificateError::WrongPassword,
        _ => CertificateError::Unreadable,
    })?;
    let key = archive.keys.first().ok_or(CertificateError::NoKey)?;
    let key = KeyPair::from_pkcs8(key.key.as_der()).map_err(|_| CertificateError::NotRsa)?;
    let certificates = archive.certs.iter();
    let certificates = certificates.map(|bag| bag.cert.as_der().to_vec()).collect();
    Ok((key, certificates))
}

fn belongs(der: &[u8], key: &KeyPair) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        &*certificate.public_key().subject_public_key.data == key.public_key().as_ref()
    })
}

fn validity(der: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some((
        Timestamp::from_second(validity.not_before.timestamp()).ok()?,
        Timestamp::from_second(validity.not_after.timestamp()).ok()?,
    ))
}

#[cfg(test)]
mod tests;
