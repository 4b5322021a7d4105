//! Requests as data: `corpus/*.txt`, one a line, as `what is answered | name | bytes`.
//!
//! What is answered: the statuses of all answers, as `404` or `400+400`, or `closed` when there is none; once for all, or for
//! each way of running it, with commas between. Bytes: `\r`, `\n`, `\t`, `\\`, `\x00` as usual; `{token}` the endpoint's path,
//! `{q}` a query that asks for the victim's token, `{h}` the rest of a head but its last line break, `{request}` all of it,
//! `{length}` and `{hexlength}` the length of that, `{reader}`, `{victim}`, `{readerarm}`, `{victimarm}` ids, `{a*9}` nine a's.

use super::PATH;
use super::objects::{READER, VICTIM, arm};

pub struct Entry {
    pub family: String,
    pub expected: Vec<String>,
    pub name: String,
    pub bytes: Vec<u8>,
}

/// All of them.
pub fn entries() -> Vec<Entry> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let family = path.file_stem().unwrap().to_str().unwrap().to_owned();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            if line.starts_with('#') {
                continue;
            }
            let mut parts = line.splitn(3, " | ");
            let mut part = || parts.next().unwrap_or_else(|| panic!("{family}: {line}"));
            found.push(Entry {
                family: family.clone(),
                expected: part().split(',').map(str::to_owned).collect(),
                name: part().to_owned(),
                bytes: bytes(part()),
            });
        }
    }
    found.sort_by(|a, b| (&a.family, &a.name).cmp(&(&b.family, &b.name)));
    found
}

fn bytes(text: &str) -> Vec<u8> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let macro_ = rest
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'));
        if let Some((name, after)) = macro_
            && let Some(meaning) = meaning(name)
        {
            found.extend(meaning);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('\\') {
            let (byte, length) = match after.as_bytes()[0] {
                b'r' => (b'\r', 1),
                b'n' => (b'\n', 1),
                b't' => (b'\t', 1),
                b'x' => (u8::from_str_radix(&after[1..3], 16).unwrap(), 3),
                other => (other, 1),
            };
            found.push(byte);
            rest = &after[length..];
        } else {
            found.extend(c.to_string().into_bytes());
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

fn meaning(name: &str) -> Option<Vec<u8>> {
    let query =
        format!("?api-version=2018-02-01&resource=https://vault.azure.net/&client_id={VICTIM}");
    let head = " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n".to_owned();
    let request = format!("GET {PATH}{query}{head}\r\n");
    let text = match name {
        "token" => PATH.to_owned(),
        "q" => query,
        "h" => head,
        "length" => request.len().to_string(),
        "hexlength" => format!("{:x}", request.len()),
        "request" => request,
        "reader" => READER.to_owned(),
        "victim" => VICTIM.to_owned(),
        "readerarm" => arm("reader"),
        "victimarm" => arm("victim"),
        _ => {
            let (part, times) = name.rsplit_once('*')?;
            return Some(bytes(part).repeat(times.parse().ok()?));
        }
    };
    Some(text.into_bytes())
}
