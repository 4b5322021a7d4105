//! A client that sends exact bytes from an address of its choice.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body, which must be JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn description(&self) -> String {
        self.json()["error_description"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

/// Connects from `from`.
pub async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let from: IpAddr = from.parse().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Sends a GET with these header lines and reads the one answer.
pub async fn get(from: &str, to: SocketAddr, target: &str, headers: &str) -> Answer {
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n");
    let bytes = exchange(from, to, request.as_bytes(), Duration::from_secs(30)).await;
    answers(&bytes, false).pop().expect("an answer")
}

/// Sends these bytes and reads to the end. After a silence, which is longer before the first byte of an answer, the client closes
/// its side.
///
/// # Panics
/// When the connection is not at its end by the deadline.
pub async fn exchange(from: &str, to: SocketAddr, bytes: &[u8], limit: Duration) -> Vec<u8> {
    const SILENCE: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(3000)];
    let until = Instant::now() + limit;
    let stream = connect(from, to).await;
    let (mut reader, mut writer) = stream.into_split();
    let bytes = bytes.to_vec();
    // The server may answer, and stop reading, before it has read everything.
    let writing = tokio::spawn(async move {
        let _ = writer.write_all(&bytes).await;
        writer
    });
    let mut received = Vec::new();
    let mut chunk = [0; 16 * 1024];
    let mut writing = Some(writing);
    loop {
        let read = match &mut writing {
            Some(_) => match timeout(
                SILENCE[usize::from(received.is_empty())],
                reader.read(&mut chunk),
            )
            .await
            {
                Ok(read) => read,
                Err(_) => {
                    let mut writer = writing.take().unwrap().await.unwrap();
                    let _ = writer.shutdown().await;
                    continue;
                }
            },
            None => timeout_at(until, reader.read(&mut chunk))
                .await
                .unwrap_or_else(|_| {
                    panic!("a hang after {:?}", String::from_utf8_lossy(&received))
                }),
        };
        match read {
            Ok(0) | Err(_) => return received,
            Ok(read) => received.extend_from_slice(&chunk[..read]),
        }
    }
}

/// The answers in a stream of bytes, whose framing must be right to the end.
pub fn answers(bytes: &[u8], to_head: bool) -> Vec<Answer> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut rest = text.as_str();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no head: {rest:?}"));
        let head = head.to_ascii_lowercase();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("no status: {head}"));
        if status < 200 {
            rest = after;
            continue;
        }
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = match to_head {
            true => 0,
            false => length
                .unwrap_or_else(|| panic!("no length: {head}"))
                .parse()
                .unwrap(),
        };
        let (body, after) = after.split_at(length);
        found.push(Answer {
            status,
            head,
            body: body.to_owned(),
        });
        rest = after;
    }
    found
}
