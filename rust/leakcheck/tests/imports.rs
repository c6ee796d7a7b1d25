//! Which module of the crate uses which: one way, and no module uses an item of its parent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the top: a module may use the modules of the lines below its own, and no others.
const LAYERS: [&[&str]; 12] = [
    &["doctor", "testing"],
    &["guard", "reap"],
    &["freeze", "persist", "rights", "watch"],
    &["judge", "observe"],
    &["arena"],
    &["snapshot"],
    &["coverage", "scope"],
    &["resource"],
    &["kind"],
    &["error", "membership", "own_fd", "this_process", "token"],
    &["text"],
    &["parse"],
];

/// Modules of one directory by name, with the names of that directory that each uses.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The code of a file, without comments and without its own tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("\nmod tests {").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// A module or an item by the names that lead to it from the root of the crate.
type Name = Vec<String>;

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The parts of a group in braces, of which `text` starts after the opening one.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && c == '}' && from == at + 1 {
            break;
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// All paths at the start of `text`: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(text: &str, before: &Name, all: &mut BTreeSet<Name>) {
    if let Some(group) = text.strip_prefix('{') {
        parts(group).into_iter().for_each(|part| expand(part, before, all));
        return;
    }
    let first = word(text);
    let name = || Some(first.to_owned()).filter(|first| !first.is_empty() && first != "self");
    let path: Name = before.iter().cloned().chain(name()).collect();
    match text[first.len()..].strip_prefix("::") {
        Some(rest) => expand(rest, &path, all),
        None => drop(all.insert(path)),
    }
}

/// What the code of `module` names by a path from the root or from a parent.
fn names(code: &str, module: &Name) -> BTreeSet<Name> {
    let mut all = BTreeSet::new();
    for (at, first) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            expand(&code[at + first.len()..], &vec![first[..5].to_owned()], &mut all);
        }
    }
    let absolute = |name: Name| {
        let supers = name.iter().take_while(|part| *part == "super").count();
        let skip = name.iter().take_while(|part| *part == "super" || *part == "crate").count();
        let base = if supers > 0 { &module[..module.len() - supers] } else { &[] };
        base.iter().cloned().chain(name.into_iter().skip(skip)).collect()
    };
    all.into_iter().map(absolute).collect()
}

/// The module of a file.
fn module(file: &Path, src: &Path) -> Name {
    let below = file.strip_prefix(src).unwrap().with_extension("");
    below.iter().map(|part| part.to_str().unwrap().to_owned()).filter(|part| part != "mod" && part != "lib").collect()
}

/// For every directory of modules, by its own name, what its modules use of it.
fn graphs(files: &[(Name, String)]) -> BTreeMap<Name, Graph> {
    let mut graphs: BTreeMap<Name, Graph> = BTreeMap::new();
    for (module, code) in files.iter().filter(|(module, _)| !module.is_empty()) {
        for depth in 0..module.len() {
            graphs.entry(module[..depth].to_vec()).or_default().entry(module[depth].clone()).or_default();
        }
        for name in names(code, module) {
            let depth = name.iter().zip(module).take_while(|(a, b)| a == b).count();
            // A module may use its own items and those of the modules below it.
            if depth < module.len() {
                let user = graphs.entry(module[..depth].to_vec()).or_default().entry(module[depth].clone());
                user.or_default().insert(name.get(depth).map_or("self", String::as_str).to_owned());
            }
        }
    }
    graphs
}

/// What remains after the modules that use none of the others are removed, repeatedly.
fn circles(mut graph: Graph) -> Graph {
    while let Some(leaf) = graph.iter().find(|(_, used)| used.is_empty()).map(|(module, _)| module.clone()) {
        graph.remove(&leaf);
        for used in graph.values_mut() {
            used.remove(&leaf);
        }
    }
    graph
}

fn crate_graphs() -> BTreeMap<Name, Graph> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files: Vec<_> = sources(&src).iter().map(|file| (module(file, &src), code(file))).collect();
    graphs(&files)
}

#[test]
fn modules_use_only_the_layers_below() {
    let layer = |name: &str| LAYERS.iter().position(|line| line.contains(&name));
    for (module, used) in &crate_graphs()[&Name::new()] {
        let own = layer(module).unwrap_or_else(|| panic!("{module} is in no layer"));
        for name in used {
            let below = layer(name).is_some_and(|theirs| theirs > own);
            assert!(below, "{module} uses {name}, which is in no layer below it");
        }
    }
}

#[test]
fn no_module_uses_an_item_of_its_parent_and_no_two_use_each_other() {
    for (parent, graph) in crate_graphs().into_iter().filter(|(parent, _)| !parent.is_empty()) {
        for (module, used) in &graph {
            let above: Vec<_> = used.iter().filter(|name| !graph.contains_key(*name)).collect();
            assert!(above.is_empty(), "{module} uses {above:?} of its parent {}", parent.join("::"));
        }
        assert_eq!(circles(graph), Graph::new(), "modules of {}", parent.join("::"));
    }
}

#[test]
fn the_contract_finds_circles_layers_and_uses_of_a_parent() {
    let name = |path: &str| path.split("::").map(str::to_owned).collect::<Name>();
    let code = "use crate::{a::{x, y::Z}, b};\nuse crate::f::{self, T};\nuse super::{c}; use super::super::d;\nlet e = crate::e::g(); other_crate::h";
    let found = names(code, &name("f::i::j"));
    assert_eq!(found, ["a::x", "a::y::Z", "b", "f", "f::T", "f::i::c", "f::d", "e::g"].map(name).into());

    let file = |module: &str, code: &str| (name(module), code.to_owned());
    let graphs = graphs(&[
        file("a", "use b::Item;"),
        file("a::b", "use super::c; use crate::d::e;"),
        file("a::c", "use crate::a::b::Item;"),
        file("a::f", "use super::Item;"),
        file("a::g", "use crate::a;"),
    ]);
    let used = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(graphs[&name("a")]["f"], used(&["Item"]));
    assert_eq!(graphs[&name("a")]["g"], used(&["self"]));
    assert_eq!(graphs[&Name::new()]["a"], used(&["d"]));
    assert!(circles(graphs[&name("a")].clone()).contains_key("b"));
    assert!(crate_graphs()[&Name::new()]["observe"].contains("snapshot"));
}
