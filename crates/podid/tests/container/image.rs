//! What is in the images.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use podid_testkit::tools;
use serde_json::Value;

use crate::world::{CERTIFICATES, tag};

/// The files of an image, for as long as the value lives.
struct Files {
    image: String,
    root: PathBuf,
}

impl Files {
    fn of(role: &str) -> Self {
        let image = image(role);
        let root = says(&["image", "mount", &image]);
        let root = PathBuf::from(root.trim());
        Self { image, root }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = engine(&["image", "unmount", &self.image]);
    }
}

fn image(role: &str) -> String {
    format!("localhost/podid/{role}:{}", tag())
}

fn engine(arguments: &[&str]) -> Output {
    let output = Command::new(tools::engine()).args(arguments).output();
    output.unwrap()
}

fn says(arguments: &[&str]) -> String {
    let output = engine(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program of an image's, without a network and without any right.
fn run(role: &str, program: &str, arguments: &[&str]) -> String {
    let image = image(role);
    let entry = format!("--entrypoint={program}");
    let confined = "run --rm --pull=never --network=none --read-only --read-only-tmpfs=false --cap-drop=ALL \
                    --security-opt=no-new-privileges --user=65532:65532";
    let confined: Vec<&str> = confined.split_whitespace().collect();
    says(&[&confined[..], &[&entry, &image], arguments].concat())
}

fn files_below(root: &Path, folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(root, &path, found);
        } else {
            let path = path.strip_prefix(root).unwrap();
            found.insert(format!("/{}", path.display()));
        }
    }
}

#[test]
fn mics_image_has_the_program_its_parts_list_and_certificates_and_nothing_else() {
    let files = Files::of("mic");
    let mut found = BTreeSet::new();
    files_below(&files.root, &files.root, &mut found);
    assert_eq!(
        found,
        [CERTIFICATES, "/podid", "/podid.cdx.json"]
            .map(str::to_owned)
            .into()
    );
    let certificates = std::fs::read_to_string(files.at(CERTIFICATES)).unwrap();
    let count = certificates.matches("BEGIN CERTIFICATE").count();
    assert!(count > 100, "{count} public authorities");
}

#[test]
fn the_program_is_static_and_runs_where_nothing_else_is() {
    for role in ["mic", "nmi"] {
        let files = Files::of(role);
        let mut readelf = Command::new("readelf");
        readelf
            .args(["--wide", "--program-headers", "--dynamic"])
            .arg(files.at("/podid"));
        let told = String::from_utf8(readelf.output().unwrap().stdout).unwrap();
        assert!(told.contains("LOAD"), "{told}");
        assert!(
            !told.contains("INTERP") && !told.contains("NEEDED"),
            "{told}"
        );
    }
    let help = run("mic", "/podid", &["--help"]);
    assert!(help.contains("Usage: podid"), "{help}");
    // What runs on nodes has no simulators.
    assert!(!help.contains("demo"), "{help}");
    let definitions = run("mic", "/podid", &["crds"]);
    assert_eq!(
        definitions
            .matches("kind: CustomResourceDefinition")
            .count(),
        4
    );
}

#[test]
fn nmis_image_has_the_tools_by_which_it_changes_the_nodes_network() {
    for (tool, argument, says) in [
        ("nft", "--version", "nftables"),
        ("iptables-nft", "--version", "nf_tables"),
        ("iptables-nft-restore", "--version", "nf_tables"),
        ("iptables-legacy", "--version", "legacy"),
        ("iptables-legacy-restore", "--version", "legacy"),
        ("ip", "-V", "iproute2"),
        ("conntrack", "--version", "conntrack"),
        ("modprobe", "--version", "kmod"),
    ] {
        let said = run("nmi", tool, &[argument]);
        assert!(said.contains(says), "{tool}: {said}");
    }
}

#[test]
fn by_default_the_images_run_their_part_and_mics_runs_as_nobody() {
    for (role, user) in [("mic", "65532:65532"), ("nmi", "")] {
        let inspected = says(&["image", "inspect", &image(role)]);
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        let config = &inspected[0]["Config"];
        assert_eq!(config["Entrypoint"], serde_json::json!(["/podid", role]));
        assert_eq!(config["User"].as_str().unwrap_or_default(), user);
    }
}

/// cargo's own word on what is built in, from `Cargo.lock`.
fn built_in() -> BTreeSet<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(tools::repository());
    let line = "tree --locked --offline --package podid --no-default-features --edges normal --prefix none --format {p}";
    let output = cargo.args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let part = |line: &str| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?);
        Some(format!("{name}@{}", version.trim_start_matches('v')))
    };
    text.lines().filter_map(part).collect()
}

#[test]
fn the_parts_list_names_exactly_what_is_built_in() {
    let lists = ["mic", "nmi"].map(|role| {
        let files = Files::of(role);
        std::fs::read_to_string(files.at("/podid.cdx.json")).unwrap()
    });
    assert_eq!(lists[0], lists[1]);
    let list: Value = serde_json::from_str(&lists[0]).unwrap();
    assert_eq!(list["bomFormat"], "CycloneDX");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let part = |part: &Value| format!("{}@{}", text(&part["name"]), text(&part["version"]));
    let components = list["components"].as_array().unwrap();
    let mut named: BTreeSet<String> = components.iter().map(part).collect();
    named.insert(part(&list["metadata"]["component"]));
    assert_eq!(named, built_in());
    for component in components {
        let is_ours = text(&component["name"]).starts_with("podid-");
        let has_hash = component["hashes"].is_array();
        assert_ne!(is_ours, has_hash, "{component}");
    }
    // Where it was built is nobody's business.
    assert!(!lists[0].contains("/src/"), "{}", lists[0]);
}
