//! Federated identities, as the controller sees them: the service account that stands for each, and the broker's check that its tokens
//! can be had.
//!
//! The index ([`crate::index`]) holds [`checks::Checks`] and [`accounts::Accounts`]; [`keeper`] is the task that acts on them, by
//! [`account_calls`] and the broker. Nothing is attached for a federated identity. What was attached for it before stays until a check
//! has succeeded, so that pods lose no token when `spec.federation` is added to an identity in use.
//!
//! ```text
//!   AzureIdentity with spec.federation
//!        │
//!        ├─ no service account in podid-identities ─► create it ──┐ the watch shows it
//!        │                                                        ▼
//!        └─ the service account is there ───────────────► ask the broker (POST /v1/check)
//!                     ▲                                      │              │
//!                     │                                  succeeded        failed
//!                     │                                      ▼              ▼
//!                     │                               Ready: True      Ready: False, with the next step
//!                     │                        hosts may detach it          │
//!                     └──────── in an hour ─────────┘                       │
//!                     └──────── back-off, or when the broker says ──────────┘
//!
//!   AzureIdentity gone, or spec.federation taken away ─► delete the service account, where podid made it
//! ```

use std::sync::Arc;

use futures::future::BoxFuture;
use podid_broker::client::ClientError;
use podid_policy::facts::ObjectKey;

mod account_calls;
pub(crate) mod accounts;
pub(crate) mod checks;
pub(crate) mod keeper;

/// Asks the broker whether tokens of an AzureIdentity can be had: a function, so that tests can take the broker's place.
pub type BrokerCheck =
    Arc<dyn Fn(ObjectKey) -> BoxFuture<'static, Result<(), ClientError>> + Send + Sync>;
