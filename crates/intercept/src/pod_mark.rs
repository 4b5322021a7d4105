//! eBPF programs on the cgroup of all pods: mark the connections of pods to the metadata address, so that the rules can tell pods on the
//! host's network from the node's own processes. [`crate::Backend`] calls it for [`HostNetwork::Pods`].
//!
//! ```text
//! a pod's connect(169.254.169.254:80) ──► connect4, connect6 at kubepods: socket mark |= Rules::mark_pod
//!                                     ──► output: the packet has the mark ──► intercepted     (nftables.rs, iptables.rs)
//! ```
//!
//! The rules' own cgroup matches (`socket cgroupv2`, `-m cgroup --path`) cannot be used: the kernel counts both from the cgroup namespace
//! of the process that adds the rule. On cgroup v2 a container runtime gives nmi a cgroup namespace whose root is below the
//! group of all pods. A program is attached by the group's descriptor, which means the same in every namespace.
//!
//! The links are pinned in the bpf file system and outlive the process, as the rules do. The file's name says which group and
//! which program it is: another program is attached beside the old one first.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::backend::digest;
use crate::bpf::{self, Hook, Instruction};
use crate::{Error, HostNetwork, Rules};

/// Where the node's bpf file system may be. A container has it at the first place, because AppArmor's default profile for
/// containers forbids to write below the second.
const MOUNTS: [&str; 2] = ["/host/sys/fs/bpf", "/sys/fs/bpf"];
/// podid's directory there.
const DIRECTORY: &str = "podid";
/// `BPF_FS_MAGIC` of linux/magic.h: the type of the bpf file system.
const BPF_FS_MAGIC: rustix::fs::FsWord = 0xcafe_4a11;
const HOOKS: [(Hook, &str); 2] = [(Hook::Connect4, "connect4"), (Hook::Connect6, "connect6")];

/// A program that is to be attached, and where its link is pinned.
struct Wanted {
    hook: Hook,
    program: Vec<Instruction>,
    path: PathBuf,
}

/// Attaches the programs where the rules are about pods, and removes them where they are not.
pub(crate) fn apply(rules: &Rules) -> Result<(), Error> {
    let HostNetwork::Pods { cgroup } = &rules.host_network else {
        return cleanup().map(drop);
    };
    let directory = directory().ok_or_else(no_file_system)?;
    let group = id(cgroup)?;
    let descriptor = File::open(cgroup).map_err(failed("open the cgroup of all pods"))?;
    match fs::create_dir(&directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(failed("make a directory in the bpf file system")(error));
        }
        _ => {}
    }
    let wanted = wanted(rules, group, &directory);
    for Wanted {
        hook,
        program,
        path,
    } in &wanted
    {
        if is_attached(path, group, *hook)? {
            continue;
        }
        let program = bpf::load(*hook, program).map_err(failed("load the program"))?;
        let link = bpf::attach(program.as_fd(), descriptor.as_fd(), *hook)
            .map_err(failed("attach the program to the cgroup of all pods"))?;
        // A link of this name that is attached nowhere may be left.
        remove(path)?;
        bpf::pin(link, path).map_err(failed("pin the program"))?;
    }
    for path in others(&directory, group, &wanted)? {
        remove(&path)?;
    }
    Ok(())
}

/// Whether the programs are attached as [`apply`] does it, and no others of podid.
pub(crate) fn verify(rules: &Rules) -> Result<bool, Error> {
    let HostNetwork::Pods { cgroup } = &rules.host_network else {
        return Ok(directory().is_none_or(|directory| !directory.exists()));
    };
    let directory = directory().ok_or_else(no_file_system)?;
    let group = id(cgroup)?;
    let wanted = wanted(rules, group, &directory);
    for Wanted { hook, path, .. } in &wanted {
        if !is_attached(path, group, *hook)? {
            return Ok(false);
        }
    }
    Ok(others(&directory, group, &wanted)?.is_empty())
}

/// Detaches the programs, and says so if there were any.
pub(crate) fn cleanup() -> Result<Vec<String>, Error> {
    let Some(directory) = directory().filter(|directory| directory.exists()) else {
        return Ok(Vec::new());
    };
    for path in files(&directory)? {
        remove(&path)?;
    }
    fs::remove_dir(&directory).map_err(failed("remove the directory of the programs"))?;
    Ok(vec![format!(
        "eBPF: the programs in {}",
        directory.display()
    )])
}

fn directory() -> Option<PathBuf> {
    MOUNTS
        .into_iter()
        .find(|mount| rustix::fs::statfs(*mount).is_ok_and(|system| system.f_type == BPF_FS_MAGIC))
        .map(|mount| Path::new(mount).join(DIRECTORY))
}

/// The cgroup's id, which is its inode number and the same in every namespace.
fn id(cgroup: &Path) -> Result<u64, Error> {
    let metadata = fs::metadata(cgroup).map_err(failed("find the cgroup of all pods"))?;
    Ok(metadata.ino())
}

fn wanted(rules: &Rules, group: u64, directory: &Path) -> Vec<Wanted> {
    HOOKS
        .into_iter()
        .map(|(hook, name)| {
            let program = program(hook, rules);
            let text = format!("{program:?}");
            Wanted {
                hook,
                path: directory.join(format!("{group}-{name}-{}", digest(&text))),
                program,
            }
        })
        .collect()
}

/// Links of podid's to this cgroup that are not wanted: of other settings, or of another version.
fn others(directory: &Path, group: u64, wanted: &[Wanted]) -> Result<Vec<PathBuf>, Error> {
    let prefix = format!("{group}-");
    let mut found = files(directory)?;
    found.retain(|path| {
        let is_of_group = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        is_of_group && wanted.iter().all(|wanted| wanted.path != *path)
    });
    Ok(found)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list the programs"))?,
    };
    let paths: io::Result<_> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(failed("list the programs"))
}

fn is_attached(path: &Path, group: u64, hook: Hook) -> Result<bool, Error> {
    bpf::is_attached(path, group, hook).map_err(failed("look at the program"))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(failed("detach an older program")(error))
        }
        _ => Ok(()),
    }
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> Error {
    move |cause| Error::PodMark { step, cause }
}

fn no_file_system() -> Error {
    let cause = io::Error::new(
        ErrorKind::NotFound,
        format!("not at {}", MOUNTS.join(" or ")),
    );
    failed("find the bpf file system")(cause)
}

/// The program: sets the mark on a socket that connects to the metadata address, and lets everything else pass unchanged.
fn program(hook: Hook, rules: &Rules) -> Vec<Instruction> {
    let address = network_order(rules.metadata);
    let port = i32::from(rules.metadata_port.to_be());
    // Fields of `struct bpf_sock_addr` and what they are for the metadata address; IPv6 sockets reach it as ::ffff:169.254.169.254.
    let fields: &[(i16, i32)] = match hook {
        Hook::Connect4 => &[(4, address), (24, port)],
        Hook::Connect6 => &[
            (8, 0),
            (12, 0),
            (16, network_order(Ipv4Addr::new(0, 0, 0xff, 0xff))),
            (20, address),
            (24, port),
        ],
    };
    let set_mark = set_mark(rules.mark_pod.cast_signed());
    let mut program = vec![copy(R6, R1)];
    for (place, (offset, value)) in (0_usize..).zip(fields) {
        // What is left of the comparisons, and the part that sets the mark, are jumped over.
        let rest = 2 * (fields.len() - place) - 2 + set_mark.len();
        program.extend([
            load_word(R0, R6, *offset),
            jump_unless(R0, *value, i16::try_from(rest).unwrap_or(i16::MAX)),
        ]);
    }
    program.extend(set_mark);
    program.extend([set(R0, 1), EXIT]);
    program
}

/// `bpf_setsockopt(context, SOL_SOCKET, SO_MARK, mark | bit)`; a connect whose mark cannot be set is refused.
fn set_mark(bit: i32) -> Vec<Instruction> {
    const SOL_SOCKET: i32 = 1;
    const SO_MARK: i32 = 36;
    const SETSOCKOPT: i32 = 49;
    /// Fields of `struct bpf_sock_addr` and `struct bpf_sock`.
    const SOCKET: i16 = 64;
    const MARK: i16 = 16;
    const BYTES: i32 = 4;
    vec![
        instruction(0x79, R1, R6, SOCKET, 0),
        load_word(R2, R1, MARK),
        instruction(0x47, R2, 0, 0, bit),
        instruction(0x63, R10, R2, -4, 0),
        copy(R1, R6),
        set(R2, SOL_SOCKET),
        set(R3, SO_MARK),
        copy(R4, R10),
        instruction(0x07, R4, 0, 0, -4),
        set(R5, BYTES),
        instruction(0x85, 0, 0, 0, SETSOCKOPT),
        // Done.
        instruction(0x15, R0, 0, 2, 0),
        set(R0, 0),
        EXIT,
    ]
}

fn network_order(address: Ipv4Addr) -> i32 {
    i32::from_ne_bytes(address.octets())
}

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
const R6: u8 = 6;
const R10: u8 = 10;
const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// `to = from`
const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

/// `to = value`
const fn set(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

/// `to = *(u32 *)(from + offset)`
const fn load_word(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}

/// `if (u32)register != value` skips that many instructions.
const fn jump_unless(register: u8, value: i32, skipped: i16) -> Instruction {
    instruction(0x56, register, 0, skipped, value)
}
