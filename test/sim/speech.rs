//! What both models need of the protocol: cutting packets, and the marks by which a reply is
//! recognised as the one to a certain request.

/// Which request of which client: travels as `<client.number>` through queries and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The model client's number.
    pub client: u32,
    /// The request's number at that client.
    pub number: u32,
}

impl Mark {
    /// The mark in a text, if there is one.
    pub fn find(text: &[u8]) -> Option<Mark> {
        let start = text.iter().position(|byte| *byte == b'<')? + 1;
        let len = text[start..].iter().position(|byte| *byte == b'>')?;
        let inner = std::str::from_utf8(&text[start..start + len]).ok()?;
        let (client, number) = inner.split_once('.')?;
        Some(Mark { client: client.parse().ok()?, number: number.parse().ok()? })
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<{}.{}>", self.client, self.number)
    }
}

/// Length of the packet that begins with `header`, type byte included if it has one.
pub fn packet_len(bytes: &[u8], typed: bool) -> Option<usize> {
    let at = usize::from(typed);
    let len = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    Some(len as usize + at)
}

/// Takes one whole packet with a type byte.
pub fn take_packet(from: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let len = packet_len(from, true)?;
    if from.len() < len {
        return None;
    }
    let packet: Vec<u8> = from.drain(..len).collect();
    Some((packet[0], packet[5..].to_vec()))
}

/// Takes one whole packet without a type byte.
pub fn take_opening(from: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = packet_len(from, false)?;
    if from.len() < len {
        return None;
    }
    Some(from.drain(..len).skip(4).collect())
}

/// A zero-terminated text at the front of `body`, and what follows it.
pub fn text(body: &[u8]) -> (String, &[u8]) {
    let end = body.iter().position(|byte| *byte == 0);
    let end = end.unwrap_or(body.len());
    let rest = body.get(end + 1..).unwrap_or_default();
    (String::from_utf8_lossy(&body[..end]).into_owned(), rest)
}

/// A request as its text: mark, what the client expects of its parameters, and the command.
pub fn request(mark: Mark, expected: &[(String, String)], command: &str) -> String {
    let mut text = format!("/*{mark}|");
    for (name, value) in expected {
        text.push_str(&format!("{name}={value}|"));
    }
    text.push_str("*/");
    text.push_str(command);
    text
}

/// The parameters that a request expects, and its command.
pub fn read_request(text: &str) -> (Vec<(&str, &str)>, &str) {
    let Some((head, command)) = text.split_once("*/") else {
        return (Vec::new(), text);
    };
    let expected = head.split('|').filter_map(|pair| pair.split_once('='));
    (expected.collect(), command)
}
