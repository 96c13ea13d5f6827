//! What an old process is asked that goes on with its clients (`--adopt=soft`).

use super::{unexpected, Old};
use crate::core::record::Record;
use crate::wire::read::{lossy, ErrorFields};
use crate::wire::{write, Reader};
use std::os::fd::OwnedFd;

/// The first release of PgBouncer that knows SHUTDOWN WAIT_FOR_CLIENTS.
const FIRST: (u32, u32) = (1, 23);

impl Old {
    /// Refuses a process that can't go on with its clients alone. The error says what to do instead.
    pub fn check_version(&mut self) -> Result<(), String> {
        let version = self.version()?;
        match release(&version) {
            Some(found) if found < FIRST => Err(format!(
                "old process is {version}, which does not know SHUTDOWN WAIT_FOR_CLIENTS \
                 (PgBouncer does since {}.{}); use -R without --adopt=soft",
                FIRST.0, FIRST.1
            )),
            _ => Ok(()),
        }
    }

    /// What SHOW VERSION says; empty if that is no row.
    fn version(&mut self) -> Result<String, String> {
        self.ask("SHOW VERSION;")?;
        let mut version = String::new();
        loop {
            let (tag, body) = self.packet()?;
            match tag {
                b'D' => version = first_value(&body).unwrap_or_default(),
                b'T' | b'N' | b'S' | b'C' => {}
                b'E' => return Err(refusal(&body)),
                b'Z' => return Ok(version),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// The listening sockets alone. What else it hands over is closed at once, which its owner does
    /// not notice.
    pub fn listeners(&mut self) -> Result<Vec<OwnedFd>, String> {
        let rows = self.sockets_of(|record| matches!(record, Record::Listener))?;
        Ok(rows.into_iter().map(|row| row.socket).collect())
    }

    /// Has it go on with its clients and end when they have left. Both commands come in one piece,
    /// so that it accepts nobody in between. On failure it goes on as before.
    pub fn retire(&mut self) -> Result<(), String> {
        let mut packets = Vec::new();
        write::query(&mut packets, b"RESUME;");
        write::query(&mut packets, b"SHUTDOWN WAIT_FOR_CLIENTS;");
        self.say(&packets)?;
        // One that is ending already refuses to be resumed, but is.
        let _ = self.outcome()?;
        self.outcome()?
    }

    /// How a command has ended. Its ReadyForQuery is left, as that of the one before may have been.
    fn outcome(&mut self) -> Result<Result<(), String>, String> {
        loop {
            let (tag, body) = self.packet()?;
            match tag {
                b'C' => return Ok(Ok(())),
                b'E' => return Ok(Err(refusal(&body))),
                b'Z' | b'N' | b'S' => {}
                other => return Err(unexpected(other)),
            }
        }
    }
}

fn refusal(body: &[u8]) -> String {
    format!("old bouncer sent: {}", ErrorFields::read(body).line(": ").unwrap_or_default())
}

/// The first value of a DataRow.
fn first_value(body: &[u8]) -> Option<String> {
    let mut reader = Reader::new(body);
    let _count = reader.u16()?;
    let len = reader.u32()?;
    reader.bytes(usize::try_from(len).ok()?).map(lossy)
}

/// The release in a text such as `PgBouncer 1.18.0`; `None` if it can't be told.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("PgBouncer ")?.split('.');
    let leading = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text.get(..end)?.parse().ok()
    };
    Some((leading(numbers.next()?)?, leading(numbers.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_from_the_text_of_show_version() {
        for (text, want) in [
            ("PgBouncer 1.18.0", Some((1, 18))),
            ("PgBouncer 1.23", Some((1, 23))),
            ("PgBouncer 1.25.2 (pgturnstile 0.1.0)", Some((1, 25))),
            ("PgBouncer 1.24rc1", Some((1, 24))),
            ("PgBouncer 2", None),
            ("PgBouncer x.y", None),
            ("pgcat 1.18", None),
            ("", None),
        ] {
            assert_eq!(release(text), want, "{text}");
        }
    }
}
