//! Federation names: the service account that stands for an AzureIdentity, the subject that Entra sees, and where the broker is. The
//! controller makes the service accounts, the broker has tokens of them, and both must come to the same name.
//!
//! ```text
//!  AzureIdentity shop/reader ─► service account shop.reader in namespace podid-identities
//!                            ─► subject system:serviceaccount:podid-identities:shop.reader of the federated credential in Azure
//! ```
//!
//! No two AzureIdentities share a service account, or one could have the other's tokens.

use aws_lc_rs::digest::{SHA256, digest};

use crate::facts::ObjectKey;

/// The namespace of the service accounts that stand for identities; no pod runs there.
pub const NAMESPACE: &str = "podid-identities";
/// The audience of the tokens with which node agents and the controller prove themselves to the broker.
pub const BROKER_AUDIENCE: &str = "podid-broker";
/// The broker's port unless it is told another.
pub const BROKER_PORT: u16 = 8443;

/// The longest name of a service account in bytes: Kubernetes takes a DNS subdomain.
const MAX_NAME: usize = 253;
/// Hexadecimal digits of the hash in a shortened name: 128 bits, which nobody finds a second name for.
const HASH_DIGITS: usize = 32;

/// The name of the service account in [`NAMESPACE`] that stands for an AzureIdentity.
///
/// A namespace has no dot in its name, so `<namespace>.<name>` is of one AzureIdentity. What is too long ends with a hash, and is
/// exactly as long as a name may be, which nothing else is.
///
/// ```
/// # use podid_policy::{facts::ObjectKey, federation::service_account};
/// assert_eq!(service_account(&ObjectKey::new("shop", "reader")), "shop.reader");
/// ```
pub fn service_account(identity: &ObjectKey) -> String {
    let whole = format!("{}.{}", identity.namespace, identity.name);
    if whole.len() < MAX_NAME {
        return whole;
    }
    let mut head: String = whole.chars().take(MAX_NAME - HASH_DIGITS - 1).collect();
    if head.ends_with('.') {
        // A label must not begin with the hyphen that follows.
        head.pop();
        head.push('-');
    }
    let hash = digest(&SHA256, whole.as_bytes());
    let hash = hash.as_ref().iter().take(HASH_DIGITS / 2);
    let hash: String = hash.map(|byte| format!("{byte:02x}")).collect();
    format!("{head}-{hash}")
}

/// The subject of the tokens of that service account, which the federated credential in Azure must name.
pub fn subject(identity: &ObjectKey) -> String {
    format!(
        "system:serviceaccount:{NAMESPACE}:{}",
        service_account(identity)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_that_is_too_long_is_shortened_and_stays_its_own() {
        let key = |name: &str| ObjectKey::new("shop", name);
        let (one, other) = ("a".repeat(253), format!("{}b", "a".repeat(252)));
        let (one, other) = (service_account(&key(&one)), service_account(&key(&other)));
        assert_eq!(one.len(), 253);
        assert_ne!(one, other);
        // Somebody may name another AzureIdentity as the shortened name reads.
        let copy = one.strip_prefix("shop.").unwrap();
        assert_ne!(service_account(&key(copy)), one);
    }

    #[test]
    fn the_subject_is_the_one_of_the_service_accounts_tokens() {
        let subject = subject(&ObjectKey::new("shop", "reader"));
        assert_eq!(
            subject,
            "system:serviceaccount:podid-identities:shop.reader"
        );
    }

    fn is_dns_subdomain(name: &str) -> bool {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let label = |l: &str| edge(l.chars().next()) && edge(l.chars().last());
        name.len() <= 253 && name.split('.').all(label)
    }

    proptest! {
        #[test]
        fn every_identity_has_a_valid_name(namespace in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name in "[a-z0-9]([.a-z0-9]|-[a-z0-9]){0,126}") {
            let name = name.replace("..", ".x").trim_end_matches(['.', '-']).to_owned();
            let name = name.replace(".-", ".x").replace("-.", "x.");
            let account = service_account(&ObjectKey::new(&namespace, &name));
            prop_assert!(is_dns_subdomain(&account), "{account}");
        }
    }
}
