//! House rules that a program can check: imports go down, files stay short, the pure floors stay
//! pure, the code map is complete.

use std::fs;
use std::path::{Path, PathBuf};

/// Floors from below; two on one line are siblings that may not import each other.
const FLOORS: &[&[&str]] =
    &[&["base"], &["wire"], &["config", "auth"], &["core"], &["net"], &["console"], &["app"]];

/// Files that hold a table and may be longer.
const TABLES: &[&str] = &["src/config/settings.rs"];

const LONGEST: usize = 600;

/// What the pure floors don't use, with the reason.
const BANNED: &[(&str, &str)] = &[
    ("std::net::Tcp", "no sockets"),
    ("std::os::", "no system calls"),
    ("std::fs", "no files"),
    ("std::thread", "no threads"),
    ("Instant::now", "the time is passed in"),
    ("SystemTime", "the time is passed in"),
    ("RefCell", "one owner"),
    ("Mutex", "one owner"),
    ("HashMap", "the order of iteration must not depend on a seed"),
    ("HashSet", "the order of iteration must not depend on a seed"),
    ("thread_local", "one owner"),
    ("nix::", "no system calls"),
    ("mio::", "no sockets"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file below these folders, as a path from the root, with its text.
fn files(folders: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in folders {
        sources(&root().join(folder), &mut found);
    }
    found.sort();
    assert!(!found.is_empty());
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The floor's module that a file belongs to.
fn module_of(file: &str) -> Option<&str> {
    file.strip_prefix("src/")?.split(['/', '.']).next()
}

/// Modules that a text imports from the crate's root.
fn imports(text: &str) -> Vec<&str> {
    text.split("crate::")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
        .filter(|module| floor_of(module).is_some())
        .collect()
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    for (file, text) in files(&["src"]) {
        let Some(module) = module_of(&file) else {
            continue;
        };
        let Some(floor) = floor_of(module) else {
            continue;
        };
        for import in imports(&text) {
            let below = floor_of(import).is_some_and(|other| other < floor);
            if import != module && !below {
                wrong.push(format!("{file} imports {import}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_folder_of_src_is_a_floor() {
    for (file, _) in files(&["src"]) {
        let module = module_of(&file).unwrap();
        assert!(floor_of(module).is_some() || matches!(module, "lib" | "main"), "{file}");
    }
}

#[test]
fn files_are_short() {
    let long: Vec<String> = files(&["src", "test"])
        .into_iter()
        .filter(|(file, text)| text.lines().count() > LONGEST && !TABLES.contains(&file.as_str()))
        .map(|(file, text)| format!("{file}: {} lines", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn pure_floors_are_pure() {
    let mut wrong = Vec::new();
    for (file, text) in files(&["src/base", "src/wire", "src/config", "src/auth", "src/core"]) {
        for (word, why) in BANNED {
            if text.contains(word) {
                wrong.push(format!("{file} uses {word}: {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn states_and_links_change_in_one_place() {
    let mut wrong = Vec::new();
    for (file, text) in files(&["src/core"]) {
        let writes = |what: &str| {
            text.lines().any(|line| line.contains(what) && !line.trim_start().starts_with("//"))
        };
        if file != "src/core/pool.rs" && (writes("client.state = ") || writes("server.state = ")) {
            wrong.push(file);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?} change a state outside pool.rs");
}

#[test]
fn the_code_map_names_every_file() {
    let map = fs::read_to_string(root().join("doc/architecture.md")).unwrap();
    let missing: Vec<String> = files(&["src"])
        .into_iter()
        .map(|(file, _)| file)
        .filter(|file| !matches!(file.as_str(), "src/lib.rs" | "src/main.rs"))
        .filter(|file| !file.ends_with("/tests.rs") && !file.ends_with("/script.rs"))
        .filter(|file| {
            let short = file.strip_prefix("src/").unwrap();
            let folder = format!("`{}/`", module_of(file).unwrap());
            !map.contains(&format!("`{short}`")) && !map.contains(&format!("| {folder}"))
        })
        .collect();
    assert!(missing.is_empty(), "doc/architecture.md lacks {missing:#?}");
}
