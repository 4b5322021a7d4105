//! `podid nmi`: the flags of the original's `nmi`, and what they mean here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{ArgAction, Args, ValueEnum};
use podid_azure::clouds::{self, ENVIRONMENT_FILE};
use podid_azure::entra::Entra;
use podid_azure::imds::Imds;
use podid_intercept::handover::{self, Inheritance};
use podid_intercept::{Backend, HostNetwork, Keeper, Rules};
use podid_nmi::{Attestor, Config, POD_REQUESTS, Processes, StartupTaint, Upstream};
use podid_policy::matching::Scope;
use tokio::sync::watch;

use super::broker_client::Broker;
use super::compat::{Logging, duration};
use super::data_path;
use super::ignored::Ignored;
use super::interception::InterceptionTask;
use super::kubenet::{self, KUBENET};
use super::{api_client, run};

/// Time limit for one call to the issuer of tokens; after it the client gets 500, and most ask again by themselves.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for one token of the broker: more than the broker's own 12 s, so that its answer says what is slow.
const BROKER_TIMEOUT: Duration = Duration::from_secs(15);
/// SDKs take a token that lives for less than this as expired.
const TOKEN_FLOOR: Duration = Duration::from_secs(300);
/// Time limit to wait for the ports of a running node agent that speaks another version of the handover: it is about to end.
const FREE_PORT_TIMEOUT: Duration = Duration::from_secs(60);

/// Run the node agent: answer the metadata token endpoint for the pods of this node
///
/// Flags keep the names of AAD Pod Identity's nmi; one dash works as well as two.
#[derive(Args)]
pub struct Nmi {
    /// The node whose pods are served
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node: Option<String>,
    /// A kubeconfig file; without it KUBECONFIG, else the pod's own service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Take bindings of the pod's own namespace only. Give false to match across namespaces
    #[arg(long = "forceNamespaced", env = "FORCENAMESPACED", value_name = "BOOL", default_value_t = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    force_namespaced: bool,
    /// In standard mode the controller attaches identities; in managed mode an operator does
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Standard, ignore_case = true)]
    operation_mode: Mode,
    /// Of several identities of equal weight, give the first by name to a request that names none, instead of a 400
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set)]
    compat_pick_first: bool,
    /// How long a request is held for an identity that is being assigned, or that the metadata service does not have yet, and of a pod whose address is not known yet
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    assignment_wait: Duration,
    /// Resources of which tokens are fetched as soon as a pod is granted an identity, next to those it was asked for before
    #[arg(long, value_name = "RESOURCES", value_delimiter = ',')]
    prefetch_resources: Vec<String>,
    /// Read service principals' Secrets from other namespaces than their AzureIdentity's too
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set)]
    allow_cross_namespace_secrets: bool,
    /// Where a starting node agent takes over from the running one, so that no request is lost. Used where the directory exists; empty for never
    #[arg(long, value_name = "PATH", default_value = "/run/podid/nmi.sock", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    handover_socket: PathBuf,
    /// Added to the User-Agent of requests to Entra
    #[arg(long = "custom-user-agent", value_name = "TEXT")]
    user_agent: Option<String>,
    /// A taint that keeps pods off the node until this node agent is ready, which then takes it off; its value does not matter. Needs get and patch on nodes
    #[arg(long, value_name = "KEY[=VALUE][:EFFECT]")]
    startup_taint: Option<StartupTaint>,
    #[command(flatten)]
    door: Door,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    interception: Interception,
    #[command(flatten)]
    ports: Ports,
    #[command(flatten)]
    logging: Logging,
    #[command(flatten)]
    ignored: Ignored,
}

/// Who attaches identities to nodes.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Standard,
    Managed,
}

/// What is answered.
#[derive(Args)]
#[command(next_help_heading = "Requests")]
struct Door {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    nmi_listen_address: IpAddr,
    /// The port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 2579)]
    nmi_port: u16,
    /// Demand the header Metadata: true. Without, clients of MSI_ENDPOINT are served too: with clientid, and api-version 2017-09-01 or none
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set)]
    metadata_header_required: bool,
    /// Refuse /metadata/instance
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set)]
    block_instance_metadata: bool,
    /// Categories of metadata, such as instance or versions, that pods may read
    #[arg(long, value_name = "CATEGORIES", value_delimiter = ',')]
    allow_metadata_paths: Vec<String>,
    /// Serve /host/token, by which programs of the node that run as root get a pod's token, on this Unix socket
    #[arg(long, value_name = "PATH")]
    host_token_socket: Option<PathBuf>,
    /// Serve /host/token at --nmi-port too, to programs that run as root on the host's network: for the Key Vault CSI provider's usePodIdentity
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set)]
    host_token_loopback: bool,
    /// How many requests a second a pod may send, and twice as many at once; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = POD_REQUESTS, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pod_requests_per_second: u32,
    /// By what a pod is known
    #[arg(long, value_enum, value_name = "EVIDENCE", default_value_t = Attest::Auto)]
    attest: Attest,
}

/// What says that a caller is the pod that its address belongs to.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Attest {
    /// The network namespace of its processes where both are to be seen, else its address
    Auto,
    /// The network namespace of its processes, without exception
    Processes,
    /// Its address alone
    Address,
}

/// How requests get here.
#[derive(Args)]
#[command(next_help_heading = "Interception")]
struct Interception {
    /// How requests to the metadata address are intercepted
    #[arg(long = "interception", value_enum, value_name = "BACKEND", default_value_t = How::Auto)]
    how: How,
    /// The metadata service's address
    #[arg(long, value_name = "ADDRESS", default_value = "169.254.169.254")]
    metadata_ip: Ipv4Addr,
    /// The metadata service's port
    #[arg(long, value_name = "PORT", default_value_t = 80)]
    metadata_port: u16,
    /// How often the rules are checked and repaired, in seconds
    #[arg(
        long = "ipt-update-interval-sec",
        value_name = "SECONDS",
        default_value_t = 60
    )]
    interval: u64,
    /// Whose traffic of the host's network is intercepted too, and refused: pods there have no address of their own
    #[arg(long, value_enum, value_name = "WHOSE", default_value_t = Host::Off, num_args = 0..=1,
        require_equals = true, default_missing_value = "all")]
    intercept_host_network: Host,
    /// Remove the rules, so that pods reach the node's metadata service again, and exit
    #[arg(long)]
    cleanup: bool,
    /// The kubelet's file, searched for kubenet as its command line is: there a pod can take another's address
    #[arg(long, value_name = "FILE", default_value = "/etc/default/kubelet")]
    kubelet_config: PathBuf,
    /// Run on kubenet nevertheless
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set)]
    allow_network_plugin_kubenet: bool,
}

/// A way to intercept.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The best that this node has.
    Auto,
    Nftables,
    Iptables,
    /// None: clients are told the address, by AZURE_POD_IDENTITY_AUTHORITY_HOST. Rules that are in place stay.
    None,
    /// No longer: ends what is under way, removes the rules for good, and then lets pods reach whoever comes after podid.
    Withdraw,
}

/// Traffic of the host's network.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// Nobody's
    Off,
    /// That of pods, by eBPF on the kubelet's control group of version 2; needs the capability BPF, the host's /sys/fs/cgroup and /sys/fs/bpf
    Pods,
    /// Everybody's, the kubelet's and Azure's own agents' too
    All,
}

/// Ports for probes and metrics.
#[derive(Args)]
#[command(next_help_heading = "Ports")]
struct Ports {
    /// The port of /healthz and /readyz
    #[arg(long = "http-probe-port", value_name = "PORT", default_value_t = 8080)]
    probe: u16,
    /// The port of /metrics
    #[arg(long = "prometheus-port", value_name = "PORT", default_value_t = 9090)]
    prometheus: u16,
}

impl Nmi {
    /// Runs until SIGTERM. The interception rules stay.
    pub fn run(self) -> anyhow::Result<()> {
        self.logging.start();
        // A node's agent must be content with little.
        run::block_on(2, self.answer())
    }

    async fn answer(self) -> anyhow::Result<()> {
        self.refuse_contradictions()?;
        self.ignored.tell();
        let rules = self.rules()?;
        if self.interception.cleanup {
            for removed in Backend::cleanup(&rules).await? {
                tracing::info!(removed, "cleanup");
            }
            tracing::info!(
                "the interception rules are gone; pods reach the node's metadata service"
            );
            return Ok(());
        }
        self.refuse_kubenet()?;
        let shutdown = run::shutdown()?;
        let intercepts = self.interception.how != How::None;
        let address = SocketAddr::new(self.door.nmi_listen_address, self.door.nmi_port);
        let handover = self.handover()?;
        let mut inheritance = match &handover {
            Some(path) => Inheritance::ask(path, FREE_PORT_TIMEOUT).await,
            None => Inheritance::default(),
        };
        // Before anything else: a connect is answered, if only with "not yet".
        let doors = self.doors(address, &rules, &mut inheritance).await?;
        let client = api_client::client(self.kubeconfig.as_deref()).await?;
        let mark = intercepts.then_some(rules.mark_own);
        let (upstream, labels) = (self.upstream(client.clone(), mark)?, client.clone());
        let (active, is_active) = watch::channel(!intercepts);
        let config = self.config()?;
        tracing::info!(node = config.node, listen = %address, interception = ?self.interception.how, broker = self.broker.url(), "podid nmi starts");
        let mut nmi = podid_nmi::Nmi::new(config, client, upstream, is_active)
            .with_startup_taint(self.startup_taint.clone());
        let before = (rules.metadata, rules.metadata_port).into();
        let interception = self.interception_task(rules, &nmi).await?;
        if let InterceptionTask::Keep(keeper) = &interception {
            let node = self.node.clone().unwrap_or_default();
            // It ends with the runtime.
            tokio::spawn(data_path::read_label(labels, node, keeper.bypassed()));
        }
        let listeners = nmi.inherit(doors, before, &mut inheritance).await?;
        if let Some(path) = handover {
            nmi = nmi.with_takeover(path, inheritance.predecessor());
        }
        let shutdown = interception.shutdown(shutdown, nmi.serving(), active.subscribe());
        let interception = interception.run(nmi.serving(), active);
        let (outcome, ()) = tokio::join!(nmi.run(listeners, shutdown), interception);
        Ok(outcome?)
    }

    /// Where sockets are handed over, if anywhere.
    fn handover(&self) -> anyhow::Result<Option<PathBuf>> {
        let path = &self.handover_socket;
        if path.as_os_str().is_empty() || !handover::is_usable(path).context("--handover-socket")? {
            return Ok(None);
        }
        Ok(Some(path.clone()))
    }

    fn rules(&self) -> anyhow::Result<Rules> {
        let IpAddr::V4(listen_address) = self.door.nmi_listen_address else {
            ensure!(
                self.interception.how == How::None,
                "--nmi-listen-address: interception is IPv4 only"
            );
            return Ok(Rules::default());
        };
        Ok(Rules {
            listen_address,
            listen_port: self.door.nmi_port,
            metadata: self.interception.metadata_ip,
            metadata_port: self.interception.metadata_port,
            host_network: self.host_network()?,
            ..Rules::default()
        })
    }

    fn host_network(&self) -> anyhow::Result<HostNetwork> {
        match self.interception.intercept_host_network {
            Host::All => Ok(HostNetwork::All),
            // What is in place is removed whatever it is.
            Host::Pods if !self.interception.cleanup && self.interception.how != How::Withdraw => HostNetwork::pods().context(
                "--intercept-host-network=pods: no control group kubepods of the kubelet's is to be seen with this process in it; run podid nmi as a pod and give the DaemonSet the host's /sys/fs/cgroup, of version 2",
            ),
            Host::Off | Host::Pods => Ok(HostNetwork::Off),
        }
    }

    async fn doors(
        &self,
        address: SocketAddr,
        rules: &Rules,
        inheritance: &mut Inheritance,
    ) -> anyhow::Result<Vec<TcpListener>> {
        let intercepts = self.interception.how != How::None;
        let flags = "--nmi-listen-address and --nmi-port";
        let first = inheritance.listen(address, intercepts).await;
        let mut doors = vec![first.context(flags)?];
        // A listener at every address is at the metadata address, too.
        if intercepts && !address.ip().is_unspecified() {
            let metadata = (rules.metadata, rules.listen_port).into();
            match inheritance.listen_now(metadata, true) {
                Ok(door) => doors.push(door),
                Err(error) => tracing::warn!(
                    reason = %error,
                    "cannot listen at the metadata address, so that pods behind a bridge will be refused; see that nothing else on this node listens there"
                ),
            }
        }
        Ok(doors)
    }

    async fn interception_task(
        &self,
        rules: Rules,
        nmi: &podid_nmi::Nmi,
    ) -> anyhow::Result<InterceptionTask> {
        let backend = match self.interception.how {
            How::None => return Ok(InterceptionTask::None),
            How::Withdraw => return Ok(InterceptionTask::Withdraw(rules, nmi.final_drain())),
            How::Auto => Backend::detect(&rules).await?,
            How::Nftables => Backend::Nftables,
            How::Iptables => Backend::Iptables,
        };
        let interval = Duration::from_secs(self.interception.interval);
        let keeper = Keeper::new(backend, rules, interval);
        nmi.metrics().intercepted_by(keeper.state());
        Ok(InterceptionTask::Keep(keeper))
    }

    fn upstream(&self, client: kube::Client, mark: Option<u32>) -> anyhow::Result<Upstream> {
        let environment = std::env::var_os(ENVIRONMENT_FILE).map(PathBuf::from);
        let cloud = if environment.is_some() {
            "AzureStackCloud"
        } else {
            ""
        };
        let endpoints = clouds::endpoints(cloud, environment.as_deref())?;
        let address = (
            self.interception.metadata_ip,
            self.interception.metadata_port,
        );
        let imds = clouds::parse_url(
            "--metadata-ip",
            &format!("http://{}:{}", address.0, address.1),
        )?;
        let imds = Imds::new(&imds, mark, UPSTREAM_TIMEOUT);
        Ok(Upstream::new(
            imds,
            Entra::with_user_agent(
                &endpoints.authority,
                UPSTREAM_TIMEOUT,
                self.user_agent.as_deref(),
            )?,
            client,
            self.allow_cross_namespace_secrets,
        )
        .with_broker(self.broker.client(BROKER_TIMEOUT)?))
    }

    fn config(&self) -> anyhow::Result<Config> {
        let mut allowed_categories = self.door.allow_metadata_paths.clone();
        if !self.door.block_instance_metadata {
            allowed_categories.push("instance".to_owned());
        }
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Ok(Config {
            node: self.node.clone().unwrap_or_default(),
            scope: if self.force_namespaced {
                Scope::Namespaced
            } else {
                Scope::AcrossNamespaces
            },
            assigned_first: self.operation_mode == Mode::Standard,
            pick_first: self.compat_pick_first,
            prefetch: self.prefetch_resources.clone(),
            assignment_wait: self.assignment_wait,
            token_floor: TOKEN_FLOOR,
            metadata_header_required: self.door.metadata_header_required,
            allowed_categories,
            pod_requests: self.door.pod_requests_per_second,
            host_token_socket: self.door.host_token_socket.clone(),
            host_token_loopback: self.door.host_token_loopback,
            attestor: Some(self.attestor()?),
            probe: any(self.ports.probe),
            metrics: any(self.ports.prometheus),
        })
    }

    fn attestor(&self) -> anyhow::Result<Arc<Attestor>> {
        let asked = "--attest: the kernel cannot be asked";
        let strict = self.door.attest == Attest::Processes;
        let processes = match self.door.attest {
            Attest::Address => None,
            Attest::Auto | Attest::Processes => match Processes::of_node().context(asked)? {
                Ok(processes) => {
                    tracing::info!("pods are known by the network namespaces of their processes");
                    Some(processes)
                }
                Err(unseen) if strict => bail!("--attest=processes: {unseen}"),
                Err(unseen) => {
                    tracing::warn!("pods are known by their addresses alone, as {unseen}");
                    None
                }
            },
        };
        let attestor = Attestor::open(processes, strict).context(asked)?;
        Ok(Arc::new(attestor))
    }

    fn refuse_contradictions(&self) -> anyhow::Result<()> {
        ensure!(
            self.force_namespaced || self.operation_mode == Mode::Standard,
            "--operation-mode=managed needs --forceNamespaced=true: without a controller nothing else keeps a namespace's identities to it"
        );
        let (door, probe, metrics) = (self.door.nmi_port, self.ports.probe, self.ports.prometheus);
        let clash = |one: u16, other: u16| one != 0 && one == other;
        ensure!(
            !clash(probe, metrics),
            "--http-probe-port and --prometheus-port are both {probe}"
        );
        ensure!(
            !clash(door, probe),
            "--nmi-port and --http-probe-port are both {door}"
        );
        ensure!(
            !clash(door, metrics),
            "--nmi-port and --prometheus-port are both {door}"
        );
        let how = &self.interception;
        let is_named = self.node.as_ref().is_some_and(|node| !node.is_empty());
        ensure!(
            is_named || how.cleanup,
            "--node is required: the name of the node whose pods are served (spec.nodeName)"
        );
        let none = how.how == How::None;
        ensure!(
            !none || how.intercept_host_network == Host::Off,
            "--intercept-host-network contradicts --interception=none"
        );
        ensure!(
            !none || !how.cleanup,
            "--cleanup removes the rules of every backend; leave --interception=none out"
        );
        ensure!(
            none || door != 0,
            "--nmi-port=0 cannot be intercepted; give the port"
        );
        Ok(())
    }

    fn refuse_kubenet(&self) -> anyhow::Result<()> {
        let found = kubenet::find(&self.interception.kubelet_config, Path::new("/proc"));
        if let Some(place) = found
            && !self.interception.allow_network_plugin_kubenet
        {
            bail!(
                "{place} says {KUBENET}: there a pod can take another pod's address, and with it its identity; drop the capability NET_RAW from pods, then give --allow-network-plugin-kubenet"
            );
        }
        Ok(())
    }
}
