//! Every fuzz target over its saved corpus, and over changed copies of it: always the same ones, so
//! that a failure can be repeated. `make fuzz T=name` looks for new ones.

mod targets;

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

/// Changed inputs per target.
const CHANGED: usize = 10_000;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("test/fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = folder(target);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|_| panic!("{} is missing", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Random choices from a seed (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit.max(1)
    }

    /// A byte as it may matter: a border, a letter of the protocol, or any.
    fn byte(&mut self) -> u8 {
        let choice = self.below(4);
        match choice {
            0 => [0, 1, 4, 5, 127, 128, 255, b'\n', b',', b'=', b'"'][self.below(11)],
            1 => b"pQPBDESXCHdcfRZTKAIN"[self.below(20)],
            _ => self.below(256) as u8,
        }
    }

    /// Changes an input in one place; `other` is one to take a piece from.
    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(input.len() + 1);
        let end = at + self.below((input.len() - at).min(40) + 1);
        match self.below(6) {
            0 => input.insert(at, self.byte()),
            1 | 2 if at < input.len() => input[at] = self.byte(),
            3 => drop(input.drain(at..end)),
            4 => input.extend_from_within(at..end),
            _ => {
                let from = self.below(other.len());
                let to = from + self.below((other.len() - from).min(60) + 1);
                input.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
}

/// Runs a target; the input that breaks it is shown in a form that Rust reads.
fn run(name: &str, target: targets::Target, input: &[u8]) {
    if let Err(reason) = panic::catch_unwind(|| target(input)) {
        let input = input.escape_ascii();
        eprintln!("target {name} fails with this input: b\"{input}\"");
        panic::resume_unwind(reason);
    }
}

#[test]
fn saved_inputs_and_changed_copies_of_them_break_nothing() {
    for (name, target) in targets::TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "no corpus for {name}");
        corpus.iter().for_each(|input| run(name, *target, input));
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for _ in 0..CHANGED {
            let mut input = corpus[dice.below(corpus.len())].clone();
            for _ in 0..=dice.below(4) {
                let other = &corpus[dice.below(corpus.len())];
                dice.change(&mut input, other);
            }
            run(name, *target, &input);
        }
    }
}

#[test]
fn corpus_is_small_and_belongs_to_targets() {
    let names: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    for entry in fs::read_dir(folder("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&&*name), "{name} is no target");
        let size: usize = corpus(&name).iter().map(Vec::len).sum();
        assert!(size < 20_000, "the corpus of {name} has {size} bytes");
    }
}
