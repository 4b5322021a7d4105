//! Authorization of one token request: which identity a pod gets, or why none. The node agent calls [`authorize`] with the objects
//! that its index has for the pod.
//!
//! ```text
//!  an exception matches the pod ──────────────────────────────► Exempt: the request is forwarded unchanged
//!  no binding grants it an identity ──────────────────────────► Refused: no label, no binding, or no identity
//!  the request names an identity that it is not granted ──────► Refused: not granted
//!  the binding with the highest weight ───────────────────────► Grant
//!  several of them, the request names none, and no pick_first ► Refused: ambiguous
//!  several of them with the client id that the request names, in different tenants or of different resources
//!                                                             ► Refused: ambiguous client id
//! ```

use std::collections::BTreeMap;
use std::fmt;

use crate::facts::{BindingFacts, ExceptionFacts, IdentityFacts, ObjectKey, PodFacts};
use crate::ids::{ClientId, ResourceId};
use crate::matching::{BINDING_LABEL, Scope, exempts, grants, selects};
use crate::reason::DenialReason;

/// How a request names the identity that it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestedIdentity {
    /// It names none.
    Any,
    /// By `client_id`.
    Client(ClientId),
    /// By `msi_res_id` or one of its other spellings.
    Resource(ResourceId),
    /// By `object_id`, which no Kubernetes object has.
    Object {
        /// The object id; it is a GUID as client ids are.
        id: ClientId,
        /// The AzureIdentity that the caller found for it, if any.
        identity: Option<ObjectKey>,
    },
}

impl fmt::Display for RequestedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any identity"),
            Self::Client(id) => write!(f, "the identity with client_id {id}"),
            Self::Resource(id) => write!(f, "the identity with msi_res_id {id}"),
            Self::Object { id, .. } => write!(f, "the identity with object_id {id}"),
        }
    }
}

impl RequestedIdentity {
    fn accepts(&self, identity: &IdentityFacts) -> bool {
        match self {
            Self::Any => true,
            Self::Client(id) => identity.client_id == *id,
            Self::Resource(id) => identity.resource_id() == Some(id),
            Self::Object {
                identity: found, ..
            } => found.as_ref() == Some(&identity.key),
        }
    }
}

/// The decision about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// A token of this identity.
    Grant(&'a IdentityFacts),
    /// This exception exempts the pod: the request goes to the metadata service unchanged.
    Exempt(ObjectKey),
    /// No token, for this reason.
    Refused(DenialReason),
}

/// The objects that may concern a pod. The caller may narrow them down by an index; [`authorize`] checks each one again.
#[derive(Debug, Clone, Copy)]
pub struct PolicyObjects<'a> {
    /// How far bindings reach.
    pub scope: Scope,
    /// Candidate bindings.
    pub bindings: &'a [&'a BindingFacts],
    /// Candidate identities.
    pub identities: &'a [&'a IdentityFacts],
    /// Candidate exceptions.
    pub exceptions: &'a [&'a ExceptionFacts],
    /// Whether a request that several bindings of equal weight match gets the identity that is first by name, rather than none.
    pub pick_first: bool,
}

/// Decides about the request of a live pod for the identity `wanted`.
pub fn authorize<'a>(
    objects: PolicyObjects<'a>,
    pod: &PodFacts,
    wanted: &RequestedIdentity,
) -> Verdict<'a> {
    if let Some(exception) = objects.exceptions.iter().find(|e| exempts(e, pod)) {
        return Verdict::Exempt(exception.key.clone());
    }
    let granted = granted(objects, pod);
    if granted.is_empty() {
        return Verdict::Refused(nothing_granted(objects, pod));
    }
    let matching: Vec<_> = granted
        .iter()
        .filter(|g| wanted.accepts(g.identity))
        .collect();
    let heaviest = matching.iter().map(|g| g.weight).max();
    let best: Vec<_> = matching
        .iter()
        .filter(|g| Some(g.weight) == heaviest)
        .map(|g| g.identity)
        .collect();
    let pod = pod.key.clone();
    match best.as_slice() {
        [] => Verdict::Refused(DenialReason::NotGranted {
            pod,
            asked: wanted.clone(),
            granted: names(granted.iter()),
        }),
        [_, _, ..] if *wanted == RequestedIdentity::Any && !objects.pick_first => {
            Verdict::Refused(DenialReason::Ambiguous {
                pod,
                granted: names(matching.into_iter()),
            })
        }
        [first, others @ ..]
            if *wanted != RequestedIdentity::Any
                && others.iter().any(|other| !is_same_principal(first, other)) =>
        {
            Verdict::Refused(DenialReason::AmbiguousClientId {
                pod,
                asked: wanted.clone(),
                granted: principals(&best),
            })
        }
        [first, ..] => Verdict::Grant(first),
    }
}

/// Whether tokens of both are of one principal: a client id alone does not say so, because an application has one in every tenant.
fn is_same_principal(one: &IdentityFacts, other: &IdentityFacts) -> bool {
    if let (Some(one), Some(other)) = (one.resource_id(), other.resource_id()) {
        return one == other;
    }
    let is_attached = |identity: &IdentityFacts| identity.attached_id().is_some();
    let tenant = |identity: &IdentityFacts| identity.tenant().map(str::to_ascii_lowercase);
    !is_attached(one) && !is_attached(other) && tenant(one) == tenant(other)
}

/// Identities, each with its tenant or ARM id.
fn principals(identities: &[&IdentityFacts]) -> String {
    let described =
        identities.iter().map(
            |identity| match (identity.resource_id(), identity.tenant()) {
                (Some(id), _) => format!("{} ({id})", identity.key),
                (None, Some(tenant)) => format!("{} (tenant {tenant})", identity.key),
                (None, None) => format!("{} (the broker's tenant)", identity.key),
            },
        );
    described.collect::<Vec<_>>().join(", ")
}

/// An identity that a pod may use, with the highest weight among the bindings that grant it.
struct Granted<'a> {
    identity: &'a IdentityFacts,
    weight: i32,
}

fn granted<'a>(objects: PolicyObjects<'a>, pod: &PodFacts) -> Vec<Granted<'a>> {
    let mut found: BTreeMap<&ObjectKey, Granted<'a>> = BTreeMap::new();
    for binding in objects.bindings {
        for identity in objects
            .identities
            .iter()
            .filter(|i| grants(objects.scope, binding, i, pod))
        {
            let entry = found.entry(&identity.key).or_insert(Granted {
                identity,
                weight: binding.weight,
            });
            entry.weight = entry.weight.max(binding.weight);
        }
    }
    found.into_values().collect()
}

fn nothing_granted(objects: PolicyObjects<'_>, pod: &PodFacts) -> DenialReason {
    let Some(selector) = pod
        .labels
        .get(BINDING_LABEL)
        .filter(|value| !value.is_empty())
    else {
        return DenialReason::NoLabel {
            pod: pod.key.clone(),
        };
    };
    match objects
        .bindings
        .iter()
        .find(|b| selects(objects.scope, b, pod))
    {
        Some(binding) => DenialReason::NoIdentity {
            pod: pod.key.clone(),
            binding: binding.key.clone(),
            identity: ObjectKey {
                namespace: binding.key.namespace.clone(),
                name: binding.identity.clone(),
            },
        },
        None => DenialReason::NoBinding {
            pod: pod.key.clone(),
            selector: selector.clone(),
        },
    }
}

fn names<'a>(granted: impl Iterator<Item = &'a Granted<'a>>) -> String {
    granted
        .map(|g| g.identity.key.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests;
