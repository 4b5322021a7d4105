//! What is not warm, beside a bare hyper server in one run over loopback: `cargo bench -p podid-nmi --bench cold`. A thousand pods
//! share twenty identities; the metadata service counts how often it is asked.

// A benchmark is a program that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{
    Client, IDENTITIES, Outcome, RESOURCE, Server, bare, first_token, node_agent, serve, source,
    surroundings,
};

const PODS: u32 = 1_000;
const THREADS: u32 = 8;
/// Of no pod.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 9);

/// Times of requests, in order, and what they cost the server.
struct Figures {
    times: Vec<Duration>,
    cpu: Duration,
    trips: usize,
}

fn main() -> Outcome<()> {
    // Test runs build and start benchmarks too; only `cargo bench` says this.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let trips = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&trips);
    let surroundings = serve("surroundings", move |told| {
        surroundings(PODS, counted, told)
    })?;
    let nmi = serve("nmi", move |told| node_agent(surroundings.address, told))?;
    let body = first_token(nmi.address)?;
    let bare = serve("bare", move |told| bare(Bytes::from(body), told))?;
    let profile = if cfg!(debug_assertions) {
        "; DEBUG BUILD: these figures say nothing"
    } else {
        ""
    };
    println!("{PODS} pods, {IDENTITIES} identities{profile}\n");
    println!(
        "{:<46}{:>10}{:>10}{:>13}{:>8}{:>8}",
        "", "p50", "p99", "CPU/request", "ratio", "trips"
    );
    let run = |server: &Server, work: &dyn Fn() -> Outcome<Vec<Duration>>| -> Outcome<Figures> {
        trips.store(0, Ordering::SeqCst);
        let cpu = server.cpu()?;
        let mut times = work()?;
        times.sort_unstable();
        Ok(Figures {
            cpu: (server.cpu()? - cpu) / u32::try_from(times.len())?,
            times,
            trips: trips.load(Ordering::SeqCst),
        })
    };
    let base = run(&bare, &|| everyone(&bare, "warm"))?;
    show("bare hyper, a connection for each request", &base, &base);
    let figures = run(&nmi, &|| everyone(&nmi, "cold"))?;
    show("every pod's first token", &figures, &base);
    at_most(figures.trips, IDENTITIES)?;
    let figures = run(&nmi, &|| everyone(&nmi, "cold"))?;
    show("the same again, from memory", &figures, &base);
    at_most(figures.trips, 0)?;
    let figures = run(&nmi, &|| everyone(&nmi, "due"))?;
    show(
        "first tokens, each due for renewal at once",
        &figures,
        &base,
    );
    // Renewals go on behind their users' backs, no faster than the metadata service allows.
    let started = Instant::now();
    while trips.load(Ordering::SeqCst) < 2 * IDENTITIES as usize {
        if started.elapsed() > Duration::from_secs(20) {
            return Err("not every token was renewed".into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    at_most(trips.load(Ordering::SeqCst), 2 * IDENTITIES)?;
    let figures = run(&nmi, &|| at_once(&nmi))?;
    show("one new token, asked for 64 times at once", &figures, &base);
    at_most(figures.trips, 1)?;
    let figures = run(&nmi, &|| strangers(&nmi))?;
    show("an unknown pod's 400", &figures, &base);
    at_most(figures.trips, 0)
}

fn show(what: &str, figures: &Figures, base: &Figures) {
    let at = |percent: usize| figures.times[(figures.times.len() - 1) * percent / 100];
    let ratio = figures.cpu.as_secs_f64() / base.cpu.as_secs_f64();
    println!(
        "{what:<46}{:>10.1?}{:>10.1?}{:>13.1?}{ratio:>8.2}{:>8}",
        at(50),
        at(99),
        figures.cpu,
        figures.trips
    );
}

fn at_most(trips: usize, allowed: u32) -> Outcome<()> {
    match trips <= allowed as usize {
        true => Ok(()),
        false => Err(format!("{trips} trips to the metadata service, where {allowed} do").into()),
    }
}

/// Every pod asks once, on a connection of its own.
fn everyone(server: &Server, resource: &str) -> Outcome<Vec<Duration>> {
    let address = server.address;
    let threads: Vec<_> = (0..THREADS)
        .map(|first| {
            let resource = resource.to_owned();
            thread::spawn(move || -> Outcome<Vec<Duration>> {
                (first..PODS)
                    .step_by(THREADS as usize)
                    .map(|pod| {
                        let started = Instant::now();
                        Client::connect_as(source(pod), address, &resource)?.token()?;
                        Ok(started.elapsed())
                    })
                    .collect()
            })
        })
        .collect();
    collect(threads)
}

/// The same new token on many connections at the same moment.
fn at_once(server: &Server) -> Outcome<Vec<Duration>> {
    let address = server.address;
    let barrier = Arc::new(Barrier::new(64));
    let threads: Vec<_> = (0..64)
        .map(|_| {
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || -> Outcome<Vec<Duration>> {
                let mut client = Client::connect_as(source(0), address, "once")?;
                barrier.wait();
                let started = Instant::now();
                client.token()?;
                Ok(vec![started.elapsed()])
            })
        })
        .collect();
    collect(threads)
}

fn strangers(server: &Server) -> Outcome<Vec<Duration>> {
    let mut client = Client::connect_as(STRANGER, server.address, RESOURCE)?;
    (0..2_000)
        .map(|_| {
            let started = Instant::now();
            let answer = client.ask()?;
            if answer.starts_with(b"HTTP/1.1 400") {
                Ok(started.elapsed())
            } else {
                Err(format!("not refused: {}", String::from_utf8_lossy(answer)).into())
            }
        })
        .collect()
}

fn collect(threads: Vec<thread::JoinHandle<Outcome<Vec<Duration>>>>) -> Outcome<Vec<Duration>> {
    let mut all = Vec::new();
    for thread in threads {
        all.extend(thread.join().map_err(|_| "a client panicked")??);
    }
    Ok(all)
}
