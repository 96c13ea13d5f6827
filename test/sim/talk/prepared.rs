//! What clients do with prepared statements that the pooler keeps for them: the same few names and
//! texts in all hands, in batches and pipelines, used long after they were prepared.

use super::Words;
use crate::names::{Awaits, Name, Op, IN_USE, UNKNOWN};
use crate::texts::Text;
use pgturnstile::wire::write;

impl Words<'_> {
    /// One in three clients knows the unnamed statement only, as some drivers do.
    fn any_name(&mut self) -> Name {
        if self.client.keeps_to_unnamed() && self.dice.chance(80) {
            return Name::NONE;
        }
        let [one, two, three, long] = [0, 1, 2, Name::SHORT].map(Name::of);
        self.dice.pick(&[one, one, two, two, three, three, long, Name::NONE, Name::NONE])
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
                        self.prepare(name);
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
            let known = self.client.names.now.known.get(&name).copied();
            let settled = known.filter(|known| {
                let may_change = name == Name::NONE && self.client.is_uncertain(known);
                !may_change
            });
            match self.dice.below(12) {
                0 => self.close(name),
                // Whatever unnamed statement the server has is another client's.
                1 if name == Name::NONE && !self.client.names.now.has_unnamed => self.use_it(name),
                1..=3 => self.prepare(name),
                4 => {
                    self.prepare(name);
                    self.use_it(name);
                }
                5 => {
                    self.prepare(name);
                    self.describe(name);
                }
                6 if settled.is_some() => self.describe(name),
                _ if settled.is_some() => self.use_it(name),
                _ => {
                    self.prepare(name);
                    self.use_it(name);
                }
            }
        }
    }

    fn parse(&mut self, name: Name, text: Text) {
        let number = self.client.next_mark().number;
        write::packet(&mut self.out, b'P', |out| {
            write::text(out, name.text().as_bytes());
            write::text(out, text.sql().as_bytes());
            out.extend_from_slice(&text.types());
        });
        self.client.expect_of(b'P', number, Op::Prepare(name, text));
    }

    /// Parse, behind Close if the name is in use.
    fn prepare(&mut self, name: Name) {
        if name != Name::NONE && self.client.names.is_taken(name) {
            self.close(name);
        }
        let text = self.any_text();
        self.parse(name, text);
    }

    fn describe(&mut self, name: Name) {
        let number = self.client.next_mark().number;
        write::packet(&mut self.out, b'D', |out| {
            out.push(b'S');
            write::text(out, name.text().as_bytes());
        });
        self.client.expect_of(b'D', number, Op::Use(name));
    }

    fn close(&mut self, name: Name) {
        let number = self.client.next_mark().number;
        write::packet(&mut self.out, b'C', |out| {
            out.push(b'S');
            write::text(out, name.text().as_bytes());
        });
        self.client.expect_of(b'C', number, Op::Close(name));
    }

    /// Bind and Execute.
    fn use_it(&mut self, name: Name) {
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
            write::text(out, name.text().as_bytes());
            out.extend_from_slice(&[0, 0, 0, 1]);
            out.extend_from_slice(&(value.len() as u32).to_be_bytes());
            out.extend_from_slice(&value);
            out.extend_from_slice(&[0, 0]);
        });
        self.client.expect_of(b'B', mark.number, Op::Use(name));
        if self.dice.chance(30) {
            write::packet(&mut self.out, b'D', |out| {
                out.push(b'P');
                write::text(out, portal.as_bytes());
            });
            self.client.expect_of(b'D', mark.number, Op::Use(name));
        }
        self.execute(mark.number, &portal);
        self.client.amend(Op::Use(name));
    }

    /// The pooler closes whoever uses a name twice, or one that it doesn't have.
    fn mistake(&mut self) -> &'static str {
        if self.client.names.is_clearing() || self.dice.chance(50) {
            self.elements(4);
            self.sync();
            return "statements";
        }
        let name = Name::of(self.dice.below(Name::SHORT + 1));
        if self.dice.chance(30) {
            self.elements(2);
        }
        let why = match self.client.names.now.known.contains_key(&name) {
            true => {
                let text = self.any_text();
                self.parse(name, text);
                IN_USE
            }
            false if self.dice.chance(50) => {
                self.describe(name);
                UNKNOWN
            }
            false => {
                self.use_it(name);
                UNKNOWN
            }
        };
        if self.client.names.forgiven {
            self.sync();
            return "forgiven mistake";
        }
        self.client.names.mistake = Some(why);
        self.client.expect(b'!', self.client.last);
        "mistake"
    }

    /// DEALLOCATE ALL, simple or as a statement.
    fn clear(&mut self) -> &'static str {
        if self.dice.chance(50) {
            self.simple("DEALLOCATE ALL");
            self.client.amend(Op::Clear);
        } else {
            let Some(text) = Text::of("DEALLOCATE ALL") else { return "" };
            self.parse(Name::NONE, text);
            self.use_it(Name::NONE);
            self.client.amend(Op::Clear);
            self.sync();
        }
        self.go_on_behind();
        "DEALLOCATE ALL"
    }

    /// All names are being forgotten; new ones are given at once, or later.
    fn go_on_behind(&mut self) {
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
        self.client.amend(Op::Clear);
        self.go_on_behind();
        "DISCARD ALL"
    }

    /// DEALLOCATE of one name, as SQL.
    fn deallocate(&mut self) -> &'static str {
        let name = Name::of(self.dice.below(Name::SHORT));
        let number = self.client.next_mark().number;
        let prepare = self.dice.pick(&["", "", "PREPARE "]);
        let end = self.dice.pick(&["", ";"]);
        let name_text = name.text();
        write::query(&mut self.out, format!("DEALLOCATE {prepare}{name_text}{end}").as_bytes());
        self.client.expect_of(b'Q', number, Op::Forget(name));
        if self.dice.chance(50) {
            self.elements(3);
            self.sync();
        }
        "DEALLOCATE"
    }
}
