//! Child processes that run beside a test and never outlive it: their log, their end, and the commands that make them.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// Bytes of a log that a failed test prints.
const LOG_TAIL: usize = 4000;
/// A program that starts on a busy machine says that it is ready within this time.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A proxy outside the test's namespaces reaches nothing in them.
const PROXIES: [&str; 6] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
];

/// A command that the kernel kills when the thread that spawned it ends, run inside a network namespace when one is named.
pub fn command(netns: Option<&str>, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    if let Some(name) = netns {
        command.args(["ip", "netns", "exec", name]);
    }
    command.arg(program.as_ref()).stdin(Stdio::null());
    for name in PROXIES {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end with this standard input.
///
/// # Errors
/// When the program does not start.
pub fn run_with_input(mut command: Command, input: &str) -> Result<Output> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("{command:?} does not start"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // A program that refuses its arguments closes its input unread.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Ok(child.wait_with_output()?)
}

/// What a program printed, standard output first.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A running program. Killed and reaped on drop, and by the kernel when the test process dies first.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    log: PathBuf,
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<Option<ExitStatus>>>,
}

impl Process {
    /// Starts what [`command`] made, its output going to the file `log`.
    ///
    /// # Errors
    /// When the program or the log file cannot be had.
    pub fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("no log {}", log.display()))?;
        command.stdout(out.try_clone()?).stderr(out);
        let (stop, stopped) = mpsc::channel();
        let (started, start) = mpsc::channel();
        // The kernel's death signal follows the spawning thread, not its process: this one lives as long as the value,
        // while the thread of a test that shares it with others may end earlier.
        let keeper = std::thread::spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(anyhow!("{command:?} does not start: {error}")));
                    return None;
                }
            };
            let _ = started.send(Ok(child.id()));
            loop {
                match stopped.recv_timeout(Duration::from_millis(50)) {
                    Err(RecvTimeoutError::Timeout) => {
                        if let Ok(Some(status)) = child.try_wait() {
                            return Some(status);
                        }
                    }
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                        let _ = child.kill();
                        return child.wait().ok();
                    }
                }
            }
        });
        let pid = start.recv().context("the spawning thread died")??;
        Ok(Self {
            pid,
            log: log.to_owned(),
            stop: Some(stop),
            keeper: Some(keeper),
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it ended by itself.
    pub fn has_ended(&self) -> bool {
        self.keeper.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }

    /// The end of what it has printed so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let from = bytes.len().saturating_sub(LOG_TAIL);
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }

    /// Waits until the end of its log has `text`, and gives that end.
    ///
    /// # Errors
    /// When it ends first, or is silent for a minute.
    pub fn wait_for_log(&self, text: &str) -> Result<String> {
        let started = Instant::now();
        loop {
            let (ended, log) = (self.has_ended(), self.log());
            if log.contains(text) {
                return Ok(log);
            }
            if ended || started.elapsed() > READY_WITHIN {
                bail!("{text:?} is not in the log: {log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch;

    #[test]
    fn a_dropped_process_is_gone() {
        let folder = scratch::folder("process").unwrap();
        let mut sleep = command(None, "sleep");
        sleep.arg("600");
        let process = Process::spawn(sleep, &folder.path().join("log")).unwrap();
        let pid = process.pid();
        assert!(!process.has_ended());
        assert!(!scratch::is_dead(pid));
        drop(process);
        assert!(scratch::is_dead(pid));
    }

    #[test]
    fn its_output_is_kept() {
        let folder = scratch::folder("process").unwrap();
        let mut echo = command(None, "echo");
        echo.arg("hello");
        let process = Process::spawn(echo, &folder.path().join("log")).unwrap();
        assert_eq!(process.wait_for_log("hello").unwrap(), "hello\n");
    }

    #[test]
    fn a_program_that_ends_without_a_word_is_not_waited_for() {
        let folder = scratch::folder("process").unwrap();
        let process = Process::spawn(command(None, "true"), &folder.path().join("log")).unwrap();
        let error = process.wait_for_log("ready").unwrap_err().to_string();
        assert!(error.contains("ready"), "{error}");
    }

    #[test]
    fn a_command_is_given_its_input() {
        let output = run_with_input(command(None, "cat"), "hello").unwrap();
        assert_eq!(text(&output), "hello");
        // It reads nothing, and more is written than a pipe holds.
        let much = "x".repeat(1 << 20);
        assert!(
            run_with_input(command(None, "true"), &much)
                .unwrap()
                .status
                .success()
        );
    }
}
