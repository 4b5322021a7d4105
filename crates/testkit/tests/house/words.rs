//! The table "Where is …" of CONTRIBUTING.md: each word leads to the files that it names, and to no other. A search for the word in
//! the first sentences of the modules' docs finds exactly these files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use podid_testkit::tools::repository;

use crate::sources;

const HEADING: &str = "## Where is …";

/// What a newcomer looks for, so that the table cannot shrink. A row may have several words for one thing.
const WORDS: [&str; 27] = [
    "single flight",
    "rate limit",
    "token bucket",
    "log limit",
    "debounce",
    "coalesce",
    "bisect",
    "passthrough",
    "hop-by-hop",
    "sovereign cloud",
    "national cloud",
    "work queue",
    "informer",
    "reflector",
    "leader election",
    "hot restart",
    "takeover",
    "graceful drain",
    "percent-decoding",
    "object id",
    "service principal",
    "drift",
    "ownership record",
    "quarantine",
    "prefetch",
    "attestation",
    "startup taint",
];

#[test]
fn each_word_leads_to_its_files_and_each_file_says_its_word_first() {
    let openings = openings();
    let contributing = std::fs::read_to_string(repository().join("CONTRIBUTING.md")).unwrap();
    let table = rows(&contributing);
    let mut wrong = Vec::new();
    for word in WORDS {
        if !table.contains_key(word) {
            wrong.push(format!("{word}: not in the table"));
        }
    }
    for (word, named) in &table {
        let found = says(&openings, word);
        for file in named.difference(&found) {
            let opening = openings.get(*file).map_or("no such file", String::as_str);
            wrong.push(format!("{word}: not said at first by {file}: {opening}"));
        }
        for file in found.difference(named) {
            wrong.push(format!("{word}: also said at first by {file}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "the table \"Where is …\" of CONTRIBUTING.md and the files' first sentences differ:\n{}",
        wrong.join("\n")
    );
}

/// The files whose first sentence has the word.
fn says<'a>(openings: &'a BTreeMap<String, String>, word: &str) -> BTreeSet<&'a str> {
    let word = normal(word);
    let has = |(_, opening): &(&String, &String)| normal(opening).contains(&word);
    let found = openings.iter().filter(has);
    found.map(|(file, _)| file.as_str()).collect()
}

/// The words of the table, each with the files of its row.
fn rows(page: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let (_, section) = page.split_once(HEADING).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut table = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [words, files] = cells[..] else {
            panic!("not two columns: {line}")
        };
        let files: BTreeSet<&str> = files.split('`').skip(1).step_by(2).collect();
        if !files.is_empty() {
            table.extend(words.split(", ").map(|word| (word, files.clone())));
        }
    }
    table
}

/// The first sentence of each module's `//!`, by the file's path in the repository; tests are not what somebody looks for.
fn openings() -> BTreeMap<String, String> {
    let crates = std::fs::read_dir(repository().join("crates")).unwrap();
    let mut found = BTreeMap::new();
    for entry in crates {
        let name = entry.unwrap().file_name().into_string().unwrap();
        for (file, text) in sources(&repository().join("crates").join(&name).join("src")) {
            let of_tests = Path::new(&file)
                .iter()
                .any(|part| part == "tests" || part == "tests.rs");
            let opening = opening(&text);
            if !of_tests && !opening.is_empty() {
                found.insert(format!("crates/{name}/src/{file}"), opening);
            }
        }
    }
    found
}

/// The first sentence of a module's docs.
fn opening(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    let lines: Vec<&str> = lines
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let paragraph = lines.join(" ");
    match paragraph.split_once(". ") {
        Some((first, _)) => first.to_owned(),
        None => paragraph,
    }
}

/// As somebody types it: without capitals, hyphens and backticks.
fn normal(text: &str) -> String {
    text.to_lowercase().replace('-', " ").replace('`', "")
}

#[test]
fn a_first_sentence_ends_at_its_full_stop_or_paragraph() {
    for (text, first) in [
        (
            "//! Rate limit\n//! per pod. It guards neighbours.\n",
            "Rate limit per pod",
        ),
        (
            "//! Rate limit per pod.\n//!\n//! More.\n",
            "Rate limit per pod.",
        ),
        ("use x;\n//! late\n", ""),
    ] {
        assert_eq!(opening(text), first);
    }
}

#[test]
fn the_rows_of_the_table_are_read() {
    let page = format!(
        "{HEADING}\n\n| word | file |\n| --- | --- |\n| hot restart, takeover | `a.rs`, `b.rs` |\n\n## Next\n| x | `c.rs` |\n"
    );
    let expected = BTreeSet::from(["a.rs", "b.rs"]);
    assert_eq!(
        rows(&page),
        BTreeMap::from([("hot restart", expected.clone()), ("takeover", expected)])
    );
}
