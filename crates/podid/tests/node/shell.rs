//! The commands of the documentation's pages, run by a shell on a real cluster.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use podid_testkit::tools;

use crate::world::{World, text};

/// The commands of a page, block by block.
pub fn commands(page: &str) -> Vec<String> {
    let path = tools::repository().join("docs").join(page);
    let page = std::fs::read_to_string(path).unwrap();
    let parts: Vec<&str> = page.split("```").collect();
    let code = parts.iter().skip(1).step_by(2);
    let code = code.filter_map(|block| block.strip_prefix("sh\n"));
    code.map(str::to_owned).collect()
}

/// A shell of an administrator, with helm, kubectl and podid, in a checkout.
pub struct Shell<'a> {
    world: &'a World,
    path: String,
}

impl<'a> Shell<'a> {
    pub fn new(world: &'a World) -> Self {
        let folder = world.cluster.folder().join("shell");
        std::fs::create_dir_all(&folder).unwrap();
        let kubectl = PathBuf::from(world.cluster.kubectl().get_program());
        let podid = PathBuf::from(env!("CARGO_BIN_EXE_podid"));
        for (name, program) in [
            ("kubectl", kubectl),
            ("helm", tools::helm().unwrap()),
            ("podid", podid),
        ] {
            // It is there already in a second test.
            let _ = symlink(program, folder.join(name));
        }
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        Self { world, path }
    }

    /// Runs commands of a page with the images that are here.
    pub fn run(&self, commands: &str) -> String {
        let here: Vec<String> = self
            .world
            .values_of(&self.world.tag)
            .into_iter()
            .map(|value| format!("--set {value}"))
            .collect();
        let commands = commands.replace(
            "--set image.repository=example.azurecr.io/podid",
            &here.join(" "),
        );
        let mut bash: Command = self.world.administrator(&tools::on_path("bash").unwrap());
        bash.args(["-euo", "pipefail", "-c", &commands])
            .current_dir(tools::repository());
        let output = bash.env("PATH", &self.path).output().unwrap();
        let said = text(&output);
        assert!(
            output.status.success(),
            "{commands}: {said}\n{}",
            self.world.explain()
        );
        said
    }
}
