//! A token as the cache holds it: the body of its answer, and when it is due for renewal.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::{SignedDuration, Timestamp};
use podid_azure::Token;

/// A token that is renewed half-way has at least this life.
const LONG: Duration = Duration::from_secs(2 * 3600);

/// A token ready to be answered with.
pub struct CachedToken {
    pub(super) token: Token,
    /// The answer's body up to the number of `expires_in`; several of an application with auxiliary tenants.
    heads: Vec<Head>,
    pub(super) refresh_on: Timestamp,
}

struct Head {
    text: zeroize::Zeroizing<Vec<u8>>,
    expires_on: Timestamp,
}

impl Head {
    fn new(token: &Token, resource: &str, client_id: &str) -> Self {
        let fields = serde_json::json!({
            "access_token": token.secret(),
            "client_id": token.client_id.as_deref().unwrap_or(client_id),
            "expires_on": token.expires_on.as_second().to_string(),
            "not_before": token.not_before.as_second().to_string(),
            "refresh_token": "",
            "resource": resource,
            "token_type": "Bearer",
        });
        let mut text = fields.to_string().into_bytes();
        // The closing brace makes way for the one field that depends on the moment.
        text.pop();
        text.extend_from_slice(b",\"expires_in\":\"");
        Self {
            text: text.into(),
            expires_on: token.expires_on,
        }
    }

    fn put(&self, now: Timestamp, body: &mut BytesMut) {
        let life = self.expires_on.as_second().saturating_sub(now.as_second());
        let mut digits = [0_u8; 20];
        body.put_slice(&self.text);
        body.put_slice(decimal(u64::try_from(life).unwrap_or(0), &mut digits));
        body.put_slice(b"\"}");
    }
}

impl CachedToken {
    pub(super) fn new(token: Token, resource: &str, client_id: &str, now: Timestamp) -> Self {
        let life = token.remaining(now);
        let due = if life >= LONG { life / 2 } else { life * 4 / 5 };
        // Different tokens are renewed at different times, though they came at once.
        let jitter = due.mul_f64(f64::from(fraction(token.secret())) / 2560.0);
        let due = due.saturating_sub(jitter);
        let due = SignedDuration::try_from(due).unwrap_or_default();
        let planned = now.checked_add(due).unwrap_or(token.expires_on);
        let all = std::iter::once(&token).chain(&token.auxiliary);
        let heads = all
            .map(|token| Head::new(token, resource, client_id))
            .collect();
        Self {
            refresh_on: token.refresh_on.map_or(planned, |asked| asked.min(planned)),
            heads,
            token,
        }
    }

    /// When it expires.
    pub fn expires_on(&self) -> Timestamp {
        self.token.expires_on
    }

    /// The answer's body at `now`: an object, or with auxiliary tenants a list with the primary one's first, as the original
    /// answers.
    pub fn body(&self, now: Timestamp) -> Bytes {
        let length: usize = self.heads.iter().map(|head| head.text.len() + 24).sum();
        let mut body = BytesMut::with_capacity(length + 2);
        match self.heads.as_slice() {
            [only] => only.put(now, &mut body),
            heads => {
                for (n, head) in heads.iter().enumerate() {
                    body.put_u8(if n == 0 { b'[' } else { b',' });
                    head.put(now, &mut body);
                }
                body.put_u8(b']');
            }
        }
        body.freeze()
    }
}

fn decimal(mut number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            return &buffer[at..];
        }
    }
}

/// A number from 0 to 255 that two tokens rarely share.
fn fraction(text: &str) -> u8 {
    text.bytes()
        .fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
}
