//! Values of the older charts of AAD Pod Identity, and of umbrella charts that have podid as a dependency: those that are harmless
//! are taken.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::cluster::{IMAGES, chart, find, rendered, template, text, values};

/// What helm prints about values that it drops.
const DROPPED: &str = "warning:";

#[tokio::test]
async fn every_default_of_every_older_chart_is_taken() {
    let default = rendered(&["--set", IMAGES]).await;
    for file in ["1.5-values.yaml", "2.0-values.yaml"] {
        let given = ["-f", &values(file), "--set", IMAGES];
        let older = rendered(&given).await;
        assert_eq!(older, default, "{file}");
    }
}

#[tokio::test]
async fn the_old_spelling_of_the_security_switch_does_not_open_namespaces() {
    let taken = rendered(&["--set", IMAGES, "--set", "forceNameSpaced=true"]).await;
    assert_eq!(taken, rendered(&["--set", IMAGES]).await);
}

#[tokio::test]
async fn identities_in_a_list_are_those_of_the_map() {
    let identity = json!({
        "name": "reader", "namespace": "shop", "type": 0, "resourceID": "/r",
        "clientID": "6f1c0000-0000-0000-0000-0000000022ab",
        "binding": { "name": "b", "selector": "s" },
    });
    let list = format!("azureIdentities={}", json!([identity]));
    let output = template(&["--set", IMAGES, "--set-json", &list]).await;
    assert!(output.status.success(), "{}", text(&output));
    let map = format!("azureIdentities={}", json!({ "reader": identity }));
    let of_map = template(&["--set", IMAGES, "--set-json", &map]).await;
    assert_eq!(output.stdout, of_map.stdout);
    let nameless = json!([{ "clientID": "6f1c0000-0000-0000-0000-0000000022ab", "binding": { "selector": "s" } }]);
    let list = format!("azureIdentities={nameless}");
    let output = template(&["--set", IMAGES, "--set-json", &list]).await;
    assert!(text(&output).contains("'name'"), "{}", text(&output));
}

/// Helm gives a dependency the value of its condition.
#[tokio::test]
async fn an_umbrella_chart_with_a_condition_renders_podid() {
    let folder = tempfile::tempdir().unwrap();
    let at = |file: &str| folder.path().join(file);
    std::fs::create_dir(at("charts")).unwrap();
    std::os::unix::fs::symlink(chart(), at("charts/podid")).unwrap();
    let umbrella = "apiVersion: v2\nname: umbrella\nversion: 0.1.0\ndependencies:\n  - name: podid\n    version: '*'\n    condition: podid.enabled\n";
    std::fs::write(at("Chart.yaml"), umbrella).unwrap();
    let render = |enabled: bool| {
        let given = json!({ "podid": { "enabled": enabled, "image": { "repository": "example.azurecr.io/podid" } } });
        std::fs::write(at("values.yaml"), given.to_string()).unwrap();
        let mut helm = Command::new(podid_testkit::tools::helm().unwrap());
        helm.args(["template", "umbrella", "--kube-version=1.34.2"]);
        helm.arg(folder.path()).env("HOME", folder.path());
        helm.stdin(Stdio::null()).output()
    };
    let objects = |output: &std::process::Output| -> Vec<Value> {
        assert!(output.status.success(), "{}", text(output));
        assert!(!text(output).contains(DROPPED), "{}", text(output));
        crate::cluster::objects(&String::from_utf8_lossy(&output.stdout))
    };
    let on = objects(&render(true).await.unwrap());
    assert!(find(&on, "DaemonSet", "podid-nmi").is_some());
    let off = objects(&render(false).await.unwrap());
    assert!(off.is_empty(), "{off:?}");
}
