//! `podid sim`: the simulators on their own, for whoever develops against Azure's identities without Azure.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use podid_sim::azure::{self, Azure, Control, FederatedCredential, HostKind, Role};
use podid_sim::cluster::{self, Cluster};

use super::compat::duration;
use super::run;

/// Run a simulator: an Azure or a Kubernetes API, from memory, on this machine
#[derive(Args)]
pub struct Sim {
    #[command(subcommand)]
    which: Which,
}

#[derive(Subcommand)]
enum Which {
    Azure(SimAzure),
    Cluster(SimCluster),
}

/// Run a simulated Azure: metadata service, Entra and Resource Manager
///
/// Point AZURE_POD_IDENTITY_AUTHORITY_HOST at the metadata service, and any SDK's ManagedIdentityCredential gets tokens of the identities given with --identity. Entra exchanges tokens of other issuers too: give them with --federated-credential, or by Resource Manager's federatedIdentityCredentials.
#[derive(Args)]
struct SimAzure {
    /// The port of the metadata service of node 0 of scale set pool1; 0 for any
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    imds_port: u16,
    /// The port of Entra; 0 for any
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    entra_port: u16,
    /// The port of Resource Manager; 0 for any
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    arm_port: u16,
    /// The address to listen on. Beyond loopback, whoever reaches it can have tokens (which nobody but this simulator believes)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: IpAddr,
    /// User-assigned identities that exist and are attached from the start
    #[arg(long = "identity", value_name = "NAME")]
    identities: Vec<String>,
    /// A federated credential of an identity: tokens of this issuer for this subject (audience api://AzureADTokenExchange) stand for it
    #[arg(long = "federated-credential", value_name = "NAME,ISSUER,SUBJECT", value_parser = federated_credential)]
    federated: Vec<Federated>,
    /// The certificates (PEM) of authorities that Entra trusts beside the system's when it reads an issuer
    #[arg(long, value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
    /// How long after a write until all of Entra knows a federated credential; exchanges succeed and fail by turns before
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    credential_propagation: Duration,
    /// For how long a part of Entra that found no federated credential goes on without those that came since
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    negative_cache: Duration,
    /// How long tokens live
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    token_life: Duration,
    /// How long a change of a host's identities takes
    #[arg(long, value_name = "DURATION", default_value = "800ms", value_parser = duration)]
    patch_latency: Duration,
}

/// Run a simulated Kubernetes API, with podid's custom resources
#[derive(Args)]
struct SimCluster {
    /// The port to listen on; 0 for any
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Write the kubeconfig to this file
    #[arg(long, value_name = "FILE", default_value = "podid-sim.kubeconfig")]
    kubeconfig: PathBuf,
}

impl Sim {
    /// Runs until interrupted.
    pub fn run(self) -> anyhow::Result<()> {
        match self.which {
            Which::Azure(azure) => run::block_on(0, azure.serve()),
            Which::Cluster(cluster) => run::block_on(0, cluster.serve()),
        }
    }
}

impl SimAzure {
    async fn serve(self) -> anyhow::Result<()> {
        let shutdown = run::shutdown()?;
        let azure = Azure::bind(azure::Config {
            address: self.address,
            entra_port: self.entra_port,
            arm_port: self.arm_port,
            token_life: self.token_life,
            patch_latency: self.patch_latency,
            credential_propagation: self.credential_propagation,
            negative_cache: self.negative_cache,
            ..azure::Config::default()
        })
        .await
        .context("--address, --entra-port and --arm-port")?;
        let control = azure.control();
        if let Some(file) = &self.issuer_ca {
            let authorities = std::fs::read(file).map_err(anyhow::Error::from);
            let trusted = authorities.and_then(|pem| Ok(control.trust_issuers_by(&pem)?));
            trusted.with_context(|| format!("--issuer-ca {}", file.display()))?;
        }
        let set = control.create_host(HostKind::ScaleSet, "mc_podid_sim", "pool1");
        let address = SocketAddr::new(self.address, self.imds_port);
        let imds = control
            .serve_imds(&set, Some(0), address)
            .await
            .context("--imds-port")?;
        let text = self.describe(&azure, &control, &set, imds)?;
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(azure.run(shutdown).await?)
    }

    fn describe(
        &self,
        azure: &Azure,
        control: &Control,
        set: &str,
        imds: SocketAddr,
    ) -> anyhow::Result<String> {
        let [entra, arm, imds] = [azure.entra(), azure.arm(), imds].map(reachable);
        let mut text = format!(
            "export AZURE_POD_IDENTITY_AUTHORITY_HOST=http://{imds}\n\n\
             Entra             http://{entra}/{}\n\
             Resource Manager  http://{arm}   (what was asked: http://{arm}/_sim/journal)\n\
             scale set         {set}\n",
            control.tenant()
        );
        text += &self.create_identities(control, set)?;
        let (client, principal) = control.create_application("podid-sim-secret");
        let scope = format!("/subscriptions/{}", control.subscription());
        control.assign_role(&principal, Role::Owner, &scope);
        text += &format!("service principal {client} secret podid-sim-secret (Owner)\n");
        Ok(text)
    }

    /// Creates the identities with their federated credentials, and tells of them.
    fn create_identities(&self, control: &Control, set: &str) -> anyhow::Result<String> {
        let of_none = |credential: &&Federated| !self.identities.contains(&credential.identity);
        if let Some(credential) = self.federated.iter().find(of_none) {
            let name = &credential.identity;
            anyhow::bail!("--federated-credential: there is no --identity={name}");
        }
        let mut text = String::new();
        for name in &self.identities {
            let identity = control.create_identity("podid_sim", name);
            control.attach(set, &identity);
            text += &format!(
                "identity          {} client id {}\n",
                identity.id, identity.client_id
            );
            let own = self.federated.iter().filter(|one| one.identity == *name);
            for (
                n,
                Federated {
                    issuer, subject, ..
                },
            ) in own.enumerate()
            {
                let credential =
                    FederatedCredential::new(&format!("podid-sim-{n}"), issuer, subject);
                control.federate(&identity.client_id, credential);
                text += &format!("                  by tokens of {issuer} for {subject}\n");
            }
        }
        Ok(text)
    }
}

/// A federated credential of an identity.
#[derive(Clone)]
struct Federated {
    identity: String,
    issuer: String,
    subject: String,
}

/// Reads NAME,ISSUER,SUBJECT.
fn federated_credential(text: &str) -> Result<Federated, String> {
    let parts: Vec<&str> = text.splitn(3, ',').collect();
    match parts.as_slice() {
        [identity, issuer, subject] if !subject.is_empty() => Ok(Federated {
            identity: (*identity).to_owned(),
            issuer: (*issuer).to_owned(),
            subject: (*subject).to_owned(),
        }),
        _ => Err("it is a name of --identity, an issuer and a subject, with commas between".into()),
    }
}

/// An address at which this machine reaches what listens on all of them.
fn reachable(mut listening: SocketAddr) -> SocketAddr {
    match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listening.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listening.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listening
}

impl SimCluster {
    async fn serve(self) -> anyhow::Result<()> {
        let shutdown = run::shutdown()?;
        let cluster = Cluster::bind(cluster::Config {
            listen: (Ipv4Addr::LOCALHOST, self.port).into(),
            ..cluster::Config::default()
        })
        .await
        .context("--port")?;
        std::fs::write(&self.kubeconfig, cluster.kubeconfig())
            .with_context(|| format!("--kubeconfig {}", self.kubeconfig.display()))?;
        let addr = cluster.addr();
        let text = format!(
            "API server http://{addr}\n\nexport KUBECONFIG={}\npodid crds | kubectl apply -f -\n",
            self.kubeconfig.display()
        );
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(cluster.run(shutdown).await?)
    }
}
