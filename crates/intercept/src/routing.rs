//! Policy routing (`ip rule`): rules that deliver intercepted packets to the node itself, by a route of podid's own table.
//! [`crate::Backend`] calls it.
//!
//! ```text
//! 1  sent by the node itself         goto 4     the node's own requests pass
//! 2  to 169.254.169.254, tcp 80      table      what comes in by a link
//! 3  to 169.254.169.254, tcp 2579    table      what was translated to NMI's port
//! 4  marked                          table      the node's own requests that the rules send back in
//! ```
//!
//! What comes in by a link is known by its destination, because other programs (Azure CNI, for one) overwrite packet marks. The rules
//! stand before those of network plugins, which look at such marks.
//!
//! The table holds the metadata address alone. A packet of another program that carries the same mark bit, or a reverse-path check that
//! looks at marks (`src_valid_mark`), finds nothing in it and goes on to the node's other tables.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::command::call;
use crate::{Error, Rules};

/// Preferences of the policy rules, next to each other so that `goto` jumps over nobody else's.
const FROM_NODE: u32 = 1;
const REQUESTS: u32 = 2;
const TRANSLATED: u32 = 3;
const MARKED: u32 = 4;
/// A policy rule as the tool lists it.
#[derive(Deserialize, Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    priority: u32,
    src: Option<String>,
    dst: Option<String>,
    iif: Option<String>,
    ipproto: Option<String>,
    dport: Option<u16>,
    fwmark: Option<String>,
    fwmask: Option<String>,
    table: Option<String>,
    goto: Option<u32>,
}

#[derive(Deserialize)]
struct Route {
    #[serde(rename = "type")]
    kind: Option<String>,
    dst: Option<String>,
    dev: Option<String>,
}

impl Rule {
    /// A rule for all sources, without any other condition.
    fn new(priority: u32) -> Self {
        Self {
            priority,
            src: Some("all".to_owned()),
            dst: None,
            iif: None,
            ipproto: None,
            dport: None,
            fwmark: None,
            fwmask: None,
            table: None,
            goto: None,
        }
    }

    fn requests(priority: u32, port: u16, rules: &Rules) -> Self {
        Self {
            dst: Some(rules.metadata.to_string()),
            ipproto: Some("tcp".to_owned()),
            dport: Some(port),
            table: Some(rules.table.to_string()),
            ..Self::new(priority)
        }
    }

    fn marked(priority: u32, rules: &Rules) -> Self {
        let mark = format!("{:#x}", rules.mark_tproxy);
        Self {
            fwmark: Some(mark.clone()),
            fwmask: Some(mark),
            table: Some(rules.table.to_string()),
            ..Self::new(priority)
        }
    }

    /// The rule in the tool's words.
    fn words(&self) -> String {
        let mut words = format!("pref {}", self.priority);
        let mut say = |word: &str, value: Option<String>| {
            if let Some(value) = value {
                words += &format!(" {word} {value}");
            }
        };
        say("to", self.dst.clone());
        say("iif", self.iif.clone());
        say("ipproto", self.ipproto.clone());
        say("dport", self.dport.map(|port| port.to_string()));
        let mark = self.fwmark.as_ref().zip(self.fwmask.as_ref());
        say("fwmark", mark.map(|(mark, mask)| format!("{mark}/{mask}")));
        say("lookup", self.table.clone());
        say("goto", self.goto.map(|priority| priority.to_string()));
        words
    }
}

/// The policy rules that are to be there. While podid withdraws, new requests take the node's other routes.
fn wanted(rules: &Rules) -> BTreeSet<Rule> {
    let mut wanted = BTreeSet::from([
        Rule {
            iif: Some("lo".to_owned()),
            goto: Some(MARKED),
            ..Rule::new(FROM_NODE)
        },
        Rule::requests(REQUESTS, rules.metadata_port, rules),
        Rule::requests(TRANSLATED, rules.listen_port, rules),
        Rule::marked(MARKED, rules),
    ]);
    wanted.retain(|rule| !rules.withdrawing || rule.priority != REQUESTS);
    wanted
}

/// Adds what is missing, and removes what was wanted by other settings.
pub(crate) async fn apply(rules: &Rules) -> Result<(), Error> {
    if !route_present(rules).await? {
        call(
            "ip",
            &format!(
                "-4 route replace local {}/32 dev lo table {}",
                rules.metadata, rules.table
            ),
        )
        .run()
        .await?;
    }
    let (wanted, present) = (wanted(rules), present(rules).await?);
    // From the last to the first: the node's own requests are let pass before those of pods are not.
    let missing = wanted.iter().filter(|rule| !present.contains(rule));
    let mut missing: Vec<_> = missing.collect();
    missing.sort_by_key(|rule| (rule.priority == REQUESTS, u32::MAX - rule.priority));
    for rule in missing {
        change("add", rule).await?;
    }
    let mut seen = BTreeSet::new();
    for rule in &present {
        if !wanted.contains(rule) || !seen.insert(rule) {
            change("del", rule).await?;
        }
    }
    Ok(())
}

/// Whether the rules and the route are as [`apply`] makes them.
pub(crate) async fn verify(rules: &Rules) -> Result<bool, Error> {
    let mut present = present(rules).await?;
    present.sort();
    Ok(present.iter().eq(&wanted(rules)) && route_present(rules).await?)
}

/// Removes the rules and the route, and says which were there.
pub(crate) async fn cleanup(rules: &Rules) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    let mut present = present(rules).await?;
    // The jump goes last: without it the node's own requests would be taken for those of pods.
    present.sort_by_key(|rule| (rule.priority == FROM_NODE, rule.priority));
    for rule in present {
        change("del", &rule).await?;
        removed.push(format!("ip rule: {}", rule.words()));
    }
    if route_present(rules).await? {
        removed.push(format!(
            "ip route: {} in table {}",
            rules.metadata, rules.table
        ));
    }
    call(
        "ip",
        &format!(
            "-4 route del local {}/32 dev lo table {}",
            rules.metadata, rules.table
        ),
    )
    .ask()
    .await?;
    if route_present(rules).await? {
        return Err(Error::Failed {
            command: "ip route del".to_owned(),
            detail: format!(
                "the route to {} is still in table {}",
                rules.metadata, rules.table
            ),
        });
    }
    Ok(removed)
}

async fn change(verb: &str, rule: &Rule) -> Result<(), Error> {
    let args = format!("-4 rule {verb} {}", rule.words());
    call("ip", &args).run().await.map(drop)
}

/// podid's rules, which either look the packet up in podid's table or are the jump.
async fn present(rules: &Rules) -> Result<Vec<Rule>, Error> {
    let args = "-4 -j rule show";
    let mut found: Vec<Rule> = parse(args, call("ip", args).run().await?)?;
    let table = rules.table.to_string();
    found.retain(|rule| {
        let is_jump = rule.priority == FROM_NODE && rule.goto == Some(MARKED);
        is_jump || rule.table.as_deref() == Some(&table)
    });
    Ok(found)
}

async fn route_present(rules: &Rules) -> Result<bool, Error> {
    let args = format!("-4 -j route show table {} type local", rules.table);
    // A table that was never used does not exist, which the tool calls an error.
    let Some(text) = call("ip", &args).ask().await? else {
        return Ok(false);
    };
    let destination = rules.metadata.to_string();
    Ok(parse::<Route>(&args, text)?.iter().any(|route| {
        route.dst.as_deref() == Some(&destination)
            && route.dev.as_deref() == Some("lo")
            && route.kind.as_deref() == Some("local")
    }))
}

fn parse<T: for<'de> Deserialize<'de>>(args: &str, text: String) -> Result<Vec<T>, Error> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).map_err(|error| Error::Output {
        command: format!("ip {args}"),
        detail: error.to_string(),
    })
}
