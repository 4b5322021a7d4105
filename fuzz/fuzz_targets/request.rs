//! Fuzz target: any bytes, sent over TCP to a whole node agent by a pod that is granted nothing.

#![no_main]

#[path = "../../crates/nmi/tests/common/mod.rs"]
mod common;

use std::cell::OnceCell;

use common::Rig;
use common::fuzz::trial;
use common::objects::BARE;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static AGENT: OnceCell<(Runtime, Rig)> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    AGENT.with(|agent| {
        let (runtime, rig) = agent.get_or_init(|| {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let rig = runtime.block_on(common::rig(|config| config.pod_requests = u32::MAX));
            rig.upstream.forget();
            (runtime, rig)
        });
        runtime.block_on(trial(rig, BARE, bytes));
    });
});
