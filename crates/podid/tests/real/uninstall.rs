//! Uninstall: `helm uninstall` while pods have identities leaves nothing in Azure and nothing that holds a namespace; and what is said
//! where the controller cannot do that.

use serde_json::json;

use crate::guide::Stage;

const INSTALL: &str = "helm upgrade --install podid charts/podid --namespace podid --create-namespace \
    --set image.repository=example.azurecr.io/podid";

/// podid is installed, and two pods have their identities, of which somebody else attached one.
async fn installed() -> Stage {
    let mut stage = Stage::bare().await;
    let world = &stage.world;
    world.azure.attach(&world.set, &world.identities[1]);
    for (name, identity) in ["one", "two"].into_iter().zip(&world.identities) {
        let spec = json!({ "type": 0, "resourceID": identity.id, "clientID": identity.client_id });
        let identity = json!({ "metadata": { "name": name }, "spec": spec });
        world.create("AzureIdentity", identity).await;
        let spec = json!({ "azureIdentity": name, "selector": name });
        let binding = json!({ "metadata": { "name": name }, "spec": spec });
        world.create("AzureIdentityBinding", binding).await;
        world.pod(name, name).await;
    }
    stage.run(INSTALL).await;
    let assigned = async |world: &crate::world::World| {
        let all = world.assignments().await;
        all.len() == 2 && all.iter().all(|(.., state)| state == "Assigned")
    };
    stage.until("assigned", assigned).await;
    assert_eq!(stage.world.azure.attached(&stage.world.set).len(), 2);
    stage
}

/// The names of podid's objects that are left in the cluster.
async fn left(stage: &mut Stage) -> String {
    let kinds = "deployment,daemonset,job,configmap,serviceaccount,role,rolebinding";
    let own = format!("kubectl -n podid get {kinds} -o name | grep podid || true");
    let wide = "kubectl get clusterrole,clusterrolebinding -o name | grep podid- || true";
    let (own, wide) = (stage.run(&own).await, stage.run(wide).await);
    String::from_utf8([own.stdout, wide.stdout].concat()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_uninstall_leaves_nothing_attached() {
    let mut stage = installed().await;
    stage.run("helm uninstall podid --namespace podid").await;
    assert_eq!(stage.world.assignments().await, []);
    let others = &stage.world.identities[1].id;
    let attached = stage.world.azure.attached(&stage.world.set);
    assert_eq!(attached.len(), 1);
    assert!(attached[0].eq_ignore_ascii_case(others), "{attached:?}");
    assert_eq!(left(&mut stage).await, "");
    // A new installation serves the same pods again.
    stage.run(INSTALL).await;
    stage
        .until("again", async |w| w.assignments().await.len() == 2)
        .await;
}

/// Azure refuses the controller: the finalizers go all the same, and what stays attached is said.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_detached_is_said_and_holds_no_namespace() {
    let mut stage = installed().await;
    stage.world.azure.inject(podid_sim::azure::Fault {
        service: podid_sim::azure::Service::Arm,
        method: Some("PATCH".to_owned()),
        path: String::new(),
        action: podid_sim::azure::Action::Answer {
            status: 403,
            body: json!({ "error": { "code": "AuthorizationFailed", "message": "no" } }),
            retry_after: None,
        },
        times: u32::MAX,
    });
    let said = stage
        .run("! podid detach-all --namespace=podid --timeout=5s 2>&1")
        .await;
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("stay attached in Azure"), "{said}");
    assert!(said.contains("virtualMachineScaleSets/pool"), "{said}");
    let [one, two] = [0, 1].map(|n| stage.world.identities[n].id.to_lowercase());
    let said = said.to_lowercase();
    assert!(said.contains(&one) && !said.contains(&two), "{said}");
    assert_eq!(stage.world.assignments().await, []);
    // Without a controller as well.
    stage
        .run("kubectl -n podid delete deployment podid-mic")
        .await;
    let again = stage.run("! podid detach-all 2>&1").await;
    let again = String::from_utf8(again.stdout).unwrap();
    assert!(again.contains("stay attached in Azure"), "{again}");
}
