//! Dependency graph of a crate's files: a file depends on another when code outside its tests names an item of the other.
//!
//! ```text
//! http/server.rs:  use crate::token::Cache;
//! token/mod.rs:    pub use cache::Cache;        a `use` is followed to the file that defines the item
//!
//! http/server.rs ──► token/cache.rs
//! ```
//!
//! Fields and methods are not looked at: the compiler finds them through a type that some file names.

use std::collections::{BTreeMap, BTreeSet};

use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, ItemMod, Macro, Meta, Token, UseTree, Visibility};

/// How often a name may be imported anew on its way to the file that defines it.
const MOST_IMPORTS: usize = 8;

type ModulePath = Vec<String>;

/// Which file names which other, and by what path.
#[derive(Debug)]
pub struct Graph(BTreeMap<String, BTreeMap<String, String>>);

impl Graph {
    /// The graph of a crate's source: the text of each file by its path below `src`, `lib.rs` among them.
    pub fn of(sources: &BTreeMap<String, String>) -> Self {
        let mut modules = Modules::default();
        modules.load(sources, "lib.rs", Vec::new());
        let edges = modules.files.iter().map(|(path, (file, syntax))| {
            let mut names = Names {
                modules: &modules,
                file,
                module: path.clone(),
                counts_reexports: defines_items(&syntax.items),
                found: BTreeMap::new(),
            };
            names.visit_file(syntax);
            (file.clone(), names.found)
        });
        Self(edges.collect())
    }

    /// The files that a file depends on, directly.
    pub fn direct(&self, file: &str) -> Vec<&str> {
        let edges = self.0.get(file).into_iter().flatten();
        edges.map(|(to, _)| to.as_str()).collect()
    }

    /// The path by which one file names another.
    pub fn path(&self, from: &str, to: &str) -> &str {
        &self.0[from][to]
    }

    /// Groups of files that depend on each other in a circle (strongly connected components of more than one file).
    pub fn cycles(&self) -> Vec<BTreeSet<&str>> {
        let reached: BTreeMap<&str, BTreeSet<&str>> = self
            .0
            .keys()
            .map(|file| (file.as_str(), self.reached_from(file)))
            .collect();
        let components: BTreeSet<BTreeSet<&str>> = reached
            .iter()
            .map(|(file, targets)| {
                let back = |target: &&&str| {
                    reached
                        .get(**target)
                        .is_some_and(|from| from.contains(file))
                };
                targets.iter().filter(back).copied().collect()
            })
            .collect();
        components.into_iter().filter(|one| one.len() > 1).collect()
    }

    fn reached_from(&self, file: &str) -> BTreeSet<&str> {
        let (mut reached, mut next) = (BTreeSet::new(), self.direct(file));
        while let Some(file) = next.pop() {
            if reached.insert(file) {
                next.extend(self.direct(file));
            }
        }
        reached
    }
}

/// The modules of a crate outside its tests.
#[derive(Default)]
struct Modules {
    /// The file of each module, parsed; a module within a file is its file's.
    files: BTreeMap<ModulePath, (String, syn::File)>,
    /// What each module imports: the name that is then known there, and its path.
    imports: BTreeMap<ModulePath, Vec<Import>>,
}

struct Import {
    /// `None` for a glob.
    name: Option<String>,
    path: Vec<String>,
}

impl Modules {
    fn load(&mut self, sources: &BTreeMap<String, String>, file: &str, path: ModulePath) {
        let text = sources.get(file).unwrap_or_else(|| panic!("no {file}"));
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let folder = match file.rsplit_once('/') {
            _ if file == "lib.rs" => String::new(),
            Some((folder, "mod.rs")) => format!("{folder}/"),
            _ => format!("{}/", file.trim_end_matches(".rs")),
        };
        for item in &syntax.items {
            match item {
                Item::Mod(module) if module.content.is_none() && !is_test(&module.attrs) => {
                    let name = module.ident.to_string();
                    let places = [
                        format!("{folder}{name}.rs"),
                        format!("{folder}{name}/mod.rs"),
                    ];
                    let place = places.iter().find(|place| sources.contains_key(*place));
                    let place = place.unwrap_or_else(|| panic!("{file}: no file of {name}"));
                    let inner = path.iter().cloned().chain([name]).collect();
                    self.load(sources, place, inner);
                }
                Item::Use(item) if !is_test(&item.attrs) => {
                    let imports = self.imports.entry(path.clone()).or_default();
                    flatten(&item.tree, &mut Vec::new(), imports);
                }
                _ => {}
            }
        }
        self.files.insert(path, (file.to_owned(), syntax));
    }

    /// The file that defines what a path of `module` names; `None` for what another crate defines, or this very function.
    fn file(&self, module: &[String], path: &[String], imports: usize) -> Option<&str> {
        let path = self.absolute(module, path)?;
        let length = (0..=path.len())
            .rev()
            .find(|length| self.files.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(length);
        if let Some(name) = rest.first()
            && imports < MOST_IMPORTS
        {
            let known = self.imports.get(module).into_iter().flatten();
            for import in known.filter(|import| import.name.as_ref() == Some(name)) {
                let imported = [&import.path[..], &rest[1..]].concat();
                if let Some(file) = self.file(module, &imported, imports + 1) {
                    return Some(file);
                }
            }
        }
        self.files.get(module).map(|(file, _)| file.as_str())
    }

    /// A path from the crate's root on, if it is one of this crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        let mut base = module.to_vec();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                base.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|first| first == "super") {
                    base.pop()?;
                    rest = &rest[1..];
                }
            }
            child => {
                base.push(child.to_owned());
                if !self.files.contains_key(&base) {
                    return None;
                }
                rest = &rest[1..];
            }
        }
        Some([&base[..], rest].concat())
    }
}

/// The paths that the code of one file names.
struct Names<'a> {
    modules: &'a Modules,
    file: &'a str,
    module: ModulePath,
    /// A file of nothing but modules and imports has no code that could depend on what it passes on.
    counts_reexports: bool,
    found: BTreeMap<String, String>,
}

impl Names<'_> {
    fn name(&mut self, path: &[String]) {
        if let Some(file) = self.modules.file(&self.module, path, 0)
            && file != self.file
        {
            let path = path.join("::");
            self.found.entry(file.to_owned()).or_insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if !matches!(item, ImplItem::Fn(function) if is_test(&function.attrs)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.module.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if self.counts_reexports || matches!(item.vis, Visibility::Inherited) {
            let mut imports = Vec::new();
            flatten(&item.tree, &mut Vec::new(), &mut imports);
            for import in imports {
                self.name(&import.path);
            }
        }
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {
        // The `crate` of `pub(crate)` names nothing.
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.name(&names);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        // Its tokens are no syntax tree; a path in them still reads `crate :: a :: b`.
        let tokens = call.tokens.to_string();
        let words: Vec<&str> = tokens.split_whitespace().collect();
        for start in 0..words.len() {
            let path = path_at(&words[start..]);
            if path.len() > 1 {
                self.name(&path);
            }
        }
        visit::visit_macro(self, call);
    }
}

/// The path that begins with `crate` or `super` at the first of these words.
fn path_at(words: &[&str]) -> Vec<String> {
    let mut path = Vec::new();
    if !matches!(words.first(), Some(&("crate" | "super"))) {
        return path;
    }
    for pair in words.chunks(2) {
        path.push(pair[0].to_owned());
        if pair.get(1) != Some(&"::") {
            break;
        }
    }
    path
}

fn flatten(tree: &UseTree, before: &mut Vec<String>, imports: &mut Vec<Import>) {
    let mut push = |name: Option<String>, path: Vec<String>| imports.push(Import { name, path });
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, imports);
            before.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, before, imports);
            }
        }
        UseTree::Glob(_) => push(None, before.clone()),
        UseTree::Name(name) if name.ident == "self" => push(before.last().cloned(), before.clone()),
        UseTree::Name(name) => push(
            Some(name.ident.to_string()),
            [&before[..], &[name.ident.to_string()]].concat(),
        ),
        UseTree::Rename(name) => push(
            Some(name.rename.to_string()),
            [&before[..], &[name.ident.to_string()]].concat(),
        ),
    }
}

fn defines_items(items: &[Item]) -> bool {
    items
        .iter()
        .any(|item| !matches!(item, Item::Mod(_) | Item::Use(_)))
}

/// Whether an item is compiled for tests: `cfg(test)`, or `test` among several conditions.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
                .is_ok_and(|conditions| conditions.iter().any(names_test))
    })
}

fn names_test(condition: &Meta) -> bool {
    match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if !list.path.is_ident("not") => list
            .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
            .is_ok_and(|conditions| conditions.iter().any(names_test)),
        _ => false,
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
