//! A fake of Entra's token endpoint: gives prepared answers, else tokens, and records the forms.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use parking_lot::Mutex;
use podid_azure::entra::Entra;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// Status and body.
type Answer = (u16, Value);

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    forms: Vec<String>,
}

pub(crate) struct FakeEntra {
    pub(crate) url: Url,
    state: Arc<Mutex<State>>,
    /// Each answer takes a permit, so that a test may hold answers back.
    pub(crate) gate: Arc<Semaphore>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeEntra {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeEntra {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let (shared, held) = (Arc::clone(&state), Arc::clone(&gate));
        let app = Router::new().fallback(move |body: Bytes| {
            let (state, gate) = (Arc::clone(&shared), Arc::clone(&held));
            async move {
                let count = {
                    let mut state = state.lock();
                    state.forms.push(String::from_utf8(body.to_vec()).unwrap());
                    state.forms.len()
                };
                gate.acquire().await.unwrap().forget();
                let token =
                    json!({ "access_token": format!("token-{count}"), "expires_in": 86_400 });
                let prepared = state.lock().answers.pop_front();
                let (status, body) = prepared.unwrap_or((200, token));
                (StatusCode::from_u16(status).unwrap(), body.to_string())
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            url,
            state,
            gate,
            task,
        }
    }

    pub(crate) fn client(&self) -> Entra {
        Entra::new(&self.url, std::time::Duration::from_secs(10)).unwrap()
    }

    /// The next answer.
    pub(crate) fn prepare(&self, answer: Answer) {
        self.state.lock().answers.push_back(answer);
    }

    /// The next answer is this error of a federated exchange.
    pub(crate) fn refuse(&self, number: u64) {
        self.prepare((401, json!({
            "error": "invalid_client", "error_codes": [number], "error_description": format!("AADSTS{number}: No."),
        })));
    }

    /// The forms that came.
    pub(crate) fn forms(&self) -> Vec<String> {
        self.state.lock().forms.clone()
    }
}
