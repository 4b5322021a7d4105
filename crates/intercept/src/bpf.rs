//! bpf(2): loads an eBPF program of a cgroup, attaches it by a link, and pins the link in the bpf file system, where it outlives the
//! process. `pod_mark` is the only caller; everything unsafe about it is here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Commands of bpf(2), `BPF_*` of linux/bpf.h.
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const LINK_CREATE: u32 = 28;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` of linux/bpf.h.
const CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_LINK_TYPE_CGROUP` of linux/bpf.h.
const LINK_OF_CGROUP: u32 = 3;

/// The system call at which a program runs: `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT` of linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Hook {
    /// connect(2) of an IPv4 socket.
    Connect4 = 10,
    /// connect(2) of an IPv6 socket.
    Connect6 = 11,
}

/// One instruction of eBPF, as `struct bpf_insn` of linux/bpf.h has it on a little-endian machine.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// The destination register in the lower four bits, the source register in the upper ones.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

#[derive(Default)]
#[repr(C)]
struct Load {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log: [u32; 2],
    log_buffer: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    hook: u32,
}

#[derive(Default)]
#[repr(C)]
struct Create {
    program: RawFd,
    target: RawFd,
    hook: u32,
    flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct Object {
    path: u64,
    descriptor: RawFd,
    flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct Describe {
    descriptor: RawFd,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info`, as far as it is about a link of a cgroup.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
struct Info {
    kind: u32,
    link: u32,
    program: u32,
    padding: u32,
    cgroup: u64,
    hook: u32,
    end: u32,
}

/// Loads a program for a hook. The kernel verifies it.
pub(crate) fn load(hook: Hook, program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..5].copy_from_slice(b"podid");
    let attributes = Load {
        kind: CGROUP_SOCK_ADDR,
        length: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: c"MIT".as_ptr().expose_provenance() as u64,
        name,
        hook: hook as u32,
        ..Load::default()
    };
    descriptor(call(PROG_LOAD, &attributes)?)
}

/// Attaches a program to a cgroup beside those of others, for as long as the link exists.
pub(crate) fn attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: Hook,
) -> io::Result<OwnedFd> {
    let attributes = Create {
        program: program.as_raw_fd(),
        target: cgroup.as_raw_fd(),
        hook: hook as u32,
        flags: 0,
    };
    descriptor(call(LINK_CREATE, &attributes)?)
}

/// Keeps a link at a path of the bpf file system, until the file is removed.
pub(crate) fn pin(link: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object {
        path: path.as_ptr().expose_provenance() as u64,
        descriptor: link.as_fd().as_raw_fd(),
        flags: 0,
    };
    call(OBJ_PIN, &attributes).map(drop)
}

/// Whether the link that is kept at a path is attached to this cgroup and hook.
pub(crate) fn is_attached(path: &Path, cgroup: u64, hook: Hook) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object {
        path: path.as_ptr().expose_provenance() as u64,
        ..Object::default()
    };
    let link = match call(OBJ_GET, &attributes) {
        Ok(link) => descriptor(link)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut info = Info::default();
    let attributes = Describe {
        descriptor: link.as_raw_fd(),
        length: size_of::<Info>() as u32,
        info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok(info.kind == LINK_OF_CGROUP && info.cgroup == cgroup && info.hook == hook as u32)
}

#[allow(unsafe_code, reason = "no well-kept crate has bpf(2) alone")]
fn call<T>(command: u32, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: every caller's attributes have the layout of this command's part of `union bpf_attr` without padding that is not zero,
    // and the pointers in them are to values that outlive the call, with the lengths that stand beside them.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(answer).map_err(io::Error::other)
}

#[allow(unsafe_code, reason = "bpf(2) gives a bare descriptor")]
fn descriptor(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just made this descriptor, with close-on-exec, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
