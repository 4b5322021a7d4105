//! Control of the simulated Azure, from outside its HTTP ports: sets it up, injects faults, reads the journal. Tests and the demo
//! hold it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;

use super::World;
use super::directory::{Application, HostKind, Identity, Role, guid, key};
use super::faults::Fault;
use super::federated_credentials::FederatedCredential;
use super::imds::{self, Node};
use super::journal::Entry;
use super::tokens::Subject;

/// Sets a simulated Azure up and looks inside, as no client of it can.
#[derive(Clone)]
pub struct Control {
    world: Arc<World>,
}

impl Control {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// The tenant of everyone.
    pub fn tenant(&self) -> &str {
        &self.world.config.tenant
    }

    /// The subscription of everything.
    pub fn subscription(&self) -> &str {
        &self.world.config.subscription
    }

    /// Creates a user-assigned identity, or finds it.
    pub fn create_identity(&self, group: &str, name: &str) -> Identity {
        let subscription = &self.world.config.subscription;
        let mut directory = self.world.directory.lock();
        directory
            .create_identity(subscription, group, name, "westeurope")
            .0
    }

    /// Deletes an identity; it stays dangling on the hosts that have it.
    pub fn delete_identity(&self, id: &str) {
        self.world.directory.lock().delete_identity(id);
    }

    /// Creates a virtual machine or scale set and gives its ARM id.
    pub fn create_host(&self, kind: HostKind, group: &str, name: &str) -> String {
        let id = self.host_id(kind, group, name);
        self.world.directory.lock().create_host(&id, "westeurope");
        id
    }

    /// Deletes a host.
    pub fn delete_host(&self, id: &str) {
        self.world.directory.lock().hosts.remove(&key(id));
    }

    /// The ARM id of a host, whether or not it exists.
    pub fn host_id(&self, kind: HostKind, group: &str, name: &str) -> String {
        let kind = match kind {
            HostKind::VirtualMachine => "virtualMachines",
            HostKind::ScaleSet => "virtualMachineScaleSets",
        };
        format!(
            "/subscriptions/{}/resourceGroups/{group}/providers/Microsoft.Compute/{kind}/{name}",
            self.world.config.subscription
        )
    }

    /// The `spec.providerID` of a node that is instance `n` of a scale set.
    pub fn provider_id(set: &str, n: u32) -> String {
        format!("azure://{set}/virtualMachines/{n}")
    }

    /// Creates an application with a secret and gives its client id.
    pub fn create_application(&self, secret: &str) -> (String, String) {
        let (client_id, principal_id) = (guid(), guid());
        let application = Application {
            principal_id: principal_id.clone(),
            secret: secret.to_owned(),
            certificates: Vec::new(),
        };
        let mut directory = self.world.directory.lock();
        directory.applications.insert(key(&client_id), application);
        (client_id, principal_id)
    }

    /// Registers a certificate (DER) with an application, next to those it has.
    pub fn register_certificate(&self, client_id: &str, certificate: Vec<u8>) {
        let mut directory = self.world.directory.lock();
        if let Some(application) = directory.applications.get_mut(&key(client_id)) {
            application.certificates.push(certificate);
        }
    }

    /// Adds a federated credential to an identity or application, or replaces the one of that name; Entra knows it at once, as
    /// one that an operator made long ago.
    pub fn federate(&self, client_id: &str, credential: FederatedCredential) {
        let mut directory = self.world.directory.lock();
        let federation = directory.federations.entry(key(client_id)).or_default();
        let mut all = federation.known.current().to_vec();
        all.retain(|known| known.name != credential.name);
        all.push(credential);
        federation.known.write_everywhere(all);
    }

    /// The federated credentials of an identity or application, as they were written last.
    pub fn federated_credentials(&self, client_id: &str) -> Vec<FederatedCredential> {
        let directory = self.world.directory.lock();
        let federation = directory.federations.get(&key(client_id));
        federation.map_or_else(Vec::new, |found| found.known.current().to_vec())
    }

    /// Lets Entra read issuers whose certificate is by one of these authorities (PEM), beside those that the system trusts.
    ///
    /// # Errors
    /// It is no certificate.
    pub fn trust_issuers_by(&self, authorities: &[u8]) -> io::Result<()> {
        let trusted = self.world.issuers.trust(authorities);
        trusted.map_err(io::Error::other)
    }

    /// Replaces the secret of an application.
    pub fn rotate_secret(&self, client_id: &str, secret: &str) {
        let mut directory = self.world.directory.lock();
        if let Some(application) = directory.applications.get_mut(&key(client_id)) {
            secret.clone_into(&mut application.secret);
        }
    }

    /// Makes a further tenant, in which every application is known too.
    pub fn create_tenant(&self) -> String {
        let tenant = guid();
        let mut directory = self.world.directory.lock();
        directory.tenants.insert(tenant.clone());
        tenant
    }

    /// Gives a principal a role on a scope.
    pub fn assign_role(&self, principal: &str, role: Role, scope: &str) {
        self.world.directory.lock().grant(principal, role, scope);
    }

    /// Attaches an identity to a host at once, as an operator would have done long ago.
    pub fn attach(&self, host: &str, identity: &Identity) {
        let mut directory = self.world.directory.lock();
        if let Some(host) = directory.hosts.get_mut(&key(host)) {
            let attached = super::directory::Attached {
                id: identity.id.clone(),
                client_id: identity.client_id.clone(),
                principal_id: identity.principal_id.clone(),
                settled: tokio::time::Instant::now(),
            };
            host.user.insert(key(&identity.id), attached);
            host.etag += 1;
        }
    }

    /// Detaches an identity from a host at once, as another tool than podid would.
    pub fn detach(&self, host: &str, id: &str) {
        if let Some(host) = self.world.directory.lock().hosts.get_mut(&key(host)) {
            host.user.remove(&key(id));
            host.etag += 1;
        }
    }

    /// Gives a host a system-assigned identity unless it has one, and tells its principal.
    pub fn enable_system(&self, host: &str) -> Option<String> {
        let mut directory = self.world.directory.lock();
        let host = directory.hosts.get_mut(&key(host))?;
        if host.system.is_none() {
            host.system = Some((guid(), guid()));
            host.etag += 1;
        }
        host.system.as_ref().map(|(principal, _)| principal.clone())
    }

    /// The principal of a host's system-assigned identity, where it has one.
    pub fn system(&self, host: &str) -> Option<String> {
        let directory = self.world.directory.lock();
        let (principal, _) = directory.hosts.get(&key(host))?.system.clone()?;
        Some(principal)
    }

    /// Changes of this host take this long from now on.
    pub fn set_patch_latency(&self, host: &str, latency: Duration) {
        if let Some(host) = self.world.directory.lock().hosts.get_mut(&key(host)) {
            host.latency = Some(latency);
        }
    }

    /// The ARM ids, in lower case, of the identities on a host.
    pub fn attached(&self, host: &str) -> Vec<String> {
        let directory = self.world.directory.lock();
        let host = directory.hosts.get(&key(host));
        host.map_or_else(Vec::new, |host| host.user.keys().cloned().collect())
    }

    /// A token of an administrator for Resource Manager, with every role.
    ///
    /// # Errors
    /// Signing failed.
    pub fn administrator_token(&self) -> io::Result<String> {
        let (client_id, principal_id) = self.create_application(&guid());
        let scope = format!("/subscriptions/{}", self.world.config.subscription);
        self.assign_role(&principal_id, Role::Owner, &scope);
        let subject = Subject {
            tenant: &self.world.config.tenant,
            client_id: &client_id,
            principal_id: &principal_id,
            identity: None,
            host: None,
            proof: "1",
        };
        let now = Timestamp::now().as_second();
        self.world
            .signer
            .token(&subject, "https://management.azure.com/", now, 3599)
            .map_err(io::Error::other)
    }

    /// Whether a token was made here and is valid, and its claims.
    pub fn claims(&self, token: &str) -> Option<serde_json::Value> {
        self.world
            .signer
            .verify(token, Timestamp::now().as_second())
    }

    /// Starts the metadata service of one machine of a host (for a scale set `instance` names which) at an address, and says
    /// where it is. It ends with the simulated Azure.
    ///
    /// # Errors
    /// When the address is in use or not this machine's.
    pub async fn serve_imds(
        &self,
        host: &str,
        instance: Option<u32>,
        address: SocketAddr,
    ) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let machine = match instance {
            Some(n) => format!("{host}/virtualMachines/{n}"),
            None => host.to_owned(),
        };
        let node = Node {
            machine,
            host: host.to_owned(),
        };
        let router = imds::router(&self.world, node);
        let serve = super::serve(listener, router, self.world.stop.clone());
        self.world.nodes.lock().spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(reason = %error, "a metadata service ended");
            }
        });
        Ok(bound)
    }

    /// How long managed identities' tokens live from now on.
    pub fn set_token_life(&self, life: Duration) {
        self.world
            .token_life
            .store(life.as_secs(), Ordering::Relaxed);
    }

    /// Disturbs requests from now on.
    pub fn inject(&self, fault: Fault) {
        self.world.faults.add(fault);
    }

    /// Ends all disturbances.
    pub fn mend(&self) {
        self.world.faults.clear();
    }

    /// What was asked so far, oldest first.
    pub fn journal(&self) -> Vec<Entry> {
        self.world.journal.all()
    }

    /// Forgets what was asked.
    pub fn clear_journal(&self) {
        self.world.journal.clear();
    }
}
