//! Two brokers behind one address, as a Service has them: real processes on a real kube-apiserver, with a client that asks all the time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

#[path = "rbac/broker_world.rs"]
#[allow(dead_code, reason = "not every test needs all of it")]
mod broker_world;
#[path = "rbac/roles.rs"]
#[allow(dead_code, reason = "not every test needs all of it")]
mod roles;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use broker_world::World;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podid_testkit::ports::free_ports;
use podid_testkit::process::Process;
use tokio::net::{TcpListener, TcpStream};

/// Requests that must be answered after each event.
const AFTERWARDS: usize = 40;

/// Leads connections to the backends in turn, and past those that do not listen; its port.
async fn service(backends: [u16; 2]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut turn = 0;
        while let Ok((mut client, _)) = listener.accept().await {
            turn += 1;
            tokio::spawn(async move {
                for n in 0..backends.len() {
                    let backend = backends[(turn + n) % backends.len()];
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", backend)).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        return;
                    }
                }
            });
        }
    });
    port
}

/// A client that asks for another resource each time, so that nothing comes from memory.
struct Load {
    answered: AtomicUsize,
    ended: AtomicBool,
}

impl Load {
    async fn run(&self, world: &World, port: u16) {
        let client = world.client(port).await;
        while !self.ended.load(Ordering::Relaxed) {
            let count = self.answered.load(Ordering::Relaxed);
            let resource = format!("https://r{count}.example");
            let request = world.request(0, "reader", &resource);
            if let Err(error) = client.token(&request).await {
                panic!("request {count} was lost: {error}");
            }
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_when_one_of_two_brokers_is_killed_or_ends() {
    let world = Arc::new(World::build().await);
    let ports: [u16; 6] = free_ports().unwrap();
    let [first, second]: [[u16; 3]; 2] = [
        ports[..3].try_into().unwrap(),
        ports[3..].try_into().unwrap(),
    ];
    let mut one = world.start_at("one", first);
    let two = world.start_at("two", second);
    let ready = async |broker: &Process, [_, probe, _]: [u16; 3]| {
        let is_ready = async || world.is_ready_at(probe).await;
        world.until(broker, "ready", is_ready).await;
    };
    ready(&one, first).await;
    ready(&two, second).await;
    // The client keeps its connection, which leads to the first.
    let port = service([second[0], first[0]]).await;
    let load = Arc::new(Load {
        answered: AtomicUsize::new(0),
        ended: AtomicBool::new(false),
    });
    let asking = tokio::spawn({
        let (load, world) = (Arc::clone(&load), Arc::clone(&world));
        async move { load.run(&world, port).await }
    });
    let goes_on = async |broker: &Process, what: &str| {
        let wanted = load.answered.load(Ordering::Relaxed) + AFTERWARDS;
        let answered = async || {
            assert!(!asking.is_finished(), "{what}: a request was lost");
            load.answered.load(Ordering::Relaxed) >= wanted
        };
        world.until(broker, what, answered).await;
    };
    goes_on(&two, "both serve").await;
    let gave_tokens = |broker: &Process| broker.log().contains("token issued");
    assert!(gave_tokens(&one) && !gave_tokens(&two));
    one.kill();
    goes_on(&two, "one is killed").await;
    let one = world.start_at("one-again", first);
    ready(&one, first).await;
    goes_on(&one, "it is back").await;
    let pid = Pid::from_raw(two.pid().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    world
        .until(&one, "the other ends", async || two.has_ended())
        .await;
    goes_on(&one, "the other has ended").await;
    load.ended.store(true, Ordering::Relaxed);
    asking.await.unwrap();
    assert!(gave_tokens(&one) && gave_tokens(&two));
}
