//! Fuzzing: any bytes, sent to a whole node agent.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::Rig;
use super::client::connect;

/// How long an exchange may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Sends these bytes as pod `from`, which is granted nothing.
///
/// # Panics
/// When the exchange does not end, when an error has no JSON body, when a token is given, or when anything reaches the metadata
/// service.
pub async fn trial(rig: &Rig, from: &str, bytes: &[u8]) {
    let stream = connect(from, rig.listener).await;
    let (mut reader, mut writer) = stream.into_split();
    let sending = async {
        // The node agent may answer and close before it has read everything.
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
    };
    let mut received = Vec::new();
    let exchange = async { tokio::join!(sending, reader.read_to_end(&mut received)) };
    assert!(
        timeout(LIMIT, exchange).await.is_ok(),
        "no end: {:?}",
        text(bytes)
    );
    check(&received, bytes);
    assert!(
        rig.upstream.seen().is_empty(),
        "reached by {:?}",
        text(bytes)
    );
}

fn check(received: &[u8], sent: &[u8]) {
    let to_head = sent.windows(4).any(|four| four == b"HEAD");
    let all = text(received);
    let mut rest = all.as_str();
    while !rest.is_empty() {
        let (head, after) = rest
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{all:?} to {:?}", text(sent)));
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status == "100" {
            rest = after;
            continue;
        }
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length
            .and_then(|length| length.parse().ok())
            .unwrap_or_default();
        // The answer to a HEAD states the length of a body that it does not have.
        let is_bare = to_head && (after.is_empty() || after.starts_with("HTTP/1."));
        let (body, after) = after.split_at(if is_bare { 0 } else { length });
        rest = after;
        assert!(
            !body.contains("access_token"),
            "a token for {:?}",
            text(sent)
        );
        if !is_bare && status != "200" {
            let body: serde_json::Value = serde_json::from_str(body)
                .unwrap_or_else(|_| panic!("{status} without JSON to {:?}", text(sent)));
            assert!(body["error"].is_string() && body["error_description"].is_string());
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(100_000)]).into_owned()
}

/// Makes new requests by mutation of old ones.
pub struct Mutator {
    seeds: Vec<Vec<u8>>,
    state: u64,
}

/// Fragments that mutations insert.
const PIECES: [&[u8]; 28] = [
    b"/",
    b"\\",
    b"%2f",
    b"%5c",
    b"%252f",
    b"..",
    b"%2e%2e",
    b";",
    b"%00",
    b"\x00",
    b"\r\n",
    b"\n",
    b"\r",
    b"\t",
    b" ",
    b":",
    b"Metadata: true\r\n",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"GET ",
    b"HEAD ",
    b"metadata",
    b"identity",
    b"oauth2/token",
    b"\xff",
    b"http://169.254.169.254",
];

impl Mutator {
    pub fn new(seeds: Vec<Vec<u8>>, seed: u64) -> Self {
        Self { seeds, state: seed }
    }

    /// SplitMix64.
    fn below(&mut self, limit: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }

    /// The next request.
    pub fn next(&mut self) -> Vec<u8> {
        let n = self.below(self.seeds.len());
        let mut bytes = self.seeds[n].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let end = (at + self.below(16)).min(bytes.len());
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
                3 => {
                    let other = self.below(self.seeds.len());
                    let from = self.below(self.seeds[other].len() + 1);
                    bytes.truncate(at);
                    bytes.extend_from_slice(&self.seeds[other][from..]);
                }
                4 => bytes.truncate(at),
                _ => {
                    let piece = PIECES[self.below(PIECES.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
            }
        }
        bytes
    }
}
