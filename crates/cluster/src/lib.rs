//! Kubernetes API client of podid: how the controller (`podid-mic`), the node agent (`podid-nmi`) and the broker (`podid-broker`)
//! read and write objects. It decides nothing; the rules are in `podid-policy`, and the kinds of objects in `podid-api`.
//!
//! | to do this | look here |
//! | --- | --- |
//! | keep an index up to date by list and watch (an informer) | [`watch`], whose objects are [`lenient::Lenient`] |
//! | read what the rules need of a Pod | [`pods`] |
//! | have one leader among the replicas of a controller | [`lease`], and [`endpoints_lock`] for AAD Pod Identity's own lock |
//! | record an Event on an object | [`events`] |
//! | write a status subresource | [`status`] |
//! | read a Secret, or learn that it changed | [`secrets`] |
//! | learn whether the API server prunes podid's fields | [`served_schema`] |
//! | remove the startup taint of a node | [`taint`] |
//! | tell an operator why the API server refused | [`error_text`] |

pub mod endpoints_lock;
pub mod error_text;
pub mod events;
#[cfg(test)]
mod fake;
pub mod lease;
pub mod lenient;
pub mod pods;
pub mod secrets;
pub mod served_schema;
pub mod status;
pub mod taint;
pub mod watch;
