//! The four custom resources of group `aadpodidentity.k8s.io/v1` as people write them, and their conversion to the facts that
//! the rules need.
//!
//! Field names in the capitalised spelling that versions before 1.6 of AAD Pod Identity used are read too.

pub mod assigned;
pub mod binding;
pub mod crds;
pub mod exception;
pub mod identity;
pub mod legacy_case;

use podid_policy::ids::IdError;

/// The API group of all four kinds.
pub const GROUP: &str = "aadpodidentity.k8s.io";
/// The served and stored version of all four kinds.
pub const VERSION: &str = "v1";
/// The annotation that, with the value `namespaced`, keeps an AzureIdentity to its own namespace.
pub const BEHAVIOR_ANNOTATION: &str = "aadpodidentity.k8s.io/Behavior";

/// Why an object that the API server accepted cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// A required field is absent or empty.
    #[error("{field} is required and empty")]
    Missing {
        /// Its path.
        field: &'static str,
    },
    /// A field holds something that is not what it should be.
    #[error("{field}: {cause}")]
    Malformed {
        /// Its path.
        field: &'static str,
        /// What is wrong with it.
        cause: IdError,
    },
    /// A field holds a value that podid does not know.
    #[error("{field}: {value} is not supported; {allowed}")]
    Unsupported {
        /// Its path.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        allowed: &'static str,
    },
}

/// The first of two spellings of a required text field that is not empty: the older one, which somebody has applied since the
/// object was brought to today's (see [`legacy_case`]).
pub(crate) fn required<'a>(
    field: &'static str,
    today: &'a Option<String>,
    legacy: &'a Option<String>,
) -> Result<&'a str, ObjectError> {
    [legacy, today]
        .into_iter()
        .flatten()
        .map(|text| text.trim())
        .find(|text| !text.is_empty())
        .ok_or(ObjectError::Missing { field })
}
