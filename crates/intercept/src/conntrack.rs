//! Connection tracking: forgets connections that are older than the rules. The keeper calls it once.

use crate::command::call;
use crate::{Error, Rules};

/// Forgets the tracked TCP connections to the metadata address and returns how many there were.
///
/// The rules see every packet, so that an older connection ends with its caller's next packet in any case; this ends it at once.
/// Connections whose address or port was translated belong to the nmi of AAD Pod Identity or to podid, and stay.
///
/// # Errors
/// [`Error::Missing`] without the `conntrack` tool. Interception works all the same.
pub async fn cut_connections(rules: &Rules) -> Result<u64, Error> {
    let (metadata, port) = (rules.metadata, rules.metadata_port);
    let args = format!(
        "-D -f ipv4 -p tcp --orig-dst {metadata} --orig-port-dst {port} --reply-src {metadata} --reply-port-src {port}"
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
