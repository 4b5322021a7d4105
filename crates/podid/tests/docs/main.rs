//! What the documentation says is so: its manifests are taken, its commands run, its links lead somewhere, and the names that it
//! uses are names that podid uses.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod commands;
mod configurations;
mod manifests;
mod names;
mod pages;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use pages::Page;

/// The table of contents, which is no page of the site.
const SUMMARY: &str = "SUMMARY.md";

#[test]
fn the_summary_lists_every_page_once() {
    let pages = Page::all();
    let summary = pages.iter().find(|page| page.name == SUMMARY).unwrap();
    let mut listed = summary.links();
    listed.sort_unstable();
    let there: Vec<&str> = pages
        .iter()
        .map(|page| page.name.as_str())
        .filter(|name| *name != SUMMARY)
        .collect();
    assert_eq!(
        listed, there,
        "docs/SUMMARY.md lists other pages than there are"
    );
}

#[test]
fn every_link_leads_to_a_page_of_the_site_and_to_a_heading_of_it() {
    let pages = Page::all();
    let anchors: BTreeMap<&str, BTreeSet<String>> = pages
        .iter()
        .map(|page| (page.name.as_str(), page.anchors()))
        .collect();
    let mut broken = Vec::new();
    for page in &pages {
        let local = page
            .links()
            .into_iter()
            .filter(|link| !link.starts_with("https://"));
        for link in local {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { &page.name } else { file };
            let leads = anchors
                .get(file)
                .is_some_and(|known| anchor.is_empty() || known.contains(anchor));
            if !leads {
                broken.push(format!("{}: {link}", page.name));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_begins_with_its_title() {
    for page in Page::all() {
        assert!(page.prose.starts_with("# "), "{}", page.name);
    }
}
