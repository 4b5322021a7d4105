//! podid-intercept
