//! podid-sim
