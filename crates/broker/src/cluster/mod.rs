//! The cluster as the broker sees it: who calls, which pods there are, and what they are granted.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`index`] | the objects of the cluster, by pod and by identity |
//! | [`watches`] | the informers that fill the index |
//! | [`lookup`] | asks the API server about what the index does not have yet |
//! | [`reviewer`] | has the API server review a caller's token |
//! | [`grant`] | authorizes one request by all of these |

pub(crate) mod grant;
pub(crate) mod index;
pub(crate) mod lookup;
pub(crate) mod reviewer;
pub(crate) mod watches;
