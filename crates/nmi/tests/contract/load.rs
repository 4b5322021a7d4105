//! Contract 47 to 55: time, load, connections. `crates/podid/tests/rolling` tests the takeover at a restart (54), which needs processes.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::client::{self, answers, connect, exchange, get};
use crate::common::log::Log;
use crate::common::objects::{NEIGHBOUR, WEB, pod};
use crate::common::{METADATA, PATH, TEST_TIMEOUT, TOKEN, rig, rig_that_waits};

/// A test on a shared machine cannot measure percentiles; the benchmark does.
#[tokio::test]
async fn c47_a_warm_token_comes_from_memory_and_quickly() {
    let rig = rig(|_| {}).await;
    rig.token(WEB, "r").await;
    rig.upstream.forget();
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        assert_eq!(rig.token(WEB, "r").await.status, 200);
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[25] < Duration::from_millis(20), "{times:?}");
    assert_eq!(rig.upstream.tokens(), 0);
}

#[tokio::test]
async fn c48_others_are_accepted_while_a_thousand_wait_for_entra() {
    let rig = rig_that_waits(false, |_| {}).await;
    let addresses: Vec<String> = (1..=10).map(|n| format!("127.0.1.{n}")).collect();
    for (n, address) in addresses.iter().enumerate() {
        let robot = pod(&format!("robot-{n}"), address, "robot");
        rig.api.objects.lock().get_mut("pods").unwrap().push(robot);
    }
    rig.api.up.send_replace(true);
    rig.until(200).await;
    rig.upstream.forget();
    rig.upstream.gate.forget_permits(usize::MAX >> 4);
    let listener = rig.listener;
    let waiting: Vec<_> = (0..1000)
        .map(|n| {
            let from = addresses[n % 10].clone();
            tokio::spawn(async move { get(&from, listener, &format!("{TOKEN}r"), METADATA).await })
        })
        .collect();
    rig.when(|rig| rig.upstream.tokens() > 0).await;
    let start = Instant::now();
    assert_eq!(get(WEB, rig.listener, PATH, "").await.status, 400);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    rig.upstream.gate.add_permits(100);
    for answer in join_all(waiting).await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(rig.upstream.tokens(), 1, "for all of them");
}

#[tokio::test]
async fn c49_a_connection_without_a_request_leaves_nothing() {
    let (log, _listening) = Log::start();
    let rig = rig(|_| {}).await;
    for _ in 0..20 {
        drop(connect(WEB, rig.listener).await);
    }
    let gauge = async || get(WEB, rig.metrics, "/metrics", "").await.body;
    let until = Instant::now() + TEST_TIMEOUT;
    while !gauge().await.contains("podid_nmi_connections 0\n") {
        assert!(Instant::now() < until, "{}", gauge().await);
    }
    let text = log.text();
    assert!(!text.contains("ERROR") && !text.contains("WARN"), "{text}");
}

#[tokio::test]
async fn c50_a_client_that_goes_away_does_not_end_what_others_wait_for() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    rig.upstream.gate.forget_permits(usize::MAX >> 4);
    let request = format!("GET {TOKEN}slow HTTP/1.1\r\nHost: x\r\n{METADATA}\r\n");
    let mut impatient = connect(WEB, rig.listener).await;
    impatient.write_all(request.as_bytes()).await.unwrap();
    rig.when(|rig| rig.upstream.tokens() == 1).await;
    drop(impatient);
    let (patient, ()) = tokio::join!(rig.token(NEIGHBOUR, "slow"), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        rig.upstream.gate.add_permits(100);
    });
    assert_eq!(patient.status, 200);
    assert_eq!(rig.upstream.tokens(), 1);
}

#[tokio::test]
async fn c51_a_connection_is_kept_until_the_client_wants_it_closed() {
    let rig = rig(|_| {}).await;
    let mut stream = connect(WEB, rig.listener).await;
    let request = format!("GET {TOKEN}r HTTP/1.1\r\nHost: x\r\n{METADATA}\r\n");
    let mut chunk = vec![0; 8192];
    for _ in 0..100 {
        stream.write_all(request.as_bytes()).await.unwrap();
        let read = stream.read(&mut chunk).await.unwrap();
        assert_eq!(answers(&chunk[..read], false)[0].status, 200);
    }
    let last = request.replace(METADATA, "Metadata: true\r\nConnection: close\r\n");
    stream.write_all(last.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    let answer = answers(&rest, false).remove(0);
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
}

#[tokio::test]
async fn c52_odd_transports_are_served_or_told() {
    let rig = rig(|_| {}).await;
    let head = format!("GET {TOKEN}r HTTP/1.1\r\nHost: x\r\n{METADATA}");
    for (bytes, statuses) in [
        (
            format!("GET {TOKEN}r HTTP/1.0\r\n{METADATA}\r\n"),
            vec![200],
        ),
        (format!("{head}\r\n{head}\r\n{head}\r\n"), vec![200; 3]),
        (
            format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            vec![200],
        ),
        (format!("{head}Content-Length: 3\r\n\r\nabc"), vec![200]),
        (
            format!("{head}X-A: {}\r\n\r\n", "a".repeat(1 << 20)),
            vec![431],
        ),
        (
            format!("{head}{}\r\n", "X-A: b\r\n".repeat(1000)),
            vec![431],
        ),
        (format!("{head}nonsense\r\n\r\n"), vec![400]),
    ] {
        let received = exchange(WEB, rig.listener, bytes.as_bytes(), TEST_TIMEOUT).await;
        let answers = client::answers(&received, false);
        let found: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(found, statuses, "{:.200}", bytes);
        assert!(answers.iter().all(|answer| answer.json().is_object()));
    }
}

/// The limit of twenty a second is tested beside the limiter, `imds_limiter.rs`.
#[tokio::test]
async fn c53_the_metadata_service_is_asked_once_and_by_five_at_most() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    let same = join_all((0..50).map(|_| rig.token(WEB, "same"))).await;
    assert!(same.iter().all(|answer| answer.status == 200));
    assert_eq!(rig.upstream.tokens(), 1);
    rig.upstream.gate.forget_permits(usize::MAX >> 4);
    let many = join_all((0..12).map(|n| {
        let (rig, resource) = (&rig, format!("resource-{n}"));
        async move { rig.token(WEB, &resource).await.status }
    }));
    let (many, ()) = tokio::join!(many, async {
        rig.when(|rig| rig.upstream.tokens() > 2).await;
        rig.upstream.gate.add_permits(1000);
    });
    assert!(many.iter().all(|status| *status == 200), "{many:?}");
    let most = rig
        .upstream
        .most_at_once
        .load(std::sync::atomic::Ordering::SeqCst);
    assert!(most <= 5, "{most}");
}

#[tokio::test]
async fn c55_a_noisy_pod_is_told_and_its_neighbour_does_not_notice() {
    let rig = rig(|config| config.pod_requests = 10).await;
    let request = format!("GET {TOKEN}r HTTP/1.1\r\nHost: x\r\n{METADATA}\r\n");
    let received = exchange(
        WEB,
        rig.listener,
        request.repeat(60).as_bytes(),
        TEST_TIMEOUT,
    )
    .await;
    let answers = client::answers(&received, false);
    assert_eq!(answers.len(), 60);
    let refused: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status != 200)
        .collect();
    assert!(refused.len() >= 30, "{}", refused.len());
    for answer in refused {
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (429, Some("1"))
        );
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(rig.token(NEIGHBOUR, "r").await.status, 200);
}
