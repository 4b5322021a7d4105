//! What Azure's clients need of the metadata service: each test is one statement of a list, by its number. Where podid does
//! otherwise, the test says what it does, and why.

// Helpers of tests may panic, as tests do.
#![allow(clippy::unwrap_used)]

mod common;
mod contract {
    mod clients;
    mod errors;
    mod headers;
    mod load;
    mod queries;
    mod routes;
    mod success;
}
