//! Token broker for federated identities, `podid broker`: the node agent asks it for a pod's token, the controller whether an
//! identity's federated credential works.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`protocol`] | the requests, responses and error kinds of the HTTPS protocol |
//! | [`client`] | the client of this protocol, for the node agent and the controller |

pub mod client;
pub mod protocol;
