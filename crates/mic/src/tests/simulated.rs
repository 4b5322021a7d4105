//! The controller with podid's client of Azure Resource Manager against the simulated Azure, in real time.

use podid_azure::arm::Arm;
use podid_azure::config::Credential;
use podid_azure::endpoints::Endpoints;
use podid_sim::azure::{Azure, Control, HostKind, Identity, Role};

use super::*;

const GROUP: &str = "nodes";

/// A running simulated Azure and a client of it that may change its hosts.
async fn simulated(stop: &CancellationToken) -> (Control, Arm, String, JoinHandle<()>) {
    let sim = Azure::bind(podid_sim::azure::Config {
        patch_latency: Duration::from_millis(50),
        ..podid_sim::azure::Config::default()
    })
    .await
    .unwrap();
    let control = sim.control();
    let (client_id, principal) = control.create_application("secret");
    let scope = format!(
        "/subscriptions/{}/resourceGroups/{GROUP}",
        control.subscription()
    );
    control.assign_role(&principal, Role::VirtualMachineContributor, &scope);
    let at = |address: SocketAddr| format!("http://{address}").parse().unwrap();
    let endpoints = Endpoints {
        imds: at(sim.arm()),
        authority: at(sim.entra()),
        arm: at(sim.arm()),
        arm_audience: "https://management.azure.com/".to_owned(),
    };
    let credential = Credential::Secret {
        tenant: control.tenant().into(),
        client_id: ClientId::parse(&client_id).unwrap(),
        secret: Arc::new("secret".to_owned().into()),
    };
    let arm = Arm::new(&endpoints, credential, None).unwrap();
    let stop = stop.clone();
    let running = tokio::spawn(async move { sim.run(stop).await.unwrap() });
    (control, arm, principal, running)
}

struct Town {
    world: World,
    azure: Control,
}

impl Town {
    fn bind(&self, name: &str, generation: usize, resource: &str, client: &str) {
        self.world.api.put(
            "azureidentities",
            json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
                "metadata": { "namespace": "ns", "name": name, "generation": generation },
                "spec": { "type": 0, "resourceID": resource, "clientID": client },
            }),
        );
        self.world.api.put(
            "azureidentitybindings",
            json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
                "metadata": { "namespace": "ns", "name": name },
                "spec": { "azureIdentity": name, "selector": name },
            }),
        );
    }

    fn bind_real(&self, identity: &Identity) {
        let name = identity.id.rsplit('/').next().unwrap();
        self.bind(name, 1, &identity.id, &identity.client_id);
    }

    fn attached(&self, host: &str) -> Vec<String> {
        let ids = self.azure.attached(host);
        let name = |id: &String| id.rsplit('/').next().unwrap_or_default().to_owned();
        let mut names: Vec<_> = ids.iter().map(name).collect();
        names.sort();
        names
    }

    fn status(&self, pod: &str, identity: &str) -> Value {
        let name = format!("{pod}-ns-{identity}");
        let object = self.world.api.get("azureassignedidentities", "ns", &name);
        object.map(|o| o["status"].clone()).unwrap_or_default()
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !so(self) {
            assert!(
                Instant::now() < deadline,
                "never: {what}; {:#?}",
                self.world.objects()
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn good_identities_are_attached_and_bad_ones_say_what_is_missing() {
    let stop = CancellationToken::new();
    let (azure, arm, principal, running) = simulated(&stop).await;
    let set = azure.create_host(HostKind::ScaleSet, GROUP, "pool1");
    let machine = azure.create_host(HostKind::VirtualMachine, GROUP, "vm-1");
    let [good, lone, kubelet] =
        ["good", "lone", "kubelet"].map(|name| azure.create_identity("apps", name));
    azure.assign_role(&principal, Role::ManagedIdentityOperator, &good.id);
    azure.attach(&set, &kubelet);
    let town = Town {
        world: World::new(),
        azure,
    };
    for (node, id) in [
        ("n1", format!("azure://{set}/virtualMachines/7")),
        ("n2", format!("azure://{machine}")),
    ] {
        town.world.api.put("nodes", json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": node }, "spec": { "providerID": id },
        }));
    }
    town.bind_real(&good);
    town.bind_real(&lone);
    let typo = good.id.replace("good", "typo");
    town.bind("typo", 1, &typo, &client_id(1));
    for (pod, node, selector) in [
        ("a", "n1", "good"),
        ("b", "n1", "lone"),
        ("c", "n1", "typo"),
        ("d", "n2", "good"),
    ] {
        town.world.pod(pod, node, selector);
    }
    let mut config = config("mic-0");
    config.linger = Duration::ZERO;
    config.settle = Duration::from_millis(20);
    config.retry_interval = Duration::from_millis(50);
    let mic = Mic::new(config, town.world.api.client(), Arc::new(arm));
    let listeners = mic.bind().await.unwrap();
    let mic = tokio::spawn(mic.run(listeners, stop.clone()));

    town.until("the good one on both hosts", |t| {
        t.attached(&set) == ["good", "kubelet"]
            && t.attached(&machine) == ["good"]
            && t.world.assigned() == 2
    })
    .await;
    town.until("both reasons", |t| {
        let text = |pod, identity| t.status(pod, identity)["message"].to_string();
        text("b", "lone").contains("Managed Identity Operator")
            && !text("c", "typo").is_empty()
            && text("c", "typo") != "null"
    })
    .await;

    town.azure
        .assign_role(&principal, Role::ManagedIdentityOperator, &lone.id);
    town.until("the role is noticed", |t| {
        t.status("b", "lone")["status"] == "Assigned"
    })
    .await;
    for pod in ["a", "b", "c", "d"] {
        town.world.api.delete("pods", "ns", pod);
    }
    town.until("given back", |t| t.world.objects().is_empty())
        .await;
    assert_eq!(town.attached(&set), ["kubelet"]);
    assert!(town.attached(&machine).is_empty());
    stop.cancel();
    mic.await.unwrap().unwrap();
    running.await.unwrap();
}
