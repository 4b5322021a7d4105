//! The commands of docs/take-over.md, run in their order by the shell. What a cluster has and a kube-apiserver has not is played: Jobs,
//! rollouts, the end of namespaces, and the pods of the two controllers, of which podid's is the real one with the flags and the account
//! of its Deployment.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use podid_testkit::process::Process;
use podid_testkit::tools;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::cluster;
use crate::takeover::{Original, furnish, holder};
use crate::world::World;

/// A cluster, and a shell with podid, helm and kubectl.
pub struct Stage {
    pub world: World,
    pub tools: tempfile::TempDir,
    /// Where commands are run.
    pub place: PathBuf,
    mic: Option<Process>,
    /// The generation of its Deployment that runs.
    generation: i64,
    original: Option<Original>,
    _players: JoinSet<()>,
}

impl Stage {
    pub async fn bare() -> Self {
        let world = World::new().await;
        let tools = tempfile::tempdir().unwrap();
        for (name, program) in [
            ("kubectl", world.api.kubectl().to_owned()),
            ("helm", tools::helm().unwrap()),
            ("podid", PathBuf::from(env!("CARGO_BIN_EXE_podid"))),
        ] {
            symlink(program, tools.path().join(name)).unwrap();
        }
        let mut players = JoinSet::new();
        let client = world.client.clone();
        let broken = Arc::new(AtomicBool::new(false));
        players.spawn(cluster::run_jobs(
            client.clone(),
            world.api.kubeconfig(),
            broken,
        ));
        players.spawn(cluster::roll_out(client.clone()));
        players.spawn(cluster::end_namespaces(client));
        Self {
            world,
            tools,
            place: tools::repository(),
            mic: None,
            generation: 0,
            original: None,
            _players: players,
        }
    }

    /// With AAD Pod Identity, which works.
    async fn set() -> Self {
        let mut stage = Self::bare().await;
        furnish(&stage.world).await;
        let apps = |kind: &str, name: &str| {
            let labels = json!({ "app": name });
            let pod = json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
            json!({
                "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": name, "namespace": "kube-system" },
                "spec": { "selector": { "matchLabels": labels }, "template": pod },
            })
        };
        stage
            .apply(&apps("Deployment", "aad-pod-identity-mic"))
            .await;
        stage
            .apply(&apps("DaemonSet", "aad-pod-identity-nmi"))
            .await;
        stage.original = Some(Original::start(&stage.world, "aad-pod-identity-mic-5d8c").await);
        stage
    }

    pub async fn apply(&self, object: &Value) {
        let object = object.to_string();
        let made = self.world.api.run_kubectl(&["apply", "-f", "-"], &object);
        let made = made.await.unwrap();
        assert!(made.status.success(), "{made:?}");
    }

    /// Starts and ends controllers as their Deployments say.
    async fn follow(&mut self) {
        let client = self.world.client.clone();
        let replicas = async |namespace: &str, name: &str| {
            let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
            let found = api.get_opt(name).await.unwrap();
            found
                .and_then(|d| d.spec)
                .and_then(|spec| spec.replicas)
                .unwrap_or_default()
        };
        match (
            replicas("kube-system", "aad-pod-identity-mic").await,
            self.original.take(),
        ) {
            (0, Some(original)) => original.stop().await,
            (0, None) => {}
            (_, None) => {
                self.original =
                    Some(Original::start(&self.world, "aad-pod-identity-mic-again").await)
            }
            (_, running) => self.original = running,
        }
        let api: Api<Deployment> = Api::namespaced(client.clone(), "podid");
        let found = api.get_opt("podid-mic").await.unwrap();
        let generation = found
            .and_then(|d| d.metadata.generation)
            .unwrap_or_default();
        let is_other = std::mem::replace(&mut self.generation, generation) != generation;
        if is_other && let Some(mic) = self.mic.take() {
            terminate(mic).await;
        }
        match (replicas("podid", "podid-mic").await, self.mic.take()) {
            (0, Some(mic)) => terminate(mic).await,
            (0, None) => {}
            (_, None) => self.mic = Some(self.start_mic().await),
            (_, running) => self.mic = running,
        }
    }

    /// podid's controller, as its Deployment has it, but for where Azure is and the ports.
    async fn start_mic(&self) -> Process {
        let api: Api<Deployment> = Api::namespaced(self.world.client.clone(), "podid");
        let pod = api
            .get("podid-mic")
            .await
            .unwrap()
            .spec
            .unwrap()
            .template
            .spec
            .unwrap();
        let account = pod.service_account_name.unwrap();
        let token = cluster::token(&self.world.client, "podid", &account).await;
        let admin = std::fs::read(self.world.api.kubeconfig()).unwrap();
        let mut config: Value = serde_json::from_slice(&admin).unwrap();
        config["users"][0]["user"] = json!({ "token": token });
        let file = self.tools.path().join("mic.kubeconfig");
        std::fs::write(&file, config.to_string()).unwrap();
        let container = &pod.containers[0];
        let given = container.args.clone().unwrap_or_default();
        let flags: Vec<&str> = given
            .iter()
            .map(String::as_str)
            .filter(|flag| {
                ![
                    "mic",
                    "--cloudconfig",
                    "--http-probe-port",
                    "--prometheus-port",
                    "--leader-election-instance",
                ]
                .iter()
                .any(|known| flag.starts_with(known))
            })
            .collect();
        self.world
            .start_as(&file, "podid-mic-7f4b-0", "podid", &flags)
    }

    pub async fn run(&mut self, commands: &str) -> Output {
        let path = format!(
            "{}:{}",
            self.tools.path().display(),
            std::env::var("PATH").unwrap()
        );
        let mut shell = tokio::process::Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", commands])
            .current_dir(&self.place)
            .env("PATH", path)
            .env("KUBECONFIG", self.world.api.kubeconfig())
            .kill_on_drop(true);
        let running = shell.output();
        let mut running = std::pin::pin!(tokio::time::timeout(Duration::from_secs(180), running));
        let output = loop {
            tokio::select! {
                ended = &mut running => break ended.unwrap().unwrap(),
                () = sleep(Duration::from_millis(200)) => self.follow().await,
            }
        };
        self.follow().await;
        let log = self.mic.as_ref().map(Process::log).unwrap_or_default();
        assert!(
            output.status.success(),
            "{commands}: {}\n{log}",
            cluster::text(&output)
        );
        output
    }

    pub async fn until(&mut self, what: &str, holds: impl AsyncFn(&World) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !holds(&self.world).await {
            let log = self.mic.as_ref().map(Process::log).unwrap_or_default();
            assert!(Instant::now() < deadline, "{what}: {log}");
            self.follow().await;
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn terminate(mic: Process) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(mic.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !mic.has_ended() {
        assert!(Instant::now() < deadline, "{}", mic.log());
        sleep(Duration::from_millis(50)).await;
    }
}

/// The commands of the page, block by block.
fn blocks() -> Vec<String> {
    let page = std::fs::read_to_string(tools::repository().join("docs/take-over.md")).unwrap();
    let parts: Vec<&str> = page.split("```").collect();
    let code = parts.iter().skip(1).step_by(2);
    code.map(|block| block.strip_prefix("sh\n").unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_take_over_and_go_back() {
    let [beside, status, stop, leads, agent, back, gone] = blocks().try_into().unwrap();
    let mut stage = Stage::set().await;
    let before = stage.world.assignments().await;

    stage.run(&beside).await;
    stage.until("podid waits", async |_| true).await;
    let log = Instant::now() + Duration::from_secs(60);
    while !stage
        .mic
        .as_ref()
        .unwrap()
        .log()
        .contains("podid waits until it is gone")
    {
        assert!(
            Instant::now() < log,
            "{}",
            stage.mic.as_ref().unwrap().log()
        );
        sleep(Duration::from_millis(100)).await;
    }
    let said = cluster::text(&stage.run(&status).await);
    assert!(
        said.contains("aad-pod-identity-mic-5d8c of AAD Pod Identity leads"),
        "{said}"
    );
    assert_eq!(stage.world.assignments().await, before);

    stage.run(&stop).await;
    let table = cluster::text(&stage.run(&leads).await);
    assert!(table.contains("Assigned"), "{table}");
    assert_eq!(holder(&stage.world).await, "podid/podid-mic-7f4b-0");
    assert_eq!(
        stage.world.assignments().await,
        before,
        "nothing is made anew"
    );
    stage.run(&agent).await;
    stage.world.pod("later", "two").await;
    stage
        .until("a new pod", async |w| w.assignments().await.len() == 3)
        .await;

    stage.run(&back).await;
    stage
        .until("the other leads", async |w| {
            holder(w).await == "aad-pod-identity-mic-again"
        })
        .await;
    assert!(stage.mic.is_none());
    let selector = stage.world.api.run_kubectl(
        &[
            "-n",
            "kube-system",
            "get",
            "daemonset",
            "aad-pod-identity-nmi",
            "-o",
            "jsonpath={.spec.template.spec.nodeSelector}",
        ],
        "",
    );
    assert!(!cluster::text(&selector.await.unwrap()).contains("replaced"));
    stage.run(&gone).await;
    assert_eq!(stage.world.assignments().await.len(), 3);
    assert_eq!(stage.world.azure.attached(&stage.world.set).len(), 2);
    assert_eq!(stage.world.changes(), 0);
    if let Some(original) = stage.original.take() {
        original.stop().await;
    }
}
