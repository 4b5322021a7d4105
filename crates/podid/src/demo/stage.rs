//! World of the demo: the simulators, the controller and the node agent in this process, and what a person would do with
//! `kubectl` and `az`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client, Discovery, ResourceExt as _};
use podid_azure::arm::Arm;
use podid_azure::clouds;
use podid_azure::config::Credential;
use podid_azure::endpoints::Endpoints;
use podid_azure::entra::Entra;
use podid_azure::imds::{self, Imds};
use podid_mic::Mic;
use podid_nmi::{Nmi, POD_REQUESTS, Upstream};
use podid_policy::ids::ClientId;
use podid_policy::matching::Scope;
use podid_sim::azure::{self, Azure, Control, HostKind, Identity, Role};
use podid_sim::cluster::{self, Cluster};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The one node.
pub const NODE: &str = "aks-pool1-0";
const GROUP: &str = "mc_demo";
/// Looks at something that changes by itself are this far apart.
const LOOK: Duration = Duration::from_millis(20);

/// Where a person can go on.
pub struct Playground {
    /// The simulated cluster's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The value for `AZURE_POD_IDENTITY_AUTHORITY_HOST`.
    pub authority: String,
    /// The AzureIdentity that the person's own requests get.
    pub identity: String,
    /// The simulated Resource Manager.
    pub arm: String,
}

/// The world once it is up.
pub struct World {
    pub azure: Control,
    pub client: Client,
    pub set: String,
    pub endpoints: Endpoints,
    pub door: SocketAddr,
    kubeconfig: PathBuf,
    controller: Identity,
    // Removed with the kubeconfig in it at the end.
    _folder: TempDir,
}

/// What the steps act on.
#[derive(Default)]
pub struct Stage {
    world: Option<World>,
    /// The identity that the story is about.
    pub reader: Option<Identity>,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// An answer of the metadata endpoint.
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub took: Duration,
}

impl Answer {
    /// The text that explains a refusal.
    pub fn explanation(&self) -> &str {
        self.body["error_description"].as_str().unwrap_or_default()
    }

    /// The token, when there is one.
    pub fn token(&self) -> Option<&str> {
        self.body["access_token"]
            .as_str()
            .filter(|_| self.status == 200)
    }
}

impl Stage {
    pub fn world(&self) -> anyhow::Result<&World> {
        self.world.as_ref().context("the simulators are not up")
    }

    pub fn reader(&self) -> anyhow::Result<&Identity> {
        self.reader.as_ref().context("the identity was not created")
    }

    /// Starts both simulators.
    pub async fn build(&mut self) -> anyhow::Result<()> {
        let azure = Azure::bind(azure::Config::default()).await?;
        let control = azure.control();
        let set = control.create_host(HostKind::ScaleSet, GROUP, "pool1");
        let controller = control.create_identity(GROUP, "kubelet");
        control.attach(&set, &controller);
        control.assign_role(
            &controller.principal_id,
            Role::VirtualMachineContributor,
            &set,
        );
        let imds = control.serve_imds(&set, Some(0), loopback(0)).await?;
        let url =
            |address: SocketAddr| clouds::parse_url("simulator", &format!("http://{address}"));
        let endpoints = Endpoints {
            imds: url(imds)?,
            authority: url(azure.entra())?,
            arm: url(azure.arm())?,
            arm_audience: "https://management.azure.com/".to_owned(),
        };
        let cluster = Cluster::bind(cluster::Config {
            stop_pods: true,
            ..cluster::Config::default()
        })
        .await?;
        let folder = tempfile::Builder::new().prefix("podid-demo-").tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, cluster.kubeconfig())?;
        let (stop, text) = (self.stop.clone(), cluster.kubeconfig());
        self.tasks.spawn(async move { Ok(azure.run(stop).await?) });
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { Ok(cluster.run(stop).await?) });
        let config = kube::config::Kubeconfig::from_yaml(&text)?;
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await?;
        self.world = Some(World {
            azure: control,
            client: Client::try_from(config)?,
            set,
            endpoints,
            door: loopback(0),
            kubeconfig,
            controller,
            _folder: folder,
        });
        let provider = Control::provider_id(&self.world()?.set, 0);
        self.create(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE }, "spec": { "providerID": provider },
        }))
        .await
    }

    /// Starts the controller and the node agent.
    pub async fn deploy(&mut self) -> anyhow::Result<()> {
        let world = self.world.as_mut().context("the simulators are not up")?;
        let credential = Credential::ManagedIdentity(imds::Identity::Client(ClientId::parse(
            &world.controller.client_id,
        )?));
        let arm = Arm::new(&world.endpoints, credential, None)?;
        let mic = Mic::new(
            podid_mic::Config {
                linger: Duration::from_millis(200),
                settle: Duration::from_millis(50),
                probe: loopback(0),
                metrics: loopback(0),
                ..podid_mic::Config::new("podid-mic-demo", "default")
            },
            world.client.clone(),
            Arc::new(arm),
        );
        let listeners = mic.bind().await?;
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { Ok(mic.run(listeners, stop).await?) });
        let patience = Duration::from_secs(10);
        let imds = Imds::new(&world.endpoints.imds, None, patience);
        let entra = Entra::new(&world.endpoints.authority, patience)?;
        let upstream = Upstream::new(imds, entra, world.client.clone(), false);
        // Nothing is intercepted here: clients are told the address.
        let (_, active) = tokio::sync::watch::channel(true);
        let nmi = Nmi::new(node_agent(), world.client.clone(), upstream, active);
        let door = std::net::TcpListener::bind(loopback(0))?;
        world.door = door.local_addr()?;
        let listeners = nmi.bind(vec![door])?;
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { Ok(nmi.run(listeners, stop).await?) });
        Ok(())
    }

    /// `kubectl apply` of objects that are not there yet, given as YAML.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        self.create(serde_saphyr::from_str(yaml)?).await
    }

    /// Creates an object, in `default` unless it says otherwise.
    pub async fn create(&self, object: Value) -> anyhow::Result<()> {
        let object: DynamicObject = serde_json::from_value(object)?;
        let api = self.api(&object).await?;
        let name = object.name_any();
        api.create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("creating {name}"))?;
        Ok(())
    }

    async fn api(&self, object: &DynamicObject) -> anyhow::Result<Api<DynamicObject>> {
        let client = self.world()?.client.clone();
        let types = object.types.clone().context("an object without a kind")?;
        let gvk = kube::core::GroupVersionKind::try_from(&types)?;
        let (resource, capabilities) = Discovery::new(client.clone())
            .filter(&[&gvk.group])
            .run()
            .await?
            .resolve_gvk(&gvk)
            .with_context(|| format!("the API server does not know {}", gvk.kind))?;
        Ok(
            if capabilities.scope == kube::discovery::Scope::Namespaced {
                let namespace = object.namespace().unwrap_or_else(|| "default".to_owned());
                Api::namespaced_with(client, &namespace, &resource)
            } else {
                Api::all_with(client, &resource)
            },
        )
    }

    /// A pod on the node, with labels; the kubelet's part, its address, is played here.
    pub async fn start_pod(
        &self,
        namespace: &str,
        name: &str,
        labels: Value,
        address: IpAddr,
    ) -> anyhow::Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": labels },
            "spec": { "nodeName": NODE, "containers": [{ "name": "app", "image": "app" }] },
        });
        let object: DynamicObject = serde_json::from_value(pod.clone())?;
        let api = self.api(&object).await?;
        api.create(&PostParams::default(), &object).await?;
        let status = json!({ "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] } });
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
            .await?;
        Ok(())
    }

    /// Deletes an object of one of podid's kinds.
    pub async fn delete<K>(&self, name: &str) -> anyhow::Result<()>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.world()?.client.clone(), "default");
        api.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// What a pod's SDK does: asks for a token, from the pod's address.
    pub async fn ask(&self, from: IpAddr, resource: &str) -> anyhow::Result<Answer> {
        let client = reqwest::Client::builder()
            .local_address(from)
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()?;
        let url = format!(
            "http://{}/metadata/identity/oauth2/token",
            self.world()?.door
        );
        let query = [("api-version", "2018-02-01"), ("resource", resource)];
        let started = std::time::Instant::now();
        let answer = client
            .get(url)
            .query(&query)
            .header("Metadata", "true")
            .send()
            .await?;
        let status = answer.status().as_u16();
        let body = answer.json().await?;
        Ok(Answer {
            status,
            body,
            took: started.elapsed(),
        })
    }

    /// Asks until the answer has the status, and gives the last one.
    pub async fn ask_until(&self, from: IpAddr, status: u16) -> anyhow::Result<Answer> {
        loop {
            let answer = self.ask(from, super::story::STORAGE).await?;
            if answer.status == status {
                return Ok(answer);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks once; another status than expected means that the step did not happen.
    pub async fn expect(&self, from: IpAddr, status: u16) -> anyhow::Result<Answer> {
        let answer = self.ask(from, super::story::STORAGE).await?;
        if answer.status != status {
            bail!(
                "expected {status}, got {}: {}",
                answer.status,
                answer.explanation()
            );
        }
        Ok(answer)
    }

    /// Waits until `true`.
    pub async fn until(
        &self,
        mut so: impl AsyncFnMut(&World) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let world = self.world()?;
        while !so(world).await? {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// What `az` does: one call to Resource Manager by an administrator.
    pub async fn az(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        let world = self.world()?;
        let url = format!(
            "{}{path}",
            world.endpoints.arm.as_str().trim_end_matches('/')
        );
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client
            .put(url)
            .bearer_auth(world.azure.administrator_token()?)
            .json(&body)
            .send()
            .await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        if !status.is_success() {
            bail!("Azure answered {status}: {}", body["error"]["message"]);
        }
        Ok(body)
    }

    /// `az role assignment create`.
    pub async fn assign_role(
        &self,
        principal: &str,
        role: Role,
        scope: &str,
    ) -> anyhow::Result<()> {
        let (_, definition) = role.definition();
        let body = json!({ "properties": {
            "principalId": principal, "roleDefinitionId": format!("/providers/Microsoft.Authorization/roleDefinitions/{definition}"),
        } });
        let name = uuid::Uuid::new_v4();
        let path = format!(
            "{scope}/providers/Microsoft.Authorization/roleAssignments/{name}?api-version=2022-04-01"
        );
        self.az(&path, body).await.map(|_| ())
    }

    /// The controller's own principal.
    pub fn controller(&self) -> anyhow::Result<&Identity> {
        Ok(&self.world()?.controller)
    }

    /// An error when a part has ended.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        match self.tasks.try_join_next() {
            None => Ok(()),
            Some(Ok(Err(error))) => Err(error),
            Some(Ok(Ok(()))) => bail!("it returned"),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Makes this machine a pod, so that a person can try requests after the story.
    pub async fn playground(&self) -> anyhow::Result<Playground> {
        let (selector, identity) = ("you", &self.reader()?.id);
        let name = identity.rsplit('/').next().unwrap_or_default();
        self.create(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": { "name": "you" }, "spec": { "azureIdentity": name, "selector": selector },
        }))
        .await?;
        let here = Ipv4Addr::LOCALHOST.into();
        self.start_pod(
            "default",
            "you",
            json!({ "aadpodidbinding": selector }),
            here,
        )
        .await?;
        self.ask_until(here, 200).await?;
        let world = self.world()?;
        Ok(Playground {
            kubeconfig: world.kubeconfig.clone(),
            authority: format!("http://{}", world.door),
            identity: format!("default/{name}"),
            arm: world
                .endpoints
                .arm
                .as_str()
                .trim_end_matches('/')
                .to_owned(),
        })
    }

    /// Ends everything.
    pub async fn strike(mut self) {
        self.stop.cancel();
        let end = async { while self.tasks.join_next().await.is_some() {} };
        // What does not end by then ends with the process.
        let _ = tokio::time::timeout(Duration::from_secs(3), end).await;
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn node_agent() -> podid_nmi::Config {
    podid_nmi::Config {
        node: NODE.to_owned(),
        scope: Scope::Namespaced,
        assigned_first: true,
        pick_first: false,
        prefetch: Vec::new(),
        assignment_wait: Duration::from_secs(30),
        // Tokens live for seconds when the story comes to rotation.
        token_floor: Duration::from_secs(1),
        metadata_header_required: true,
        allowed_categories: Vec::new(),
        pod_requests: POD_REQUESTS,
        host_token_socket: None,
        host_token_loopback: false,
        attestor: None,
        probe: loopback(0),
        metrics: loopback(0),
    }
}
