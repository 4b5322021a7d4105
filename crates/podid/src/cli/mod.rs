//! Command line: one file per command.

mod api_client;
mod atomic_file;
mod boot_rules;
mod broker;
mod broker_client;
mod cloud;
pub mod compat;
mod crds;
mod data_path;
#[cfg(feature = "simulators")]
mod demo;
mod detach_all;
mod ignored;
mod interception;
mod issuer;
mod kubenet;
mod manifests;
mod mic;
mod nmi;
#[cfg(test)]
mod reference;
pub mod run;
#[cfg(feature = "simulators")]
mod sim;
mod status;
mod table;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Azure identities for Kubernetes pods.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Mic(Box<mic::Mic>),
    Nmi(Box<nmi::Nmi>),
    Broker(Box<broker::Broker>),
    #[cfg(feature = "simulators")]
    Demo(demo::Demo),
    #[cfg(feature = "simulators")]
    Sim(sim::Sim),
    Crds(crds::Crds),
    DetachAll(detach_all::DetachAll),
    Manifests(manifests::Manifests),
    BootRules(boot_rules::BootRules),
    Status(status::Status),
    Issuer(issuer::Issuer),
}

impl Cli {
    /// Runs the command. Exit codes: 1 for a failure, whose causes are on standard error; 2 for flags that cannot be understood;
    /// 3 when `podid status` or `podid issuer` finds something wrong with the cluster.
    pub fn run(self) -> ExitCode {
        let Self { command } = self;
        let outcome = match command {
            Command::Mic(mic) => mic.run(),
            Command::Nmi(nmi) => nmi.run(),
            Command::Broker(broker) => broker.run(),
            #[cfg(feature = "simulators")]
            Command::Demo(demo) => demo.run(),
            #[cfg(feature = "simulators")]
            Command::Sim(sim) => sim.run(),
            Command::Crds(crds) => crds.run(),
            Command::DetachAll(detach) => detach.run(),
            Command::Manifests(manifests) => manifests.run(),
            Command::BootRules(rules) => rules.run(),
            Command::Status(status) => match status.run() {
                Ok(false) => return ExitCode::from(3),
                healthy => healthy.map(|_| ()),
            },
            Command::Issuer(issuer) => match issuer.run() {
                Ok(false) => return ExitCode::from(3),
                usable => usable.map(|_| ()),
            },
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // Standard error may be closed, and there is no other place for the error.
                let _ = writeln!(std::io::stderr(), "podid: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Command lines of the original's manifests, chart and documentation.
    #[test]
    fn the_originals_command_lines_are_taken() {
        for line in [
            "mic --cloudconfig=/etc/kubernetes/azure.json --logtostderr",
            "mic -cloudconfig /etc/kubernetes/azure.json -kubeconfig=/var/lib/kubelet/kubeconfig -v=9 -logtostderr=true",
            "mic --syncRetryDuration=3600s --leader-election-instance=mic-0 --leader-election-namespace=kube-system --leader-election-name=lock --leader-election-duration=10s --http-probe-port=8080 --prometheus-port=8888",
            "mic --createDeleteBatch=20 --clientQps=5.000000 --immutable-user-msis=6f1c0000-0000-0000-0000-0000000022ab --update-user-msi-max-retry=2 --update-user-msi-retry-interval=1s --identity-assignment-reconcile-interval=3m --log-format=json",
            "mic --config-map-name=c --type-upgrade-status-key=k --enable-type-upgrade=true --enableScaleFeatures=true --enableProfile --custom-user-agent=x --forceNamespaced",
            "nmi --node=node-1 --http-probe-port=8085 --enableScaleFeatures=true --metadata-header-required=true --operation-mode=standard --kubelet-config=/etc/default/kubelet",
            "nmi --node node-1 --operation-mode=Managed --forceNamespaced --block-instance-metadata --set-retry-after-header --enable-conntrack-deletion=true --allow-network-plugin-kubenet=true",
            "nmi --node node-1 --handover-socket=",
            "nmi --node node-1 --ipt-update-interval-sec=60 --retry-attempts-for-created=16 --retry-attempts-for-assigned=4 --find-identity-retry-interval=5 --MICNamespace=default --nmi-port=2579 --metadata-ip=169.254.169.254 --metadata-port=80 --log-format text --v=5",
        ] {
            let args = std::iter::once("podid")
                .chain(line.split(' '))
                .map(Into::into);
            if let Err(error) = Cli::try_parse_from(compat::normalise(args)) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn a_misspelt_flag_is_refused() {
        let args = ["podid", "nmi", "-nodename=x"].into_iter().map(Into::into);
        assert!(Cli::try_parse_from(compat::normalise(args)).is_err());
    }
}
