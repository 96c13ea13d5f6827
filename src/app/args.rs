//! The command line, read as GNU `getopt_long` reads it (config 1.1, 1.2): options and the file
//! name in any order, short options in bundles, long ones by any unambiguous prefix.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The release whose behaviour this program has; tools compare this text.
pub const COMPATIBLE: &str = "PgBouncer 1.25.2";
/// This program's own name and version.
pub const PRODUCT: &str = concat!("pgturnstile ", env!("CARGO_PKG_VERSION"));
/// What waits for events; stands where PgBouncer shows libevent.
const EVENTS: &str = "mio 1";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Args {
    /// Start pooling.
    Run(Run),
    /// Write the text to standard output, exit with 0.
    Print(String),
    /// A mistake: write the text to standard error (even with `-q`), exit with 1.
    Usage(String),
}

/// What `-R` takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adopt {
    /// Everything; the old process ends at once.
    #[default]
    Full,
    /// The listening sockets; the old process ends when its clients have left.
    Soft,
}

/// The switches of a normal start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The configuration file.
    pub config: PathBuf,
    /// `-d`: go to the background.
    pub daemon: bool,
    /// `-q`: nothing to standard error.
    pub quiet: bool,
    /// `-R`: take over from a running process.
    pub reboot: bool,
    /// `--adopt`: how much of it.
    pub adopt: Adopt,
    /// `-u`: overrides the setting `user`; empty means "don't switch".
    pub user: Option<String>,
    /// How many `-v`.
    pub verbose: i32,
}

/// One switch: its letter, its long name, and whether it takes an argument.
struct Switch {
    short: u8,
    long: &'static str,
    has_argument: bool,
}

const fn switch(short: u8, long: &'static str, has_argument: bool) -> Switch {
    Switch { short, long, has_argument }
}

/// In the order in which PgBouncer lists the candidates of an ambiguous prefix.
const SWITCHES: [Switch; 8] = [
    switch(b'q', "quiet", false),
    switch(b'v', "verbose", false),
    switch(b'h', "help", false),
    switch(b'd', "daemon", false),
    switch(b'V', "version", false),
    switch(b'R', "reboot", false),
    switch(b'u', "user", true),
    switch(NO_LETTER, "adopt", true),
];

/// Stands for the letter of a switch that has a long name only; no argument can contain it.
const NO_LETTER: u8 = 0;

/// Reads the command line; the first item of `argv` is the program's name as invoked. With
/// `posixly_correct` (environment POSIXLY_CORRECT) options end at the file name. `adns` names the
/// resolver for `-V`, for instance `libc-2.36`.
pub fn parse(argv: &[OsString], posixly_correct: bool, adns: &str) -> Args {
    let (program, items) = match argv.split_first() {
        Some((first, rest)) => (first.to_string_lossy().into_owned(), rest),
        None => ("pgturnstile".to_string(), argv),
    };
    let mut reader = Reader { program, adns, run: Run::default(), items: items.iter() };
    match reader.read(posixly_correct) {
        Ok(()) => Args::Run(reader.run),
        Err(answer) => answer,
    }
}

/// The text of `-V`: one component a line (config 1.2).
pub fn version_text(adns: &str) -> String {
    let tls = openssl::version::version();
    format!("{COMPATIBLE} ({PRODUCT})\n{EVENTS}\nadns: {adns}\ntls: {tls}\nsystemd: yes\n")
}

/// The last line of a start, without its level (config 6.7).
pub fn process_up(adns: &str) -> String {
    let tls = openssl::version::version();
    format!("process up: {COMPATIBLE}, {EVENTS} (epoll), adns: {adns}, tls: {tls}, {PRODUCT}")
}

struct Reader<'a> {
    program: String,
    adns: &'a str,
    run: Run,
    items: std::slice::Iter<'a, OsString>,
}

/// Each step either goes on or ends with the program's final answer.
type Step<T = ()> = Result<T, Args>;

impl Reader<'_> {
    fn read(&mut self, posixly_correct: bool) -> Step {
        self.read_items(posixly_correct)?;
        match self.run.adopt {
            Adopt::Soft if !self.run.reboot => Err(self.mistake("option '--adopt' needs '-R'")),
            _ => Ok(()),
        }
    }

    fn read_items(&mut self, posixly_correct: bool) -> Step {
        let mut files: Vec<&OsStr> = Vec::new();
        let mut options_ended = false;
        while let Some(item) = self.items.next() {
            match item.as_bytes() {
                _ if options_ended => files.push(item),
                b"--" => options_ended = true,
                [b'-', b'-', name @ ..] => self.long(name)?,
                [b'-', letters @ ..] if !letters.is_empty() => self.bundle(letters)?,
                _ => {
                    files.push(item);
                    options_ended = posixly_correct;
                }
            }
        }
        match files.as_slice() {
            [file] => {
                self.run.config = PathBuf::from(file);
                Ok(())
            }
            _ => Err(self.mistake("no configuration file specified")),
        }
    }

    /// Short options written together; what follows one that takes an argument is its argument.
    fn bundle(&mut self, letters: &[u8]) -> Step {
        let mut rest = letters;
        while let Some((&letter, after)) = rest.split_first() {
            let shown = String::from_utf8_lossy(std::slice::from_ref(&letter));
            let Some(switch) = SWITCHES.iter().find(|s| s.short == letter) else {
                return Err(self.mistake(&format!("invalid option -- '{shown}'")));
            };
            rest = after;
            let mut argument = String::new();
            if switch.has_argument {
                let missing = format!("option requires an argument -- '{shown}'");
                let attached = Some(after).filter(|after| !after.is_empty());
                argument = self.argument(attached, &missing)?;
                rest = &[];
            }
            self.apply(switch, argument)?;
        }
        Ok(())
    }

    /// A long option, `name` without its dashes and perhaps with `=argument`.
    fn long(&mut self, name: &[u8]) -> Step {
        let given = String::from_utf8_lossy(name);
        let mut parts = name.splitn(2, |&byte| byte == b'=');
        let prefix = parts.next().unwrap_or_default();
        let attached = parts.next();
        let candidates = candidates(prefix);
        let [switch] = candidates.as_slice() else {
            if candidates.is_empty() {
                return Err(self.mistake(&format!("unrecognized option '--{given}'")));
            }
            let mut text = format!("option '--{given}' is ambiguous; possibilities:");
            for candidate in candidates {
                text.push_str(&format!(" '--{}'", candidate.long));
            }
            return Err(self.mistake(&text));
        };
        let mut argument = String::new();
        if switch.has_argument {
            let missing = format!("option '--{}' requires an argument", switch.long);
            argument = self.argument(attached, &missing)?;
        } else if attached.is_some() {
            let text = format!("option '--{}' doesn't allow an argument", switch.long);
            return Err(self.mistake(&text));
        }
        self.apply(switch, argument)
    }

    /// An option's argument: the attached one, else the next item, whatever it looks like.
    fn argument(&mut self, attached: Option<&[u8]>, missing: &str) -> Step<String> {
        match attached.or_else(|| self.items.next().map(|item| item.as_bytes())) {
            Some(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            None => Err(self.mistake(missing)),
        }
    }

    fn apply(&mut self, switch: &Switch, argument: String) -> Step {
        match switch.short {
            b'q' => self.run.quiet = true,
            b'v' => self.run.verbose = self.run.verbose.saturating_add(1),
            b'd' => self.run.daemon = true,
            b'R' => self.run.reboot = true,
            b'u' => self.run.user = Some(argument),
            NO_LETTER => {
                self.run.adopt = match argument.as_str() {
                    "full" => Adopt::Full,
                    "soft" => Adopt::Soft,
                    _ => {
                        let text = "argument of option '--adopt' must be 'full' or 'soft'";
                        return Err(self.mistake(text));
                    }
                }
            }
            b'V' => return Err(Args::Print(version_text(self.adns))),
            _ => return Err(Args::Print(help_text(&self.program))),
        }
        Ok(())
    }

    fn mistake(&self, text: &str) -> Args {
        let program = &self.program;
        Args::Usage(format!("{program}: {text}\nTry \"{program} --help\" for more information.\n"))
    }
}

/// The switches that a long name may mean: the one with exactly this name, else all that begin so.
fn candidates(prefix: &[u8]) -> Vec<&'static Switch> {
    match SWITCHES.iter().find(|s| s.long.as_bytes() == prefix) {
        Some(exact) => vec![exact],
        None => SWITCHES.iter().filter(|s| s.long.as_bytes().starts_with(prefix)).collect(),
    }
}

fn help_text(program: &str) -> String {
    format!(
        "{program} is a connection pooler for PostgreSQL.

Usage:
  {program} [OPTION]... CONFIG_FILE

Options:
  -d, --daemon         run in background (as a daemon)
  -q, --quiet          run quietly
  -R, --reboot         do an online reboot
      --adopt=soft     with -R: let the old process finish with its clients, take
                       new ones only (--adopt=full: take over everything)
  -u, --user=USERNAME  assume identity of USERNAME
  -v, --verbose        increase verbosity
  -V, --version        show version, then exit
  -h, --help           show this help, then exit

Report bugs to <https://github.com/pgbouncer/pgbouncer/issues>.
PgBouncer home page: <https://www.pgbouncer.org/>
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str], posixly_correct: bool) -> Args {
        let mut argv = vec![OsString::from("./pgb")];
        argv.extend(line.iter().map(OsString::from));
        parse(&argv, posixly_correct, "libc-2.36")
    }

    /// A result in short: switches, user, file.
    fn shown(args: Args) -> String {
        let Args::Run(run) = args else {
            return format!("{args:?}");
        };
        let mut text = "v".repeat(run.verbose as usize);
        for (set, letter) in [(run.daemon, 'd'), (run.quiet, 'q'), (run.reboot, 'R')] {
            text.extend(set.then_some(letter));
        }
        if run.adopt == Adopt::Soft {
            text.push('s');
        }
        let user = run.user.map(|user| format!("<{user}>")).unwrap_or_default();
        format!("{text}{user} {}", run.config.display())
    }

    #[test]
    fn switches_are_understood_in_every_notation() {
        let cases: [(&[&str], &str); 20] = [
            (&["--adopt=soft", "-R", "x.ini"], "Rs x.ini"),
            (&["-R", "x.ini", "--ad", "soft"], "Rs x.ini"),
            (&["--adopt=soft", "--adopt=full", "x.ini"], " x.ini"),
            (&["x.ini"], " x.ini"),
            (&["-"], " -"),
            (&["--", "-q"], " -q"),
            (&["-q", "x.ini"], "q x.ini"),
            (&["x.ini", "-q"], "q x.ini"),
            (&["x.ini", "--qu"], "q x.ini"),
            (&["-Rdq", "x.ini"], "dqR x.ini"),
            (&["--verb", "-vv", "x.ini"], "vvv x.ini"),
            (&["--user=ann", "x.ini"], "<ann> x.ini"),
            (&["--u", "ann", "x.ini"], "<ann> x.ini"),
            (&["-u", "bob", "-uann", "x.ini"], "<ann> x.ini"),
            (&["-u", "", "x.ini"], "<> x.ini"),
            (&["--user=", "x.ini"], "<> x.ini"),
            (&["--user=a=b", "x.ini"], "<a=b> x.ini"),
            (&["-u", "--", "x.ini"], "<--> x.ini"),
            (&["-vuann", "x.ini"], "v<ann> x.ini"),
            (&["-u", "-q", "x.ini"], "<-q> x.ini"),
        ];
        for (line, want) in cases {
            assert_eq!(shown(parsed(line, false)), want, "{line:?}");
        }
    }

    #[test]
    fn mistakes_get_the_exact_two_lines() {
        let cases: [(&[&str], &str); 18] = [
            (&["--adopt=soft", "x"], "option '--adopt' needs '-R'"),
            (&["-R", "--adopt=hard", "x"], "argument of option '--adopt' must be 'full' or 'soft'"),
            (&[], "no configuration file specified"),
            (&["a", "b"], "no configuration file specified"),
            (&["--", "-q", "x"], "no configuration file specified"),
            (&["-x"], "invalid option -- 'x'"),
            (&["-qx", "a"], "invalid option -- 'x'"),
            (&["-x", "-V"], "invalid option -- 'x'"),
            (&["--foo"], "unrecognized option '--foo'"),
            (&["--foo=1", "-V"], "unrecognized option '--foo=1'"),
            (&["-u"], "option requires an argument -- 'u'"),
            (&["x", "-qu"], "option requires an argument -- 'u'"),
            (&["--user"], "option '--user' requires an argument"),
            (&["--us"], "option '--user' requires an argument"),
            (&["--quiet=1", "x"], "option '--quiet' doesn't allow an argument"),
            (&["--qu=", "x"], "option '--quiet' doesn't allow an argument"),
            (&["--ver"], "option '--ver' is ambiguous; possibilities: '--verbose' '--version'"),
            (
                &["--=x"],
                "option '--=x' is ambiguous; possibilities: '--quiet' '--verbose' '--help' \
                 '--daemon' '--version' '--reboot' '--user' '--adopt'",
            ),
        ];
        for (line, want) in cases {
            let text = format!("./pgb: {want}\nTry \"./pgb --help\" for more information.\n");
            assert_eq!(parsed(line, false), Args::Usage(text), "{line:?}");
        }
    }

    #[test]
    fn version_and_help_act_where_they_are_met() {
        let version = version_text("libc-2.36");
        assert!(version.starts_with("PgBouncer 1.25.2 (pgturnstile "), "{version}");
        assert!(version.contains("\nadns: libc-2.36\ntls: OpenSSL "), "{version}");
        for line in [&["-V", "junk", "junk"][..], &["--vers", "-x"], &["a", "b", "-qV"]] {
            assert_eq!(parsed(line, false), Args::Print(version.clone()), "{line:?}");
        }
        for line in [&["-h"][..], &["-qh", "-x"], &["--he", "a", "b"]] {
            let Args::Print(text) = parsed(line, false) else { panic!("{line:?}") };
            assert!(text.starts_with("./pgb is a connection pooler for PostgreSQL.\n\nUsage:\n"));
            assert!(text.ends_with("home page: <https://www.pgbouncer.org/>\n"), "{text}");
        }
    }

    #[test]
    fn posix_order_ends_options_at_the_file_name() {
        let Args::Usage(text) = parsed(&["x.ini", "-q"], true) else { panic!() };
        assert!(text.contains("no configuration file specified"), "{text}");
        assert_eq!(parsed(&["-q", "x.ini"], true), parsed(&["x.ini", "-q"], false));
    }

    #[test]
    fn named_event_library_is_the_one_that_is_linked() {
        let lock = include_str!("../../Cargo.lock");
        let version = EVENTS.trim_start_matches("mio ");
        assert!(lock.contains(&format!("name = \"mio\"\nversion = \"{version}.")));
    }
}
