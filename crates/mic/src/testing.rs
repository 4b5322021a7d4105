//! Test support: values and fakes that the tests of this crate share.

use podid_policy::ids::{HostKey, ResourceId};

pub(crate) fn id(n: usize) -> ResourceId {
    ResourceId::parse(&format!("/subscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id{n}")).unwrap()
}

pub(crate) fn host(n: usize) -> HostKey {
    HostKey::from_provider_id(&provider_id(n, 0)).unwrap()
}

pub(crate) fn provider_id(set: usize, instance: usize) -> String {
    format!(
        "azure:///subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachineScaleSets/set{set}/virtualMachines/{instance}"
    )
}

pub(crate) mod apiserver;
pub(crate) mod azure;
