//! Flag reference `docs/flags.md`, generated from the command line's own definitions; a test compares the two.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use super::Cli;

const HEAD: &str = "# Flags\n\nEvery flag of every command, as `podid COMMAND --help` shows them. After `podid mic` and `podid nmi` one dash works as well as two.\n";

/// The page.
fn page() -> String {
    let mut page = HEAD.to_owned();
    for command in Cli::command().get_subcommands() {
        describe("podid", command, &mut page);
    }
    page
}

fn describe(before: &str, command: &clap::Command, page: &mut String) {
    let name = format!("{before} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string);
    let _ = write!(page, "\n## `{name}`\n\n{}\n", about.unwrap_or_default());
    let flags: Vec<_> = command
        .get_arguments()
        .filter(|flag| !flag.is_hide_set() && flag.get_long().is_some_and(|long| long != "help"))
        .collect();
    if !flags.is_empty() {
        page.push_str("\n| flag | default | meaning |\n| --- | --- | --- |\n");
    }
    for flag in flags {
        let _ = writeln!(
            page,
            "| `--{}` | {} | {} |",
            usage(flag),
            default(flag),
            meaning(flag)
        );
    }
    for command in command.get_subcommands() {
        describe(&name, command, page);
    }
}

fn usage(flag: &clap::Arg) -> String {
    let long = flag.get_long().unwrap_or_default();
    let takes_value = flag.get_action().takes_values();
    match flag.get_value_names().filter(|_| takes_value) {
        Some([value, ..]) => format!("{long}={value}"),
        _ => long.to_owned(),
    }
}

fn default(flag: &clap::Arg) -> String {
    let values: Vec<_> = flag
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let shown = flag.get_action().takes_values() && !values.is_empty();
    if shown {
        format!("`{}`", values.join(","))
    } else {
        String::new()
    }
}

fn meaning(flag: &clap::Arg) -> String {
    let mut text = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let values: Vec<_> = flag
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    // What is true or false needs no list.
    if values.len() > 1 && flag.get_action().takes_values() && values != ["true", "false"] {
        let _ = write!(text, " ({})", values.join(", "));
    }
    if let Some(variable) = flag.get_env() {
        let _ = write!(text, " [env: {}]", variable.to_string_lossy());
    }
    text.replace('|', "\\|")
}

/// `PODID_UPDATE=1 cargo test -p podid reference` writes the page anew.
#[test]
fn the_page_is_as_the_flags_are() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/flags.md");
    if std::env::var_os("PODID_UPDATE").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == page(),
        "docs/flags.md is out of date; run PODID_UPDATE=1 cargo test -p podid reference"
    );
}
