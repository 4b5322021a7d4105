//! Kills: the controller is killed at any moment, again and again; the next one finishes its work, and detaches nothing of others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::world::{Clock, NODES, World, config, names, until};

/// How many worlds run at once.
const WORLDS: u64 = 10;
/// How many worlds with two leaders run at once.
const TWO_LEADERS: u64 = 8;
/// How many kills happen in each world.
const KILLS: usize = 100;
/// After every 10 kills, one leader may finish, and Azure and the objects are compared.
const ROUND: usize = 10;
const SETS: [&str; 2] = ["red", "blue"];
const IDENTITIES: [&str; 3] = ["one", "two", "three"];

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

struct Story {
    world: World,
    hosts: [String; 2],
    dice: Dice,
    /// The pods that exist, each with its scale set and its identity.
    pods: Vec<(String, usize, usize)>,
    born: usize,
}

impl Story {
    async fn new(clock: Arc<Clock>, seed: u64) -> Self {
        let world = World::at(clock).await;
        let hosts = [world.set(SETS[0]).await, world.set(SETS[1]).await];
        for name in IDENTITIES {
            world.bound(name).await;
        }
        // Somebody else has attached both; pods use "three", too.
        for (name, group) in [("foreign", NODES), ("three", crate::world::APPS)] {
            let identity = world.azure.create_identity(group, name);
            hosts
                .iter()
                .for_each(|host| world.azure.attach(host, &identity));
        }
        Self {
            world,
            hosts,
            dice: Dice(seed * 7919 + 1),
            pods: Vec::new(),
            born: 0,
        }
    }

    async fn act(&mut self) {
        if self.dice.below(2) == 0 || self.pods.is_empty() {
            let (set, identity) = (self.dice.below(2), self.dice.below(3));
            self.born += 1;
            let name = format!("p{}", self.born);
            let node = format!("{}-0", SETS[set]);
            self.world
                .pod("default", &name, &node, IDENTITIES[identity])
                .await;
            self.pods.push((name, set, identity));
        } else {
            let index = self.dice.below(self.pods.len() as u64);
            let (name, ..) = self.pods.swap_remove(index);
            self.world.delete("Pod", "default", &name).await;
        }
    }

    /// A leader runs for a while, pods come or go, and it is killed.
    async fn kill_one(&mut self) {
        let running = self.world.start(config("mic")).await;
        for _ in 0..self.dice.below(3) {
            self.act().await;
        }
        let pause = [20, 300, 2000, 8000, 20_000, 45_000][self.dice.below(6)];
        sleep(Duration::from_millis(self.dice.below(pause) as u64)).await;
        running.kill().await;
        self.nothing_of_others_is_gone();
    }

    fn nothing_of_others_is_gone(&self) {
        for host in &self.hosts {
            let there = self.world.on(host);
            assert!(there.is_superset(&names(["foreign", "three"])), "{there:?}");
        }
    }

    fn wanted(&self, set: usize) -> BTreeSet<String> {
        let here = self.pods.iter().filter(|(_, on, _)| *on == set);
        let mut wanted = names(["foreign", "three"]);
        wanted.extend(here.map(|(_, _, identity)| IDENTITIES[*identity].to_owned()));
        wanted
    }

    /// A leader that may finish makes objects and Azure agree, and no object stays because of its finalizer.
    async fn agree(&self) {
        let running = self.world.start(config("mic")).await;
        let settled = async || {
            let azure = (0..2).all(|set| self.world.on(&self.hosts[set]) == self.wanted(set));
            let objects = self.world.assignments().await;
            let assigned = objects.iter().all(|(_, state)| state == "Assigned");
            azure && assigned && objects.len() == self.pods.len()
        };
        until!("agreement", settled().await);
        for object in self.world.all("AzureAssignedIdentity").await {
            assert!(
                object["metadata"]["deletionTimestamp"].is_null(),
                "{object:#}"
            );
        }
        self.nothing_of_others_is_gone();
        running.stop().await;
    }
}

async fn story(clock: Arc<Clock>, seed: u64) {
    let mut story = Story::new(clock, seed).await;
    for kill in 1..=KILLS {
        story.kill_one().await;
        if kill % ROUND == 0 {
            story.agree().await;
        }
    }
    story.world.end().await;
}

#[tokio::test(start_paused = true)]
async fn killed_a_thousand_times_it_ends_in_agreement() {
    let clock = Arc::new(Clock::start());
    let mut stories = JoinSet::new();
    for seed in 1..=WORLDS {
        stories.spawn(story(clock.clone(), seed));
    }
    while let Some(ended) = stories.join_next().await {
        ended.unwrap();
    }
}

/// Two replicas lead at once, as when a paused process wakes up after its Lease was taken: here each holds a Lease of its own.
#[tokio::test(start_paused = true)]
async fn two_leaders_at_once_do_no_harm() {
    let clock = Arc::new(Clock::start());
    let mut stories = JoinSet::new();
    for seed in 1..=TWO_LEADERS {
        stories.spawn(two_leaders(clock.clone(), seed));
    }
    while let Some(ended) = stories.join_next().await {
        ended.unwrap();
    }
}

async fn two_leaders(clock: Arc<Clock>, seed: u64) {
    let mut story = Story::new(clock, seed).await;
    for round in 0..5 {
        let first = story.world.start(config("mic")).await;
        let mut other = config("other");
        other.lease_name = "another".to_owned();
        let second = story.world.start(other).await;
        for _ in 0..6 {
            story.act().await;
            sleep(Duration::from_secs(story.dice.below(9) as u64)).await;
            story.nothing_of_others_is_gone();
        }
        if round % 2 == 0 {
            first.kill().await;
            second.stop().await;
        } else {
            second.kill().await;
            first.stop().await;
        }
        story.agree().await;
    }
    story.world.end().await;
}
