//! `podid manifests`: prints the objects of an installation.

use std::io::Write as _;

use anyhow::ensure;
use clap::Args;

use crate::manifests::{self, Install, Mode, NAME};

/// Print what an installation consists of as YAML, for `kubectl apply -f -` after `podid crds --apply`
#[derive(Args)]
pub struct Manifests {
    /// Who attaches identities to nodes; `cleanup` is what takes the rules of nmi off every node after it was removed
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Standard, ignore_case = true)]
    mode: Mode,
    /// The namespace; made unless it is default or begins with kube-
    #[arg(long, value_name = "NAMESPACE", default_value = NAME, value_parser = namespace)]
    namespace: String,
    /// The registry, and the path in it, that holds the images mic and nmi, such as example.azurecr.io/podid
    #[arg(long, value_name = "REGISTRY", value_parser = registry)]
    registry: String,
    /// The images' tag
    #[arg(long, value_name = "TAG", default_value = concat!("v", env!("CARGO_PKG_VERSION")), value_parser = tag)]
    tag: String,
    /// Write rules to each node that it loads at its boot, so that pods are refused until nmi runs; with --mode=cleanup remove them
    #[arg(long)]
    boot_rules: bool,
    /// Run the broker, which AzureIdentities with spec.federation need; in standard mode
    #[arg(long)]
    broker: bool,
}

impl Manifests {
    /// Prints the objects.
    pub fn run(self) -> anyhow::Result<()> {
        ensure!(
            !self.broker || self.mode == Mode::Standard,
            "--broker needs --mode=standard, whose controller makes the service accounts that stand for identities"
        );
        let install = Install {
            mode: self.mode,
            namespace: self.namespace,
            registry: self.registry,
            tag: self.tag,
            boot_rules: self.boot_rules,
            broker: self.broker,
        };
        let yaml = manifests::yaml(&install.objects())?;
        std::io::stdout().write_all(yaml.as_bytes())?;
        Ok(())
    }
}

fn namespace(text: &str) -> Result<String, String> {
    let fits = text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let ends = !text.starts_with('-') && !text.ends_with('-');
    if fits && ends && (1..=63).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err("a namespace's name is at most 63 lower-case letters, digits and hyphens".to_owned())
}

fn registry(text: &str) -> Result<String, String> {
    let fits = text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:/".contains(&b));
    let text = text.trim_end_matches('/');
    if fits && !text.contains("//") && !text.is_empty() && text.len() <= 255 {
        return Ok(text.to_owned());
    }
    Err("expected a registry and a path, without https:// and without the image's name, such as example.azurecr.io/podid".to_owned())
}

fn tag(text: &str) -> Result<String, String> {
    let fits = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if fits && (1..=128).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err("a tag is at most 128 letters, digits, dots, hyphens and underscores".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_name_is_refused() {
        for wrong in ["", "Podid", "-x", "x-", "a b", "a: b", &"x".repeat(64)] {
            assert!(namespace(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "",
            "/",
            "https://a.io",
            "a b",
            "X.azurecr.io",
            "a\"b",
            "a\nb",
        ] {
            assert!(registry(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "v1 2", "v1:2", "v\n1"] {
            assert!(tag(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            registry("example.azurecr.io/podid/").unwrap(),
            "example.azurecr.io/podid"
        );
    }
}
