//! The tables of doc/handoff.md: what is told in a handoff.

use crate::base::fields::Tag;
use crate::core::carry;
use crate::net::carry::{LISTENER, WIRE};
use std::fmt::Write;

/// What stands in front of the tables in doc/handoff.md.
pub const MARK: &str = "Made from the tables in the source (`make doc`).\n";

/// All tables of fields, as Markdown.
pub fn tables() -> String {
    let mut text = String::new();
    let own =
        [("column wire of a client or server", WIRE), ("column wire of a listener", LISTENER)];
    for (name, tags) in carry::TABLES.iter().copied().chain(own) {
        table(&mut text, name, tags);
    }
    text
}

fn table(text: &mut String, name: &str, tags: &[Tag]) {
    let mut tags: Vec<&Tag> = tags.iter().collect();
    tags.sort_by_key(|tag| tag.tag);
    // Writing to a text can't fail.
    let _ = write!(text, "\n### {name}\n\n| tag | name | value |\n|---|---|---|\n");
    for Tag { tag, name, what } in tags {
        let _ = writeln!(text, "| {tag} | `{name}` | {what} |");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tag_is_used_twice() {
        for (name, tags) in carry::TABLES.iter().copied().chain([("", WIRE), ("", LISTENER)]) {
            let mut numbers: Vec<u16> = tags.iter().map(|tag| tag.tag).collect();
            numbers.sort_unstable();
            let count = numbers.len();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "{name}");
        }
    }
}
