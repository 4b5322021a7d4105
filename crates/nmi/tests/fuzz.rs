//! Fuzzing: thousands of mutated requests of the corpus. The fuzz target in `fuzz/` runs the same check with libFuzzer, without end.

mod common;

use std::time::{Duration, Instant};

use common::corpus::entries;
use common::fuzz::{Mutator, trial};
use common::objects::BARE;
use common::rig;
use futures::StreamExt as _;

/// Requests of a run.
const CASES: usize = 10_000;
/// Time of a run in seconds; a slow machine sends fewer than [`CASES`] in it.
const TIME: Duration = Duration::from_secs(10);
/// Requests below which a run does not count.
const AT_LEAST: usize = 500;
/// Fixed, so that a failure can be repeated.
const SEED: u64 = 23_551;

#[tokio::test]
async fn no_bytes_reach_the_metadata_service_past_podid() {
    let rig = rig(|config| config.pod_requests = 1_000_000).await;
    rig.upstream.forget();
    let small = |entry: common::corpus::Entry| (entry.bytes.len() < 8192).then_some(entry.bytes);
    let seeds = entries().into_iter().filter_map(small).collect();
    let mut mutator = Mutator::new(seeds, SEED);
    let until = Instant::now() + TIME;
    let cases = std::iter::from_fn(|| (Instant::now() < until).then(|| mutator.next()));
    let rig = &rig;
    let done = futures::stream::iter(cases.take(CASES))
        .map(|bytes| async move { trial(rig, BARE, &bytes).await })
        .buffer_unordered(32)
        .count()
        .await;
    assert!(done >= AT_LEAST, "{done} in {TIME:?}");
}
