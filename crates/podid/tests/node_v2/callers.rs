//! Who is given what: a stolen address on the bridge, where nmi is the first pod of its node.

use crate::machine::{NODE, emulated};
use crate::namespace::{Namespace, bound, network_admin, pod};
use crate::world::text;

#[test]
fn nmi_attests_pods_though_it_is_the_first_pod_of_its_node() {
    let emulated = emulated();
    let world = &emulated.world;
    emulated.until("nmi is alone on its node", || emulated.pods().len() == 1);
    let before = emulated.nmi();
    let name = before[0]["metadata"]["name"].as_str().unwrap();
    world.kubectl(&["-n", "podid", "delete", "pod", name]);
    emulated.await_podid();
    assert_ne!(
        emulated.nmi()[0]["metadata"]["uid"],
        before[0]["metadata"]["uid"]
    );

    let theft = Namespace::new(world, "theft");
    theft.start(&[bound(pod("owner", NODE)), network_admin("thief", NODE)]);
    let answer = theft.ask("owner");
    assert!(theft.is_own(&answer), "{answer:?}\n{}", world.explain());
    let address = theft.get(&["pod", "owner"])["status"]["podIP"].clone();
    let address = address.as_str().unwrap();
    let take = format!("ip addr add {address}/24 dev eth0 && arping -U -c 2 -I eth0 {address}");
    let taken = theft.exec("thief", &["sh", "-c", &take]);
    assert!(taken.status.success(), "{}", text(&taken));
    for _ in 0..3 {
        let (status, body) = theft.ask_from("thief", address);
        assert_eq!(status, 500, "{body}");
        assert!(!body.contains("access_token"));
    }
    theft.exec(
        "thief",
        &["ip", "addr", "del", &format!("{address}/24"), "dev", "eth0"],
    );
    emulated.until("the owner is served again", || {
        theft.is_own(&theft.ask("owner"))
    });
}
