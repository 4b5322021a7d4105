//! Faults of Azure Resource Manager and of the API server: the controller converges after each.

use std::time::Duration;

use podid_sim::azure::{Action, Fault, Service};
use rstest::rstest;
use serde_json::{Value, json};

use crate::world::{NODES, World, config, names, until};

fn answer(status: u16, code: &str, retry_after: Option<u64>) -> Action {
    let body = json!({ "error": { "code": code, "message": "injected" } });
    Action::Answer {
        status,
        body,
        retry_after,
    }
}

fn on(method: &str, action: Action, times: u32) -> Vec<Fault> {
    vec![Fault {
        service: Service::Arm,
        method: Some(method.to_owned()),
        path: "virtualMachineScaleSets/pool".to_owned(),
        action,
        times,
    }]
}

fn polling(action: Action, times: u32) -> Vec<Fault> {
    vec![Fault {
        service: Service::Arm,
        method: Some("GET".to_owned()),
        path: "/operations/".to_owned(),
        action,
        times,
    }]
}

fn operation(code: &str) -> Action {
    Action::FailOperation {
        error: json!({ "code": code, "message": "injected" }),
    }
}

fn entra(action: Action, times: u32) -> Vec<Fault> {
    vec![Fault {
        service: Service::Entra,
        method: None,
        path: String::new(),
        action,
        times,
    }]
}

/// Three pods use two identities on a scale set that has an identity of somebody else. With every fault they are Assigned within this
/// many seconds and PATCHes, and their identities are detached afterwards.
#[rstest]
#[case::nothing(vec![], 20, 1)]
#[case::conflict_of_the_change(
    on("PATCH", answer(409, "ConflictingConcurrentWriteNotAllowed", None), 3),
    60,
    4
)]
#[case::conflict_of_the_read(on("GET", answer(409, "Conflict", None), 3), 60, 1)]
#[case::precondition(on("PATCH", answer(412, "PreconditionFailed", None), 2), 60, 3)]
#[case::throttled_with_a_time(
    on("PATCH", answer(429, "OperationNotAllowed", Some(120)), 1),
    180,
    2
)]
#[case::throttled_without_a_time(
    on("PATCH", answer(429, "SubscriptionRequestsThrottled", None), 3),
    120,
    4
)]
#[case::throttled_for_no_time(
    on("PATCH", answer(429, "SubscriptionRequestsThrottled", Some(0)), 3),
    60,
    4
)]
#[case::reads_throttled(on("GET", answer(429, "OperationNotAllowed", Some(60)), 2), 240, 1)]
#[case::broken(on("PATCH", answer(500, "InternalServerError", None), 3), 60, 4)]
#[case::bad_gateway(on("GET", answer(502, "", None), 3), 60, 1)]
#[case::unavailable(on("PATCH", answer(503, "ServiceUnavailable", Some(10)), 2), 90, 3)]
#[case::slow_beyond_patience(on("PATCH", Action::Delay { millis: 90_000 }, 1), 240, 2)]
#[case::never_arrived(on("PATCH", Action::Drop, 2), 60, 3)]
#[case::the_answer_is_lost(on("PATCH", Action::DropAfter, 1), 60, 2)]
#[case::the_operation_fails(on("PATCH", operation("InternalOperationError"), 1), 120, 3)]
#[case::the_operation_is_preempted(on("PATCH", operation("OperationPreempted"), 1), 120, 3)]
#[case::polling_fails(polling(answer(503, "ServiceUnavailable", None), 4), 90, 1)]
#[case::polling_is_throttled(polling(answer(429, "OperationNotAllowed", Some(30)), 2), 120, 1)]
#[case::the_operation_is_forgotten(polling(answer(404, "NotFound", None), 9), 90, 2)]
#[case::the_token_is_refused(
    on("PATCH", answer(401, "ExpiredAuthenticationToken", None), 1),
    60,
    2
)]
#[case::no_token(entra(answer(503, "temporarily_unavailable", None), 3), 60, 1)]
#[case::the_model_is_invalid(on("PATCH", answer(400, "InvalidParameter", None), 3), 60, 6)]
#[case::the_image_is_gone(on("PATCH", answer(404, "GalleryImageNotFound", None), 3), 60, 4)]
#[case::a_proxy_says_no(on("GET", Action::Answer { status: 403, body: Value::String("<html>".to_owned()), retry_after: None }, 3), 60, 1)]
#[case::an_answer_that_is_no_json(on("GET", Action::Answer { status: 200, body: Value::String("<html>".to_owned()), retry_after: None }, 2), 60, 1)]
#[tokio::test(start_paused = true)]
async fn whatever_azure_answers_it_converges(
    #[case] faults: Vec<Fault>,
    #[case] seconds: u64,
    #[case] patches: usize,
) {
    let world = World::new().await;
    let set = world.set("pool").await;
    let foreign = world.azure.create_identity(NODES, "foreign");
    world.azure.attach(&set, &foreign);
    for name in ["one", "two"] {
        world.bound(name).await;
    }
    for fault in faults {
        world.azure.inject(fault);
    }
    // Before mic starts, so that a busy machine does not spread them over several changes.
    for (pod, name) in [("a", "one"), ("b", "two"), ("c", "one")] {
        world.pod("default", pod, "pool-0", name).await;
    }
    let mic = world.start(config("mic-0")).await;
    let began = world.now();
    until!("assigned", world.assigned().await == 3);
    let took = began.elapsed().as_secs();
    assert!(took <= seconds + 15, "{took} s");
    assert_eq!(world.on(&set), names(["foreign", "one", "two"]));
    let sent = world.patches(&set);
    assert!(sent <= patches, "{sent} PATCHes");
    world.azure.mend();
    for pod in ["a", "b", "c"] {
        world.delete("Pod", "default", pod).await;
    }
    until!("given back", world.assignments().await.is_empty());
    until!("detached", world.on(&set) == names(["foreign"]));
    mic.stop().await;
    world.end().await;
}

/// A token that is expired by the controller's clock when it comes is used all the same.
#[tokio::test(start_paused = true)]
async fn a_clock_that_disagrees_with_entras_stops_nothing() {
    let world = World::new().await;
    world.azure.set_token_life(Duration::from_secs(60));
    let set = world.set("pool").await;
    world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    assert_eq!(world.patches(&set), 1);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_set_that_takes_a_quarter_of_an_hour_delays_no_other_and_no_lease() {
    let world = World::new().await;
    let (slow, quick, never) = (
        world.set("slow").await,
        world.set("quick").await,
        world.set("never").await,
    );
    world
        .azure
        .set_patch_latency(&slow, Duration::from_secs(14 * 60));
    world
        .azure
        .set_patch_latency(&never, Duration::from_secs(24 * 3600));
    world.bound("one").await;
    world.bound("two").await;
    let mic = world.start(config("mic-0")).await;
    let began = world.now();
    for set in ["slow", "never", "quick"] {
        world.pod("default", set, &format!("{set}-0"), "one").await;
    }
    until!("the quick one", world.assigned().await == 1);
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    let lease = async || world.all("Lease").await[0].clone();
    let first = lease().await;
    // Meanwhile, new pods are served and the Lease is renewed.
    let mut renewals = 0;
    let mut seen = first["metadata"]["resourceVersion"].clone();
    for minute in 1..13 {
        world
            .pod("default", &format!("more-{minute}"), "quick-0", "two")
            .await;
        let asked = world.now();
        until!("another", world.assigned().await == 1 + minute);
        assert!(asked.elapsed().as_secs() < 60, "{:?}", asked.elapsed());
        world.wait(50).await;
        let now = lease().await["metadata"]["resourceVersion"].clone();
        renewals += usize::from(now != seen);
        seen = now;
    }
    assert_eq!(renewals, 12);
    until!("the slow one", world.assigned().await == 14);
    let last = lease().await;
    assert_eq!(
        last["spec"]["leaseTransitions"],
        first["spec"]["leaseTransitions"]
    );
    assert_eq!(last["spec"]["holderIdentity"], "mic-0");
    // An operation that never ends is given up after its deadline; the next read of the host shows what it did.
    until!("the endless one", world.assigned().await == 15);
    assert_eq!((world.patches(&never), world.patches(&quick)), (1, 2));
    mic.stop().await;
    world.end().await;
}

/// The API server fails, compacts its history and cuts every watch.
#[tokio::test(start_paused = true)]
async fn whatever_the_api_server_does_nothing_is_detached() {
    let world = World::new().await;
    let set = world.set("pool").await;
    world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    for round in 0..5 {
        world.cluster.fail_next(40, 500 + 3 * (round % 2), "");
        world.cluster.drop_watches();
        world.cluster.compact();
        world.wait(60).await;
        world.cluster.fail_next(0, 500, "");
        assert_eq!(world.on(&set), names(["one"]));
    }
    world.cluster.fail_next(usize::MAX, 503, "");
    world.wait(600).await;
    world.cluster.fail_next(0, 503, "");
    assert_eq!(world.on(&set), names(["one"]));
    world.bound("two").await;
    world.pod("default", "later", "pool-0", "two").await;
    until!("it goes on", world.assigned().await == 2);
    assert_eq!(world.patches(&set), 2);
    mic.stop().await;
    world.end().await;
}

/// Azure refuses every change of one scale set, whose own model is invalid: no identity is blamed for it, and another set that uses the
/// same ones does not wait.
#[tokio::test(start_paused = true)]
async fn a_set_whose_model_is_invalid_spoils_no_identity() {
    let world = World::new().await;
    let (_, other) = (world.set("pool").await, world.set("other").await);
    for name in ["one", "two"] {
        world.bound(name).await;
    }
    let message = "Required parameter 'imageReference' is missing (null).";
    let error =
        json!({ "code": "InvalidParameter", "message": message, "target": "imageReference" });
    let refusal = Action::Answer {
        status: 400,
        body: json!({ "error": error }),
        retry_after: None,
    };
    for fault in on("PATCH", refusal, u32::MAX) {
        world.azure.inject(fault);
    }
    let mic = world.start(config("mic-0")).await;
    for (pod, name) in [("a", "one"), ("b", "two")] {
        world.pod("default", pod, "pool-0", name).await;
    }
    let condition = async || {
        let all = world.all("AzureIdentity").await;
        all[0]["status"]["conditions"][0].clone()
    };
    until!("told", condition().await["reason"] == "HostRefused");
    let said = condition().await["message"].to_string();
    assert!(said.contains("'imageReference' is missing"), "{said}");
    let began = world.now();
    for (pod, name) in [("c", "one"), ("d", "two")] {
        world.pod("default", pod, "other-0", name).await;
    }
    until!("the other set", world.assigned().await == 2);
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    assert_eq!(world.patches(&other), 1);
    mic.stop().await;
    world.end().await;
}

/// A PATCH fails with a 404 that is about something else than the host: what podid attached is detached all the same.
#[tokio::test(start_paused = true)]
async fn only_a_read_says_that_a_host_is_gone() {
    let world = World::new().await;
    let set = world.set("pool").await;
    world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    for code in ["GalleryImageNotFound", "ResourceNotFound"] {
        for fault in on("PATCH", answer(404, code, None), 1) {
            world.azure.inject(fault);
        }
    }
    world.delete("Pod", "default", "web").await;
    until!("detached", world.on(&set).is_empty());
    mic.stop().await;
    world.end().await;
}

/// One host may not be changed, and one identity may not be attached: conditions and Events name the missing role, and once it is
/// granted both go on.
#[tokio::test(start_paused = true)]
async fn missing_roles_are_named_and_noticed_when_they_are_granted() {
    use podid_sim::azure::{HostKind, Role};
    let world = World::new().await;
    let elsewhere = world
        .azure
        .create_host(HostKind::ScaleSet, "elsewhere", "locked");
    world
        .node(
            "locked-0",
            &podid_sim::azure::Control::provider_id(&elsewhere, 0),
        )
        .await;
    world.bound("one").await;
    let set = world.set("pool").await;
    let secret = world.azure.create_identity("vault", "secret");
    world.identity("default", "secret", &secret).await;
    world.binding("default", "secret", "secret", "secret").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "a", "locked-0", "one").await;
    world.pod("default", "b", "pool-0", "secret").await;
    let condition = async |name: &str| {
        let all = world.all("AzureIdentity").await;
        let identity = all.iter().find(|i| i["metadata"]["name"] == name).unwrap();
        identity["status"]["conditions"][0].clone()
    };
    until!(
        "the host's role",
        condition("one").await["reason"] == "HostRoleMissing"
    );
    until!(
        "the identity's role",
        condition("secret").await["reason"] == "IdentityRoleMissing"
    );
    let said = condition("one").await["message"].to_string();
    assert!(said.contains("Virtual Machine Contributor"), "{said}");
    let said = condition("secret").await["message"].to_string();
    assert!(said.contains("Managed Identity Operator"), "{said}");
    let told = async |kind: &str, name: &str| {
        let events = world.all("Event").await;
        events.iter().any(|e| {
            e["involvedObject"]["kind"] == kind
                && e["involvedObject"]["name"] == name
                && e["type"] == "Warning"
        })
    };
    until!(
        "the pods' Events",
        told("Pod", "a").await && told("Pod", "b").await
    );
    let scope = format!(
        "/subscriptions/{}/resourceGroups/elsewhere",
        world.azure.subscription()
    );
    world
        .azure
        .assign_role(&world.principal, Role::VirtualMachineContributor, &scope);
    world
        .azure
        .assign_role(&world.principal, Role::ManagedIdentityOperator, &secret.id);
    until!("both", world.assigned().await == 2);
    until!(
        "told",
        condition("one").await["status"] == "True" && condition("secret").await["status"] == "True"
    );
    assert_eq!(world.on(&set), names(["secret"]));
    mic.stop().await;
    world.end().await;
}

/// Of fifty identities on one scale set, one does not exist or may not be attached. It costs the others one PATCH, and few calls
/// afterwards.
#[rstest]
#[case::missing(true)]
#[case::not_allowed(false)]
#[tokio::test(start_paused = true)]
async fn one_bad_identity_among_fifty(#[case] missing: bool) {
    let world = World::new().await;
    let set = world.set("pool").await;
    for n in 0..49 {
        let name = format!("good-{n}");
        world.bound(&name).await;
        world.pod("default", &name, "pool-0", &name).await;
    }
    let group = if missing { crate::world::APPS } else { "vault" };
    let bad = world.azure.create_identity(group, "bad");
    if missing {
        world.azure.delete_identity(&bad.id);
    }
    world.identity("default", "bad", &bad).await;
    world.binding("default", "bad", "bad", "bad").await;
    world.pod("default", "bad", "pool-0", "bad").await;
    let mic = world.start(config("mic-0")).await;
    until!("the others", world.assigned().await == 49);
    assert_eq!(world.patches(&set), 2);
    let condition = async || {
        let all = world.all("AzureIdentity").await;
        let bad = all.iter().find(|i| i["metadata"]["name"] == "bad").unwrap();
        bad["status"]["conditions"][0]["reason"].clone()
    };
    let reason = if missing {
        "IdentityNotFound"
    } else {
        "IdentityRoleMissing"
    };
    until!("told", condition().await == reason);
    let calls = || {
        let journal = world.azure.journal();
        let of = |entry: &&podid_sim::azure::Entry| {
            entry.method == "PATCH"
                || entry.path.contains("/operations/")
                || entry.path.contains("userAssignedIdentities")
        };
        journal.iter().filter(of).count()
    };
    let before = calls();
    world.wait(3600).await;
    let hour = calls() - before;
    assert!((2..=12).contains(&hour), "{hour} calls in an hour");
    assert_eq!(world.assigned().await, 49);
    mic.stop().await;
    world.end().await;
}
