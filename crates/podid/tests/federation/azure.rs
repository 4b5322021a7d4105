//! The simulated Azure of a world, as a process: `podid sim azure` reads the API server's issuer.

use std::path::Path;
use std::process::Command;

use podid_testkit::apiserver::ApiServer;
use podid_testkit::process::Process;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{MOVING, PODID, READER, STRANGER};

/// The simulated Azure, and what it says of itself.
pub struct Azure {
    _process: Process,
    said: String,
}

impl Azure {
    /// Starts it with all identities attached to the nodes, and a federated credential of the first for AzureIdentity shop/reader.
    pub fn start(api: &ApiServer, scratch: &Path) -> Self {
        let mut command = Command::new(PODID);
        let credential = format!(
            "{READER},{},system:serviceaccount:podid-identities:shop.{READER}",
            api.issuer()
        );
        command
            .args(["sim", "azure"])
            .args([READER, STRANGER, MOVING].map(|name| format!("--identity={name}")))
            .args(["--federated-credential", &credential, "--issuer-ca"])
            .arg(api.authority());
        let process = Process::spawn(command, &scratch.join("azure.log")).unwrap();
        let said = process.wait_for_log("service principal").unwrap();
        let azure = Self {
            _process: process,
            said,
        };
        azure.write_files(scratch);
        azure
    }

    /// What podid's processes read of Azure: where it is, and the controller's credential.
    fn write_files(&self, scratch: &Path) {
        let cloud = json!({
            "resourceManagerEndpoint": format!("{}/", self.word("Resource Manager  ")),
            "activeDirectoryEndpoint": format!("{}/", self.entra().0),
            "tokenAudience": "https://management.azure.com/",
        });
        std::fs::write(scratch.join("cloud.json"), cloud.to_string()).unwrap();
        let secret = self.word(&format!(
            "service principal {} secret ",
            self.word("service principal ")
        ));
        let credential = json!({
            "cloud": "AzureStackCloud", "tenantId": self.entra().1,
            "aadClientId": self.word("service principal "), "aadClientSecret": secret,
        });
        std::fs::write(scratch.join("azure.json"), credential.to_string()).unwrap();
    }

    /// The word after `start`.
    pub fn word(&self, start: &str) -> String {
        let (_, rest) = self.said.split_once(start).unwrap();
        rest.split_whitespace().next().unwrap().to_owned()
    }

    /// Entra's base URL and the tenant.
    pub fn entra(&self) -> (String, String) {
        let url = self.word("Entra             ");
        let (base, tenant) = url.rsplit_once('/').unwrap();
        (base.to_owned(), tenant.to_owned())
    }

    pub fn client_id(&self, identity: &str) -> String {
        self.word(&format!("/{identity} client id "))
    }

    pub fn resource_id(&self, identity: &str) -> String {
        let words = self.said.split_whitespace();
        let ends = format!("/userAssignedIdentities/{identity}");
        words
            .map(str::to_owned)
            .find(|word| word.ends_with(&ends))
            .unwrap()
    }

    /// The port of a node's metadata service.
    pub fn imds(&self) -> String {
        let url = self.word("AZURE_POD_IDENTITY_AUTHORITY_HOST=");
        url.rsplit(':').next().unwrap().to_owned()
    }

    /// The ids of the identities that are attached to the scale set.
    pub async fn attached(&self) -> Vec<String> {
        let set = self.on_scale_set(Method::GET, None).await;
        let identities = set["identity"]["userAssignedIdentities"].as_object();
        identities
            .into_iter()
            .flat_map(|all| all.keys())
            .cloned()
            .collect()
    }

    /// Takes an identity off the scale set, as its owner may.
    pub async fn detach(&self, identity: &str) {
        let mut identities = json!({});
        for id in self.attached().await {
            let stays = !id.ends_with(&format!("/{identity}"));
            identities[id] = if stays { json!({}) } else { Value::Null };
        }
        let body =
            json!({ "identity": { "type": "UserAssigned", "userAssignedIdentities": identities } });
        self.on_scale_set(Method::PATCH, Some(body)).await;
    }

    async fn on_scale_set(&self, method: Method, body: Option<Value>) -> Value {
        let path = format!("{}?api-version=2024-07-01", self.scale_set());
        self.on_resource(method, &path, body).await
    }

    /// As the owner of everything, at Resource Manager.
    pub async fn on_resource(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let (entra, tenant) = self.entra();
        let application = self.word("service principal ");
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &application),
            ("client_secret", "podid-sim-secret"),
            ("resource", "https://management.azure.com/"),
        ];
        let token = client
            .post(format!("{entra}/{tenant}/oauth2/token"))
            .form(&form);
        let token: Value = token.send().await.unwrap().json().await.unwrap();
        let arm = self.word("Resource Manager  ");
        let request = client
            .request(method, format!("{arm}{path}"))
            .bearer_auth(token["access_token"].as_str().unwrap());
        let request = match &body {
            Some(body) => request.json(body),
            None => request,
        };
        let answer = request.send().await.unwrap().error_for_status().unwrap();
        answer.json().await.unwrap_or_default()
    }

    /// The ARM id of the scale set whose first machine's metadata service there is.
    pub fn scale_set(&self) -> String {
        self.word("scale set         ")
    }
}
