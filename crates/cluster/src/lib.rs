//! podid-cluster
