//! Requests that try to reach the metadata service past podid (CVE-2022-23551 and similar), as raw bytes. The metadata service of the
//! test is lenient: it understands every spelling that some server might understand.

// Helpers of tests may panic, as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::corpus::{Entry, entries};
use common::objects::{BARE, WEB};
use common::{Rig, client, lenient, rig};
use futures::StreamExt as _;
use serde_json::Value;

/// How long an exchange may take, with the silences of the client.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(6);
/// Exchanges at a time, fewer than the connections that a pod may have open.
const PARALLEL: usize = 48;
/// The caller, and whether the node agent allows some categories and needs no header `Metadata`.
const WAYS: [(&str, bool); 4] = [(BARE, false), (WEB, false), (BARE, true), (WEB, true)];

#[tokio::test]
async fn no_request_reaches_the_metadata_service_past_podid() {
    let entries = entries();
    assert!(entries.len() >= 200, "{}", entries.len());
    let mut wrong = Vec::new();
    let runs = WAYS.map(|(from, open)| run(&entries, from, open));
    let ways = futures::future::join_all(runs).await;
    for (n, entry) in entries.iter().enumerate() {
        let mut got: Vec<&str> = ways.iter().map(|way| way[n].as_str()).collect();
        if got.iter().all(|one| *one == got[0]) {
            got.truncate(1);
        }
        if got != entry.expected {
            let got = got.join(",");
            wrong.push(format!("{}: {got} | {}", entry.family, entry.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What each entry was answered.
async fn run(entries: &[Entry], from: &str, open: bool) -> Vec<String> {
    let rig = rig(|config| {
        config.pod_requests = 1_000_000;
        if open {
            config.metadata_header_required = false;
            config.allowed_categories = ["instance", "versions"].map(str::to_owned).into();
        }
    })
    .await;
    rig.upstream.forget();
    let outcomes = futures::stream::iter(entries)
        .map(|entry| exchange(&rig, from, entry))
        .buffered(PARALLEL)
        .collect()
        .await;
    let own = "&msi_res_id=%2Fsubscriptions%2Fs%2FresourceGroups%2Fr%2Fproviders%2FMicrosoft.ManagedIdentity%2FuserAssignedIdentities%2Freader HTTP/1.1\r\n";
    for seen in rig.upstream.seen() {
        let token = lenient::names_the_token_endpoint(seen.as_bytes());
        let (line, rest) = seen.split_once('\n').unwrap_or((&seen, ""));
        let ours = line.starts_with(&format!("GET {}", common::TOKEN))
            && seen.contains(own)
            && !lenient::names_the_token_endpoint(rest.as_bytes());
        assert!(!token || (ours && from == WEB), "reached: {seen:?}");
    }
    rig.end().await;
    outcomes
}

async fn exchange(rig: &Rig, from: &str, entry: &Entry) -> String {
    let to_head = entry.bytes.starts_with(b"HEAD");
    let answers = loop {
        let received = client::exchange(from, rig.listener, &entry.bytes, EXCHANGE_TIMEOUT).await;
        let answers = client::answers(&received, to_head);
        // Few requests a second are forwarded.
        if !answers.iter().any(|answer| answer.status == 429) {
            break answers;
        }
    };
    for answer in answers
        .iter()
        .filter(|answer| !to_head && answer.status != 200)
    {
        let body: Value = answer.json();
        let said = body["error"].is_string() && body["error_description"].is_string();
        let kind = answer.header("content-type").unwrap_or_default();
        assert!(
            said && kind.starts_with("application/json"),
            "{}: {answer:?}",
            entry.name
        );
        assert!(
            (400..600).contains(&answer.status),
            "{}: {answer:?}",
            entry.name
        );
    }
    let statuses: Vec<String> = answers
        .iter()
        .map(|answer| answer.status.to_string())
        .collect();
    match statuses.is_empty() {
        true => "closed".to_owned(),
        false => statuses.join("+"),
    }
}

#[test]
fn the_lenient_reader_sees_through_dresses() {
    for seen in [
        "GET /metadata/identity/oauth2/token",
        "GET /METADATA\\Identity%5coauth2%252ftoken",
        "GET /metadata/instance/..;x/identity%00/./oauth2//token",
        "GET /metadata%c0%afidentity%ef%bc%8foauth2/x/%2e%2e/token",
        "GET /metadata/instance HTTP/1.1\r\nX-Original-URL: /metadata/identity/oauth2/token",
    ] {
        assert!(lenient::names_the_token_endpoint(seen.as_bytes()), "{seen}");
    }
    let plain = b"GET /metadata/instance?api-version=2021-02-01 HTTP/1.1\r\nmetadata: true\r\n\r\n";
    assert!(!lenient::names_the_token_endpoint(plain));
}

/// Writes the corpus for libFuzzer to begin with.
#[test]
#[ignore = "writes files, for whoever fuzzes"]
fn seeds() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/request");
    std::fs::create_dir_all(folder).unwrap();
    for (n, entry) in entries().into_iter().enumerate() {
        std::fs::write(format!("{folder}/{n:03}"), entry.bytes).unwrap();
    }
}
