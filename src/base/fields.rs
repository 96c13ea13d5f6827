//! Tagged fields: how a process tells its successor what it knows (doc/handoff.md). A field is a
//! tag (2 bytes), the length of its value (4 bytes), the value; numbers are big endian. Who reads
//! skips tags that it does not know, so that neighbouring versions understand each other.

use super::Micros;

/// What a tag means: an entry of the tables that doc/handoff.md is made from.
#[derive(Clone, Copy, Debug)]
pub struct Tag {
    /// The number, never used again for anything else.
    pub tag: u16,
    /// Its name.
    pub name: &'static str,
    /// What the value is.
    pub what: &'static str,
}

/// Declares tags as constants and as a table.
#[macro_export]
macro_rules! tags {
    ($(#[$doc:meta])* $table:ident: $($tag:literal $name:ident $what:literal,)+) => {
        $(const $name: u16 = $tag;)+
        $(#[$doc])*
        pub const $table: &[$crate::base::fields::Tag] = &[$($crate::base::fields::Tag {
            tag: $tag,
            name: stringify!($name),
            what: $what,
        }),+];
    };
}

/// Fields that are being written.
#[derive(Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
}

impl Fields {
    /// No fields yet, in the room of others.
    pub fn over(mut bytes: Vec<u8>) -> Fields {
        bytes.clear();
        Fields { bytes }
    }

    /// A field with this value.
    pub fn put(&mut self, tag: u16, value: &[u8]) {
        self.put_parts(tag, [value]);
    }

    /// A field whose value consists of these, one behind the other.
    pub fn put_parts<const N: usize>(&mut self, tag: u16, parts: [&[u8]; N]) {
        self.group(tag, |fields| {
            parts.iter().for_each(|part| fields.bytes.extend_from_slice(part))
        });
    }

    /// A field with this value, if there is one.
    pub fn put_some(&mut self, tag: u16, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.put(tag, value);
        }
    }

    /// A number without its leading zero bytes; zero is an empty value.
    pub fn number(&mut self, tag: u16, number: u64) {
        let bytes = number.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        self.put(tag, bytes.get(zeros..).unwrap_or_default());
    }

    /// A number, if it is not zero: who reads takes what is missing for zero.
    pub fn count(&mut self, tag: u16, number: u64) {
        if number != 0 {
            self.number(tag, number);
        }
    }

    /// Something that is true; what is not is left out.
    pub fn flag(&mut self, tag: u16, is_true: bool) {
        if is_true {
            self.put(tag, b"");
        }
    }

    /// How long ago something was, in microseconds; the clock of another process is another one.
    pub fn since(&mut self, tag: u16, time: Micros, now: Micros) {
        self.number(tag, now.since(time).0);
    }

    /// As `since`, of something that has happened.
    pub fn since_some(&mut self, tag: u16, time: Option<Micros>, now: Micros) {
        if let Some(time) = time {
            self.since(tag, time, now);
        }
    }

    /// A field whose value is fields, or whatever `write` appends.
    pub fn group(&mut self, tag: u16, write: impl FnOnce(&mut Fields)) {
        self.bytes.extend_from_slice(&tag.to_be_bytes());
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(self);
        let len = self.bytes.len().saturating_sub(at).saturating_sub(4);
        // 4 GB of one connection do not fit into memory that is in use.
        let len = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
        for (to, from) in self.bytes.iter_mut().skip(at).zip(len) {
            *to = from;
        }
    }

    /// What has been written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// A field that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its tag.
    pub tag: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Field<'a> {
    /// The number that it is; 0 if it has more than eight bytes, which no number has.
    pub fn number(&self) -> u64 {
        match self.value.len() {
            0..=8 => self.value.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
            _ => 0,
        }
    }

    /// A number of a smaller type; its largest value if it does not fit.
    pub fn number_u32(&self) -> u32 {
        u32::try_from(self.number()).unwrap_or(u32::MAX)
    }

    /// A text; what is not UTF-8 in it is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value).into_owned()
    }

    /// A time that was so long ago.
    pub fn since(&self, now: Micros) -> Micros {
        Micros(now.0.saturating_sub(self.number()))
    }

    /// The fields that it consists of.
    pub fn fields(&self) -> Reader<'a> {
        read(self.value)
    }
}

/// Walks over fields. It ends at the first that is not complete: see [`is_whole`].
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// Reads fields.
pub fn read(bytes: &[u8]) -> Reader<'_> {
    Reader { rest: bytes }
}

/// True if the bytes are complete fields and nothing else; what is in groups is not looked at.
pub fn is_whole(bytes: &[u8]) -> bool {
    let mut reader = read(bytes);
    while reader.next().is_some() {}
    reader.rest.is_empty()
}

impl<'a> Iterator for Reader<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let (tag, rest) = self.rest.split_first_chunk::<2>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
        let (value, rest) = rest.split_at_checked(len)?;
        self.rest = rest;
        Some(Field { tag: u16::from_be_bytes(*tag), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    tags! {
        #[expect(unreachable_pub, reason = "other tables are read by others")]
        TAGS:
        1 NAME "a name",
        7 COUNT "how many",
        9 AGE "when",
        12 INNER "more",
        13 MARKED "a mark",
    }

    #[test]
    fn what_is_written_is_read() {
        let now = Micros(5_000_000);
        let mut fields = Fields::default();
        fields.put(NAME, "Zoë".as_bytes());
        fields.number(COUNT, 0);
        fields.number(COUNT, u64::MAX);
        fields.count(COUNT, 0);
        fields.since(AGE, Micros(4_999_000), now);
        fields.since_some(AGE, None, now);
        fields.flag(MARKED, false);
        fields.flag(MARKED, true);
        fields.put_some(NAME, None);
        fields.group(INNER, |inner| inner.group(INNER, |inner| inner.number(COUNT, 300)));
        let bytes = fields.into_bytes();
        assert!(is_whole(&bytes));
        let all: Vec<Field<'_>> = read(&bytes).collect();
        let tags: Vec<u16> = all.iter().map(|field| field.tag).collect();
        assert_eq!(tags, [NAME, COUNT, COUNT, AGE, MARKED, INNER]);
        assert_eq!((all[0].text().as_str(), all[1].number()), ("Zoë", 0));
        assert_eq!((all[2].number(), all[2].number_u32()), (u64::MAX, u32::MAX));
        assert_eq!(all[3].since(Micros(9_000_000)), Micros(8_999_000));
        assert_eq!(all[3].since(Micros(10)), Micros(0));
        let inner = all[5].fields().next().unwrap().fields().next().unwrap();
        assert_eq!((inner.value, inner.number()), (&[1, 44][..], 300));
        assert_eq!((TAGS.len(), TAGS[1].name, TAGS[1].tag), (5, "COUNT", 7));
    }

    #[test]
    fn what_is_cut_off_is_seen() {
        let mut fields = Fields::default();
        fields.put(NAME, b"abc");
        fields.put(NAME, b"");
        let bytes = fields.into_bytes();
        for len in 0..bytes.len() {
            let whole = len == 0 || len == 9;
            assert_eq!(is_whole(&bytes[..len]), whole, "{len}");
        }
        assert!(!is_whole(b"\0\x01\xff\xff\xff\xff"));
        assert_eq!(Field { tag: 1, value: &[1; 9] }.number(), 0);
    }
}
