//! What the model clients say: queries of all kinds, pipelines, COPY, and now and then nonsense.

use crate::client::{Client, Expected, Phase};
use crate::dice::Dice;
use crate::names::Op;
use crate::speech::{self, Mark};
use pgturnstile::wire::startup::{CANCEL_REQUEST, SSL_REQUEST};
use pgturnstile::wire::write;

/// Values that clients give to application_name.
const NAMES: [&str; 4] = ["red", "green", "blue", ""];
/// A parameter that is not always tracked, and the values that clients give to it.
pub const STYLE: &str = "IntervalStyle";
const STYLES: [&str; 3] = ["postgres", "iso_8601", "sql_standard"];
/// Values that clients give to TimeZone.
const ZONES: [&str; 3] = ["UTC", "Asia/Tokyo", "America/Lima"];

/// The first packets of a client.
pub fn opening(client: &mut Client, user: &str, dice: &mut Dice) {
    let mut out = Vec::new();
    if dice.chance(10) {
        client.asked_for_tls = true;
        out.extend_from_slice(&8_u32.to_be_bytes());
        out.extend_from_slice(&SSL_REQUEST.to_be_bytes());
        client.line.borrow_mut().say(&out);
        // What follows an SSLRequest has to await the answer.
        client.later = startup(client, user, dice);
        return;
    }
    let out = startup(client, user, dice);
    client.line.borrow_mut().say(&out);
}

fn startup(client: &Client, user: &str, dice: &mut Dice) -> Vec<u8> {
    let mut pairs = vec![("user", user), ("database", client.database.as_str())];
    if !client.is_plain && dice.chance(50) {
        pairs.push(("application_name", dice.pick(&NAMES)));
    }
    if !client.is_plain && dice.chance(30) {
        pairs.push(("TimeZone", dice.pick(&ZONES)));
    }
    if !client.is_plain && dice.chance(15) {
        pairs.push((STYLE, dice.pick(&STYLES)));
    }
    if dice.chance(2) {
        pairs.push(("TimeZone", "bad"));
    }
    let mut out = Vec::new();
    let pairs = pairs.iter().map(|(a, b)| (a.as_bytes(), b.as_bytes()));
    write::startup(&mut out, pairs);
    out
}

/// A cancel request as a connection's only packet.
pub fn cancel(client: &mut Client, key: u64) {
    client.phase = Phase::Mute;
    let mut out = Vec::new();
    write::cancel_request(&mut out, key);
    debug_assert_eq!(out[4..8], CANCEL_REQUEST.to_be_bytes());
    client.line.borrow_mut().say(&out);
}

/// A console's command.
pub fn command(client: &mut Client, text: &str) {
    client.next_mark();
    let number = client.last;
    let mut out = Vec::new();
    write::query(&mut out, text.as_bytes());
    client.expect(b'Q', number);
    client.line.borrow_mut().say(&out);
}

/// A console prepares a command, to execute it later.
pub fn prepare(client: &mut Client, text: &str) {
    client.next_mark();
    let number = client.last;
    let mut out = Vec::new();
    write::packet(&mut out, b'P', |out| {
        out.push(0);
        write::text(out, text.as_bytes());
        out.extend_from_slice(&[0, 0]);
    });
    write::packet(&mut out, b'B', |out| out.extend_from_slice(&[0; 8]));
    for tag in [b'P', b'B'] {
        client.expect(tag, number);
    }
    client.prepared = Some(text.to_owned());
    client.line.borrow_mut().say(&out);
}

/// A console executes what it has prepared; some have more to say than that.
pub fn execute(client: &mut Client, more: &[&str]) {
    let number = client.last;
    let mut out = Vec::new();
    write::packet(&mut out, b'E', |out| out.extend_from_slice(&[0; 5]));
    client.expect(b'E', number);
    write::packet(&mut out, b'S', |_| {});
    client.expect(b'S', number);
    for text in more {
        write::query(&mut out, text.as_bytes());
        client.expect(b'Q', number);
    }
    client.line.borrow_mut().say(&out);
}

/// What a client says in one go.
struct Words<'a> {
    client: &'a mut Client,
    dice: &'a mut Dice,
    out: Vec<u8>,
}

/// Has a client say something that fits its situation. Returns what it was, for the trace.
pub fn act(client: &mut Client, dice: &mut Dice) -> &'static str {
    if client.phase == Phase::Mute {
        return "";
    }
    if !client.later.is_empty() {
        if client.asked_for_tls {
            return "";
        }
        let later = std::mem::take(&mut client.later);
        client.line.borrow_mut().say(&later);
        return "sends the rest";
    }
    if client.phase != Phase::Ready || client.told.is_some() || client.database == "pgbouncer" {
        return "";
    }
    if client.must_wait() || client.names.mistake.is_some() {
        return "";
    }
    let mut words = Words { client, dice, out: Vec::new() };
    let what = words.choose();
    let Words { client, dice, out } = words;
    let cut = match dice.chance(10) {
        true => dice.below(out.len()),
        false => out.len(),
    };
    client.line.borrow_mut().say(&out[..cut]);
    client.later = out[cut..].to_vec();
    what
}

/// Has a client end what it has begun: nothing new, no errors of its own.
pub fn wind_up(client: &mut Client) {
    if client.asked_for_tls || client.phase == Phase::Mute {
        return;
    }
    let later = std::mem::take(&mut client.later);
    client.line.borrow_mut().say(&later);
    if client.phase != Phase::Ready || client.must_wait() || client.names.mistake.is_some() {
        return;
    }
    let mut dice = Dice::new(1);
    let mut words = Words { client, dice: &mut dice, out: Vec::new() };
    if words.client.copying.is_some() {
        words.end_copy(b'c');
    } else if words.client.unsynced {
        words.sync();
    } else if words.client.status != b'I' && words.client.expected.is_empty() {
        words.simple("ROLLBACK");
    }
    let out = words.out;
    client.line.borrow_mut().say(&out);
}

impl Words<'_> {
    fn choose(&mut self) -> &'static str {
        if self.client.copying.is_some() {
            return self.copy_data();
        }
        if self.client.unsynced {
            return match self.dice.below(3) {
                0 if self.client.expected.len() < 8 && self.client.names.are_kept() => {
                    self.prepared()
                }
                0 if self.client.expected.len() < 8 => self.series(false),
                _ => {
                    self.sync();
                    "Sync"
                }
            };
        }
        let copies = self.client.expected.iter().any(|e| e.copy.is_some());
        if copies || self.client.expected.len() > 8 {
            return "";
        }
        let often = if self.client.keeps_to_unnamed() { 90 } else { 60 };
        if self.client.names.are_kept() && self.dice.chance(often) {
            return self.prepared();
        }
        let choice = match self.client.status {
            b'I' => self.dice.below(16),
            _ => self.dice.below(9),
        };
        match choice {
            0 | 1 => self.any_query(),
            2 => {
                for _ in 0..=self.dice.below(3) {
                    self.any_query();
                }
                "queries"
            }
            3 => self.series(true),
            4 => self.series(false),
            5 => {
                for _ in 0..=self.dice.below(3) {
                    self.series(true);
                }
                "pipeline"
            }
            6 | 14 => self.copy_in(),
            7 | 8 if self.client.status != b'I' => self.end_transaction(),
            7 | 9 | 10 => self.simple("BEGIN"),
            8 => self.odd(),
            11 => {
                let command = match self.dice.chance(35) {
                    true => format!("SET {STYLE}='{}'", self.dice.pick(&STYLES)),
                    false => format!("SET application_name='{}'", self.dice.pick(&NAMES)),
                };
                self.client.unsure = true;
                self.simple(&command)
            }
            _ => self.any_query(),
        }
    }

    fn end_transaction(&mut self) -> &'static str {
        let command = self.dice.pick(&["COMMIT", "ROLLBACK", "COMMIT"]);
        self.simple(command)
    }

    fn request(&mut self, command: &str) -> (Mark, String) {
        let quiet = self.client.is_quiet() && !self.client.unsure && self.out.is_empty();
        let mark = self.client.next_mark();
        let mut expected = Vec::new();
        if quiet {
            for name in ["application_name", "TimeZone"] {
                if let Some(value) = self.client.params.get(name) {
                    expected.push((name.to_owned(), value.clone()));
                }
            }
            let style = self.client.params.get(STYLE).zip(self.client.styles);
            expected.extend(style.map(|(value, era)| (format!("{STYLE}/{era}"), value.clone())));
        }
        (mark, speech::request(mark, &expected, command))
    }

    fn simple(&mut self, command: &str) -> &'static str {
        let (mark, text) = self.request(command);
        write::query(&mut self.out, text.as_bytes());
        self.client.expect_of(b'Q', mark.number, Op::Query);
        "query"
    }

    fn any_command(&mut self) -> String {
        match self.dice.below(14) {
            0 => "FAIL".into(),
            1 => "MULTI 2".into(),
            2 | 3 => "SLOW 2".into(),
            4 => format!("COPYOUT {}", 1 + self.dice.below(4)),
            5 => "".into(),
            6 => "TOUCH".into(),
            7 => {
                self.client.unsure = true;
                format!("SET TimeZone='{}'", self.dice.pick(&ZONES))
            }
            8 if self.client.status == b'I' && !self.client.names.tracked => {
                self.client.unsure = true;
                "DISCARD ALL".into()
            }
            _ => format!("SELECT {}", self.dice.below(5)),
        }
    }

    fn any_query(&mut self) -> &'static str {
        let command = self.any_command();
        self.simple(&command)
    }

    fn parse_and_bind(&mut self, command: &str) -> (u32, String) {
        let (mark, text) = self.request(command);
        let portal = format!("p{}", mark.number);
        let (name, op) = match self.dice.chance(20) {
            true => {
                let op = if self.client.names.tracked { Op::PrepareOther } else { Op::None };
                (format!("s{}_{}", mark.client, mark.number), op)
            }
            false => (String::new(), Op::PrepareNone),
        };
        write::packet(&mut self.out, b'P', |out| {
            write::text(out, name.as_bytes());
            write::text(out, text.as_bytes());
            out.extend_from_slice(&[0, 0]);
        });
        write::packet(&mut self.out, b'B', |out| {
            write::text(out, portal.as_bytes());
            write::text(out, name.as_bytes());
            out.extend_from_slice(&[0; 6]);
        });
        self.client.expect_of(b'P', mark.number, op);
        self.client.expect(b'B', mark.number);
        (mark.number, portal)
    }

    fn execute(&mut self, number: u32, portal: &str) {
        write::packet(&mut self.out, b'E', |out| {
            write::text(out, portal.as_bytes());
            out.extend_from_slice(&[0; 4]);
        });
        self.client.expect(b'E', number);
    }

    /// Parse to Execute; then Sync, or Flush and the Sync later.
    fn series(&mut self, with_sync: bool) -> &'static str {
        let command = match self.dice.chance(8) {
            true => "PFAIL".into(),
            false => self.any_command(),
        };
        for _ in 0..=self.dice.below(2) {
            let (number, portal) = self.parse_and_bind(&command);
            if self.dice.chance(60) {
                write::packet(&mut self.out, b'D', |out| {
                    out.push(b'P');
                    write::text(out, portal.as_bytes());
                });
                self.client.expect(b'D', number);
            }
            self.execute(number, &portal);
            if self.dice.chance(10) {
                write::packet(&mut self.out, b'C', |out| {
                    out.push(b'P');
                    write::text(out, portal.as_bytes());
                });
                self.client.expect(b'C', number);
            }
        }
        self.client.unsynced = true;
        if with_sync {
            self.sync();
            return "series";
        }
        write::packet(&mut self.out, b'H', |_| {});
        "series without Sync"
    }

    fn sync(&mut self) {
        write::packet(&mut self.out, b'S', |_| {});
        let number = self.client.last;
        self.client.expect_of(b'S', number, Op::None);
        self.client.unsynced = false;
    }

    /// COPY from the client; data at once or when asked for, Sync before or after them.
    fn copy_in(&mut self) -> &'static str {
        let command = self.dice.pick(&["COPYIN 1", "COPYIN 9", "COPYIN 9", "SELECT 1", "FAIL"]);
        let with_data = self.dice.chance(40);
        let extended = self.dice.chance(50);
        let number = if extended {
            let (number, portal) = self.parse_and_bind(command);
            self.execute(number, &portal);
            number
        } else {
            self.simple(command);
            self.client.last
        };
        if let Some(last) = self.client.expected.back_mut() {
            last.copy = Some(with_data);
        }
        let sync_first = extended && (!with_data || self.dice.chance(30));
        if sync_first {
            write::packet(&mut self.out, b'S', |_| {});
            self.client.expected.push_back(Expected {
                tag: b'S',
                number,
                before_data: true,
                ..Expected::default()
            });
        }
        if with_data {
            for _ in 0..self.dice.below(4) {
                self.data(number);
            }
            write::packet(&mut self.out, b'c', |_| {});
            if extended {
                self.sync();
            } else if self.dice.chance(20) {
                self.any_query();
            }
            return "COPY with data";
        }
        "COPY"
    }

    fn data(&mut self, number: u32) {
        let client = self.client.number;
        let mut text = Mark { client, number }.to_string();
        text.extend(std::iter::repeat_n('y', self.dice.pick(&[0, 30, 300])));
        write::packet(&mut self.out, b'd', |out| out.extend_from_slice(text.as_bytes()));
    }

    fn copy_data(&mut self) -> &'static str {
        let number = self.client.copying.map_or(0, |copying| copying.number);
        match self.dice.below(4) {
            0 | 1 => {
                self.data(number);
                return "CopyData";
            }
            2 => self.end_copy(b'c'),
            _ => self.end_copy(b'f'),
        }
        "CopyDone or CopyFail"
    }

    fn end_copy(&mut self, tag: u8) {
        let Some(copying) = self.client.copying.take() else {
            return;
        };
        write::packet(&mut self.out, tag, |out| {
            if tag == b'f' {
                out.extend_from_slice(b"no more\0");
            }
        });
        if copying.extended {
            self.sync();
        }
    }

    /// Messages that are rare and allowed.
    fn odd(&mut self) -> &'static str {
        match self.dice.below(4) {
            0 => {
                self.client.next_mark();
                self.sync();
                "Sync alone"
            }
            1 => {
                let number = self.client.last;
                self.data(number);
                write::packet(&mut self.out, b'c', |_| {});
                "COPY data for nobody"
            }
            2 => {
                let mark = self.client.next_mark();
                write::packet(&mut self.out, b'F', |out| {
                    out.extend_from_slice(mark.to_string().as_bytes());
                });
                self.client.expect(b'F', mark.number);
                "function call"
            }
            _ => {
                let mark = self.client.next_mark();
                write::packet(&mut self.out, b'C', |out| {
                    out.push(b'S');
                    write::text(out, b"nothing");
                });
                self.client.expect(b'C', mark.number);
                self.sync();
                "Close"
            }
        }
    }
}

mod prepared;

/// Has a client send what it must not: the pooler closes it.
pub fn nonsense(client: &mut Client, dice: &mut Dice) {
    let bytes: &[u8] = dice.pick(&[
        &b"~\0\0\0\x04"[..],
        b"Q\0\0\0\x01",
        b"p\0\0\0\x05\0",
        b"Q\xff\xff\xff\xff",
        b"X\0\0\0\x04",
    ]);
    client.line.borrow_mut().say(bytes);
}
