//! Which module of the crate stands on which: one way, and no two on each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the top; who stands in a line may use what stands in a line below, and nothing else of the crate.
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
    &["error", "membership", "token"],
    &["text"],
    &["parse"],
];

/// Modules by name, with the names that each uses.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The code of a file, without comments and without its own tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The names that follow `prefix`, one or several in braces: `a::{b::{c, d}, e}` is `b` and `e`.
fn names(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (at, _) in code.match_indices(prefix) {
        // Not the end of another path.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                '}' if depth == 0 => break,
                ',' if depth == 0 => found.insert(word(std::mem::take(&mut item).trim())),
                _ => {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    item.push(c);
                    false
                }
            };
        }
        found.insert(word(item.trim()));
    }
    found.remove("");
    found
}

/// The modules of `dir`, each with all that is below it, and what they use of each other.
fn graph(dir: &Path, uses: impl Fn(&str, bool) -> BTreeSet<String>) -> Graph {
    let mut graph = Graph::new();
    for file in sources(dir) {
        let below = file.strip_prefix(dir).unwrap();
        let module = below.iter().next().map(Path::new).and_then(Path::file_stem).unwrap().to_str().unwrap();
        let direct = below.iter().count() == 1;
        graph.entry(module.to_owned()).or_default().extend(uses(&code(&file), direct));
    }
    graph.remove("lib");
    graph
}

/// What is left when all that stand on none of the others are taken away, again and again.
fn circles(mut graph: Graph) -> Graph {
    let known: BTreeSet<String> = graph.keys().cloned().collect();
    for (module, used) in &mut graph {
        used.retain(|name| known.contains(name) && name != module);
    }
    while let Some(leaf) = graph.iter().find(|(_, used)| used.is_empty()).map(|(module, _)| module.clone()) {
        graph.remove(&leaf);
        for used in graph.values_mut() {
            used.remove(&leaf);
        }
    }
    graph
}

fn crate_graph() -> Graph {
    graph(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), |code, _| names(code, "crate::"))
}

#[test]
fn modules_use_each_other_one_way() {
    let layer = |name: &str| LAYERS.iter().position(|line| line.contains(&name));
    for (module, used) in crate_graph() {
        let own = layer(&module).unwrap_or_else(|| panic!("{module} stands in no layer"));
        for name in used.iter().filter(|name| **name != module) {
            let below = layer(name).is_some_and(|theirs| theirs > own);
            assert!(below, "{module} uses {name}, which does not stand below it");
        }
    }
}

#[test]
fn no_two_modules_of_observe_use_each_other() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/observe");
    let graph = graph(&dir, |code, direct| {
        let mut used = names(code, "crate::observe::");
        if direct {
            used.extend(names(code, "super::"));
        }
        used
    });
    for (module, used) in &graph {
        let elsewhere: Vec<_> = used.iter().filter(|name| !graph.contains_key(*name)).collect();
        assert!(elsewhere.is_empty(), "{module} uses {elsewhere:?} of observe itself, which uses all of its modules");
    }
    assert_eq!(circles(graph), Graph::new());
}

#[test]
fn a_circle_and_an_import_upwards_are_found() {
    assert_eq!(
        names("use crate::{a::{x, y}, b};\nuse crate::c::Z; let d = crate::d::e(); other_crate::f", "crate::"),
        ["a", "b", "c", "d"].map(str::to_owned).into()
    );
    let used = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let graph: Graph = [("a", used(&["b", "c"])), ("b", used(&["c"])), ("c", used(&["b"])), ("d", used(&[]))]
        .map(|(module, used)| (module.to_owned(), used))
        .into();
    assert!(circles(graph).contains_key("b"));
    assert!(crate_graph()["observe"].contains("snapshot"));
}
