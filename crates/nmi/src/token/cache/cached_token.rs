//! A cached token: the body of its token response, made once, and the time of its refresh ahead.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::{SignedDuration, Timestamp};
use podid_azure::Token;
use zeroize::Zeroizing;

/// Tokens that last at least this long (Azure's managed identities give 24 hours) are refreshed after half of it, others after
/// four fifths.
const LONG_LIVED: Duration = Duration::from_secs(2 * 3600);
/// A refresh comes earlier by up to this fraction of its delay, so that tokens that came together are not refreshed together.
const MAX_JITTER: f64 = 0.1;
/// Bytes that each token of a body needs besides its prefix: `expires_in`, and what closes and separates.
const SUFFIX_LENGTH: usize = 24;

/// A token that is ready to be served.
pub struct CachedToken {
    token: Token,
    /// One of the token itself, and one of each auxiliary tenant's.
    prefixes: Vec<BodyPrefix>,
    refresh_on: Timestamp,
}

/// A token response up to the digits of `expires_in`, the one field that depends on the moment.
struct BodyPrefix {
    text: Zeroizing<Vec<u8>>,
    expires_on: Timestamp,
}

impl BodyPrefix {
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
        // `expires_in` takes the place of the closing brace.
        text.pop();
        text.extend_from_slice(b",\"expires_in\":\"");
        Self {
            text: text.into(),
            expires_on: token.expires_on,
        }
    }

    fn write(&self, now: Timestamp, body: &mut BytesMut) {
        let left = self.expires_on.as_second().saturating_sub(now.as_second());
        body.put_slice(&self.text);
        body.put_slice(itoa::Buffer::new().format(left.max(0)).as_bytes());
        body.put_slice(b"\"}");
    }
}

impl CachedToken {
    /// `jitter`, from 0 to 1, says how much of [`MAX_JITTER`] the refresh comes earlier.
    pub(super) fn new(
        token: Token,
        resource: &str,
        client_id: &str,
        now: Timestamp,
        jitter: f64,
    ) -> Self {
        let life = token.remaining(now);
        let delay = if life >= LONG_LIVED {
            life / 2
        } else {
            life * 4 / 5
        };
        let delay = delay.mul_f64(1.0 - MAX_JITTER * jitter);
        let delay = SignedDuration::try_from(delay).unwrap_or_default();
        let planned = now.checked_add(delay).unwrap_or(token.expires_on);
        let all = std::iter::once(&token).chain(&token.auxiliary);
        let prefixes = all
            .map(|token| BodyPrefix::new(token, resource, client_id))
            .collect();
        Self {
            refresh_on: token.refresh_on.map_or(planned, |asked| asked.min(planned)),
            prefixes,
            token,
        }
    }

    /// When the token expires.
    pub fn expires_on(&self) -> Timestamp {
        self.token.expires_on
    }

    /// When the token is due for a refresh ahead: at the time that its issuer asks for, or earlier.
    pub(super) fn refresh_on(&self) -> Timestamp {
        self.refresh_on
    }

    /// For how long the token, and those of auxiliary tenants with it, are valid at `now`; zero after that.
    pub(super) fn remaining(&self, now: Timestamp) -> Duration {
        self.token.remaining(now)
    }

    /// The body of the token response at `now`: a JSON object, or a list where the identity has auxiliary tenants, the primary
    /// tenant's token first, as AAD Pod Identity answers.
    pub fn body(&self, now: Timestamp) -> Bytes {
        let lengths = self.prefixes.iter().map(|p| p.text.len() + SUFFIX_LENGTH);
        let mut body = BytesMut::with_capacity(lengths.sum::<usize>() + 2);
        match self.prefixes.as_slice() {
            [only] => only.write(now, &mut body),
            prefixes => {
                for (n, prefix) in prefixes.iter().enumerate() {
                    body.put_u8(if n == 0 { b'[' } else { b',' });
                    prefix.write(now, &mut body);
                }
                body.put_u8(b']');
            }
        }
        body.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn token(life: i64) -> Token {
        Token::new("t\"0".to_owned().into(), "https://r/", at(1_000_000 + life))
    }

    #[test]
    fn the_body_is_true_at_the_moment_of_the_answer() {
        let cached = CachedToken::new(token(3600), "https://r//", "c", at(1_000_000), 0.0);
        for (passed, left) in [(0, "3600"), (3591, "9"), (9999, "0")] {
            let body = cached.body(at(1_000_000 + passed));
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["expires_in"], left);
            assert_eq!(body["expires_on"], "1003600");
            assert_eq!(body["resource"], "https://r//");
            assert_eq!(body["access_token"], "t\"0");
            assert_eq!(body["refresh_token"], "");
            assert!(
                body.as_object()
                    .unwrap()
                    .values()
                    .all(serde_json::Value::is_string)
            );
        }
    }

    #[test]
    fn a_token_is_refreshed_ahead_by_its_life_its_jitter_and_its_issuers_wish() {
        let refresh_after = |token: Token, jitter: f64| {
            let cached = CachedToken::new(token, "r", "c", at(1_000_000), jitter);
            cached.refresh_on().as_second() - 1_000_000
        };
        assert_eq!(refresh_after(token(86_400), 0.0), 43_200);
        assert_eq!(refresh_after(token(86_400), 1.0), 38_880);
        assert_eq!(refresh_after(token(3600), 0.0), 2880);
        for (asked, planned) in [(60, 60), (3000, 2880)] {
            let mut token = token(3600);
            token.refresh_on = Some(at(1_000_000 + asked));
            assert_eq!(refresh_after(token, 0.0), planned);
        }
    }
}
