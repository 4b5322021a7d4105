//! Static files of an OIDC issuer: the discovery document and the keys, for a web server that is not the API server.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::documents::{Jwks, discovery_file};
use crate::cli::atomic_file::replace;

/// Below the issuer's URL, as OpenID Connect Discovery has it.
const DISCOVERY: &str = ".well-known/openid-configuration";
/// Below the issuer's URL, as kube-apiserver has it.
const JWKS: &str = "openid/v1/jwks";

/// Writes both below a directory.
///
/// # Errors
/// Names the flag, and the file that cannot be written.
pub fn write(directory: &Path, issuer: &str, jwks: &Jwks) -> anyhow::Result<Vec<PathBuf>> {
    // The keys come first: a discovery document that is there leads to them.
    let files = [(JWKS, jwks.file()?), (DISCOVERY, discovery_file(issuer)?)];
    let mut written = Vec::new();
    for (name, content) in files {
        let path = directory.join(name);
        replace(&path, &content).context("--write")?;
        written.push(path);
    }
    Ok(written)
}
