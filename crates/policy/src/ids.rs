//! Azure ids: client ids, ARM resource ids and hosts, parsed once and then compared without regard to case, as Azure compares
//! them. Whatever reads an object, a request or an answer of Azure makes these values, so that no malformed id comes further.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The longest accepted ARM resource id in bytes; Azure's own limits of its parts add up to far less.
pub const MAX_RESOURCE_ID: usize = 1024;

/// Why a text is not an Azure id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is not a GUID.
    #[error(
        "{0:?} is not a GUID; expected the form 00000000-0000-0000-0000-000000000000 (`az identity show` prints it)"
    )]
    NotAGuid(String),
    /// The text is not the ARM id of a user-assigned identity.
    #[error(
        "{0:?} is not the resource id of a user-assigned identity; expected /subscriptions/<id>/resourceGroups/<group>/providers/Microsoft.ManagedIdentity/userAssignedIdentities/<name>"
    )]
    NotAnIdentity(String),
    /// The text is not the provider id of an Azure node.
    #[error(
        "{0:?} is not the providerID of an Azure node; expected azure:///subscriptions/<id>/resourceGroups/<group>/providers/Microsoft.Compute/virtualMachines/<name> or .../virtualMachineScaleSets/<set>/virtualMachines/<n>"
    )]
    NotAHost(String),
}

/// Text in its original spelling that is compared and hashed without regard to ASCII case.
#[derive(Clone)]
struct CaseInsensitive(Arc<str>);

impl PartialEq for CaseInsensitive {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for CaseInsensitive {}

impl Hash for CaseInsensitive {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for byte in self.0.bytes() {
            state.write_u8(byte.to_ascii_lowercase());
        }
        state.write_u8(0xff);
    }
}

impl PartialOrd for CaseInsensitive {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for CaseInsensitive {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let fold = |b: u8| b.to_ascii_lowercase();
        self.0.bytes().map(fold).cmp(other.0.bytes().map(fold))
    }
}

macro_rules! text_id {
    ($name:ident) => {
        impl $name {
            /// The text as it was written.
            pub fn as_str(&self) -> &str {
                &self.0.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.as_str())
            }
        }
    };
}

/// The application (client) id of an identity: a GUID.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(CaseInsensitive);
text_id!(ClientId);

impl ClientId {
    /// Parses a GUID in any case.
    ///
    /// # Errors
    /// [`IdError::NotAGuid`] when the text has another form.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let guid = text.len() == 36
            && text.bytes().enumerate().all(|(i, b)| match i {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_hexdigit(),
            });
        if guid {
            Ok(Self(CaseInsensitive(text.into())))
        } else {
            Err(IdError::NotAGuid(clip(text)))
        }
    }

    /// The id with its middle hidden, for logs.
    pub fn redacted(&self) -> String {
        let text = self.as_str();
        format!("{}##### REDACTED #####{}", &text[..4], &text[32..])
    }
}

/// The ARM id of a user-assigned managed identity.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId(CaseInsensitive);
text_id!(ResourceId);

impl ResourceId {
    /// Parses `/subscriptions/<id>/resourceGroups/<group>/providers/Microsoft.ManagedIdentity/userAssignedIdentities/<name>`.
    ///
    /// # Errors
    /// [`IdError::NotAnIdentity`] when the text has another form.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let no = || IdError::NotAnIdentity(clip(text));
        let parts = arm_path(text).ok_or_else(no)?;
        match parts.as_slice() {
            [.., kind_group, kind, _name]
                if parts.len() == 8
                    && kind_group.eq_ignore_ascii_case("Microsoft.ManagedIdentity")
                    && kind.eq_ignore_ascii_case("userAssignedIdentities") =>
            {
                Ok(Self(CaseInsensitive(text.into())))
            }
            _ => Err(no()),
        }
    }

    /// The identity's own name: the last segment.
    pub fn name(&self) -> &str {
        self.as_str().rsplit('/').next().unwrap_or_default()
    }
}

/// The kind of Azure resource that has the identities of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostKind {
    /// A virtual machine of its own, or an instance of a flexible scale set.
    VirtualMachine,
    /// A uniform scale set: its identities are those of all its instances.
    ScaleSet,
}

/// The Azure resource that identities are attached to for the pods of a node, from the node's `spec.providerID`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct HostKey {
    subscription: CaseInsensitive,
    resource_group: CaseInsensitive,
    kind: HostKind,
    name: CaseInsensitive,
}

impl fmt::Debug for CaseInsensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HostKey {
    /// Parses a node's `spec.providerID`. All instances of a uniform scale set give the same key.
    ///
    /// # Errors
    /// [`IdError::NotAHost`] when the node is not on Azure or the text has another form.
    pub fn from_provider_id(text: &str) -> Result<Self, IdError> {
        let no = || IdError::NotAHost(clip(text));
        let path = text.strip_prefix("azure://").ok_or_else(no)?;
        let parts = arm_path(path).ok_or_else(no)?;
        let compute = |s: &str| s.eq_ignore_ascii_case("Microsoft.Compute");
        let (kind, name) = match parts.as_slice() {
            [_, _, _, _, _, ns, kind, name]
                if compute(ns) && kind.eq_ignore_ascii_case("virtualMachines") =>
            {
                (HostKind::VirtualMachine, *name)
            }
            [_, _, _, _, _, ns, kind, name, vms, _instance]
                if compute(ns)
                    && kind.eq_ignore_ascii_case("virtualMachineScaleSets")
                    && vms.eq_ignore_ascii_case("virtualMachines") =>
            {
                (HostKind::ScaleSet, *name)
            }
            _ => return Err(no()),
        };
        Ok(Self {
            subscription: CaseInsensitive(parts[1].into()),
            resource_group: CaseInsensitive(parts[3].into()),
            kind,
            name: CaseInsensitive(name.into()),
        })
    }

    /// The subscription's GUID as written.
    pub fn subscription(&self) -> &str {
        &self.subscription.0
    }

    /// The resource group as written.
    pub fn resource_group(&self) -> &str {
        &self.resource_group.0
    }

    /// Whether this is a virtual machine or a scale set.
    pub fn kind(&self) -> HostKind {
        self.kind
    }

    /// The name of the virtual machine or scale set as written.
    pub fn name(&self) -> &str {
        &self.name.0
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            HostKind::VirtualMachine => "vm",
            HostKind::ScaleSet => "vmss",
        };
        write!(f, "{kind}/{}", self.name())
    }
}

/// The segments of an ARM path with a subscription, a resource group and a provider; `None` for any other text.
fn arm_path(text: &str) -> Option<Vec<&str>> {
    if text.len() > MAX_RESOURCE_ID {
        return None;
    }
    let parts: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
    let fine = |s: &&str| {
        !s.is_empty()
            && *s != "."
            && *s != ".."
            && s.chars()
                .all(|c| c.is_alphanumeric() || "-_.()".contains(c))
    };
    let arm = parts.len() >= 8
        && parts[0].eq_ignore_ascii_case("subscriptions")
        && parts[2].eq_ignore_ascii_case("resourceGroups")
        && parts[4].eq_ignore_ascii_case("providers")
        && parts.iter().all(fine);
    arm.then_some(parts)
}

/// FNV-1a, a hash that stays the same in every version: for names that another version must find again.
///
/// ```
/// # use podid_policy::ids::stable_hash;
/// assert_eq!(stable_hash("shop/web/reader"), 0x955f_ed1d_52c6_f9ea);
/// ```
pub fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The beginning of a text, which may be hostile and of any length, for an error message.
fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "/subscriptions/s/resourcegroups/rg.x_(1)/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader";

    #[test]
    fn ids_compare_without_case_and_keep_their_spelling() {
        let lower = ResourceId::parse(ID).unwrap();
        let upper = ResourceId::parse(&ID.to_uppercase()).unwrap();
        assert_eq!(lower, upper);
        assert_eq!(upper.as_str(), ID.to_uppercase());
        assert_eq!(lower.name(), "reader");
        let a = ClientId::parse("6F1CAAAA-0000-0000-0000-0000000022AB").unwrap();
        let b = ClientId::parse("6f1caaaa-0000-0000-0000-0000000022ab").unwrap();
        assert_eq!(a, b);
        assert_eq!(b.redacted(), "6f1c##### REDACTED #####22ab");
    }

    #[test]
    fn malformed_ids_are_refused() {
        for bad in [
            "",
            "subscriptions/s/resourcegroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n",
            "/subscriptions/s/resourcegroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/",
            "/subscriptions/s/resourcegroups/../providers/Microsoft.ManagedIdentity/userAssignedIdentities/n",
            "/subscriptions/s/resourcegroups/r/providers/Microsoft.ManagedIdentity/somethingElse/n",
            "/subscriptions/s/resourcegroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n/x",
            "/subscriptions/s/resourcegroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n?x",
        ] {
            assert!(ResourceId::parse(bad).is_err(), "{bad}");
        }
        assert!(ClientId::parse("not-a-guid").is_err());
        assert!(ClientId::parse("6f1caaaa-0000-0000-0000-0000000022a\u{e9}").is_err());
    }

    #[test]
    fn an_error_quotes_the_beginning_of_a_long_text_only() {
        let error = ClientId::parse(&"é".repeat(10_000)).unwrap_err();
        assert_eq!(error, IdError::NotAGuid("é".repeat(200)));
    }

    #[test]
    fn instances_of_a_scale_set_share_a_host() {
        let of = |set: &str, n: u32| {
            HostKey::from_provider_id(&format!("azure:///subscriptions/s/resourceGroups/mc_rg/providers/Microsoft.Compute/virtualMachineScaleSets/{set}/virtualMachines/{n}")).unwrap()
        };
        assert_eq!(of("pool1", 0), of("POOL1", 7));
        assert_ne!(of("pool1", 0), of("pool2", 0));
        assert_eq!(of("pool1", 0).to_string(), "vmss/pool1");
        let vm = HostKey::from_provider_id("azure:///subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm-1").unwrap();
        assert_eq!(
            (vm.kind(), vm.name(), vm.resource_group(), vm.subscription()),
            (HostKind::VirtualMachine, "vm-1", "rg", "s")
        );
        for bad in ["", "kind://docker/x", "azure:///subscriptions/s"] {
            assert!(HostKey::from_provider_id(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "\\PC*") {
            let _ = ClientId::parse(&text);
            let _ = ResourceId::parse(&text);
            let _ = HostKey::from_provider_id(&text);
        }
    }
}
