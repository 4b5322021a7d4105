//! Atomic replacement of a file, for the commands that write files.

use std::path::Path;

use anyhow::Context as _;

/// Writes a file at once or not at all: a machine may lose its power at any time.
pub fn replace(path: &Path, content: &str) -> anyhow::Result<()> {
    make_directory(path)?;
    let name = || path.display().to_string();
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new).with_context(name)?;
    std::io::Write::write_all(&mut file, content.as_bytes()).with_context(name)?;
    file.sync_all().with_context(name)?;
    std::fs::rename(&new, path).with_context(name)
}

/// Makes the directory that a file is in.
pub fn make_directory(of: &Path) -> anyhow::Result<()> {
    let directory = of.parent().unwrap_or(of);
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}
