//! podid-azure
