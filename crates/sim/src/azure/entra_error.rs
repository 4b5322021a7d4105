//! Error answers of Entra's token endpoint: the AADSTS code, its text, and the ids by which Microsoft's support finds the request.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde_json::json;

use super::directory::guid;

/// A refusal of a token request.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    error: &'static str,
    number: u32,
    text: String,
}

pub(super) fn refuse(error: &'static str, number: u32, text: impl Into<String>) -> Refused {
    let status = match error {
        "invalid_client" => StatusCode::UNAUTHORIZED,
        _ => StatusCode::BAD_REQUEST,
    };
    Refused {
        status,
        error,
        number,
        text: text.into(),
    }
}

impl Refused {
    pub(super) fn answer(self) -> Response {
        let (trace, correlation) = (guid(), guid());
        let now = Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let body = json!({
            "error": self.error,
            "error_description": format!(
                "AADSTS{}: {}\r\nTrace ID: {trace}\r\nCorrelation ID: {correlation}\r\nTimestamp: {now}", self.number, self.text
            ),
            "error_codes": [self.number], "timestamp": now, "trace_id": trace, "correlation_id": correlation,
            "error_uri": format!("https://login.microsoftonline.com/error?code={}", self.number),
        });
        (self.status, Json(body)).into_response()
    }
}
