//! Command lines that contradict themselves are refused before anything happens, and the refusal names the flag.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

fn refused(line: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_podid"))
        .args(line.split(' '))
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    assert!(!output.status.success(), "{line} was taken");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn contradictions_are_named() {
    for (line, flags) in [
        (
            "nmi --node=n --operation-mode=managed --forceNamespaced=false",
            "--forceNamespaced",
        ),
        ("nmi --node=n --http-probe-port=9090", "--prometheus-port"),
        ("nmi --node=n --nmi-port=8080", "--http-probe-port"),
        ("nmi --node=n --nmi-port=9090", "--prometheus-port"),
        ("nmi --node=n --nmi-port=0", "--nmi-port=0"),
        (
            "nmi --node=n --interception=none --intercept-host-network",
            "--intercept-host-network",
        ),
        (
            "nmi --node=n --nmi-listen-address=::1",
            "--nmi-listen-address",
        ),
        ("nmi --interception=none --nmi-port=0", "--node is required"),
    ] {
        let said = refused(line);
        assert!(said.contains(flags), "{line}: {said}");
    }
}

#[test]
fn what_is_not_known_or_not_meant_is_refused() {
    for (line, word) in [
        ("nmi --node=n --nmi-prot=2579", "--nmi-port"),
        ("nmi --node=n --operation-mode=manged", "managed"),
        (
            "nmi --node=n --retry-attempts-for-created=many",
            "--retry-attempts-for-created",
        ),
        (
            "nmi --node=n --enable-conntrack-deletion=maybe",
            "--enable-conntrack-deletion",
        ),
        ("nmi --node=n --assignment-wait=5", "a unit is missing"),
        ("nmi --node=n --metadata-ip=169.254.169", "--metadata-ip"),
        ("issuer --issuer-url=http://a.example.com", "--issuer-url"),
        ("issuer --issuer-url=https://a.svc", "--issuer-url"),
        ("issuer --service-account=default", "NAMESPACE/NAME"),
        ("issuer --timeout=0s", "--timeout"),
        ("issuer --timeout=5", "a unit is missing"),
        ("issuer --kubeconfig=/no/such/file", "--kubeconfig"),
    ] {
        let said = refused(line);
        assert!(said.contains(word), "{line}: {said}");
    }
}
