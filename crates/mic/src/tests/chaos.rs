//! Random pods, faults and kills: the controller always converges, and never detaches what others attached.

use super::*;

/// A small generator of repeatable numbers (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit).unwrap()
    }
}

const IDENTITIES: usize = 6;
/// What somebody else has attached from the beginning; pods use the first two, too.
const FOREIGN: [usize; 3] = [0, 1, 99];

fn strangers_untouched(world: &World) {
    for set in 0..3 {
        let there = world.azure.attached(&host(set));
        assert!(
            there.is_superset(&only(&FOREIGN)),
            "set{set} lost one: {there:?}"
        );
    }
}

fn wants(world: &World) -> Vec<BTreeSet<ResourceId>> {
    let mut wanted = vec![only(&FOREIGN); 3];
    for pod in world.api.all("pods") {
        let set: usize = pod["spec"]["nodeName"].as_str().unwrap()[1..]
            .parse()
            .unwrap();
        let selector = pod["metadata"]["labels"]["aadpodidbinding"]
            .as_str()
            .unwrap();
        wanted[set].insert(id(selector[1..].parse().unwrap()));
    }
    wanted
}

async fn act(world: &World, dice: &mut Dice, running: &mut Running) {
    let pod = format!("p{}", dice.below(10));
    match dice.below(12) {
        0..=4 => {
            world.api.delete("pods", "ns", &pod);
            let (node, n) = (format!("n{}", dice.below(3)), dice.below(IDENTITIES as u64));
            world.pod(&pod, &node, &format!("s{n}"));
        }
        5..=7 => world.api.delete("pods", "ns", &pod),
        8 => {
            let kind = [Fault::Throttled, Fault::Conflict, Fault::Unavailable][dice.below(3)];
            world.azure.0.lock().faults.push_back(fault(kind, Some(3)));
        }
        9 => {
            let path = ["configmaps", "azureassignedidentities"][dice.below(2)];
            world.api.break_writes(Some(path));
        }
        10 => world.api.break_writes(None),
        _ => {
            let next = world.start(config(&format!("mic-{}", dice.0))).await;
            std::mem::replace(running, next).kill().await;
        }
    }
    let pause = [5, 300, 4000, 40_000][dice.below(4)];
    sleep(Duration::from_millis(pause)).await;
}

async fn story(seed: u64) {
    let world = World::new();
    for set in 0..3 {
        world.node(&format!("n{set}"), set, 0);
        world
            .azure
            .0
            .lock()
            .attached
            .insert(host(set), only(&FOREIGN));
    }
    (0..IDENTITIES).for_each(|n| world.bound(n));
    let mut dice = Dice(seed * 7919 + 1);
    let mut running = world.start(config("mic")).await;
    for _ in 0..60 {
        act(&world, &mut dice, &mut running).await;
        strangers_untouched(&world);
    }
    world.api.break_writes(None);
    world.azure.0.lock().faults.clear();
    world
        .until("rest", |w| {
            let there: Vec<_> = (0..3).map(|set| w.azure.attached(&host(set))).collect();
            let pods = w.api.all("pods").len();
            there == wants(w) && w.assigned() == pods && w.objects().len() == pods
        })
        .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_it_converges_and_strangers_are_left_alone() {
    for seed in 1..=5 {
        story(seed).await;
    }
}
