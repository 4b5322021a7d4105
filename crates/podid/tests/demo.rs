//! `podid demo` as its user runs it.

use std::process::Command;

#[test]
fn every_step_of_the_demo_happens() {
    let out = Command::new(env!("CARGO_BIN_EXE_podid"))
        .args(["demo", "--output", "json"])
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(out.status.success(), "{told:#}");
    assert_eq!(told["ok"], true);
    assert_eq!(told["done"], told["of"]);
    let steps = told["steps"].as_array().unwrap();
    assert!(steps.len() >= 12);
    assert!(steps.iter().all(|step| step["detail"].is_string()));
    let seconds = told["seconds"].as_f64().unwrap();
    assert!(seconds < 15.0, "the demo took {seconds} s");
}
