//! Paths of the programs that tests start: from the cache of `tools/setup`, and built by the scripts of `tools` when they are not
//! there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The root of the repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// A real Kubernetes, as far as the tests need one.
#[derive(Debug, Clone)]
pub struct Kubernetes {
    /// The program kube-apiserver.
    pub apiserver: PathBuf,
    /// The program kubectl.
    pub kubectl: PathBuf,
    /// The program etcd.
    pub etcd: PathBuf,
}

impl Kubernetes {
    /// Finds the programs in `KUBEBUILDER_ASSETS` where that is set, else in the cache of `tools/setup`, building them when they are not there.
    ///
    /// # Errors
    /// When one cannot be had, saying what to install.
    pub fn find() -> Result<Self> {
        let given = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let assets = match &given {
            Some(folder) => folder.clone(),
            None => kubernetes().context(
                "or set KUBEBUILDER_ASSETS to a folder with kube-apiserver, kubectl and etcd",
            )?,
        };
        let etcd = given
            .map(|folder| folder.join("etcd"))
            .filter(|path| path.is_file())
            .or_else(|| on_path("etcd"))
            .context("etcd is not there: run tools/setup (the package is etcd-server, or etcd on older systems), or set KUBEBUILDER_ASSETS")?;
        let found = Self {
            apiserver: assets.join("kube-apiserver"),
            kubectl: assets.join("kubectl"),
            etcd,
        };
        for program in [&found.apiserver, &found.kubectl] {
            if !program.is_file() {
                bail!(
                    "{} is not there: KUBEBUILDER_ASSETS must name a folder with kube-apiserver and kubectl; unset it to use those of tools/setup",
                    program.display()
                );
            }
        }
        Ok(found)
    }
}

/// The folder with the programs of a cluster's control plane and nodes, which `KUBEBUILDER_ASSETS` does not bring: from the cache of
/// `tools/setup`, built when they are not there.
///
/// # Errors
/// When they cannot be had, saying what to do.
pub fn kubernetes() -> Result<PathBuf> {
    build("tools/kube/build").context(
        "the programs of Kubernetes are neither cached nor can they be built: run tools/setup",
    )
}

/// The folder with the disk, the kernel and the initial RAM disk of a virtual machine that is a node: from the cache of `tools/setup`,
/// built when they are not there.
///
/// # Errors
/// When they cannot be had, saying what to do.
pub fn virtual_machine() -> Result<PathBuf> {
    build("tools/vm/build").context(
        "the disk of a virtual machine is neither cached nor can it be built: run tools/setup, as root",
    )
}

/// The program helm: from the cache of `tools/setup`, built when it is not there.
///
/// # Errors
/// When it cannot be had, saying what to do.
pub fn helm() -> Result<PathBuf> {
    build("tools/helm/build").context("helm is neither cached nor can it be built: run tools/setup")
}

/// The program promtool: from the cache of `tools/setup`, built when it is not there.
///
/// # Errors
/// When it cannot be had, saying what to do.
pub fn promtool() -> Result<PathBuf> {
    build("tools/promtool/build")
        .context("promtool is neither cached nor can it be built: run tools/setup")
}

/// podid as it was at the commit that `tools/released/build` names; it is built when it is not there, which takes minutes.
///
/// # Errors
/// When it cannot be built, with what was said.
pub fn released() -> Result<PathBuf> {
    build("tools/released/build").context(
        "podid of the earlier version is neither cached nor can it be built: run tools/setup",
    )
}

/// The tag of `localhost/podid/mic` and `localhost/podid/nmi` with the program of [`released`], and its commit; they are built when they are
/// not there.
///
/// # Errors
/// When they cannot be built, with the end of what was said.
pub fn released_images() -> Result<(String, String)> {
    let said = build("tools/released/images")
        .context("the images of the earlier version cannot be built: run tools/setup, as root")?;
    let said = said.display().to_string();
    let (tag, commit) = said.split_once(' ').context("a tag and a commit")?;
    Ok((tag.to_owned(), commit.to_owned()))
}

/// The library that makes a program's clock run faster (the package libfaketime), to be preloaded.
///
/// # Errors
/// When it is not there.
pub fn faketime() -> Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").context("no /usr/lib")?;
    folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.is_file())
        .context("libfaketime is not there: run tools/setup (the package is libfaketime)")
}

/// The container engine, and in it the images that [`images`] has built.
pub fn engine() -> PathBuf {
    repository().join("tools/image/engine")
}

/// The tag of `localhost/podid/mic` and `localhost/podid/nmi`, as the Dockerfile makes them of this source; they are built when they
/// are not there, which takes minutes.
///
/// # Errors
/// When they cannot be built, with the end of what was said.
pub fn images() -> Result<String> {
    let tag = build("tools/image/build").context(
        "the images cannot be built: run tools/setup (it installs podman, runc and mmdebstrap), as root",
    )?;
    Ok(tag.display().to_string())
}

/// The tag of `localhost/podid/app`, an application with Azure's SDK for Python, in the store of [`engine`]; it is built when it is not there.
///
/// # Errors
/// When it cannot be built, with the end of what was said.
pub fn app_image() -> Result<String> {
    let tag = build("tools/image/app/build")
        .context("the image of an application cannot be built: run tools/setup, as root")?;
    Ok(tag.display().to_string())
}

/// What a script of `tools` builds, or has built.
fn build(script: &str) -> Result<PathBuf> {
    let script = repository().join(script);
    let output = Command::new(&script)
        .output()
        .with_context(|| format!("{} does not start", script.display()))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// The program of this name that a shell would start, the tests' own virtual environment first.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(repository().join(".venv/bin"))
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin", "/usr/bin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
