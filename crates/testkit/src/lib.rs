//! Test environment of podid: real programs, and the network and kernel objects around them.
//!
//! | a test needs | it uses |
//! | --- | --- |
//! | a real kube-apiserver, also one that fails | [`apiserver`], and [`gate`] for the way to it |
//! | a node with pods, in network namespaces | [`net`], with [`cgroup`] for the pods' processes |
//! | the images, run as a kubelet runs them | [`container`] |
//! | a program beside it, or to its end | [`process`], and [`ports`] for it to listen on |
//! | certificates | [`certs`] |
//! | where kubectl, helm and an earlier podid are | [`tools`] |
//!
//! Everything started here ends with its value, and with the test process, however that ends. What a killed test process leaves on
//! disk or in the kernel, the next one removes. The simulators are a crate of their own, `podid-sim`.

pub mod apiserver;
pub mod certs;
pub mod cgroup;
pub mod cluster;
pub mod container;
pub mod gate;
pub mod net;
pub mod ports;
pub mod process;
mod scratch;
pub mod tools;
