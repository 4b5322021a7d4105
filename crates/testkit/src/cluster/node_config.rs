//! Configuration of a node: what its network is, and the files of its kubelet, containerd, kube-proxy and CNI plugins.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::control_plane::Pki;
use super::fabric;

/// Where containerd listens on a node.
pub(super) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// How a node connects its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkPlugin {
    /// To a bridge with the others, as kubenet and flannel do.
    Bridge,
    /// By a link of its own and a route, as Azure CNI and Calico do.
    Ptp,
}

/// What kube-proxy writes Services into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

/// How a node is made.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name, at most ten letters long.
    pub name: String,
    /// How its pods are connected.
    pub network_plugin: NetworkPlugin,
    /// How Services reach their pods.
    pub proxy_mode: ProxyMode,
    /// What the cloud calls it.
    pub provider_id: String,
    /// Taints with which its kubelet registers it, as Kubernetes writes them.
    pub taints: Value,
    /// Files of root's alone that are on its disk from the start: path and content.
    pub files: Vec<(PathBuf, String)>,
}

/// What a node's programs run on.
pub(super) enum Machine {
    /// Namespaces of this machine, with the kubelet's control groups below a path.
    Namespaces { cgroup_root: String },
    /// A kernel and a systemd of its own.
    Virtual,
}

impl NodeConfig {
    /// All files of the node that is this one by number in its cluster. Keys and kubeconfigs are named by their paths in `pki`.
    pub(super) fn all_files(
        &self,
        number: u8,
        machine: &Machine,
        pki: &Pki,
        sandbox_image: &str,
    ) -> Result<Vec<(PathBuf, String)>> {
        let tls = format!("kubelet-{}", self.name);
        pki.kubelet_server(&tls, &self.name, fabric::address(number).into())?;
        pki.kubeconfig(&format!("system:node:{}", self.name), Some("system:nodes"))?;
        let own = [
            (
                "/etc/kubernetes/containerd.toml",
                containerd(machine, sandbox_image),
            ),
            (
                "/etc/kubernetes/kubelet.yaml",
                self.kubelet(machine, pki, &tls).to_string(),
            ),
            (
                "/etc/kubernetes/kube-proxy.yaml",
                self.kube_proxy(pki)?.to_string(),
            ),
            ("/etc/kubernetes/resolv.conf", String::new()),
            (
                "/etc/cni/net.d/10-pods.conflist",
                self.network(number).to_string(),
            ),
        ];
        let own = own.map(|(path, content)| (PathBuf::from(path), content));
        Ok(own.into_iter().chain(self.files.clone()).collect())
    }

    /// The kubelet's arguments; its kubeconfig is in the folder of the cluster's keys.
    pub(super) fn kubelet_arguments(&self, number: u8, pki_folder: &str) -> Vec<String> {
        vec![
            "--config=/etc/kubernetes/kubelet.yaml".to_owned(),
            format!(
                "--kubeconfig={pki_folder}/system-node-{}.kubeconfig",
                self.name
            ),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", fabric::address(number)),
            "--v=2".to_owned(),
        ]
    }

    fn kubelet(&self, machine: &Machine, pki: &Pki, tls: &str) -> Value {
        let mut kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false }, "webhook": { "enabled": true },
                "x509": { "clientCAFile": pki.path("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": pki.path(&format!("{tls}.crt")), "tlsPrivateKeyFile": pki.path(&format!("{tls}.key")),
            "failCgroupV1": false, "failSwapOn": false,
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
            // Where nobody makes the folder of the default.
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            "resolvConf": "/etc/kubernetes/resolv.conf", "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local",
            "providerID": self.provider_id, "registerWithTaints": self.taints,
            "nodeStatusUpdateFrequency": "5s", "syncFrequency": "10s",
            "maxPods": 120,
            // The machine's disk is no concern of these tests.
            "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%" },
            "imageGCHighThresholdPercent": 100,
            // A test waits for pods, not for a server that is spared.
            "kubeAPIQPS": 100, "kubeAPIBurst": 200, "serializeImagePulls": false,
        });
        match machine {
            Machine::Namespaces { cgroup_root } => {
                kubelet["cgroupDriver"] = json!("cgroupfs");
                kubelet["cgroupRoot"] = json!(cgroup_root);
            }
            Machine::Virtual => kubelet["cgroupDriver"] = json!("systemd"),
        }
        kubelet
    }

    fn kube_proxy(&self, pki: &Pki) -> Result<Value> {
        let mode = match self.proxy_mode {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Iptables => "iptables",
        };
        Ok(json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": mode, "hostnameOverride": self.name, "clusterCIDR": "10.244.0.0/16",
            "clientConnection": { "kubeconfig": pki.kubeconfig("system:kube-proxy", None)? },
            // These are the whole machine's.
            "conntrack": { "maxPerCore": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s" },
        }))
    }

    fn network(&self, number: u8) -> Value {
        let mut plugin = match self.network_plugin {
            NetworkPlugin::Bridge => {
                json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true })
            }
            NetworkPlugin::Ptp => json!({ "type": "ptp" }),
        };
        plugin["ipMasq"] = json!(true);
        plugin["ipam"] = json!({
            "type": "host-local", "ranges": [[{ "subnet": fabric::pods(number) }]], "routes": [{ "dst": "0.0.0.0/0" }],
        });
        json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": [plugin, { "type": "portmap", "capabilities": { "portMappings": true } }] })
    }
}

fn containerd(machine: &Machine, sandbox_image: &str) -> String {
    let virtual_machine = matches!(machine, Machine::Virtual);
    include_str!("containerd.toml")
        .replace("SANDBOX_IMAGE", sandbox_image)
        .replace("OWN_KERNEL", &virtual_machine.to_string())
        .replace("SHARED_KERNEL", &(!virtual_machine).to_string())
}

/// Writes files below a folder that stands for a node's root; only root may read them.
pub(super) fn write_files(root: &Path, files: &[(PathBuf, String)]) -> Result<()> {
    for (path, content) in files {
        let path = root.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}
