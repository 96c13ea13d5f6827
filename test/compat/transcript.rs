//! Transcripts of sessions, with everything masked that may differ from run to run.

use std::path::PathBuf;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::raw::{Login, Raw};
use crate::rig::wire::{query, Msg};

/// What was seen, line by line.
#[derive(Default)]
pub(crate) struct Transcript {
    lines: Vec<String>,
}

/// The older program: `PGBOUNCER_REFERENCE`, else where Debian puts it.
pub(crate) fn reference() -> PathBuf {
    let path = std::env::var_os("PGBOUNCER_REFERENCE").unwrap_or("/usr/sbin/pgbouncer".into());
    let path = PathBuf::from(path);
    assert!(path.exists(), "no {}; set PGBOUNCER_REFERENCE", path.display());
    path
}

/// Plays `session` against both programs, each with a fresh process, and compares.
pub(crate) fn same(setup: &Setup, session: impl Fn(&Pooler, &mut Transcript)) {
    let play = |pooler: &Pooler| {
        let mut transcript = Transcript::default();
        session(pooler, &mut transcript);
        transcript.closes(pooler);
        transcript.lines
    };
    let expected = play(&Pooler::start_program(&reference(), setup));
    let got = play(&Pooler::start(setup));
    assert!(expected.len() > 3, "nothing was compared: {expected:?}");
    for (n, (want, have)) in expected.iter().zip(&got).enumerate() {
        let before = expected[..n].join("\n");
        assert_eq!(want, have, "line {n} (left: reference), behind\n{before}\n");
    }
    assert_eq!(expected.len(), got.len(), "reference: {expected:#?}\nunder test: {got:#?}");
}

/// Replaces everything behind each `key` up to a comma.
fn masked(text: &str, keys: &[&str]) -> String {
    let part = |part: &str| {
        let key = keys.iter().find(|key| part.starts_with(**key));
        key.map_or_else(|| part.to_owned(), |key| format!("{key}?"))
    };
    text.split(',').map(part).collect::<Vec<_>>().join(",")
}

/// A message as a line. Salts, nonces, signatures and keys become `?`; so does the console's version.
fn line(msg: &Msg) -> String {
    let code = msg.body.get(..4).map_or(0, |b| u32::from_be_bytes(b.try_into().unwrap()));
    let text = String::from_utf8_lossy(msg.body.get(4..).unwrap_or_default()).into_owned();
    match (msg.tag, code) {
        (b'K', _) => format!("K {} bytes", msg.body.len()),
        (b'R', 5) => format!("R 5 {} bytes", msg.body.len()),
        (b'R', 11) => format!("R 11 {}", masked(&text, &["r=", "s="])),
        (b'R', 12) => format!("R 12 {}", masked(&text, &["v="])),
        (b'T', _) => format!("T {}", columns(&msg.body)),
        (b'S', _) if msg.parameter().1.ends_with("/bouncer") => "S server_version".to_owned(),
        _ => format!("{} {}", char::from(msg.tag), msg.body.escape_ascii()),
    }
}

/// The columns of a RowDescription without the table's OID, which differs per run.
fn columns(body: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = &body[2..];
    while let Some(end) = rest.iter().position(|b| *b == 0) {
        let (name, tail) = rest.split_at(end + 1);
        text += &format!("{} {} ", name.escape_ascii(), tail[4..18].escape_ascii());
        rest = &tail[18..];
    }
    text
}

impl Transcript {
    /// A line of the session's own.
    pub(crate) fn note(&mut self, text: &str) {
        self.lines.push(format!("-- {text}"));
    }

    /// Messages. Neighbouring ParameterStatus messages are sorted: their order is a documented difference.
    pub(crate) fn take(&mut self, msgs: &[Msg]) {
        for run in msgs.chunk_by(|a, b| a.tag == b'S' && b.tag == b'S') {
            let mut lines: Vec<String> = run.iter().map(line).collect();
            lines.sort();
            self.lines.extend(lines);
        }
    }

    /// Messages up to ReadyForQuery.
    pub(crate) fn until_ready(&mut self, raw: &mut Raw) {
        let msgs = raw.until(b'Z');
        self.take(&msgs);
    }

    /// Messages up to the end of the connection.
    pub(crate) fn until_closed(&mut self, raw: &mut Raw) {
        let msgs = raw.rest();
        self.take(&msgs);
        self.note("closed");
    }

    /// A simple query and its answer.
    pub(crate) fn query(&mut self, raw: &mut Raw, sql: &str) {
        self.note(sql);
        raw.send(&query(sql));
        self.until_ready(raw);
    }

    /// The outcome of a login; the client, if it got in.
    pub(crate) fn login(&mut self, name: &str, login: Login) -> Option<Raw> {
        self.note(name);
        match login {
            Ok((raw, msgs)) => {
                self.take(&msgs);
                Some(raw)
            }
            Err(msgs) => {
                self.take(&msgs);
                self.note("closed");
                None
            }
        }
    }

    /// Sends bytes over a new connection and takes everything up to its end.
    pub(crate) fn throw(&mut self, mut raw: Raw, bytes: &[u8]) {
        self.note(&bytes.escape_ascii().to_string());
        raw.send(bytes);
        self.until_closed(&mut raw);
    }

    /// Why clients were closed, from the log; sorted, because clients may be closed in any order.
    fn closes(&mut self, pooler: &Pooler) {
        pooler.console().query("end of log");
        pooler.wait_log("invalid command 'end of log'");
        let log = pooler.log();
        let of_clients = log.lines().filter(|l| l.contains(" C-0x"));
        let texts = of_clients.filter_map(|l| {
            let at = l.find("closing because: ").or_else(|| l.find("pooler error: "))?;
            Some(l[at..].split(" (age=").next().unwrap_or_default().to_owned())
        });
        // When an end of file is noticed, and whether before the end of this log, is a matter of timing.
        let timed = ["close req", "client unexpected eof", "end of log"];
        let kept = |text: &String| !timed.iter().any(|t| text.contains(t));
        let mut texts: Vec<String> = texts.filter(kept).collect();
        texts.sort();
        self.lines.extend(texts);
    }
}
