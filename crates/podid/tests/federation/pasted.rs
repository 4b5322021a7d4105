//! The command of the condition: what a shell makes of it, done at Azure, makes the identity ready.

use std::collections::BTreeMap;
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{MOVING, World};

/// The words of the `az` command in a text, as a shell splits them.
fn pasted(text: &str) -> Vec<String> {
    let (_, command) = text.split_once(": az ").unwrap();
    let script = format!("az() {{ printf '%s\\n' \"$@\"; }}\naz {command}");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{text}: {output:?}"
    );
    let words = String::from_utf8(output.stdout).unwrap();
    words.lines().map(str::to_owned).collect()
}

/// The reason and the message of the condition.
async fn condition(world: &World) -> (String, String) {
    let identity = world.custom("azureidentities", MOVING).await;
    let condition = &identity["status"]["conditions"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&condition["reason"]), text(&condition["message"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_of_the_condition_makes_the_identity_ready() {
    let world = World::build().await;
    world.grant_attached(MOVING).await;
    let has_command = async || condition(&world).await.1.contains(": az identity ");
    world.until("the command", has_command).await;
    let (reason, message) = condition(&world).await;
    assert!(
        matches!(
            reason.as_str(),
            "CredentialMissing" | "CredentialPropagating"
        ),
        "{reason}"
    );
    let words = pasted(&message);
    let (command, flags) = words.split_at(3);
    assert_eq!(command, ["identity", "federated-credential", "create"]);
    let flags: BTreeMap<&str, &str> = flags
        .chunks(2)
        .map(|pair| (pair[0].as_str(), pair[1].as_str()))
        .collect();
    let subject = "system:serviceaccount:podid-identities:shop.moving";
    assert_eq!(flags["--subject"], subject);
    assert_eq!(flags["--issuer"], world.api.issuer());
    let id = format!(
        "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{}",
        flags["--subscription"], flags["--resource-group"], flags["--identity-name"]
    );
    let named = world.azure.resource_id(MOVING);
    assert!(id.eq_ignore_ascii_case(&named), "{id} {named}");
    let path = format!(
        "{id}/federatedIdentityCredentials/{}?api-version=2023-01-31",
        flags["--name"]
    );
    let credential = json!({ "properties": {
        "issuer": flags["--issuer"], "subject": flags["--subject"], "audiences": [flags["--audiences"]],
    } });
    world
        .azure
        .on_resource(Method::PUT, &path, Some(credential))
        .await;
    world
        .until("ready", async || condition(&world).await.0 == "Federated")
        .await;
}
