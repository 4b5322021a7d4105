//! A made-up node for tests: its links, the network namespaces of its processes, and a `/proc` that names their control groups.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use podid_intercept::{Link, NamespaceId};
use tempfile::TempDir;

use crate::caller::attest::{Attestor, Kernel};
use crate::caller::processes::Processes;

#[derive(Default)]
struct State {
    links: HashMap<IpAddr, Link>,
    namespaces: HashMap<u32, i32>,
}

pub(crate) struct Node {
    proc: TempDir,
    state: Arc<Mutex<State>>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            proc: tempfile::tempdir().unwrap(),
            state: Arc::default(),
        }
    }

    /// The address is at a link that leads to this network namespace.
    pub(crate) fn link(&self, address: IpAddr, namespace: Option<i32>, bridged: bool) {
        let peer = namespace.map(NamespaceId);
        let link = Link { peer, bridged };
        self.state.lock().links.insert(address, link);
    }

    /// A process of the pod with this uid.
    pub(crate) fn process(&self, pid: u32, uid: &str, namespace: i32) {
        let folder = self.proc.path().join(pid.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let group = format!("0::/../../kubepods/pod{uid}/1\n");
        std::fs::write(folder.join("cgroup"), group).unwrap();
        self.state.lock().namespaces.insert(pid, namespace);
    }

    pub(crate) fn attestor(&self) -> Arc<Attestor> {
        let processes = Processes::below(self.proc.path().to_owned());
        Arc::new(Attestor::new(self.kernel(), Some(processes), false))
    }

    /// An attestor on a node whose processes are not seen.
    pub(crate) fn attestor_without_processes(&self) -> Arc<Attestor> {
        Arc::new(Attestor::new(self.kernel(), None, false))
    }

    fn kernel(&self) -> Box<dyn Kernel> {
        Box::new(Arc::clone(&self.state))
    }
}

impl Kernel for Arc<Mutex<State>> {
    fn towards(&mut self, address: IpAddr) -> io::Result<Link> {
        let link = self.lock().links.get(&address).copied();
        link.ok_or_else(|| io::Error::other("no route"))
    }

    fn namespace_of(&mut self, pid: u32) -> io::Result<Option<NamespaceId>> {
        let namespace = self.lock().namespaces.get(&pid).copied();
        Ok(namespace.map(NamespaceId))
    }
}
