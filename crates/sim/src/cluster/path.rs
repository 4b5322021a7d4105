//! Request paths: the kind, namespace, name and subresource that a path names.

/// The object or collection that a path names.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Target {
    pub group: String,
    pub version: String,
    /// Empty for cluster-scoped objects and for all namespaces.
    pub namespace: String,
    pub plural: String,
    /// Empty for a collection.
    pub name: String,
    /// Empty, `status`, `token`, …
    pub subresource: String,
}

impl Target {
    /// Reads a path below `/api/v1/` or `/apis/GROUP/VERSION/`; `None` when it names no resource.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/').map(str::to_owned);
        let (group, version) = match parts.next()?.as_str() {
            "api" => (String::new(), parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let mut rest: Vec<String> = parts.collect();
        if rest.iter().any(String::is_empty) || rest.is_empty() {
            return None;
        }
        let nested = rest[0] == "namespaces"
            && rest.len() > 2
            && !["status", "finalize"].contains(&rest[2].as_str());
        let namespace = if nested {
            let namespace = rest.remove(1);
            rest.remove(0);
            namespace
        } else {
            String::new()
        };
        if rest.len() > 3 {
            return None;
        }
        let mut rest = rest.into_iter();
        Some(Self {
            group,
            version,
            namespace,
            plural: rest.next()?,
            name: rest.next().unwrap_or_default(),
            subresource: rest.next().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("/api/v1/pods", ["", "", "pods", "", ""])]
    #[case("/api/v1/namespaces", ["", "", "namespaces", "", ""])]
    #[case("/api/v1/namespaces/a", ["", "", "namespaces", "a", ""])]
    #[case("/api/v1/namespaces/a/finalize", ["", "", "namespaces", "a", "finalize"])]
    #[case("/api/v1/namespaces/a/pods/p/status", ["", "a", "pods", "p", "status"])]
    #[case("/apis/g.io/v1/namespaces/a/things", ["g.io", "a", "things", "", ""])]
    fn paths_name_objects(#[case] path: &str, #[case] expected: [&str; 5]) {
        let t = Target::parse(path).unwrap();
        let read = [&t.group, &t.namespace, &t.plural, &t.name, &t.subresource].map(String::as_str);
        assert_eq!(read, expected);
        assert_eq!(t.version, "v1");
    }

    #[rstest]
    #[case("/api/v1")]
    #[case("/healthz")]
    #[case("/api/v1/pods/a/b/c")]
    fn other_paths_name_nothing(#[case] path: &str) {
        assert_eq!(Target::parse(path), None);
    }
}
