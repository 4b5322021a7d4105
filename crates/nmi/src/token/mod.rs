//! Tokens: what a requester is granted, and where its token comes from.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`request`] | what a request asks for |
//! | [`grant`] | the way from a requester to a token: who, what is granted, attested, audited |
//! | [`object_id`], [`object_id_cache`] | finds the AzureIdentity of an object id |
//! | [`cache`] | the token cache: single flight, refresh ahead of expiry |
//! | [`prefetch`], [`requested_resources`] | fetches tokens before they are asked for |
//! | [`source`], [`instrumented`] | the issuers, and the metrics of them |
//! | [`imds_limiter`] | the token bucket for podid's own calls to the metadata service |
//! | [`service_principal`], [`secret_watch`] | tokens by a Secret of the cluster, and what happens when it changes |
//! | [`federated`] | tokens by the broker, for identities with `spec.federation` |
//!
//! The room `http` uses it; it uses the room `caller`.

pub(crate) mod cache;
mod federated;
pub(crate) mod grant;
mod imds_limiter;
pub(crate) mod instrumented;
pub(crate) mod object_id;
pub(crate) mod object_id_cache;
pub(crate) mod prefetch;
pub(crate) mod request;
pub(crate) mod requested_resources;
pub(crate) mod secret_watch;
mod service_principal;
pub(crate) mod source;
