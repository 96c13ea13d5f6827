//! Listening at the sockets of a process that goes on without them (`--adopt=soft`).

use super::{fatal, Fatal, Kept, ListenOptions, Listeners};
use crate::base::Journal;
use crate::net::Net;
use mio::Registry;
use std::os::fd::OwnedFd;

impl Listeners {
    /// The TCP sockets of a process that goes on without them, and a Unix socket of our own. If it
    /// has no TCP sockets any more, ours are opened.
    pub(super) fn adopt(
        tcp: Vec<OwnedFd>,
        unix: OwnedFd,
        options: &ListenOptions,
        registry: &Registry,
        journal: &mut Journal,
    ) -> Result<Listeners, Fatal> {
        let mut listeners = Listeners::default();
        if tcp.is_empty() {
            listeners.open_tcp(options, Kept::default(), journal)?;
        }
        for socket in tcp.into_iter().chain([unix]) {
            if let Err(text) = listeners.inherit_one(socket) {
                return fatal(journal, text);
            }
        }
        // It goes by another name than it was bound to.
        listeners.socket_file = None;
        listeners.watch(registry, journal)?;
        Ok(listeners)
    }
}

impl Net {
    /// Listens where a process did that goes on without these sockets, and at a Unix socket of our
    /// own.
    pub fn adopt_listeners(
        &mut self,
        tcp: Vec<OwnedFd>,
        unix: OwnedFd,
        options: &ListenOptions,
    ) -> Result<(), Fatal> {
        let (registry, journal) = (&self.common.registry, &mut self.journal);
        self.listeners = Listeners::adopt(tcp, unix, options, registry, journal)?;
        self.try_listeners();
        Ok(())
    }
}
