//! By which method a client proves who it is, and the methods that ask the client nothing: the user
//! at the other end of a Unix socket, a certificate (auth 2.3, 2.7, 7).

use super::database::UserId;
use super::face::{Addr, ClientId};
use super::fault::{self, Fault};
use super::replication::Replication;
use super::Core;
use crate::auth::Names;
use crate::base::Level;
use crate::config::hba::{Connection, Method, Rules};
use crate::config::ident::IdentMap;
use crate::config::AuthType;

impl Core {
    /// Takes over the rules of the HBA file, which count with auth_type=hba. The clients that are
    /// asked for their proof already are judged by the old ones.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.plan_verifiers();
    }

    /// Clients of Unix sockets that have to be named to `name_peer`, with the ids of their users:
    /// those that are logging in, if some rule asks for them.
    pub fn unnamed_peers(&self) -> Vec<(ClientId, u32)> {
        let asked = self.settings.auth_type == AuthType::Hba && self.rules.ask_for_peers();
        let ids = if asked { self.login_clients.ids(&self.clients) } else { Vec::new() };
        ids.into_iter()
            .filter_map(|id| {
                let client = self.clients.get(id)?;
                client.login.as_ref().filter(|login| login.system_user.is_none())?;
                Some((id, client.uid?))
            })
            .collect()
    }

    /// The user at the other end of a Unix socket has this name in the system.
    pub fn name_peer(&mut self, id: ClientId, name: String) {
        if let Some(login) = self.clients.get_mut(id).and_then(|client| client.login.as_mut()) {
            login.system_user = Some(name.into());
        }
    }

    /// Finds the method, once for each login (auth 10.3-G). None if no rule fits.
    pub(super) fn choose_method(&mut self, id: ClientId, user: &str) {
        let method = Method::of(self.settings.auth_type).or_else(|| self.ruled_method(id, user));
        if let Some(login) = self.clients.get_mut(id).and_then(|client| client.login.as_mut()) {
            login.method = method;
        }
    }

    fn ruled_method(&mut self, id: ClientId, user: &str) -> Option<Method> {
        let client = self.clients.get(id)?;
        let at = Connection {
            address: match client.remote {
                Addr::Inet(at) => Some(at.ip()),
                Addr::Unix { .. } => None,
                Addr::Unknown => return None,
            },
            tls: self.certificate(id).0,
            database: client.database_name.as_deref().unwrap_or(""),
            user,
            physical_replication: client.replication == Replication::Physical,
        };
        let rule = self.rules.first(&at)?;
        let (line, method) = (rule.line, rule.method.clone());
        if self.journal.shows(Level::Noise) {
            self.journal.line(Level::Noise, format!("HBA Line {line} is matched"));
        }
        Some(method)
    }

    /// The method of this login.
    pub(super) fn method(&self, id: ClientId) -> Option<Method> {
        self.clients.get(id)?.login.as_ref()?.method.clone()
    }

    /// Does the user at the other end of the Unix socket get in?
    pub(super) fn check_peer(
        &mut self,
        id: ClientId,
        known: Option<UserId>,
        map: Option<&IdentMap>,
    ) -> Result<(), Fault> {
        let client = self.clients.get(id).ok_or(fault::BAD_PACKET)?;
        let system_user = client.login.as_ref().and_then(|login| login.system_user.as_deref());
        let system_user = system_user.filter(|_| matches!(client.remote, Addr::Unix { .. }));
        let user = known.and_then(|user| self.users.get(user));
        let (Some(system_user), Some(user)) = (system_user, user) else {
            return Err(fault::PEER_FAILED);
        };
        match map {
            None if *system_user == *user.name => Ok(()),
            None => Err(fault::PEER_FAILED),
            Some(map) if map.admits(&user.name, &[system_user], |name| name == system_user) => {
                Ok(())
            }
            Some(map) => {
                let line = format!("ident map {} cannot be matched", map.name);
                self.client_log(id, Level::Error, &line);
                Err(fault::PEER_FAILED)
            }
        }
    }

    /// Does the client's certificate let it in?
    pub(super) fn check_certificate(
        &mut self,
        id: ClientId,
        known: Option<UserId>,
        map: Option<&IdentMap>,
    ) -> Result<(), Fault> {
        let user = known.and_then(|user| self.users.get(user)).map(|user| &*user.name);
        let (tls, names) = self.certificate(id);
        certified(tls, names, user, map).map_err(|complaint| {
            if let Some(complaint) = complaint {
                self.client_log(id, Level::Error, &complaint);
            }
            fault::CERT_FAILED
        })
    }

    /// Whether the client uses TLS, and the names in its certificate.
    fn certificate(&self, id: ClientId) -> (bool, Option<&Names>) {
        let facts = self.clients.get(id).and_then(|client| client.tls());
        (facts.is_some(), facts.and_then(|facts| facts.names.as_deref()))
    }
}

/// Judges a login by certificate, which has been verified: the names in it, the user if it is a
/// known one, the map of the rule. The error is a line to be logged.
fn certified(
    tls: bool,
    names: Option<&Names>,
    user: Option<&str>,
    map: Option<&IdentMap>,
) -> Result<(), Option<String>> {
    if !tls {
        return Err(Some("TLS connection required".into()));
    }
    let names = names.ok_or_else(|| Some("TLS client certificate required".into()))?;
    let user = user.ok_or(None)?;
    let Some(map) = map else {
        return match names.include(user) {
            true => Ok(()),
            false => Err(Some("TLS certificate name mismatch".into())),
        };
    };
    // A regular expression is held against the common name, as PostgreSQL does.
    let common = names.common().and_then(|name| std::str::from_utf8(name).ok());
    match map.admits(user, common.as_slice(), |name| names.include(name)) {
        true => Ok(()),
        false => Err(Some(format!("ident map: {} does not have a match", map.name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Journal;
    use crate::config::ident;

    #[test]
    fn certificates_are_judged_in_order() {
        let names = |dns: &[&str], common: Option<&str>| {
            let dns = dns.iter().map(|name| Box::from(name.as_bytes()));
            Names::new(dns, std::iter::empty(), common.map(|name| Box::from(name.as_bytes())))
        };
        let file = "m joe app\nm *.corp all\nm /^(.*)@home$ \\1\n";
        let maps = ident::parse(file.as_bytes(), &mut Journal::default());
        let map = maps.get("m").map(|map| &**map);
        let none = names(&[], None);
        let mismatch = Some("TLS certificate name mismatch");
        let unmapped = Some("ident map: m does not have a match");
        for (tls, names, user, map, want) in [
            (false, Some(&none), Some("joe"), None, Err(Some("TLS connection required"))),
            (true, None, None, None, Err(Some("TLS client certificate required"))),
            (true, Some(&none), None, None, Err(None)),
            (true, Some(&none), Some("joe"), None, Err(mismatch)),
            (true, Some(&names(&[], Some("joe"))), Some("joe"), None, Ok(())),
            (true, Some(&names(&[], Some("JOE"))), Some("joe"), None, Ok(())),
            (true, Some(&names(&["ann"], Some("joe"))), Some("ann"), None, Ok(())),
            (true, Some(&names(&["ann"], Some("joe"))), Some("bob"), None, Err(mismatch)),
            (true, Some(&names(&["*.x.org"], None)), Some("a.x.org"), None, Ok(())),
            (true, Some(&names(&[], Some("JOE"))), Some("app"), map, Ok(())),
            (true, Some(&names(&["joe"], Some("z"))), Some("app"), map, Ok(())),
            (true, Some(&names(&[], Some("joe"))), Some("joe"), map, Err(unmapped)),
            (true, Some(&names(&[], Some("joe"))), None, map, Err(None)),
            (true, Some(&names(&[], Some("ann@home"))), Some("ann"), map, Ok(())),
            (true, Some(&names(&[], Some("ann@home"))), Some("app"), map, Err(unmapped)),
            (true, Some(&names(&["ann@home"], None)), Some("ann"), map, Err(unmapped)),
            (true, Some(&none), Some("app"), map, Err(unmapped)),
        ] {
            let want = want.map_err(|line| line.map(str::to_owned));
            assert_eq!(certified(tls, names, user, map), want, "{names:?} {user:?}");
        }
    }
}
