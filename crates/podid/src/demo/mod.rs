//! Demo: the whole story on one machine, step by step, with both simulators and the real controller and node agent in this
//! process.

mod show;
mod stage;
mod story;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::time::timeout;

use crate::cli::run;
use show::Show;
use stage::Stage;

/// Time limit for one step of the story.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// Plays the story. With `keep`, everything runs on until interrupted.
///
/// # Errors
/// The step that did not happen, and why.
pub async fn run(keep: bool, json: bool) -> anyhow::Result<()> {
    let shutdown = run::shutdown()?;
    let mut show = Show::new(json);
    show.begin()?;
    let started = Instant::now();
    let mut stage = Stage::default();
    let outcome = tokio::select! {
        outcome = play(&mut stage, &mut show) => outcome,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    show.end(started.elapsed(), outcome.is_ok())?;
    if keep && outcome.is_ok() {
        show.kept(&stage.playground().await?)?;
        shutdown.cancelled().await;
    }
    stage.strike().await;
    outcome
}

async fn play(stage: &mut Stage, show: &mut Show) -> anyhow::Result<()> {
    for (number, step) in (1..).zip(story::STEPS) {
        show.starts(number, step)?;
        let happened = timeout(STEP_TIMEOUT, (step.act)(stage)).await;
        let happened = match happened {
            Ok(happened) => happened,
            Err(_) => Err(anyhow::anyhow!(
                "nothing within {} s",
                STEP_TIMEOUT.as_secs()
            )),
        };
        match happened {
            Ok(detail) => show.happened(number, step, &detail)?,
            Err(error) => {
                show.failed(number, step, &error)?;
                bail!("step {number} did not happen: {}", step.title);
            }
        }
        stage.alive().context("a part of podid ended by itself")?;
    }
    Ok(())
}
