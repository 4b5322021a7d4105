//! ARM managed identity API: reads a user-assigned identity. The controller compares its client id with the AzureIdentity's, and so
//! notices that an identity was deleted and made anew under its old name (drift).

use http::Method;
use podid_policy::ids::{ClientId, ResourceId};
use serde_json::Value;

use super::Arm;
use super::throttle::Class;
use crate::endpoints::join;
use crate::error::{Error, ErrorKind, Service};

/// The version of the managed identity API.
const API_VERSION: &str = "2023-01-31";

impl Arm {
    /// The present client id of an identity, by one request; `None` when there is no such identity.
    ///
    /// # Errors
    /// [`ErrorKind::Forbidden`] without a role to read it (Managed Identity Operator includes that).
    pub async fn client_id(&self, id: &ResourceId) -> Result<Option<ClientId>, Error> {
        let segments: Vec<&str> = id.as_str().split('/').filter(|s| !s.is_empty()).collect();
        let subscription = segments.get(1).copied().unwrap_or_default();
        let mut url = join(&self.0.base, &segments);
        url.query_pairs_mut()
            .append_pair("api-version", API_VERSION);
        let call = self.call(subscription, Class::Identity, Method::GET, url, None, None);
        let body = match call.await {
            Ok(answer) => answer.body,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::IdentityNotFound
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let text = body.pointer("/properties/clientId").and_then(Value::as_str);
        let client = text.and_then(|text| ClientId::parse(text).ok());
        client.map(Some).ok_or_else(|| {
            let what = "the identity's answer has no properties.clientId";
            Error::new(Service::Arm, ErrorKind::Malformed, what)
        })
    }
}
