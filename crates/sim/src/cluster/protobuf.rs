//! Protobuf encoding of Kubernetes, as far as `kubectl create` sends it: a few small kinds, read only.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

/// The content type of this encoding.
pub(super) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// How deep messages may nest.
const DEPTH: u8 = 8;

/// What the value of a field is.
enum Shape {
    Text,
    Number,
    Flag,
    Texts,
    TextMap,
    BytesMap,
    Message(&'static [Field]),
}

/// A field's number, JSON name and shape.
type Field = (u64, &'static str, Shape);

const METADATA: &[Field] = &[
    (1, "name", Shape::Text),
    (2, "generateName", Shape::Text),
    (3, "namespace", Shape::Text),
    (5, "uid", Shape::Text),
    (6, "resourceVersion", Shape::Text),
    (11, "labels", Shape::TextMap),
    (12, "annotations", Shape::TextMap),
    (14, "finalizers", Shape::Texts),
];
const NAMESPACE: &[Field] = &[(1, "metadata", Shape::Message(METADATA))];
const SERVICE_ACCOUNT: &[Field] = NAMESPACE;
const CONFIG_MAP: &[Field] = &[
    (1, "metadata", Shape::Message(METADATA)),
    (2, "data", Shape::TextMap),
    (3, "binaryData", Shape::BytesMap),
    (4, "immutable", Shape::Flag),
];
const SECRET: &[Field] = &[
    (1, "metadata", Shape::Message(METADATA)),
    (2, "data", Shape::BytesMap),
    (3, "type", Shape::Text),
    (4, "stringData", Shape::TextMap),
    (5, "immutable", Shape::Flag),
];
const BOUND_OBJECT: &[Field] = &[
    (1, "kind", Shape::Text),
    (2, "apiVersion", Shape::Text),
    (3, "name", Shape::Text),
    (4, "uid", Shape::Text),
];
const TOKEN_REQUEST: &[Field] = &[
    (1, "metadata", Shape::Message(METADATA)),
    (
        2,
        "spec",
        Shape::Message(&[
            (1, "audiences", Shape::Texts),
            (3, "boundObjectRef", Shape::Message(BOUND_OBJECT)),
            (4, "expirationSeconds", Shape::Number),
        ]),
    ),
];
const DELETE_OPTIONS: &[Field] = &[
    (1, "gracePeriodSeconds", Shape::Number),
    (
        2,
        "preconditions",
        Shape::Message(&[(1, "uid", Shape::Text), (2, "resourceVersion", Shape::Text)]),
    ),
    (4, "propagationPolicy", Shape::Text),
    (5, "dryRun", Shape::Texts),
];

/// Reads an object; says why when it cannot.
pub(super) fn read(body: &[u8]) -> Result<Value, String> {
    let envelope = body
        .strip_prefix(MAGIC)
        .ok_or("it does not start as Kubernetes' protobuf encoding does")?;
    let (mut type_meta, mut raw) = (&[][..], &[][..]);
    for part in parts(envelope) {
        match part? {
            (1, Part::Bytes(bytes)) => type_meta = bytes,
            (2, Part::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let names: &[Field] = &[(1, "apiVersion", Shape::Text), (2, "kind", Shape::Text)];
    let mut object = message(type_meta, names, DEPTH)?;
    let kind = object["kind"].as_str().unwrap_or_default();
    let fields = match kind {
        "Namespace" => NAMESPACE,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "TokenRequest" => TOKEN_REQUEST,
        "DeleteOptions" => DELETE_OPTIONS,
        _ => {
            return Err(format!(
                "the simulated cluster reads no {kind:?} in protobuf; write it to a file and use kubectl apply"
            ));
        }
    };
    let read = message(raw, fields, DEPTH)?;
    if let (Some(object), Value::Object(read)) = (object.as_object_mut(), read) {
        object.extend(read);
    }
    Ok(object)
}

enum Part<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A fixed-width number, which none of these kinds has.
    Fixed,
}

/// The fields of a message, each with its number.
fn parts(mut rest: &[u8]) -> impl Iterator<Item = Result<(u64, Part<'_>), String>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let part = part(&mut rest).ok_or_else(|| "malformed protobuf".to_owned());
        if part.is_err() {
            rest = &[];
        }
        Some(part)
    })
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<(u64, Part<'a>)> {
    let key = varint(rest)?;
    let part = match key & 7 {
        0 => Part::Number(varint(rest)?),
        1 => take(rest, 8).map(|_| Part::Fixed)?,
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Part::Bytes(take(rest, length)?)
        }
        5 => take(rest, 4).map(|_| Part::Fixed)?,
        _ => return None,
    };
    Some((key >> 3, part))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| "malformed protobuf: text is not UTF-8".to_owned())
}

fn message(bytes: &[u8], fields: &[Field], depth: u8) -> Result<Value, String> {
    let deeper = depth
        .checked_sub(1)
        .ok_or("malformed protobuf: nested too deeply")?;
    let mut object = Map::new();
    for part in parts(bytes) {
        let (number, part) = part?;
        let Some((_, name, shape)) = fields.iter().find(|(n, ..)| *n == number) else {
            continue;
        };
        let value = match (shape, part) {
            // Go writes empty text for a field that is not set.
            (Shape::Text, Part::Bytes([])) => continue,
            (Shape::Text, Part::Bytes(bytes)) => text(bytes)?.into(),
            (Shape::Number, Part::Number(n)) => n.cast_signed().into(),
            (Shape::Flag, Part::Number(n)) => (n != 0).into(),
            (Shape::Message(fields), Part::Bytes(bytes)) => message(bytes, fields, deeper)?,
            (Shape::Texts, Part::Bytes(bytes)) => {
                let list = object.entry(*name).or_insert_with(|| json!([]));
                if let Value::Array(list) = list {
                    list.push(text(bytes)?.into());
                }
                continue;
            }
            (Shape::TextMap | Shape::BytesMap, Part::Bytes(bytes)) => {
                let (key, value) = entry(bytes, shape)?;
                let map = object.entry(*name).or_insert_with(|| json!({}));
                if let Value::Object(map) = map {
                    map.insert(key, value);
                }
                continue;
            }
            _ => {
                return Err(format!(
                    "malformed protobuf: the field {name} has another type"
                ));
            }
        };
        object.insert((*name).to_owned(), value);
    }
    Ok(Value::Object(object))
}

/// One entry of a map.
fn entry(bytes: &[u8], shape: &Shape) -> Result<(String, Value), String> {
    let (mut key, mut value) = (&[][..], &[][..]);
    for part in parts(bytes) {
        match part? {
            (1, Part::Bytes(bytes)) => key = bytes,
            (2, Part::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    let value = match shape {
        Shape::BytesMap => STANDARD.encode(value),
        _ => text(value)?,
    };
    Ok((text(key)?, value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_read() {
        let body =
            b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12\x08\x0a\x06\x0a\x04demo\x1a\x00\x22\x00";
        let expected =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo"}});
        assert_eq!(read(body), Ok(expected));
    }

    #[test]
    fn nonsense_is_refused_and_nothing_overruns() {
        assert!(read(b"{}").is_err());
        assert!(read(b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f").is_err());
        assert!(
            read(b"k8s\0\x0a\x05\x12\x03Pod")
                .unwrap_err()
                .contains("kubectl apply")
        );
    }
}
