//! AzureAssignedIdentity objects.

pub(crate) mod copies;
pub(crate) mod queue;
pub(crate) mod writer;

mod reconcile;

pub(crate) use reconcile::{
    AssignedObject, BindingEvent, ObjectWrite, WatchedAssignedIdentity, decide,
};
