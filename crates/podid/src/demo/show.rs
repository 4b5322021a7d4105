//! Output of the demo: aligned lines, colour only on a terminal, JSON for scripts.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use super::stage::Playground;
use super::story::{STEPS, Step};

/// Details begin here where the terminal is wide enough.
const TITLE: usize = 46;
const NARROW: usize = 60;

/// Tells the story as it happens.
pub struct Show {
    json: bool,
    terminal: bool,
    colour: bool,
    width: usize,
    section: &'static str,
    told: Vec<Value>,
}

impl Show {
    /// With `json`, nothing is printed before the end.
    pub fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            json,
            terminal: terminal && !json,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
            width: if terminal { width() } else { usize::MAX },
            section: "",
            told: Vec::new(),
        }
    }

    /// The title.
    pub fn begin(&self) -> io::Result<()> {
        self.line(&format!(
            "{}   a simulated cluster and a simulated Azure on this machine; nothing else is touched",
            self.paint("1", "podid demo")
        ))
    }

    /// A step is about to happen; shown on a terminal until it has.
    pub fn starts(&mut self, number: usize, step: &Step) -> io::Result<()> {
        if self.section != step.section {
            self.section = step.section;
            self.line("")?;
            self.line(&format!("  {}", self.paint("1", step.section)))?;
        }
        if self.terminal {
            let mut out = io::stdout().lock();
            write!(out, "  {number:>2} … {}", step.title)?;
            out.flush()?;
        }
        Ok(())
    }

    /// A step has happened.
    pub fn happened(&mut self, number: usize, step: &Step, detail: &str) -> io::Result<()> {
        self.told
            .push(json!({ "step": number, "title": step.title, "ok": true, "detail": detail }));
        self.step(number, &self.paint("32", "✓"), step, detail)
    }

    /// A step has not happened.
    pub fn failed(&mut self, number: usize, step: &Step, error: &anyhow::Error) -> io::Result<()> {
        let detail = format!("{error:#}");
        self.told
            .push(json!({ "step": number, "title": step.title, "ok": false, "detail": detail }));
        self.step(number, &self.paint("31", "✗"), step, &detail)
    }

    fn step(&self, number: usize, mark: &str, step: &Step, detail: &str) -> io::Result<()> {
        if self.terminal {
            // Back to the start of the line that `starts` has written, and over it.
            write!(io::stdout(), "\r\x1b[2K")?;
        }
        let title = step.title;
        let beside =
            self.width >= TITLE + NARROW && TITLE + detail.chars().count() + 8 <= self.width;
        if beside {
            self.line(&format!("  {number:>2} {mark} {title:<TITLE$} {detail}"))?;
        } else {
            self.line(&format!("  {number:>2} {mark} {title}"))?;
            self.wrapped(detail, "")?;
        }
        self.wrapped(step.why, "2")
    }

    fn wrapped(&self, text: &str, style: &str) -> io::Result<()> {
        let room = self.width.min(110).saturating_sub(7).max(20);
        let mut line = String::new();
        for word in text.split(' ') {
            if !line.is_empty() && line.chars().count() + word.chars().count() >= room {
                self.line(&format!("       {}", self.paint(style, &line)))?;
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(&format!("       {}", self.paint(style, &line)))
    }

    /// How it went.
    pub fn end(&self, took: Duration, whole: bool) -> io::Result<()> {
        let (done, all) = (
            self.told.iter().filter(|step| step["ok"] == true).count(),
            STEPS.len(),
        );
        let seconds = took.as_secs_f64();
        if self.json {
            let whole = json!({ "ok": whole, "seconds": seconds, "done": done, "of": all, "steps": self.told });
            return writeln!(io::stdout(), "{whole:#}");
        }
        self.line("")?;
        let next = if whole {
            "   Next: podid demo --keep, or docs/getting-started.md"
        } else {
            ""
        };
        self.line(&format!("  {done} of {all} in {seconds:.1} s.{next}"))
    }

    /// How to play with what was kept.
    pub fn kept(&self, playground: &Playground) -> io::Result<()> {
        let text = format!(
            "\n  Everything keeps running until Ctrl-C. In another terminal:\n\n  \
             export KUBECONFIG={}\n  \
             kubectl get azureidentities,azureidentitybindings,azureassignedidentities,pods -A\n\n  \
             export AZURE_POD_IDENTITY_AUTHORITY_HOST={}   # this machine is pod default/you, bound to {}\n  \
             curl -sH Metadata:true \"$AZURE_POD_IDENTITY_AUTHORITY_HOST/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://storage.azure.com\"\n\n  \
             what Azure was asked: curl -s {}/_sim/journal\n",
            playground.kubeconfig.display(),
            playground.authority,
            playground.identity,
            playground.arm
        );
        writeln!(io::stdout(), "{text}")
    }

    fn line(&self, text: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(io::stdout(), "{}", text.trim_end())
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colour && !style.is_empty() {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn width() -> usize {
    terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0))
}
