//! What happens to the API server.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use podid_testkit::process::Process;
use serde_json::json;

use crate::served::Served;
use crate::world::{Settings, World};

fn resume(world: &World) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(world.api.resume()).unwrap();
}

/// The time at which a process said something last, by its own clock.
fn clock(process: &Process) -> Timestamp {
    let log = process.log();
    let at = |line: &str| line.split(' ').next()?.parse().ok();
    log.lines().rev().find_map(at).unwrap()
}

#[test]
fn it_is_restarted() {
    let served = Served::new("res", Settings::default());
    let world = &served.scene.world;
    for round in 0..2 {
        world.api.stop();
        served.goes_on();
        resume(world);
        served.another_comes_and_goes(&format!("after{round}"));
    }
    served.nothing_failed();
}

/// More than a second for every answer, with the leases that podid has by default.
#[test]
fn it_is_slow() {
    let settings = Settings {
        mic: &["--linger=1s"],
        ..Settings::default()
    };
    let served = Served::new("slo", settings);
    let world = &served.scene.world;
    let led = |mic: usize| {
        let log = world.mics.lock().unwrap()[mic].log();
        log.matches("leadership changed").count()
    };
    let before = led(0) + led(1);
    world.gate.slow_down(Duration::from_millis(1200));
    for round in 0..2 {
        served.another_comes_and_goes(&format!("slow{round}"));
    }
    assert_eq!(led(0) + led(1), before, "the leader gave up");
    // And as a whole it may begin like that.
    let again = world.mic(2);
    world
        .mics
        .lock()
        .unwrap()
        .iter_mut()
        .for_each(Process::kill);
    world.mics.lock().unwrap().push(again);
    served.another_comes_and_goes("anew");
    served.nothing_failed();
}

/// The processes' clocks run sixty times faster: what is ten minutes to them are ten seconds.
#[test]
fn it_is_down_and_then_does_not_answer_for_ten_minutes_each() {
    const SPEED: u32 = 60;
    let settings = Settings {
        speed: SPEED,
        mic: &[],
        in_cluster: false,
    };
    let served = Served::new("ten", settings);
    let world = &served.scene.world;
    let pass = || {
        let over = Instant::now() + Duration::from_secs(600) / SPEED;
        while Instant::now() < over {
            served.goes_on();
        }
    };
    world.api.stop();
    pass();
    resume(world);
    served.another_comes_and_goes("down");
    // Connections stay open, and nothing comes.
    world.api.freeze(true).unwrap();
    pass();
    world.api.freeze(false).unwrap();
    served.another_comes_and_goes("frozen");
    let ahead = clock(&world.mics.lock().unwrap()[0]).duration_since(Timestamp::now());
    assert!(ahead.as_secs() > 2 * 600, "{ahead}");
    served.nothing_failed();
}

/// Whoever was cut off asks for what has been since; that is not known any more (410), and everything is listed anew.
#[test]
fn etcd_is_compacted_while_podid_is_cut_off() {
    let served = Served::new("gon", Settings::default());
    let (scene, world) = (&served.scene, &served.scene.world);
    let two = scene.bound("two");
    for pod in ["keeps", "loses", "leaves"] {
        scene.pod(pod, "two");
    }
    scene.until_assigned(4);
    for pod in ["keeps", "loses", "leaves"] {
        scene.validate(pod, &two);
    }
    world.gate.close(true);
    served.goes_on();
    // What podid does not hear of: a label is gone, a pod is gone, a pod has come.
    scene.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "loses", "labels": { "aadpodidbinding": "nothing" } },
        "spec": { "nodeName": "node-1", "containers": [{ "name": "app", "image": "app" }] },
    }));
    scene.delete("pod", "leaves");
    scene.pod("comes", "two");
    world.api.compact().unwrap();
    // It has forgotten the changes, too.
    world.api.stop();
    resume(world);
    world.gate.close(false);
    let told = |process: &Process| process.log().contains("too old resource version");
    world.until("podid is told so", || {
        world.mics.lock().unwrap().iter().any(told)
    });

    scene.until_assigned(3);
    let mut left: Vec<String> = scene.assignments().into_iter().map(|(n, _)| n).collect();
    left.sort();
    assert_eq!(left, ["comes-gon-two", "keeps-gon-two", "web-gon-one"]);
    scene.validate("comes", &two);
    scene.validate("keeps", &two);
    scene.validate_none("loses", &two);
    scene.validate_none("leaves", &two);
    served.goes_on();
    served.nothing_failed();
}
