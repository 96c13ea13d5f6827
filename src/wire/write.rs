//! Writing packets, always appended to a buffer that the caller owns.

use super::startup::{CANCEL_REQUEST, PROTOCOL_3_0};

/// Appends one packet with a type byte; `fill` writes the body.
pub fn packet(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    counted(out, fill);
}

/// Appends a length that counts itself, and what `fill` writes.
fn counted(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

/// Appends a zero-terminated text; a zero inside would end it early and is left out.
pub fn text(out: &mut Vec<u8>, text: &[u8]) {
    match text.contains(&0) {
        false => out.extend_from_slice(text),
        true => out.extend(text.iter().filter(|byte| **byte != 0)),
    }
    out.push(0);
}

/// ErrorResponse with exactly the three fields that the pooler sends (pooling 0.1).
pub fn error(out: &mut Vec<u8>, severity: &str, sqlstate: &[u8], message: &[u8]) {
    packet(out, b'E', |out| fields(out, severity, sqlstate, message));
}

/// NoticeResponse with severity NOTICE and code 00000.
pub fn notice(out: &mut Vec<u8>, message: &[u8]) {
    packet(out, b'N', |out| fields(out, "NOTICE", b"00000", message));
}

/// NoticeResponse with a DETAIL.
pub fn notice_detail(out: &mut Vec<u8>, message: &[u8], detail: &[u8]) {
    packet(out, b'N', |out| {
        field(out, b'S', b"NOTICE");
        field(out, b'C', b"00000");
        field(out, b'M', message);
        field(out, b'D', detail);
        out.push(0);
    });
}

fn fields(out: &mut Vec<u8>, severity: &str, sqlstate: &[u8], message: &[u8]) {
    field(out, b'S', severity.as_bytes());
    field(out, b'C', sqlstate);
    field(out, b'M', message);
    out.push(0);
}

fn field(out: &mut Vec<u8>, code: u8, value: &[u8]) {
    out.push(code);
    text(out, value);
}

/// AuthenticationOk and its relatives: the request number and what follows it.
pub fn authentication(out: &mut Vec<u8>, request: u32, rest: &[u8]) {
    packet(out, b'R', |out| {
        out.extend_from_slice(&request.to_be_bytes());
        out.extend_from_slice(rest);
    });
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    packet(out, b'S', |out| {
        text(out, name);
        text(out, value);
    });
}

/// BackendKeyData of eight bytes.
pub fn backend_key(out: &mut Vec<u8>, key: u64) {
    packet(out, b'K', |out| out.extend_from_slice(&key.to_be_bytes()));
}

/// ReadyForQuery; `status` is `I`, `T` or `E`.
pub fn ready(out: &mut Vec<u8>, status: u8) {
    packet(out, b'Z', |out| out.push(status));
}

/// Any of the replies that have no body: ParseComplete (`1`), BindComplete (`2`), CloseComplete
/// (`3`), NoData (`n`), PortalSuspended (`s`), EmptyQueryResponse (`I`).
pub fn bare(out: &mut Vec<u8>, tag: u8) {
    packet(out, tag, |_| {});
}

/// ParameterDescription of a statement without parameters.
pub fn no_parameters(out: &mut Vec<u8>) {
    packet(out, b't', |out| out.extend_from_slice(&[0; 2]));
}

/// CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    packet(out, b'C', |out| text(out, tag.as_bytes()));
}

/// NegotiateProtocolVersion: we speak 3.0, and know none of `extensions`. The version is the full
/// code, not only the minor part (auth 1.4).
pub fn negotiate(out: &mut Vec<u8>, extensions: &[Vec<u8>]) {
    packet(out, b'v', |out| {
        out.extend_from_slice(&PROTOCOL_3_0.to_be_bytes());
        let count = u32::try_from(extensions.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for name in extensions {
            text(out, name);
        }
    });
}

/// Type of a column of a result, for RowDescription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// Object id of the type.
    pub oid: u32,
    /// Its size in bytes, -1 if it varies.
    pub size: i16,
}

/// RowDescription; the columns are of no table. Each has a name, a type, and is binary or text.
pub fn row_description<'a>(
    out: &mut Vec<u8>,
    columns: impl ExactSizeIterator<Item = (&'a str, ColumnType, bool)>,
) {
    packet(out, b'T', |out| {
        let count = u16::try_from(columns.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for (name, kind, is_binary) in columns {
            text(out, name.as_bytes());
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&kind.oid.to_be_bytes());
            out.extend_from_slice(&kind.size.to_be_bytes());
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            out.extend_from_slice(&u16::from(is_binary).to_be_bytes());
        }
    });
}

/// DataRow; `None` is NULL.
pub fn data_row<'a>(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = Option<&'a [u8]>>) {
    packet(out, b'D', |out| {
        let count = u16::try_from(values.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for value in values {
            let len = value.map_or(-1, |value| i32::try_from(value.len()).unwrap_or(i32::MAX));
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(value.unwrap_or_default());
        }
    });
}

/// Query.
pub fn query(out: &mut Vec<u8>, sql: &[u8]) {
    packet(out, b'Q', |out| text(out, sql));
}

/// PasswordMessage with a text (clear or md5).
pub fn password(out: &mut Vec<u8>, secret: &[u8]) {
    packet(out, b'p', |out| text(out, secret));
}

/// SASLInitialResponse.
pub fn sasl_initial(out: &mut Vec<u8>, mechanism: &str, first: &[u8]) {
    packet(out, b'p', |out| {
        text(out, mechanism.as_bytes());
        out.extend_from_slice(&u32::try_from(first.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(first);
    });
}

/// SASLResponse.
pub fn sasl_response(out: &mut Vec<u8>, response: &[u8]) {
    packet(out, b'p', |out| out.extend_from_slice(response));
}

/// Terminate.
pub const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// StartupMessage for protocol 3.0.
pub fn startup<'a>(out: &mut Vec<u8>, parameters: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
    counted(out, |out| {
        out.extend_from_slice(&PROTOCOL_3_0.to_be_bytes());
        for (name, value) in parameters {
            text(out, name);
            text(out, value);
        }
        out.push(0);
    });
}

/// SSLRequest.
pub const SSL_REQUEST: [u8; 8] = *b"\0\0\0\x08\x04\xd2\x16\x2f";

/// CancelRequest with a key of eight bytes.
pub fn cancel_request(out: &mut Vec<u8>, key: u64) {
    counted(out, |out| {
        out.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
        out.extend_from_slice(&key.to_be_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_have_the_documented_bytes() {
        let mut out = Vec::new();
        ready(&mut out, b'I');
        query(&mut out, b"");
        cancel_request(&mut out, 1);
        assert_eq!(out, b"Z\0\0\0\x05IQ\0\0\0\x05\0\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\0\0\0\0\x01");
        out.clear();
        data_row(&mut out, [Some(&b"ab"[..]), None].into_iter());
        assert_eq!(out, b"D\0\0\0\x10\0\x02\0\0\0\x02ab\xff\xff\xff\xff");
        out.clear();
        bare(&mut out, b'1');
        no_parameters(&mut out);
        assert_eq!(out, b"1\0\0\0\x04t\0\0\0\x06\0\0");
        out.clear();
        error(&mut out, "FATAL", b"08P01", b"bad");
        assert_eq!(out, b"E\0\0\0\x18SFATAL\0C08P01\0Mbad\0\0");
    }
}
