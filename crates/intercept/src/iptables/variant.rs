//! Variants of iptables (`iptables-nft`, `iptables-legacy`): which one this node uses, and what each of them lists. Each keeps rules that
//! the other does not show.

use crate::Error;
use crate::command::call;

const NFT: &str = "iptables-nft";
const LEGACY: &str = "iptables-legacy";
/// The name where a distribution has one variant alone.
const PLAIN: &str = "iptables";
/// Chains that the kubelet makes in the variant that it uses.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
/// The kernel's list of the tables of `iptables-legacy` in a thread's network namespace.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// The variants that are installed.
pub(super) struct Variants {
    /// The one that the kubelet uses, else the one that `iptables` means here.
    pub(super) used: &'static str,
    /// The others.
    pub(super) others: Vec<&'static str>,
}

impl Variants {
    /// # Errors
    /// [`Error::Missing`] when none is installed.
    pub(super) async fn find() -> Result<Self, Error> {
        let mut installed = Vec::new();
        for tool in [NFT, LEGACY] {
            if call(tool, "--version").ask_installed().await? {
                installed.push(tool);
            }
        }
        let used = match kubelets(&installed).await? {
            Some(used) => used,
            None => {
                let version = call(PLAIN, "--version").run().await;
                // Version 1.8 says which variant it is; older ones are legacy.
                let meant = match &version {
                    Ok(version) if version.contains("nf_tables") => NFT,
                    _ => LEGACY,
                };
                match installed.first() {
                    Some(_) if installed.contains(&meant) => meant,
                    Some(&only) if version.is_err() => only,
                    _ => {
                        version?;
                        PLAIN
                    }
                }
            }
        };
        installed.retain(|tool| *tool != used);
        Ok(Self {
            used,
            others: installed,
        })
    }

    /// The one that is used, and the others.
    pub(super) fn all(&self) -> Vec<&'static str> {
        [&[self.used], self.others.as_slice()].concat()
    }
}

async fn kubelets(installed: &[&'static str]) -> Result<Option<&'static str>, Error> {
    for &tool in installed {
        for hint in HINTS {
            if list(tool, "mangle", hint).await?.is_some() {
                return Ok(Some(tool));
            }
        }
    }
    Ok(None)
}

/// A chain's rules as commands, or `None` when it does not exist.
pub(super) async fn list(tool: &str, table: &str, chain: &str) -> Result<Option<String>, Error> {
    if tool == LEGACY && !is_loaded(table) {
        return Ok(None);
    }
    call(tool, &format!("-w 5 -t {table} -S {chain}"))
        .ask()
        .await
}

/// Whether a table of `iptables-legacy` exists. The tool would create it to list it.
fn is_loaded(table: &str) -> bool {
    match std::fs::read_to_string(LEGACY_TABLES) {
        Ok(names) => names.lines().any(|name| name == table),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}
