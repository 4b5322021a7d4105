//! azure.json parser: the text fields of a configuration file as nodes have it: JSON or YAML, keys in any case, nulls, a byte-order
//! mark. `config.rs` and `clouds.rs` call it. It guards that no field is overlooked for its spelling, as another principal would then
//! be used, and that no error quotes a secret.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use zeroize::Zeroizing;

/// The fields that a file has, by their folded names.
#[derive(Default)]
pub(crate) struct Fields(BTreeMap<String, Field>);

struct Field {
    /// Its name as the file has it.
    name: String,
    value: Zeroizing<String>,
}

impl Fields {
    /// Reads those fields whose folded name is `wanted`. A null and an empty text are no field.
    ///
    /// # Errors
    /// What is wrong with the file, and where, without a word of it but field names.
    pub(crate) fn parse(file: &[u8], wanted: fn(&str) -> bool) -> Result<Self, String> {
        let mut options = serde_saphyr::Options::default();
        // The excerpt of the parser's errors may have a secret.
        options.with_snippet = false;
        options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
        let read =
            serde_saphyr::with_deserializer_from_reader_with_options(file, options, |from| {
                from.deserialize_map(Reader { wanted })
            });
        let fields = read.map_err(|error| match error.location() {
            Some(at) => format!(
                "not the expected JSON or YAML (line {}, column {})",
                at.line(),
                at.column()
            ),
            None => "not the expected JSON or YAML".to_owned(),
        })?;
        let mut known = BTreeMap::new();
        for field in fields {
            if let Some(other) = known.insert(fold(&field.name), field)
                && let Some(kept) = known.get(&fold(&other.name))
                && kept.value != other.value
            {
                return Err(format!(
                    "{} and {} have different values; keep one of them",
                    other.name, kept.name
                ));
            }
        }
        Ok(Self(known))
    }

    /// The value of a field in the spelling of Azure's own files; empty without one.
    pub(crate) fn text(&self, name: &str) -> String {
        let field = self.0.get(&fold(name));
        field.map_or_else(String::new, |field| field.value.trim().to_owned())
    }

    /// As [`Fields::text`], with its spaces.
    pub(crate) fn secret(&self, name: &str) -> Zeroizing<String> {
        let field = self.0.get(&fold(name));
        field.map_or_else(Zeroizing::default, |field| field.value.clone())
    }

    /// The names, as the file has them, of the fields that begin with this in any case.
    pub(crate) fn starting_with<'a>(&'a self, start: &str) -> impl Iterator<Item = &'a str> {
        let start = fold(start);
        let named = self.0.iter();
        let named = named.filter(move |(folded, _)| folded.starts_with(&start));
        named.map(|(_, field)| field.name.as_str())
    }
}

/// A field's name without regard to case and to the marks between its words.
pub(crate) fn fold(name: &str) -> String {
    let letters = name.trim().chars().filter(|c| !matches!(c, '_' | '-'));
    letters.map(|c| c.to_ascii_lowercase()).collect()
}

struct Reader {
    wanted: fn(&str) -> bool,
}

impl<'de> Visitor<'de> for Reader {
    type Value = Vec<Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Field>, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !(self.wanted)(&fold(&name)) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value: Option<Zeroizing<String>> = map.next_value()?;
            let value = value.filter(|value| !value.trim().is_empty());
            fields.extend(value.map(|value| Field { name, value }));
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn read(file: &[u8]) -> Result<Fields, String> {
        Fields::parse(file, |folded| folded != "other")
    }

    #[rstest]
    #[case::json(r#"{"tenantId":"t","aadClientSecret":"0123","other":[{"a":null}]}"#)]
    #[case::tabs("{\n\t\"tenantId\":\t\"t\",\n\t\"aadClientSecret\":\t\"0123\"\n}\n")]
    #[case::windows("{\r\n  \"tenantId\": \"t\",\r\n  \"aadClientSecret\": \"0123\"\r\n}\r\n")]
    #[case::yaml("---\n# of the node\ntenantId: t\naadClientSecret: 0123\nother:\n  a: [1]\n")]
    #[case::other_case("TENANTID: t\nAADClientSecret: \"0123\"\n")]
    #[case::marks("tenant_id: 't'\naad-client-secret: '0123'\n")]
    #[case::escapes(
        r#"{"tenantId":"\u0074","aadClientSecret":"01\u00323","other":"\ud83d\ude00 \/"}"#
    )]
    #[case::twice_the_same("tenantId: t\ntenantID: t\ntenantId: null\naadClientSecret: '0123'\n")]
    fn one_file_in_every_form(#[case] file: &str) {
        let utf16: Vec<u8> = format!("\u{feff}{file}")
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        for bytes in [
            file.as_bytes(),
            format!("\u{feff}{file}").as_bytes(),
            &utf16,
        ] {
            let fields = read(bytes).unwrap();
            assert_eq!(fields.text("tenantId"), "t");
            assert_eq!(fields.secret("aadClientSecret").as_str(), "0123");
        }
    }

    #[test]
    fn nulls_and_empty_texts_are_no_fields() {
        for value in ["null", "\"\"", "\" \"", "~", ""] {
            let fields = read(format!("cloud: {value}\nuseIt: true").as_bytes()).unwrap();
            assert_eq!(fields.text("cloud"), "", "{value}");
            assert_eq!(fields.text("useIt"), "true");
        }
    }

    #[rstest]
    #[case("{\"aadClientSecret\":\n \"hush\" \"\"}", "line 2")]
    #[case("hush", "line 1")]
    #[case("aadClientSecret: [hush]", "line 1")]
    #[case(
        "aadClientSecret: hush\naadClientSECRET: hush2",
        "aadClientSecret and aadClientSECRET have different"
    )]
    fn what_cannot_be_read_is_not_quoted(#[case] file: &str, #[case] told: &str) {
        let error = read(file.as_bytes()).err().unwrap();
        assert!(error.contains(told), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
}
