//! Tokens: an assertion of the API server, exchanged at Entra.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`assertion`] | has the API server mint assertions (TokenRequest) |
//! | [`exchange`] | exchanges them, and keeps the tokens |
//! | [`faults`] | the gate in front of Entra after a federation error |

pub(crate) mod assertion;
pub(crate) mod exchange;
pub(crate) mod faults;
