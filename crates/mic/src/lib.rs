//! podid-mic
