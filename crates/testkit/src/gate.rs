//! TCP proxy that a test can close or slow down: the way from podid's processes to the API server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// What the proxy does with bytes at present.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Way {
    closed: bool,
    slow: Duration,
}

/// A proxy to a server on loopback. It is closed for good when this is dropped.
#[derive(Debug)]
pub struct Gate {
    way: Arc<watch::Sender<Way>>,
    address: SocketAddr,
}

impl Gate {
    /// Opens a way from a port of `address` to the port `to` of loopback.
    ///
    /// # Errors
    /// When there is no such address or no port is free.
    pub fn open(address: Ipv4Addr, to: u16) -> Result<Self> {
        let listener = std::net::TcpListener::bind((address, 0)).context("no gate")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let way = Arc::new(watch::Sender::new(Way::default()));
        let seen = way.subscribe();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            // Without a runtime no client gets through, and the test fails.
            if let Ok(runtime) = runtime {
                runtime.block_on(accept(listener, to, seen));
            }
        });
        Ok(Self { way, address })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the gate, which ends all connections, or opens it again.
    pub fn close(&self, closed: bool) {
        self.way.send_modify(|way| way.closed = closed);
    }

    /// From now on whatever the server says arrives this much later.
    pub fn slow_down(&self, slow: Duration) {
        self.way.send_modify(|way| way.slow = slow);
    }
}

async fn accept(listener: std::net::TcpListener, to: u16, mut way: watch::Receiver<Way>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                if !way.borrow().closed {
                    tokio::spawn(pass(client, to, way.clone()));
                }
            }
            changed = way.changed() => if changed.is_err() { return },
        }
    }
}

/// Passes on what both sides say, until one has nothing more to say or the gate is closed.
async fn pass(client: TcpStream, to: u16, mut way: watch::Receiver<Way>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else {
        return;
    };
    let (mut asks, mut hears) = client.into_split();
    let (mut says, mut listens) = server.into_split();
    let slow = way.clone();
    let delayed = async {
        let (late, mut due) = tokio::sync::mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let read = async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = says.read(&mut buffer).await {
                let at = Instant::now() + slow.borrow().slow;
                if late.send((at, buffer[..count].to_vec())).is_err() {
                    return;
                }
            }
        };
        let write = async {
            while let Some((at, bytes)) = due.recv().await {
                sleep_until(at).await;
                if hears.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(read, write);
    };
    tokio::select! {
        _ = tokio::io::copy(&mut asks, &mut listens) => {}
        () = delayed => {}
        _ = way.wait_for(|way| way.closed) => {}
    }
}
