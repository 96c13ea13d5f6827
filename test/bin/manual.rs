//! `make doc`: rewrites the files that are made from tables.

use pgturnstile::app::format;
use pgturnstile::config::manual;
use std::fs;
use std::io;

fn main() -> io::Result<()> {
    fs::write("etc/pgturnstile.ini", manual::sample_ini())?;
    fs::write("doc/pgturnstile.5", manual::manual())?;
    let text = fs::read_to_string("doc/handoff.md")?;
    let (prose, _) = text.split_once(format::MARK).unwrap_or((&text, ""));
    fs::write("doc/handoff.md", [prose, format::MARK, &format::tables()].concat())
}
