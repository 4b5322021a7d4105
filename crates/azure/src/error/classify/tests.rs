use rstest::rstest;
use serde_json::json;

use super::*;
use ErrorKind::{
    BadRequest, Conflict, Forbidden, HostRefused, IdentityForbidden, IdentityNotFound,
    InvalidCredential, NotFound, Subscription, Throttled, Unavailable,
};

const A: &str = "/subscriptions/s/resourcegroups/rg.x(1)/providers/microsoft.managedidentity/userassignedidentities/a";
const B: &str = "/subscriptions/s/resourceGroups/apps/providers/Microsoft.ManagedIdentity/userAssignedIdentities/b";
const SET: &str = "/subscriptions/s/resourceGroups/nodes/providers/Microsoft.Compute/virtualMachineScaleSets/pool-a";
/// How Azure Resource Manager begins to say that a role is missing on something that the request links to.
const LINKED: &str = "The client '11' with object id '22' has permission to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' on scope '/s'; however, it does not have permission to perform action(s) ";

fn operation(status: &str, inner: &str) -> String {
    format!(
        "Identity operation for resource '{SET}' failed with error 'Failed to perform resource identity operation. Status: '{status}'. Response: '{{\"error\":{{\"code\":\"{status}\",\"message\":\"{inner}\"}}}}'.'."
    )
}

/// Whose fault each answer is, the identities that are blamed, and a word of the next step.
#[rstest]
// An identity.
#[case(400, "FailedIdentityOperation", operation("BadRequest", &format!("Resource '{A}' was not found.")), None, IdentityNotFound, &[A], "az identity show")]
#[case(404, "FailedIdentityOperation", operation("NotFound", &format!("Resource '{A}' does not exist.")), None, IdentityNotFound, &[A], "az identity show")]
#[case(404, "ResourceNotFound", "The Resource 'Microsoft.ManagedIdentity/userAssignedIdentities/a' under resource group 'rg' was not found.".to_owned(), None, IdentityNotFound, &[], "az identity show")]
#[case(403, "LinkedAuthorizationFailed", format!("{LINKED}'Microsoft.ManagedIdentity/userAssignedIdentities/assign/action' on the linked scope(s) '{A},{B}' (respectively) or the linked scope(s) are invalid."), None, IdentityForbidden, &[A, B], "Managed Identity Operator")]
#[case(403, "AuthorizationFailed", format!("The client '11' with object id '22' does not have authorization to perform action 'Microsoft.ManagedIdentity/userAssignedIdentities/assign/action' over scope '{B}' or the scope is invalid."), None, IdentityForbidden, &[B], "Managed Identity Operator")]
#[case(400, "InvalidParameter", format!("ResourceIdentity identityId '{B}' cannot be duplicated in the provided identityIds list."), Some("resourceIdentity.identityIds"), BadRequest, &[B], "spec.resourceID")]
#[case(400, "LinkedInvalidPropertyId", format!("Property id '{B}' at path 'identity.userAssignedIdentities' is invalid."), None, BadRequest, &[B], "spec.resourceID")]
// The host.
#[case(400, "InvalidParameter", "Required parameter 'imageReference' is missing (null).".to_owned(), Some("imageReference"), HostRefused, &[], "the host's own settings")]
#[case(400, "InvalidParameter", "Required parameter 'imageReference' is missing (null).".to_owned(), None, HostRefused, &[], "the host's own settings")]
#[case(400, "InvalidParameter", "The value of parameter osProfile.customData is invalid.".to_owned(), Some("osProfile.customData"), HostRefused, &[], "the host's own settings")]
#[case(404, "GalleryImageNotFound", "The gallery image /subscriptions/s/resourceGroups/AKS-Ubuntu/providers/Microsoft.Compute/galleries/AKSUbuntu/images/2204gen2containerd/versions/202401.09.0 is not available in westeurope region.".to_owned(), Some("imageReference"), HostRefused, &[], "node-image-only")]
#[case(404, "PlatformImageNotFound", "The platform image 'microsoft-aks:aks:aks-ubuntu-1804:2021.11.1' is not available.".to_owned(), Some("imageReference"), HostRefused, &[], "node-image-only")]
#[case(404, "NetworkSecurityGroupNotFound", "m".to_owned(), None, HostRefused, &[], "the host's own settings")]
#[case(400, "VMMarketplaceInvalidInput", "Creating a virtual machine from Marketplace image requires Plan information in the request.".to_owned(), None, HostRefused, &[], "terms")]
#[case(409, "ScopeLocked", format!("The scope '{SET}' cannot perform write operation because following scope(s) are locked: '/subscriptions/s/resourceGroups/nodes'. Please remove the lock and try again."), None, HostRefused, &[], "az lock delete")]
#[case(409, "PropertyChangeNotAllowed", "Changing property 'platformFaultDomainCount' is not allowed.".to_owned(), Some("platformFaultDomainCount"), HostRefused, &[], "the host's own settings")]
#[case(409, "ResourceGroupBeingDeleted", "The resource group 'nodes' is in deprovisioning state and cannot perform this operation.".to_owned(), None, HostRefused, &[], "being deleted")]
#[case(409, "OperationNotAllowed", "Operation 'write' is not allowed on VM 'x' since the VM is marked for deletion.".to_owned(), None, HostRefused, &[], "being deleted")]
#[case(404, "ResourceNotFound", "The Resource 'Microsoft.Compute/virtualMachineScaleSets/pool-a' under resource group 'nodes' was not found.".to_owned(), None, NotFound, &[], "providerID")]
#[case(404, "ResourceGroupNotFound", "Resource group 'nodes' could not be found.".to_owned(), None, NotFound, &[], "providerID")]
// The caller's rights.
#[case(403, "AuthorizationFailed", format!("The client '11' with object id '22' does not have authorization to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' over scope '{SET}' or the scope is invalid."), None, Forbidden, &[], "Virtual Machine Contributor")]
#[case(403, "LinkedAuthorizationFailed", format!("{LINKED}'Microsoft.Network/virtualNetworks/subnets/join/action' on the linked scope(s) '/subscriptions/s/resourceGroups/net/providers/Microsoft.Network/virtualNetworks/v/subnets/nodes' (respectively) or the linked scope(s) are invalid."), None, Forbidden, &[], "the action that Azure names")]
#[case(403, "DenyAssignmentAuthorizationFailed", "The client '11' with object id '22' has permission to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' on scope '/s'; however, the access is denied because of the deny assignment with name 'x' and Id 'y' at scope '/z'.".to_owned(), None, Forbidden, &[], "nrg-lockdown")]
#[case(401, "InvalidAuthenticationTokenTenant", "The access token is from the wrong issuer 'https://sts.windows.net/1/'.".to_owned(), None, InvalidCredential, &[], "tenantId")]
#[case(401, "InvalidAuthenticationTokenAudience", "The access token has been obtained for wrong audience or resource.".to_owned(), None, InvalidCredential, &[], "`cloud`")]
// The subscription.
#[case(404, "SubscriptionNotFound", "The subscription 's' could not be found.".to_owned(), None, Subscription, &[], "providerID")]
#[case(409, "ReadOnlyDisabledSubscription", "The subscription 's' is disabled and therefore marked as read only. You cannot perform any write actions on this subscription until it is re-enabled.".to_owned(), None, Subscription, &[], "enable it again")]
#[case(409, "MissingSubscriptionRegistration", "The subscription is not registered to use namespace 'Microsoft.Compute'.".to_owned(), None, Subscription, &[], "az provider register")]
#[case(409, "OperationNotAllowed", "Operation could not be completed as it results in exceeding approved Total Regional Cores quota.".to_owned(), None, Subscription, &[], "quota")]
// The moment.
#[case(409, "OperationNotAllowed", "Another operation (Upgrade - Updating) is in progress.".to_owned(), None, Conflict, &[], "retried")]
#[case(409, "ConflictingConcurrentWriteNotAllowed", "The operation was interrupted by a conflicting concurrent write on the same entity. Please retry later.".to_owned(), None, Conflict, &[], "retried")]
#[case(412, "PreconditionFailed", "Etag provided in if-match header \"2\" does not match etag \"3\" of resource.".to_owned(), None, Conflict, &[], "retried")]
#[case(429, "OperationNotAllowed", "The server rejected the request because too many requests have been received for this subscription.".to_owned(), Some("HighCostGet3Min"), Throttled, &[], "spaced out")]
#[case(400, "FailedIdentityOperation", operation("TooManyRequests", "Too many requests."), None, Throttled, &[], "spaced out")]
#[case(400, "FailedIdentityOperation", operation("InternalServerError", "An error occurred."), None, Unavailable, &[], "status page")]
#[case(500, "InternalExecutionError", "An internal execution error occurred.".to_owned(), None, Unavailable, &[], "status page")]
// Azure does not say: the bisection does.
#[case(400, "FailedIdentityOperation", operation("BadRequest", "Bad request."), None, BadRequest, &[], "message")]
#[case(400, "FailedIdentityOperation", operation("BadRequest", "User Assigned Identities Number '151' Assign exceed limit '150' in one request."), None, BadRequest, &[], "message")]
#[case(403, "RequestDisallowedByPolicy", "Resource 'pool-a' was disallowed by policy. Policy identifiers: '[]'.".to_owned(), None, BadRequest, &[], "exempt")]
#[case(403, "LinkedAuthorizationFailed", "The client has permission to perform action 'Microsoft.Compute/virtualMachineScaleSets/write' on scope '/s', however the current tenant '33' is not authorized to access linked subscription '44'.".to_owned(), None, BadRequest, &[], "tenant")]
#[case(400, "BadRequest", "m".to_owned(), None, BadRequest, &[], "message")]
fn whose_fault_it_is(
    #[case] status: u16,
    #[case] code: &str,
    #[case] message: String,
    #[case] target: Option<&str>,
    #[case] kind: ErrorKind,
    #[case] identities: &[&str],
    #[case] advice: &str,
) {
    let error = json!({ "code": code, "message": message, "target": target });
    let verdict = classify(&ArmError::new(status, &error));
    assert_eq!(verdict.kind, kind);
    let mut blamed: Vec<_> = identities
        .iter()
        .map(|id| ResourceId::parse(id).unwrap())
        .collect();
    blamed.sort();
    assert_eq!(verdict.identities, blamed);
    assert!(verdict.advice.contains(advice), "{}", verdict.advice);
}

/// Where the outer code says nothing, the code of a detail decides.
#[test]
fn details_decide_where_the_outer_code_does_not() {
    let error = json!({ "code": "BadRequest", "message": "See details.", "details": [
        { "code": "GalleryImageNotFound", "message": "not available", "target": "imageReference" },
    ] });
    let verdict = classify(&ArmError::new(400, &error));
    assert_eq!(verdict.kind, HostRefused);
    let error = json!({ "code": "BadRequest", "message": "See details.", "details": [
        { "code": "InvalidParameter", "message": format!("'{A}' is invalid") },
    ] });
    let verdict = classify(&ArmError::new(400, &error));
    assert_eq!(verdict.identities, [ResourceId::parse(A).unwrap()]);
}
