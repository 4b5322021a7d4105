//! The clients of `tools/sdk`: how each is started in a pod's network namespace, and what it answers.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use podid_testkit::tools;
use serde_json::Value;

use crate::world::{World, text};

/// A program that asks for tokens with one or more client libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Python,
    OldPython,
    AzureCli,
    Azcopy,
    JavaScript,
    Go,
    OldGo,
    /// With this version of azure-identity.
    Java(&'static str),
    Rust,
}

/// A client library or a tool, as one row of the page.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    pub name: &'static str,
    pub program: Program,
    pub how: &'static str,
}

const fn client(name: &'static str, program: Program, how: &'static str) -> Client {
    Client { name, program, how }
}

pub const CLIENTS: &[Client] = &[
    client("Python `azure-identity`", Program::Python, "sync"),
    client("Python `azure-identity.aio`", Program::Python, "aio"),
    client(
        "Python `azure-identity`",
        Program::OldPython,
        "azure-identity",
    ),
    client("Python `msal`", Program::Python, "msal"),
    client("Python `msrestazure`", Program::OldPython, "msrestazure"),
    client("Azure CLI", Program::AzureCli, "az"),
    client(
        "JavaScript `@azure/identity`",
        Program::JavaScript,
        "credential",
    ),
    client(
        "JavaScript `@azure/identity`",
        Program::JavaScript,
        "identity-2",
    ),
    client(
        "JavaScript `@azure/identity`",
        Program::JavaScript,
        "identity-1",
    ),
    client("JavaScript `@azure/msal-node`", Program::JavaScript, "msal"),
    client(
        "Java `azure-identity`",
        Program::Java("1.18.4"),
        "credential",
    ),
    client(
        "Java `azure-identity`",
        Program::Java("1.10.4"),
        "credential",
    ),
    client(
        "Java `azure-identity`",
        Program::Java("1.2.5"),
        "credential",
    ),
    client("Go `azidentity`", Program::Go, "credential"),
    client("Go `azidentity`", Program::OldGo, "credential"),
    client("Go `adal`", Program::Go, "adal"),
    client("Go `go-azure-sdk` (Terraform)", Program::Go, "terraform"),
    client("Go `hamilton`", Program::Go, "hamilton"),
    client("Rust `azure_identity`", Program::Rust, "azure_identity"),
    client("Rust `object_store`", Program::Rust, "object_store"),
    client("azcopy", Program::Azcopy, "azcopy"),
];

impl Program {
    /// The command that asks in a pod, without the cases.
    pub fn command(self, world: &World, pod: &str) -> Command {
        let folder = tools::repository().join("tools/sdk");
        let script = |name: &str| folder.join(name).display().to_string();
        let (program, arguments) = match self {
            Self::Python => (on_path("python3"), vec![script("ask.py")]),
            Self::OldPython => (built("venv", &["old"]), vec![script("old/ask.py")]),
            Self::AzureCli => (built("venv", &["az"]), vec![script("az/ask.py")]),
            Self::Azcopy => (on_path("python3"), vec![script("azcopy/ask.py")]),
            Self::JavaScript => (on_path("node"), vec![script("js/ask.mjs")]),
            Self::Go => (built("go/build", &[]), vec![]),
            Self::OldGo => (built("go/old/build", &[]), vec![]),
            Self::Java(version) => (on_path("java"), java(&built("java/build", &[version]))),
            Self::Rust => (built("rust/build", &[]), vec![]),
        };
        // Old clients give up when a probe is not answered within 0.3 s, so they go before other work of the machine.
        let mut command = world.command(pod, "nice");
        command.args(["-n", "-15", &program]).args(arguments);
        command
    }
}

/// The arguments of a virtual machine that lives for a second, and so compiles little.
fn java(class_path: &str) -> Vec<String> {
    ["-XX:TieredStopAtLevel=1", "-cp", class_path, "Ask"]
        .map(str::to_owned)
        .into()
}

fn on_path(program: &str) -> String {
    let path = tools::on_path(program).unwrap_or_else(|| PathBuf::from(program));
    path.display().to_string()
}

/// What a script of `tools/sdk` builds, or has built.
fn built(script: &str, arguments: &[&str]) -> String {
    let script = tools::repository().join("tools/sdk").join(script);
    let output = Command::new(script).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "run tools/setup: {}",
        text(&output)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// One answer of a client.
#[derive(Debug)]
#[allow(dead_code, reason = "the case is for whoever reads a failure")]
pub struct Said {
    pub case: Value,
    pub token: Option<String>,
    pub error: String,
    /// The client has no way of naming an identity like this.
    pub unsupported: bool,
    pub seconds: f64,
    pub version: String,
}

/// A client that is under way; many run at once.
pub struct Asking {
    child: Child,
    cases: Vec<Value>,
}

/// Starts a client.
pub fn start(command: &mut Command, cases: Vec<Value>) -> Asking {
    command.arg(Value::from(cases.clone()).to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    Asking { child, cases }
}

impl Asking {
    /// Whether a connection to the metadata service is open in its network namespace.
    pub fn is_connected(&self) -> bool {
        // Address, port and state ESTABLISHED, as the kernel writes them; Java's sockets are of IPv6.
        ["tcp", "tcp6"].iter().any(|family| {
            let sockets =
                std::fs::read_to_string(format!("/proc/{}/net/{family}", self.child.id()));
            sockets.is_ok_and(|sockets| sockets.contains("FEA9FEA9:0050 01"))
        })
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its answers.
    pub fn answers(self) -> Vec<Said> {
        let output = self.child.wait_with_output().unwrap();
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let said: Vec<Said> = self
            .cases
            .iter()
            .zip(lines.lines())
            .map(|(case, line)| read(case, &serde_json::from_str(line).unwrap()))
            .collect();
        assert_eq!(said.len(), self.cases.len(), "{}", text(&output));
        said
    }
}

fn read(case: &Value, line: &Value) -> Said {
    let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
    Said {
        case: case.clone(),
        token: line["token"].as_str().map(str::to_owned),
        error: text("error"),
        unsupported: line["unsupported"] == true,
        seconds: line["seconds"].as_f64().unwrap(),
        version: text("version").trim_start_matches('v').to_owned(),
    }
}
