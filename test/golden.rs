//! Files that are made from tables: compared always, rewritten by `make doc`.

use pgturnstile::app::format;
use pgturnstile::config::manual;
use std::fs;
use std::path::Path;

fn compare(file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let kept = fs::read_to_string(path).unwrap_or_default();
    assert!(kept == made, "{file} is not what the tables say: run 'make doc'");
}

#[test]
fn sample_ini_follows_the_tables() {
    compare("etc/pgturnstile.ini", &manual::sample_ini());
}

#[test]
fn manual_follows_the_tables() {
    compare("doc/pgturnstile.5", &manual::manual());
}

#[test]
fn description_of_the_handoff_follows_the_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("doc/handoff.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, kept) = text.split_once(format::MARK).unwrap();
    assert!(kept == format::tables(), "doc/handoff.md is not what the tables say: run 'make doc'");
}
