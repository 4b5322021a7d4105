//! TCP ports for what tests start: no other test program is given them, and no connection takes one of itself.
//!
//! They are below those that Linux hands out, and in blocks: a program holds the lock of its block until it ends.

use std::fs::File;
use std::net::TcpStream;
use std::ops::Range;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;

/// Below 32768, where Linux begins with the ports of connections.
const PORTS: Range<u16> = 20_000..32_000;
/// Ports in one block: more than most programs ask for.
const BLOCK: u16 = 100;

static BLOCKS: Mutex<Blocks> = Mutex::new(Blocks {
    locks: Vec::new(),
    left: 0..0,
});

/// The blocks of this program.
struct Blocks {
    locks: Vec<File>,
    left: Range<u16>,
}

/// Free TCP ports of the loopback address, each given once.
///
/// # Errors
/// When other test programs hold all of them.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut blocks = BLOCKS.lock();
    let mut ports = [0; N];
    for port in &mut ports {
        *port = blocks.port()?;
    }
    Ok(ports)
}

impl Blocks {
    fn port(&mut self) -> Result<u16> {
        loop {
            // A listener that is bound and closed as a trial lives on for a moment in a child that is just being started.
            let free = |port: &u16| TcpStream::connect(("127.0.0.1", *port)).is_err();
            if let Some(port) = self.left.find(free) {
                return Ok(port);
            }
            self.lock()?;
        }
    }

    /// Takes the first block that no program holds.
    fn lock(&mut self) -> Result<()> {
        let folder = std::env::temp_dir().join("podid-ports");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for first in PORTS.step_by(usize::from(BLOCK)) {
            let file = folder.join(first.to_string());
            let lock = File::create(&file).with_context(|| file.display().to_string())?;
            if lock.try_lock().is_ok() {
                self.locks.push(lock);
                self.left = first..first + BLOCK;
                return Ok(());
            }
        }
        anyhow::bail!("all ports are held by other test programs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_its_block_to_no_other_program() {
        let mut blocks = [(); 2].map(|()| Blocks {
            locks: Vec::new(),
            left: 0..0,
        });
        let [one, other] = &mut blocks;
        let ports = [one.port(), other.port(), one.port()].map(Result::unwrap);
        assert_ne!(ports[0] / BLOCK, ports[1] / BLOCK, "{ports:?}");
        assert_eq!(ports[0] / BLOCK, ports[2] / BLOCK, "{ports:?}");
        assert_ne!(ports[0], ports[2]);
    }
}
