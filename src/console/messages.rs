//! Packets of clients, and answers to them, for the tests of this floor.

use super::fixture::Fixture;
use crate::core::{ClientId, ServerId};
use crate::wire::write::{self, packet};

/// A packet of this type.
pub(super) fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    packet(&mut out, tag, |out| out.extend(parts.concat()));
    out
}

/// Query.
pub(super) fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::query(&mut out, sql.as_bytes());
    out
}

/// Parse without types.
pub(super) fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

/// Bind with format codes.
pub(super) fn bind_as(portal: &str, name: &str, codes: &[u16]) -> Vec<u8> {
    let count = (codes.len() as u16).to_be_bytes();
    let codes: Vec<u8> = codes.iter().flat_map(|code| code.to_be_bytes()).collect();
    let (portal, name) = (portal.as_bytes(), name.as_bytes());
    message(b'B', &[portal, b"\0", name, b"\0\0\0\0\0", &count, &codes])
}

/// Bind without format codes.
pub(super) fn bind(portal: &str, name: &str) -> Vec<u8> {
    bind_as(portal, name, &[])
}

/// Describe; `kind` is S or P.
pub(super) fn describe(kind: &str, name: &str) -> Vec<u8> {
    message(b'D', &[kind.as_bytes(), name.as_bytes(), b"\0"])
}

/// Close; `kind` is S or P.
pub(super) fn close(kind: &str, name: &str) -> Vec<u8> {
    message(b'C', &[kind.as_bytes(), name.as_bytes(), b"\0"])
}

/// Execute with a limit.
pub(super) fn execute_some(portal: &str, most: u32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &most.to_be_bytes()])
}

/// Execute without a limit.
pub(super) fn execute(portal: &str) -> Vec<u8> {
    execute_some(portal, 0)
}

/// Sync.
pub(super) fn sync() -> Vec<u8> {
    message(b'S', &[])
}

/// Parse, Bind and Execute without names.
pub(super) fn command(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", ""), execute("")].concat()
}

/// What drivers send for a query.
pub(super) fn whole(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", ""), describe("P", ""), execute(""), sync()].concat()
}

/// What comes back for packets: their types, and the errors among them.
pub(super) fn answer(at: &mut Fixture, id: ClientId, packets: &[Vec<u8>]) -> (String, Vec<String>) {
    at.throw(id, &packets.concat());
    let replies = at.taken(id);
    let errors = replies.iter().filter(|(kind, _)| kind == "E").map(|(_, text)| text.clone());
    (replies.iter().map(|(kind, _)| &**kind).collect(), errors.collect())
}

/// A console that is busy with PAUSE until the server is ready.
pub(super) fn with_busy_server() -> (Fixture, ClientId, ServerId) {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    let server = at.serve();
    at.feed(bob, "select 1");
    (at, boss, server)
}
