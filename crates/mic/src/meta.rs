//! Object metadata: what is kept of an AzureIdentity or an AzureIdentityBinding besides its spec.
//!
//! The watches fill it in, the index holds it, and [`crate::report`] needs it to name objects in Events and to write conditions only
//! where they change.

use std::sync::Arc;

use serde_json::{Value, json};

/// The condition's type.
const READY: &str = "Ready";
/// The reason of the condition of a federated identity that works.
pub(crate) const FEDERATED: &str = "Federated";
/// A message is cut after 1,000 characters: it must stay readable, and the API server takes 32 KiB at most.
const MAX_MESSAGE: usize = 1000;

/// Metadata of an AzureIdentity or AzureIdentityBinding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) uid: Arc<str>,
    pub(crate) generation: i64,
    /// The condition of an AzureIdentity, as its object shows it.
    pub(crate) condition: Option<Condition>,
}

impl Meta {
    /// Whether the condition says of the present generation that tokens come by federation.
    pub(crate) fn says_federated(&self) -> bool {
        let condition = self.condition.as_ref();
        condition.is_some_and(|c| c.says_federated() && c.generation == self.generation)
    }
}

/// The condition `Ready` of an AzureIdentity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Whether the status is `True`.
    pub(crate) ready: bool,
    pub(crate) status: String,
    reason: String,
    message: String,
    /// The `metadata.generation` that the condition was made for.
    pub(crate) generation: i64,
    /// `lastTransitionTime`: since when the status is this.
    pub(crate) since: String,
}

impl Condition {
    /// Reads the condition from an object's `status`.
    pub(crate) fn read(status: &Value) -> Option<Self> {
        let conditions = status.get("conditions")?.as_array()?;
        let ours = conditions.iter().find(|c| c["type"] == READY)?;
        let text = |name: &str| ours[name].as_str().unwrap_or_default().to_owned();
        Some(Self {
            ready: ours["status"] == "True",
            status: text("status"),
            reason: text("reason"),
            message: text("message"),
            generation: ours["observedGeneration"].as_i64().unwrap_or_default(),
            since: text("lastTransitionTime"),
        })
    }

    /// Whether it says that tokens come by federation.
    pub(crate) fn says_federated(&self) -> bool {
        self.ready && self.reason == FEDERATED
    }

    /// A condition that has no generation and no time yet.
    pub(crate) fn new(status: &str, reason: &str, message: &str) -> Self {
        Self {
            ready: status == "True",
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(MAX_MESSAGE).collect(),
            generation: 0,
            since: String::new(),
        }
    }

    /// The condition as it is written into `status.conditions`.
    pub(crate) fn body(&self) -> Value {
        json!({
            "type": READY,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": self.generation,
            "lastTransitionTime": self.since,
        })
    }

    /// Whether both say the same of the same generation, whenever they began to.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let texts = |c: &Self| (c.status.clone(), c.reason.clone(), c.message.clone());
        self.generation == other.generation && texts(self) == texts(other)
    }
}
