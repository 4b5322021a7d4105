//! What is wrong is refused before anything is made, by the value's name and with what to do.

use crate::cluster::{Cluster, IMAGES, template, text, values};

/// Values, and what the refusal says.
const WRONG: [(&[&str], &[&str]); 36] = [
    (
        &["operationMode=Managed"],
        &["operationMode", "'standard', 'managed'"],
    ),
    (&["operationmode=managed"], &["'operationmode' not allowed"]),
    (&["mic.replcas=1"], &["/mic", "'replcas' not allowed"]),
    (&["nmi.probeport=1"], &["/nmi", "'probeport' not allowed"]),
    (&["mic.replicas=two"], &["/mic/replicas"]),
    (&["mic.probePort=80800"], &["/mic/probePort"]),
    (
        &["mic.syncRetryDuration=1 hour"],
        &["/mic/syncRetryDuration"],
    ),
    (
        &["nmi.loggingFormat=xml"],
        &["/nmi/loggingFormat", "'text', 'json'"],
    ),
    (&["nmi.kubeletConfig=etc"], &["/nmi/kubeletConfig"]),
    (
        &["mic.immutableUserMSIs={reader}"],
        &["/mic/immutableUserMSIs"],
    ),
    (
        &["azureIdentities.a.clientID=6f1c0000-0000-0000-0000-0000000022ab"],
        &["/azureIdentities/a", "'binding'"],
    ),
    (
        &[
            "azureIdentities.a.clientID=x",
            "azureIdentities.a.binding.selector=s",
        ],
        &["/azureIdentities/a/clientID"],
    ),
    (
        &[
            "azureIdentities.a.clientID=6f1c0000-0000-0000-0000-0000000022ab",
            "azureIdentities.a.binding.selector=s",
        ],
        &[
            "azureIdentities.a.resourceID is missing",
            "az identity show",
        ],
    ),
    (
        &[
            "azureIdentities.a.clientID=6f1c0000-0000-0000-0000-0000000022ab",
            "azureIdentities.a.binding.selector=s",
            "azureIdentities.a.type=1",
        ],
        &[
            "azureIdentities.a.tenantID is missing",
            "azureIdentities.a.clientPassword is missing",
        ],
    ),
    (
        &["operationMode=managed", "forceNamespaced=false"],
        &["forceNamespaced=false contradicts", "leave it out"],
    ),
    (
        &["rbac.pspEnabled=true"],
        &["rbac.pspEnabled", "kubectl label namespace podid"],
    ),
    (
        &["mic.leaderElection.instance=x"],
        &["mic.leaderElection.instance=x", "leave it out"],
    ),
    (
        &[
            "mic.podDisruptionBudget.minAvailable=1",
            "mic.podDisruptionBudget.maxUnavailable=1",
        ],
        &["leave one out"],
    ),
    (
        &["adminsecret.tenantID=t"],
        &[
            "adminsecret.clientID is missing",
            "adminsecret.clientSecret is missing",
        ],
    ),
    (
        &["adminsecret.useMSI=true"],
        &["adminsecret.userAssignedMSIClientID is missing"],
    ),
    (&["nmi.probePort=9090"], &["both 9090", "another port"]),
    (
        &["nmi.prometheusPort=2579"],
        &["nmi.prometheusPort=2579", "another one"],
    ),
    (&["mic.prometheusPort=8080"], &["both 8080", "another port"]),
    (
        &["enabled=false"],
        &["enabled=false, and still", "condition: podid.enabled"],
    ),
    (
        &["forceNameSpaced=false"],
        &[
            "forceNameSpaced=false is an old",
            "write forceNamespaced=false",
        ],
    ),
    (
        &["forceNameSpaced=true", "forceNamespaced=false"],
        &["forceNameSpaced=true contradicts"],
    ),
    (
        &["forceNameSpaced=yes"],
        &["forceNameSpaced=yes: write forceNamespaced=true or"],
    ),
    (
        &[
            "azureIdentity.enabled=true",
            "azureIdentity.resourceID=/r",
            "azureIdentity.clientID=c",
            "azureIdentityBinding.name=b",
            "azureIdentityBinding.selector=s",
        ],
        &[
            "azureIdentities.azure-identity.resourceID=/r, azureIdentities.azure-identity.clientID=c",
            "azureIdentities.azure-identity.binding.name=b, azureIdentities.azure-identity.binding.selector=s",
        ],
    ),
    (
        &["azureIdentityBinding.selector=s"],
        &["resourceID=RESOURCE_ID", "binding.selector=s"],
    ),
    (
        &["psp.enabled=true"],
        &["psp.enabled: Kubernetes has no", "kubectl label"],
    ),
    (
        &["resources.limits.cpu=1"],
        &["resources: write mic.resources and nmi.resources"],
    ),
    (
        &["customLabels.team=a"],
        &["customLabels: write mic.podLabels and nmi.podLabels"],
    ),
    (
        &["image.pullPolicy=Always"],
        &["image.pullPolicy: write image.imagePullPolicy=Always"],
    ),
    (
        &["mic.tag=1.5-rc2"],
        &["mic.tag=1.5-rc2 is a version of AAD"],
    ),
    (
        &["nmi.startupTaint=key=value:Never"],
        &["/nmi/startupTaint"],
    ),
    (
        &["image.repository="],
        &["image.repository is required", "example.azurecr.io/podid"],
    ),
];

#[tokio::test]
async fn each_refusal_names_the_value_and_what_to_do() {
    for (wrong, says) in WRONG {
        let mut arguments = vec!["--set", IMAGES];
        for value in wrong {
            arguments.extend(["--set", value]);
        }
        let output = template(&arguments).await;
        assert!(!output.status.success(), "{wrong:?} was taken");
        assert!(output.stdout.is_empty(), "{wrong:?}");
        for part in says {
            assert!(text(&output).contains(part), "{wrong:?}: {}", text(&output));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_install_leaves_nothing() {
    let cluster = Cluster::start().await;
    let original = values("original-values.yaml");
    // Also what the schema lets pass, and the images of the original, which podid's flags would break.
    for (more, says) in [
        (
            &["--set", IMAGES, "--set", "mic.replcas=1"][..],
            "'replcas' not allowed",
        ),
        (
            &["-f", &original][..],
            "nmi.tag=v1.8.17 is a version of AAD Pod Identity",
        ),
    ] {
        let refused = cluster.upgrade(more).await;
        assert!(!refused.status.success());
        assert!(text(&refused).contains(says), "{}", text(&refused));
        let get = [
            "get",
            "deployments,daemonsets,secrets,serviceaccounts,jobs,clusterroles,azurepodidentityexceptions",
            "-A",
        ];
        let there = cluster
            .kubectl(
                &[&get[..], &["-o", "name", "--ignore-not-found"]].concat(),
                "",
            )
            .await;
        let left: Vec<_> = there
            .lines()
            .filter(|name| name.contains("podid"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
