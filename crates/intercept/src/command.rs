//! Subprocesses: runs the networking tools (`nft`, `iptables`, `ip`, `conntrack`) from PATH, bounded in time and output.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::Error;

/// A tool that runs longer is killed; `iptables -w 5` waits up to 5 s for the xtables lock.
const TOOL_TIMEOUT: Duration = Duration::from_secs(15);
/// Characters of a tool's message that an error keeps, so that a log line stays readable.
const MAX_DETAIL: usize = 400;

/// One call of a tool.
pub(crate) struct Call<'a> {
    tool: &'a str,
    args: Vec<&'a str>,
    input: Option<&'a str>,
}

/// A call of `tool` with blank-separated `args`.
pub(crate) fn call<'a>(tool: &'a str, args: &'a str) -> Call<'a> {
    Call {
        tool,
        args: args.split_whitespace().collect(),
        input: None,
    }
}

impl<'a> Call<'a> {
    /// Gives `text` on standard input.
    pub(crate) fn input(mut self, text: &'a str) -> Self {
        self.input = Some(text);
        self
    }

    /// Runs it and returns what it printed; a failure of the tool is an error.
    pub(crate) async fn run(self) -> Result<String, Error> {
        let output = self.output().await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(self.failure(&output))
    }

    /// Runs it and returns what it printed, or `None` if the tool failed: for questions that are answered by failing.
    pub(crate) async fn ask(self) -> Result<Option<String>, Error> {
        match self.run().await {
            Ok(text) => Ok(Some(text)),
            Err(Error::Failed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the tool can be run at all.
    pub(crate) async fn ask_installed(self) -> Result<bool, Error> {
        match self.ask().await {
            Ok(answer) => Ok(answer.is_some()),
            Err(Error::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn output(&self) -> Result<Output, Error> {
        match tokio::time::timeout(TOOL_TIMEOUT, self.spawn()).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(Error::Missing {
                tool: self.tool.to_owned(),
                package: package(self.tool),
            }),
            Ok(Err(error)) => Err(Error::Failed {
                command: self.line(),
                detail: error.to_string(),
            }),
            Err(_) => Err(Error::Timeout {
                command: self.line(),
                seconds: TOOL_TIMEOUT.as_secs(),
            }),
        }
    }

    async fn spawn(&self) -> io::Result<Output> {
        let mut child = Command::new(self.tool)
            .args(&self.args)
            .env("LC_ALL", "C")
            .stdin(if self.input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let (Some(text), Some(mut stdin)) = (self.input, child.stdin.take()) {
            // A tool that refuses early closes the pipe; its own message says more than this error would.
            stdin
                .write_all(text.as_bytes())
                .await
                .or_else(ignore_broken_pipe)?;
        }
        child.wait_with_output().await
    }

    fn failure(&self, output: &Output) -> Error {
        let said = String::from_utf8_lossy(&output.stderr);
        let mut detail: String = said
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(MAX_DETAIL)
            .collect();
        if detail.is_empty() {
            detail = output.status.to_string();
        }
        let command = self.line();
        let lower = detail.to_lowercase();
        if lower.contains("operation not permitted") || lower.contains("permission denied") {
            Error::Denied { command, detail }
        } else {
            Error::Failed { command, detail }
        }
    }

    fn line(&self) -> String {
        let mut line = self.tool.to_owned();
        for arg in &self.args {
            line.push(' ');
            line.push_str(arg);
        }
        line
    }
}

fn ignore_broken_pipe(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(error)
    }
}

fn package(tool: &str) -> &'static str {
    match tool {
        "nft" => "nftables",
        "conntrack" => "conntrack",
        "ip" => "iproute2",
        _ => "iptables",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_tool_names_its_package() {
        let error = call("conntrack-that-is-not-there", "-L")
            .run()
            .await
            .unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Missing);
        assert!(package("nft") == "nftables" && package("ip") == "iproute2");
    }

    #[tokio::test]
    async fn a_failure_carries_the_command_and_what_it_said() {
        let error = call("ls", "/there/is/nothing/here")
            .run()
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("ls /there/is/nothing/here failed: "),
            "{error}"
        );
        assert!(error.contains("No such file"), "{error}");
    }

    #[tokio::test]
    async fn input_reaches_the_tool() {
        assert_eq!(call("cat", "").input("words").run().await.unwrap(), "words");
    }
}
