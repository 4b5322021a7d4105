//! `podid crds` as its user runs it.

use std::process::Command;

#[test]
fn crds_prints_the_four_definitions() {
    let out = Command::new(env!("CARGO_BIN_EXE_podid"))
        .arg("crds")
        .output()
        .unwrap();
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(text.matches("kind: CustomResourceDefinition").count(), 4);
    assert!(
        text.contains("spec.clientID is required"),
        "the rules that name a missing field are in it"
    );
}

#[test]
fn an_unknown_command_is_refused_with_the_usage() {
    let out = Command::new(env!("CARGO_BIN_EXE_podid"))
        .arg("crd")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("similar subcommand exists: 'crds'"));
}
