//! What people see of podid by kubectl.

use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::json;

use crate::world::{World, until};

impl World {
    async fn kubectl(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = self.api.run_kubectl(&arguments, "").await.unwrap();
        assert!(output.status.success(), "kubectl {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_answers_the_first_question() {
    let world = World::new().await;
    let [good, gone] = &world.identities;
    world.azure.delete_identity(&gone.id);
    for (name, identity) in [("good", good), ("gone", gone)] {
        let spec = json!({ "type": 0, "resourceID": identity.id, "clientID": identity.client_id });
        world
            .create(
                "AzureIdentity",
                json!({ "metadata": { "name": name }, "spec": spec }),
            )
            .await;
        let spec = json!({ "azureIdentity": name, "selector": name });
        world
            .create(
                "AzureIdentityBinding",
                json!({ "metadata": { "name": name }, "spec": spec }),
            )
            .await;
        world.pod(name, name).await;
    }
    let mut mic = world.start(&[]);
    until!(
        mic,
        world
            .kubectl("get azureidentity")
            .await
            .contains("IdentityNotFound")
    );
    until!(
        mic,
        world.kubectl("get azid good").await.contains("Attached")
    );
    let table = world.kubectl("get azid").await;
    let head = table.lines().next().unwrap();
    for column in ["NAME", "TYPE", "CLIENTID", "READY", "REASON", "AGE"] {
        assert!(head.contains(column), "{table}");
    }
    let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(
        line("good").contains("True") && line("gone").contains("False"),
        "{table}"
    );
    assert!(
        world
            .kubectl("get azid gone -o wide")
            .await
            .contains("was not found")
    );

    until!(mic, world.kubectl("get azas").await.contains("Assigned"));
    let table = world.kubectl("get azas -o wide").await;
    let line = table
        .lines()
        .find(|line| line.starts_with("gone-"))
        .unwrap();
    assert!(
        line.contains("Created") && line.contains("was not found"),
        "{table}"
    );
    assert!(world.kubectl("get azidb").await.contains("SELECTOR"));
    assert!(
        world
            .kubectl("get podid")
            .await
            .contains("azureidentitybinding.aadpodidentity.k8s.io/good")
    );

    until!(
        mic,
        world
            .kubectl("describe pod gone")
            .await
            .contains("IdentityNotAttached")
    );
    assert!(
        world
            .kubectl("describe azureidentity gone")
            .await
            .contains("IdentityNotFound")
    );
    let explained = world.kubectl("explain azureidentity.spec.resourceID").await;
    assert!(
        explained.contains("The ARM id of the user-assigned identity"),
        "{explained}"
    );
    assert!(
        world
            .kubectl("explain azidb.spec.weight")
            .await
            .contains("highest weight")
    );

    // The condition speaks of the object as it is now.
    let identity = world.ours("AzureIdentity").get("good").await.unwrap();
    let condition = &identity.data["status"]["conditions"][0];
    assert_eq!(
        condition["observedGeneration"],
        json!(identity.metadata.generation)
    );
    for part in ["type", "status", "reason", "message", "lastTransitionTime"] {
        assert!(
            condition[part]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{condition}"
        );
    }
    mic.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn podid_is_a_plugin_of_kubectl() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    symlink(
        env!("CARGO_BIN_EXE_podid"),
        folder.path().join("kubectl-podid"),
    )
    .unwrap();
    let path = format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new(world.api.kubectl())
        .args(["podid", "status"])
        .env("PATH", path)
        .env("KUBECONFIG", world.api.kubeconfig())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("nobody leads: is podid mic running?"),
        "{text}"
    );
    assert!(!output.status.success());
}
