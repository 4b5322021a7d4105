//! Reports to people: conditions on AzureIdentities and Events.

pub(crate) mod conditions;
pub(crate) mod events;
