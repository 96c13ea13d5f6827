//! What clients do with prepared statements that the pooler keeps for them: the same few names and
//! texts in all hands, in batches and pipelines, used long after they were prepared.

use super::Words;
use crate::client::Expected;
use crate::names::{Awaits, IN_USE, UNKNOWN};
use crate::texts::Text;
use pgturnstile::wire::write;

/// How many short names there are; the next is a long one, the last the unnamed statement's.
const SHORT: usize = 3;
/// Length of the long name.
const LONG: usize = 350;

/// A name by its number.
fn name(number: usize) -> String {
    match number {
        0..SHORT => format!("s{number}"),
        SHORT => "l".repeat(LONG),
        _ => String::new(),
    }
}

impl Words<'_> {
    /// One in three clients knows the unnamed statement only, as some drivers do.
    fn any_name(&mut self) -> String {
        if self.client.keeps_to_unnamed() && self.dice.chance(80) {
            return String::new();
        }
        name(self.dice.pick(&[0, 0, 1, 1, 2, 2, SHORT, SHORT + 1, SHORT + 1]))
    }

    fn any_text(&mut self) -> Text {
        Text::draw(self.client.texts, self.dice)
    }

    /// Something about prepared statements.
    pub(super) fn prepared(&mut self) -> &'static str {
        let quiet = self.client.is_quiet() && self.out.is_empty();
        let settled = quiet && self.client.status != b'E';
        match self.dice.below(40) {
            0 => self.mistake(),
            1 | 2 if settled => self.clear(),
            3 if settled && self.client.status == b'I' => self.discard(),
            4..=6 if settled => self.deallocate(),
            7..=9 => {
                for _ in 0..2 + self.dice.below(3) {
                    self.elements(3);
                    self.sync();
                }
                "pipeline of statements"
            }
            10..=17 => {
                match self.dice.chance(30) {
                    true => {
                        let name = self.any_name();
                        self.prepare(&name);
                    }
                    false => self.elements(3),
                }
                self.client.unsynced = true;
                self.client.names.awaits = Awaits::Flushed;
                write::packet(&mut self.out, b'H', |_| {});
                "statements and Flush"
            }
            _ => {
                self.elements(4);
                self.sync();
                "statements"
            }
        }
    }

    /// Part of a batch.
    fn elements(&mut self, most: usize) {
        for _ in 0..=self.dice.below(most) {
            let name = self.any_name();
            let known = self.client.names.known.get(&name).copied();
            let settled = known.filter(|known| {
                let may_change = name.is_empty() && self.client.is_uncertain(known);
                !may_change
            });
            match self.dice.below(12) {
                0 => self.close(&name),
                // Whatever unnamed statement the server has is another client's.
                1 if name.is_empty() && !self.client.names.has_unnamed => self.use_it(&name),
                1..=3 => self.prepare(&name),
                4 => {
                    self.prepare(&name);
                    self.use_it(&name);
                }
                5 => {
                    self.prepare(&name);
                    self.describe(&name);
                }
                6 if settled.is_some() => self.describe(&name),
                _ if settled.is_some() => self.use_it(&name),
                _ => {
                    self.prepare(&name);
                    self.use_it(&name);
                }
            }
        }
    }

    fn about(&mut self, tag: u8, number: u32, name: &str) {
        let known = self.client.names.known.get(name);
        let expected = Expected {
            tag,
            number,
            text: known.map(|known| known.text),
            may_miss: known.is_none() || self.client.names.is_clearing(),
            ..Expected::default()
        };
        self.client.expected.push_back(expected);
    }

    fn parse(&mut self, name: &str, text: Text) -> u32 {
        let number = self.client.next_mark().number;
        write::packet(&mut self.out, b'P', |out| {
            write::text(out, name.as_bytes());
            write::text(out, text.sql().as_bytes());
            out.extend_from_slice(&text.types());
        });
        number
    }

    /// Parse, behind Close if the name is in use.
    fn prepare(&mut self, name: &str) {
        if !name.is_empty() && self.client.names.is_taken(name) {
            self.close(name);
        }
        let text = self.any_text();
        let number = self.parse(name, text);
        self.client.names.prepare(name, text, number);
        self.client.expected.push_back(Expected {
            tag: b'P',
            number,
            text: Some(text),
            ..Expected::default()
        });
    }

    fn describe(&mut self, name: &str) {
        let number = self.client.next_mark().number;
        write::packet(&mut self.out, b'D', |out| {
            out.push(b'S');
            write::text(out, name.as_bytes());
        });
        self.about(b'D', number, name);
    }

    fn close(&mut self, name: &str) {
        let number = self.client.next_mark().number;
        write::packet(&mut self.out, b'C', |out| {
            out.push(b'S');
            write::text(out, name.as_bytes());
        });
        self.client.expect(b'C', number);
        self.client.names.known.remove(name);
    }

    /// Bind and Execute.
    fn use_it(&mut self, name: &str) {
        let mark = self.client.next_mark();
        let portal = match self.dice.chance(50) {
            true => format!("p{}", mark.number),
            false => String::new(),
        };
        let len = self.dice.pick(&[0, 0, 0, 20, 900]);
        let mut value = mark.to_string().into_bytes();
        value.extend(std::iter::repeat_n(b'v', len));
        write::packet(&mut self.out, b'B', |out| {
            write::text(out, portal.as_bytes());
            write::text(out, name.as_bytes());
            out.extend_from_slice(&[0, 0, 0, 1]);
            out.extend_from_slice(&(value.len() as u32).to_be_bytes());
            out.extend_from_slice(&value);
            out.extend_from_slice(&[0, 0]);
        });
        self.about(b'B', mark.number, name);
        if self.dice.chance(30) {
            write::packet(&mut self.out, b'D', |out| {
                out.push(b'P');
                write::text(out, portal.as_bytes());
            });
            self.about(b'D', mark.number, name);
        }
        self.execute(mark.number, &portal);
        if let Some(last) = self.client.expected.back_mut() {
            last.text = self.client.names.known.get(name).map(|known| known.text);
        }
    }

    /// The pooler closes whoever uses a name twice, or one that it doesn't have.
    fn mistake(&mut self) -> &'static str {
        if self.client.names.is_clearing() || self.dice.chance(50) {
            self.elements(4);
            self.sync();
            return "statements";
        }
        let name = name(self.dice.below(SHORT + 1));
        if self.dice.chance(30) {
            self.elements(2);
        }
        let why = match self.client.names.known.contains_key(&name) {
            true => {
                let text = self.any_text();
                self.parse(&name, text);
                IN_USE
            }
            false if self.dice.chance(50) => {
                self.describe(&name);
                UNKNOWN
            }
            false => {
                self.use_it(&name);
                UNKNOWN
            }
        };
        self.client.names.mistake = Some(why);
        self.client.expect(b'!', self.client.last);
        "mistake"
    }

    /// DEALLOCATE ALL, simple or as a statement.
    fn clear(&mut self) -> &'static str {
        if self.dice.chance(50) {
            self.simple("DEALLOCATE ALL");
        } else {
            let name = name(SHORT + 1);
            let Some(text) = Text::of("DEALLOCATE ALL") else { return "" };
            let number = self.parse(&name, text);
            self.client.names.prepare(&name, text, number);
            self.client.expect(b'P', number);
            self.use_it(&name);
            self.sync();
        }
        self.go_on_behind();
        "DEALLOCATE ALL"
    }

    /// All names are being forgotten; new ones are given at once, or later.
    fn go_on_behind(&mut self) {
        self.client.names.clear(self.client.last);
        if self.dice.chance(50) {
            self.elements(3);
            self.sync();
        } else {
            self.client.names.awaits = Awaits::All;
        }
    }

    fn discard(&mut self) -> &'static str {
        self.client.unsure = true;
        self.simple("DISCARD ALL");
        self.go_on_behind();
        "DISCARD ALL"
    }

    /// DEALLOCATE of one name, as SQL.
    fn deallocate(&mut self) -> &'static str {
        let name = name(self.dice.below(SHORT));
        let number = self.client.next_mark().number;
        let prepare = self.dice.pick(&["", "", "PREPARE "]);
        let end = self.dice.pick(&["", ";"]);
        write::query(&mut self.out, format!("DEALLOCATE {prepare}{name}{end}").as_bytes());
        let known = self.client.names.known.remove(&name);
        self.client.expect(b'Q', number);
        if let Some(last) = self.client.expected.back_mut() {
            last.may_miss = known.is_none();
        }
        self.client.end_unnamed();
        if self.dice.chance(50) {
            self.elements(3);
            self.sync();
        }
        "DEALLOCATE"
    }
}
