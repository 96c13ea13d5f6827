//! Texts for people, made from the tables: the sample configuration and the manual page.

use super::entries::{Key, DATABASE_KEYS, PEER_KEYS, USER_KEYS};
use super::settings::{Param, When, PARAMS};
use std::fmt::{Display, Write};

/// Parameters that the sample sets: enough to start with.
const SAMPLE: &[(&str, &str)] = &[
    ("auth_file", "/etc/pgturnstile/userlist.txt"),
    ("auth_type", "md5"),
    ("listen_addr", "localhost"),
    ("listen_port", "6432"),
    ("logfile", "/var/log/pgturnstile/pgturnstile.log"),
    ("pidfile", "/var/run/pgturnstile/pgturnstile.pid"),
];

const SAMPLE_DATABASES: &str = "\
;; Databases: NAME = KEY=VALUE ...
[databases]

;; the database of the same name on this machine's Unix socket
;foodb =

;; another name, over TCP, always as one user
;bardb = host=localhost port=5432 dbname=bazdb user=bob password='it''s secret'

;; a name outside A-Z a-z 0-9 _ . * - needs apostrophes
;'my db' = host=localhost pool_size=50 pool_mode=transaction

;; every database that is not listed
;* = host=testserver
";

const SAMPLE_USERS: &str = "\
;; Users: NAME = KEY=VALUE ...
[users]

;user1 = pool_mode=transaction pool_size=10
";

const SAMPLE_PEERS: &str = "\
;; Processes that share an address: ID = KEY=VALUE ...
[peers]

;1 = host=/tmp port=6433
";

/// A commented `pgturnstile.ini` with every parameter. All but a usable minimum is commented out.
pub fn sample_ini() -> String {
    let mut text = Out(String::new());
    text.add(format_args!("{SAMPLE_DATABASES}\n"));
    sample_keys(&mut text, DATABASE_KEYS);
    text.add(format_args!("{SAMPLE_USERS}\n"));
    sample_keys(&mut text, USER_KEYS);
    text.add(format_args!("{SAMPLE_PEERS}\n"));
    sample_keys(&mut text, PEER_KEYS);
    text.add(";; Everything else\n[pgbouncer]\n");
    for param in PARAMS {
        let chosen = SAMPLE.iter().find(|(name, _)| *name == param.name);
        let (mark, value) = match chosen {
            Some((_, value)) => ("", *value),
            None => (";", param.default.unwrap_or_default()),
        };
        text.add("\n");
        comment(&mut text, param.help);
        if let Some(note) = note(param) {
            comment(&mut text, note);
        }
        let line = format!("{mark}{} = {value}", param.name);
        text.add(format_args!("{}\n", line.trim_end()));
    }
    text.0
}

/// The manual page of the configuration file, `pgturnstile.5`, in roff.
pub fn manual() -> String {
    let mut text = Out(String::new());
    text.add(".TH PGTURNSTILE 5 \"\" pgturnstile \"File formats\"\n.SH NAME\n");
    text.add("pgturnstile.ini \\- configuration of pgturnstile\n.SH DESCRIPTION\n");
    paragraphs(&mut text, DIALECT);
    text.add(".SH PARAMETERS\n");
    paragraphs(&mut text, PARAMETERS);
    for param in PARAMS {
        heading(&mut text, param.name);
        body(&mut text, param.help);
        let default = match param.default {
            None => "none".to_owned(),
            Some("") => "empty".to_owned(),
            Some(default) => default.to_owned(),
        };
        let when = match param.when {
            When::Reload => "at reload",
            When::Restart => "at start only",
        };
        let kind = format!("{}. Read: {when}", param.kind);
        facts(&mut text, &kind, &default);
    }
    text.add(".SH DATABASES\n");
    paragraphs(&mut text, DATABASES);
    manual_keys(&mut text, DATABASE_KEYS);
    text.add(".SH USERS\n");
    paragraphs(&mut text, USERS);
    manual_keys(&mut text, USER_KEYS);
    text.add(".SH PEERS\n");
    paragraphs(&mut text, PEERS);
    manual_keys(&mut text, PEER_KEYS);
    text.add(".SH SEE ALSO\n.BR pgturnstile (1)\n");
    text.0
}

const DIALECT: &[&str] = &[
    "The file consists of sections in brackets, each followed by lines of the form NAME = VALUE. \
     The sections are [pgbouncer], which must be there, [databases], [users] and [peers]; they may \
     come in any order and more than once.",
    "A comment starts with # or ; and stands on a line of its own. A value reaches to the end of \
     its line: no quotes are removed and no comment ends it. A name with characters other than \
     letters, digits and _ . * - is put in apostrophes.",
    "%include FILE reads another file in its place, up to ten levels deep. Relative names of files \
     are relative to the directory that the process was started in.",
    "Each [pgbouncer] header sets the parameters that have a default back to it. The first error \
     ends the reading; what stands in front of it is in force.",
];

const PARAMETERS: &[&str] = &[
    "Integers may be decimal, hexadecimal with 0x, or octal with a leading 0; there is no check of \
     ranges. A boolean is an integer, of which 0 is off. Times are seconds and may have a fraction.",
    "Parameters that are read at start only need a restart; until then new values are ignored \
     without a message. All others can also be changed with RELOAD and SET.",
];

const DATABASES: &[&str] = &[
    "Each line is NAME = STRING. NAME, of at most 63 bytes, is what clients ask for; pgbouncer is \
     reserved, and * stands for every name that is not listed.",
    "A string has keys and values, KEY=VALUE, separated by spaces; only the space separates. A \
     value with spaces is put in apostrophes, an apostrophe in it is doubled. Values can't be \
     empty. Numbers are decimal and times are whole seconds.",
];

const USERS: &[&str] = &["Each line is NAME = STRING, with strings as for databases."];

const PEERS: &[&str] = &[
    "Each line is ID = STRING, with strings as for databases. ID is a number from 1 to 65535, the \
     peer_id of another process.",
];

/// What the sample says about a parameter besides its help.
fn note(param: &Param) -> Option<&'static str> {
    (param.when == When::Restart).then_some("A change needs a restart.")
}

/// A text that grows.
struct Out(String);

impl Out {
    fn add(&mut self, text: impl Display) {
        // Writing to a string can't fail.
        let _ = write!(self.0, "{text}");
    }
}

/// A help text as comment lines of at most 80 characters.
fn comment(text: &mut Out, help: &str) {
    let mut line = String::from(";;");
    for word in help.split_whitespace() {
        if line.len() + word.len() >= 80 {
            text.add(format_args!("{line}\n"));
            line = String::from(";;");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.add(format_args!("{line}\n"));
}

fn sample_keys<E>(text: &mut Out, keys: &[Key<E>]) {
    let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
    comment(text, &format!("Keys: {}", names.join(", ")));
    text.add("\n");
}

fn manual_keys<E>(text: &mut Out, keys: &[Key<E>]) {
    for key in keys {
        heading(text, key.name);
        body(text, key.help);
        facts(text, key.kind, key.default);
    }
}

fn heading(text: &mut Out, name: &str) {
    text.add(format_args!(".TP\n.B {}\n", escape(name)));
}

fn facts(text: &mut Out, kind: &str, default: &str) {
    text.add(".br\n");
    body(text, &format!("Type: {kind}. Default: {default}"));
}

fn paragraphs(text: &mut Out, paragraphs: &[&str]) {
    for paragraph in paragraphs {
        text.add(".PP\n");
        body(text, paragraph);
    }
}

/// Words, wrapped so that sources stay readable.
fn body(text: &mut Out, words: &str) {
    let mut line = String::new();
    for word in words.split_whitespace() {
        if line.len() + word.len() >= 80 {
            text.add(format_args!("{}\n", escape(&line)));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    text.add(format_args!("{}\n", escape(&line)));
}

/// Keeps roff from reading anything into a line of text.
fn escape(line: &str) -> String {
    let escaped = line.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) {
        return format!("\\&{escaped}");
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Journal;
    use crate::config::{load, Settings};

    fn read(text: &str) -> (Settings, bool) {
        let mut file = |_: &str| Ok(text.as_bytes().to_vec());
        let (config, good) =
            load(&Settings::default(), "sample", true, &mut file, &mut Journal::default());
        (config.settings, good)
    }

    #[test]
    fn the_sample_can_be_read_and_sets_a_minimum() {
        let (settings, good) = read(&sample_ini());
        assert!(good);
        let mut set: Vec<&str> = PARAMS
            .iter()
            .filter(|param| !(param.same)(&settings, &Settings::default()))
            .map(|param| param.name)
            .collect();
        set.extend(["auth_type", "listen_port"]);
        set.sort_unstable();
        let want: Vec<&str> = SAMPLE.iter().map(|(name, _)| *name).collect();
        assert_eq!(set, want);
    }

    #[test]
    fn the_sample_offers_every_parameter_with_its_default() {
        let sample = sample_ini();
        for param in PARAMS {
            let line = format!("\n;{} = {}", param.name, param.default.unwrap_or_default());
            let chosen = format!("\n{} = ", param.name);
            assert!(sample.contains(line.trim_end()) || sample.contains(&chosen), "{}", param.name);
        }
        assert!(sample.lines().all(|line| line.len() <= 200));
    }

    #[test]
    fn the_manual_has_every_name_and_no_stray_request() {
        let manual = manual();
        let names = PARAMS.iter().map(|param| param.name);
        let names = names.chain(DATABASE_KEYS.iter().map(|key| key.name));
        let names = names.chain(USER_KEYS.iter().map(|key| key.name));
        for name in names.chain(PEER_KEYS.iter().map(|key| key.name)) {
            assert!(manual.contains(&format!("\n.B {name}\n")), "{name}");
        }
        let known = [".TH", ".SH", ".PP", ".TP", ".B", ".BR", ".br"];
        for line in manual.lines().filter(|line| line.starts_with(['.', '\''])) {
            let request = line.split(' ').next().unwrap_or_default();
            assert!(known.contains(&request), "{line}");
        }
    }

    #[test]
    fn roff_reads_nothing_into_text() {
        for (text, want) in [(".x", "\\&.x"), ("'x", "\\&'x"), ("a-b", "a\\-b"), ("a\\b", "a\\eb")]
        {
            assert_eq!(escape(text), want);
        }
    }
}
