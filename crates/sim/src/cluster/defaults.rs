//! Defaulting and validation of the built-in kinds, as far as tests meet them. `strategy` calls both for each write.

use serde_json::{Value, json};

use super::{catalog::Kind, crd, failure::Cause};

/// Sets `field` where it is not set.
fn default(object: &mut Value, field: &str, value: Value) {
    if object[field].is_null() {
        object[field] = value;
    }
}

/// Sets what an object of a built-in kind may leave out.
pub(super) fn set(kind: &Kind, object: &mut Value) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            pod_spec(&mut object["spec"]);
            default(&mut object["spec"], "enableServiceLinks", true.into());
            default(
                &mut object["spec"],
                "preemptionPolicy",
                "PreemptLowerPriority".into(),
            );
            default(&mut object["spec"], "priority", 0.into());
        }
        ("apps", _) => workload(kind, object),
        ("", "Namespace") => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["spec"]["finalizers"] = json!(["kubernetes"]);
            }
        }
        ("", "Secret") => {
            default(object, "type", "Opaque".into());
            secret_text(object);
        }
        ("", "Service") => service(object),
        ("apiextensions.k8s.io", _) => crd::default(object),
        _ => {}
    }
}

fn pod_spec(spec: &mut Value) {
    default(spec, "restartPolicy", "Always".into());
    default(spec, "terminationGracePeriodSeconds", 30.into());
    default(spec, "dnsPolicy", "ClusterFirst".into());
    default(spec, "securityContext", json!({}));
    default(spec, "schedulerName", "default-scheduler".into());
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            let image = container["image"].as_str().unwrap_or_default();
            let name = image.rsplit('/').next().unwrap_or_default();
            let floating = name.ends_with(":latest") || !name.contains([':', '@']);
            let policy = if floating { "Always" } else { "IfNotPresent" };
            default(container, "imagePullPolicy", policy.into());
            default(
                container,
                "terminationMessagePath",
                "/dev/termination-log".into(),
            );
            default(container, "terminationMessagePolicy", "File".into());
            default(container, "resources", json!({}));
            for port in container["ports"].as_array_mut().into_iter().flatten() {
                default(port, "protocol", "TCP".into());
            }
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|_, value| !value.is_null());
    }
}

fn workload(kind: &Kind, object: &mut Value) {
    let spec = &mut object["spec"];
    pod_spec(&mut spec["template"]["spec"]);
    match kind.kind.as_str() {
        "Deployment" => {
            default(spec, "replicas", 1.into());
            default(spec, "progressDeadlineSeconds", 600.into());
            default(spec, "revisionHistoryLimit", 10.into());
            let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}});
            default(spec, "strategy", rolling);
        }
        "DaemonSet" => {
            default(spec, "revisionHistoryLimit", 10.into());
            let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}});
            default(spec, "updateStrategy", rolling);
        }
        _ => default(spec, "replicas", 1.into()),
    }
}

fn secret_text(object: &mut Value) {
    use base64::Engine as _;
    let Some(text) = object.as_object_mut().and_then(|o| o.remove("stringData")) else {
        return;
    };
    for (key, value) in text.as_object().into_iter().flatten() {
        let plain = value.as_str().unwrap_or_default();
        object["data"][key] = base64::engine::general_purpose::STANDARD
            .encode(plain)
            .into();
    }
}

fn service(object: &mut Value) {
    let uid = object["metadata"]["uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let spec = &mut object["spec"];
    default(spec, "type", "ClusterIP".into());
    default(spec, "sessionAffinity", "None".into());
    default(spec, "internalTrafficPolicy", "Cluster".into());
    if spec["type"] != "ExternalName" && spec["clusterIP"].is_null() {
        let bytes = uuid::Uuid::parse_str(&uid).unwrap_or_default();
        let [a, b, ..] = bytes.into_bytes();
        spec["clusterIP"] = format!("10.96.{a}.{}", b.max(2)).into();
    }
    if spec["clusterIP"].is_string() {
        let address = spec["clusterIP"].clone();
        default(spec, "clusterIPs", json!([address]));
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", "SingleStack".into());
    }
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        default(port, "protocol", "TCP".into());
        let number = port["port"].clone();
        default(port, "targetPort", number);
    }
}

/// Keeps what the server assigned when a client left it out.
pub(super) fn keep_assigned(kind: &Kind, old: &Value, new: &mut Value) {
    if kind.is("", "Pod") {
        for field in ["nodeName", "serviceAccountName", "serviceAccount"] {
            if new["spec"][field].is_null() && !old["spec"][field].is_null() {
                new["spec"][field] = old["spec"][field].clone();
            }
        }
        if let Some(spec) = new["spec"].as_object_mut() {
            spec.retain(|_, value| !value.is_null());
        }
    }
    if kind.is("", "Service") {
        for field in ["clusterIP", "clusterIPs"] {
            new["spec"][field] = old["spec"][field].clone();
        }
    }
}

/// What is wrong with an object of a built-in kind.
pub(super) fn check(kind: &Kind, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            check_containers(&object["spec"], "spec", causes);
            if old.is_some_and(|old| fixed_part(old) != fixed_part(object)) {
                let message = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
                    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                    existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                    previously negative)";
                causes.push(Cause::new(
                    "spec",
                    "FieldValueForbidden",
                    message.to_owned(),
                ));
            }
        }
        ("apps", _) => check_containers(
            &object["spec"]["template"]["spec"],
            "spec.template.spec",
            causes,
        ),
        _ => {}
    }
}

fn check_containers(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    let containers = spec["containers"].as_array().map_or(&[][..], Vec::as_slice);
    if containers.is_empty() {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    for (n, container) in containers.iter().enumerate() {
        for field in ["name", "image"] {
            if container[field].as_str().is_none_or(str::is_empty) {
                causes.push(Cause::required(
                    format!("{path}.containers[{n}].{field}"),
                    "",
                ));
            }
        }
    }
}

/// The part of a pod's spec that stays as it was created.
fn fixed_part(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    for field in [
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
    ] {
        spec[field] = Value::Null;
    }
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            container["image"] = Value::Null;
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|_, value| !value.is_null());
    }
    spec
}
