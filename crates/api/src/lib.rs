//! podid-api
