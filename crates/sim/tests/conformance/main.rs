//! One list of questions, asked of the simulated cluster and of a real kube-apiserver. A different answer is a fault of the
//! simulator.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod identity;
mod kubectl;
mod objects;
mod resources;
mod watching;

use std::{future::Future, io::Write as _};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use podid_sim::cluster::{Cluster, Config};
use podid_testkit::apiserver::ApiServer;
use serde_json::json;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// A server under test, and a namespace of the test's own.
pub struct Subject {
    /// Speaks to the server as an administrator.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
    /// The same way in, for `kubectl`.
    pub kubeconfig: tempfile::NamedTempFile,
}

async fn subject(kubeconfig: &str) -> Subject {
    let config = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .unwrap();
    let client = Client::try_from(config).unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let made =
        serde_json::from_value(json!({"metadata": {"generateName": "conformance-"}})).unwrap();
    let made = namespaces
        .create(&PostParams::default(), &made)
        .await
        .unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(kubeconfig.as_bytes()).unwrap();
    Subject {
        client,
        namespace: made.metadata.name.unwrap(),
        kubeconfig: file,
    }
}

/// Asks the question of both servers.
pub async fn ask<F: Future<Output = ()>>(question: impl Fn(Subject) -> F) {
    let cluster = Cluster::bind(Config::default()).await.unwrap();
    let kubeconfig = cluster.kubeconfig();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(cluster.run(shutdown.clone()));
    question(subject(&kubeconfig).await).await;
    shutdown.cancel();
    running.await.unwrap().unwrap();

    // One for all questions, as it takes seconds to start; it ends with this process.
    static REAL: OnceCell<ApiServer> = OnceCell::const_new();
    let real = REAL.get_or_init(|| async { ApiServer::start().await.unwrap() });
    let kubeconfig = std::fs::read_to_string(real.await.kubeconfig()).unwrap();
    question(subject(&kubeconfig).await).await;
}

/// The list: each question is one test.
macro_rules! conformance {
    ($($module:ident::$question:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $question() {
                ask($module::$question).await;
            }
        )*
    };
}

conformance![
    objects::an_object_is_created_read_and_deleted,
    objects::a_stale_write_is_a_conflict,
    objects::a_merge_patch_and_a_strategic_patch_differ,
    objects::a_json_patch_tests_first,
    objects::a_finalizer_holds_a_deletion,
    objects::a_pod_has_a_status_of_its_own,
    objects::a_pod_on_a_node_stops_in_its_own_time,
    objects::selectors_select,
    objects::lists_come_in_pages,
    objects::what_is_wrong_is_said,
    objects::a_lease_is_taken_by_update,
    resources::the_definitions_are_served,
    resources::unknown_fields_are_pruned_and_rules_refuse,
    resources::values_are_checked,
    resources::federation_is_for_types_0_and_1,
    resources::malformed_ids_are_refused_by_name,
    resources::a_later_rule_leaves_unchanged_values_alone,
    resources::generation_counts_the_spec_only,
    watching::a_watch_sees_what_happens,
    watching::a_selector_decides_what_a_watch_sees,
    watching::a_reflector_keeps_up,
    identity::a_token_says_whose_it_is,
    identity::the_issuer_publishes_its_key,
    identity::the_life_of_a_token_has_bounds,
    identity::a_token_can_be_bound_to_a_pod,
    identity::a_review_says_whose_token_it_is,
    identity::a_review_rejects_what_is_not_good_now,
    identity::access_is_what_roles_give,
    identity::access_for_a_group_in_the_whole_cluster,
    identity::an_access_review_is_about_somebody_and_something,
    kubectl::a_person_applies_reads_and_deletes,
    kubectl::a_person_creates_by_command,
    kubectl::a_person_sees_columns,
    kubectl::a_person_is_told_what_is_wrong,
    kubectl::a_person_explores,
    kubectl::the_older_spelling_applies_as_printed,
    kubectl::a_misspelt_field_is_refused_by_its_right_name,
];
