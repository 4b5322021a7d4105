//! The Azure SDKs, unmodified, in pods' network namespaces: each gets a token of exactly the identity that its pod is granted,
//! and learns why when it gets none.
//!
//! Needs root, for network namespaces. `tools/setup` installs the SDKs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod clients;
mod page;
#[path = "../world/mod.rs"]
mod world;

use std::net::Ipv4Addr;

use clients::{Program, Said, start};
use serde_json::{Value, json};
use world::{World, whose};

const ONE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
const TWO: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 12);
const TIE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 13);
const NONE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 14);
const EXEMPT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 15);
/// No client waits longer for a verdict that will not change.
const SOON: f64 = 10.0;

/// The newest SDKs, which are asked in every way in which applications use them.
const SDKS: [Program; 3] = [Program::Python, Program::JavaScript, Program::Go];

/// The ways that ask by themselves, and can name an identity.
fn ways(sdk: Program) -> &'static [&'static str] {
    match sdk {
        Program::Python => &["sync", "aio", "msal"],
        Program::JavaScript => &["credential", "msal"],
        _ => &["credential"],
    }
}

/// The ways that ask among the credentials that an application tries, and find out first whether there is a metadata service.
fn ways_in_chain(sdk: Program) -> &'static [&'static str] {
    match sdk {
        Program::Python => &["default", "aio-default"],
        _ => &["default"],
    }
}

/// How an identity is named: not at all, and by each of its ids.
fn names(world: &World, name: &str) -> Vec<Value> {
    let identity = world.identity(name);
    vec![
        json!({ "client": identity.client_id }),
        json!({ "client": identity.client_id.to_uppercase() }),
        json!({ "resource": identity.id }),
        json!({ "object": world.object_id(name) }),
    ]
}

fn with(how: &str, name: &Value) -> Value {
    let mut case = name.clone();
    case["how"] = how.into();
    case
}

fn world() -> World {
    let world = World::build(&["reader", "writer"], &["--attest=address"]);
    world.grant("reader", "one", 0);
    world.grant("reader", "two", 0);
    world.grant("writer", "two", 7);
    world.grant("reader", "tie", 0);
    world.grant("writer", "tie", 0);
    world.apply(
        &json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzurePodIdentityException",
            "metadata": { "name": "trusted", "namespace": "default" }, "spec": { "podLabels": { "trusted": "yes" } },
        })
        .to_string(),
    );
    world.start_pod("one", ONE, "one");
    world.start_pod("two", TWO, "two");
    world.start_pod("tie", TIE, "tie");
    world.start_pod("none", NONE, "");
    world
        .net
        .start_pod("exempt", EXEMPT, podid_testkit::net::Wire::Bridge);
    world.register(
        "exempt",
        EXEMPT,
        &json!({ "metadata": { "labels": { "trusted": "yes" } } }),
    );
    world.wait_until_ready();
    world.wait_until("every pod is known", || {
        ["one", "two"]
            .iter()
            .all(|pod| world.ask(pod, &[]).0 == 200)
            && ["tie", "none"]
                .iter()
                .all(|pod| world.ask(pod, &[]).0 == 400)
    });
    world
}

fn assert_is(world: &World, said: &Said, name: &str) {
    let token = said
        .token
        .as_deref()
        .unwrap_or_else(|| panic!("{said:?}\n{}", world.log()));
    assert_eq!(whose(token), world.identity(name).client_id, "{said:?}");
}

fn assert_is_told(said: &Said, reason: &str) {
    assert!(said.token.is_none(), "{said:?}");
    assert!(said.error.contains(reason), "not told {reason:?}: {said:?}");
    assert!(said.seconds < SOON, "it waits: {said:?}");
}

#[test]
fn every_sdk_gets_exactly_the_identity_that_its_pod_is_granted() {
    let world = world();
    let started: Vec<_> = SDKS
        .iter()
        .map(|sdk| {
            let mut cases: Vec<Value> = vec![];
            for how in ways(*sdk) {
                cases.push(json!({ "how": how }));
                cases.extend(names(&world, "reader").iter().map(|name| with(how, name)));
            }
            cases.extend(ways_in_chain(*sdk).iter().map(|how| json!({ "how": how })));
            let plain = start(&mut sdk.command(&world, "one"), cases);
            // The same in a pod that has two, of which it names the one that it would not get by itself.
            let mut cases: Vec<Value> = vec![json!({ "how": ways(*sdk)[0] })];
            for how in ways(*sdk) {
                cases.extend(names(&world, "reader").iter().map(|name| with(how, name)));
            }
            let weighted = start(&mut sdk.command(&world, "two"), cases);
            (plain, weighted)
        })
        .collect();
    for (plain, weighted) in started {
        for said in plain.answers() {
            assert_is(&world, &said, "reader");
        }
        let weighted = weighted.answers();
        assert_is(&world, &weighted[0], "writer");
        for said in &weighted[1..] {
            assert_is(&world, said, "reader");
        }
    }
}

#[test]
fn every_sdk_tells_its_application_soon_why_there_is_no_token() {
    let world = world();
    let foreign = world.identity("writer").client_id.clone();
    let started: Vec<_> = SDKS
        .iter()
        .map(|sdk| {
            let how = |how: &&str| json!({ "how": how });
            let stranger = start(
                &mut sdk.command(&world, "none"),
                ways(*sdk).iter().map(how).collect(),
            );
            let other = |how: &&str| json!({ "how": how, "client": foreign });
            let other = start(
                &mut sdk.command(&world, "one"),
                ways(*sdk).iter().map(other).collect(),
            );
            let tie = start(
                &mut sdk.command(&world, "tie"),
                ways(*sdk).iter().map(how).collect(),
            );
            (stranger, other, tie)
        })
        .collect();
    for (stranger, other, tie) in started {
        for said in stranger.answers() {
            assert_is_told(&said, "no label");
        }
        for said in other.answers() {
            assert_is_told(&said, "Identity not found");
        }
        for said in tie.answers() {
            assert_is_told(&said, "default/writer");
        }
    }
}

#[test]
fn a_chain_goes_on_where_there_is_no_identity_and_stops_where_there_is() {
    let world = world();
    let chain = [
        (Program::Python, "chain"),
        (Program::JavaScript, "chain"),
        (Program::Go, "chain"),
    ];
    let started: Vec<_> = chain
        .iter()
        .flat_map(|(sdk, how)| {
            ["none", "one"].map(|pod| {
                let cases = vec![json!({ "how": how })];
                (pod, start(&mut sdk.command(&world, pod), cases))
            })
        })
        .collect();
    for (pod, asking) in started {
        for said in asking.answers() {
            assert!(said.seconds < SOON, "{said:?}");
            if pod == "none" {
                assert_eq!(
                    said.token.as_deref(),
                    Some("the next credential"),
                    "{said:?}"
                );
            } else {
                assert_is(&world, &said, "reader");
            }
        }
    }
}

#[test]
fn an_exempted_pod_has_every_identity_of_the_node_by_every_sdk() {
    let world = world();
    let started: Vec<_> = SDKS
        .iter()
        .map(|sdk| {
            let cases = ["reader", "writer"].map(|name| {
                let client = &world.identity(name).client_id;
                json!({ "how": ways(*sdk)[0], "client": client })
            });
            start(&mut sdk.command(&world, "exempt"), cases.into())
        })
        .collect();
    for asking in started {
        let said = asking.answers();
        assert_is(&world, &said[0], "reader");
        assert_is(&world, &said[1], "writer");
    }
}

#[test]
fn without_interception_an_sdk_finds_podid_by_the_environment() {
    let flags = [
        "--attest=address",
        "--interception=none",
        "--nmi-listen-address=10.244.0.1",
    ];
    let world = World::build(&["reader"], &flags);
    world.grant("reader", "one", 0);
    world.start_pod("one", ONE, "one");
    world.start_pod("none", NONE, "");
    world.wait_until_ready();
    let authority = "http://10.244.0.1:2579";
    let mut started = vec![];
    for sdk in [Program::Python, Program::JavaScript] {
        for pod in ["one", "none"] {
            let mut command = sdk.command(&world, pod);
            command.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", authority);
            let cases = ways(sdk).iter().map(|how| json!({ "how": how })).collect();
            started.push((pod, start(&mut command, cases)));
        }
    }
    for (pod, asking) in started {
        for said in asking.answers() {
            if pod == "one" {
                assert_is(&world, &said, "reader");
            } else {
                assert_is_told(&said, "no label");
            }
        }
    }
}

#[test]
fn the_go_sdk_does_not_need_the_environment() {
    let world = world();
    let mut command = Program::Go.command(&world, "one");
    command.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://192.0.2.1:1");
    for said in start(&mut command, vec![json!({ "how": "credential" })]).answers() {
        assert_is(&world, &said, "reader");
    }
}
