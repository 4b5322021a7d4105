//! Custom resources of podid: the four kinds of the API group `aadpodidentity.k8s.io/v1` as users write them, their definitions
//! (CRDs), and their conversion to the values that the policy needs. The controller and the node agent read them; there are no
//! rules here.
//!
//! | kind | written by | file |
//! | --- | --- | --- |
//! | AzureIdentity | users | [`identity`] |
//! | AzureIdentityBinding | users | [`binding`] |
//! | AzurePodIdentityException | users | [`exception`] |
//! | AzureAssignedIdentity | the controller | [`assigned`] |
//!
//! Each kind has a method `facts`, which names the malformed field in its error. Field names in the capitalised spelling of AAD Pod
//! Identity before 1.6 are read too ([`legacy_case`]); [`crds`] has the definitions.

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

/// A required text field. The older spelling counts where both are set, since somebody applied it after podid had rewritten the
/// object (see [`legacy_case`]).
pub(crate) fn required<'a>(
    field: &'static str,
    today: &'a Option<String>,
    legacy: &'a Option<String>,
) -> Result<&'a str, ObjectError> {
    text_of(today, legacy).ok_or(ObjectError::Missing { field })
}

/// A text field, where it is there and not empty; the older spelling counts first, as in [`required`].
pub(crate) fn text_of<'a>(
    today: &'a Option<String>,
    legacy: &'a Option<String>,
) -> Option<&'a str> {
    [legacy, today]
        .into_iter()
        .flatten()
        .map(|text| text.trim())
        .find(|text| !text.is_empty())
}
