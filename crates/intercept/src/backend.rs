//! Interception backends: nftables and iptables behind one type, which detects, applies, verifies and removes the rules.

use aws_lc_rs::digest::{self, SHA256};

use crate::arrivals::Counts;
use crate::{Error, Rules, iptables, nftables, pod_mark, routing};

/// How packets are intercepted. A pod sees one difference: while no NMI runs, nftables refuses at once and iptables drops.
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

    /// Puts the rules in place, then removes those that podid has put there by another backend. At no moment is there a gap.
    ///
    /// # Errors
    /// Any but [`Error::NoBackend`]. What was in place before is still in place then.
    pub async fn apply(self, rules: &Rules) -> Result<(), Error> {
        rules.validate()?;
        // The route comes first because packets that are marked without it are lost. The rules do not wait for it to succeed,
        // because without them packets pass.
        let routed = routing::apply(rules).await;
        match self {
            Self::Nftables => nftables::apply(rules).await?,
            Self::Iptables => iptables::apply(rules).await?,
        }
        self.remove_others().await?;
        pod_mark::apply(rules)?;
        routed
    }

    async fn remove_others(self) -> Result<(), Error> {
        match self {
            Self::Nftables => unless_missing(iptables::cleanup().await)?,
            Self::Iptables => {
                iptables::cleanup_others().await?;
                unless_missing(nftables::cleanup().await)?
            }
        };
        Ok(())
    }

    /// Whether exactly these rules are in place and come first, and podid has no rules by another backend.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn verify(self, rules: &Rules) -> Result<bool, Error> {
        let rules_stand = match self {
            Self::Nftables => nftables::verify(rules).await?,
            Self::Iptables => iptables::verify(rules).await?,
        };
        Ok(rules_stand
            && routing::verify(rules).await?
            && pod_mark::verify(rules)?
            && !self.others_in_place().await?)
    }

    async fn others_in_place(self) -> Result<bool, Error> {
        Ok(match self {
            Self::Nftables => unless_missing(iptables::is_there().await)?,
            Self::Iptables => {
                iptables::is_in_others().await? || unless_missing(nftables::is_there().await)?
            }
        })
    }

    /// Where to read the counters of the rules, found out once because that takes several calls of tools.
    pub(crate) async fn counters(self) -> Result<Counters, Error> {
        Ok(match self {
            Self::Nftables => Counters::Nftables,
            Self::Iptables => Counters::Iptables(iptables::used().await?),
        })
    }

    /// The backend whose rules are in place, whatever these rules say. The first of two, after a change of the backend that a crash
    /// has cut short.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn in_place() -> Result<Option<Self>, Error> {
        if unless_missing(nftables::is_there().await)? {
            return Ok(Some(Self::Nftables));
        }
        let is_there = unless_missing(iptables::is_there().await)?;
        Ok(is_there.then_some(Self::Iptables))
    }

    /// Removes the rules of every backend, so that pods reach the node's metadata service again, and tells a person what was
    /// removed. A tool that is not installed has put nothing in place.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub async fn cleanup(rules: &Rules) -> Result<Vec<String>, Error> {
        let results = [
            unless_missing(iptables::cleanup().await),
            unless_missing(nftables::cleanup().await),
            routing::cleanup(rules).await,
            pod_mark::cleanup(),
        ];
        let removed: Result<Vec<_>, _> = results.into_iter().collect();
        Ok(removed?.concat())
    }
}

/// Where the counters of the rules are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Counters {
    Nftables,
    /// In the chains of this variant.
    Iptables(&'static str),
}

impl Counters {
    /// What they say; `None` when they are not there, as without the kernel's table security.
    pub(crate) async fn read(self) -> Result<Option<Counts>, Error> {
        match self {
            Self::Nftables => nftables::counts().await,
            Self::Iptables(tool) => iptables::counts(tool).await,
        }
    }
}

/// What a tool that is not installed says of podid's rules: that there are none.
fn unless_missing<T: Default>(result: Result<T, Error>) -> Result<T, Error> {
    match result {
        Err(Error::Missing { .. }) => Ok(T::default()),
        other => other,
    }
}

/// A fingerprint of a rule's text, kept in the rule's comment: it says that the rule is the wanted one, however the tool spells the
/// rule in its listing. Every build of podid computes the same one, because a successor compares its predecessor's.
fn fingerprint(position: usize, text: &str) -> String {
    format!("podid-{}", digest(&format!("{position} {text}")))
}

/// The first 8 bytes of a text's SHA-256, in hexadecimal digits.
pub(crate) fn digest(text: &str) -> String {
    digest::digest(&SHA256, text.as_bytes()).as_ref()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The comments of a chain's rules.
pub(crate) fn comments(rules: &[String]) -> Vec<String> {
    rules
        .iter()
        .enumerate()
        .map(|(position, rule)| fingerprint(position, rule))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another value makes every nmi of another build rewrite the rules of this one.
    #[test]
    fn a_fingerprint_is_the_same_in_every_build() {
        assert_eq!(
            fingerprint(1, "ip daddr 169.254.169.254 accept"),
            "podid-1c28b82955e0be35"
        );
    }
}
