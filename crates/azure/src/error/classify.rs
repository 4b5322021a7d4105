//! Error classification of Azure Resource Manager: whose fault a refusal is, by code, target and message.
//!
//! [`super::Error`] asks [`classify`] about each error answer and each failed operation. It guards the identities: the status alone
//! blames nobody, and an identity is blamed only when Azure names it or says that the fault is an identity's.
//!
//! ```text
//!  code of a missing role ──► the role is of identities ─► IdentityForbidden      of anything else ─► Forbidden
//!  identity operation ──────► inner status is transient ─► Throttled, …           identity is gone ─► IdentityNotFound
//!  code of the table ───────► as the table says
//!  401 408 409 412 429 5xx ─► caller's credential, or the moment
//!  404 ─────────────────────► of the host ─► NotFound     of an identity ─► IdentityNotFound     of anything else ─► HostRefused
//!  identity is named ───────► IdentityNotFound, or BadRequest with its id
//!  other target ────────────► HostRefused
//!  all else ────────────────► BadRequest without an id: the caller's bisection tells whose fault it is
//! ```

use podid_policy::ids::ResourceId;
use serde_json::Value;

use super::{ErrorKind, Service};

/// What an error of Azure Resource Manager says.
pub(super) struct ArmError<'a> {
    /// The HTTP status; 400 for the error of a failed operation.
    status: u16,
    /// Its code and the codes of its details, the outermost first.
    codes: Vec<&'a str>,
    /// The parts of the request that it is about.
    targets: Vec<&'a str>,
    /// Its message and the messages of its details.
    text: String,
}

impl<'a> ArmError<'a> {
    /// Reads the object that has `code` and `message`.
    pub(super) fn new(status: u16, error: &'a Value) -> Self {
        let details = error["details"].as_array().into_iter().flatten();
        let parts: Vec<&Value> = std::iter::once(error).chain(details).collect();
        let field = |name| parts.iter().filter_map(move |part| part[name].as_str());
        Self {
            status,
            codes: field("code").collect(),
            targets: field("target").collect(),
            text: field("message").collect::<Vec<_>>().join(" "),
        }
    }

    fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|c| c.eq_ignore_ascii_case(code))
    }

    fn says(&self, words: &[&str]) -> bool {
        let text = self.text.to_ascii_lowercase();
        words.iter().any(|word| text.contains(word))
    }
}

/// Whose fault it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) kind: ErrorKind,
    /// The next step for an operator.
    pub(super) advice: &'static str,
    /// The identities that Azure names as the cause.
    pub(super) identities: Vec<ResourceId>,
}

const IMAGE: &str = "the host's image is not available to it any more: give the node pool an image that is (AKS: `az aks nodepool upgrade --node-image-only`)";
const DISABLED: &str = "the subscription is disabled: its owner or billing must enable it again";
const PURCHASE: &str =
    "accept the terms of the image that Azure names (`az vm image terms accept`)";
const SIZE: &str = "the host's size is not available to the subscription in this region: choose another one or ask for it";
const LOCKDOWN: &str = "a deny assignment keeps the controller from changing hosts (AKS: `az aks update --nrg-lockdown-restriction-level Unrestricted`)";
const POLICY: &str = "exempt the node resource group from the policy that Azure names, or make what it asks for true";
const OTHER_ROLE: &str = "grant the controller's identity the action that Azure names on the linked resource that it names";
const OTHER_TENANT: &str = "Azure attaches nothing of another tenant: every identity, and what the host's model refers to, must be of the host's tenant";
const DELETING: &str =
    "the host or its resource group is being deleted; a read shows when it is gone";
const QUOTA: &str = "ask for more of the quota that Azure names (`az quota`)";
const EXTENSION: &str =
    "look at the extensions of the host (`az vmss extension list`): one of them fails";
const MODEL: &str =
    "correct the host's own settings that Azure names; no identity is the cause of it";
const BAD_IDENTITY: &str = "correct spec.resourceID of the AzureIdentity that Azure names";

impl Verdict {
    /// A kind with its usual advice.
    pub(super) fn plain(service: Service, kind: ErrorKind) -> Self {
        Self {
            kind,
            advice: kind.advice(service),
            identities: Vec::new(),
        }
    }
}

/// Codes that decide by themselves.
const CODES: &[(&str, ErrorKind, &str)] = &[
    (
        "SubscriptionNotFound",
        ErrorKind::Subscription,
        "check the subscription in the node's providerID, and that the controller's identity is of its tenant",
    ),
    (
        "ReadOnlyDisabledSubscription",
        ErrorKind::Subscription,
        DISABLED,
    ),
    ("DisallowedOperation", ErrorKind::Subscription, DISABLED),
    (
        "MissingSubscriptionRegistration",
        ErrorKind::Subscription,
        "register the resource provider that Azure names (`az provider register`)",
    ),
    ("QuotaExceeded", ErrorKind::Subscription, QUOTA),
    (
        "ScopeLocked",
        ErrorKind::HostRefused,
        "remove the lock that Azure names (`az lock delete`)",
    ),
    ("RequestDisallowedByPolicy", ErrorKind::BadRequest, POLICY),
    (
        "DenyAssignmentAuthorizationFailed",
        ErrorKind::Forbidden,
        LOCKDOWN,
    ),
    ("GalleryImageNotFound", ErrorKind::HostRefused, IMAGE),
    ("PlatformImageNotFound", ErrorKind::HostRefused, IMAGE),
    ("ImageNotFound", ErrorKind::HostRefused, IMAGE),
    ("ImageVersionDeprecated", ErrorKind::HostRefused, IMAGE),
    (
        "VMMarketplaceInvalidInput",
        ErrorKind::HostRefused,
        PURCHASE,
    ),
    (
        "ResourcePurchaseValidationFailed",
        ErrorKind::HostRefused,
        PURCHASE,
    ),
    (
        "MarketplacePurchaseEligibilityFailed",
        ErrorKind::HostRefused,
        PURCHASE,
    ),
    ("SkuNotAvailable", ErrorKind::HostRefused, SIZE),
    ("AllocationFailed", ErrorKind::HostRefused, SIZE),
    ("ZonalAllocationFailed", ErrorKind::HostRefused, SIZE),
    (
        "OverconstrainedAllocationRequest",
        ErrorKind::HostRefused,
        SIZE,
    ),
    ("PropertyChangeNotAllowed", ErrorKind::HostRefused, MODEL),
    (
        "VMExtensionProvisioningError",
        ErrorKind::HostRefused,
        EXTENSION,
    ),
    (
        "VMExtensionHandlerNonTransientError",
        ErrorKind::HostRefused,
        EXTENSION,
    ),
    (
        "VMAgentStatusCommunicationError",
        ErrorKind::HostRefused,
        EXTENSION,
    ),
    (
        "ResourceGroupBeingDeleted",
        ErrorKind::HostRefused,
        DELETING,
    ),
];

/// Codes of an absent host. All other 404 are about something that the host refers to.
const HOST_ABSENT: [&str; 4] = [
    "ResourceNotFound",
    "ResourceGroupNotFound",
    "ParentResourceNotFound",
    "NotFound",
];

/// The type of identities, as a message spells it.
const IDENTITY_TYPE: &str = "microsoft.managedidentity/userassignedidentities";
const ASSIGN: &str = "userassignedidentities/assign/action";

/// Decides whose fault an error is.
pub(super) fn classify(error: &ArmError<'_>) -> Verdict {
    let identities = quoted_identities(&error.text);
    let (kind, advice) = by_role(error, &identities)
        .or_else(|| by_identity_operation(error, &identities))
        .or_else(|| by_table(error))
        .or_else(|| by_status(error))
        .unwrap_or_else(|| by_subject(error, &identities));
    let names_cause = matches!(
        kind,
        ErrorKind::IdentityNotFound | ErrorKind::IdentityForbidden | ErrorKind::BadRequest
    );
    Verdict {
        kind,
        advice,
        identities: if names_cause { identities } else { Vec::new() },
    }
}

type Decided = (ErrorKind, &'static str);

fn plain(kind: ErrorKind) -> Decided {
    (kind, kind.advice(Service::Arm))
}

/// A role is missing. The host's model may link to subnets, images and the like, which take roles of their own.
fn by_role(error: &ArmError<'_>, identities: &[ResourceId]) -> Option<Decided> {
    let is_linked = error.has_code("LinkedAuthorizationFailed");
    if !is_linked && !error.has_code("AuthorizationFailed") {
        return None;
    }
    Some(
        if error.says(&["not authorized to access linked subscription"]) {
            (ErrorKind::BadRequest, OTHER_TENANT)
        } else if error.says(&[ASSIGN]) || (is_linked && !identities.is_empty()) {
            plain(ErrorKind::IdentityForbidden)
        } else if is_linked {
            (ErrorKind::Forbidden, OTHER_ROLE)
        } else {
            plain(ErrorKind::Forbidden)
        },
    )
}

/// The managed identity service has failed or refused; its own answer is quoted in the message.
fn by_identity_operation(error: &ArmError<'_>, identities: &[ResourceId]) -> Option<Decided> {
    if !error.has_code("FailedIdentityOperation") {
        return None;
    }
    if is_missing(error) {
        return Some(plain(ErrorKind::IdentityNotFound));
    }
    if !identities.is_empty() {
        return Some((ErrorKind::BadRequest, BAD_IDENTITY));
    }
    let inner = error.text.split_once("Status: '");
    let inner = inner.and_then(|(_, rest)| rest.split('\'').next());
    Some(plain(match inner.unwrap_or_default() {
        "TooManyRequests" | "429" => ErrorKind::Throttled,
        "Conflict" => ErrorKind::Conflict,
        "InternalServerError"
        | "BadGateway"
        | "ServiceUnavailable"
        | "GatewayTimeout"
        | "RequestTimeout" => ErrorKind::Unavailable,
        _ => ErrorKind::BadRequest,
    }))
}

fn by_table(error: &ArmError<'_>) -> Option<Decided> {
    let row = CODES.iter().find(|(code, ..)| error.has_code(code));
    row.map(|(_, kind, advice)| (*kind, *advice))
}

fn by_status(error: &ArmError<'_>) -> Option<Decided> {
    let is_operation_of = |words: &[&str]| {
        let code = error.codes.first().copied().unwrap_or_default();
        words.iter().any(|word| code.contains(word))
    };
    Some(match error.status {
        401 if error.has_code("InvalidAuthenticationTokenAudience") => (
            ErrorKind::InvalidCredential,
            "check that `cloud` in the cloud configuration is the cloud of the subscription",
        ),
        401 if error.has_code("InvalidAuthenticationTokenTenant") => (
            ErrorKind::InvalidCredential,
            "the controller's identity must be of the tenant of the subscription: check `tenantId`",
        ),
        401 => plain(ErrorKind::InvalidCredential),
        408 => plain(ErrorKind::Timeout),
        429 => plain(ErrorKind::Throttled),
        500.. => plain(ErrorKind::Unavailable),
        409 if error.says(&["quota"]) => (ErrorKind::Subscription, QUOTA),
        409 if error.says(&["marked for deletion", "being deleted", "deprovisioning"]) => {
            (ErrorKind::HostRefused, DELETING)
        }
        409 | 412 => plain(ErrorKind::Conflict),
        _ if is_operation_of(&["Preempted", "Canceled"]) => plain(ErrorKind::Conflict),
        _ if is_operation_of(&["Internal", "Timeout", "TimedOut", "Retryable"]) => {
            plain(ErrorKind::Unavailable)
        }
        _ => return None,
    })
}

/// A refusal (400, 403, 404): by what it is about.
fn by_subject(error: &ArmError<'_>, identities: &[ResourceId]) -> Decided {
    let is_about_identity = !identities.is_empty() || error.says(&[IDENTITY_TYPE]);
    if is_about_identity && (error.status == 404 || is_missing(error)) {
        return plain(ErrorKind::IdentityNotFound);
    }
    match error.status {
        403 => return plain(ErrorKind::Forbidden),
        404 if error.codes.is_empty() || HOST_ABSENT.iter().any(|code| error.has_code(code)) => {
            return plain(ErrorKind::NotFound);
        }
        404 => return (ErrorKind::HostRefused, MODEL),
        _ => {}
    }
    if !identities.is_empty() {
        return (ErrorKind::BadRequest, BAD_IDENTITY);
    }
    let is_other = |what: &str| !what.to_ascii_lowercase().contains("identit");
    let has_other_target = !error.targets.is_empty() && error.targets.iter().all(|t| is_other(t));
    let mut missing = error.text.split("equired parameter '").skip(1);
    if has_other_target || missing.next().is_some_and(is_other) {
        return (ErrorKind::HostRefused, MODEL);
    }
    plain(ErrorKind::BadRequest)
}

fn is_missing(error: &ArmError<'_>) -> bool {
    error.says(&["was not found", "does not exist", "could not be found"])
}

/// The resource ids that a message quotes, alone or as a list in one pair of quotes.
fn quoted_identities(message: &str) -> Vec<ResourceId> {
    let separators = |c: char| c.is_whitespace() || matches!(c, '\'' | '"' | ',' | '\\');
    let mut ids: Vec<ResourceId> = message
        .split(separators)
        .filter_map(|part| ResourceId::parse(part.trim_end_matches(['.', ':', ';'])).ok())
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests;
