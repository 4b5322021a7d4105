//! podid-policy
