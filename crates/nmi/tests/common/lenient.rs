//! The most lenient reader of HTTP: finds the token endpoint in whatever spelling some server might understand.

/// Characters that some reader takes for a slash or a dot.
const DRESSED: [(&[u8], u8); 12] = [
    (b"\\", b'/'),
    (b"\xc0\xaf", b'/'),
    (b"\xe0\x80\xaf", b'/'),
    (b"\xf0\x80\x80\xaf", b'/'),
    (b"\xc1\x9c", b'/'),
    (b"\xef\xbc\x8f", b'/'),
    (b"\xe2\x88\x95", b'/'),
    (b"\xe2\x81\x84", b'/'),
    (b"\xef\xbc\xbc", b'/'),
    (b"\xc0\xae", b'.'),
    (b"\xef\xbc\x8e", b'.'),
    (b"\xc1\xa9", b'i'),
];

/// Whether the token endpoint is named anywhere in these bytes: in a target, a header, a body.
pub fn names_the_token_endpoint(bytes: &[u8]) -> bool {
    let mut text = bytes.to_vec();
    loop {
        let decoded = undress(&decode(&text));
        if decoded == text {
            break;
        }
        text = decoded;
    }
    text.retain(|byte| byte.is_ascii_graphic());
    let text = String::from_utf8_lossy(&text).to_ascii_lowercase();
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    segments.join("/").contains("identity/oauth2/token")
}

fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        let pair = tail
            .get(..2)
            .and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if *first == b'%' => {
                decoded.push(byte);
                rest = &tail[2..];
            }
            _ => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded
}

fn undress(bytes: &[u8]) -> Vec<u8> {
    let mut bare = Vec::new();
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        match DRESSED.iter().find(|(from, _)| rest.starts_with(from)) {
            Some((from, to)) => {
                bare.push(*to);
                rest = &rest[from.len()..];
            }
            None => {
                bare.push(*first);
                rest = tail;
            }
        }
    }
    bare
}
