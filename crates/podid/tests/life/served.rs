//! A pod that is served all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use podid_sim::azure::Identity;

use crate::client::{Habit, Load};
use crate::world::{Scene, Settings, World};

/// Together within what one pod may ask for.
const HABITS: [Habit; 3] = [
    Habit::Fresh(Duration::from_millis(50)),
    Habit::Kept(Duration::from_millis(50)),
    Habit::Kept(Duration::from_millis(1200)),
];

/// A scene with the pod `web` on `node-1`, which has the identity `one` and asks for tokens of it without a pause.
pub struct Served {
    pub scene: Scene,
    pub identity: Identity,
    load: Option<Load>,
    over: Arc<AtomicBool>,
    watching: Option<JoinHandle<usize>>,
}

impl Served {
    /// A world of its own, in which the scene has this name.
    pub fn new(name: &str, settings: Settings) -> Self {
        let world = Arc::new(World::build(settings));
        let scene = Scene::within(world.clone(), name);
        let identity = scene.bound("one");
        scene.pod("web", "one");
        scene.until_assigned(1);
        scene.validate("web", &identity);
        let pod = world.net.name(&scene.place("web"));
        let load = Load::start(&[pod], &HABITS);
        let over = Arc::<AtomicBool>::default();
        let (told, attached) = (over.clone(), format!("{name}-one"));
        let watching = std::thread::spawn(move || {
            let mut lapses = 0;
            while !told.load(Ordering::Relaxed) {
                lapses += usize::from(!world.on(&world.set).contains(&attached));
                std::thread::sleep(Duration::from_millis(2));
            }
            lapses
        });
        Self {
            scene,
            identity,
            load: Some(load),
            over,
            watching: Some(watching),
        }
    }

    /// Waits until the pod has been served many times more.
    pub fn goes_on(&self) {
        let load = self.load.as_ref().unwrap();
        let before = load.served();
        self.scene
            .world
            .until("the pod is served", || load.served() > before + 50);
    }

    /// A new pod comes, is served with the same identity, and goes.
    pub fn another_comes_and_goes(&self, name: &str) {
        self.goes_on();
        let before = self.scene.assignments().len();
        self.scene.pod(name, "one");
        self.scene.until_assigned(before + 1);
        self.scene.validate(name, &self.identity);
        self.scene.delete("pod", name);
        self.scene.until_assigned(before);
        self.goes_on();
    }

    /// Ends it; gives what failed.
    pub fn failures(&mut self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let lapses = self.watching.take().unwrap().join().unwrap();
        assert_eq!(lapses, 0, "its identity was detached");
        self.load.take().unwrap().failures()
    }

    /// Ends it: nothing failed.
    pub fn nothing_failed(mut self) {
        let failures = self.failures();
        assert!(failures.is_empty(), "{failures:#?}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The world ends with its last holder.
        self.over.store(true, Ordering::Relaxed);
    }
}
