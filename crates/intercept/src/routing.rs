//! Policy routing (`ip rule`): a route of its own table delivers marked packets to the node itself. [`crate::Backend`] calls it.
//!
//! The table holds the metadata address alone. A packet of another program that carries the same mark bit, or a reverse-path check that
//! looks at marks (`src_valid_mark`), finds nothing in it and goes on to the node's other tables.

use serde::Deserialize;

use crate::command::call;
use crate::{Error, Rules};

/// Preference of the policy rule: before those of the common network plugins and before the main table (32766).
const PRIORITY: u32 = 88;

#[derive(Deserialize)]
struct Rule {
    fwmark: Option<String>,
    fwmask: Option<String>,
    table: Option<String>,
    src: Option<String>,
}

#[derive(Deserialize)]
struct Route {
    #[serde(rename = "type")]
    kind: Option<String>,
    dst: Option<String>,
    dev: Option<String>,
}

/// Adds what is missing.
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
    if !rule_present(rules).await? {
        remove_rules().await?;
        let mark = rules.mark_tproxy;
        call(
            "ip",
            &format!(
                "-4 rule add pref {PRIORITY} fwmark {mark:#x}/{mark:#x} lookup {}",
                rules.table
            ),
        )
        .run()
        .await?;
    }
    Ok(())
}

/// Whether the rule and the route are as [`apply`] makes them.
pub(crate) async fn verify(rules: &Rules) -> Result<bool, Error> {
    Ok(rule_present(rules).await? && route_present(rules).await?)
}

/// Removes the rule and the route, and says which were there.
pub(crate) async fn cleanup(rules: &Rules) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    if remove_rules().await? {
        removed.push(format!("ip rule: what had the preference {PRIORITY}"));
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

/// Whether there were any.
async fn remove_rules() -> Result<bool, Error> {
    let list = format!("-4 -j rule show pref {PRIORITY}");
    let mut any = false;
    while !parse::<Rule>(&list, call("ip", &list).run().await?)?.is_empty() {
        any = true;
        call("ip", &format!("-4 rule del pref {PRIORITY}"))
            .run()
            .await?;
    }
    Ok(any)
}

async fn rule_present(rules: &Rules) -> Result<bool, Error> {
    let args = format!("-4 -j rule show pref {PRIORITY}");
    let found: Vec<Rule> = parse(&args, call("ip", &args).run().await?)?;
    Ok(matches!(found.as_slice(), [rule] if is_ours(rule, rules)))
}

fn is_ours(rule: &Rule, rules: &Rules) -> bool {
    let mark = format!("{:#x}", rules.mark_tproxy);
    rule.fwmark.as_deref() == Some(&mark)
        && rule.fwmask.as_deref() == Some(&mark)
        && rule.table.as_deref() == Some(&rules.table.to_string())
        && rule.src.as_deref() == Some("all")
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
