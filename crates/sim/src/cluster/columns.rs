//! Printer columns: the table that `kubectl get` shows. `view` asks for them when a client accepts a `Table`.

use serde_json::{Value, json};

use super::{catalog::Kind, jsonpath};

/// One column.
pub(super) struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    source: Source,
}

enum Source {
    Path(String),
    Computed(fn(&Value) -> Value),
}

impl Column {
    fn new(name: &str, kind: &str, priority: i64, source: Source) -> Self {
        Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            format: if name == "Name" { "name" } else { "" }.to_owned(),
            description: String::new(),
            priority,
            source,
        }
    }

    /// Its entry in `columnDefinitions`.
    pub(super) fn definition(&self) -> Value {
        json!({
            "name": self.name, "type": self.kind, "format": self.format, "description": self.description,
            "priority": self.priority,
        })
    }

    /// What an object has in it.
    pub(super) fn cell(&self, object: &Value) -> Value {
        let path = match &self.source {
            Source::Computed(compute) => return compute(object),
            Source::Path(path) => path,
        };
        let found = jsonpath::find(object, path);
        let Some(first) = found.first().filter(|v| !v.is_null()) else {
            return Value::Null;
        };
        match self.kind.as_str() {
            "date" => age(first),
            "integer" | "number" | "boolean" => (*first).clone(),
            _ => match first {
                Value::String(_) => (*first).clone(),
                other => other.to_string().into(),
            },
        }
    }
}

/// The columns of a kind.
pub(super) fn of(kind: &Kind) -> Vec<Column> {
    let mut columns = vec![path("Name", ".metadata.name")];
    if let Some(custom) = kind.custom() {
        if custom.columns.is_empty() {
            columns.push(created("Age"));
        }
        columns.extend(custom.columns.iter().map(declared));
        return columns;
    }
    columns.extend(match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod(),
        ("", "Node") => node(),
        ("", "Service") => service(),
        (_, "Event") => return event(),
        ("", "Namespace") => vec![path("Status", ".status.phase"), created("Age")],
        ("", "ConfigMap") => vec![
            computed("Data", |o| {
                (size(&o["data"]) + size(&o["binaryData"])).into()
            }),
            created("Age"),
        ],
        ("", "Secret") => vec![
            path("Type", ".type"),
            computed("Data", |o| size(&o["data"]).into()),
            created("Age"),
        ],
        ("", "ServiceAccount") => vec![
            computed("Secrets", |o| size(&o["secrets"]).into()),
            created("Age"),
        ],
        ("", "Endpoints") => vec![computed("Endpoints", endpoints), created("Age")],
        ("coordination.k8s.io", _) => vec![path("Holder", ".spec.holderIdentity"), created("Age")],
        ("apps", "Deployment") => vec![
            computed("Ready", |o| {
                format!(
                    "{}/{}",
                    number(&o["status"]["readyReplicas"]),
                    number(&o["spec"]["replicas"])
                )
                .into()
            }),
            computed("Up-to-date", |o| {
                number(&o["status"]["updatedReplicas"]).into()
            }),
            computed("Available", |o| {
                number(&o["status"]["availableReplicas"]).into()
            }),
            created("Age"),
        ],
        ("apps", "DaemonSet") => vec![
            computed("Desired", |o| {
                number(&o["status"]["desiredNumberScheduled"]).into()
            }),
            computed("Current", |o| {
                number(&o["status"]["currentNumberScheduled"]).into()
            }),
            computed("Ready", |o| number(&o["status"]["numberReady"]).into()),
            created("Age"),
        ],
        (_, "CustomResourceDefinition") => vec![computed("Created At", |o| {
            o["metadata"]["creationTimestamp"].clone()
        })],
        (_, "RoleBinding" | "ClusterRoleBinding") => vec![
            computed("Role", |o| {
                format!(
                    "{}/{}",
                    text(&o["roleRef"]["kind"]),
                    text(&o["roleRef"]["name"])
                )
                .into()
            }),
            created("Age"),
        ],
        (_, "Role" | "ClusterRole") => vec![computed("Created At", |o| {
            o["metadata"]["creationTimestamp"].clone()
        })],
        _ => vec![created("Age")],
    });
    columns
}

fn path(name: &str, path: &str) -> Column {
    Column::new(name, "string", 0, Source::Path(path.to_owned()))
}

fn computed(name: &str, compute: fn(&Value) -> Value) -> Column {
    Column::new(name, "string", 0, Source::Computed(compute))
}

fn wide(name: &str, compute: fn(&Value) -> Value) -> Column {
    Column::new(name, "string", 1, Source::Computed(compute))
}

/// The age of an object of a built-in kind.
fn created(name: &str) -> Column {
    computed(name, |object| age(&object["metadata"]["creationTimestamp"]))
}

/// An entry of `additionalPrinterColumns`.
fn declared(column: &Value) -> Column {
    Column {
        name: text(&column["name"]).to_owned(),
        kind: text(&column["type"]).to_owned(),
        format: text(&column["format"]).to_owned(),
        description: text(&column["description"]).to_owned(),
        priority: column["priority"].as_i64().unwrap_or_default(),
        source: Source::Path(text(&column["jsonPath"]).to_owned()),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

fn size(value: &Value) -> usize {
    match value {
        Value::Object(fields) => fields.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Text, or what `kubectl` shows for nothing.
fn or_none(value: &str) -> Value {
    if value.is_empty() {
        "<none>".into()
    } else {
        value.into()
    }
}

fn pod() -> Vec<Column> {
    vec![
        computed("Ready", |o| {
            let ready = items(&o["status"]["containerStatuses"])
                .filter(|c| c["ready"] == true)
                .count();
            format!("{ready}/{}", size(&o["spec"]["containers"])).into()
        }),
        computed("Status", pod_status),
        computed("Restarts", |o| {
            let counts =
                items(&o["status"]["containerStatuses"]).map(|c| number(&c["restartCount"]));
            counts.sum::<i64>().to_string().into()
        }),
        created("Age"),
        wide("IP", |o| or_none(text(&o["status"]["podIP"]))),
        wide("Node", |o| or_none(text(&o["spec"]["nodeName"]))),
        wide("Nominated Node", |o| {
            or_none(text(&o["status"]["nominatedNodeName"]))
        }),
        wide("Readiness Gates", |_| "<none>".into()),
    ]
}

fn pod_status(pod: &Value) -> Value {
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating".into();
    }
    let reason = items(&pod["status"]["containerStatuses"])
        .find_map(|c| c["state"]["waiting"]["reason"].as_str());
    let status = pod["status"]["reason"].as_str().or(reason);
    status
        .unwrap_or_else(|| text(&pod["status"]["phase"]))
        .into()
}

fn node() -> Vec<Column> {
    vec![
        computed("Status", |o| {
            let ready = items(&o["status"]["conditions"]).find(|c| c["type"] == "Ready");
            let mut status = match ready.map(|c| text(&c["status"])) {
                Some("True") => "Ready".to_owned(),
                Some(_) => "NotReady".to_owned(),
                None => "Unknown".to_owned(),
            };
            if o["spec"]["unschedulable"] == true {
                status.push_str(",SchedulingDisabled");
            }
            status.into()
        }),
        computed("Roles", |o| {
            let labels = o["metadata"]["labels"].as_object().into_iter().flatten();
            let roles: Vec<&str> = labels
                .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
                .collect();
            or_none(&roles.join(","))
        }),
        created("Age"),
        path("Version", ".status.nodeInfo.kubeletVersion"),
        wide("Internal-IP", |o| {
            let address = items(&o["status"]["addresses"]).find(|a| a["type"] == "InternalIP");
            or_none(address.map_or("", |a| text(&a["address"])))
        }),
    ]
}

fn service() -> Vec<Column> {
    vec![
        path("Type", ".spec.type"),
        computed("Cluster-IP", |o| or_none(text(&o["spec"]["clusterIP"]))),
        computed("External-IP", |o| or_none(text(&o["spec"]["externalName"]))),
        computed("Port(s)", |o| {
            let ports: Vec<String> = items(&o["spec"]["ports"])
                .map(|p| format!("{}/{}", number(&p["port"]), text(&p["protocol"])))
                .collect();
            or_none(&ports.join(","))
        }),
        created("Age"),
    ]
}

fn event() -> Vec<Column> {
    vec![
        computed("Last Seen", |o| {
            let seen = ["lastTimestamp", "deprecatedLastTimestamp", "eventTime"];
            let seen = seen.iter().map(|field| &o[*field]).find(|v| v.is_string());
            age(seen.unwrap_or(&o["metadata"]["creationTimestamp"]))
        }),
        path("Type", ".type"),
        path("Reason", ".reason"),
        computed("Object", |o| {
            let about = if o["involvedObject"].is_object() {
                &o["involvedObject"]
            } else {
                &o["regarding"]
            };
            format!(
                "{}/{}",
                text(&about["kind"]).to_lowercase(),
                text(&about["name"])
            )
            .into()
        }),
        computed("Message", |o| {
            o["message"]
                .as_str()
                .or(o["note"].as_str())
                .unwrap_or_default()
                .trim()
                .into()
        }),
    ]
}

fn endpoints(object: &Value) -> Value {
    let mut all = Vec::new();
    for subset in items(&object["subsets"]) {
        for address in items(&subset["addresses"]) {
            for port in items(&subset["ports"]) {
                all.push(format!(
                    "{}:{}",
                    text(&address["ip"]),
                    number(&port["port"])
                ));
            }
        }
    }
    or_none(&all.join(","))
}

/// How long ago a time was, as `kubectl` writes it.
fn age(time: &Value) -> Value {
    let Some(then) = time
        .as_str()
        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
    else {
        return "<unknown>".into();
    };
    let seconds = jiff::Timestamp::now().duration_since(then).as_secs();
    human(seconds).into()
}

fn human(seconds: i64) -> String {
    let two = |n: i64, unit: char, rest: i64, small: char| {
        if rest == 0 {
            format!("{n}{unit}")
        } else {
            format!("{n}{unit}{rest}{small}")
        }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(-3, "0s")]
    #[case(119, "119s")]
    #[case(125, "2m5s")]
    #[case(7_300, "121m")]
    #[case(10_860, "3h1m")]
    #[case(100_000, "27h")]
    #[case(180_000, "2d2h")]
    fn ages_read_as_kubectl_writes_them(#[case] seconds: i64, #[case] expected: &str) {
        assert_eq!(human(seconds), expected);
    }
}
