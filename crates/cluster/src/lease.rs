//! Who leads: the decision over a `coordination.k8s.io/v1` Lease.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::LeaseSpec;

/// What a candidate does about the lease now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nobody holds it, or its holder let it expire: take it.
    Acquire,
    /// This candidate holds it: renew it.
    Renew,
    /// Another holds it: look again at the given time.
    Follow {
        /// The holder.
        holder: String,
        /// When its claim ends unless it renews.
        until: Timestamp,
    },
}

/// Decides for candidate `me` at `now`. A lease that states no duration counts as `default_duration` long.
pub fn decide(
    lease: &LeaseSpec,
    me: &str,
    now: Timestamp,
    default_duration: SignedDuration,
) -> Decision {
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    if holder.is_empty() {
        return Decision::Acquire;
    }
    if holder == me {
        return Decision::Renew;
    }
    let duration = lease
        .lease_duration_seconds
        .filter(|seconds| *seconds > 0)
        .map_or(default_duration, |seconds| {
            SignedDuration::from_secs(seconds.into())
        });
    let renewed = lease.renew_time.as_ref().or(lease.acquire_time.as_ref());
    let until = renewed.and_then(|time| time.0.checked_add(duration).ok());
    match until {
        Some(until) if until > now => Decision::Follow {
            holder: holder.to_owned(),
            until,
        },
        _ => Decision::Acquire,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    const DEFAULT: SignedDuration = SignedDuration::from_secs(15);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn held(holder: &str, renewed: i64, seconds: Option<i32>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Some(MicroTime(at(renewed))),
            lease_duration_seconds: seconds,
            ..LeaseSpec::default()
        }
    }

    fn decided(lease: &LeaseSpec, now: i64) -> Decision {
        decide(lease, "alice", at(now), DEFAULT)
    }

    #[test]
    fn a_free_lease_is_taken() {
        assert_eq!(decided(&LeaseSpec::default(), 0), Decision::Acquire);
        assert_eq!(decided(&held("", 0, Some(15)), 1), Decision::Acquire);
    }

    #[test]
    fn ones_own_lease_is_renewed_even_when_late() {
        assert_eq!(decided(&held("alice", 0, Some(15)), 1), Decision::Renew);
        assert_eq!(decided(&held("alice", 0, Some(15)), 100), Decision::Renew);
    }

    #[test]
    fn anothers_lease_is_followed_until_it_expires() {
        let follow = |until| Decision::Follow {
            holder: "bob".to_owned(),
            until: at(until),
        };
        assert_eq!(decided(&held("bob", 0, Some(20)), 19), follow(20));
        assert_eq!(decided(&held("bob", 0, Some(20)), 20), Decision::Acquire);
        assert_eq!(decided(&held("bob", 0, None), 14), follow(15));
        assert_eq!(decided(&held("bob", 0, Some(-1)), 15), Decision::Acquire);
    }

    #[test]
    fn a_claim_without_a_time_is_void() {
        let lease = LeaseSpec {
            renew_time: None,
            ..held("bob", 0, Some(20))
        };
        assert_eq!(decided(&lease, 0), Decision::Acquire);
    }
}
