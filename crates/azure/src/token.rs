//! Access token: a value that is never printed and is wiped from memory when dropped, and the parser of token responses. `imds.rs`
//! and `entra.rs` make it; only a response to its owner reads the secret.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Service};

/// The longest token in bytes; HTTP servers refuse headers far shorter.
const MAX_TOKEN: usize = 64 * 1024;

/// An access token with the fields of its token response.
pub struct Token {
    secret: Zeroizing<String>,
    /// The authentication scheme of its use: `Bearer`.
    pub token_type: String,
    /// The audience, as it was requested.
    pub resource: String,
    /// The client id of its identity, when the issuer says so.
    pub client_id: Option<String>,
    /// The time at which it expires.
    pub expires_on: Timestamp,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// The time at which the issuer asks for a refresh.
    pub refresh_on: Option<Timestamp>,
    /// Tokens of the same application in its auxiliary tenants, which the response to a pod lists as well.
    pub auxiliary: Vec<Token>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("resource", &self.resource)
            .field("expires_on", &self.expires_on)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Answer {
    access_token: Zeroizing<String>,
    token_type: Option<String>,
    resource: Option<String>,
    client_id: Option<String>,
    expires_on: Option<Value>,
    expires_in: Option<Value>,
    not_before: Option<Value>,
    refresh_in: Option<Value>,
}

impl Token {
    /// A token made of its parts.
    pub fn new(secret: Zeroizing<String>, resource: &str, expires_on: Timestamp) -> Self {
        Self {
            secret,
            token_type: "Bearer".to_owned(),
            resource: resource.to_owned(),
            client_id: None,
            expires_on,
            not_before: Timestamp::now(),
            refresh_on: None,
            auxiliary: Vec::new(),
        }
    }

    /// The secret itself, for the response to its owner and nothing else.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// For how long it and its auxiliary tokens are valid from `now`; zero when one has expired.
    pub fn remaining(&self, now: Timestamp) -> std::time::Duration {
        let own = std::time::Duration::try_from(self.expires_on.duration_since(now));
        let others = self.auxiliary.iter().map(|token| token.remaining(now));
        others.fold(own.unwrap_or_default(), std::time::Duration::min)
    }

    /// Parses a token response of the metadata service (numbers as strings) or of Entra (either). The resource is `resource` unless
    /// the response says otherwise.
    pub(crate) fn parse(
        service: Service,
        body: &[u8],
        resource: &str,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let malformed = |what: &str| Error::new(service, ErrorKind::Malformed, what);
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|_| malformed("the answer is not a token (no JSON with access_token)"))?;
        if answer.access_token.is_empty() || answer.access_token.len() > MAX_TOKEN {
            return Err(malformed("the answer's access_token is empty or too long"));
        }
        let after = |seconds: i64| now.checked_add(SignedDuration::from_secs(seconds)).ok();
        let at = |value: &Option<Value>| Timestamp::from_second(number(value.as_ref()?)?).ok();
        let lasting = number_of(&answer.expires_in).and_then(after);
        let expires_on = at(&answer.expires_on)
            .or(lasting)
            .ok_or_else(|| malformed("the answer says neither expires_on nor expires_in"))?;
        Ok(Self {
            secret: answer.access_token,
            token_type: answer.token_type.unwrap_or_else(|| "Bearer".to_owned()),
            resource: answer.resource.unwrap_or_else(|| resource.to_owned()),
            client_id: answer.client_id,
            expires_on,
            not_before: at(&answer.not_before).unwrap_or(now),
            refresh_on: number_of(&answer.refresh_in).and_then(after),
            auxiliary: Vec::new(),
        })
    }
}

fn number_of(value: &Option<Value>) -> Option<i64> {
    number(value.as_ref()?)
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(body: &str) -> Result<Token, Error> {
        let now = Timestamp::from_second(1_000).unwrap();
        Token::parse(Service::Imds, body.as_bytes(), "https://r/", now)
    }

    #[test]
    fn numbers_come_as_text_or_as_numbers() {
        let text = read(r#"{"access_token":"t","expires_in":"3599","expires_on":"5000","not_before":"700","refresh_in":"100","resource":"https://vault.azure.net","token_type":"Bearer","client_id":"c"}"#).unwrap();
        assert_eq!(text.expires_on.as_second(), 5000);
        assert_eq!(text.not_before.as_second(), 700);
        assert_eq!(text.refresh_on.unwrap().as_second(), 1100);
        assert_eq!(text.resource, "https://vault.azure.net");
        let numbers = read(r#"{"access_token":"t","expires_in":3599}"#).unwrap();
        assert_eq!(numbers.expires_on.as_second(), 1_000 + 3599);
        assert_eq!(numbers.resource, "https://r/");
    }

    #[test]
    fn what_is_not_a_token_is_refused_without_quoting_it() {
        for body in [
            "",
            "{}",
            "<html>hush",
            r#"{"access_token":""}"#,
            r#"{"access_token":"hush"}"#,
            r#"{"access_token":"hush","expires_on":"never"}"#,
        ] {
            let error = read(body).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{body}");
            assert!(!error.to_string().contains("hush"));
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        let token = read(r#"{"access_token":"hush","expires_in":1}"#).unwrap();
        assert!(!format!("{token:?}").contains("hush"));
        assert_eq!(token.secret(), "hush");
        assert_eq!(
            token
                .remaining(Timestamp::from_second(2_000).unwrap())
                .as_secs(),
            0
        );
    }

    proptest! {
        #[test]
        fn no_answer_panics(expires in proptest::num::i64::ANY, body in "\\PC*") {
            let _ = read(&format!(r#"{{"access_token":"t","expires_in":{expires},"refresh_in":"{expires}","expires_on":"{expires}"}}"#));
            let _ = read(&body);
        }
    }
}
