//! Users and databases: what has been found out about them, and what has been commanded. What they
//! are is told by the files of who reads this.

use super::super::database::{Database, DatabaseId, Source, User, UserId};
use super::super::derive::{Adhoc, KeptKeys};
use super::super::Core;
use super::{Kind, Row};
use crate::auth::{Key, PassKeys, SaltedKeys, ScramSecret, Secret};
use crate::base::fields::{self, Fields};
use crate::base::{Level, Micros};
use crate::tags;
use zeroize::Zeroizing;

tags! {
    /// Fields of a user.
    USER_TAGS:
    1 NAME "its name",
    2 DATABASE "of a user that auth_query has found: the database that it was looked up for",
    3 SECRET "the secret that was found there",
    4 FINGERPRINT "of a listed user: HMAC-SHA-256 of its secret under the process's `MOCK_KEY`; what follows counts only where that is the same",
    5 VERIFIER "the SCRAM secret that was made from its password; `SCRAM-SHA-256$...`",
    6 KEYS "ClientKey and ServerKey that its own login with a SCRAM secret has left",
    7 SALTED "keys for its last login to a server; fields of keys",
    8 PROVED "the password that PAM or LDAP found right last",
}

tags! {
    /// Fields of keys that were derived from a password.
    KEYS_TAGS:
    1 PASSWORD "the password",
    2 SALT "the server's salt",
    3 ITERATIONS "its count of iterations",
    4 BOTH_KEYS "ClientKey and ServerKey",
}

tags! {
    /// Fields of a database.
    DATABASE_TAGS:
    1 DATABASE_NAME "its name",
    2 IS_AUTO "it was made from `*`",
    3 IS_PAUSED "PAUSE is in force",
    4 IS_DISABLED "DISABLE is in force",
    5 FORCED_USER "the user that its servers log in as",
    6 IDLE_SINCE "made from `*`: for how long nobody has used it",
    7 ENTRY_KEYS "keys derived from the password in its entry; fields of keys",
}

/// What is told of a user.
#[derive(Default)]
struct Told {
    name: String,
    database: Option<String>,
    secret: Option<Secret>,
    fingerprint: Option<Key>,
    verifier: Option<ScramSecret>,
    keys: Option<PassKeys>,
    salted: Option<KeptKeys>,
    proved: Option<Zeroizing<Vec<u8>>>,
}

impl Told {
    fn read(state: &[u8]) -> Told {
        let mut told = Told::default();
        for field in fields::read(state) {
            match field.tag {
                NAME => told.name = field.text(),
                DATABASE => told.database = Some(field.text()),
                SECRET => told.secret = Some(Secret::classify(field.value)),
                FINGERPRINT => told.fingerprint = Key::from_slice(field.value),
                VERIFIER => told.verifier = ScramSecret::parse(field.value),
                KEYS => told.keys = pass_keys(field.value),
                SALTED => told.salted = kept_keys(field.value),
                PROVED => told.proved = Some(Zeroizing::new(field.value.to_vec())),
                _ => {}
            }
        }
        told
    }
}

fn put_pass_keys(fields: &mut Fields, tag: u16, keys: &PassKeys) {
    let PassKeys { client_key, server_key } = keys;
    let both = [&client_key.as_bytes()[..], server_key.as_bytes()];
    fields.put(tag, &Zeroizing::new(both.concat()));
}

fn pass_keys(bytes: &[u8]) -> Option<PassKeys> {
    let (client, server) = bytes.split_at_checked(32)?;
    Some(PassKeys { client_key: Key::from_slice(client)?, server_key: Key::from_slice(server)? })
}

fn put_kept_keys(fields: &mut Fields, tag: u16, kept: &KeptKeys) {
    let KeptKeys { password, keys: SaltedKeys { iterations, salt, keys } } = kept;
    fields.group(tag, |fields| {
        fields.put(PASSWORD, password);
        fields.put(SALT, salt);
        fields.number(ITERATIONS, u64::from(*iterations));
        put_pass_keys(fields, BOTH_KEYS, keys);
    });
}

/// They are used for this very password only, so it does not matter whose they are.
fn kept_keys(bytes: &[u8]) -> Option<KeptKeys> {
    let (mut password, mut keys) = (Zeroizing::default(), None);
    let (mut salt, mut iterations) = (Vec::new(), 0);
    for field in fields::read(bytes) {
        match field.tag {
            PASSWORD => password = Zeroizing::new(field.value.to_vec()),
            SALT => salt = field.value.to_vec(),
            ITERATIONS => iterations = field.number_u32(),
            BOTH_KEYS => keys = pass_keys(field.value),
            _ => {}
        }
    }
    Some(KeptKeys { password, keys: SaltedKeys { iterations, salt, keys: keys? } })
}

impl Core {
    /// The rows of users, also of those that auth_query has found.
    pub(super) fn hand_out_users(&self, rows: &mut Vec<Row>) {
        let named = self.user_names.values().map(|id| (None, *id));
        let fetched = self.fetched.iter().map(|((database, _), id)| (Some(*database), *id));
        for (database, id) in named.chain(fetched) {
            let Some(user) = self.users.get(id) else { continue };
            let database = database.map(|database| self.databases.get(database));
            if database.is_some_and(|database| database.is_none()) {
                continue;
            }
            let mut fields = Fields::default();
            self.hand_out_user(user, database.flatten(), &mut fields);
            rows.push(Row { kind: Kind::User, number: 0, state: fields.into_bytes() });
        }
    }

    fn hand_out_user(&self, user: &User, database: Option<&Database>, fields: &mut Fields) {
        let User {
            name,
            secret,
            secret_version: _counts_anew,
            listed: _read_from_files,
            entry: _read_from_files_too,
            servers: _counted_there,
            clients: _counted_there_too,
            adhoc,
            keys,
            salted,
            proved,
        } = user;
        fields.put(NAME, name.as_bytes());
        match database {
            Some(database) => {
                fields.put(DATABASE, database.name.as_bytes());
                fields.put(SECRET, &secret.cleartext_answer());
            }
            None => fields.put(FINGERPRINT, secret.fingerprint(&self.mock_key).as_bytes()),
        }
        if let Adhoc::Made(verifier) = adhoc {
            fields.put(VERIFIER, Zeroizing::new(verifier.text()).as_bytes());
        }
        if let Some(keys) = keys {
            put_pass_keys(fields, KEYS, keys);
        }
        if let Some(salted) = salted {
            put_kept_keys(fields, SALTED, salted);
        }
        fields.put_some(PROVED, proved.as_ref().map(|proved| &***proved));
    }

    /// What was known of a user. Its own list wins: nothing that came from another secret than the
    /// one in there counts.
    pub(super) fn take_in_user(&mut self, state: &[u8]) {
        let told = Told::read(state);
        if told.name.is_empty() {
            return;
        }
        let id = match &told.database {
            Some(database) => self.fetched_there(database, &told),
            None => self.named_there(&told),
        };
        let Some(user) = id.and_then(|id| self.users.get_mut(id)) else { return };
        if let (Secret::Plain(_), Some(verifier)) = (&user.secret, told.verifier) {
            user.adhoc = Adhoc::Made(verifier);
        }
        user.keys = told.keys;
        user.salted = told.salted;
        user.proved = told.proved;
    }

    /// Somebody whom auth_query has found for a database, which is still there.
    fn fetched_there(&mut self, database: &str, told: &Told) -> Option<UserId> {
        let database = self.database_there(database)?;
        Some(self.remember_fetched(database, &told.name, told.secret.as_ref()))
    }

    /// A user with a name of its own; none if it has another secret now.
    fn named_there(&mut self, told: &Told) -> Option<UserId> {
        let id = self.user(&told.name);
        let own = self.users.get(id)?.secret.fingerprint(&self.mock_key);
        (told.fingerprint == Some(own)).then_some(id)
    }

    /// The database that another process knew by this name: ours, or one that is made from `*`.
    pub(in crate::core) fn database_there(&mut self, name: &str) -> Option<DatabaseId> {
        let known = self.database_names.get(name).copied();
        known.or_else(|| self.make_auto_database(name))
    }

    /// The rows of databases.
    pub(super) fn hand_out_databases(&self, rows: &mut Vec<Row>) {
        let databases = self.databases();
        for (_, database) in databases.filter(|(_, it)| it.source != Source::Console) {
            let mut fields = Fields::default();
            hand_out_database(database, self.now, &mut fields);
            rows.push(Row { kind: Kind::Database, number: 0, state: fields.into_bytes() });
        }
    }

    /// What was known of a database. One that had been made from `*` is made again; others are made
    /// so, too, if the files don't name them any more, when somebody needs them.
    pub(super) fn take_in_database(&mut self, state: &[u8]) {
        let (mut name, mut forced) = (None, None);
        let (mut auto, mut paused, mut disabled) = (false, false, false);
        let (mut idle_since, mut salted) = (None, None);
        for field in fields::read(state) {
            match field.tag {
                DATABASE_NAME => name = Some(field.text()),
                IS_AUTO => auto = true,
                IS_PAUSED => paused = true,
                IS_DISABLED => disabled = true,
                FORCED_USER => forced = Some(field.text()),
                IDLE_SINCE => idle_since = Some(field.since(self.now)),
                ENTRY_KEYS => salted = kept_keys(field.value),
                _ => {}
            }
        }
        let Some(name) = name else { return };
        let id = match auto || paused || disabled {
            true => self.database_there(&name),
            false => self.database_names.get(name.as_str()).copied(),
        };
        let database = id.and_then(|id| self.databases.get_mut(id));
        let Some(database) = database.filter(|it| it.source != Source::Console) else { return };
        database.paused = paused;
        database.disabled = disabled;
        database.salted = salted;
        if database.source == Source::Auto {
            database.idle_since = idle_since;
        }
        if let (None, Some(forced)) = (&database.entry.user, forced) {
            database.forced_user = Some(forced.into());
            let line = format!("database \"{name}\": losing forced user not supported, keeping it");
            self.journal.line(Level::Warning, line);
        }
    }
}

fn hand_out_database(database: &Database, now: Micros, fields: &mut Fields) {
    let Database {
        name,
        entry: _read_from_files,
        source,
        paused,
        disabled,
        forced_user,
        idle_since,
        servers: _counted_there,
        clients: _counted_there_too,
        salted,
    } = database;
    fields.put(DATABASE_NAME, name.as_bytes());
    fields.flag(IS_AUTO, *source == Source::Auto);
    fields.flag(IS_PAUSED, *paused);
    fields.flag(IS_DISABLED, *disabled);
    fields.put_some(FORCED_USER, forced_user.as_ref().map(|user| user.as_bytes()));
    fields.since_some(IDLE_SINCE, *idle_since, now);
    if let Some(salted) = salted {
        put_kept_keys(fields, ENTRY_KEYS, salted);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::login_scene::{stored, users_but, Scene};
    use super::*;
    use crate::base::Id;

    fn keys(number: u8) -> PassKeys {
        PassKeys { client_key: Key::new([number; 32]), server_key: Key::new([number + 1; 32]) }
    }

    fn kept(password: &[u8]) -> KeptKeys {
        let salt = b"salt".to_vec();
        let keys = SaltedKeys { iterations: 3, salt, keys: keys(7) };
        KeptKeys { password: password.to_vec().into(), keys }
    }

    fn user_mut<'a>(scene: &'a mut Scene, name: &str) -> &'a mut User {
        let id = scene.core.user(name);
        scene.core.users.get_mut(id).unwrap()
    }

    #[test]
    fn what_came_from_a_secret_is_kept_while_it_is_the_same() {
        let mut first = Scene::new("auth_type = plain");
        user_mut(&mut first, "scram").keys = Some(keys(1));
        user_mut(&mut first, "plain").salted = Some(kept(b"pencil"));
        user_mut(&mut first, "pam").proved = Some(b"proved".to_vec().into());
        for (name, secret, want) in [
            ("", None, (true, true, true)),
            ("scram", None, (false, true, true)),
            ("scram", Some(&b"other"[..]), (false, true, true)),
            ("scram", Some(&stored()), (true, true, true)),
            ("plain", Some(b"other"), (true, false, true)),
            ("pam", Some(b"listed"), (true, true, false)),
        ] {
            let mut next = Scene::new("auth_type = plain");
            next.core.set_users(users_but(name, secret.filter(|_| !name.is_empty())));
            first.hand_over(&mut next);
            let scram = user_mut(&mut next, "scram").keys == Some(keys(1));
            let plain = user_mut(&mut next, "plain").salted.as_ref().is_some_and(|salted| {
                *salted.password == *b"pencil" && salted.keys == kept(b"").keys
            });
            let proved = user_mut(&mut next, "pam").proved.as_ref().map(|it| it.to_vec());
            assert_eq!((scram, plain, proved == Some(b"proved".to_vec())), want, "{name}");
        }
    }

    #[test]
    fn no_secret_of_a_list_is_told() {
        let scene = Scene::new("");
        let rows = scene.core.hand_out(Id::none());
        for (row, _) in rows {
            let has = |what: &[u8]| row.state.windows(what.len()).any(|part| part == what);
            assert!(!has(b"pencil") && !has(&stored()), "{row:?}");
        }
    }

    #[test]
    fn databases_are_as_they_were() {
        let mut first = Scene::new("auth_type = plain");
        let there = |scene: &mut Scene, name: &str| scene.core.database_there(name).unwrap();
        for (name, change) in [
            ("d", (|it| it.paused = true) as fn(&mut Database)),
            ("q", |it| it.disabled = true),
            ("made", |it| it.idle_since = Some(Micros::from_secs(400))),
            ("used", |it| it.salted = Some(kept(b"x"))),
            ("gone", |it| it.forced_user = Some("forced".into())),
        ] {
            let id = there(&mut first, name);
            change(first.core.databases.get_mut(id).unwrap());
        }
        let mut next = Scene::new("auth_type = plain");
        next.core.now = Micros::from_secs(5000);
        first.hand_over(&mut next);
        let mut facts = Vec::new();
        for (_, it) in next.core.databases() {
            facts.push((
                it.name.to_string(),
                (it.paused, it.disabled, it.salted.is_some()),
                it.idle_since.map(|since| since.secs()),
                it.forced_user.as_deref().map(str::to_owned),
            ));
        }
        let forced = Some("forced".to_owned());
        let (no, name) = ((false, false, false), str::to_owned);
        assert_eq!(
            facts,
            [
                (name("d"), (true, false, false), None, None),
                (name("gone"), no, None, forced),
                (name("made"), no, Some(4400), None),
                ("pgbouncer".into(), no, None, Some("pgbouncer".into())),
                (name("q"), (false, true, false), None, None),
                (name("used"), (false, false, true), None, None),
            ]
        );
        // Where nothing is made from `*`, nobody is made up.
        let mut without = Scene::new("auth_type = plain");
        without.core.autodb = None;
        first.hand_over(&mut without);
        assert!(!without.core.database_names.contains_key("made"));
    }
}
