//! What podid's tests run against: a real kube-apiserver, and programs and containers that end with the test.
//!
//! Everything started here ends with its value, and with the test process, however that ends.
//! What it leaves on disk or in the kernel when the process is killed, the next test process removes.

pub mod apiserver;
pub mod certs;
pub mod cgroup;
pub mod container;
pub mod gate;
pub mod net;
pub mod process;
mod scratch;
pub mod tools;
