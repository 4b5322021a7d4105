//! Connections that were there before the rules.

use crate::command::call;
use crate::{Error, Rules};

/// Forgets the tracked TCP connections to the metadata address and returns how many there were.
///
/// The rules see every packet, so a connection that is older than they are ends with its caller's next packet in any case. What
/// this adds: an address translation that was made for such a connection (the original's own, for one) no longer applies to it.
///
/// # Errors
/// [`Error::Missing`] without the `conntrack` tool. Nothing passes then either; go on.
pub async fn cut_connections(rules: &Rules) -> Result<u64, Error> {
    let args = format!(
        "-D -f ipv4 -p tcp --orig-dst {} --orig-port-dst {}",
        rules.metadata, rules.metadata_port
    );
    match call("conntrack", &args).run().await {
        Ok(deleted) => Ok(deleted
            .lines()
            .filter(|line| !line.trim().is_empty())
            .count() as u64),
        // The tool fails when there was nothing to delete.
        Err(Error::Failed { detail, .. })
            if detail.contains("0 flow entries have been deleted") =>
        {
            Ok(0)
        }
        Err(error) => Err(error),
    }
}
