//! podid-nmi
