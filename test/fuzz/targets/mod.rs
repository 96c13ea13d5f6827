//! What is fuzzed: functions from bytes to nothing that panic if something is wrong. They are shared
//! by the coverage-guided fuzzer (bin.rs) and by the test that runs the saved corpus (main.rs).

mod console;
mod files;
mod handoff;
mod login;
mod sasl;
mod scene;
mod stream;

/// A function that takes whatever bytes and panics if what they lead to is wrong.
pub(crate) type Target = fn(&[u8]);

/// All of them by name, which is also that of a folder in corpus/.
pub(crate) const TARGETS: &[(&str, Target)] = &[
    ("startup", stream::startup),
    ("frame", stream::frame),
    ("login", login::login),
    ("console", console::console),
    ("sasl_server", sasl::server),
    ("sasl_client", sasl::client),
    ("handoff", handoff::handoff),
    ("userlist", files::userlist),
    ("ini", files::ini),
    ("hba", files::hba),
    ("ident", files::ident),
];

/// Cuts an input into fields: a byte with the length, then so many bytes, or as many as there are.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn next(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte());
        self.take(len)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }
}
