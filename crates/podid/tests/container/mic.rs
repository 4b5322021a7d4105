//! mic's container.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use podid_testkit::container::{Container, Kubelet};
use podid_testkit::net::Wire;
use podid_testkit::tools;
use serde_json::Value;

use crate::world::{CERTIFICATES, Confinement, MIC, World, confinement, tag, template};

const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);

fn confined(user: u32) -> Confinement {
    Confinement {
        user,
        capabilities: [0; 5],
        no_new_privileges: true,
        seccomp_filter: true,
        writable_root: false,
    }
}

/// It leads, and what a pod needs is assigned.
fn works(world: &World, template: &Value, mic: &Container) {
    world.until_ready(template, MIC, mic);
    world.pod("app", POD);
    world.until("it is Assigned", mic, || world.is_assigned("app"));
}

/// What the chart renders with these values.
fn rendered(values: &[String]) -> Vec<Value> {
    let mut helm = std::process::Command::new(tools::helm().unwrap());
    helm.args(["template", "podid", "charts/podid", "--namespace=podid"]);
    // Without a cluster helm takes an old Kubernetes for granted.
    helm.args([
        "--kube-version=1.34.0",
        "--set=image.repository=localhost/podid",
    ]);
    helm.arg(format!("--set-string=mic.tag={}", tag()));
    let output = helm.args(values).current_dir(tools::repository());
    let output = output.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

#[test]
fn as_the_manifests_say_it_reads_the_nodes_file_as_root_and_may_do_nothing_else() {
    let world = World::build("standard");
    let mic = world.mic();
    assert_eq!(confinement(&mic), confined(0));
    works(&world, &template(&world.objects, "podid-mic"), &mic);
}

#[test]
fn with_a_secret_it_runs_as_nobody() {
    let world = World::build("standard");
    let (tenant, client) = (world.azure.tenant(), &world.application);
    let values = [
        ("cloud", "AzureStackCloud"),
        ("tenantID", tenant),
        ("clientID", client),
        ("clientSecret", "secret"),
    ];
    let values = values.map(|(key, value)| format!("--set-string=adminsecret.{key}={value}"));
    let objects = rendered(&values);
    let template = template(&objects, "podid-mic");
    let secret = objects.iter().find(|object| object["kind"] == "Secret");
    let secret = secret.unwrap();
    let keys = serde_json::from_value(secret["stringData"].clone()).unwrap();
    let name = secret["metadata"]["name"].as_str().unwrap().to_owned();
    world.net.start_pod("mic", MIC, Wire::Bridge);
    let kubelet = Kubelet {
        secrets: [(name, keys)].into(),
        // Nothing of the node's is mounted.
        root: PathBuf::from("/nowhere"),
        ..world.kubelet("mic", "mic")
    };
    let mic = Container::start(&template, "mic", &kubelet).unwrap();
    assert_eq!(confinement(&mic), confined(65532));
    works(&world, &template, &mic);
}

#[test]
fn it_believes_the_authorities_of_the_images_certificates_and_no_others() {
    let world = World::build("standard");
    world.use_tls();
    let mic = world.mic();
    let template = template(&world.objects, "podid-mic");
    world.until_ready(&template, MIC, &mic);
    world.pod("app", POD);
    world.until("the certificate is refused", &mic, || {
        mic.log().contains("UnknownIssuer")
    });
    let root = format!("/proc/{}/root{CERTIFICATES}", mic.pid().unwrap());
    let mut authorities = std::fs::read_to_string(root).unwrap();
    drop(mic);

    // The same file and one authority more.
    authorities += &std::fs::read_to_string(&world.entra_authority).unwrap();
    let file = world.path("authorities.crt");
    std::fs::write(&file, authorities).unwrap();
    let mut kubelet = world.kubelet("mic", "mic");
    kubelet.files.push((file, CERTIFICATES.to_owned()));
    let mic = Container::start(&template, "mic", &kubelet).unwrap();
    world.until("it is Assigned", &mic, || world.is_assigned("app"));
}
