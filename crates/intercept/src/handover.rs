//! Takeover protocol (hot restart): a running node agent hands its listening sockets to its successor.
//!
//! The successor connects to a Unix socket and says which version of this protocol it speaks; it is given the listening sockets
//! themselves, with the connections that wait in them. When it can serve it says so. Its predecessor then stops accepting,
//! says that it has, and stands by: should the successor end before it does, it serves again.
//!
//! ```text
//! successor                 predecessor
//!   VERSION         ─────►
//!                   ◄─────    VERSION + listening sockets   (or REFUSED)
//!   READY           ─────►
//!                   ◄─────    RELIEVED
//!   SUPERSEDED, end ─────►                 a third one serves; without that word: the predecessor serves again
//! ```

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::listen::{allow_transparent, listen};

const VERSION: u8 = 1;
const REFUSED: u8 = 0;
const READY: u8 = b'R';
const RELIEVED: u8 = b'D';
const SUPERSEDED: u8 = b'S';
/// Sockets in one message; NMI has four.
const MAX_SOCKETS: usize = 8;
/// Time for the other node agent's answer; one that takes longer is taken for dead.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two tries to bind a port whose holder is about to end, or to accept after a failure.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// Mode bits: write permission of the group and of all others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Whether sockets can be handed over at this path: its directory exists and nobody else can put anything there.
///
/// # Errors
/// When others could, for whoever is there is trusted with every request of the node's pods.
pub fn is_usable(path: &Path) -> io::Result<bool> {
    let folder = match path.parent().map(std::fs::metadata) {
        Some(Ok(folder)) if folder.is_dir() => folder,
        Some(Err(error)) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => return Ok(false),
    };
    if folder.uid() != own_user() || folder.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(io::Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "the directory of {} must belong to the user that podid nmi runs as, and be writable for it alone (chmod 0755)",
                path.display()
            ),
        ));
    }
    Ok(true)
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What a starting node agent got from the one that runs.
#[derive(Debug, Default)]
pub struct Inheritance {
    sockets: Vec<TcpListener>,
    predecessor: Option<Predecessor>,
    /// Until when a port in use is waited for.
    patience: Duration,
}

impl Inheritance {
    /// Asks whoever serves at `path` for its sockets. Nobody there, or one that speaks another version, is no error: ports in
    /// use are then waited for, up to `patience`, as their holder may be about to end.
    pub async fn ask(path: &Path, patience: Duration) -> Self {
        let nothing = Self {
            patience,
            ..Self::default()
        };
        match tokio::time::timeout(PEER_TIMEOUT, ask(path)).await {
            Ok(Ok((sockets, stream))) => Self {
                sockets,
                predecessor: Some(Predecessor { stream }),
                patience,
            },
            Ok(Err(error)) => {
                if !matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) {
                    tracing::warn!(reason = %error, "the running node agent does not hand over; waiting for its ports");
                }
                nothing
            }
            Err(_) => {
                tracing::warn!("the running node agent does not answer; waiting for its ports");
                nothing
            }
        }
    }

    /// A listener at `addr` as [`listen`] makes it: the inherited one where there is one.
    ///
    /// # Errors
    /// As [`listen`], after a port in use was waited for.
    pub async fn listen(&mut self, addr: SocketAddr, transparent: bool) -> io::Result<TcpListener> {
        let until = tokio::time::Instant::now() + self.patience;
        loop {
            match self.listen_now(addr, transparent) {
                Err(error)
                    if error.kind() == ErrorKind::AddrInUse
                        && tokio::time::Instant::now() < until =>
                {
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// As [`Inheritance::listen`], without waiting for a port in use.
    ///
    /// # Errors
    /// As [`listen`].
    pub fn listen_now(&mut self, addr: SocketAddr, transparent: bool) -> io::Result<TcpListener> {
        let Some(socket) = self.inherited(addr) else {
            return listen(addr, transparent);
        };
        if transparent {
            allow_transparent(&SockRef::from(&socket), addr)?;
        }
        Ok(socket)
    }

    /// The predecessor's listener at `addr`, if there is one that was not asked for yet.
    pub fn inherited(&mut self, addr: SocketAddr) -> Option<TcpListener> {
        let is_at = |socket: &TcpListener| socket.local_addr().is_ok_and(|at| at == addr);
        let found = self.sockets.iter().position(is_at)?;
        Some(self.sockets.swap_remove(found))
    }

    /// The node agent that serves until it is relieved; sockets that were not asked for are closed here.
    pub fn predecessor(self) -> Option<Predecessor> {
        self.predecessor
    }
}

async fn ask(path: &Path) -> io::Result<(Vec<TcpListener>, UnixStream)> {
    let mut stream = UnixStream::connect(path).await?;
    check_user(&stream)?;
    stream.write_all(&[VERSION]).await?;
    let (version, sockets) = stream
        .async_io(Interest::READABLE, || receive(stream.as_fd()))
        .await?;
    if version != VERSION {
        return Err(io::Error::new(
            ErrorKind::Unsupported,
            format!("it speaks version {version} of the protocol, this one {VERSION}"),
        ));
    }
    Ok((sockets, stream))
}

fn check_user(stream: &UnixStream) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    if user == own_user() || user == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::PermissionDenied,
        format!("the process at the other end runs as user {user}"),
    ))
}

fn receive(from: BorrowedFd<'_>) -> io::Result<(u8, Vec<TcpListener>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0];
    let read = recvmsg(
        from,
        &mut [IoSliceMut::new(&mut word)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if read.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let sockets = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .filter_map(|descriptor: OwnedFd| {
            let socket = TcpListener::from(descriptor);
            // What is no bound socket has no address.
            socket.local_addr().is_ok().then_some(socket)
        })
        .collect();
    Ok((word[0], sockets))
}

fn send(to: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let sockets = &sockets[..sockets.len().min(MAX_SOCKETS)];
    ancillary.push(SendAncillaryMessage::ScmRights(sockets));
    let word = [VERSION];
    sendmsg(
        to,
        &[IoSlice::new(&word)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// The node agent that served before this one.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
}

impl Predecessor {
    /// Returns when it has ended.
    pub async fn ended(&mut self) {
        let mut word = [0];
        while matches!(self.stream.read(&mut word).await, Ok(1..)) {}
    }

    /// Says that this node agent can serve, and returns when the predecessor has stopped: it says so, it ends, or its time is up.
    pub async fn take_over(&mut self) {
        let relieved = async {
            self.stream.write_all(&[READY]).await?;
            self.stream.read_u8().await
        };
        match tokio::time::timeout(PEER_TIMEOUT, relieved).await {
            Ok(Ok(RELIEVED)) => {}
            Ok(Ok(_)) | Err(_) => {
                tracing::warn!("the node agent before this one did not say that it has stopped");
            }
            Ok(Err(error)) => {
                tracing::debug!(reason = %error, "the node agent before this one ended")
            }
        }
    }

    /// Says that it need not stand by any longer, because a third node agent serves or none will.
    pub async fn release(mut self) {
        // It may have ended long ago.
        let _ = self.stream.write_all(&[SUPERSEDED]).await;
    }
}

/// The listener at the handover socket, to which successors connect.
#[derive(Debug)]
pub struct HandoverListener {
    listener: UnixListener,
}

impl HandoverListener {
    /// Binds it, in place of the one that another node agent has there.
    ///
    /// # Errors
    /// When the socket cannot be made there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&beside)?;
        std::fs::rename(&beside, path)?;
        Ok(Self { listener })
    }

    /// The next successor, once it has the sockets. A second one waits until this is called again.
    pub async fn accept(&self, sockets: &[&TcpListener]) -> Successor {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match welcome(stream, sockets).await {
                    Ok(successor) => return successor,
                    Err(error) => {
                        tracing::warn!(reason = %error, "nothing was handed over");
                    }
                },
                Err(error) => {
                    tracing::warn!(reason = %error, "a successor could not report");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }
}

async fn welcome(mut stream: UnixStream, sockets: &[&TcpListener]) -> io::Result<Successor> {
    check_user(&stream)?;
    let version = tokio::time::timeout(PEER_TIMEOUT, stream.read_u8()).await??;
    if version != VERSION {
        stream.write_all(&[REFUSED]).await?;
        return Err(io::Error::new(
            ErrorKind::Unsupported,
            format!("a successor speaks version {version} of the protocol, this one {VERSION}"),
        ));
    }
    let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
    stream
        .async_io(Interest::WRITABLE, || send(stream.as_fd(), &sockets))
        .await?;
    Ok(Successor { stream })
}

/// The node agent that will serve after this one.
#[derive(Debug)]
pub struct Successor {
    stream: UnixStream,
}

/// How a successor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuccessorEnd {
    /// No other node agent serves in its place.
    Died,
    /// A third node agent serves, or none is to serve any more.
    Superseded,
}

impl Successor {
    /// Whether it can serve, once it says so; `false` when it ended before.
    pub async fn is_ready(&mut self) -> bool {
        matches!(self.stream.read_u8().await, Ok(READY))
    }

    /// Says that this node agent has stopped accepting.
    pub async fn confirm_stopped(&mut self) {
        // Should it have ended, that is seen next.
        let _ = self.stream.write_all(&[RELIEVED]).await;
    }

    /// Returns when it has ended.
    pub async fn ended(&mut self) -> SuccessorEnd {
        match self.stream.read_u8().await {
            Ok(SUPERSEDED) => SuccessorEnd::Superseded,
            _ => SuccessorEnd::Died,
        }
    }
}

#[cfg(test)]
mod tests;
