//! The pages of docs/ as the tests see them: headings, links, code spans and fenced blocks.

use std::collections::BTreeSet;
use std::path::PathBuf;

use podid_testkit::tools;

/// The folder of the pages.
pub fn folder() -> PathBuf {
    tools::repository().join("docs")
}

/// A page.
pub struct Page {
    /// Its file, relative to docs/.
    pub name: String,
    /// What is outside of fenced blocks.
    pub prose: String,
    /// The fenced blocks.
    pub blocks: Vec<Block>,
}

/// A fenced block.
pub struct Block {
    /// The word after the fence.
    pub language: String,
    /// What is in it.
    pub text: String,
}

impl Page {
    /// Every page, in the order of their names.
    pub fn all() -> Vec<Self> {
        let mut names: Vec<String> = std::fs::read_dir(folder())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".md"))
            .collect();
        names.sort();
        assert!(names.len() > 5, "{names:?}");
        names.into_iter().map(Self::read).collect()
    }

    fn read(name: String) -> Self {
        let text = std::fs::read_to_string(folder().join(&name)).unwrap();
        let (mut prose, mut blocks) = (String::new(), Vec::new());
        let mut open: Option<Block> = None;
        // A block in a list is indented.
        let mut indent = 0;
        for line in text.lines() {
            match (line.trim_start().strip_prefix("```"), open.take()) {
                (Some(_), Some(block)) => blocks.push(block),
                (Some(language), None) => {
                    indent = line.len() - line.trim_start().len();
                    open = Some(Block {
                        language: language.to_owned(),
                        text: String::new(),
                    });
                }
                (None, Some(mut block)) => {
                    block.text += line.get(indent..).unwrap_or_default();
                    block.text.push('\n');
                    open = Some(block);
                }
                (None, None) => {
                    prose += line;
                    prose.push('\n');
                }
            }
        }
        assert!(open.is_none(), "{name}: a fenced block is not closed");
        Self {
            name,
            prose,
            blocks,
        }
    }

    /// The anchors that mdBook gives its headings.
    pub fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| anchor(line.trim_start_matches('#').trim()))
            .collect()
    }

    /// Where its links lead.
    pub fn links(&self) -> Vec<&str> {
        let ends = self.prose.split("](").skip(1);
        ends.filter_map(|rest| Some(rest.split_once(')')?.0))
            .collect()
    }

    /// What is between single backticks in the prose.
    pub fn spans(&self) -> Vec<&str> {
        self.prose
            .lines()
            .flat_map(|line| line.split('`').skip(1).step_by(2))
            .collect()
    }

    /// The commands of its blocks for a shell, each on one line, without prompts, output and comments.
    pub fn commands(&self) -> Vec<String> {
        self.blocks
            .iter()
            .flat_map(|block| match block.language.as_str() {
                "sh" => joined(block.text.lines()),
                "console" => joined(
                    block
                        .text
                        .lines()
                        .filter_map(|line| line.strip_prefix("$ ")),
                ),
                _ => Vec::new(),
            })
            .collect()
    }
}

/// Lines that end with a backslash go on in the next.
fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in lines {
        let line = line.split(" # ").next().unwrap_or_default().trim();
        let (text, more) = match line.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (line, false),
        };
        match commands.last_mut().filter(|_| goes_on) {
            Some(command) => *command += text,
            None => commands.push(text.to_owned()),
        }
        goes_on = more;
    }
    commands.retain(|command| !command.is_empty() && !command.starts_with('#'));
    commands
}

fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            c if c.is_whitespace() => Some('-'),
            _ => None,
        })
        .collect()
}
