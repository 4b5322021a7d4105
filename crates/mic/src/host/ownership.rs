//! The ownership record: a ConfigMap per host that says which identities podid attached there.
//!
//! The host's worker ([`super::worker`]) writes it before a PATCH that attaches and after one that detaches; a new leader
//! ([`crate::leadership`]) reads all of them. It guards what others attached: only what a record names is ever detached. A write is
//! fenced by the record's `resourceVersion`, so that a leader of the past cannot overwrite its successor's record. Who takes over what
//! another leader has recorded writes it, too, under its own name: the other one's next write then fails and it learns of this one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use podid_policy::ids::{ClientId, HostKey, HostKind, ResourceId, stable_hash};
use serde_json::json;
use tokio::time::Instant;

/// The label selector by which the records are listed: ConfigMaps in the controller's namespace.
pub const RECORDS: &str = "aadpodidentity.k8s.io/record=host";
/// The label of the records.
const LABEL: &str = "aadpodidentity.k8s.io/record";
/// The value of that label.
const LABEL_VALUE: &str = "host";
/// The key in the ConfigMap that has the host, spelt as the providerID of a node.
const HOST: &str = "host";
/// The key in the ConfigMap that has the attached identities and their client ids, as JSON.
const ATTACHED: &str = "attached";
/// The key in the ConfigMap that has the replica that wrote it last: another writer gives another `resourceVersion`.
const WRITER: &str = "writer";

/// Azure carries out a PATCH whose outcome is unknown within an hour, or not at all; most take seconds.
const MAX_OPERATION: Duration = Duration::from_secs(3600);

/// The identities that podid attached to a host, with their client ids.
pub(crate) type Owned = BTreeMap<ResourceId, Option<ClientId>>;

/// What podid attached to one host, and what the record says of it.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    pub(super) owned: Owned,
    /// What the record says.
    pub(super) recorded: Owned,
    /// The record must be written even where it says the same: another leader has written it, or may have.
    must_write: bool,
    /// Owned only because of the PATCH that is about to be sent.
    claimed: BTreeSet<ResourceId>,
    /// Detaches by podid whose outcome is unknown, and when each call failed: Azure may still carry them out.
    unconfirmed_detaches: BTreeMap<ResourceId, Instant>,
}

impl Ownership {
    /// The record that the last leader left says this.
    pub(super) fn recall(&mut self, owned: Owned) {
        self.owned.clone_from(&owned);
        self.recorded = owned;
        self.must_write = false;
    }

    /// Whether the record says this for certain.
    pub(super) fn is_recorded(&self, owned: &Owned) -> bool {
        !self.must_write && *owned == self.recorded
    }

    /// A read has shown which identities are on the host. Where one is gone that the record names, another leader may have detached it
    /// and taken it out of the record.
    pub(super) fn confirm_record(&mut self, is_there: impl Fn(&ResourceId) -> bool) {
        self.must_write |= self.recorded.keys().any(|id| !is_there(id));
    }

    /// A PATCH is about to attach these.
    pub(super) fn claim(&mut self, attach: Owned) {
        for (id, client_id) in attach {
            if self.owned.insert(id.clone(), client_id).is_none() {
                self.claimed.insert(id);
            }
        }
    }

    /// The PATCH was not made: what it was to attach is not podid's.
    pub(super) fn unclaim(&mut self) {
        for id in std::mem::take(&mut self.claimed) {
            self.owned.remove(&id);
        }
    }

    /// The PATCH was made, or may have been made: what it was to attach stays podid's.
    pub(super) fn confirm_claims(&mut self) {
        self.claimed.clear();
    }

    /// A PATCH failed, and whether Azure has detached or will detach these is unknown.
    pub(super) fn on_detach_unconfirmed(&mut self, detach: &[ResourceId], now: Instant) {
        let detach = detach.iter().map(|id| (id.clone(), now));
        self.unconfirmed_detaches.extend(detach);
    }

    /// Whether podid may have detached the identity itself, so that it is no drift when it is gone.
    pub(super) fn may_have_detached(&self, id: &ResourceId) -> bool {
        self.unconfirmed_detaches.contains_key(id)
    }

    /// A read has shown which identities are on the host: a detach was carried out where the identity is gone, and was not where the
    /// identity is there after the longest time that an operation takes.
    pub(super) fn confirm_detaches(
        &mut self,
        now: Instant,
        is_there: impl Fn(&ResourceId) -> bool,
    ) {
        let detaches = &mut self.unconfirmed_detaches;
        detaches.retain(|id, failed_at| is_there(id) && now - *failed_at < MAX_OPERATION);
    }

    /// A PATCH was carried out, after which these are on the host or gone for certain.
    pub(super) fn on_patched<'a>(&mut self, ids: impl Iterator<Item = &'a ResourceId>) {
        self.claimed.clear();
        for id in ids {
            self.unconfirmed_detaches.remove(id);
        }
    }

    /// These are not podid's any more.
    pub(super) fn forget(&mut self, ids: &[ResourceId]) {
        for id in ids {
            self.owned.remove(id);
        }
    }

    /// The record says this now.
    pub(super) fn on_recorded(&mut self, owned: Owned) {
        self.recorded = owned;
        self.must_write = false;
    }

    /// Another leader has written the record: what it attached is podid's, too.
    pub(super) fn adopt_foreign_record(&mut self, theirs: Owned) {
        for (id, client_id) in &theirs {
            let ours = self.owned.entry(id.clone());
            ours.or_insert_with(|| client_id.clone());
            self.claimed.remove(id);
        }
        self.recorded = theirs;
        self.must_write = true;
    }
}

/// The ownership records of all hosts.
pub(crate) struct OwnershipRecords {
    api: Api<ConfigMap>,
    /// The name of this replica.
    writer: String,
    /// The `resourceVersion` of each record as last seen, with which writes are fenced.
    versions: Mutex<HashMap<String, String>>,
}

impl OwnershipRecords {
    pub(crate) fn new(client: Client, namespace: &str, writer: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            writer: writer.to_owned(),
            versions: Mutex::default(),
        }
    }

    /// Reads all records. One that cannot be parsed is logged and left alone.
    pub(crate) async fn load(&self) -> Result<Vec<(HostKey, Owned)>, kube::Error> {
        let labelled = ListParams::default().labels(RECORDS);
        let found = self.api.list(&labelled).await?;
        self.versions.lock().clear();
        found
            .items
            .iter()
            .for_each(|record| self.remember_version(record));
        Ok(found.items.iter().filter_map(parse).collect())
    }

    /// Makes the record of a host say `owned`; an empty record is deleted. When another leader has written it since, the record is
    /// left alone and what it says is returned, because that is podid's as well.
    pub(crate) async fn store(
        &self,
        host: &HostKey,
        owned: &Owned,
    ) -> Result<Option<Owned>, kube::Error> {
        let name = record_name(host);
        let version = self.versions.lock().get(&name).cloned();
        let stored = match version {
            None if owned.is_empty() => return Ok(None),
            None => self.create(&name, self.data(host, owned)).await,
            Some(version) if owned.is_empty() => self.delete(&name, version).await,
            Some(version) => self.update(&name, version, self.data(host, owned)).await,
        };
        let Err(error) = stored else {
            return Ok(None);
        };
        let is_foreign = matches!(&error, kube::Error::Api(s) if s.code == 409 || s.code == 404);
        match self.api.get_opt(&name).await? {
            Some(record) => {
                self.remember_version(&record);
                match parse(&record).filter(|_| is_foreign) {
                    Some((_, theirs)) => Ok(Some(theirs)),
                    None => Err(error),
                }
            }
            None => {
                self.versions.lock().remove(&name);
                if is_foreign {
                    return Ok(Some(Owned::new()));
                }
                Err(error)
            }
        }
    }

    async fn create(&self, name: &str, data: BTreeMap<String, String>) -> Result<(), kube::Error> {
        let mut record = ConfigMap {
            data: Some(data),
            ..ConfigMap::default()
        };
        record.metadata.name = Some(name.to_owned());
        record.metadata.labels = Some(BTreeMap::from([(LABEL.to_owned(), LABEL_VALUE.to_owned())]));
        let created = self.api.create(&PostParams::default(), &record).await?;
        self.remember_version(&created);
        Ok(())
    }

    async fn update(
        &self,
        name: &str,
        version: String,
        data: BTreeMap<String, String>,
    ) -> Result<(), kube::Error> {
        let patch = json!({ "metadata": { "resourceVersion": version }, "data": data });
        let params = PatchParams::default();
        let changed = self.api.patch(name, &params, &Patch::Merge(patch)).await?;
        self.remember_version(&changed);
        Ok(())
    }

    async fn delete(&self, name: &str, version: String) -> Result<(), kube::Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: None,
                resource_version: Some(version),
            }),
            ..DeleteParams::default()
        };
        match self.api.delete(name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        self.versions.lock().remove(name);
        Ok(())
    }

    fn data(&self, host: &HostKey, owned: &Owned) -> BTreeMap<String, String> {
        let mut data = data(host, owned);
        data.insert(WRITER.to_owned(), self.writer.clone());
        data
    }

    fn remember_version(&self, record: &ConfigMap) {
        let meta = &record.metadata;
        if let (Some(name), Some(version)) = (&meta.name, &meta.resource_version) {
            self.versions.lock().insert(name.clone(), version.clone());
        }
    }
}

fn data(host: &HostKey, owned: &Owned) -> BTreeMap<String, String> {
    let attached: BTreeMap<&str, Option<&str>> = owned
        .iter()
        .map(|(id, client)| (id.as_str(), client.as_ref().map(ClientId::as_str)))
        .collect();
    BTreeMap::from([
        (HOST.to_owned(), provider_id(host)),
        (ATTACHED.to_owned(), json!(attached).to_string()),
    ])
}

fn parse(record: &ConfigMap) -> Option<(HostKey, Owned)> {
    let parse = || {
        let data = record.data.as_ref()?;
        let host = HostKey::from_provider_id(data.get(HOST)?).ok()?;
        let attached: BTreeMap<String, Option<String>> =
            serde_json::from_str(data.get(ATTACHED)?).ok()?;
        let owned = attached
            .iter()
            .map(|(id, client)| {
                let client = client.as_deref().and_then(|c| ClientId::parse(c).ok());
                Some((ResourceId::parse(id).ok()?, client))
            })
            .collect::<Option<Owned>>()?;
        Some((host, owned))
    };
    let parsed = parse();
    if parsed.is_none() {
        let record = record.metadata.name.as_deref().unwrap_or_default();
        tracing::warn!(%record, "the record of a host cannot be read: what podid attached there is left attached");
    }
    parsed
}

/// The providerID that a node on the host can have.
fn provider_id(host: &HostKey) -> String {
    let path = match host.kind() {
        HostKind::VirtualMachine => format!("virtualMachines/{}", host.name()),
        HostKind::ScaleSet => format!("virtualMachineScaleSets/{}/virtualMachines/0", host.name()),
    };
    let (subscription, group) = (host.subscription(), host.resource_group());
    format!(
        "azure:///subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Compute/{path}"
    )
}

fn record_name(host: &HostKey) -> String {
    let id = provider_id(host).to_ascii_lowercase();
    let hash = stable_hash(&id);
    let readable: String = host
        .name()
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(100)
        .collect();
    format!("podid-host-{readable}-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::apiserver::FakeApi;
    use crate::testing::{host, id};

    #[test]
    fn a_record_reads_back() {
        let owned = Owned::from([
            (id(1), None),
            (
                id(2),
                ClientId::parse("00000000-0000-0000-0000-0000000000aa").ok(),
            ),
        ]);
        let record = ConfigMap {
            data: Some(data(&host(3), &owned)),
            ..ConfigMap::default()
        };
        assert_eq!(parse(&record), Some((host(3), owned)));
        let vm = HostKey::from_provider_id("azure:///subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/VM_1").unwrap();
        assert_eq!(HostKey::from_provider_id(&provider_id(&vm)).unwrap(), vm);
    }

    #[tokio::test]
    async fn a_leader_of_the_past_does_not_overwrite_its_successor() {
        let api = FakeApi::default();
        let [past, present] =
            ["0", "1"].map(|name| OwnershipRecords::new(api.client(), "system", name));
        let [one, two, three] = [1, 2, 3].map(|n| Owned::from([(id(n), None)]));
        past.store(&host(1), &one).await.unwrap();
        assert_eq!(present.load().await.unwrap(), [(host(1), one.clone())]);
        present.store(&host(1), &two).await.unwrap();
        let theirs = past.store(&host(1), &three).await.unwrap();
        assert_eq!(theirs, Some(two.clone()));
        assert_eq!(present.load().await.unwrap(), [(host(1), two)]);
        // Should it lead again after all, its next attempt counts.
        past.store(&host(1), &three).await.unwrap();
        past.store(&host(1), &Owned::new()).await.unwrap();
        assert_eq!(present.load().await.unwrap(), []);
        assert!(present.store(&host(1), &one).await.is_ok());
    }

    /// Two leaders at once attach the same identity. The one whose PATCH fails must not take away the record of the other.
    #[tokio::test]
    async fn of_two_leaders_the_one_that_adopts_a_record_keeps_it() {
        let api = FakeApi::default();
        let [one, other] =
            ["0", "1"].map(|name| OwnershipRecords::new(api.client(), "system", name));
        let [mut failing, mut attaching] = [Ownership::default(), Ownership::default()];
        let wanted = Owned::from([(id(1), None)]);
        failing.claim(wanted.clone());
        attaching.claim(wanted.clone());
        assert_eq!(one.store(&host(1), &wanted).await.unwrap(), None);
        let theirs = other.store(&host(1), &wanted).await.unwrap().unwrap();
        attaching.adopt_foreign_record(theirs);
        while !attaching.is_recorded(&wanted) {
            let stored = other.store(&host(1), &attaching.owned).await.unwrap();
            assert_eq!(stored, None);
            attaching.on_recorded(attaching.owned.clone());
        }
        failing.unclaim();
        let stored = one.store(&host(1), &failing.owned).await.unwrap();
        assert_eq!(stored, Some(wanted.clone()), "it must learn of the other");
        assert_eq!(other.load().await.unwrap(), [(host(1), wanted)]);
    }

    /// Another leader has detached an identity and taken it out of the record: before it is attached again it is recorded again.
    #[test]
    fn what_is_gone_from_the_host_may_be_gone_from_the_record() {
        let mut ownership = Ownership::default();
        let owned = Owned::from([(id(1), None)]);
        ownership.recall(owned.clone());
        ownership.confirm_record(|_| true);
        assert!(ownership.is_recorded(&owned));
        ownership.confirm_record(|_| false);
        assert!(!ownership.is_recorded(&owned));
    }

    #[test]
    fn names_are_valid_and_differ() {
        let name = record_name(&host(3));
        assert!(name.starts_with("podid-host-set3-"), "{name}");
        assert_ne!(name, record_name(&host(4)));
    }

    #[test]
    fn what_cannot_be_read_owns_nothing() {
        let mut record = ConfigMap::default();
        assert_eq!(parse(&record), None);
        record.data = Some(BTreeMap::from([
            (HOST.to_owned(), provider_id(&host(1))),
            (ATTACHED.to_owned(), "{\"x\": null}".to_owned()),
        ]));
        assert_eq!(parse(&record), None);
    }
}
