//! Representation of an object: whole, as PartialObjectMetadata, or as a row of a Table, by what the client accepts.

use serde_json::{Map, Value, json};

use super::{api::Request, catalog::Kind, columns};

/// The form that a client accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Whole,
    Metadata,
    Table(Include),
}

/// What a row of a table carries besides its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Form {
    pub(super) fn of(request: &Request) -> Self {
        let named = request
            .accept
            .split(',')
            .find_map(|one| one.split(';').find_map(|p| p.trim().strip_prefix("as=")));
        match named {
            Some("Table") => Self::Table(match request.param("includeObject") {
                "None" => Include::Nothing,
                "Object" => Include::Object,
                _ => Include::Metadata,
            }),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Self::Metadata,
            _ => Self::Whole,
        }
    }

    /// A single object in this form. A `Status` stays what it is.
    pub(super) fn object(self, kind: &Kind, object: Value) -> Value {
        if object["kind"] == "Status" {
            return object;
        }
        match self {
            Self::Whole => object,
            Self::Metadata => partial(&object),
            Self::Table(include) => {
                let version = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                table(kind, &[object], version, include)
            }
        }
    }

    /// A list in this form.
    pub(super) fn list(self, kind: &Kind, mut list: Value) -> Value {
        let Value::Array(items) = list["items"].take() else {
            return list;
        };
        match self {
            Self::Whole => {
                list["items"] = Value::Array(items);
                list
            }
            Self::Metadata => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list["metadata"],
                "items": items.iter().map(partial).collect::<Vec<_>>(),
            }),
            Self::Table(include) => table(kind, &items, list["metadata"].take(), include),
        }
    }
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn table(kind: &Kind, objects: &[Value], metadata: Value, include: Include) -> Value {
    let columns = columns::of(kind);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|column| column.cell(object)).collect();
            let mut row = json!({"cells": cells});
            match include {
                Include::Nothing => {}
                Include::Metadata => row["object"] = partial(object),
                Include::Object => row["object"] = object.clone(),
            }
            row
        })
        .collect();
    let definitions: Vec<Value> = columns.iter().map(columns::Column::definition).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": definitions,
        "rows": rows,
    })
}

/// Fields of an Event that its two groups name differently: stored (core), then events.k8s.io.
const EVENT_NAMES: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(
    object: &mut Map<String, Value>,
    names: impl Iterator<Item = (&'static str, &'static str)>,
) {
    for (from, to) in names {
        if let Some(value) = object.remove(from) {
            object.insert(to.to_owned(), value);
        }
    }
}

/// A stored object as the version of `kind` has it.
pub(super) fn present(kind: &Kind, stored: &Value) -> Value {
    let mut object = stored.clone();
    if let Some(fields) = object.as_object_mut() {
        if kind.is("events.k8s.io", "Event") {
            rename(
                fields,
                EVENT_NAMES
                    .into_iter()
                    .chain([("source", "deprecatedSource")]),
            );
        }
        fields.insert("apiVersion".to_owned(), kind.api_version().into());
    }
    object
}

/// The opposite of [`present`]: an object as it is stored.
pub(super) fn absorb(kind: &Kind, object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        if kind.is("events.k8s.io", "Event") {
            let names = EVENT_NAMES
                .into_iter()
                .chain([("source", "deprecatedSource")]);
            rename(fields, names.map(|(stored, shown)| (shown, stored)));
            fields.insert("apiVersion".to_owned(), "v1".into());
        } else if let Some(custom) = kind.custom() {
            let version = format!("{}/{}", kind.group, custom.storage_version);
            fields.insert("apiVersion".to_owned(), version.into());
        }
    }
}
