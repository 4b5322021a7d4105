//! The two ways to intercept, behind one face.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher as _};

use crate::{Error, Rules, iptables, nftables, routing};

/// How packets are intercepted. Both give the same answers to a pod but one: while NMI is dead, nftables refuses at once and
/// iptables drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// One table `inet podid`, replaced in one transaction.
    Nftables,
    /// Chains `PODID-*` of the table mangle, through whichever variant of iptables the node uses.
    Iptables,
}

impl Backend {
    /// The better one that this node's tools and kernel support with these rules. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NoBackend`] with the reason of each.
    pub async fn detect(rules: &Rules) -> Result<Self, Error> {
        rules.validate()?;
        let Err(nftables) = nftables::probe(rules).await else {
            return Ok(Self::Nftables);
        };
        match iptables::probe(rules).await {
            Ok(()) => Ok(Self::Iptables),
            Err(iptables) => Err(Error::NoBackend {
                nftables: Box::new(nftables),
                iptables: Box::new(iptables),
            }),
        }
    }

    /// Puts the rules in place, replacing older ones of podid. At no moment is there a gap.
    ///
    /// # Errors
    /// Any but [`Error::NoBackend`]. What was in place before is still in place then.
    pub async fn apply(self, rules: &Rules) -> Result<(), Error> {
        rules.validate()?;
        // Without the route intercepted packets are lost, so it comes first, and does nothing yet; without the rules they would
        // pass, so those do not depend on it.
        let routed = routing::apply(rules).await;
        match self {
            Self::Nftables => nftables::apply(rules).await?,
            Self::Iptables => iptables::apply(rules).await?,
        }
        routed
    }

    /// Whether exactly these rules are in place and come first.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn verify(self, rules: &Rules) -> Result<bool, Error> {
        let rules_stand = match self {
            Self::Nftables => nftables::verify(rules).await?,
            Self::Iptables => iptables::verify(rules).await?,
        };
        Ok(rules_stand && routing::verify(rules).await?)
    }

    /// Those of which rules of podid's are in place, whatever these say.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn in_place() -> Result<Vec<Self>, Error> {
        let mut found = Vec::new();
        for (backend, is_there) in [
            (Self::Nftables, nftables::is_there().await),
            (Self::Iptables, iptables::is_there().await),
        ] {
            match is_there {
                Ok(true) => found.push(backend),
                Ok(false) | Err(Error::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Removes whatever any backend has ever put in place, so that pods reach the node's metadata service again, and says for
    /// a person what that was. Tools that are not installed have put nothing in place.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub async fn cleanup(rules: &Rules) -> Result<Vec<String>, Error> {
        let results = [
            unless_missing(iptables::cleanup().await),
            unless_missing(nftables::cleanup().await),
            routing::cleanup(rules).await,
        ];
        let removed: Result<Vec<_>, _> = results.into_iter().collect();
        Ok(removed?.concat())
    }
}

fn unless_missing(result: Result<Vec<String>, Error>) -> Result<Vec<String>, Error> {
    match result {
        Err(Error::Missing { .. }) => Ok(Vec::new()),
        other => other,
    }
}

/// A short fingerprint of a rule's text, kept in the rule's comment: tells whether the rule is the one that is wanted, whatever
/// the spelling in which the tool lists it.
fn fingerprint(position: usize, text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (position, text).hash(&mut hasher);
    format!("podid-{:016x}", hasher.finish())
}

/// The comments of a chain's rules.
pub(crate) fn comments(rules: &[String]) -> Vec<String> {
    rules
        .iter()
        .enumerate()
        .map(|(position, rule)| fingerprint(position, rule))
        .collect()
}
