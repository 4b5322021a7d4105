use super::*;

const DEFAULT: Duration = Duration::from_secs(15);

fn held(holder: &str, seconds: Option<i32>) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: seconds,
        ..LeaseSpec::default()
    }
}

fn decided(lease: &LeaseSpec, unchanged: u64) -> Decision {
    decide(lease, "alice", Duration::from_secs(unchanged), DEFAULT)
}

#[test]
fn a_free_lease_is_taken() {
    assert_eq!(decided(&LeaseSpec::default(), 0), Decision::Acquire);
    assert_eq!(decided(&held("", Some(15)), 0), Decision::Acquire);
}

#[test]
fn ones_own_lease_is_renewed_even_when_late() {
    assert_eq!(decided(&held("alice", Some(15)), 1), Decision::Renew);
    assert_eq!(decided(&held("alice", Some(15)), 100), Decision::Renew);
}

#[test]
fn anothers_lease_is_followed_until_it_expires() {
    let follow = Decision::Follow {
        holder: "bob".to_owned(),
    };
    assert_eq!(decided(&held("bob", Some(20)), 19), follow);
    assert_eq!(decided(&held("bob", Some(20)), 20), Decision::Acquire);
    assert_eq!(decided(&held("bob", None), 14), follow);
    assert_eq!(decided(&held("bob", Some(-1)), 15), Decision::Acquire);
}

mod against_an_api_server {
    use super::*;
    use crate::fake::Store;
    use tokio::sync::watch;

    fn candidate(identity: &str) -> Candidate {
        Candidate {
            namespace: "default".into(),
            name: "aad-pod-identity-mic".into(),
            identity: identity.into(),
            duration: DEFAULT,
        }
    }

    struct Running {
        leading: watch::Receiver<bool>,
        shutdown: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    fn start(store: &Store, identity: &str) -> Running {
        let (sender, leading) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run_leader_election(
            store.client(identity),
            candidate(identity),
            sender,
            shutdown.clone(),
        ));
        Running {
            leading,
            shutdown,
            task,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_hands_over_at_shutdown() {
        let store = Store::default();
        let mut alice = start(&store, "alice");
        alice.leading.wait_for(|l| *l).await.unwrap();
        let mut bob = start(&store, "bob");
        tokio::time::sleep(DEFAULT * 4).await;
        assert!(*alice.leading.borrow() && !*bob.leading.borrow());
        alice.shutdown.cancel();
        alice.task.await.unwrap();
        assert!(!*alice.leading.borrow());
        let freed = Instant::now();
        bob.leading.wait_for(|l| *l).await.unwrap();
        assert!(freed.elapsed() <= candidate("bob").retry());
        bob.shutdown.cancel();
        bob.task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_cannot_renew_stops_before_another_begins() {
        let store = Store::default();
        let mut alice = start(&store, "alice");
        alice.leading.wait_for(|l| *l).await.unwrap();
        let mut bob = start(&store, "bob");
        tokio::time::sleep(DEFAULT).await;
        store.cut("alice");
        alice.leading.wait_for(|l| !*l).await.unwrap();
        assert!(!*bob.leading.borrow());
        bob.leading.wait_for(|l| *l).await.unwrap();
        alice.shutdown.cancel();
        bob.shutdown.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_server_is_no_reason_not_to_lead() {
        let store = Store::default();
        store.put_endpoints(lock("", 0));
        store.slow_down(Duration::from_millis(1900));
        let mut alice = start(&store, "alice");
        let led = tokio::time::timeout(DEFAULT * 4, alice.leading.wait_for(|l| *l)).await;
        assert!(led.is_ok(), "nobody leads");
        drop(led);
        let lost = tokio::time::timeout(DEFAULT * 10, alice.leading.wait_for(|l| !*l)).await;
        assert!(lost.is_err(), "leadership flaps");
        alice.shutdown.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_does_not_keep_a_leader_leading() {
        let store = Store::default();
        let mut alice = start(&store, "alice");
        alice.leading.wait_for(|l| *l).await.unwrap();
        let led = Instant::now();
        store.slow_down(Duration::from_secs(3600));
        alice.leading.wait_for(|l| !*l).await.unwrap();
        assert!(led.elapsed() <= candidate("alice").deadline());
        store.slow_down(Duration::ZERO);
        alice.leading.wait_for(|l| *l).await.unwrap();
        alice.shutdown.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_server_at_start_is_waited_for() {
        let store = Store::default();
        store.cut("alice");
        let mut alice = start(&store, "alice");
        tokio::time::sleep(DEFAULT * 3).await;
        assert!(!*alice.leading.borrow());
        store.mend();
        alice.leading.wait_for(|l| *l).await.unwrap();
        alice.shutdown.cancel();
    }

    const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

    /// As client-go writes it, at a time that makes each record another.
    fn lock(holder: &str, second: usize) -> serde_json::Value {
        let record = serde_json::json!({
            "holderIdentity": holder, "leaseDurationSeconds": 15, "leaderTransitions": 3,
            "acquireTime": "2026-01-01T00:00:00Z", "renewTime": format!("2026-01-01T00:00:{second:02}Z"),
        });
        serde_json::json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": "aad-pod-identity-mic", "namespace": "default", "resourceVersion": format!("o{second}"),
                "annotations": { LEADER: record.to_string() },
            },
        })
    }

    fn record(store: &Store) -> serde_json::Value {
        let lock = store.endpoints().unwrap();
        let text = lock["metadata"]["annotations"][LEADER].as_str().unwrap();
        serde_json::from_str(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_legacy_controller_is_waited_for_and_then_kept_waiting() {
        let store = Store::default();
        store.put_endpoints(lock("mic-7d9f", 0));
        let mut alice = start(&store, "alice");
        for second in 1..30 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            store.put_endpoints(lock("mic-7d9f", second));
            assert!(!*alice.leading.borrow(), "the other one lives");
        }
        let gone = Instant::now();
        alice.leading.wait_for(|l| *l).await.unwrap();
        let waited = gone.elapsed();
        assert!(waited >= DEFAULT && waited < DEFAULT * 2, "{waited:?}");
        assert_eq!(record(&store)["holderIdentity"], "podid/alice");
        assert_eq!(record(&store)["leaderTransitions"], 4);
        let before = store.endpoints();
        tokio::time::sleep(DEFAULT).await;
        assert_ne!(store.endpoints(), before, "it is renewed");
        // A replica of podid follows by the Lease, and need not wait for this lock.
        alice.shutdown.cancel();
        alice.task.await.unwrap();
        assert_eq!(record(&store)["holderIdentity"], "");
        let mut bob = start(&store, "bob");
        let began = Instant::now();
        bob.leading.wait_for(|l| *l).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        // Somebody starts the other one again and takes the lock away: podid yields.
        store.put_endpoints(lock("mic-again", 50));
        bob.leading.wait_for(|l| !*l).await.unwrap();
        bob.shutdown.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_legacy_controller_never_was_its_lock_is_not_made() {
        let store = Store::default();
        let mut alice = start(&store, "alice");
        alice.leading.wait_for(|l| *l).await.unwrap();
        tokio::time::sleep(DEFAULT * 10).await;
        assert_eq!(store.endpoints(), None);
        assert!(*alice.leading.borrow());
        alice.shutdown.cancel();
    }
}
