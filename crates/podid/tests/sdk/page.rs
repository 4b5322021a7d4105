//! The table of `docs/clients.md`, measured: every client of `tools/sdk` in a pod, for each way of naming an identity, and for an
//! identity that comes late.
//!
//! With `PODID_UPDATE=1` the test writes the table.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podid_testkit::net::Wire;
use podid_testkit::tools;
use serde_json::json;

use crate::assert_is;
use crate::clients::{CLIENTS, Client, Said, start};
use crate::world::World;

const START: &str = "<!-- measured by crates/podid/tests/sdk: PODID_UPDATE=1 cargo test -p podid --test sdk page -->\n\n";
const END: &str = "\n<!-- end of what is measured -->\n";
const HEAD: &str = "| client | version | default | client id | resource id | object id | another pod's id | held | asked again |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
/// The part of a refusal's text that says why.
const REASON: &str = "no AzureIdentityBinding grants";
/// How long a request is held: longer than the clients that wait least, which is 10 s, and less than podid holds one by default, which is 30 s.
const HELD: Duration = Duration::from_secs(12);
/// How long podid holds a request for the column "asked again": some clients try only three times and at once, so that the assignment
/// must take less than two holds on a busy machine.
const SHORT_WAIT: &str = "6s";
/// When the first request has been answered with "not yet" for certain.
const ANSWERED: Duration = Duration::from_secs(8);
/// How often a client may ask: old ones give up when a probe is not answered within 0.3 to 0.5 s, which a busy machine may not manage.
const TRIES: usize = 3;
/// Clients that start take turns here, so that there are never more at once than a small machine has cores.
static TURNS: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];
/// Within this time a client has started and asks, on a busy machine.
const ASKS_WITHIN: Duration = Duration::from_secs(120);

#[test]
fn the_page_of_the_clients_says_what_they_do() {
    let held = world("30s");
    let short = world(SHORT_WAIT);
    assign(&held, NOW);
    let rows: Vec<String> = std::thread::scope(|scope| {
        let measured: Vec<_> = CLIENTS
            .iter()
            .enumerate()
            .map(|(index, client)| {
                let (held, short) = (&held, &short);
                scope.spawn(move || row(client, index, held, short))
            })
            .collect();
        measured
            .into_iter()
            .map(|row| row.join().unwrap())
            .collect()
    });
    let table = format!("{HEAD}{}", rows.concat());
    let file = page();
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(START).unwrap();
    let (there, after) = rest.split_once(END).unwrap();
    if std::env::var_os("PODID_UPDATE").is_some() {
        std::fs::write(&file, format!("{before}{START}{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(there, table, "PODID_UPDATE=1 writes {}", file.display());
    }
}

fn page() -> PathBuf {
    tools::repository().join("docs/clients.md")
}

/// The pod whose identity is assigned from the start.
const NOW: &str = "now";

/// The pod of a client whose identity is assigned while it asks.
fn late(client: usize) -> String {
    format!("late{client}")
}

/// A world with the pods of all clients, none of which has its identity assigned, where a request is held for `wait`.
fn world(wait: &str) -> World {
    let wait = format!("--assignment-wait={wait}");
    let flags = ["--attest=address", "--operation-mode=standard", &wait];
    let world = World::build(&["reader", "writer"], &flags);
    world.grant("reader", "app", 0);
    world.grant("writer", "another", 0);
    let names = std::iter::once(NOW.to_owned()).chain((0..CLIENTS.len()).map(late));
    let pods: Vec<String> = names
        .zip(20..)
        .map(|(name, number)| {
            let address = Ipv4Addr::new(10, 244, 0, number);
            world.net.start_pod(&name, address, Wire::Bridge);
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": "default", "labels": { "aadpodidbinding": "app" } },
                "spec": { "nodeName": "node-1", "containers": [{ "name": "app", "image": "app" }] },
                "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] },
            })
            .to_string()
        })
        .collect();
    let pods = pods.join("\n---\n");
    world.apply(&pods);
    world.kubectl(&["replace", "--subresource=status", "-f", "-"], &pods);
    world.wait_until_ready();
    world
}

/// mic says that the identity is on the pod's host.
fn assign(world: &World, pod: &str) {
    let named = |name: &str| json!({ "metadata": { "name": name, "namespace": "default" } });
    let assigned = json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
        "metadata": { "name": format!("{pod}-default-reader"), "namespace": "default", "labels": { "nodename": "node-1" } },
        "spec": {
            "pod": pod, "podNamespace": "default", "nodename": "node-1",
            "azureIdentityRef": named("reader"), "azureBindingRef": named("app-reader"),
        },
        "status": { "status": "Assigned" },
    });
    world.apply(&assigned.to_string());
}

fn row(client: &Client, index: usize, held: &World, short: &World) -> String {
    let (pod, turns) = (late(index), &TURNS[index % TURNS.len()]);
    let (at_once, held, again) = std::thread::scope(|scope| {
        let late = scope.spawn(|| asked_before(held, client, &pod, HELD, turns));
        let again = scope.spawn(|| asked_before(short, client, &pod, ANSWERED, turns));
        let at_once = at_once(held, client, turns);
        (at_once, late.join().unwrap(), again.join().unwrap())
    });
    let version = &at_once[0].version;
    let name = client.name;
    let (wrong, right) = at_once.split_last().unwrap();
    let right: Vec<_> = right.iter().map(|said| outcome(said)).collect();
    let (wrong, held, again) = (refusal(wrong), outcome(&held), outcome(&again));
    format!(
        "| {name} | {version} | {} | {wrong} | {held} | {again} |\n",
        right.join(" | ")
    )
}

/// By each way of naming an identity, and by the id of an identity that only others have.
fn at_once(world: &World, client: &Client, turns: &Mutex<()>) -> Vec<Said> {
    let (mine, other) = (world.identity("reader"), world.identity("writer"));
    let cases = [
        json!({}),
        json!({ "client": mine.client_id }),
        json!({ "resource": mine.id }),
        json!({ "object": world.object_id("reader") }),
        json!({ "client": other.client_id }),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|name| crate::with(client.how, name))
        .collect();
    let ask = || {
        let _turn = turns.lock();
        start(&mut client.program.command(world, NOW), cases.clone()).answers()
    };
    let is_served = |said: &Said| said.unsupported || said.token.is_some();
    let mut said = ask();
    for _ in 1..TRIES {
        if !said[..4].iter().all(is_served) {
            said = ask();
        }
    }
    for said in said[..4].iter().filter(|said| !said.unsupported) {
        assert_is(world, said, "reader");
    }
    said
}

/// The identity is assigned when the client has asked for as long as this.
fn asked_before(
    world: &World,
    client: &Client,
    pod: &str,
    wait: Duration,
    turns: &Mutex<()>,
) -> Said {
    let cases = vec![json!({ "how": client.how })];
    let turn = turns.lock();
    let mut asking = start(&mut client.program.command(world, pod), cases);
    let started = Instant::now();
    while !asking.is_connected() && !asking.has_ended() {
        assert!(started.elapsed() < ASKS_WITHIN, "{client:?} does not ask");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(turn);
    std::thread::sleep(wait);
    assign(world, pod);
    let said = asking.answers().remove(0);
    if said.token.is_some() {
        assert_is(world, &said, "reader");
    }
    said
}

fn outcome(said: &Said) -> &'static str {
    match said {
        Said {
            unsupported: true, ..
        } => "–",
        Said { token: Some(_), .. } => "token",
        _ => "**no token**",
    }
}

fn refusal(said: &Said) -> &'static str {
    assert!(said.token.is_none(), "{said:?}");
    if said.unsupported {
        "–"
    } else if said.error.contains(REASON) {
        "says why"
    } else {
        "hides why"
    }
}
