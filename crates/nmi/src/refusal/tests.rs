use super::*;
use podid_broker::protocol::ErrorKind as Kind;
use rstest::rstest;

const KEY: (&str, &str) = ("shop", "reader");

fn source(error: impl Into<SourceError>) -> Refusal {
    Refusal::Source(Arc::new(error.into()))
}

fn broker(kind: Kind, retry_after: Option<u64>) -> Refusal {
    source(ClientError::Refused {
        status: 0,
        kind,
        message: "cause; next step".to_owned(),
        retry_after: retry_after.map(Duration::from_secs),
    })
}

/// What the broker says, how it is answered, whether a request is held for it, and whether a token that is still valid is served on.
#[rstest]
#[case(Kind::Malformed, 400, None, false, true)]
#[case(Kind::Unauthenticated, 500, Some(5), false, true)]
#[case(Kind::CallerRefused, 403, None, false, true)]
#[case(Kind::NotGranted, 500, Some(1), true, false)]
#[case(Kind::UnknownPod, 500, Some(1), true, true)]
#[case(Kind::WrongNode, 500, Some(1), false, true)]
#[case(Kind::PodFinished, 500, Some(1), true, false)]
#[case(Kind::UnknownIdentity, 500, Some(1), true, false)]
#[case(Kind::NotFederated, 500, Some(1), true, false)]
#[case(Kind::NoTenant, 403, None, false, true)]
#[case(Kind::CredentialMissing, 403, None, false, true)]
#[case(Kind::CredentialMismatch, 403, None, false, true)]
#[case(Kind::Propagating, 500, Some(5), true, true)]
#[case(Kind::IssuerUnreachable, 500, Some(5), false, true)]
#[case(Kind::TenantRefused, 403, None, false, true)]
#[case(Kind::Throttled, 429, Some(5), false, true)]
#[case(Kind::Unavailable, 500, Some(5), false, true)]
#[case(Kind::Unknown, 500, Some(5), false, true)]
fn what_the_broker_says_is_answered(
    #[case] kind: Kind,
    #[case] status: u16,
    #[case] retry_after: Option<u64>,
    #[case] is_awaited: bool,
    #[case] is_token_kept: bool,
) {
    let refusal = broker(kind, None);
    let shape = refusal.shape();
    assert_eq!(shape.status.as_u16(), status);
    assert_eq!(shape.retry_after.map(|wait| wait.as_secs()), retry_after);
    assert_eq!(refusal.is_awaited(), is_awaited);
    assert_eq!(refusal.name(), kind.name());
    assert!(refusal.to_string().contains("cause; next step"));
    let Refusal::Source(error) = &refusal else {
        unreachable!()
    };
    assert_eq!(error.is_transient(), is_token_kept);
    let asked = retry_after.map(|_| 17);
    let shape = broker(kind, Some(17)).shape();
    assert_eq!(shape.retry_after.map(|wait| wait.as_secs()), asked);
}

/// An identity that moves to federation is attached still; but no pod is given by the node what the broker denies the pod.
#[rstest]
#[case(Kind::NoTenant, true)]
#[case(Kind::CredentialMissing, true)]
#[case(Kind::TenantRefused, true)]
#[case(Kind::Unavailable, true)]
#[case(Kind::NotGranted, false)]
#[case(Kind::UnknownPod, false)]
#[case(Kind::WrongNode, false)]
#[case(Kind::PodFinished, false)]
#[case(Kind::CallerRefused, false)]
fn what_is_attached_goes_on_where_federation_does_not_work_yet(
    #[case] kind: Kind,
    #[case] goes_on: bool,
) {
    let Refusal::Source(error) = broker(kind, None) else {
        unreachable!()
    };
    assert_eq!(error.is_federation_unproven(), goes_on);
}

#[rstest]
#[case(SourceError::NoBroker(ObjectKey::new(KEY.0, KEY.1)), 403, "no_broker", "--broker-url")]
#[case(SourceError::NoPod(ObjectKey::new(KEY.0, KEY.1)), 500, "no_pod", "ask again")]
#[case(
    ClientError::Unreachable { url: "https://b/".to_owned(), reason: "connection refused".to_owned() },
    500, "broker_unreachable", "check that it runs"
)]
#[case(
    ClientError::File { path: "/ca.crt".to_owned(), reason: "No such file".to_owned() },
    500, "broker_file_unusable", "published its CA"
)]
#[case(
    ClientError::NotABroker { url: "https://b/".to_owned(), reason: "status 404".to_owned() },
    500, "not_a_broker", "--broker-url"
)]
fn a_broker_that_does_not_answer_is_named_with_the_next_step(
    #[case] error: impl Into<SourceError>,
    #[case] status: u16,
    #[case] name: &str,
    #[case] next_step: &str,
) {
    let refusal = source(error);
    assert_eq!(refusal.shape().status.as_u16(), status);
    assert_eq!((refusal.name(), refusal.is_awaited()), (name, false));
    assert!(refusal.to_string().contains(next_step), "{refusal}");
}
