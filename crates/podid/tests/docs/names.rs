//! Metrics, alerts and reasons that the pages name are those of the code, and those that people meet are all explained.

use std::collections::BTreeSet;
use std::path::Path;

use podid_testkit::tools;

use crate::pages::{Page, folder};

/// Words in capitals that are others' names.
const OTHERS: [&str; 14] = [
    "AF_PACKET",
    "AzureGermanCloud",
    "AzurePublicCloud",
    "AzureUSGovernmentCloud",
    "AzureChinaCloud",
    "AzureStackCloud",
    "ManagedIdentityCredential",
    "DefaultAzureCredential",
    "RollingUpdate",
    "NetworkPolicy",
    "LinkedAuthorizationFailed",
    "AzureAssignedIdentity",
    "AzureIdentity",
    "AzureIdentityBinding",
];

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// A word of two humps or more, as reasons are written.
fn is_camel(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.chars().all(|c| c.is_ascii_alphanumeric())
        && word.chars().skip(1).any(|c| c.is_ascii_uppercase())
        && word.chars().any(|c| c.is_ascii_lowercase())
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            *text += &std::fs::read_to_string(path).unwrap();
        }
    }
}

/// Everything that podid consists of.
fn code() -> String {
    let mut code = String::new();
    for part in [
        "mic", "nmi", "broker", "azure", "policy", "cluster", "podid",
    ] {
        let folder = tools::repository().join(format!("crates/{part}/src"));
        sources(&folder, &mut code);
    }
    code
}

#[test]
fn every_variable_is_one_that_podid_knows() {
    let code = code();
    let mut unknown = Vec::new();
    for page in Page::all() {
        for span in page.spans() {
            let name = span.split(['=', ' ']).next().unwrap();
            let variable = name.contains('_')
                && name
                    .chars()
                    .all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit());
            if variable && !OTHERS.contains(&name) && !code.contains(name) {
                unknown.push(format!("{}: {name}", page.name));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn every_reason_is_one_that_podid_gives() {
    let code = code();
    let mut unknown = Vec::new();
    for page in Page::all() {
        let camel = page.spans().into_iter().filter(|span| is_camel(span));
        for word in camel.filter(|word| !OTHERS.contains(word)) {
            if !code.contains(&format!("\"{word}\"")) {
                unknown.push(format!("{}: {word}", page.name));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// The names that a source file gives its variants.
fn names_in(file: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(tools::repository().join(file)).unwrap();
    let quoted = text
        .lines()
        .filter_map(|line| line.split_once("=> \"")?.1.split_once('"'));
    let names: BTreeSet<String> = quoted
        .map(|(name, _)| name.to_owned())
        .filter(|name| is_camel(name) || matches!(name.as_str(), "Busy" | "Starting"))
        .collect();
    assert!(names.len() > 3, "{file}: {names:?}");
    names
}

#[test]
fn what_people_are_told_is_explained() {
    for (file, page) in [
        ("crates/mic/src/host/cloud.rs", "controller.md"),
        ("crates/mic/src/federation/checks.rs", "controller.md"),
        ("crates/policy/src/reason.rs", "troubleshooting.md"),
        ("crates/nmi/src/refusal.rs", "troubleshooting.md"),
        ("crates/policy/src/issuer/reason.rs", "issuer.md"),
    ] {
        let text = std::fs::read_to_string(folder().join(page)).unwrap();
        let silent: Vec<String> = names_in(file)
            .into_iter()
            .filter(|name| !text.contains(&format!("`{name}`")))
            .collect();
        assert!(silent.is_empty(), "{page} does not explain {silent:?}");
    }
}

#[test]
fn every_metric_and_alert_exists() {
    // Another test compares this page with what is exported.
    let metrics = std::fs::read_to_string(folder().join("metrics.md")).unwrap();
    let alerts =
        std::fs::read_to_string(tools::repository().join("deploy/monitoring/alerts.yaml")).unwrap();
    let mut unknown = Vec::new();
    for page in Page::all() {
        let blocks: String = page
            .blocks
            .iter()
            .map(|block| block.text.as_str())
            .collect();
        let text = format!("{}{blocks}", page.prose);
        for word in text.split(|c| !is_word(c)) {
            let metric = [
                "podid_nmi_",
                "podid_mic_",
                "podid_broker_",
                "aadpodidentity_",
            ]
            .iter()
            .any(|start| word.starts_with(start));
            let alert = word.starts_with("Podid") && is_camel(word);
            let known = metrics.contains(&format!("`{word}`"));
            if (metric && !known) || (alert && !alerts.contains(&format!("- alert: {word}\n"))) {
                unknown.push(format!("{}: {word}", page.name));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}
