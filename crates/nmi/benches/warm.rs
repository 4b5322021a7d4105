//! A warm token request beside a bare hyper server that answers with the same bytes, in one run over loopback:
//! `cargo bench -p podid-nmi --bench warm`. `PODS` (default 30) is the number of pods on the node.
//!
//! Each server runs on one thread of its own, whose CPU time the kernel counts; the clients run on others.

// A benchmark is a program that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Client, Outcome, Server, bare, first_token, node_agent, serve, surroundings};

const WARM_UP: usize = 2_000;
const REQUESTS: usize = 20_000;
const CONNECTIONS: usize = 4;
/// Runs of each server, in turn, so that a disturbance of the machine meets both; the best one counts.
const ROUNDS: usize = 3;

fn main() -> Outcome<()> {
    // Test runs build and start benchmarks too; only `cargo bench` says this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let pods = match std::env::var("PODS") {
        Ok(text) => text.parse()?,
        Err(_) => 30,
    };
    let surroundings = serve("surroundings", move |told| {
        surroundings(pods, Arc::default(), told)
    })?;
    let nmi = serve("nmi", move |told| node_agent(surroundings.address, told))?;
    let body = first_token(nmi.address)?;
    let length = body.len();
    let bare = serve("bare", move |told| bare(Bytes::from(body), told))?;
    let mut best: [Option<Figures>; 2] = [None, None];
    for _ in 0..ROUNDS {
        for (server, best) in [&bare, &nmi].into_iter().zip(&mut best) {
            let figures = measure(server)?;
            if best.as_ref().is_none_or(|best| figures.cpu < best.cpu) {
                *best = Some(figures);
            }
        }
    }
    let [Some(bare), Some(nmi)] = best else {
        return Err("nothing was measured".into());
    };
    let profile = if cfg!(debug_assertions) {
        "; DEBUG BUILD: these figures say nothing"
    } else {
        ""
    };
    println!("{pods} pods on the node, body of {length} bytes{profile}");
    println!("              p50        p99   requests/s   CPU/request");
    show("bare hyper", &bare);
    show("nmi, warm", &nmi);
    let ratio = nmi.cpu.as_secs_f64() / bare.cpu.as_secs_f64();
    println!("CPU per warm token: {ratio:.2} x bare hyper");
    Ok(())
}

fn show(name: &str, figures: &Figures) {
    let Figures {
        p50,
        p99,
        rate,
        cpu,
    } = figures;
    println!("{name:<11}{p50:>9.1?}  {p99:>9.1?} {rate:>12.0}  {cpu:>12.1?}");
}

struct Figures {
    p50: Duration,
    p99: Duration,
    /// Requests per second over several connections.
    rate: f64,
    /// CPU time of the server's thread for one request, kernel included.
    cpu: Duration,
}

fn measure(server: &Server) -> Outcome<Figures> {
    let mut client = Client::connect(server.address)?;
    for _ in 0..WARM_UP {
        client.token()?;
    }
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let start = Instant::now();
        client.token()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let (cpu, start) = (server.cpu()?, Instant::now());
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(|| many(server.address, REQUESTS / CONNECTIONS)))
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| "a client panicked")?)
    })?;
    let took = start.elapsed();
    let cpu = server.cpu()? - cpu;
    Ok(Figures {
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
        rate: REQUESTS as f64 / took.as_secs_f64(),
        cpu: cpu / u32::try_from(REQUESTS)?,
    })
}

fn many(address: SocketAddr, requests: usize) -> Outcome<()> {
    let mut client = Client::connect(address)?;
    for _ in 0..requests {
        client.token()?;
    }
    Ok(())
}
