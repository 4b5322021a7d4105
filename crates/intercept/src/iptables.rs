//! iptables backend: chains `PODID-*` of the table mangle, with jumps before all other rules, and one chain of the table nat.
//! [`crate::Backend`] calls it.
//!
//! The chains in mangle decide, and change in one transaction: mangle's forward chain comes before filter's, where network plugins
//! accept traffic. The chain in nat translates the address of an intercepted connection to itself, so that no later rule
//! translates it to something else. The redirect of AAD Pod Identity's nmi (chain `aad-metadata`) may therefore stay, also after that
//! nmi was killed.
//!
//! The order in nat matters little. AAD Pod Identity's nmi puts its jump first when it starts, and new connections are translated
//! until podid's jump is before it again: at once, or with `iptables-legacy` at the next look. Mangle comes before nat, and a packet
//! keeps the socket that mangle has chosen, so that podid answers such a connection by its translated address. On a bridge whose
//! packets are shown to the IP rules the kernel forgets the socket, and the other nmi answers. Both need `route_localnet`, which
//! that nmi sets.
//!
//! podid does not use `NOTRACK`, which would keep nat away as well: its packets would be `UNTRACKED` to the rules of network plugins,
//! and which connections belong to the other nmi is not known yet where NOTRACK is possible. In nat podid's jump need only come before the
//! other nmi's, not first, so that podid does not fight Calico for the first place.

mod variant;

use std::path::Path;

use self::variant::{Variants, list};
use crate::arrivals::Counts;
use crate::backend::comments;
use crate::command::call;
use crate::{Error, HostNetwork, Rules};

/// The tables and their built-in chains that podid hooks, whether or not the present rules need all of them. They change in this
/// order, so that the chain in nat is there before the first packet is marked.
const TABLES: [(&str, &[&str]); 3] = [
    ("nat", &["PREROUTING"]),
    (SECURITY, &["INPUT"]),
    (
        "mangle",
        &["PREROUTING", "FORWARD", "INPUT", "OUTPUT", "POSTROUTING"],
    ),
];
/// The jump to the chain of AAD Pod Identity's nmi in the table nat.
const REDIRECT: &str = "-j aad-metadata";

/// What the first packet of a connection has of these flags.
const SYN: &str = "FIN,SYN,RST,ACK SYN";

/// The table whose input comes after that of filter, where firewalls are. Few other programs use it.
const SECURITY: &str = "security";

/// A built-in chain and the rules of podid's own chain under it.
struct Chain {
    table: &'static str,
    hook: &'static str,
    rules: Vec<String>,
}

/// Whether the tool and the kernel would take the rules.
pub(crate) async fn probe(rules: &Rules) -> Result<(), Error> {
    let tool = Variants::find().await?.used;
    let chains = chains(rules, tool).await?;
    let script: String = TABLES
        .iter()
        .map(|(table, _)| section(table, &own_chains(&chains, table)))
        .collect();
    call(&format!("{tool}-restore"), "--noflush --test -w 5")
        .input(&script)
        .run()
        .await
        .map(drop)
}

/// Replaces podid's chains and puts their jumps where they must be, in one transaction for each table.
pub(crate) async fn apply(rules: &Rules) -> Result<(), Error> {
    let tool = Variants::find().await?.used;
    let chains = chains(rules, tool).await?;
    let mut script = String::new();
    for (table, hooks) in TABLES {
        let mut text = own_chains(&chains, table);
        for hook in hooks {
            if !is_used(&chains, table, hook) {
                text += &removal(tool, table, hook).await?;
                continue;
            }
            let present = list(tool, table, hook).await?.unwrap_or_default();
            if !is_placed(&present, table, hook) {
                text += &removed_jumps(&present, hook);
                text += &format!("-I {hook} 1 -j {}\n", own_name(hook));
            }
        }
        script += &section(table, &text);
    }
    call(&format!("{tool}-restore"), "--noflush -w 5")
        .input(&script)
        .run()
        .await
        .map(drop)
}

/// Whether the chains are what [`apply`] makes them and their jumps are where they must be.
pub(crate) async fn verify(rules: &Rules) -> Result<bool, Error> {
    let tool = Variants::find().await?.used;
    let chains = chains(rules, tool).await?;
    for chain in &chains {
        let Chain { table, hook, rules } = chain;
        let Some(own) = list(tool, table, &own_name(hook)).await? else {
            return Ok(false);
        };
        let present = list(tool, table, hook).await?.unwrap_or_default();
        if comments_of(&own) != comments(rules) || !is_placed(&present, table, hook) {
            return Ok(false);
        }
    }
    for (table, hook) in hooks() {
        if !is_used(&chains, table, hook) && list(tool, table, &own_name(hook)).await?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether any of podid's chains is there, in whichever variant.
pub(crate) async fn is_there() -> Result<bool, Error> {
    any_in(&Variants::find().await?.all()).await
}

/// Whether any of podid's chains is there in another variant than the one that the node uses.
pub(crate) async fn is_in_others() -> Result<bool, Error> {
    any_in(&Variants::find().await?.others).await
}

/// Removes podid's chains from the variants that the node does not use.
pub(crate) async fn cleanup_others() -> Result<(), Error> {
    remove_from(&Variants::find().await?.others).await.map(drop)
}

/// Removes podid's chains from every variant, and says from which.
pub(crate) async fn cleanup() -> Result<Vec<String>, Error> {
    remove_from(&Variants::find().await?.all()).await
}

async fn any_in(tools: &[&'static str]) -> Result<bool, Error> {
    for tool in tools {
        // Whatever the rules, both tables have podid's chain of this hook.
        for (table, _) in TABLES {
            if list(tool, table, &own_name("PREROUTING")).await?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

async fn remove_from(tools: &[&'static str]) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    let mut failed = None;
    for tool in tools {
        match cleanup_variant(tool).await {
            Ok(true) => removed.push(format!(
                "{tool}: the chains PODID-* of the tables mangle and nat"
            )),
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(removed), Err)
}

async fn cleanup_variant(tool: &str) -> Result<bool, Error> {
    let mut script = String::new();
    for (table, hooks) in TABLES.iter().rev() {
        let mut text = String::new();
        for hook in *hooks {
            text += &removal(tool, table, hook).await?;
        }
        if !text.is_empty() {
            script += &section(table, &text);
        }
    }
    if script.is_empty() {
        return Ok(false);
    }
    call(&format!("{tool}-restore"), "--noflush -w 5")
        .input(&script)
        .run()
        .await?;
    Ok(true)
}

async fn chains(rules: &Rules, tool: &str) -> Result<Vec<Chain>, Error> {
    let mut chains = vec![translation(rules)];
    if rules.withdrawing {
        chains.push(under_way(rules));
        return Ok(chains);
    }
    chains.extend(interception(rules));
    if has_security(tool).await? {
        chains.push(Chain {
            table: SECURITY,
            hook: "INPUT",
            rules: vec![counted(rules)],
        });
    }
    Ok(chains)
}

/// Whether the kernel has the table security. Asking makes it, which changes nothing.
async fn has_security(tool: &str) -> Result<bool, Error> {
    let args = format!("-w 5 -t {SECURITY} -S INPUT");
    Ok(call(tool, &args).ask().await?.is_some())
}

/// Counts the first packets of pods' connections to the metadata address, whatever their address was translated to.
fn counted(rules: &Rules) -> String {
    let (metadata, port) = (rules.metadata, rules.metadata_port);
    format!(
        "! -i lo -p tcp -m tcp --tcp-flags {SYN} -m conntrack --ctorigdst {metadata}/32 --ctorigdstport {port}"
    )
}

/// What the counters of the variant `tool` say; `None` when they are not there.
pub(crate) async fn counts(tool: &'static str) -> Result<Option<Counts>, Error> {
    let count = async |table, hook| -> Result<Option<u64>, Error> {
        let args = format!("-w 5 -t {table} -v -S {}", own_name(hook));
        let listing = call(tool, &args).ask().await?;
        Ok(listing.as_deref().and_then(packets))
    };
    let entered = count("mangle", "PREROUTING").await?;
    let reached = count("mangle", "INPUT").await?;
    let arrived = count(SECURITY, "INPUT").await?;
    let counts = entered.zip(reached).zip(arrived);
    Ok(counts.map(|((entered, reached), arrived)| Counts {
        entered,
        reached,
        arrived,
    }))
}

/// The packets that the first rule without a target has seen.
fn packets(listing: &str) -> Option<u64> {
    let mut rules = listing.lines().filter(|line| line.starts_with("-A"));
    let rule = rules.find(|line| !line.contains(" -j "))?;
    let mut words = rule.split_whitespace().skip_while(|word| *word != "-c");
    words.nth(1)?.parse().ok()
}

/// The variant that the node uses.
pub(crate) async fn used() -> Result<&'static str, Error> {
    Ok(Variants::find().await?.used)
}

fn asked(rules: &Rules) -> String {
    asked_at(rules, rules.metadata_port)
}

fn asked_at(rules: &Rules, port: u16) -> String {
    let metadata = rules.metadata;
    format!("-d {metadata}/32 -p tcp -m tcp --dport {port}")
}

fn mark(rules: &Rules) -> String {
    let mark = rules.mark_tproxy;
    format!("{mark:#x}/{mark:#x}")
}

/// Keeps the address of the packets that mangle has taken, which have a socket that TPROXY chose; others' rules translate the rest, so that
/// none is lost while one table has changed and the other has not. While podid withdraws a listener of an earlier podid's may be at the
/// metadata address, and the mark of TPROXY decides.
///
/// What comes in by a bridge that is shown to the IP rules gets the listener's port, except the packets of a connection that has its
/// socket at the metadata port already: a podid that did not translate has accepted it. The match of bridges loads `br_netfilter`,
/// and so is used only where that is loaded.
fn translation(rules: &Rules) -> Chain {
    let asked = asked(rules);
    let (metadata, port, listen_port) = (rules.metadata, rules.metadata_port, rules.listen_port);
    let socket = "-m socket --nowildcard --transparent";
    let mut text = Vec::new();
    let taken = if rules.withdrawing {
        format!("-m mark --mark {}", mark(rules))
    } else {
        text.push(format!("{asked} ! --tcp-flags {SYN} {socket} -j RETURN"));
        socket.to_owned()
    };
    if bridges_may_be_shown() {
        text.push(format!(
            "{asked} {taken} -m physdev --physdev-is-in -j DNAT --to-destination {metadata}:{listen_port}"
        ));
    }
    text.push(format!(
        "{asked} {taken} -j DNAT --to-destination {metadata}:{port}"
    ));
    Chain {
        table: "nat",
        hook: "PREROUTING",
        rules: text,
    }
}

/// Whether `br_netfilter` is loaded.
fn bridges_may_be_shown() -> bool {
    Path::new("/proc/sys/net/bridge").exists()
}

/// Lets new connections pass and sets a bit of their tracking, because NMI still listens at their address: without the bit, their
/// later packets would look like those of NMI's connections. Packets of NMI's connections are delivered to it.
fn under_way(rules: &Rules) -> Chain {
    let (asked, mark, passing) = (asked(rules), mark(rules), rules.mark_own);
    Chain {
        table: "mangle",
        hook: "PREROUTING",
        rules: vec![
            format!("{asked} -m conntrack --ctstate DNAT -j RETURN"),
            format!("{asked} --tcp-flags {SYN} -j CONNMARK --set-xmark {passing:#x}/{passing:#x}"),
            format!("{asked} -m connmark --mark {passing:#x}/{passing:#x} -j RETURN"),
            format!("{asked} -m socket --nowildcard --transparent -j MARK --set-xmark {mark}"),
        ],
    }
}

fn interception(rules: &Rules) -> Vec<Chain> {
    let Rules {
        listen_port,
        mark_own,
        mark_tproxy,
        metadata,
        ..
    } = rules;
    let (asked, target, mark) = (asked(rules), rules.target(), mark(rules));
    // Of no use to a policy rule of another program that looks at a mark.
    let whole_mark = format!("{mark_tproxy:#x}/0xffffffff");
    let foreign = format!("-m mark ! --mark {mark_own:#x}/{mark_own:#x}");
    let table = "mangle";
    let mut chains = vec![
        // The kernel drops what TPROXY takes while there is no transparent listener.
        Chain {
            table,
            hook: "PREROUTING",
            rules: vec![
                format!("{} -d {metadata}/32 -m rpfilter", counted(rules)),
                // The connection went to the nmi of AAD Pod Identity before podid came.
                format!("{asked} -m conntrack --ctstate DNAT -j RETURN"),
                format!(
                    "{asked} -j TPROXY --on-port {listen_port} --on-ip {target} --tproxy-mark {whole_mark}"
                ),
            ],
        },
        forward(rules),
    ];
    let mut input = vec![counted(rules)];
    for asked in [&asked, &asked_at(rules, *listen_port)] {
        input.push(format!(
            "{asked} -m socket --nowildcard --transparent -j RETURN"
        ));
        // Another program may listen at that port on all addresses. Mangle cannot reject, only drop.
        input.push(format!("{asked} -j DROP"));
    }
    if !rules.direct {
        // A marked packet was intercepted, and comes to this port when another program's redirect precedes podid's chain.
        input.push(format!(
            "! -i lo -p tcp -m tcp --dport {listen_port} --tcp-flags SYN,ACK SYN -m mark ! --mark {mark} -j DROP"
        ));
    }
    chains.push(Chain {
        table,
        hook: "INPUT",
        rules: input,
    });
    let from = match &rules.host_network {
        HostNetwork::Off => None,
        HostNetwork::All => Some(String::new()),
        HostNetwork::Pods { .. } => {
            let mark = rules.mark_pod;
            Some(format!(" -m mark --mark {mark:#x}/{mark:#x}"))
        }
    };
    if let Some(from) = from {
        let back = format!("{asked}{from} {foreign} -j MARK --set-xmark {mark}");
        let stop = format!("! -o lo {asked}{from} {foreign} -j DROP");
        for (hook, rule) in [("OUTPUT", back), ("POSTROUTING", stop)] {
            chains.push(Chain {
                table,
                hook,
                rules: vec![rule],
            });
        }
    }
    chains
}

/// Drops every packet that is forwarded to the metadata address or comes back from it.
fn forward(rules: &Rules) -> Chain {
    let metadata = rules.metadata;
    Chain {
        table: "mangle",
        hook: "FORWARD",
        rules: vec![
            format!("-d {metadata}/32 -j DROP"),
            format!("-s {metadata}/32 -j DROP"),
        ],
    }
}

/// The input of `iptables-restore --noflush` for [`crate::boot`].
pub(crate) fn boot_script(rules: &Rules) -> String {
    let chain = forward(rules);
    let Chain { table, hook, .. } = chain;
    let jump = format!("-I {hook} 1 -j {}\n", own_name(hook));
    section(table, &(own_chains(&[chain], table) + &jump))
}

fn hooks() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLES
        .into_iter()
        .flat_map(|(table, hooks)| hooks.iter().map(move |hook| (table, *hook)))
}

fn is_used(chains: &[Chain], table: &str, hook: &str) -> bool {
    chains
        .iter()
        .any(|chain| chain.table == table && chain.hook == hook)
}

fn own_name(hook: &str) -> String {
    format!("PODID-{hook}")
}

/// One transaction.
fn section(table: &str, text: &str) -> String {
    format!("*{table}\n{text}COMMIT\n")
}

/// The lines that create or replace podid's own chains of a table, without jumps to them.
fn own_chains(chains: &[Chain], table: &str) -> String {
    let chains = || chains.iter().filter(|chain| chain.table == table);
    let mut text = String::new();
    for chain in chains() {
        text += &format!(":{} - [0:0]\n", own_name(chain.hook));
    }
    for chain in chains() {
        for (rule, comment) in chain.rules.iter().zip(comments(&chain.rules)) {
            text += &format!(
                "-A {} -m comment --comment {comment} {rule}\n",
                own_name(chain.hook)
            );
        }
    }
    text
}

/// The lines that remove podid's chain under `hook`, as far as it exists.
async fn removal(tool: &str, table: &str, hook: &str) -> Result<String, Error> {
    let present = list(tool, table, hook).await?.unwrap_or_default();
    let mut text = removed_jumps(&present, hook);
    let name = own_name(hook);
    if list(tool, table, &name).await?.is_some() {
        text += &format!("-F {name}\n-X {name}\n");
    }
    Ok(text)
}

fn removed_jumps(listing: &str, hook: &str) -> String {
    let jump = jump(hook);
    let count = listing.lines().filter(|line| line.trim() == jump).count();
    format!("-D {hook} -j {}\n", own_name(hook)).repeat(count)
}

/// Whether podid's jump is there once, in mangle before everything else and in nat before the jump of AAD Pod Identity's nmi.
fn is_placed(listing: &str, table: &str, hook: &str) -> bool {
    let jump = jump(hook);
    let rules: Vec<&str> = listing
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("-A"))
        .collect();
    let mut found = (0..).zip(&rules).filter(|(_, line)| **line == jump);
    let (Some((place, _)), None) = (found.next(), found.next()) else {
        return false;
    };
    let before = &rules[..place];
    before
        .iter()
        .all(|line| table == "nat" && !line.ends_with(REDIRECT))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_only_right_alone_and_first() {
        let ours = "-A FORWARD -j PODID-FORWARD\n";
        let other = "-A FORWARD -j CNI\n";
        let policy = "-P FORWARD ACCEPT\n";
        let is_first = |listing: &str| is_placed(listing, "mangle", "FORWARD");
        assert!(is_first(&format!("{policy}{ours}{other}")));
        assert!(!is_first(&format!("{policy}{other}{ours}")));
        assert!(!is_first(&format!("{policy}{ours}{other}{ours}")));
        assert!(!is_first(policy));
    }

    #[test]
    fn in_nat_a_jump_must_only_come_before_that_of_the_original() {
        let ours = "-A PREROUTING -j PODID-PREROUTING\n";
        let calico = "-A PREROUTING -m comment --comment c -j cali-PREROUTING\n";
        let theirs = "-A PREROUTING -j aad-metadata\n";
        let is_right = |listing: &str| is_placed(listing, "nat", "PREROUTING");
        assert!(is_right(&format!("{calico}{ours}{theirs}")));
        assert!(!is_right(&format!("{calico}{theirs}{ours}")));
        assert!(!is_right(&format!("{ours}{theirs}{ours}")));
        assert!(!is_right(theirs));
    }

    #[test]
    fn a_foreign_or_changed_rule_is_seen() {
        let chain = Chain {
            table: "mangle",
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
