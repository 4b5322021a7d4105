//! The Azure SDKs, unmodified, in pods' network namespaces: each gets a token of exactly the identity that its pod is granted,
//! and learns why when it gets none.
//!
//! Needs root, for network namespaces. `tools/setup` installs the SDKs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../world/mod.rs"]
mod world;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use podid_testkit::tools;
use serde_json::{Value, json};
use world::{World, text, whose};

const ONE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
const TWO: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 12);
const TIE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 13);
const NONE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 14);
const EXEMPT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 15);
/// No client waits longer for a verdict that will not change.
const SOON: f64 = 10.0;

/// A client library and the ways in which applications use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sdk {
    Python,
    JavaScript,
    Go,
}

const SDKS: [Sdk; 3] = [Sdk::Python, Sdk::JavaScript, Sdk::Go];

impl Sdk {
    fn command(self, world: &World, pod: &str) -> Command {
        let folder = tools::repository().join("tools/sdk");
        let (program, script) = match self {
            Self::Python => ("python3".to_owned(), Some(folder.join("ask.py"))),
            Self::JavaScript => ("node".to_owned(), Some(folder.join("js/ask.mjs"))),
            Self::Go => (go_program(), None),
        };
        let program = tools::on_path(&program).unwrap_or_else(|| PathBuf::from(&program));
        let mut command = world.command(pod, program.to_str().unwrap());
        command.args(script);
        command
    }

    /// By itself, in each way that names an identity.
    fn ways(self) -> &'static [&'static str] {
        match self {
            Self::Python => &["sync", "aio", "msal"],
            Self::JavaScript => &["credential", "msal"],
            Self::Go => &["credential"],
        }
    }

    /// Among the credentials that an application tries, so that it first finds out whether there is a metadata service.
    fn tried_first(self) -> &'static [&'static str] {
        match self {
            Self::Python => &["default", "aio-default"],
            Self::JavaScript | Self::Go => &["default"],
        }
    }
}

fn go_program() -> String {
    let output = Command::new(tools::repository().join("tools/sdk/go/build"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "run tools/setup: {}",
        text(&output)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// One answer of a client.
#[derive(Debug)]
#[allow(dead_code, reason = "the case is for whoever reads a failure")]
struct Said {
    case: Value,
    token: Option<String>,
    error: String,
    seconds: f64,
}

/// Starts a client; what it says is collected when the function that this gives is called, so that many run at once.
fn start(command: &mut Command, cases: Vec<Value>) -> impl FnOnce() -> Vec<Said> + use<> {
    command.arg(Value::from(cases.clone()).to_string());
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    move || {
        let output = child.wait_with_output().unwrap();
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let said: Vec<Said> = cases
            .iter()
            .zip(lines.lines())
            .map(|(case, line)| read(case, &serde_json::from_str(line).unwrap()))
            .collect();
        assert_eq!(said.len(), cases.len(), "{}", text(&output));
        said
    }
}

fn read(case: &Value, line: &Value) -> Said {
    Said {
        case: case.clone(),
        token: line["token"].as_str().map(str::to_owned),
        error: line["error"].as_str().unwrap_or_default().to_owned(),
        seconds: line["seconds"].as_f64().unwrap(),
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
            for how in sdk.ways() {
                cases.push(json!({ "how": how }));
                cases.extend(names(&world, "reader").iter().map(|name| with(how, name)));
            }
            cases.extend(sdk.tried_first().iter().map(|how| json!({ "how": how })));
            let plain = start(&mut sdk.command(&world, "one"), cases);
            // The same in a pod that has two, of which it names the one that it would not get by itself.
            let mut cases: Vec<Value> = vec![json!({ "how": sdk.ways()[0] })];
            for how in sdk.ways() {
                cases.extend(names(&world, "reader").iter().map(|name| with(how, name)));
            }
            let weighted = start(&mut sdk.command(&world, "two"), cases);
            (plain, weighted)
        })
        .collect();
    for (plain, weighted) in started {
        for said in plain() {
            assert_is(&world, &said, "reader");
        }
        let weighted = weighted();
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
                sdk.ways().iter().map(how).collect(),
            );
            let other = |how: &&str| json!({ "how": how, "client": foreign });
            let other = start(
                &mut sdk.command(&world, "one"),
                sdk.ways().iter().map(other).collect(),
            );
            let tie = start(
                &mut sdk.command(&world, "tie"),
                sdk.ways().iter().map(how).collect(),
            );
            (stranger, other, tie)
        })
        .collect();
    for (stranger, other, tie) in started {
        for said in stranger() {
            assert_is_told(&said, "no label");
        }
        for said in other() {
            assert_is_told(&said, "Identity not found");
        }
        for said in tie() {
            assert_is_told(&said, "default/writer");
        }
    }
}

#[test]
fn a_chain_goes_on_where_there_is_no_identity_and_stops_where_there_is() {
    let world = world();
    let chain = [
        (Sdk::Python, "chain"),
        (Sdk::JavaScript, "chain"),
        (Sdk::Go, "chain"),
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
    for (pod, answers) in started {
        for said in answers() {
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
                json!({ "how": sdk.ways()[0], "client": client })
            });
            start(&mut sdk.command(&world, "exempt"), cases.into())
        })
        .collect();
    for answers in started {
        let said = answers();
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
    let mut answers = vec![];
    for sdk in [Sdk::Python, Sdk::JavaScript] {
        for pod in ["one", "none"] {
            let mut command = sdk.command(&world, pod);
            command.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", authority);
            let cases = sdk.ways().iter().map(|how| json!({ "how": how })).collect();
            answers.push((pod, start(&mut command, cases)));
        }
    }
    for (pod, answers) in answers {
        for said in answers() {
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
    let mut command = Sdk::Go.command(&world, "one");
    command.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://192.0.2.1:1");
    for said in start(&mut command, vec![json!({ "how": "credential" })])() {
        assert_is(&world, &said, "reader");
    }
}
