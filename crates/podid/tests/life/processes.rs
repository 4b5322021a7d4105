//! What happens to podid's own processes.

use podid_testkit::process::Process;

use crate::served::Served;
use crate::world::{Settings, World};

/// The number of the controller that leads.
fn leader(world: &World) -> Option<usize> {
    let line = "-n default get lease aad-pod-identity-mic -o jsonpath={.spec.holderIdentity}";
    world.says(line).strip_prefix("mic-")?.parse().ok()
}

fn until_another_leads(world: &World, than: usize) -> usize {
    world.until("another leads", || leader(world).is_some_and(|n| n != than));
    leader(world).unwrap()
}

/// SIGTERM, as by a rollout or an eviction; returns when it has ended.
fn terminate(world: &World, process: &Process) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(process.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    world.until("it ends", || process.has_ended());
    assert!(!process.log().contains("Error"), "{}", process.log());
}

#[test]
fn controllers_are_rolled_crash_and_are_evicted() {
    let served = Served::new("mic", Settings::default());
    let (scene, world) = (&served.scene, &served.scene.world);
    world.until("one leads", || leader(world).is_some());

    // Rolled: a new one comes before each old one goes.
    for round in 0..2 {
        let old = leader(world).unwrap();
        let next = world.mic(2 + round);
        terminate(world, &world.mics.lock().unwrap()[old]);
        until_another_leads(world, old);
        world.mics.lock().unwrap().push(next);
        served.another_comes_and_goes(&format!("rolled{round}"));
    }

    // A crash of the leader, while there is work for it.
    let crashed = leader(world).unwrap();
    scene.pod("crash", "one");
    world.mics.lock().unwrap()[crashed].kill();
    let next = until_another_leads(world, crashed);
    scene.until_assigned(2);
    scene.validate("crash", &served.identity);

    // All are evicted, and pods come and go while there is none.
    let again = world.mic(crashed);
    terminate(world, &world.mics.lock().unwrap()[next]);
    terminate(world, &again);
    scene.delete("pod", "crash");
    scene.pod("late", "one");
    served.goes_on();
    world.mics.lock().unwrap()[next] = world.mic(next);
    let wanted =
        ["late-mic-one", "web-mic-one"].map(|name| (name.to_owned(), "Assigned".to_owned()));
    world.until("the new pod's in place of the old one's", || {
        let mut left = scene.assignments();
        left.sort();
        left == wanted
    });
    scene.validate("late", &served.identity);
    served.nothing_failed();
}

fn served_by(world: &World, process: Process) -> Process {
    world.nmi.lock().unwrap().replace(process).unwrap()
}

#[test]
fn a_node_agent_is_rolled_and_nobody_notices() {
    let served = Served::new("rol", Settings::default());
    let world = &served.scene.world;
    for round in 0..2 {
        let old = served_by(world, world.agent(&format!("nmi-{round}")));
        world.until("the old one stands by", || {
            old.log().contains("standing by")
        });
        served.goes_on();
        terminate(world, &old);
        served.another_comes_and_goes(&format!("rolled{round}"));
    }
    served.nothing_failed();
}

#[test]
fn a_node_agent_crashes_and_is_evicted_and_nobody_gets_through_meanwhile() {
    let mut served = Served::new("agt", Settings::default());
    let asked = {
        let (scene, world) = (&served.scene, &served.scene.world);
        let asked = || {
            let journal = world.azure.journal();
            let of_imds = |entry: &&podid_sim::azure::Entry| entry.path.contains("/oauth2/token");
            journal.iter().filter(of_imds).count()
        };
        for (round, crash) in [true, false].into_iter().enumerate() {
            let before = asked();
            if crash {
                world.nmi.lock().unwrap().as_mut().unwrap().kill();
            } else {
                terminate(world, world.nmi.lock().unwrap().as_ref().unwrap());
            }
            for _ in 0..5 {
                assert_eq!(scene.ask("web", "").0, 0, "somebody answers");
            }
            assert_eq!(asked(), before, "the node's own identities were reached");
            served_by(world, world.agent(&format!("nmi-{round}")));
            world.until_ready();
            served.another_comes_and_goes(&format!("after{round}"));
        }
        asked()
    };
    assert!(asked > 0);
    // Refused while nobody was there, told to ask again while the new one did not know yet, and never answered wrongly.
    for failure in served.failures() {
        let refused = [
            "refused",
            "reset",
            "closed",
            "connect",
            "Broken pipe",
            "500",
        ];
        assert!(
            refused.iter().any(|word| failure.contains(word)),
            "{failure}"
        );
    }
}
