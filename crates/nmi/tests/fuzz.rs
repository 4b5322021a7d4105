//! Thousands of requests that are nearly those of the corpus. `fuzz/` at the root of the repository goes on where this ends.

mod common;

use std::time::{Duration, Instant};

use common::corpus::entries;
use common::fuzz::{Mutator, trial};
use common::objects::BARE;
use common::rig;
use futures::StreamExt as _;

const CASES: usize = 10_000;
/// A slow machine does what it can.
const TIME: Duration = Duration::from_secs(10);
const AT_LEAST: usize = 500;
const SEED: u64 = 23_551;

#[tokio::test]
async fn no_bytes_get_past_the_door() {
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
