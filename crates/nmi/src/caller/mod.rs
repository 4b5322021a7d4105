//! Callers: which pod a connection comes from, and what the cluster says about it.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`connection`] | the context of one connection: the pod that opened it, and whether it is attested |
//! | [`attest`], [`processes`] | attestation: the evidence of the node's kernel that a caller is that pod |
//! | [`index`] | the objects of the cluster, by what a request asks for |
//! | [`watches`], [`identities`] | the informers that fill the index |
//! | [`lookup`] | asks the API server about an address that the index does not have |
//!
//! The rooms `http` and `token` use it; it uses neither.

pub(crate) mod attest;
pub(crate) mod connection;
pub(crate) mod identify;
pub(crate) mod identities;
pub(crate) mod index;
pub(crate) mod lookup;
pub(crate) mod processes;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod watches;
