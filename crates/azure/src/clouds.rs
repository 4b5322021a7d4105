//! Sovereign clouds (national clouds): the endpoints of Azure's public, US government and China clouds by name, and of a custom
//! cloud (Azure Stack) by the file that `AZURE_ENVIRONMENT_FILEPATH` names. `config.rs` calls this. [`is_authority`] guards which
//! addresses a credential may be sent to, and [`exchange_audience`] says for whom federated assertions are.

use std::path::Path;

use reqwest::Url;

use crate::endpoints::{Endpoints, IMDS};
use crate::fields::{Fields, fold};

/// The variable that names the file of a custom cloud.
pub const ENVIRONMENT_FILE: &str = "AZURE_ENVIRONMENT_FILEPATH";

/// Why there are no endpoints of a cloud.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// No cloud has this name.
    #[error(
        "unknown cloud {0:?}; expected AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud, or AzureStackCloud with {ENVIRONMENT_FILE} set"
    )]
    Unknown(String),
    /// The custom cloud's file is not named.
    #[error("cloud AzureStackCloud needs {ENVIRONMENT_FILE} to name the file with its endpoints")]
    NoFile,
    /// The custom cloud's file cannot be read.
    #[error("{path}: {reason}; expected the JSON file of a custom cloud ({ENVIRONMENT_FILE})")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An endpoint is not an http(s) URL.
    #[error("{what} {value:?} is not an http or https URL")]
    NotAUrl {
        /// Which one.
        what: &'static str,
        /// Its value.
        value: String,
    },
}

/// The endpoints of a cloud; the public one when `name` is empty. `file` is the value of [`ENVIRONMENT_FILE`].
///
/// # Errors
/// [`CloudError`].
pub fn endpoints(name: &str, file: Option<&Path>) -> Result<Endpoints, CloudError> {
    let known = |authority, arm: &str| of(authority, arm, arm);
    match name.to_ascii_lowercase().as_str() {
        "" | "azurepubliccloud" | "azurecloud" => known(
            "https://login.microsoftonline.com/",
            "https://management.azure.com/",
        ),
        "azureusgovernmentcloud" | "azureusgovernment" => known(
            "https://login.microsoftonline.us/",
            "https://management.usgovcloudapi.net/",
        ),
        "azurechinacloud" => known(
            "https://login.partner.microsoftonline.cn/",
            "https://management.chinacloudapi.cn/",
        ),
        "azurestackcloud" => custom(file.ok_or(CloudError::NoFile)?),
        _ => Err(CloudError::Unknown(name.chars().take(100).collect())),
    }
}

/// The hosts of Entra in the public, the sovereign and the closed German cloud, with their older names.
const AUTHORITIES: [&str; 6] = [
    "login.microsoftonline.com",
    "login.windows.net",
    "login.microsoftonline.us",
    "login.partner.microsoftonline.cn",
    "login.chinacloudapi.cn",
    "login.microsoftonline.de",
];

/// Whether `url` is an authority of one of Azure's clouds.
pub fn is_authority(url: &Url) -> bool {
    url.scheme() == "https"
        && url.port_or_known_default() == Some(443)
        && url
            .host_str()
            .is_some_and(|host| AUTHORITIES.contains(&host))
}

/// The audience of assertions that the authority exchanges for tokens: each cloud has its own, so that an assertion for one is of no
/// use in another. A custom cloud has the public one's.
pub fn exchange_audience(authority: &Url) -> &'static str {
    match authority.host_str().unwrap_or_default() {
        "login.microsoftonline.us" => "api://AzureADTokenExchangeUSGov",
        "login.partner.microsoftonline.cn" | "login.chinacloudapi.cn" => {
            "api://AzureADTokenExchangeChina"
        }
        _ => "api://AzureADTokenExchange",
    }
}

/// The fields of a custom cloud's file that are read; the first two must be there.
const ENVIRONMENT: [&str; 4] = [
    "activeDirectoryEndpoint",
    "resourceManagerEndpoint",
    "tokenAudience",
    "serviceManagementEndpoint",
];

fn custom(path: &Path) -> Result<Endpoints, CloudError> {
    let unreadable = |reason: String| CloudError::Unreadable {
        path: path.display().to_string(),
        reason,
    };
    let text = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let known = |folded: &str| ENVIRONMENT.iter().any(|name| fold(name) == folded);
    let fields = Fields::parse(&text, known).map_err(unreadable)?;
    let needed = |name: &str| match fields.text(name) {
        text if text.is_empty() => Err(unreadable(format!("{name} is missing"))),
        text => Ok(text),
    };
    let authority = needed("activeDirectoryEndpoint")?;
    let arm = needed("resourceManagerEndpoint")?;
    let audience = ["tokenAudience", "serviceManagementEndpoint"].map(|name| fields.text(name));
    let audience = audience.iter().find(|text| !text.is_empty());
    of(&authority, &arm, audience.unwrap_or(&arm))
}

fn of(authority: &str, arm: &str, audience: &str) -> Result<Endpoints, CloudError> {
    Ok(Endpoints {
        imds: parse_url("the metadata service's address", IMDS)?,
        authority: parse_url("activeDirectoryEndpoint", authority)?,
        arm: parse_url("resourceManagerEndpoint", arm)?,
        arm_audience: audience.to_owned(),
    })
}

/// Parses an http(s) URL; `what` names it in the error.
///
/// # Errors
/// [`CloudError::NotAUrl`].
pub fn parse_url(what: &'static str, text: &str) -> Result<Url, CloudError> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| CloudError::NotAUrl {
            what,
            value: text.chars().take(200).collect(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clouds_are_known_by_name_in_any_case() {
        let public = endpoints("", None).unwrap();
        assert_eq!(public, endpoints("AZUREPUBLICCLOUD", None).unwrap());
        assert_eq!(public.arm_audience, "https://management.azure.com/");
        assert_eq!(public.imds.as_str(), "http://169.254.169.254/");
        assert_eq!(public, endpoints("AzureCloud", None).unwrap());
        let government = endpoints("AzureUSGovernmentCloud", None).unwrap();
        assert_eq!(government, endpoints("AzureUSGovernment", None).unwrap());
        let china = endpoints("AzureChinaCloud", None).unwrap();
        assert!(china.authority.as_str().contains("microsoftonline.cn"));
        assert!(matches!(
            endpoints("AzureGermanCloud", None),
            Err(CloudError::Unknown(_))
        ));
        assert!(matches!(
            endpoints("AzureStackCloud", None),
            Err(CloudError::NoFile)
        ));
    }

    #[test]
    fn each_cloud_has_its_audience_of_assertions() {
        for (cloud, audience) in [
            ("", "api://AzureADTokenExchange"),
            ("AzureUSGovernmentCloud", "api://AzureADTokenExchangeUSGov"),
            ("AzureChinaCloud", "api://AzureADTokenExchangeChina"),
        ] {
            let authority = endpoints(cloud, None).unwrap().authority;
            assert_eq!(exchange_audience(&authority), audience);
        }
        let custom = Url::parse("https://adfs.local.azurestack.external/adfs").unwrap();
        assert_eq!(exchange_audience(&custom), "api://AzureADTokenExchange");
    }

    #[test]
    fn a_custom_cloud_comes_from_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            endpoints("AzureStackCloud", Some(file.path()))
        };
        let cloud = read(r#"{"name":"x","resourceManagerEndpoint":"http://127.0.0.1:1/","activeDirectoryEndpoint":"http://127.0.0.1:2/","tokenAudience":"https://management.azure.com/"}"#).unwrap();
        assert_eq!(cloud.authority.port(), Some(2));
        assert_eq!(cloud.arm_audience, "https://management.azure.com/");
        assert!(matches!(read("{}"), Err(CloudError::Unreadable { .. })));
        let found = read(
            "\u{feff}ResourceManagerEndpoint: http://127.0.0.1:1/\nactiveDirectoryEndpoint: http://127.0.0.1:2/\ntokenAudience: null\n",
        );
        assert_eq!(found.unwrap().arm_audience, "http://127.0.0.1:1/");
        assert!(matches!(
            read(
                r#"{"resourceManagerEndpoint":"file:///etc/passwd","activeDirectoryEndpoint":"http://x/"}"#
            ),
            Err(CloudError::NotAUrl { .. })
        ));
    }
}
