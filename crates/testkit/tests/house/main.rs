//! Repository-wide checks of the source itself: the table "Where is …" of CONTRIBUTING.md, and cycles between the folders of a crate.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod graph;
mod rooms;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

/// The text of every Rust file below a folder, by its path from there.
fn sources(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap();
                found.insert(name.to_owned(), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(!found.is_empty(), "no Rust file in {}", folder.display());
    found
}
