//! `make doc`: rewrites the files that are made from tables.

use pgturnstile::config::manual;
use std::fs;
use std::io;

fn main() -> io::Result<()> {
    fs::write("etc/pgturnstile.ini", manual::sample_ini())?;
    fs::write("doc/pgturnstile.5", manual::manual())
}
