//! The simulated Azure of a world, in a network namespace or beside the test, and the files by which `podid mic` finds it.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use podid_sim::azure::{Azure, Config, Control, HostKind, Role};
use podid_testkit::net::{METADATA, Net};
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The resource group of everything.
pub const GROUP: &str = "nodes";
const SECRET: &str = "secret";

/// A simulated Azure on a thread of its own; it ends when this is dropped.
pub struct Running {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts it in the network namespace `azure`, with a scale set whose first machine the node is. What `beside` gives runs there, too.
pub fn start_in_namespace<F: Future<Output = ()>>(
    net: &Net,
    config: Config,
    set: &'static str,
    beside: impl FnOnce() -> F + Send + 'static,
) -> (Control, Running) {
    let namespace = std::fs::File::open(format!("/run/netns/{}", net.name("azure"))).unwrap();
    let stop = CancellationToken::new();
    let (ready, control) = mpsc::channel();
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let azure = Azure::bind(config).await.unwrap();
            let control = azure.control();
            let set = control.create_host(HostKind::ScaleSet, GROUP, set);
            let imds = SocketAddr::from((METADATA, 80));
            control.serve_imds(&set, Some(0), imds).await.unwrap();
            ready.send(control).unwrap();
            tokio::select! {
                ended = azure.run(stopped) => ended.unwrap(),
                () = beside() => {}
            }
        });
    });
    let running = Running {
        stop,
        thread: Some(thread),
    };
    (control.recv().unwrap(), running)
}

/// A simulated Azure beside the test, at free ports; it ends when this is dropped.
pub struct Local {
    pub control: Control,
    pub arm: SocketAddr,
    pub entra: SocketAddr,
    _stop: DropGuard,
}

/// Starts it on the test's own runtime.
pub async fn start(config: Config) -> Local {
    let azure = Azure::bind(config).await.unwrap();
    let stop = CancellationToken::new();
    let local = Local {
        control: azure.control(),
        arm: azure.arm(),
        entra: azure.entra(),
        _stop: stop.clone().drop_guard(),
    };
    tokio::spawn(azure.run(stop));
    local
}

impl Local {
    /// Writes where it is, as [`write_environment`].
    pub fn write_environment(&self, file: &Path) {
        let (arm, entra) = (
            format!("http://{}", self.arm),
            format!("http://{}", self.entra),
        );
        write_environment(file, arm, entra);
    }
}

/// Writes `azure.json` and `cloud.json` into a folder, for a controller.
pub fn write_azure(folder: &Path, azure: &Local) {
    let application = controller(&azure.control);
    write_credentials(&folder.join("azure.json"), &azure.control, &application);
    azure.write_environment(&folder.join("cloud.json"));
}

/// The client id of a new application that may do what a controller must: change hosts, and assign identities.
pub fn controller(azure: &Control) -> String {
    let (application, principal) = azure.create_application(SECRET);
    allow(azure, &principal);
    application
}

/// Lets a principal do what a controller must.
pub fn allow(azure: &Control, principal: &str) {
    let scope = format!(
        "/subscriptions/{}/resourceGroups/{GROUP}",
        azure.subscription()
    );
    for role in [
        Role::VirtualMachineContributor,
        Role::ManagedIdentityOperator,
    ] {
        azure.assign_role(principal, role, &scope);
    }
}

/// Writes an `azure.json` for an application of [`controller`].
pub fn write_credentials(file: &Path, azure: &Control, application: &str) {
    let credentials = json!({
        "cloud": "AzureStackCloud", "tenantId": azure.tenant(),
        "aadClientId": application, "aadClientSecret": SECRET,
    });
    std::fs::write(file, credentials.to_string()).unwrap();
}

/// Writes what `AZURE_ENVIRONMENT_FILEPATH` names: where Azure Resource Manager and Entra are.
pub fn write_environment(file: &Path, arm: impl Display, entra: impl Display) {
    let environment = json!({
        "resourceManagerEndpoint": format!("{arm}/"),
        "activeDirectoryEndpoint": format!("{entra}/"),
        "tokenAudience": "https://management.azure.com/",
    });
    std::fs::write(file, environment.to_string()).unwrap();
}
