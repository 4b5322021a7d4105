//! Federation faults: what Entra says is wrong with the exchange of a Kubernetes token for an Entra token (workload identity
//! federation), sorted by who repairs it and by whether time heals it.
//!
//! `entra.rs` asks this file about each error answer to a federated assertion; the broker acts on the fault. It guards Entra from
//! requests that cannot succeed, and pods from a refusal that ends by itself.
//!
//! ```text
//!  number of error_codes, else of AADSTS… in the text
//!    ├─ no credential matches ─────────► time heals it (a new credential takes a minute to be everywhere), else its author
//!    ├─ a credential almost matches ───► its author
//!    ├─ the issuer cannot be read ─────► time heals it, else the cluster's operator
//!    ├─ the assertion is out of date ──► a fresh assertion heals it, once
//!    └─ the tenant forbids it ─────────► the tenant's administrator
//! ```

use std::time::Duration;

use serde_json::Value;

use super::ErrorKind;

/// The wait after which a new credential is known everywhere: a minute, because a request before that makes Entra keep its old
/// answer for minutes.
const PROPAGATION: Duration = Duration::from_secs(60);
/// The wait before Entra is asked to read the issuer's documents again: half a minute, after which an outage is often over.
const ISSUER_RETRY: Duration = Duration::from_secs(30);

/// What is wrong with a federated exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FederationFault {
    /// No federated credential matches the assertion's issuer and subject, or it was made a moment ago.
    CredentialMissing,
    /// A federated credential matches but for its audience, or for upper and lower case.
    CredentialMismatch,
    /// The tenant does not have the client id, or the identity was made a moment ago.
    UnknownClient,
    /// The authority does not have the tenant.
    UnknownTenant,
    /// A policy of the tenant forbids federation, or this issuer.
    TenantRefused,
    /// Entra cannot read the issuer's discovery document or keys.
    IssuerUnreachable,
    /// The assertion's issuer is Entra itself.
    IssuerRefused,
    /// The assertion is not valid yet, or not any more.
    AssertionExpired,
    /// The assertion's signature is by no key that Entra has read of the issuer.
    AssertionUnverified,
}

/// Who repairs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultOwner {
    /// Whoever keeps the identity and its federated credentials in Azure, and the AzureIdentity.
    Identity,
    /// The operator of the cluster, whose issuer signs assertions.
    Cluster,
    /// The administrator of the Entra tenant.
    Tenant,
}

/// Whether it ends without a change by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Healing {
    /// It does not.
    Never,
    /// It may, after this time; a request before that is useless or harmful.
    After(Duration),
    /// A new assertion is to be tried once.
    FreshAssertion,
}

/// Entra's error numbers (AADSTS…) of a federated exchange.
const NUMBERS: &[(u64, FederationFault)] = &[
    (70_021, FederationFault::CredentialMissing),
    (70_025, FederationFault::CredentialMissing),
    (700_211, FederationFault::CredentialMissing),
    (700_213, FederationFault::CredentialMissing),
    (700_212, FederationFault::CredentialMismatch),
    (7_002_121, FederationFault::CredentialMismatch),
    (7_002_138, FederationFault::CredentialMismatch),
    (70_022_204, FederationFault::CredentialMismatch),
    (700_016, FederationFault::UnknownClient),
    (90_002, FederationFault::UnknownTenant),
    (700_223, FederationFault::TenantRefused),
    (700_238, FederationFault::TenantRefused),
    (7_002_381, FederationFault::TenantRefused),
    (50_166, FederationFault::IssuerUnreachable),
    (90_061, FederationFault::IssuerUnreachable),
    (501_661, FederationFault::IssuerUnreachable),
    (700_222, FederationFault::IssuerRefused),
    (700_226, FederationFault::IssuerRefused),
    (700_227, FederationFault::IssuerRefused),
    (700_024, FederationFault::AssertionExpired),
    (700_027, FederationFault::AssertionUnverified),
    // The key's name is in no key set that Entra has read: a rotation, or another cluster's documents.
    (7_000_272, FederationFault::AssertionUnverified),
];

impl FederationFault {
    /// The fault that an error answer of Entra's tells; `None` for an error that has nothing to do with federation.
    pub(super) fn of(body: &Value) -> Option<Self> {
        let codes = body["error_codes"].as_array().into_iter().flatten();
        let text = body["error_description"].as_str().and_then(number);
        let mut numbers = codes.filter_map(Value::as_u64).chain(text);
        numbers.find_map(|number| {
            let known = NUMBERS.iter().find(|(known, _)| *known == number)?;
            Some(known.1)
        })
    }

    /// Who repairs it.
    pub fn owner(self) -> FaultOwner {
        match self {
            Self::CredentialMissing
            | Self::CredentialMismatch
            | Self::UnknownClient
            | Self::UnknownTenant => FaultOwner::Identity,
            Self::IssuerUnreachable
            | Self::IssuerRefused
            | Self::AssertionExpired
            | Self::AssertionUnverified => FaultOwner::Cluster,
            Self::TenantRefused => FaultOwner::Tenant,
        }
    }

    /// Whether time heals it.
    pub fn healing(self) -> Healing {
        match self {
            Self::CredentialMissing | Self::UnknownClient => Healing::After(PROPAGATION),
            Self::IssuerUnreachable => Healing::After(ISSUER_RETRY),
            Self::AssertionExpired | Self::AssertionUnverified => Healing::FreshAssertion,
            Self::CredentialMismatch
            | Self::UnknownTenant
            | Self::TenantRefused
            | Self::IssuerRefused => Healing::Never,
        }
    }

    /// The kind of an error with this fault.
    pub(super) fn kind(self) -> ErrorKind {
        match self {
            Self::IssuerUnreachable => ErrorKind::Unavailable,
            _ => ErrorKind::InvalidCredential,
        }
    }

    /// The next step for an operator.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::CredentialMissing => {
                "create a federated credential with this issuer and subject at the identity (`az identity federated-credential create`); one that is new is known everywhere after a minute or some"
            }
            Self::CredentialMismatch => {
                "correct the federated credential at the identity (`az identity federated-credential update`): issuer, subject and audience are compared byte for byte, upper and lower case too"
            }
            Self::UnknownClient => {
                "check spec.clientID and spec.tenantID of the AzureIdentity (`az identity show`); an identity that is new is known everywhere after a minute or some"
            }
            Self::UnknownTenant => "check the tenant id, and that it is of this cloud",
            Self::TenantRefused => {
                "ask the administrator of the Entra tenant to allow workload identity federation with this cluster's issuer"
            }
            Self::IssuerUnreachable => {
                "Entra must be able to read the cluster's issuer from the internet; `podid issuer` says whether it can, and what to do if not"
            }
            Self::IssuerRefused => {
                "the assertion must come from the cluster's own issuer; check --service-account-issuer of the API server (`podid issuer`)"
            }
            Self::AssertionExpired => {
                "check the clocks of the nodes and of the API server against Entra's"
            }
            Self::AssertionUnverified => {
                "publish the keys that the API server signs with at the issuer (`podid issuer`)"
            }
        }
    }
}

/// The number in `AADSTS700213: No matching …`.
fn number(text: &str) -> Option<u64> {
    let (number, _) = text.strip_prefix("AADSTS")?.split_once(':')?;
    number.parse().ok()
}

#[cfg(test)]
mod tests;
