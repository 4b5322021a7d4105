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

use crate::facts::{IdentityFacts, ObjectKey};

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
/// Hexadecimal digits of the hash in a credential's name: 32 bits tell the 20 credentials of one identity apart.
const CREDENTIAL_HASH_DIGITS: usize = 8;
/// How much of the service account's name a credential's name has in bytes: Azure takes 120 for the whole.
const MAX_READABLE: usize = 100;

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
    format!("{head}-{}", hash(&whole, HASH_DIGITS))
}

/// The subject of the tokens of that service account, which the federated credential in Azure must name.
pub fn subject(identity: &ObjectKey) -> String {
    format!(
        "system:serviceaccount:{NAMESPACE}:{}",
        service_account(identity)
    )
}

/// The command that makes the federated credential of an identity in Azure, to be pasted into a shell. `issuer` and `audience` are
/// the claims `iss` and `aud` of the service account's tokens.
pub fn create_command(identity: &IdentityFacts, issuer: &str, audience: &str) -> String {
    let subject = subject(&identity.key);
    let name = credential_name(&identity.key, issuer);
    let Some(id) = identity.resource_id() else {
        let parameters = format!(
            r#"{{"name":"{name}","issuer":"{}","subject":"{subject}","audiences":["{}"]}}"#,
            json_escaped(issuer),
            json_escaped(audience)
        );
        return format!(
            "az ad app federated-credential create --id {} --parameters {}",
            identity.client_id,
            shell_quoted(&parameters)
        );
    };
    let parts: Vec<&str> = id.as_str().split('/').collect();
    let part = |n: usize| shell_quoted(parts.get(n).copied().unwrap_or_default());
    format!(
        "az identity federated-credential create --subscription {} --resource-group {} --identity-name {} --name {name} --issuer {} --subject {subject} --audiences {}",
        part(2),
        part(4),
        part(8),
        shell_quoted(issuer),
        shell_quoted(audience)
    )
}

/// The name of the federated credential: of the identity and of the cluster, because a second credential of the same name would
/// replace the first.
fn credential_name(identity: &ObjectKey, issuer: &str) -> String {
    let account = service_account(identity);
    let hash = hash(&format!("{issuer} {account}"), CREDENTIAL_HASH_DIGITS);
    let readable = account.replace('.', "-");
    let readable: String = readable.chars().take(MAX_READABLE).collect();
    format!("podid-{readable}-{hash}")
}

/// The first digits of a text's SHA-256.
fn hash(text: &str, digits: usize) -> String {
    let hash = digest(&SHA256, text.as_bytes());
    let hash = hash.as_ref().iter().take(digits / 2);
    hash.map(|byte| format!("{byte:02x}")).collect()
}

/// The text as one word of a POSIX shell: authors of AzureIdentities must not choose what an operator runs.
fn shell_quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The text as the inside of a JSON string.
fn json_escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', r#"\""#)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::facts::IdentitySource;
    use crate::ids::{ClientId, ResourceId};

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

    fn federated(resource_id: Option<&str>) -> IdentityFacts {
        IdentityFacts {
            key: ObjectKey::new("shop", "reader.x"),
            client_id: ClientId::parse("6f1c0000-0000-0000-0000-0000000022ab").unwrap(),
            source: IdentitySource::Federated {
                resource_id: resource_id.map(|id| ResourceId::parse(id).unwrap()),
                tenant: None,
                audience: None,
            },
            namespaced: false,
        }
    }

    #[test]
    fn the_command_is_pasted_as_it_is() {
        let id = "/subscriptions/s/resourceGroups/rg_(1)/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader";
        let command = create_command(
            &federated(Some(id)),
            "https://issuer.example/",
            "api://AzureADTokenExchange",
        );
        let name = command
            .split(' ')
            .skip_while(|word| *word != "--name")
            .nth(1)
            .unwrap();
        assert!(name.starts_with("podid-shop-reader-x-"), "{command}");
        assert_eq!(
            command.replace(name, "NAME"),
            "az identity federated-credential create --subscription s --resource-group 'rg_(1)' --identity-name reader --name NAME --issuer https://issuer.example/ --subject system:serviceaccount:podid-identities:shop.reader.x --audiences api://AzureADTokenExchange"
        );
        let other = create_command(&federated(Some(id)), "https://other.example/", "a");
        assert!(
            !other.contains(name),
            "another cluster would replace the credential: {other}"
        );
    }

    #[test]
    fn an_application_has_a_command_of_its_own() {
        let command = create_command(&federated(None), "https://i", "a");
        assert!(command.starts_with("az ad app federated-credential create --id 6f1c0000-0000-0000-0000-0000000022ab --parameters '{\"name\":\"podid-"), "{command}");
        assert!(command.ends_with(r#""subject":"system:serviceaccount:podid-identities:shop.reader.x","audiences":["a"]}'"#), "{command}");
    }

    #[test]
    fn no_author_of_an_identity_chooses_what_an_operator_runs() {
        let hostile = r#"a';touch /tmp/x;'"b\"#;
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader";
        let command = create_command(&federated(Some(id)), "https://i", hostile);
        assert!(
            command.ends_with(r#"--audiences 'a'\'';touch /tmp/x;'\''"b\'"#),
            "{command}"
        );
        let command = create_command(&federated(None), "https://i", hostile);
        assert!(
            command.ends_with(r#""audiences":["a'\'';touch /tmp/x;'\''\"b\\"]}'"#),
            "{command}"
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
