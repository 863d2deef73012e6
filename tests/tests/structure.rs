//! The structure of the code: which crate may use which, no circles between files, no crate that outgrows the others.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;
use syn::{Attribute, Item, UseTree};

/// The crates with code of their own, lowest first, and the crates that each may depend on.
const CRATES: [(&str, &[&str]); 10] = [
    ("protocol", &[]),
    ("platform", &["protocol"]),
    ("cache", &["platform", "protocol"]),
    ("store", &["platform", "protocol"]),
    ("session", &["cache", "platform", "protocol", "store"]),
    ("catalog", &["protocol", "session"]),
    ("transport-mio", &["cache", "platform", "protocol", "session", "store"]),
    ("transport-tokio", &["cache", "platform", "protocol", "session", "store"]),
    ("blobferry", &["cache", "catalog", "protocol", "session", "store", "transport-mio", "transport-tokio"]),
    (
        "src",
        &["cache", "catalog", "platform", "protocol", "session", "store", "transport-mio", "transport-tokio"],
    ),
];

/// No crate may have more than this share of the lines of all crates.
const LARGEST_SHARE: f64 = 0.25;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn source_folder(of: &str) -> PathBuf {
    if of == "src" { root().join("src") } else { root().join(of).join("src") }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                None if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

/// The path of the module that a file is, below its crate's root.
fn module_of(folder: &Path, file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(folder).unwrap().with_extension("");
    let mut names: Vec<String> = relative.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    if names.last().is_some_and(|name| name == "mod" || name == "lib" || name == "main") {
        names.pop();
    }
    names
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && {
            let condition = attribute.parse_args::<syn::Meta>();
            condition.is_ok_and(|condition| condition.path().is_ident("test"))
        }
    })
}

/// The absolute paths that a file names, and the names that it only passes on to others.
#[derive(Default)]
struct Names {
    module: Vec<String>,
    used: BTreeSet<Vec<String>>,
    reexported: BTreeMap<String, Vec<String>>,
}

impl Names {
    /// Resolves a path that begins with `crate`, `self` or `super`, or with a module that this file declares.
    fn resolve(&self, path: &[String], children: &BTreeSet<String>) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some(self.module.iter().chain(rest).cloned().collect()),
            "super" => {
                let mut module = self.module.clone();
                let mut rest = path;
                while let Some((first, behind)) = rest.split_first()
                    && first == "super"
                {
                    module.pop()?;
                    rest = behind;
                }
                Some(module.iter().chain(rest).cloned().collect())
            }
            first if children.contains(first) => Some(self.module.iter().chain(path).cloned().collect()),
            _ => None,
        }
    }
}

fn flatten(tree: &UseTree, prefix: &[String], paths: &mut Vec<(Vec<String>, String)>) {
    let with =
        |name: &dyn ToString| -> Vec<String> { prefix.iter().cloned().chain([name.to_string()]).collect() };
    match tree {
        UseTree::Path(path) => flatten(&path.tree, &with(&path.ident), paths),
        UseTree::Name(name) if name.ident == "self" => {
            paths.push((prefix.to_vec(), prefix.last().cloned().unwrap_or_default()));
        }
        UseTree::Name(name) => paths.push((with(&name.ident), name.ident.to_string())),
        UseTree::Rename(rename) => paths.push((with(&rename.ident), rename.rename.to_string())),
        UseTree::Glob(_) => paths.push((prefix.to_vec(), "*".into())),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, prefix, paths)),
    }
}

/// Visits everything but test code.
struct Reader<'a> {
    names: &'a mut Names,
    children: BTreeSet<String>,
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return syn::visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let mut paths = Vec::new();
        flatten(&item.tree, &[], &mut paths);
        let is_public = !matches!(item.vis, syn::Visibility::Inherited);
        for (path, name) in paths {
            let Some(path) = self.names.resolve(&path, &self.children) else { continue };
            if is_public {
                self.names.reexported.insert(name, path);
            } else {
                self.names.used.insert(path);
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if names.len() > 1
            && let Some(path) = self.names.resolve(&names, &self.children)
        {
            self.names.used.insert(path);
        }
        syn::visit::visit_path(self, path);
    }
}

/// Reads the files of a crate: which module uses which other modules.
fn imports(folder: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let files = rust_files(folder);
    let modules: BTreeSet<Vec<String>> = files.iter().map(|file| module_of(folder, file)).collect();
    let mut read = BTreeMap::new();
    for file in &files {
        let module = module_of(folder, file);
        if module.iter().any(|name| name == "tests" || name == "schedules") {
            continue;
        }
        let parsed = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
        let children = parsed.items.iter().filter_map(|item| match item {
            Item::Mod(item) => Some(item.ident.to_string()),
            _ => None,
        });
        let children = children.collect();
        let mut names = Names { module: module.clone(), ..Names::default() };
        Reader { names: &mut names, children }.visit_file(&parsed);
        read.insert(module, names);
    }
    let mut graph = BTreeMap::new();
    for (module, names) in &read {
        let mut targets = BTreeSet::new();
        for path in &names.used {
            let mut path = path.clone();
            // Follows what other modules pass on, to the file that has it.
            let target = loop {
                let Some(length) = (0..=path.len()).rev().find(|n| modules.contains(&path[..*n])) else {
                    break None;
                };
                let (target, rest) = path.split_at(length);
                let passed_on = rest
                    .first()
                    .and_then(|name| read.get(target)?.reexported.get(name))
                    .filter(|to| **to != path);
                match passed_on {
                    Some(to) => path = to.iter().chain(&rest[1..]).cloned().collect(),
                    None => break Some(target.to_vec()),
                }
            };
            // A folder's own module and the files in the folder are one unit: arrows between them do not count.
            if let Some(target) = target
                && !target.starts_with(module)
                && !module.starts_with(&target)
            {
                targets.insert(target.join("::"));
            }
        }
        graph.insert(module.join("::"), targets);
    }
    graph
}

/// Returns a ring of modules that use each other, if there is one.
fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        at: &str,
        graph: &BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(begin) = path.iter().position(|name| name == at) {
            return Some(path[begin..].to_vec());
        }
        if done.contains(at) {
            return None;
        }
        path.push(at.to_owned());
        let found = graph.get(at).into_iter().flatten().find_map(|next| visit(next, graph, path, done));
        path.pop();
        done.insert(at.to_owned());
        found
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|module| visit(module, graph, &mut Vec::new(), &mut done))
}

#[test]
fn no_two_files_use_each_other() {
    let mut circles = Vec::new();
    for (name, _) in CRATES {
        let mut graph = imports(&source_folder(name));
        // After one circle is found, one of its arrows is left out to find the next.
        while let Some(found) = circle(&graph) {
            let last = found.last().unwrap();
            graph.get_mut(last).unwrap().remove(&found[0]);
            circles.push(format!("{name}: {} -> {}", found.join(" -> "), found[0]));
        }
    }
    assert!(circles.is_empty(), "{} circles:\n{}", circles.len(), circles.join("\n"));
}

#[test]
fn a_crate_depends_only_on_those_below_it() {
    for (name, allowed) in CRATES {
        let manifest =
            if name == "src" { root().join("Cargo.toml") } else { root().join(name).join("Cargo.toml") };
        let manifest = fs::read_to_string(manifest).unwrap();
        let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
        for line in dependencies.lines() {
            let Some(used) = line.strip_prefix("blobferry-") else { continue };
            let used = used.split(['.', ' ']).next().unwrap();
            assert!(allowed.contains(&used), "{name} must not depend on {used}");
        }
    }
}

#[test]
fn no_crate_has_more_than_a_quarter_of_the_code() {
    let lines = |name: &str| -> usize {
        let folder = if name == "src" { root().join("src") } else { root().join(name) };
        let files = rust_files(&folder);
        files.iter().map(|file| fs::read_to_string(file).unwrap().lines().count()).sum()
    };
    let all: Vec<(&str, usize)> = CRATES.iter().map(|(name, _)| (*name, lines(name))).collect();
    let total: usize = all.iter().map(|(_, lines)| lines).sum();
    for (name, lines) in all {
        #[expect(clippy::cast_precision_loss, reason = "a share needs no precision")]
        let share = lines as f64 / total as f64;
        assert!(share <= LARGEST_SHARE, "{name} has {lines} of {total} lines");
    }
}
