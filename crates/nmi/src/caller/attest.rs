//! Whether a caller is the pod that the API server says has its address: evidence from the node itself.
//!
//! Addresses pass from pod to pod, and the news of it may be late; on a bridge one pod can even take another's. The kubelet puts
//! a pod's processes into control groups named after the pod's uid, and the kernel knows which network namespace they are in and
//! which namespace is at the other end of the link that a caller's replies take. Only when both are one is the caller the pod.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use podid_intercept::{Links, NamespaceId};
use podid_policy::facts::PodFacts;
use tokio::time::Instant;

/// The inode of the node's first process id namespace, fixed by the kernel (`PROC_PID_INIT_INO`).
const NODE_PIDS: &str = "pid:[4026531836]";
/// The node's processes are listed at most this often.
const LISTING: Duration = Duration::from_millis(250);
/// Processes of one pod that are looked at.
const MAX_PROCESSES: usize = 8;
/// Longer control group files are not read to their end.
const MAX_LINES: usize = 64;

/// What the evidence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The caller is the pod.
    Genuine {
        /// Whether it must be looked at again for each request, as the link is a port of a bridge.
        fleeting: bool,
    },
    /// The caller is somebody else, or no process of the pod is left.
    Other,
    /// The address is not at a link that leads to a pod.
    None,
}

/// Looks for evidence.
pub struct Attestor {
    processes: PathBuf,
    strict: bool,
    links: Mutex<Links>,
    pods: Mutex<HashMap<Box<str>, Vec<u32>>>,
    /// When the processes were listed last; whoever holds it lists them.
    listed: tokio::sync::Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Attestor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attestor")
            .field("strict", &self.strict)
            .finish_non_exhaustive()
    }
}

impl Attestor {
    /// An attestor, if this process can see the node's: it must share their process ids (`hostPID: true`), and the kubelet's
    /// control groups must be there. A strict one takes the lack of evidence for evidence of fraud; use it only where every pod
    /// has a pair of links.
    ///
    /// # Errors
    /// When the kernel cannot be asked about links.
    pub fn detect(strict: bool) -> std::io::Result<Option<Self>> {
        let ours = std::fs::read_link("/proc/self/ns/pid")?;
        if ours != Path::new(NODE_PIDS) {
            return Ok(None);
        }
        let processes = PathBuf::from("/proc");
        let pods = list(&processes);
        if pods.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            processes,
            strict,
            links: Mutex::new(Links::open()?),
            pods: Mutex::new(pods),
            listed: tokio::sync::Mutex::default(),
        }))
    }

    /// Whether whoever has `address` is `pod`. Microseconds for a pod whose processes are known.
    pub async fn look(&self, pod: &PodFacts, address: IpAddr) -> Evidence {
        match self.evidence(&pod.uid, address) {
            Evidence::Other => {}
            decided => return decided,
        }
        let asked = Instant::now();
        let mut listed = self.listed.lock().await;
        if let Some(last) = *listed {
            // What was listed since then is as new as it would be now: whoever waited does not list again in turn.
            if last > asked {
                return self.evidence(&pod.uid, address);
            }
            tokio::time::sleep_until(last + LISTING).await;
        }
        let began = Instant::now();
        let processes = self.processes.clone();
        // As many file reads as the node has processes.
        if let Ok(pods) = tokio::task::spawn_blocking(move || list(&processes)).await {
            *self.pods.lock() = pods;
        }
        *listed = Some(began);
        self.evidence(&pod.uid, address)
    }

    fn evidence(&self, uid: &str, address: IpAddr) -> Evidence {
        let link = match self.links.lock().towards(address) {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(%address, reason = %error, "the kernel does not say which link an address is at");
                return Evidence::Other;
            }
        };
        match link.peer {
            None if self.strict => Evidence::Other,
            None => Evidence::None,
            Some(there) if self.is_in(uid, there) => Evidence::Genuine {
                fleeting: link.bridged,
            },
            Some(_) => Evidence::Other,
        }
    }

    /// Whether a process of the pod is in the namespace. Process ids are used again, so that each is asked whose it is.
    fn is_in(&self, uid: &str, there: NamespaceId) -> bool {
        let processes = self.pods.lock().get(uid).cloned().unwrap_or_default();
        processes.into_iter().any(|pid| {
            let namespace = self.links.lock().namespace_of(pid);
            matches!(namespace, Ok(Some(id)) if id == there)
                && pod_of(&self.processes.join(pid.to_string())).as_deref() == Some(uid)
        })
    }
}

fn list(processes: &Path) -> HashMap<Box<str>, Vec<u32>> {
    let mut pods: HashMap<Box<str>, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir(processes).into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if let Some(uid) = pod_of(&entry.path()) {
            let pids = pods.entry(uid).or_default();
            if pids.len() < MAX_PROCESSES {
                pids.push(pid);
            }
        }
    }
    pods
}

/// The uid of the pod that a process belongs to.
fn pod_of(process: &Path) -> Option<Box<str>> {
    let groups = std::fs::read_to_string(process.join("cgroup")).ok()?;
    groups.lines().take(MAX_LINES).find_map(uid)
}

/// The uid in a line of `/proc/PID/cgroup` (cgroups(7)): `pod<uid>`, or with systemd `…-pod<uid>.slice` and underscores. The
/// first one counts: a pod can make groups below its own.
fn uid(line: &str) -> Option<Box<str>> {
    let path = line.splitn(3, ':').nth(2)?;
    path.split('/').find_map(|name| {
        let name = name.strip_suffix(".slice").unwrap_or(name);
        let at = name
            .rfind("pod")
            .filter(|at| *at == 0 || name[..*at].ends_with('-'))?;
        let uid = &name[at + "pod".len()..];
        is_uid(uid).then(|| uid.replace('_', "-").into())
    })
}

/// A UUID, or the digest that static pods have instead.
fn is_uid(text: &str) -> bool {
    matches!(text.len(), 32 | 36)
        && text
            .bytes()
            .all(|b| b.is_ascii_hexdigit() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2f1c7a10-93b0-4c3e-9a51-0d0c6a1f22ab";

    #[test]
    fn a_pods_control_groups_name_it() {
        let names = [
            format!("0::/kubepods/burstable/pod{UID}/cri-1"),
            format!("0::/kubepods/pod{UID}"),
            format!("11:cpu,cpuacct:/kubepods/besteffort/pod{UID}/abc"),
            format!("0::/../../pod{UID}/abc"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-1.scope",
                UID.replace('-', "_")
            ),
        ];
        for line in names {
            assert_eq!(uid(&line).as_deref(), Some(UID), "{line}");
        }
        let digest = "0f343b0931126a20f133d67c2b018a3b";
        assert_eq!(
            uid(&format!("0::/kubepods/pod{digest}/x")).as_deref(),
            Some(digest)
        );
    }

    #[test]
    fn a_pod_cannot_name_itself_otherwise() {
        let nested = format!("0::/kubepods/pod{UID}/abc/pod{}/x", UID.replace('2', "3"));
        assert_eq!(uid(&nested).as_deref(), Some(UID));
        for line in [
            "0::/system.slice/kubelet.service",
            "0::/kubepods/podx",
            "0::/",
            "",
            "garbage",
            &format!("0::/kubepods/tripod{UID}"),
        ] {
            assert_eq!(uid(line), None, "{line}");
        }
    }
}
