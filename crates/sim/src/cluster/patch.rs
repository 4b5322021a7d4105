//! PATCH: merge patch, JSON patch and strategic merge patch, told apart by the content type.

use serde_json::Value;

use super::{
    failure::{Failure, Outcome},
    strategic,
};

/// A way to change an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Merge,
    Json,
    Strategic,
}

impl Form {
    /// The form that a content type names; custom resources know no strategic merge.
    pub(super) fn of(content_type: &str, custom: bool) -> Outcome<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/json-patch+json" => Ok(Self::Json),
            "application/strategic-merge-patch+json" if !custom => Ok(Self::Strategic),
            _ => Err(Failure::unsupported_media(if custom {
                "application/json-patch+json, application/merge-patch+json"
            } else {
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
            })),
        }
    }

    /// The object with the patch applied.
    pub(super) fn apply(self, object: &Value, patch: &Value) -> Outcome<Value> {
        let mut changed = object.clone();
        match self {
            Self::Json => {
                let patch: json_patch::Patch = serde_json::from_value(patch.clone())
                    .map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))?;
                json_patch::patch(&mut changed, &patch).map_err(|e| {
                    let message = format!(
                        "the server rejected our request due to an error in our request: {e}"
                    );
                    Failure::new(422, "Invalid", message)
                })?;
            }
            _ if !patch.is_object() => {
                return Err(Failure::bad_request(
                    "error decoding patch: it is not an object",
                ));
            }
            Self::Merge => json_patch::merge(&mut changed, patch),
            Self::Strategic => strategic::merge(&mut changed, patch, "")
                .map_err(|why| Failure::bad_request(format!("error applying patch: {why}")))?,
        }
        Ok(changed)
    }
}
