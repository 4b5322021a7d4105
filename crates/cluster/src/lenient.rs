//! Lenient deserialization of listed and watched objects: one malformed object must not fail the whole list. `watch.rs` reads
//! objects in this form.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde_json::Value;

/// An object, or why it cannot be read. It has no `metadata.managedFields`, which are often the greater part of an object.
#[derive(Debug, Clone)]
pub struct Lenient<K>(pub Result<K, Unreadable>);

/// An object that is not of the form of its kind.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Why it cannot be read.
    pub error: String,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Lenient<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Value::deserialize(deserializer)?;
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.remove("managedFields");
        }
        Ok(Self(match K::deserialize(&object) {
            Ok(read) => Ok(read),
            Err(error) => Err(Unreadable {
                metadata: ObjectMeta::deserialize(&object["metadata"]).map_err(D::Error::custom)?,
                error: error.to_string(),
            }),
        }))
    }
}

impl<K: Resource> Resource for Lenient<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &K::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &K::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &K::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &K::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(unreadable) => &unreadable.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(unreadable) => &mut unreadable.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt as _;
    use serde_json::json;

    fn read(data: Value) -> Lenient<ConfigMap> {
        let text = json!({
            "metadata": {
                "name": "one",
                "managedFields": [{ "manager": "kubectl", "fieldsV1": { "f:data": {} } }],
            },
            "data": data,
        });
        serde_json::from_str(&text.to_string()).unwrap()
    }

    #[test]
    fn an_object_is_read_without_what_is_of_no_use() {
        let object = read(json!({ "a": "b" }));
        assert_eq!(object.meta().managed_fields, None);
        assert_eq!(object.name_any(), "one");
        assert_eq!(object.0.unwrap().data.unwrap()["a"], "b");
    }

    #[test]
    fn an_unreadable_object_has_its_metadata() {
        let object = read(json!("not a map"));
        assert_eq!(object.name_any(), "one");
        let error = object.0.unwrap_err().error;
        assert!(error.contains("not a map"), "{error}");
    }

    #[test]
    fn what_is_no_object_at_all_is_an_error() {
        for text in ["[]", "{}", "{\"metadata\": 1}"] {
            let read = serde_json::from_str::<Lenient<ConfigMap>>(text);
            assert!(read.is_err() || read.unwrap().0.is_ok(), "{text}");
        }
    }
}
