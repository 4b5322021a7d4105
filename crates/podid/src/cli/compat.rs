//! Command-line compatibility with the original's `mic` and `nmi`: Go's single dash, Go's durations, klog's flags. `main`
//! normalises the arguments by it before clap sees them.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;

/// Go's flag package takes `-flag` for `--flag`. After `podid mic` and `podid nmi` both work.
pub fn normalise(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let role = args.get(1).and_then(|role| role.to_str());
    if matches!(role, Some("mic" | "nmi")) {
        for arg in args.iter_mut().skip(2) {
            if let Some(flag) = arg.to_str().and_then(single_dash) {
                *arg = flag.into();
            }
        }
    }
    args
}

fn single_dash(arg: &str) -> Option<String> {
    let name = arg.strip_prefix('-')?;
    let long = name.split('=').next().unwrap_or_default();
    let go = long == "v" || (long.len() > 1 && !name.starts_with('-'));
    let flag = long.starts_with(|c: char| c.is_ascii_alphabetic());
    (go && flag).then(|| format!("--{name}"))
}

/// Reads a duration as Go writes it: `15s`, `3m`, `1h30m`, `500ms`.
///
/// # Errors
/// Says what is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if bare && text != "0" {
        return Err(format!(
            "a unit is missing; write {text}s for {text} seconds"
        ));
    }
    if bare {
        return Ok(Duration::ZERO);
    }
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "expected a duration such as 15s, 3m or 1h30m".to_owned())
}

/// Log settings of both roles.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Logging")]
pub struct Logging {
    /// The form of log lines
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// How much is logged: 0 to 4 what happens, 5 to 7 also why, 8 and more everything. RUST_LOG overrides it
    #[arg(long = "v", value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,
    #[command(flatten)]
    klog: Klog,
}

/// The form of log lines.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Flags of klog: taken so that old manifests start, without effect because podid logs to standard error only.
#[derive(Args, Debug, Clone)]
struct Klog {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true)]
    logtostderr: Option<Option<bool>>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true)]
    alsologtostderr: Option<Option<bool>>,
    #[arg(long, hide = true)]
    stderrthreshold: Option<String>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
    #[arg(long, hide = true, alias = "log-dir")]
    log_dir: Option<String>,
    #[arg(long, hide = true, alias = "log-file")]
    log_file: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, alias = "skip-headers")]
    skip_headers: Option<Option<bool>>,
}

impl Logging {
    /// Starts logging to standard error.
    pub fn start(&self) {
        use tracing_subscriber::EnvFilter;
        let level = match self.verbosity {
            0..=4 => "info",
            5..=7 => "debug",
            _ => "trace",
        };
        // Libraries log little that helps an operator, and podid itself logs each failed call to the API server.
        let default = format!(
            "warn,kube_client=off,kube_runtime=off,podid={level},podid_mic={level},podid_nmi={level},podid_azure={level},podid_cluster={level},podid_intercept={level},podid_sim={level}"
        );
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        // A second start in one process keeps the first.
        let _ = match self.log_format {
            LogFormat::Text => logs
                .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                .try_init(),
            LogFormat::Json => logs.json().flatten_event(true).try_init(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(args: &[&str]) -> Vec<String> {
        let args = args.iter().map(OsString::from);
        normalise(args)
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_single_dash_is_a_flag_after_the_roles_only() {
        let args = normalised(&[
            "podid",
            "mic",
            "-cloudconfig=/x",
            "--kubeconfig",
            "-",
            "-v=5",
            "-v",
        ]);
        assert_eq!(
            args[2..],
            ["--cloudconfig=/x", "--kubeconfig", "-", "--v=5", "--v"]
        );
        assert_eq!(normalised(&["podid", "crds", "-verbose"])[2], "-verbose");
        assert_eq!(normalised(&["podid", "nmi", "-h", "-5"])[2..], ["-h", "-5"]);
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("3600s"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("3600").unwrap_err().contains("write 3600s"));
        for bad in ["", "x", "-5s", "5 parsecs"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
