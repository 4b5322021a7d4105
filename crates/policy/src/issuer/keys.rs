//! Public keys (JWKS) of an OIDC issuer: whether those that are published are the API server's, and of a kind that Entra takes.

use super::{Check, Evidence, Outcome, Published, Reason, shown};

/// Entra keeps only the first keys of a set, this many.
const MOST_KEYS: usize = 100;
/// Bits of an RSA key below which it is not taken for safe any more.
const FEWEST_BITS: usize = 2048;
/// Seconds for which caches may keep the keys; a new key is published at least a day before it signs.
const LONGEST_CACHE: u64 = 24 * 3600;
/// The algorithm that Entra supports for tokens of other issuers.
const RS256: &str = "RS256";

/// A public key of a JWKS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `kid`.
    pub id: String,
    /// `kty`: RSA, EC.
    pub kind: String,
    /// `alg`, where it is said.
    pub algorithm: Option<String>,
    /// The modulus and exponent, or the point: what makes it this key.
    pub material: Vec<u8>,
    /// Bits of the modulus of an RSA key; 0 for others.
    pub bits: usize,
}

impl Key {
    /// Whether Entra can verify what it signs.
    fn is_rs256(&self) -> bool {
        let algorithm = self.algorithm.as_deref().unwrap_or(RS256);
        self.kind == "RSA" && algorithm == RS256
    }

    /// The algorithm where it is said, else the kind.
    fn label(&self) -> String {
        shown(self.algorithm.as_ref().unwrap_or(&self.kind))
    }
}

/// A JWKS as it was served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet {
    /// Its keys, in their order.
    pub keys: Vec<Key>,
    /// Its size.
    pub bytes: usize,
    /// Seconds for which caches may keep it.
    pub max_age: Option<u64>,
}

/// So many keys, in words.
pub fn counted(keys: usize) -> String {
    match keys {
        1 => "1 key".to_owned(),
        count => format!("{count} keys"),
    }
}

fn published_set(evidence: &Evidence) -> Option<&KeySet> {
    let published = evidence.published.as_ref()?;
    published.keys.as_ref()?.as_ref().ok()
}

/// The key that signs, where a token has told.
fn signing_id(evidence: &Evidence) -> Option<&str> {
    evidence.token.as_ref().ok()?.key.as_deref()
}

/// Whether the API server's keys are published, the one that signs above all.
pub fn match_check(evidence: &Evidence, published: &Published) -> Check {
    const NAME: &str = "keys match";
    const ANEW: &str = "publish the keys anew: podid issuer --write=DIRECTORY writes those of the API server. In a rotation, publish a new key a day before it signs";
    let Some(Ok(set)) = &published.keys else {
        return Check::not_made(NAME, "the published keys were not read");
    };
    let wrong = |key: &str, reason, cause: &str| {
        Check::found(NAME, Outcome::Wrong, shown(key), reason, cause, ANEW)
    };
    let find = |id: &str| set.keys.iter().find(|key| key.id == id);
    let differs = |key: &&Key| find(&key.id).is_some_and(|other| other.material != key.material);
    if let Some(key) = evidence.api_keys.iter().find(differs) {
        let cause = "the key that is published under this kid is not the API server's, so Entra refuses every token that it signs; the documents may be another cluster's";
        return wrong(&key.id, Reason::KeyDiffers, cause);
    }
    let signing = signing_id(evidence);
    if let Some(id) = signing.filter(|id| find(id).is_none()) {
        let cause = "the key with which the API server signs is not published, so Entra refuses every token; it was rotated, or the documents are another cluster's";
        return wrong(id, Reason::SigningKeyMissing, cause);
    }
    let missing = evidence.api_keys.iter().find(|key| find(&key.id).is_none());
    match (missing, signing) {
        (None, Some(id)) => Check::ok(NAME, format!("{} signs", shown(id))),
        (None, None) => Check::ok(NAME, "all of the API server's are published".to_owned()),
        (Some(key), None) => {
            let cause = "a key of the API server is not published, and which of its keys signs is not known";
            wrong(&key.id, Reason::SigningKeyMissing, cause)
        }
        (Some(key), Some(_)) => Check::found(
            NAME,
            Outcome::Warning,
            shown(&key.id),
            Reason::KeyMissing,
            "a key by which the API server verifies is not published: it signs no new tokens now, but is an older one, or one that will sign after a rotation",
            ANEW,
        ),
    }
}

/// What does not need the published keys, though it looks at them where they are known.
pub fn checks(evidence: &Evidence) -> Vec<Check> {
    let set = published_set(evidence);
    let keys = set.map_or(&evidence.api_keys, |set| &set.keys);
    let mut checks = vec![
        count(keys, evidence),
        algorithm(evidence),
        size(keys, evidence),
    ];
    checks.extend(set.map(cache));
    checks
}

fn count(keys: &[Key], evidence: &Evidence) -> Check {
    const NAME: &str = "number of keys";
    let found = keys.len().to_string();
    if keys.is_empty() {
        return Check::found(
            NAME,
            Outcome::Wrong,
            found,
            Reason::NoKeys,
            "without a key Entra can verify no token",
            "publish the keys of the API server: podid issuer --write=DIRECTORY writes them",
        );
    }
    if keys.len() <= MOST_KEYS {
        return Check::ok(NAME, found);
    }
    let kept = keys.iter().take(MOST_KEYS);
    let signs = |key: &Key| signing_id(evidence).is_some_and(|id| id == key.id);
    let outcome = match kept.into_iter().any(signs) {
        true => Outcome::Warning,
        false => Outcome::Wrong,
    };
    Check::found(
        NAME,
        outcome,
        found,
        Reason::TooManyKeys,
        format!("Entra keeps the first {MOST_KEYS} keys of a set, and knows none of the others"),
        "take keys out whose tokens have all expired, and give clusters with keys of their own an issuer of their own",
    )
}

/// Whether tokens are signed with RS256.
fn algorithm(evidence: &Evidence) -> Check {
    const NAME: &str = "algorithm";
    let signing: Vec<String> = match &evidence.token {
        Ok(token) => vec![shown(&token.algorithm)],
        Err(_) => evidence.api_keys.iter().map(Key::label).collect(),
    };
    let fits = match &evidence.token {
        Ok(token) => token.algorithm == RS256,
        Err(_) => evidence.api_keys.iter().all(Key::is_rs256),
    };
    if !fits {
        return Check::found(
            NAME,
            Outcome::Wrong,
            signing.join(", "),
            Reason::NotRs256,
            "Entra supports RS256 for the tokens of other issuers, and the API server signs with another algorithm: its key is not an RSA key",
            "give kube-apiserver an RSA key (--service-account-signing-key-file), and keep the former one as --service-account-key-file while pods have tokens of it",
        );
    }
    let discovery = evidence
        .published
        .as_ref()
        .and_then(|published| published.discovery.as_ref().ok());
    match discovery.filter(|read| !read.algorithms.iter().any(|known| known == RS256)) {
        Some(read) => Check::found(
            NAME,
            Outcome::Warning,
            shown(&read.algorithms.join(", ")),
            Reason::AlgorithmNotListed,
            "tokens are signed with RS256, and id_token_signing_alg_values_supported of the discovery document does not list it",
            "publish the document anew: podid issuer --write=DIRECTORY writes it",
        ),
        None => Check::ok(NAME, RS256.to_owned()),
    }
}

/// Whether the RSA key that signs, or any where that is not known, is long enough.
fn size(keys: &[Key], evidence: &Evidence) -> Check {
    const NAME: &str = "key size";
    let signing = signing_id(evidence);
    let counts = |key: &&Key| key.bits > 0 && signing.is_none_or(|id| id == key.id);
    let Some(bits) = keys.iter().filter(counts).map(|key| key.bits).min() else {
        return Check::not_made(NAME, "no RSA key that signs");
    };
    let found = format!("{bits} bits");
    if bits >= FEWEST_BITS {
        return Check::ok(NAME, found);
    }
    Check::found(
        NAME,
        Outcome::Warning,
        found,
        Reason::SmallKey,
        format!("an RSA key of less than {FEWEST_BITS} bits is not safe, and may be refused"),
        "give kube-apiserver a longer key, published a day before it signs",
    )
}

/// Whether a new key is seen soon after it is published.
fn cache(set: &KeySet) -> Check {
    const NAME: &str = "cache";
    let Some(seconds) = set.max_age else {
        return Check::ok(NAME, "no max-age".to_owned());
    };
    let found = format!("max-age {seconds} s");
    if seconds <= LONGEST_CACHE {
        return Check::ok(NAME, found);
    }
    Check::found(
        NAME,
        Outcome::Warning,
        found,
        Reason::LongCache,
        "caches may keep the keys for more than a day, and tokens of a new key are refused until these forget the old set",
        "serve the keys with Cache-Control: max-age=3600, as kube-apiserver does",
    )
}
