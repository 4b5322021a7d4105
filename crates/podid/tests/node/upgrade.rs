//! Upgrade by helm from the chart and the images of an earlier commit (`tools/released/build`), while pods ask.

use std::process::Command;
use std::time::Instant;

use podid_testkit::tools;

use crate::load::Load;
use crate::namespace::{Namespace, bound, pod};
use crate::world::{NODES, figure, world_alone};

#[test]
fn nobody_notices_an_upgrade_from_an_earlier_version() {
    let world = world_alone();
    let (tag, commit) = tools::released_images().unwrap();
    let images = ["mic", "nmi"].map(|image| format!("localhost/podid/{image}:{tag}"));
    world.cluster.import_images(&images).unwrap();
    let earlier = world.cluster.folder().join("earlier");
    std::fs::create_dir_all(&earlier).unwrap();
    let chart = "git archive \"$0\" charts/podid | tar -x -C \"$1\"";
    let mut sh = Command::new("sh");
    sh.args(["-ec", chart, &commit])
        .arg(&earlier)
        .current_dir(tools::repository());
    assert!(sh.status().unwrap().success());

    // The way back is not promised to be unnoticed: the earlier version does not know the ways by which this one delivers requests.
    let started = Instant::now();
    world.install_chart(&earlier.join("charts/podid"), &world.values_of(&tag));
    figure(
        "helm has installed an earlier version in place of this one",
        started.elapsed(),
    );
    let before = Namespace::new(&world, "before");
    before.start(&NODES.map(|node| bound(pod(node, node))));
    for node in NODES {
        world.until("the earlier version serves", || {
            before.is_own(&before.ask(node))
        });
    }

    let load = Load::start(&world);
    let own = [world.load.client_id.as_str()];
    let started = Instant::now();
    world.install(&world.usual());
    world.rolled_out();
    figure(
        "helm has upgraded an earlier version to this one",
        started.elapsed(),
    );
    load.noticed_nothing("helm upgrades to this version", &own);
    for node in NODES {
        assert!(before.is_own(&before.ask(node)), "{}", world.explain());
    }
    let after = Namespace::new(&world, "after");
    after.start(&NODES.map(|node| bound(pod(node, node))));
    for node in NODES {
        world.until("this version serves", || after.is_own(&after.ask(node)));
    }
}
