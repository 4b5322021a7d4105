//! HTTP server: reads a request, checks the bearer token, and writes the answer or the stream of a watch. One handler for every
//! path.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, Request as HttpRequest, Response, StatusCode, header},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    api::{Answer, Request, Server},
    failure::{Failure, Outcome},
};

/// The largest body that is read, in bytes; the real server's limit.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

#[derive(Clone)]
struct Shared {
    server: Arc<Server>,
    shutdown: CancellationToken,
}

pub(super) async fn serve(
    listener: TcpListener,
    server: Arc<Server>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let shared = Shared {
        server,
        shutdown: shutdown.clone(),
    };
    let app = Router::new().fallback(handle).with_state(shared);
    axum::serve(listener, app)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

async fn handle(State(shared): State<Shared>, request: HttpRequest<Body>) -> Response<Body> {
    let method = request.method().to_string();
    let target = request.uri().to_string();
    let answer = respond(&shared, request).await;
    let response = match answer {
        Ok(Answer::Watch(start)) => {
            let server = Arc::clone(&shared.server);
            let stream = start.stream(&shared.server, shared.shutdown.clone(), server);
            response(200, "application/json", Body::from_stream(stream))
        }
        Ok(Answer::Text(code, text)) => response(code, "text/plain; charset=utf-8", text.into()),
        Ok(Answer::Document { content_type, body }) => {
            let mut response = response(200, content_type, body.to_string().into());
            let hour = HeaderValue::from_static("public, max-age=3600");
            response.headers_mut().insert(header::CACHE_CONTROL, hour);
            response
        }
        Ok(Answer::Json {
            code,
            body,
            content_type,
            warnings,
        }) => {
            let mut response = response(code, content_type, body.to_string().into());
            for warning in warnings {
                let text = format!(
                    "299 - {:?}",
                    warning.replace(|c: char| !c.is_ascii() || c.is_control(), "?")
                );
                if let Ok(value) = HeaderValue::from_str(&text) {
                    response.headers_mut().append(header::WARNING, value);
                }
            }
            response
        }
        Err(failure) => {
            let body = failure.body().to_string();
            response(failure.code, "application/json", body.into())
        }
    };
    tracing::debug!(
        method,
        target,
        status = response.status().as_u16(),
        "simulated API request"
    );
    response
}

fn response(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

async fn respond(shared: &Shared, request: HttpRequest<Body>) -> Outcome<Answer> {
    let (parts, body) = request.into_parts();
    authenticate(&shared.server, &parts.headers)?;
    let latency = shared.server.faults().latency();
    if latency > Duration::ZERO {
        tokio::time::sleep(latency).await;
    }
    let target = parts.uri.to_string();
    if let Some(code) = shared
        .server
        .faults()
        .failure(parts.method.as_str(), &target)
    {
        return Err(Failure::injected(code));
    }
    let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
        .map_err(|e| Failure::bad_request(format!("malformed query: {e}")))?;
    let body = to_bytes(body, BODY_LIMIT).await.map_err(|_| {
        let message = format!("Request entity too large: limit is {BODY_LIMIT}");
        Failure::new(413, "RequestEntityTooLarge", message)
    })?;
    let text = |name: header::HeaderName| {
        let value = parts.headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    shared.server.answer(&Request {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: query.0,
        accept: text(header::ACCEPT),
        content_type: text(header::CONTENT_TYPE),
        body,
    })
}

fn authenticate(server: &Server, headers: &HeaderMap) -> Outcome<()> {
    let Some(token) = &server.config().token else {
        return Ok(());
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    let expected = format!("Bearer {}", token.0);
    let equal = given.is_some_and(|given| {
        aws_lc_rs::constant_time::verify_slices_are_equal(given, expected.as_bytes()).is_ok()
    });
    if equal {
        Ok(())
    } else {
        Err(Failure::new(401, "Unauthorized", "Unauthorized"))
    }
}
