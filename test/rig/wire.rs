//! Messages of the protocol as bytes, and messages read back.

/// One typed message.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Msg {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

impl std::fmt::Debug for Msg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = &self.body[..self.body.len().min(300)];
        write!(f, "{} \"{}\"", char::from(self.tag), body.escape_ascii())
    }
}

impl Msg {
    /// The field of an ErrorResponse or NoticeResponse, empty if missing.
    pub(crate) fn field(&self, key: u8) -> String {
        assert!(matches!(self.tag, b'E' | b'N'), "{self:?} has no fields");
        let fields = self.body.split(|b| *b == 0);
        let found = fields.filter_map(|f| f.strip_prefix(&[key])).next();
        String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
    }

    /// Name and value of a ParameterStatus.
    pub(crate) fn parameter(&self) -> (String, String) {
        assert_eq!(self.tag, b'S', "{self:?}");
        let mut parts = self.body.split(|b| *b == 0);
        let mut text = || String::from_utf8(parts.next().unwrap().to_vec()).unwrap();
        (text(), text())
    }

    /// The values of a DataRow, or the names of a RowDescription.
    pub(crate) fn cells(&self) -> Vec<Option<String>> {
        let mut rest = &self.body[2..];
        let count = u16::from_be_bytes([self.body[0], self.body[1]]);
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at(n);
            rest = tail;
            head
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut cell = || {
            let len = i32::from_be_bytes(take(4).try_into().unwrap());
            usize::try_from(len).ok().map(|len| text(take(len)))
        };
        match self.tag {
            b'D' => (0..count).map(|_| cell()).collect(),
            b'T' => column_names(&self.body[2..], count),
            _ => panic!("{self:?} has no cells"),
        }
    }
}

fn column_names(mut rest: &[u8], count: u16) -> Vec<Option<String>> {
    let mut names = Vec::new();
    for _ in 0..count {
        let end = rest.iter().position(|b| *b == 0).unwrap();
        names.push(Some(String::from_utf8_lossy(&rest[..end]).into_owned()));
        rest = &rest[end + 19..];
    }
    names
}

/// The tags of messages, as a word.
pub(crate) fn tags(msgs: &[Msg]) -> String {
    msgs.iter().map(|m| char::from(m.tag)).collect()
}

/// What [`last_error`] makes of a fault that the pooler itself has found.
pub(crate) fn fatal(text: &str) -> (String, String, String) {
    ("FATAL".into(), "08P01".into(), text.into())
}

/// `S`, `C`, `M` of the one error that must be the last message.
pub(crate) fn last_error(msgs: &[Msg]) -> (String, String, String) {
    let error = msgs.last().expect("no message at all, an error was expected");
    assert_eq!(error.tag, b'E', "no error at the end of {msgs:?}");
    (error.field(b'S'), error.field(b'C'), error.field(b'M'))
}

/// The values of all DataRows.
pub(crate) fn rows(msgs: &[Msg]) -> Vec<Vec<Option<String>>> {
    msgs.iter().filter(|m| m.tag == b'D').map(Msg::cells).collect()
}

/// A typed message.
pub(crate) fn msg(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend(body);
    out
}

/// A message without type: length, code, body.
pub(crate) fn special(code: u32, body: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
    out.extend(code.to_be_bytes());
    out.extend(body);
    out
}

/// Text and a zero.
pub(crate) fn cstr(text: &str) -> Vec<u8> {
    let mut out = text.as_bytes().to_vec();
    out.push(0);
    out
}

/// A StartupMessage of protocol 3.`minor`.
pub(crate) fn startup(minor: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let pairs = parameters.iter().flat_map(|(k, v)| [cstr(k), cstr(v)]).flatten();
    special(0x0003_0000 | minor, &pairs.chain([0]).collect::<Vec<u8>>())
}

pub(crate) const SSL_REQUEST: u32 = 80_877_103;
pub(crate) const GSSENC_REQUEST: u32 = 80_877_104;
pub(crate) const CANCEL_REQUEST: u32 = 80_877_102;

pub(crate) fn query(sql: &str) -> Vec<u8> {
    msg(b'Q', &cstr(sql))
}

/// Parse without parameter types.
pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    msg(b'P', &[cstr(name), cstr(sql), vec![0, 0]].concat())
}

/// Bind of the unnamed portal, with text parameters.
pub(crate) fn bind(name: &str, values: &[&str]) -> Vec<u8> {
    let count = u16::try_from(values.len()).unwrap().to_be_bytes();
    let mut body = [&[0], &cstr(name)[..], &[0, 0], &count].concat();
    for value in values {
        body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    msg(b'B', &body)
}

/// Describe; `kind` is `S` or `P`.
pub(crate) fn describe(kind: u8, name: &str) -> Vec<u8> {
    msg(b'D', &[vec![kind], cstr(name)].concat())
}

/// Close; `kind` is `S` or `P`.
pub(crate) fn close(kind: u8, name: &str) -> Vec<u8> {
    msg(b'C', &[vec![kind], cstr(name)].concat())
}

/// Execute of the unnamed portal, all rows.
pub(crate) fn execute() -> Vec<u8> {
    msg(b'E', &[0, 0, 0, 0, 0])
}

pub(crate) fn sync() -> Vec<u8> {
    msg(b'S', b"")
}

pub(crate) fn flush() -> Vec<u8> {
    msg(b'H', b"")
}

pub(crate) fn terminate() -> Vec<u8> {
    msg(b'X', b"")
}

/// An ErrorResponse as servers send it.
pub(crate) fn error(fields: &[(u8, &str)]) -> Vec<u8> {
    let texts = fields.iter().flat_map(|(k, v)| [vec![*k], cstr(v)]).flatten();
    msg(b'E', &texts.chain([0]).collect::<Vec<u8>>())
}
