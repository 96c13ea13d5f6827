//! Clients that are logging in: each goes on at the stage where it is.

use super::super::client::{Access, Client, Counted};
use super::super::database::{User, UserId};
use super::super::face::{Action, ClientId, Peer, Sink};
use super::super::fault::Fault;
use super::super::login::{Login, Proof, Stage};
use super::super::Core;
use super::Known;
use crate::auth::{Key, ServerExchange};
use crate::base::fields::{self, Field, Fields};
use crate::tags;

tags! {
    /// Fields of a login.
    LOGIN_TAGS:
    1 STAGE "what the client has to send next: 1 a start-up packet, 2 a TLS handshake, 3 a password, 4 the answer to an MD5 challenge, 5 SASLInitialResponse, 6 SASLResponse, 7 nothing, its user is looked up: begun anew, 8 a password for PAM, 9 one for LDAP, 10 the password that has been judged once again, 11 nothing, it waits for its welcome",
    2 SALT "stage 4: the salt",
    3 EXCHANGE "stage 6: fields of an exchange",
    4 IS_STORED "stage 6: the secret is a stored one, whose keys may be kept",
    5 OPTIONS "stage 9: the options for that",
    6 JUDGED "stage 10: 1 right by what the pooler knows, 2 right by what others know; else wrong",
    7 FAULT_TEXT "stage 10, wrong: what the client is told",
    8 FAULT_CODE "the SQLSTATE of that",
    9 DATABASE "the database that it wants, if there is one of that name",
    10 KNOWN_USER "the user whose secret counts",
    11 IS_FETCHED "its secret has been found by auth_query",
    12 HELD_AGAINST "the proof counts only if the secret of this user is still the same: HMAC-SHA-256 of it under the process's `MOCK_KEY`",
    13 SYSTEM_USER "the name of the user at the other end of a Unix socket",
    14 ADMIN "what it will be allowed on the console: 1 SHOW, 2 everything",
}

/// Values of [`STAGE`].
const OPENING: u64 = 1;
const SECURING: u64 = 2;
const PLAIN: u64 = 3;
const MD5: u64 = 4;
const SASL_BEGIN: u64 = 5;
const SASL: u64 = 6;
const LOOKUP: u64 = 7;
const PAM: u64 = 8;
const LDAP: u64 = 9;
const JUDGED_STAGE: u64 = 10;
const DONE: u64 = 11;

/// Values of [`JUDGED`].
const BY_US: u64 = 1;
const BY_OTHERS: u64 = 2;

/// The record makes no sense.
const UNREADABLE: &str = "online restart during login";

/// True if a login is begun anew by who takes it in, because of what it waits for: it is told as a
/// client in `ClientState::Login` without a pool that does not wait.
pub(super) fn begins_anew(client: &Client) -> bool {
    client.is_looked_up()
}

/// What is told of a login.
#[derive(Default)]
struct Told<'a> {
    stage: u64,
    salt: Option<[u8; 4]>,
    exchange: Option<&'a [u8]>,
    stored: bool,
    options: String,
    judged: u64,
    fault: (String, Option<Vec<u8>>),
    database: Option<String>,
    known: Option<String>,
    fetched: bool,
    held: Option<Key>,
    system_user: Option<Box<str>>,
    admin: Option<Access>,
}

impl<'a> Told<'a> {
    fn read(bytes: &'a [u8]) -> Told<'a> {
        let mut told = Told::default();
        fields::read(bytes).for_each(|field| told.note(field));
        told
    }

    fn note(&mut self, field: Field<'a>) {
        match field.tag {
            STAGE => self.stage = field.number(),
            SALT => self.salt = field.value.try_into().ok(),
            EXCHANGE => self.exchange = Some(field.value),
            IS_STORED => self.stored = true,
            OPTIONS => self.options = field.text(),
            JUDGED => self.judged = field.number(),
            FAULT_TEXT => self.fault.0 = field.text(),
            FAULT_CODE => self.fault.1 = Some(field.value.to_vec()),
            DATABASE => self.database = Some(field.text()),
            KNOWN_USER => self.known = Some(field.text()),
            IS_FETCHED => self.fetched = true,
            HELD_AGAINST => self.held = Key::from_slice(field.value),
            SYSTEM_USER => self.system_user = Some(field.text().into()),
            ADMIN if field.number() == 2 => self.admin = Some(Access::Admin),
            ADMIN => self.admin = Some(Access::Stats),
            _ => {}
        }
    }

    fn stage(&self) -> Option<Stage> {
        Some(match self.stage {
            // Those that are begun anew are where their start-up packet was.
            OPENING | LOOKUP => Stage::Opening,
            // A keeper makes the handshake.
            SECURING => Stage::Securing,
            PLAIN => Stage::Plain,
            MD5 => Stage::Md5(self.salt?),
            SASL_BEGIN => Stage::SaslBegin,
            SASL => Stage::Sasl(Box::new(ServerExchange::take_in(self.exchange?)?), self.stored),
            PAM => Stage::Pam,
            LDAP => Stage::Ldap(self.options.clone()),
            JUDGED_STAGE => Stage::Judged(match self.judged {
                BY_US => Ok(Proof::Known),
                BY_OTHERS => Ok(Proof::Outside),
                _ => Err(Fault::relayed(self.fault.0.as_bytes(), self.fault.1.as_deref())),
            }),
            DONE => Stage::Done,
            _ => return None,
        })
    }
}

impl Core {
    /// Writes the fields of a login.
    pub(super) fn hand_out_login(&self, login: &Login, fields: &mut Fields) {
        let Login {
            stage,
            database,
            known,
            // Only what comes before the client is asked for a proof depends on it.
            method: _chosen_anew,
            system_user,
            admin,
            held_against,
            // The packet that waits for it is looked at again.
            job: _begun_anew,
        } = login;
        hand_out_stage(stage, fields);
        let name = database.and_then(|id| self.databases.get(id)).map(|it| it.name.as_bytes());
        fields.put_some(DATABASE, name);
        if let Some((id, user)) = known.and_then(|id| Some((id, self.users.get(id)?))) {
            fields.put(KNOWN_USER, user.name.as_bytes());
            fields.flag(IS_FETCHED, self.user_names.get(&user.name) != Some(&id));
            // A proof against another secret than the one that counts now is good for nothing.
            if *held_against == Some(user.secret_version) {
                fields.put(HELD_AGAINST, user.secret.fingerprint(&self.mock_key).as_bytes());
            }
        }
        fields.put_some(SYSTEM_USER, system_user.as_ref().map(|name| name.as_bytes()));
        match admin {
            None => {}
            Some(Access::Stats) => fields.number(ADMIN, 1),
            Some(Access::Admin) => fields.number(ADMIN, 2),
        }
    }

    /// Reads them: puts a `Login` into a client that is there already, listed by its state, with
    /// everything that is not in the login. With a fault it is closed. Called when all clients and
    /// servers are there.
    pub(super) fn take_in_login(
        &mut self,
        id: ClientId,
        fields: &[u8],
        _known: &Known,
    ) -> Result<(), Fault> {
        let told = Told::read(fields);
        let stage = told.stage().ok_or_else(|| Fault::formatted(UNREADABLE.into()))?;
        let database = told.database.as_deref();
        let database = database.and_then(|name| self.database_there(name));
        let known = told.known.as_deref().and_then(|name| {
            let fetched = || self.fetched.get(&(database?, name.into())).copied();
            let named = self.user_names.get(name).copied();
            // Who has been listed in the meantime is judged by the list.
            let listed = named.filter(|id| self.users.get(*id).is_some_and(|user| user.listed));
            listed.or_else(|| if told.fetched { fetched() } else { named })
        });
        let pool = self.clients.get(id).and_then(|client| self.pools.get(client.pool?));
        if database.zip(pool).is_some_and(|(database, pool)| pool.database != database) {
            return Err(Fault::formatted(UNREADABLE.into()));
        }
        let held_against = known.and_then(|user| self.held_there(user, told.held.as_ref()?));
        let login = Login {
            stage,
            database,
            known,
            method: None,
            system_user: told.system_user,
            admin: told.admin,
            held_against,
            job: None,
        };
        if let Some(client) = self.clients.get_mut(id) {
            client.login = Some(Box::new(login));
        }
        Ok(())
    }

    /// Whom a client can count against at most: the next steps of its login count it for others.
    pub(super) fn counts_at_most(&self, id: ClientId) -> Counted {
        let Some(client) = self.clients.get(id) else { return Counted::Nowhere };
        let Some(login) = client.login.as_ref() else { return Counted::DatabaseAndUser };
        match &login.stage {
            Stage::Opening if client.user_name.is_some() => Counted::Database,
            Stage::Opening | Stage::Securing => Counted::Nowhere,
            Stage::Lookup(_) | Stage::Pam | Stage::Ldap(_) => Counted::Database,
            Stage::Judged(Ok(Proof::Outside)) => Counted::Database,
            _ => Counted::DatabaseAndUser,
        }
    }

    /// The version of a user's secret, if it is the one that a proof was held against elsewhere.
    fn held_there(&self, user: UserId, held: &Key) -> Option<u64> {
        let is_same = |user: &&User| user.secret.fingerprint(&self.mock_key) == *held;
        self.users.get(user).filter(is_same).map(|user| user.secret_version)
    }

    /// Everybody is there: logins go on that are begun anew. They are those whose start-up
    /// packet has been read, and nothing has been asked since.
    pub(super) fn begin_logins_anew(&mut self) {
        for id in self.login_clients.ids(&self.clients) {
            let Some(client) = self.clients.get(id) else { continue };
            let Some(login) = client.login.as_ref() else { continue };
            let (Stage::Opening, Some(user)) = (&login.stage, client.user_name.clone()) else {
                continue;
            };
            let database = login.database;
            let mut sink = Sink::default();
            let begun = self.begin_authentication(id, &user, database, &mut sink);
            if !sink.to_client.is_empty() {
                // What it is asked comes before it is read again, which has been decided already.
                self.actions.push_front(Action::Send(Peer::Client(id), sink.to_client));
            }
            if let Err(fault) = begun {
                self.close_client(id, &fault);
            }
        }
    }
}

fn hand_out_stage(stage: &Stage, fields: &mut Fields) {
    let number = match stage {
        Stage::Opening => OPENING,
        Stage::Securing => SECURING,
        Stage::Plain => PLAIN,
        Stage::Md5(salt) => {
            fields.put(SALT, salt);
            MD5
        }
        Stage::SaslBegin => SASL_BEGIN,
        Stage::Sasl(exchange, stored) => {
            fields.group(EXCHANGE, |fields| exchange.hand_out(fields));
            fields.flag(IS_STORED, *stored);
            SASL
        }
        Stage::Lookup(_) => LOOKUP,
        Stage::Pam => PAM,
        Stage::Ldap(options) => {
            fields.put(OPTIONS, options.as_bytes());
            LDAP
        }
        Stage::Judged(judged) => {
            match judged {
                Ok(Proof::Known) => fields.number(JUDGED, BY_US),
                Ok(Proof::Outside) => fields.number(JUDGED, BY_OTHERS),
                Err(fault) => {
                    fields.put(FAULT_TEXT, fault.text.as_bytes());
                    fields.put(FAULT_CODE, &fault.sqlstate);
                }
            }
            JUDGED_STAGE
        }
        Stage::Done => DONE,
    };
    fields.number(STAGE, number);
}
