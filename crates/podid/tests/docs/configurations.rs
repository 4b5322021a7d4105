//! Every cloud configuration of the pages is one that podid reads.

use podid_azure::clouds;
use podid_azure::config::{CloudConfig, ConfigError};

use crate::manifests::filled_in;
use crate::pages::{Page, folder};

#[test]
fn every_cloud_configuration_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("azure.json");
    let mut seen = 0;
    for page in Page::all() {
        for block in page.blocks.iter().filter(|block| block.language == "json") {
            let text = filled_in(&block.text);
            std::fs::write(&file, &text).unwrap();
            seen += 1;
            if text.contains("resourceManagerEndpoint") {
                let custom = clouds::endpoints("AzureStackCloud", Some(&file));
                assert!(custom.is_ok(), "{}: {custom:?}\n{text}", page.name);
                continue;
            }
            match CloudConfig::from_file(&file, None) {
                Ok(_) => {}
                // The certificate itself is not on this machine.
                Err(ConfigError::Certificate { path, .. }) => {
                    assert!(text.contains(&path), "{text}");
                }
                Err(error) => panic!("{}: {error}\n{text}", page.name),
            }
        }
    }
    assert!(seen > 3, "{seen}");
}

#[test]
fn firewalls_are_told_where_the_clouds_are() {
    let page = std::fs::read_to_string(folder().join("platforms.md")).unwrap();
    for cloud in [
        "AzurePublicCloud",
        "AzureUSGovernmentCloud",
        "AzureChinaCloud",
    ] {
        let known = clouds::endpoints(cloud, None).unwrap();
        let (arm, entra) = (known.arm.host_str(), known.authority.host_str());
        let row = format!("| `{cloud}` | `{}` | `{}` |", arm.unwrap(), entra.unwrap());
        assert!(page.contains(&row), "{row}");
    }
}
