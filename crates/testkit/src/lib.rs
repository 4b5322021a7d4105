//! podid-testkit
