//! nftables backend: the table `inet podid`, replaced as a whole in one transaction. [`crate::Backend`] calls it.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use crate::arrivals::Counts;
use crate::backend::comments;
use crate::command::call;
use crate::{Error, HostNetwork, Rules};

const LIST: &str = "-j list table inet podid";
/// Makes the removal of a table that may not exist succeed.
const REMOVE: &str = "add table inet podid\ndelete table inet podid\n";

/// Priority after that of mangle (-150), where other programs set the whole mark.
const AFTER_MANGLE: i64 = -149;
/// Priority after the firewalls of the node, whose chains come at 0 or a little later.
const LAST: i64 = 300;
const PREROUTING: &str = "prerouting";
const INPUT: &str = "input";
const ARRIVED: &str = "arrived";
/// What comes in by a link; the node's own requests, which come back in by the loopback device, are proven in another way.
const FROM_POD: &str = "iifname != \"lo\"";
/// What comes in by a bridge.
const BRIDGED: &str = "meta iifkind \"bridge\"";

/// The flags that tell the first packet of a connection, which has `syn` alone.
const SYN_FLAGS: &str = "fin | syn | rst | ack";

/// A base chain and its rules.
struct Chain {
    name: &'static str,
    hook: &'static str,
    kind: &'static str,
    priority: i64,
    rules: Vec<String>,
}

/// Whether the tool and the kernel would take the rules.
pub(crate) async fn probe(rules: &Rules) -> Result<(), Error> {
    call("nft", "-c -f -")
        .input(&script(rules))
        .run()
        .await
        .map(drop)
}

/// Replaces the table.
pub(crate) async fn apply(rules: &Rules) -> Result<(), Error> {
    call("nft", "-f -")
        .input(&script(rules))
        .run()
        .await
        .map(drop)
}

/// Whether the table is what [`apply`] makes it.
pub(crate) async fn verify(rules: &Rules) -> Result<bool, Error> {
    let Some(text) = call("nft", LIST).ask().await? else {
        return Ok(false);
    };
    Ok(matches(&chains(rules), &parse(&text)?))
}

/// Removes the table, and says so if it was there.
pub(crate) async fn cleanup() -> Result<Vec<String>, Error> {
    if !is_there().await? {
        return Ok(Vec::new());
    }
    call("nft", "-f -").input(REMOVE).run().await?;
    Ok(vec!["nftables: the table inet podid".to_owned()])
}

/// Whether the table is there, whatever is in it.
pub(crate) async fn is_there() -> Result<bool, Error> {
    Ok(call("nft", LIST).ask().await?.is_some())
}

fn chains(rules: &Rules) -> Vec<Chain> {
    if rules.withdrawing {
        return vec![under_way(rules), translation(rules)];
    }
    let mut chains = vec![
        prerouting(rules),
        translation(rules),
        forward(rules),
        input(rules),
        arrived(rules),
    ];
    let from = match &rules.host_network {
        HostNetwork::Off => return chains,
        HostNetwork::All => String::new(),
        HostNetwork::Pods { .. } => {
            let mark = rules.mark_pod;
            format!("meta mark & {mark:#x} == {mark:#x} ")
        }
    };
    chains.extend([output(rules, &from), postrouting(rules, &from)]);
    chains
}

/// Hands packets to the listener. [`crate::routing`] delivers them to the node itself by their destination, and the whole mark is
/// podid's, so that no policy rule of another program that looks at a mark comes before.
///
/// The kernel forgets the chosen socket on a bridge whose packets are shown to the IP rules (`br_netfilter`). What comes in by a
/// bridge gets none, and [`translation`] gives it the port of the listener.
fn prerouting(rules: &Rules) -> Chain {
    let (asked, mark) = (asked(rules), rules.mark_tproxy);
    let (target, port) = (rules.target(), rules.listen_port);
    Chain {
        name: PREROUTING,
        hook: "prerouting",
        kind: "filter",
        priority: AFTER_MANGLE,
        rules: vec![
            format!(
                "{FROM_POD} {asked} {} fib saddr . iif oif exists counter",
                first_packets(rules)
            ),
            translated(&asked),
            format!("{BRIDGED} {asked} meta mark set {mark:#x} accept"),
            format!("{asked} tproxy ip to {target}:{port} meta mark set {mark:#x} accept"),
            format!("{asked} meta mark set {mark:#x} accept"),
        ],
    }
}

/// Lets new connections pass and sets a bit of their tracking, because NMI still listens at their address: without the bit, their
/// later packets would look like those of NMI's connections. Packets of NMI's connections are delivered to it.
fn under_way(rules: &Rules) -> Chain {
    let (asked, mark, passing) = (asked(rules), rules.mark_tproxy, rules.mark_own);
    Chain {
        name: PREROUTING,
        hook: "prerouting",
        kind: "filter",
        priority: AFTER_MANGLE,
        rules: vec![
            translated(&asked),
            format!(
                "{asked} tcp flags & ({SYN_FLAGS}) == syn ct mark set ct mark | {passing:#x} accept"
            ),
            format!("{asked} ct mark & {passing:#x} == {passing:#x} accept"),
            format!("{asked} socket transparent 1 meta mark set {mark:#x} accept"),
        ],
    }
}

/// A connection that the node's NAT rules translate already goes on to its target, the nmi of AAD Pod Identity.
fn translated(asked: &str) -> String {
    format!("{asked} ct status dnat accept")
}

/// Translates the address of an intercepted connection to itself, so that no later rule translates it to something else. The
/// rules of AAD Pod Identity's nmi in the table nat may therefore stay, and work again when podid has gone.
///
/// What comes in by a bridge gets the listener's port, except the packets of a connection that has its socket at the metadata port
/// already: a podid that did not translate has accepted it.
fn translation(rules: &Rules) -> Chain {
    let (metadata, port, listen_port) = (rules.metadata, rules.metadata_port, rules.listen_port);
    let (asked, mark) = (asked(rules), rules.mark_tproxy);
    let rules = if rules.withdrawing {
        vec![format!(
            "{asked} meta mark & {mark:#x} == {mark:#x} dnat ip to {metadata}:{port}"
        )]
    } else {
        vec![
            format!("{asked} tcp flags & ({SYN_FLAGS}) != syn socket transparent 1 accept"),
            format!("{BRIDGED} {asked} dnat ip to {metadata}:{listen_port}"),
            format!("{asked} dnat ip to {metadata}:{port}"),
        ]
    };
    Chain {
        name: "translation",
        hook: "prerouting",
        kind: "nat",
        priority: -110,
        rules,
    }
}

fn asked(rules: &Rules) -> String {
    format!(
        "ip daddr {} tcp dport {}",
        rules.metadata, rules.metadata_port
    )
}

/// Refuses every packet that is forwarded to the metadata address or comes back from it.
fn forward(rules: &Rules) -> Chain {
    let metadata = rules.metadata;
    // A translator between the node and Azure would map these IPv6 addresses to the metadata address.
    let (mapped, translated) = (metadata.to_ipv6_mapped(), nat64(metadata));
    Chain {
        name: "forward",
        hook: "forward",
        kind: "filter",
        priority: -150,
        rules: vec![
            format!("ip daddr {metadata} meta l4proto tcp reject with tcp reset"),
            format!("ip daddr {metadata} reject with icmp type admin-prohibited"),
            format!("ip saddr {metadata} drop"),
            format!(
                "ip6 daddr {{ {mapped}, {translated} }} reject with icmpv6 type admin-prohibited"
            ),
        ],
    }
}

/// The address below the well-known prefix for translation from IPv6 to IPv4 (RFC 6052).
fn nat64(address: Ipv4Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0x0064_ff9b << 96;
    Ipv6Addr::from(PREFIX | u128::from(u32::from(address)))
}

/// Refuses requests while NMI does not listen, also when another program listens at that port on all addresses. Keeps other
/// machines and pods from NMI's own port. On a bridge that is shown to the IP rules the kernel sends the refusal without translating
/// it back, so that the caller waits in vain.
fn input(rules: &Rules) -> Chain {
    let (metadata, asked_port, port) = (rules.metadata, rules.metadata_port, rules.listen_port);
    let asked = format!("ip daddr {metadata} tcp dport {{ {asked_port}, {port} }}");
    let mut input = vec![
        counted(rules),
        // A program needs NET_ADMIN to have such a socket.
        format!("{asked} socket transparent 1 accept"),
        format!("{asked} reject with tcp reset"),
    ];
    if !rules.direct {
        input.push(format!(
            "iifname != \"lo\" tcp dport {port} tcp flags & (syn | ack) == syn reject with tcp reset"
        ));
    }
    Chain {
        name: INPUT,
        hook: "input",
        kind: "filter",
        priority: -150,
        rules: input,
    }
}

/// Counts what no other program's rules have refused.
fn arrived(rules: &Rules) -> Chain {
    Chain {
        name: ARRIVED,
        hook: "input",
        kind: "filter",
        priority: LAST,
        rules: vec![counted(rules)],
    }
}

/// Counts the first packets of pods' connections to the metadata address, whatever their address was translated to.
fn counted(rules: &Rules) -> String {
    format!("{FROM_POD} {} counter", first_packets(rules))
}

/// What is not tracked does not match, so that it is not missed where tracking is looked at.
fn first_packets(rules: &Rules) -> String {
    let (metadata, port) = (rules.metadata, rules.metadata_port);
    format!(
        "tcp flags & ({SYN_FLAGS}) == syn ct original ip daddr {metadata} ct original proto-dst {port}"
    )
}

/// What the counters say; `None` when they are not there.
pub(crate) async fn counts() -> Result<Option<Counts>, Error> {
    let Some(text) = call("nft", LIST).ask().await? else {
        return Ok(None);
    };
    let listing = parse(&text)?;
    let count = |chain| packets(&listing, chain);
    let counts = count(PREROUTING).zip(count(INPUT)).zip(count(ARRIVED));
    Ok(counts.map(|((entered, reached), arrived)| Counts {
        entered,
        reached,
        arrived,
    }))
}

/// The packets that a chain's rule with a counter has seen.
fn packets(listing: &Value, chain: &str) -> Option<u64> {
    let objects = listing["nftables"].as_array()?;
    objects
        .iter()
        .map(|object| &object["rule"])
        .filter(|rule| rule["chain"] == chain)
        .filter_map(|rule| rule["expr"].as_array())
        .flatten()
        .find_map(|expression| expression["counter"]["packets"].as_u64())
}

fn parse(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| Error::Output {
        command: format!("nft {LIST}"),
        detail: error.to_string(),
    })
}

/// Sends the node's own requests that match `from` back in through the loopback device, where [`prerouting`] takes them. NMI's own
/// requests pass.
fn output(rules: &Rules, from: &str) -> Chain {
    let Rules {
        metadata,
        metadata_port,
        mark_own,
        mark_tproxy,
        ..
    } = rules;
    Chain {
        name: "output",
        hook: "output",
        kind: "route",
        priority: AFTER_MANGLE,
        rules: vec![format!(
            "ip daddr {metadata} tcp dport {metadata_port} {from}meta mark & {mark_own:#x} != {mark_own:#x} meta mark set meta mark | {mark_tproxy:#x}"
        )],
    }
}

/// Drops what [`output`] could not send back because the policy route is gone or a later rule translated an address.
fn postrouting(rules: &Rules, from: &str) -> Chain {
    let (asked, mark_own) = (asked(rules), rules.mark_own);
    Chain {
        name: "postrouting",
        hook: "postrouting",
        kind: "filter",
        priority: 300,
        rules: vec![format!(
            "oifname != \"lo\" {asked} {from}meta mark & {mark_own:#x} != {mark_own:#x} drop"
        )],
    }
}

fn script(rules: &Rules) -> String {
    table(&chains(rules))
}

/// The input of `nft -f` for [`crate::boot`].
pub(crate) fn boot_script(rules: &Rules) -> String {
    table(&[forward(rules)])
}

fn table(chains: &[Chain]) -> String {
    let mut text = format!("{REMOVE}table inet podid {{\n");
    for chain in chains {
        text += &format!(
            "\tchain {} {{\n\t\ttype {} hook {} priority {}; policy accept;\n",
            chain.name, chain.kind, chain.hook, chain.priority
        );
        for (rule, comment) in chain.rules.iter().zip(comments(&chain.rules)) {
            text += &format!("\t\t{rule} comment \"{comment}\"\n");
        }
        text += "\t}\n";
    }
    text + "}\n"
}

fn matches(wanted: &[Chain], listing: &Value) -> bool {
    let Some(objects) = listing["nftables"].as_array() else {
        return false;
    };
    let listed: Vec<&Value> = objects
        .iter()
        .map(|object| &object["chain"])
        .filter(|chain| chain.is_object())
        .collect();
    let dormant = objects
        .iter()
        .any(|object| !object["table"]["flags"].is_null());
    !dormant
        && listed.len() == wanted.len()
        && wanted.iter().all(|chain| {
            listed.iter().any(|found| is_same(chain, found))
                && rules_of(objects, chain.name) == comments(&chain.rules)
        })
}

fn is_same(chain: &Chain, found: &Value) -> bool {
    found["name"] == chain.name
        && found["type"] == chain.kind
        && found["hook"] == chain.hook
        && found["prio"] == chain.priority
}

/// The comments of a chain's rules in their order; a foreign rule without one counts too.
fn rules_of(objects: &[Value], chain: &str) -> Vec<String> {
    objects
        .iter()
        .map(|object| &object["rule"])
        .filter(|rule| rule["chain"] == chain)
        .map(|rule| rule["comment"].as_str().unwrap_or_default().to_owned())
        .collect()
}
