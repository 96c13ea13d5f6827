//! Servers with a host name on their way: asking nameservers, then dialling.

use super::dial::Dial;
use super::resolve::Answer;
use super::{address::Place, Net};
use crate::core::{Decisions, Loss, Peer, ServerId};
use std::net::SocketAddr;

impl Net {
    /// Opens the connection to a host with this name as soon as its address is known.
    pub(super) fn connect_by_name<D: Decisions>(
        &mut self,
        id: ServerId,
        name: String,
        port: u16,
        core: &mut D,
    ) {
        let answer = self.resolver.ask(&name, self.now);
        if answer == Answer::Pending {
            self.dials.insert(id, Dial::Looking { name, port });
            self.looking.push(id);
        } else {
            self.dial_found(id, answer, port, core);
        }
        self.ask_nameservers();
    }

    /// Lets nameservers be heard, and goes on with what waited for them.
    pub(super) fn hear_nameservers<D: Decisions>(&mut self, core: &mut D) {
        self.nameservers.go_on(&self.common.registry);
        let mut ended = Vec::new();
        while let Some(finding) = self.nameservers.next_finding() {
            ended.extend(self.resolver.learn(finding, self.now, &mut self.journal));
        }
        while let Some((name, addr)) = self.resolver.next_vanished() {
            core.address_vanished(&name, addr);
        }
        self.ask_nameservers();
        if !ended.is_empty() {
            self.dial_named(&ended, core);
        }
    }

    /// Passes questions on.
    pub(super) fn ask_nameservers(&mut self) {
        while let Some(question) = self.resolver.next_question() {
            self.nameservers.ask(question, &self.common.registry);
        }
    }

    fn dial_named<D: Decisions>(&mut self, names: &[String], core: &mut D) {
        let mut rest = std::mem::take(&mut self.looking);
        rest.retain(|id| {
            let id = *id;
            let (port, answer) = match self.dials.get(id) {
                Some(Dial::Looking { name, port }) if names.contains(name) => {
                    (*port, self.resolver.fresh(name))
                }
                Some(Dial::Looking { .. }) => return true,
                _ => return false,
            };
            self.dials.remove(id);
            self.dial_found(id, answer, port, core);
            false
        });
        self.looking.append(&mut rest);
    }

    fn dial_found<D: Decisions>(&mut self, id: ServerId, found: Answer, port: u16, core: &mut D) {
        match found {
            Answer::Address(ip) => {
                let place = Place::Inet(SocketAddr::new(ip, port));
                self.dial(id, &place, core);
            }
            _ => core.lost(Peer::Server(id), Loss::Dns),
        }
    }
}
