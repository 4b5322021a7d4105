//! Every command line of podid in the pages is one that it understands.

use std::process::{Command, Output};

use crate::pages::Page;

/// Whether the command line says `--help` at its end instead of refusing what comes before.
fn understood(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podid"))
        .args(line.split_whitespace().map(|word| word.trim_matches('\'')))
        .arg("--help")
        .env_remove("NODE_NAME")
        .output()
        .unwrap()
}

/// The arguments of podid in a command for a shell.
fn of_podid(command: &str) -> Option<&str> {
    let part = command.split([';', '|', '>', '&']).next()?.trim();
    part.strip_prefix("podid ")
        .or_else(|| part.strip_prefix("kubectl podid "))
}

#[test]
fn every_command_line_is_understood() {
    assert!(!understood("nmi --no-such-flag").status.success());
    assert!(
        !understood("nmi --assignment-wait=soon").status.success(),
        "values are not looked at"
    );
    let mut seen = 0;
    for page in Page::all() {
        let commands = page.commands();
        let spans = page.spans();
        let inline = spans
            .iter()
            .copied()
            // Those leave something to be filled in.
            .filter(|span| !span.contains(['…', '<']) && !span.contains("COMMAND"));
        for command in commands.iter().map(String::as_str).chain(inline) {
            let Some(line) = of_podid(command) else {
                continue;
            };
            seen += 1;
            let output = understood(line);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {command}\n{said}", page.name);
        }
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn every_flag_is_one_of_podids() {
    let known = std::fs::read_to_string(crate::pages::folder().join("flags.md")).unwrap();
    let is_known = |flag: &str| {
        known.contains(&format!("| `--{flag}=")) || known.contains(&format!("| `--{flag}` "))
    };
    // Flags without effect are not listed, and taken.
    let is_taken = |flag: &str| {
        ["mic", "nmi"].iter().any(|role| {
            ["=1", "=true", "=x"].iter().any(|value| {
                let line = format!("{role} --{flag}{value}");
                understood(&line).status.success()
            })
        })
    };
    let mut unknown = Vec::new();
    for page in Page::all() {
        let flags = page
            .spans()
            .into_iter()
            .filter_map(|span| span.strip_prefix("--"));
        // helm's.
        for flag in flags.filter(|flag| !flag.starts_with("set ")) {
            let name = flag.split(['=', ' ', '[', '/']).next().unwrap();
            if !is_known(name) && !is_taken(name) {
                unknown.push(format!("{}: --{flag}", page.name));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}
