//! URL and addresses of an OIDC issuer: whether a reader outside of the cluster can reach them, Entra above all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Check, Outcome, Published, Reason, shown};

/// Endings of names that only a cluster or a local network knows.
const LOCAL_ENDINGS: [&str; 5] = [
    ".svc",
    ".cluster.local",
    ".local",
    ".localhost",
    ".internal",
];

/// Whether the URL is one that Entra takes.
pub fn check(issuer: &str) -> Check {
    const NAME: &str = "issuer URL";
    let wrong = |reason, cause: &str, next: &str| {
        Check::found(NAME, Outcome::Wrong, shown(issuer), reason, cause, next)
    };
    let Some(rest) = issuer.strip_prefix("https://") else {
        return wrong(
            Reason::NotHttps,
            "Entra reads an issuer by https alone, and the URL does not begin with https://",
            "publish the two documents on a web server with https (podid issuer --issuer-url=https://… --write=DIRECTORY writes them), and give its URL to kube-apiserver by --service-account-issuer",
        );
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '@' | '\\');
    if authority.is_empty() || rest.contains(odd) {
        return wrong(
            Reason::MalformedUrl,
            "an issuer is https, a host and a path: without white space, user, query or fragment",
            "correct --service-account-issuer of kube-apiserver, or --issuer-url",
        );
    }
    if is_local(host(authority)) {
        return wrong(
            Reason::ClusterInternal,
            "the host is a name that only the cluster or a local network knows; https://kubernetes.default.svc is what a cluster has that nobody gave an issuer",
            "AKS: az aks update --enable-oidc-issuer. Elsewhere: publish the two documents that podid issuer --issuer-url=https://… --write=DIRECTORY writes, and give that URL to kube-apiserver by --service-account-issuer",
        );
    }
    let slash = match issuer.ends_with('/') {
        true => " (the slash at its end is part of it: a federated credential has to have it, too)",
        false => "",
    };
    Check::ok(NAME, format!("{}{slash}", shown(issuer)))
}

/// The host of an authority, without its port.
fn host(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn is_local(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_address = host.parse::<IpAddr>().is_ok();
    let ends = LOCAL_ENDINGS.iter().any(|ending| host.ends_with(ending));
    !is_address && (ends || !host.contains('.'))
}

/// Whether the host's addresses are reachable over the internet.
pub fn addresses(published: &Published) -> Check {
    const NAME: &str = "public address";
    let addresses = match &published.addresses {
        Ok(addresses) => addresses,
        Err(why) => {
            return Check::found(
                NAME,
                Outcome::Unknown,
                shown(why),
                Reason::NameNotFound,
                "this machine's DNS does not know the issuer's host; where it was read nevertheless, a proxy knows the name",
                "look the name up at a public DNS server",
            );
        }
    };
    let listed: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let listed = listed.join(", ");
    if let Some(local) = addresses.iter().find(|address| !is_public(**address)) {
        return Check::found(
            NAME,
            Outcome::Wrong,
            listed,
            Reason::NotPublic,
            format!(
                "{local} is not an address of the internet, so Entra cannot reach it; or this machine's DNS answers otherwise than a public one"
            ),
            "publish the two documents where everybody can read them; or run this from a machine outside of the network, if its DNS differs",
        );
    }
    Check::ok(NAME, listed)
}

/// Whether an address can be reached over the internet.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    // 100.64.0.0/10 is the carrier's, 198.18.0.0/15 for benchmarks, 240.0.0.0/4 nobody's.
    let shared = a == 100 && (64..128).contains(&b);
    let benchmark = a == 198 && (18..20).contains(&b);
    let local = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_documentation();
    !(local || shared || benchmark || a == 0 || a >= 240 || v4.is_multicast())
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    // 2000::/3 is what is routed; 2001:db8::/32 of it is for documentation.
    let [first, second, ..] = v6.segments();
    first & 0xe000 == 0x2000 && !(first == 0x2001 && second == 0x0db8)
}
