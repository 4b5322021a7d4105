//! Traces of podid on nodes and in the API server: what must be as before once podid is removed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::world::World;

/// What a node has, by a command: tables and rules, policy rules, routes but for those to pods, and files on its disk but
/// for empty folders.
const ON_NODES: [&str; 4] = [
    "nft list tables; iptables-nft-save -t mangle | grep ^: | sed 's/ .*//'; nft list ruleset | grep -i podid || true",
    "ip rule; ip -6 rule",
    "for family in -4 -6; do ip $family route show table all | grep -vE ' 10[.]244[.]| (veth|cni|eth)' || true; done",
    "find /etc/podid /etc/systemd/system ! -type d -path '*podid*' 2>/dev/null || true",
];
/// What helm makes in all the cluster, or in namespaces.
const KINDS: &str = "daemonset,deployment,job,pod,serviceaccount,secret,role,rolebinding,clusterrole,clusterrolebinding,\
    azurepodidentityexception";

/// Kubernetes collects the objects of what is deleted within this time.
const COLLECTED_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Traces {
    nodes: Vec<String>,
    objects: BTreeSet<String>,
    taints: String,
}

impl Traces {
    pub fn of(world: &World) -> Self {
        let nodes = world.cluster.nodes.iter().flat_map(|node| {
            ON_NODES.map(|command| {
                let output = node.run(&["sh", "-ec", command]).unwrap();
                assert!(output.status.success(), "{command}: {output:?}");
                let said = String::from_utf8_lossy(&output.stdout);
                format!("{}: {command}\n{said}", node.name())
            })
        });
        let names = "-o=custom-columns=:kind,:metadata.namespace,:metadata.name";
        let objects = world.kubectl(&[
            "get",
            KINDS,
            "-A",
            "--ignore-not-found",
            "--no-headers",
            names,
        ]);
        let podids = objects.lines().filter(|line| {
            // The account that every namespace has stays with podid's.
            (line.contains("podid") || line.contains("aks-addon")) && !line.ends_with(" default")
        });
        Self {
            nodes: nodes.collect(),
            objects: podids
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect(),
            taints: world.kubectl(&[
                "get",
                "nodes",
                "-o=custom-columns=:metadata.name,:spec.taints",
            ]),
        }
    }

    /// Asserts that nothing has been added since, and nothing taken away.
    pub fn are_all_there_is(&self, world: &World) {
        let mut now = Self::of(world);
        let deadline = Instant::now() + COLLECTED_WITHIN;
        while now.objects != self.objects && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
            now = Self::of(world);
        }
        // One by one: they are long.
        for (now, before) in now.nodes.iter().zip(&self.nodes) {
            assert_eq!(now, before);
        }
        assert_eq!(now.objects, self.objects);
        assert_eq!(now.taints, self.taints);
    }
}
