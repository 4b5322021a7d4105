//! Cycles between rooms: a room is a top folder of a crate's source, `root` the files beside them. Files of one room may depend on
//! each other in a circle; a circle through two rooms makes one room of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use podid_testkit::tools::repository;

use crate::graph::Graph;
use crate::sources;

#[test]
fn no_cycle_of_files_spans_two_rooms() {
    let found: Vec<String> = ["nmi", "mic"]
        .into_iter()
        .flat_map(|name| {
            let source = repository().join("crates").join(name).join("src");
            described(&Graph::of(&sources(&source)))
                .into_iter()
                .map(move |cycle| format!("crates/{name}/src:\n{cycle}"))
        })
        .collect();
    assert!(
        found.is_empty(),
        "files of several rooms need each other; move what they share into the room below:\n{}",
        found.join("\n")
    );
}

fn room(file: &str) -> &str {
    file.split_once('/').map_or("root", |(room, _)| room)
}

/// Each cycle that spans rooms, by what leads from one room to another.
fn described(graph: &Graph) -> Vec<String> {
    let spans = |cycle: &BTreeSet<&str>| {
        let rooms: BTreeSet<&str> = cycle.iter().map(|file| room(file)).collect();
        rooms.len() > 1
    };
    let describe = |cycle: BTreeSet<&str>| {
        let mut text = String::new();
        for from in &cycle {
            for to in graph.direct(from) {
                if cycle.contains(to) && room(from) != room(to) {
                    let path = graph.path(from, to);
                    writeln!(text, "  {from} needs {to} ({path})").unwrap();
                }
            }
        }
        text
    };
    graph
        .cycles()
        .into_iter()
        .filter(spans)
        .map(describe)
        .collect()
}

/// A made-up crate of these files; the rest of its modules are empty.
fn made_up(files: &[(&str, &str)]) -> Vec<String> {
    let mut all: BTreeMap<String, String> = [
        ("lib.rs", "mod config; mod http; mod token;"),
        ("config.rs", ""),
        ("http/mod.rs", "mod server; mod response;"),
        ("http/server.rs", ""),
        ("http/response.rs", ""),
        (
            "token/mod.rs",
            "mod cache; mod source; pub use cache::Cache;",
        ),
        ("token/cache.rs", "pub struct Cache;"),
        ("token/source.rs", ""),
    ]
    .into_iter()
    .map(|(file, text)| (file.to_owned(), text.to_owned()))
    .collect();
    for (file, text) in files {
        all.insert((*file).to_owned(), (*text).to_owned());
    }
    described(&Graph::of(&all))
}

#[test]
fn a_cycle_between_rooms_is_found_with_its_files() {
    // Directly, by a re-export, by a path without `use`, by a macro, and over a file of the root.
    let back = ("token/cache.rs", "use crate::http::response::Response;");
    for there in [
        "use crate::token::cache::Cache;",
        "use crate::token::Cache;",
        "fn f() -> super::super::token::Cache { todo!() }",
        "fn f() { println!(\"{}\", crate::token::Cache::NAME) }",
    ] {
        let found = made_up(&[("http/response.rs", there), back]);
        assert_eq!(found.len(), 1, "{there}: {found:?}");
        for file in ["http/response.rs", "token/cache.rs"] {
            assert!(found[0].contains(file), "{found:?}");
        }
    }
    let found = made_up(&[
        ("http/response.rs", "use crate::config::Config;"),
        ("config.rs", "use crate::http::response::Response;"),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn what_is_no_cycle_between_rooms_is_let_be() {
    let one_way = ("http/response.rs", "use crate::token::Cache;");
    for other in [
        // Another file of the same room, and a cycle within a room.
        ("token/source.rs", "use crate::http::response::Response;"),
        (
            "token/mod.rs",
            "mod cache; mod source; pub use cache::Cache; pub use source::S;",
        ),
        ("http/server.rs", "use super::response::Response;"),
        // Tests may use everything.
        (
            "token/cache.rs",
            "#[cfg(test)] mod tests { use crate::http::response::Response; }",
        ),
        (
            "token/cache.rs",
            "#[cfg(test)] use crate::http::response::Response;",
        ),
        // Other crates' modules of the same name.
        ("token/cache.rs", "use http::response::Response;"),
    ] {
        let found = made_up(&[one_way, other]);
        assert!(found.is_empty(), "{other:?}: {found:?}");
    }
}
