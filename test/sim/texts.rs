//! The statements that clients prepare. Few texts, the same for everybody; a server's rows carry
//! the print of what it really ran.

use crate::dice::Dice;

/// A text with the types of its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its place in `TEXTS`.
    id: usize,
    /// The place of its types in `TYPES`.
    types: usize,
}

/// Command and length of the filling, which makes some longer than any buffer.
const TEXTS: [(&str, usize); 15] = [
    ("SELECT 1", 0),
    ("SELECT 1", 1),
    ("SELECT 2", 40),
    ("FAIL", 0),
    ("PFAIL", 0),
    ("SELECT 1", 700),
    ("SLOW 2", 0),
    ("SELECT 0", 6000),
    ("", 3),
    ("BEGIN", 0),
    ("COMMIT", 0),
    ("ROLLBACK", 0),
    ("COPYOUT 2", 0),
    ("TOUCH", 0),
    ("DEALLOCATE ALL", 0),
];

/// Declared types.
const TYPES: [&[u32]; 3] = [&[], &[25], &[23, 25]];

/// What every one of these texts begins with.
const HEAD: &str = "/*~";

impl Text {
    /// One of the first so many; not the one that forgets all others.
    pub fn draw(texts: usize, dice: &mut Dice) -> Text {
        Text { id: dice.below(texts.min(Text::COUNT)), types: dice.pick(&[0, 0, 0, 1, 2]) }
    }

    /// A text that asks for this.
    pub fn of(command: &str) -> Option<Text> {
        let id = TEXTS.iter().position(|(known, _)| *known == command)?;
        Some(Text { id, types: 0 })
    }

    /// How many can be drawn.
    pub const COUNT: usize = TEXTS.len() - 1;

    /// The text itself.
    pub fn sql(self) -> String {
        let (command, len) = TEXTS[self.id];
        format!("{HEAD}{}{}*/{command}", self.id, "z".repeat(len))
    }

    /// Its types as Parse has them: their number, then each.
    pub fn types(self) -> Vec<u8> {
        let types = TYPES[self.types];
        let count = (types.len() as u16).to_be_bytes();
        let oids = types.iter().flat_map(|oid| oid.to_be_bytes());
        count.into_iter().chain(oids).collect()
    }

    /// What rows of it carry.
    pub fn print(self) -> String {
        print(&self.sql(), &self.types())
    }
}

/// True if this is one of those texts.
pub fn is_shared(sql: &str) -> bool {
    sql.starts_with(HEAD)
}

/// What rows of a statement with this text and these types carry.
pub fn print(sql: &str, types: &[u8]) -> String {
    let add = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let sum = sql.as_bytes().iter().chain(&[0]).chain(types).fold(0x811c_9dc5, add);
    format!("#{sum:08x}#")
}

/// The print in a packet, if there is one.
pub fn find_print(body: &[u8]) -> Option<&[u8]> {
    let at = body.iter().position(|byte| *byte == b'#')?;
    let found = body.get(at..at + 10)?;
    (found[9] == b'#').then_some(found)
}
