//! Users who are looked up: a directory of people that changes, which model servers read when
//! auth_query comes. Whoever is let in must have been in it while the core looked.

use crate::client::{Client, Phase};
use crate::dice::Dice;
use crate::moved::Moved;
use crate::plan::Plan;
use crate::server::Server;
use crate::speech;
use crate::world::World;
use pgturnstile::base::Micros;
use pgturnstile::config::AuthType;
use pgturnstile::core::{ClientId, Peer, ServerId};
use pgturnstile::wire::write::{self, ColumnType};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The auth_query of all runs.
const QUERY: &str = "SELECT name, secret FROM people WHERE name = $1";
/// Who looks.
pub const LOOKER: &str = "looker";
/// The users that are in no list.
pub const STRANGERS: [&str; 3] = ["cat", "dan", "eve"];
/// The password of everybody who is in a list.
pub const LISTED: &str = "pw";
/// The secrets of the others: no client may ever be sent one.
const SECRETS: [&str; 3] = ["hush!1", "hush!2", "hush!3"];
/// What all of them contain.
pub const SECRET_MARK: &[u8] = b"hush!";

/// Who has which secret, since when.
pub struct People {
    history: Vec<(Micros, BTreeMap<&'static str, &'static str>)>,
}

impl Default for People {
    fn default() -> People {
        People { history: vec![(Micros(0), BTreeMap::new())] }
    }
}

/// Shared by the world and its servers.
pub type Shared = Rc<RefCell<People>>;

impl People {
    fn secret(&self, name: &str) -> Option<&'static str> {
        self.history.last()?.1.get(name).copied()
    }

    /// Somebody comes, goes or changes the secret.
    fn change(&mut self, now: Micros, dice: &mut Dice) {
        let mut people = self.history.last().map(|(_, people)| people.clone()).unwrap_or_default();
        let name = dice.pick(&STRANGERS);
        match dice.chance(40) {
            true => people.remove(name),
            false => people.insert(name, dice.pick(&SECRETS)),
        };
        self.history.push((now, people));
    }

    /// What this user's secret was at any time from `since` to `now`.
    fn secrets(&self, name: &str, since: Micros, now: Micros) -> Vec<Option<&'static str>> {
        let ends = self.history.iter().skip(1).map(|(at, _)| *at).chain([Micros(u64::MAX)]);
        let spans = self.history.iter().zip(ends);
        let meant = spans.filter(|((began, _), end)| *began <= now && *end >= since);
        meant.map(|((_, people), _)| people.get(name).copied()).collect()
    }
}

/// The look-ups that have been sent and not answered, and since when clients may have shared one.
#[derive(Default)]
pub struct Lookups {
    open: BTreeMap<ServerId, (String, Micros)>,
    since: BTreeMap<ClientId, Micros>,
}

impl Lookups {
    /// Another core goes on; it asks anew.
    pub fn follow(&mut self, moved: &Moved) {
        moved.apply(&mut self.since);
        self.open.clear();
    }

    /// A client says who it is; its database exists.
    pub fn meet(&mut self, id: ClientId, user: &str, now: Micros) {
        let alike = self.open.values().filter(|(name, _)| name == user);
        let since = alike.map(|(_, at)| *at).min().unwrap_or(now);
        self.since.insert(id, since);
    }

    /// The database of a client is gone: nobody is looked up for it.
    pub fn lose(&mut self, id: ClientId) {
        self.since.remove(&id);
    }

    /// A server is through with what it was asked.
    pub fn ended(&mut self, id: ServerId) {
        self.open.remove(&id);
    }
}

impl Plan {
    /// Users may be looked up in this run.
    pub fn draw_auth_query(&mut self, dice: &mut Dice) {
        let settings = &mut self.settings;
        settings.auth_user = Some(LOOKER.into());
        settings.auth_query = QUERY.into();
        settings.auth_type = dice.pick(&[AuthType::Trust, AuthType::Plain]);
        settings.auth_dbname = dice.chance(30).then(|| "db0".to_owned());
    }

    /// True if users may be looked up.
    pub fn looks_up(&self) -> bool {
        self.settings.auth_user.is_some()
    }
}

impl World {
    /// Somebody comes, goes or changes the secret.
    pub fn people_change(&mut self) {
        if self.plan.looks_up() {
            self.people.borrow_mut().change(self.now, &mut self.dice);
            self.trace(|world| format!("people {:?}", world.people.borrow().history.last()));
        }
    }

    /// A user to log in as, and a password, which mostly is right.
    pub fn somebody(&mut self) -> (String, String) {
        let strangers = self.plan.looks_up() && self.dice.chance(60);
        if !strangers {
            let at = self.dice.below(self.plan.users.len());
            return (self.plan.users[at].clone(), LISTED.to_owned());
        }
        let name = self.dice.pick(&STRANGERS);
        let right = self.people.borrow().secret(name).filter(|_| self.dice.chance(80));
        (name.to_owned(), right.unwrap_or_else(|| self.dice.pick(&SECRETS)).to_owned())
    }

    /// The core asks a server.
    pub fn note_lookup(&mut self, peer: Peer, bytes: &[u8]) {
        let Peer::Server(id) = peer else { return };
        let mut packets = bytes.to_vec();
        let Some((b'P', _)) = speech::take_packet(&mut packets) else { return };
        let Some((b'B', bind)) = speech::take_packet(&mut packets) else { return };
        let name = bound_name(&bind);
        let pool = |id| self.core.servers().get(id).map(|server| server.pool());
        let mut watch = self.watch.borrow_mut();
        let open = &mut watch.lookups.open;
        let twin = open.iter().find(|(other, (known, _))| {
            **other != id && *known == name && pool(**other).is_some() && pool(**other) == pool(id)
        });
        if let Some((other, _)) = twin {
            self.fail(&format!("LOOK-UPS: {id:?} is asked for {name}, {other:?} is, too"));
        }
        open.insert(id, (name, self.now));
    }

    /// A client that has been let in, or told why not, as the people say.
    pub fn check_lookup(&self, client: &Client, was: Phase) {
        let is_stranger = STRANGERS.contains(&client.user.as_str());
        if !is_stranger || was != Phase::Login || client.phase == Phase::Login {
            return;
        }
        let watch = self.watch.borrow();
        let Some(since) = watch.lookups.since.get(&client.id).copied() else {
            // Nobody is looked up for a database that does not exist.
            match client.phase {
                Phase::Ready => self.fail("LOOK-UPS: an unknown user is let in"),
                _ => return,
            }
        };
        let secrets = self.people.borrow().secrets(&client.user, since, self.now);
        let trusts = self.plan.settings.auth_type == AuthType::Trust;
        let fits = |secret: &Option<&str>| {
            secret.is_some_and(|secret| trusts || *secret == client.password)
        };
        let wrong = match client.told.as_deref() {
            None => client.phase == Phase::Ready && !secrets.iter().any(fits),
            Some("no such user") => secrets.iter().all(Option::is_some),
            Some("password authentication failed") => trusts || secrets.iter().all(fits),
            Some(_) => false,
        };
        if wrong {
            self.fail(&format!(
                "LOOK-UPS: client {} ({} {}) is {:?} and told {:?}; secrets {secrets:?} since {since:?}",
                client.number, client.user, client.password, client.phase, client.told
            ));
        }
    }
}

/// The one value of a Bind.
fn bound_name(body: &[u8]) -> String {
    // Two empty names, no formats, one value and its length.
    let value = body.get(10..body.len().saturating_sub(2));
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

impl Server {
    /// A message of a look-up; `None` if it is part of something else.
    pub fn look_up(&mut self, tag: u8, body: &[u8], dice: &mut Dice) -> Option<Result<(), String>> {
        if tag == b'P' {
            let (_, rest) = speech::text(body);
            let (sql, _) = speech::text(rest);
            if sql != QUERY {
                return None;
            }
            if !self.is_free() || self.user != LOOKER {
                return Some(Err(format!("LOOK-UPS: in the middle of {:?}'s work", self.holder)));
            }
            self.looked_up = Some(String::new());
            self.series = true;
            self.say(|out| write::bare(out, b'1'));
            return Some(Ok(()));
        }
        let name = self.looked_up.clone()?;
        match tag {
            b'B' => {
                self.looked_up = Some(bound_name(body));
                self.say(|out| write::bare(out, b'2'));
            }
            b'D' => {
                let kind = ColumnType { oid: 25, size: -1 };
                let names = if self.is_wild && dice.chance(2) { &["a"][..] } else { &["a", "b"] };
                let columns = names.iter().map(|name| (*name, kind, false));
                self.say(|out| write::row_description(out, columns));
            }
            b'E' => self.answer_lookup(&name, dice),
            _ => return Some(Err(format!("LOOK-UPS: message {}", tag as char))),
        }
        Some(Ok(()))
    }

    fn answer_lookup(&mut self, name: &str, dice: &mut Dice) {
        self.looked_up = None;
        let wild = if self.is_wild { dice.below(40) } else { 40 };
        if wild == 0 {
            self.say(|out| write::error(out, "ERROR", b"22012", b"division by zero"));
            self.skip = true;
            return;
        }
        let secret = self.people.borrow().secret(name);
        if let Some(secret) = secret {
            let name = (wild != 1).then_some(name.as_bytes());
            let row = [name, Some(secret.as_bytes())];
            self.say(|out| write::data_row(out, row.into_iter()));
        }
        self.say(|out| write::command_complete(out, "SELECT 1"));
    }
}
