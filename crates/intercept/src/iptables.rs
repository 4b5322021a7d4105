//! Interception by iptables: chains `PODID-*` of the table mangle, which are jumped to before anything else there.
//!
//! Only mangle is used: its forward chain comes before filter's, where network plugins accept traffic on their own terms, and
//! one table is changed in one transaction.

use crate::backend::comments;
use crate::command::call;
use crate::{Error, HostNetwork, Rules};

/// The built-in chains that podid hooks, whether or not the present rules need all of them.
const HOOKS: [&str; 5] = ["PREROUTING", "FORWARD", "INPUT", "OUTPUT", "POSTROUTING"];
const VARIANTS: [&str; 2] = ["iptables-nft", "iptables-legacy"];
/// Chains of kubelet's that are in whichever variant the node uses.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
/// The original's chain in the table nat.
const LEGACY: &str = "aad-metadata";

/// A built-in chain and the rules of podid's own chain under it.
struct Chain {
    hook: &'static str,
    rules: Vec<String>,
}

/// Whether the tool and the kernel would take the rules.
pub(crate) async fn probe(rules: &Rules) -> Result<(), Error> {
    let tool = variant().await?;
    let args = "--noflush --test -w 5";
    call(&format!("{tool}-restore"), args)
        .input(&own_chains(rules))
        .run()
        .await
        .map(drop)
}

/// Replaces podid's chains and puts their jumps first, in one transaction.
pub(crate) async fn apply(rules: &Rules) -> Result<(), Error> {
    let tool = variant().await?;
    let mut text = String::new();
    for chain in chains(rules) {
        let name = own_name(chain.hook);
        let present = list(tool, "mangle", chain.hook).await?.unwrap_or_default();
        if !is_first(&present, chain.hook) {
            text += &removed_jumps(&present, chain.hook);
            text += &format!("-I {} 1 -j {name}\n", chain.hook);
        }
    }
    for hook in unused(rules) {
        text += &removal(tool, hook).await?;
    }
    let script = own_chains(rules).replace("COMMIT\n", &format!("{text}COMMIT\n"));
    call(&format!("{tool}-restore"), "--noflush -w 5")
        .input(&script)
        .run()
        .await
        .map(drop)
}

/// Whether the chains are what [`apply`] makes them and their jumps come first.
pub(crate) async fn verify(rules: &Rules) -> Result<bool, Error> {
    let tool = variant().await?;
    for chain in chains(rules) {
        let Some(own) = list(tool, "mangle", &own_name(chain.hook)).await? else {
            return Ok(false);
        };
        let present = list(tool, "mangle", chain.hook).await?.unwrap_or_default();
        if comments_of(&own) != comments(&chain.rules) || !is_first(&present, chain.hook) {
            return Ok(false);
        }
    }
    for hook in unused(rules) {
        if list(tool, "mangle", &own_name(hook)).await?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes podid's chains from every variant that is installed, and says from which.
pub(crate) async fn cleanup() -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    let mut failed = None;
    for tool in installed().await? {
        match cleanup_variant(tool).await {
            Ok(true) => removed.push(format!("{tool}: the chains PODID-* of the table mangle")),
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(removed), Err)
}

async fn cleanup_variant(tool: &str) -> Result<bool, Error> {
    let mut text = String::new();
    for hook in HOOKS {
        text += &removal(tool, hook).await?;
    }
    if text.is_empty() {
        return Ok(false);
    }
    let script = format!("*mangle\n{text}COMMIT\n");
    call(&format!("{tool}-restore"), "--noflush -w 5")
        .input(&script)
        .run()
        .await?;
    Ok(true)
}

/// Removes the redirect of the original (AAD Pod Identity, chain `aad-metadata` of the table nat), which it leaves behind when it
/// is killed: it would translate the addresses of intercepted connections. Whether it was there.
pub(crate) async fn remove_legacy() -> Result<bool, Error> {
    let installed = match installed().await {
        Err(Error::Missing { .. }) => return Ok(false),
        other => other?,
    };
    let mut found = false;
    for tool in installed {
        if list(tool, "nat", LEGACY).await?.is_none() {
            continue;
        }
        found = true;
        let jump = format!("-j {LEGACY}");
        let mut text = String::new();
        for line in list(tool, "nat", "PREROUTING")
            .await?
            .unwrap_or_default()
            .lines()
        {
            if let Some(rule) = line.strip_prefix("-A ")
                && rule.trim_end().ends_with(&jump)
            {
                text += &format!("-D {rule}\n");
            }
        }
        let script = format!("*nat\n{text}-F {LEGACY}\n-X {LEGACY}\nCOMMIT\n");
        call(&format!("{tool}-restore"), "--noflush -w 5")
            .input(&script)
            .run()
            .await?;
    }
    Ok(found)
}

fn chains(rules: &Rules) -> Vec<Chain> {
    let Rules {
        metadata,
        metadata_port,
        listen_port,
        mark_own,
        mark_tproxy,
        ..
    } = rules;
    let (asked, target) = (
        format!("-d {metadata}/32 -p tcp -m tcp --dport {metadata_port}"),
        rules.target(),
    );
    let mark = format!("{mark_tproxy:#x}/{mark_tproxy:#x}");
    let foreign = format!("-m mark ! --mark {mark_own:#x}/{mark_own:#x}");
    let mut chains = vec![
        // Drops when there is no transparent listener.
        Chain {
            hook: "PREROUTING",
            rules: vec![
                // Under way to the nmi of AAD Pod Identity when podid came.
                format!("{asked} -m conntrack --ctstate DNAT -j RETURN"),
                format!(
                    "{asked} -j TPROXY --on-port {listen_port} --on-ip {target} --tproxy-mark {mark}"
                ),
            ],
        },
        Chain {
            hook: "FORWARD",
            rules: vec![
                format!("-d {metadata}/32 -j DROP"),
                format!("-s {metadata}/32 -j DROP"),
            ],
        },
    ];
    let mut input = vec![
        format!("{asked} -m socket --nowildcard --transparent -j RETURN"),
        // This table cannot refuse. Whoever else listens at that port, on all addresses, must not be taken for NMI.
        format!("{asked} -j DROP"),
    ];
    if !rules.direct {
        input.push(format!(
            "! -i lo -p tcp -m tcp --dport {listen_port} --tcp-flags SYN,ACK SYN -j DROP"
        ));
    }
    chains.push(Chain {
        hook: "INPUT",
        rules: input,
    });
    let from = match &rules.host_network {
        HostNetwork::Off => None,
        HostNetwork::All => Some(String::new()),
        HostNetwork::Pods { cgroup } => Some(format!(" -m cgroup --path {cgroup}")),
    };
    if let Some(from) = from {
        let back = format!("{asked}{from} {foreign} -j MARK --set-xmark {mark}");
        let stop = format!("! -o lo {asked}{from} {foreign} -j DROP");
        chains.push(Chain {
            hook: "OUTPUT",
            rules: vec![back],
        });
        chains.push(Chain {
            hook: "POSTROUTING",
            rules: vec![stop],
        });
    }
    chains
}

fn unused(rules: &Rules) -> Vec<&'static str> {
    let used = chains(rules);
    HOOKS
        .into_iter()
        .filter(|hook| used.iter().all(|chain| chain.hook != *hook))
        .collect()
}

fn own_name(hook: &str) -> String {
    format!("PODID-{hook}")
}

/// A transaction that creates or replaces podid's own chains, without jumps to them.
fn own_chains(rules: &Rules) -> String {
    let chains = chains(rules);
    let mut text = "*mangle\n".to_owned();
    for chain in &chains {
        text += &format!(":{} - [0:0]\n", own_name(chain.hook));
    }
    for chain in &chains {
        for (rule, comment) in chain.rules.iter().zip(comments(&chain.rules)) {
            text += &format!(
                "-A {} -m comment --comment {comment} {rule}\n",
                own_name(chain.hook)
            );
        }
    }
    text + "COMMIT\n"
}

/// The lines that remove podid's chain under `hook`, as far as it exists.
async fn removal(tool: &str, hook: &str) -> Result<String, Error> {
    let present = list(tool, "mangle", hook).await?.unwrap_or_default();
    let mut text = removed_jumps(&present, hook);
    let name = own_name(hook);
    if list(tool, "mangle", &name).await?.is_some() {
        text += &format!("-F {name}\n-X {name}\n");
    }
    Ok(text)
}

fn removed_jumps(listing: &str, hook: &str) -> String {
    let jump = jump(hook);
    let count = listing.lines().filter(|line| line.trim() == jump).count();
    format!("-D {hook} -j {}\n", own_name(hook)).repeat(count)
}

fn is_first(listing: &str, hook: &str) -> bool {
    let jump = jump(hook);
    let mut rules = listing.lines().filter(|line| line.starts_with("-A"));
    rules.next().is_some_and(|line| line.trim() == jump) && rules.all(|line| line.trim() != jump)
}

fn jump(hook: &str) -> String {
    format!("-A {hook} -j {}", own_name(hook))
}

/// The comments of a chain's rules in their order; a foreign rule without one counts too.
fn comments_of(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter(|line| line.starts_with("-A"))
        .map(|line| {
            let mut words = line
                .split_whitespace()
                .skip_while(|word| *word != "--comment")
                .skip(1);
            words
                .next()
                .unwrap_or_default()
                .trim_matches('"')
                .to_owned()
        })
        .collect()
}

/// A chain's rules as commands, or `None` when it does not exist.
async fn list(tool: &str, table: &str, chain: &str) -> Result<Option<String>, Error> {
    call(tool, &format!("-w 5 -t {table} -S {chain}"))
        .ask()
        .await
}

/// The variant that kubelet uses on this node; where it left no trace, what `iptables` means here.
async fn variant() -> Result<&'static str, Error> {
    for tool in VARIANTS {
        for hint in HINTS {
            match list(tool, "mangle", hint).await {
                Ok(Some(_)) => return Ok(tool),
                Ok(None) | Err(Error::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok("iptables")
}

/// Every variant on PATH; the plain name only where it is the only one.
async fn installed() -> Result<Vec<&'static str>, Error> {
    let mut found = Vec::new();
    for tool in VARIANTS {
        if call(tool, "--version").ask_installed().await? {
            found.push(tool);
        }
    }
    if found.is_empty() {
        call("iptables", "--version").run().await?;
        found.push("iptables");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_only_right_alone_and_first() {
        let ours = "-A FORWARD -j PODID-FORWARD\n";
        let other = "-A FORWARD -j CNI\n";
        let policy = "-P FORWARD ACCEPT\n";
        assert!(is_first(&format!("{policy}{ours}{other}"), "FORWARD"));
        assert!(!is_first(&format!("{policy}{other}{ours}"), "FORWARD"));
        assert!(!is_first(
            &format!("{policy}{ours}{other}{ours}"),
            "FORWARD"
        ));
        assert!(!is_first(policy, "FORWARD"));
    }

    #[test]
    fn a_foreign_or_changed_rule_is_seen() {
        let chain = Chain {
            hook: "FORWARD",
            rules: vec!["-j DROP".to_owned()],
        };
        let listed = format!(
            "-N PODID-FORWARD\n-A PODID-FORWARD -m comment --comment {} -j DROP\n",
            comments(&chain.rules)[0]
        );
        assert_eq!(comments_of(&listed), comments(&chain.rules));
        assert_ne!(
            comments_of(&format!("{listed}-A PODID-FORWARD -j ACCEPT\n")),
            comments(&chain.rules)
        );
        assert_ne!(
            comments_of(&listed.replace("podid-", "podid-0")),
            comments(&chain.rules)
        );
    }
}
