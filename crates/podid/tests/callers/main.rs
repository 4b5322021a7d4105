//! Who is calling, with real packets: addresses that pass from pod to pod, pods that take another's, and an API server that
//! has not heard of it. A wrong identity is never given, however late the news.
//!
//! Needs root, for network namespaces and control groups.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../world/mod.rs"]
mod world;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::process::Stdio;

use podid_testkit::net::Wire;
use serde_json::{Value, json};
use world::{NODE, PidNamespace, Running, World, text, whose};

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 12);
const ROUTED: Ipv4Addr = Ipv4Addr::new(10, 245, 0, 11);

/// Two identities, each granted by a selector of its name.
fn world(flags: &[&str]) -> World {
    let world = World::build(&["reader", "writer"], flags);
    world.grant("reader", "reader", 0);
    world.grant("writer", "writer", 0);
    world
}

fn labelled(selector: &str) -> Value {
    json!({ "metadata": { "labels": { "aadpodidbinding": selector } } })
}

/// The name of the identity that a pod is given, else what it is told.
fn given(world: &World, pod: &str) -> Result<&'static str, (u16, String)> {
    let (status, body) = world.ask(pod, &[]);
    let Some(token) = body["access_token"].as_str() else {
        return Err((
            status,
            body["error_description"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        ));
    };
    let client = whose(token);
    Ok(world
        .identities
        .iter()
        .find(|identity| identity.client_id == client)
        .unwrap()
        .name)
}

fn until_given(world: &World, pod: &str, name: &str) {
    world.wait_until(&format!("{pod} is given {name}"), || {
        given(world, pod) == Ok(name)
    });
}

fn until_refused(world: &World, pod: &str, status: u16) {
    let refused = || given(world, pod).is_err_and(|(is, _)| is == status);
    world.wait_until(&format!("{pod} is answered {status}"), refused);
}

#[test]
fn an_address_passes_to_another_pod_and_nobody_gets_the_wrong_identity() {
    let world = world(&["--attest=address"]);
    world.wait_until_ready();
    world.start_pod("first", FIRST, "reader");
    until_given(&world, "first", "reader");

    // Both claim it for a moment: as long as that is so, neither is believed.
    world.register("second", FIRST, &labelled("writer"));
    until_refused(&world, "first", 500);
    world.kubectl(
        &["delete", "pod", "first", "--grace-period=0", "--force"],
        "",
    );
    world.net.end_pod("first");
    world.net.start_pod("second", FIRST, Wire::Bridge);
    until_given(&world, "second", "writer");
}

#[test]
fn an_open_connection_does_not_follow_its_address_to_another_pod() {
    let world = world(&["--attest=address"]);
    world.wait_until_ready();
    world.start_pod("first", FIRST, "reader");
    until_given(&world, "first", "reader");
    let mut command = world.command("first", "python3");
    command
        .args(["-uc", KEEP_ASKING])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut client = command.spawn().unwrap();
    let mut answers = BufReader::new(client.stdout.take().unwrap());
    let mut ask = || {
        client.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    assert_eq!(ask(), "200");
    assert_eq!(ask(), "200");
    world.kubectl(
        &["delete", "pod", "first", "--grace-period=0", "--force"],
        "",
    );
    world.register("second", FIRST, &labelled("writer"));
    let mut seen = ask();
    // Until the watch has told both, the first pod is still the one.
    while seen == "200" {
        seen = ask();
    }
    assert_eq!(seen, "500", "the connection passed to the next pod");
    client.kill().unwrap();
    client.wait().unwrap();
}

/// Asks on one connection, once for each line of input.
const KEEP_ASKING: &str = r#"
import http.client, sys
connection = http.client.HTTPConnection("169.254.169.254")
connection.auto_open = 0
connection.connect()
for line in sys.stdin:
    connection.request("GET", "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net", headers={"Metadata": "true"})
    answer = connection.getresponse()
    answer.read()
    print(answer.status)
"#;

#[test]
fn a_pod_is_served_while_it_lives() {
    let world = world(&["--attest=address"]);
    world.wait_until_ready();
    world.net.start_pod("first", FIRST, Wire::Bridge);
    let finalizer = json!({ "metadata": { "finalizers": ["example.org/hold"], "labels": { "aadpodidbinding": "reader" } } });
    world.register("first", FIRST, &finalizer);
    until_given(&world, "first", "reader");
    world.kubectl(&["delete", "pod", "first", "--wait=false"], "");
    let deleting = [
        "get",
        "pod",
        "first",
        "-o",
        "jsonpath={.metadata.deletionTimestamp}",
    ];
    assert!(!world.kubectl(&deleting, "").is_empty());
    assert_eq!(
        given(&world, "first"),
        Ok("reader"),
        "it is terminating and still runs"
    );
    world.report("first", &json!({ "phase": "Succeeded" }));
    until_refused(&world, "first", 400);
}

#[test]
fn a_pod_on_the_host_network_has_no_identity() {
    let world = world(&["--attest=address", "--intercept-host-network"]);
    world.wait_until_ready();
    let host = json!({ "metadata": { "labels": { "aadpodidbinding": "reader" } }, "spec": { "hostNetwork": true } });
    world.register("host", Ipv4Addr::new(10, 9, 0, 1), &host);
    world.start_pod("first", FIRST, "reader");
    until_given(&world, "first", "reader");
    let (status, said) = given(&world, "node").unwrap_err();
    assert_eq!(status, 400, "{said}");
    assert!(said.contains("host network"), "{said}");
}

/// On control groups of version 2, where nmi has a cgroup namespace of its own.
#[test]
fn pods_on_the_host_network_are_caught_and_the_node_is_not() {
    let mut world = world(&["--attest=address"]);
    world.nmi.take();
    world.start_contained_nmi(
        PidNamespace::Machine,
        &["--attest=address", "--intercept-host-network=pods"],
    );
    world.wait_until_ready();
    let (status, body) = world.ask_on_host_network("0b1f6c2e-7a3d-4b0e-9a55-1d2c3b4a5f60");
    let said = body["error_description"].as_str().unwrap_or_default();
    assert_eq!(status, 400, "{said}");
    assert!(said.contains("host network"), "{said}");
    let before = world.asked();
    let (_, said) = given(&world, "node").unwrap_err();
    assert!(!said.contains("host network"), "{said}");
    assert_eq!(
        world.asked(),
        before + 1,
        "the node's own request is not caught"
    );
    let log = world.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
}

/// Azure Kubernetes Service labels nodes whose Cilium routes by eBPF; there the rules stand and catch nothing.
#[test]
fn nmi_is_not_ready_where_the_nodes_label_says_that_packets_pass_the_rules_by() {
    let mut world = world(&["--attest=address"]);
    world.wait_until_ready();
    let nmi = world.nmi.take().unwrap();
    drop(nmi);
    let label = "kubernetes.azure.com/ebpf-host-routing=true";
    world.kubectl(&["label", "node", NODE, label], "");
    world.start_nmi(&["--attest=address"]);
    let probe = ["-sS", "--noproxy", "*", "http://127.0.0.1:8085/readyz"];
    let said = || text(&world.net.run("node", "curl", &probe));
    world.wait_until("it says why", || said().contains("ebpf-host-routing"));
    assert!(said().contains("netfilter"), "{}", said());
    let metrics = ["-sS", "--noproxy", "*", "http://127.0.0.1:9090/metrics"];
    let in_place = text(&world.net.run("node", "curl", &metrics));
    assert!(
        in_place.contains("podid_nmi_interception_in_place 0"),
        "{in_place}"
    );
}

#[test]
fn an_api_server_that_is_away_is_not_missed() {
    let mut world = world(&["--attest=address"]);
    world.wait_until_ready();
    world.start_pod("first", FIRST, "reader");
    until_given(&world, "first", "reader");
    world.stop_cluster();
    assert_eq!(given(&world, "first"), Ok("reader"));
    // Somebody new is told to come back, not that it has nothing.
    world.net.start_pod("second", SECOND, Wire::Bridge);
    let (status, said) = given(&world, "second").unwrap_err();
    assert_eq!(status, 500, "{said}");
}

/// The kernel's evidence: a world whose pods have processes in control groups.
fn attested(wire: Wire, first: Ipv4Addr) -> (World, Running) {
    let mut world = World::build(&["reader", "writer"], &["--attest=address"]);
    world.grant("reader", "reader", 0);
    world.grant("writer", "writer", 0);
    world.net.start_pod("first", first, wire);
    let uid = world.register("first", first, &labelled("reader"));
    let running = world.run_pod("first", &uid);
    // Detected at the start, as on a node where pods run.
    world.nmi.take();
    world.start_nmi(&["--attest=processes"]);
    world.wait_until_ready();
    until_given(&world, "first", "reader");
    (world, running)
}

#[test]
fn an_address_that_passed_on_before_the_api_server_heard_of_it_gives_nothing() {
    for (wire, address) in [(Wire::Routed, ROUTED), (Wire::Bridge, FIRST)] {
        let (world, running) = attested(wire, address);
        // The first pod's sandbox is gone and the next one has its address; the API server knows of neither.
        drop(running);
        world.net.end_pod("first");
        world.net.start_pod("second", address, wire);
        let (status, said) = given(&world, "second").unwrap_err();
        assert_eq!(status, 500, "{said}");
        assert!(said.contains("leads to somebody else"), "{said}");

        world.kubectl(
            &["delete", "pod", "first", "--grace-period=0", "--force"],
            "",
        );
        let uid = world.register("second", address, &labelled("writer"));
        let _running = world.run_pod("second", &uid);
        until_given(&world, "second", "writer");
    }
}

#[test]
fn a_neighbour_that_takes_an_address_on_a_bridge_gets_nothing_for_it() {
    let (world, _running) = attested(Wire::Bridge, FIRST);
    steal(&world);
}

/// On a new node nmi sees no pod, and of its own not even the uid.
#[test]
fn a_thief_gets_nothing_from_an_nmi_that_was_its_nodes_first_pod() {
    for (pids, flag) in [
        (PidNamespace::Machine, "--attest=auto"),
        (PidNamespace::Machine, "--attest=processes"),
        (PidNamespace::ContainerNode, "--attest=processes"),
    ] {
        let mut world = world(&["--attest=address"]);
        world.nmi.take();
        world.start_contained_nmi(pids, &[flag]);
        world.wait_until_ready();
        let uid = world.start_pod("first", FIRST, "reader");
        let _running = world.run_pod("first", &uid);
        until_given(&world, "first", "reader");
        steal(&world);
    }
}

#[test]
fn a_container_with_a_pid_namespace_of_its_own_says_that_it_sees_no_pod() {
    let mut world = world(&["--attest=address"]);
    world.nmi.take();
    world.start_contained_nmi(PidNamespace::Own, &["--attest=auto"]);
    world.wait_until_ready();
    assert!(
        world.log().contains("give the DaemonSet hostPID: true"),
        "{}",
        world.log()
    );
}

/// A neighbour takes the first pod's address on the bridge.
fn steal(world: &World) {
    world.net.start_pod("second", SECOND, Wire::Bridge);
    let uid = world.register("second", SECOND, &labelled("writer"));
    let _neighbour = world.run_pod("second", &uid);
    until_given(world, "second", "writer");

    world.net.ip(
        "second",
        &["addr", "add", &format!("{FIRST}/32"), "dev", "eth0"],
    );
    let as_first = ["--interface", &FIRST.to_string()];
    let mut answered = false;
    for _ in 0..20 {
        // A new question about the gateway, in the other's name, is what the node believes.
        world.net.ip("second", &["neigh", "flush", "dev", "eth0"]);
        let (status, body) = world.ask("second", &as_first);
        assert_ne!(
            status, 200,
            "a token for whoever says it is {FIRST}: {body}"
        );
        answered |= status == 500 && body.to_string().contains("leads to somebody else");
    }
    assert!(
        answered,
        "the address was never taken, so that this shows nothing: {}",
        world.log()
    );
    // Its own identity it still has.
    world.net.ip(
        "second",
        &["addr", "del", &format!("{FIRST}/32"), "dev", "eth0"],
    );
    until_given(world, "second", "writer");
}

/// The kubelet writes `status.podIP` some time after the pod's container has begun to run.
#[test]
fn pods_that_ask_before_the_api_server_has_their_addresses_get_their_own_tokens() {
    for (pids, flag) in [
        (PidNamespace::Machine, "--attest=auto"),
        (PidNamespace::ContainerNode, "--attest=processes"),
    ] {
        let mut world = world(&["--attest=address"]);
        world.nmi.take();
        world.start_contained_nmi(pids, &[flag]);
        world.wait_until_ready();
        let mut running = Vec::new();
        for (name, selector, address, wire) in [
            ("first", "reader", FIRST, Wire::Bridge),
            ("second", "writer", SECOND, Wire::Bridge),
            ("third", "reader", ROUTED, Wire::Routed),
        ] {
            world.net.start_pod(name, address, wire);
            let uid = world.schedule(name, &labelled(selector));
            running.push(world.run_pod(name, &uid));
        }
        for (name, selector) in [
            ("first", "reader"),
            ("second", "writer"),
            ("third", "reader"),
        ] {
            assert_eq!(given(&world, name), Ok(selector), "{name}: {}", world.log());
        }
        // With the address it is the same pod still.
        world.report_address("first", FIRST);
        assert_eq!(given(&world, "first"), Ok("reader"));
    }
}

#[test]
fn a_pod_whose_processes_are_not_seen_is_held_until_its_address_is_known() {
    let world = world(&["--attest=address", "--assignment-wait=8s"]);
    world.wait_until_ready();
    world.net.start_pod("first", FIRST, Wire::Bridge);
    world.schedule("first", &labelled("reader"));
    let answer = std::thread::scope(|scope| {
        let asking = scope.spawn(|| given(&world, "first"));
        world.report_address("first", FIRST);
        asking.join().unwrap()
    });
    assert_eq!(answer, Ok("reader"), "{}", world.log());
}

#[test]
fn what_is_no_pod_and_has_a_link_is_told_so_in_the_end() {
    let world = world(&["--attest=address", "--assignment-wait=1s"]);
    world.wait_until_ready();
    world.net.start_pod("first", FIRST, Wire::Bridge);
    let began = std::time::Instant::now();
    let (status, said) = given(&world, "first").unwrap_err();
    assert_eq!(status, 400, "{said}");
    assert!(began.elapsed().as_secs() >= 1, "it was not held");
    // Nor is it kept waiting that comes from the node itself.
    let world = self::world(&[
        "--attest=address",
        "--assignment-wait=60s",
        "--intercept-host-network",
    ]);
    world.wait_until_ready();
    assert_eq!(given(&world, "node").unwrap_err().0, 400);
}

/// The request of the Key Vault CSI provider with `usePodIdentity`, unmodified.
#[test]
fn a_volume_driver_that_is_root_on_the_host_network_gets_a_pods_token_and_nobody_else_does() {
    let world = world(&["--attest=address", "--host-token-loopback"]);
    world.wait_until_ready();
    world.start_pod("first", FIRST, "reader");
    world.start_pod("second", SECOND, "writer");
    until_given(&world, "first", "reader");
    let ask = |place: &str, user: &str, host: &str| {
        let setpriv = [user, "--clear-groups", "curl", "-s", "--noproxy", "*"];
        let pod = ["-H", "podname: first", "-H", "podns: default"];
        let url = format!("http://{host}/host/token/?resource=https://vault.azure.net");
        let limit = ["--max-time", "10", &url];
        let output = world
            .net
            .run(place, "setpriv", &[&setpriv[..], &pod, &limit].concat());
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    let given = ask("node", "--reuid=0", "127.0.0.1:2579");
    assert_eq!(
        given["clientid"],
        world.identity("reader").client_id,
        "{given}"
    );
    assert!(given["token"]["access_token"].is_string());
    let refused = ask("node", "--reuid=65534", "127.0.0.1:2579");
    assert_eq!(refused["error"], "access_denied", "{refused}");
    let refused = ask("second", "--reuid=0", "169.254.169.254");
    assert_eq!(refused["error"], "access_denied", "{refused}");
}
