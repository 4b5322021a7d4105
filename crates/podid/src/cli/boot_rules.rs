//! `podid boot-rules`: rules that a node loads at its boot, so that pods are refused the metadata service until `podid nmi` runs.
//!
//! What it prints an operator puts into a node image; `--install` writes the same files on a node whose image is not the
//! operator's, from the init container of `nmi.bootRules`.
//!
//! ```text
//! podid/boot-rules.nft                                             the rules, for nft
//! podid/boot-rules.iptables                                        the same, for nodes without nft
//! systemd/system/podid-boot-rules.service                          loads them
//! systemd/system/sysinit.target.wants/podid-boot-rules.service     enables it, as `systemctl enable` does
//! ```

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use podid_intercept::{Rules, boot};

use super::atomic_file::{make_directory, replace};

const NFTABLES: &str = "podid/boot-rules.nft";
const IPTABLES: &str = "podid/boot-rules.iptables";
const UNIT: &str = "systemd/system/podid-boot-rules.service";
const ENABLED: &str = "systemd/system/sysinit.target.wants/podid-boot-rules.service";
/// From [`ENABLED`].
const UNIT_OF_ENABLED: &str = "../podid-boot-rules.service";
/// The unit comes before the network, as Debian's `nftables.service` does, and after that one, which begins by removing every table.
const SERVICE: &str = "\
[Unit]
Description=Refuses pods the instance metadata service until podid nmi runs
DefaultDependencies=no
After=local-fs.target nftables.service
Before=network-pre.target sysinit.target shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'nft -f /etc/podid/boot-rules.nft || iptables-restore --noflush /etc/podid/boot-rules.iptables'

[Install]
WantedBy=sysinit.target
";

/// Print the rules that a node loads at its boot, so that pods are refused the metadata service until nmi runs
#[derive(Args)]
pub struct BootRules {
    /// What is printed: the input of nft, that of iptables-restore, or the systemd unit that loads them from /etc/podid
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Nftables, ignore_case = true)]
    format: Format,
    /// Write all three below this directory, the /etc of a node, and enable the unit; it runs at the next boot
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "format")]
    install: Option<PathBuf>,
    /// Remove what was installed below this directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["format", "install"])]
    remove: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy)]
enum Format {
    Nftables,
    Iptables,
    Systemd,
}

impl BootRules {
    /// Prints, installs or removes.
    pub fn run(self) -> anyhow::Result<()> {
        match (self.install, self.remove) {
            (Some(etc), _) => install(&etc).context("--install"),
            (_, Some(etc)) => remove(&etc).context("--remove"),
            _ => Ok(std::io::stdout().write_all(content(self.format).as_bytes())?),
        }
    }
}

fn content(format: Format) -> String {
    let rules = Rules::default();
    match format {
        Format::Nftables => boot::nftables(&rules),
        Format::Iptables => boot::iptables(&rules),
        Format::Systemd => SERVICE.to_owned(),
    }
}

fn install(etc: &Path) -> anyhow::Result<()> {
    for (name, format) in [
        (NFTABLES, Format::Nftables),
        (IPTABLES, Format::Iptables),
        (UNIT, Format::Systemd),
    ] {
        replace(&etc.join(name), &content(format))?;
    }
    let enabled = etc.join(ENABLED);
    make_directory(&enabled)?;
    match symlink(UNIT_OF_ENABLED, &enabled) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| enabled.display().to_string())
        }
        _ => Ok(()),
    }
}

fn remove(etc: &Path) -> anyhow::Result<()> {
    // The unit goes first: without the rules it would fail at the next boot.
    for name in [ENABLED, UNIT, NFTABLES, IPTABLES] {
        let path = etc.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| path.display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_enabled_and_goes_again() {
        let etc = tempfile::tempdir().unwrap();
        let of_others = etc.path().join("systemd/system/other.service");
        make_directory(&of_others).unwrap();
        std::fs::write(&of_others, "").unwrap();
        // Every start of nmi's pod installs anew.
        for _ in 0..2 {
            install(etc.path()).unwrap();
            let read = |name: &str| std::fs::read_to_string(etc.path().join(name)).unwrap();
            assert_eq!(read(ENABLED), SERVICE);
            for name in [NFTABLES, IPTABLES] {
                assert!(read(ENABLED).contains(&format!(" /etc/{name}")), "{name}");
                assert!(read(name).contains("169.254.169.254"), "{name}");
            }
        }
        for _ in 0..2 {
            remove(etc.path()).unwrap();
        }
        for (directory, left) in [
            ("podid", &[][..]),
            (
                "systemd/system",
                &["other.service", "sysinit.target.wants"][..],
            ),
            ("systemd/system/sysinit.target.wants", &[][..]),
        ] {
            let listed = std::fs::read_dir(etc.path().join(directory)).unwrap();
            let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
            names.sort_unstable();
            assert_eq!(names, left, "{directory}");
        }
    }
}
