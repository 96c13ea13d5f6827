//! What a run's configuration is: drawn from the seed, changed by RELOAD.

use crate::dice::Dice;
use crate::hosts;
use crate::jobs::{stored_secret, PASSWORD};
use crate::talk::STYLE;
use crate::texts::Text;
use pgturnstile::base::Micros;
use pgturnstile::config::{
    AuthType, Config, DatabaseEntry, Flag, LoadBalance, PeerEntry, PoolMode, Settings, UserEntry,
};
use std::collections::{BTreeMap, BTreeSet};

/// A database.
#[derive(Clone, Debug)]
pub struct DatabasePlan {
    /// Its name.
    pub name: String,
    /// What is configured.
    pub entry: DatabaseEntry,
}

/// A run's configuration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Settings.
    pub settings: Settings,
    /// The databases that are configured.
    pub databases: Vec<DatabasePlan>,
    /// Databases that a reload has removed: clients still ask for them.
    pub removed: Vec<DatabasePlan>,
    /// The users that clients log in as.
    pub users: Vec<String>,
    /// Users that a reload has removed.
    pub unlisted: BTreeSet<String>,
    /// Entries of `[users]`.
    pub entries: BTreeMap<String, UserEntry>,
    /// Other processes behind the same address.
    pub peers: BTreeMap<u32, PeerEntry>,
    /// Nothing goes wrong by itself: no fault, no RELOAD, no timeouts.
    pub calm: bool,
    /// Some servers ask for a SCRAM proof.
    pub servers_ask: bool,
    /// Clients at the same time.
    pub clients: usize,
    /// Little is in the way: what is said arrives soon, and clients have much to say.
    pub brisk: bool,
    /// Texts that are prepared, and limits on how many statements a server keeps.
    pub texts: usize,
    pub limits: &'static [i32],
}

const SECOND: Micros = Micros::from_secs(1);
const HOUR: Micros = Micros::from_secs(3600);
const OFF: Micros = Micros(0);

impl Plan {
    /// Draws a configuration.
    pub fn new(dice: &mut Dice) -> Plan {
        let calm = dice.chance(30);
        let databases = (0..dice.pick(&[1, 1, 2, 3]))
            .map(|number| DatabasePlan { name: format!("db{number}"), entry: entry(dice) })
            .collect();
        let mut plan = Plan {
            settings: settings(dice),
            databases,
            removed: Vec::new(),
            users: vec!["ann".into(), "bob".into()],
            unlisted: BTreeSet::new(),
            entries: ["ann", "bob", "app"].map(|name| (name.to_owned(), user(dice))).into(),
            peers: BTreeMap::new(),
            calm,
            servers_ask: false,
            clients: 2 + dice.below(11),
            brisk: dice.chance(22),
            texts: 2 + dice.below(Text::COUNT - 1),
            limits: dice.pick(&[&[0][..], &[1], &[2, 3], &[1, 2, 3, 4, -1, 200]]),
        };
        plan.settings.max_prepared_statements = dice.pick(plan.limits);
        if plan.brisk {
            plan.draw_smooth(dice);
            return plan;
        }
        if dice.chance(50) {
            plan.draw_limits(dice);
        }
        (plan.settings.peer_id, plan.peers) = crate::cancels::draw(dice);
        if !calm {
            plan.draw_timeouts(dice);
        }
        match dice.chance(40) {
            true => plan.draw_auth_query(dice),
            false => plan.draw_authentication(dice),
        }
        for database in &mut plan.databases {
            hosts::draw(&mut database.entry, dice);
        }
        plan
    }

    /// The configuration as the core takes it.
    pub fn config(&self) -> Config {
        let databases = self.databases.iter();
        Config {
            settings: self.settings.clone(),
            databases: databases
                .map(|database| (database.name.clone(), database.entry.clone()))
                .collect(),
            users: self.entries.clone(),
            peers: self.peers.clone(),
            ..Config::default()
        }
    }

    /// The user list as the core takes it.
    pub fn user_list(&self) -> Vec<(String, Vec<u8>)> {
        let listed = self.users.iter().filter(|name| !self.unlisted.contains(*name));
        let secret = match self.settings.auth_type {
            AuthType::Plain => stored_secret().text().into_bytes(),
            _ => PASSWORD.to_vec(),
        };
        // Forced users log in to servers, too.
        let listed = listed.cloned().chain(["app".to_owned()]);
        listed.map(|name| (name, secret.clone())).collect()
    }

    /// Who has to prove what to whom. Who has a SCRAM secret and sent a password in clear text has
    /// nothing to prove it with.
    fn draw_authentication(&mut self, dice: &mut Dice) {
        let settings = &mut self.settings;
        settings.auth_type =
            dice.pick(&[AuthType::Trust, AuthType::Trust, AuthType::Plain, AuthType::Pam]);
        self.servers_ask = settings.auth_type != AuthType::Plain && dice.chance(50);
    }

    /// Small pools that work most of the time.
    fn draw_smooth(&mut self, dice: &mut Dice) {
        let settings = &mut self.settings;
        settings.server_login_retry = OFF;
        settings.server_lifetime = dice.pick(&[HOUR, HOUR, SECOND]);
        settings.server_idle_timeout = OFF;
        settings.server_check_delay = Micros::from_secs(30);
        settings.default_pool_size = dice.pick(&[1, 2, 3]);
        self.databases.truncate(2);
        for database in &mut self.databases {
            database.entry.pool_size = None;
            database.entry.server_lifetime = None;
            let modes = [PoolMode::Transaction, PoolMode::Transaction, PoolMode::Statement];
            database.entry.pool_mode = Some(dice.pick(&modes));
        }
    }

    /// Sizes and limits of servers and clients.
    fn draw_limits(&mut self, dice: &mut Dice) {
        let settings = &mut self.settings;
        settings.reserve_pool_size = dice.pick(&[0, 1, 1, 2]);
        settings.reserve_pool_timeout = dice.pick(&[OFF, Micros(300_000), SECOND, SECOND]);
        settings.min_pool_size = dice.pick(&[0, 0, 1, 3]);
        settings.max_db_connections = dice.pick(&[0, 0, 1, 2, 4]);
        settings.max_user_connections = dice.pick(&[0, 0, 0, 2, 4]);
        settings.pool_idle_timeout = dice.pick(&[OFF, OFF, SECOND, Micros::from_secs(10)]);
        if !self.calm {
            settings.max_client_conn = dice.pick(&[5, 100, 100]);
            settings.max_db_client_connections = dice.pick(&[0, 0, 3]);
            settings.max_user_client_connections = dice.pick(&[0, 0, 3]);
        }
        for database in &mut self.databases {
            if dice.chance(30) {
                draw_database_limits(&mut database.entry, self.calm, dice);
            }
        }
        for entry in self.entries.values_mut() {
            if dice.chance(30) {
                entry.pool_size = dice.pick(&[None, Some(-1), Some(1), Some(3)]);
                entry.reserve_pool_size = dice.pick(&[None, Some(0), Some(2)]);
                entry.max_user_connections = dice.pick(&[None, Some(0), Some(2), Some(3)]);
                if !self.calm {
                    entry.max_user_client_connections = dice.pick(&[None, Some(0), Some(2)]);
                }
            }
        }
    }

    /// How long clients may wait, run and idle.
    fn draw_timeouts(&mut self, dice: &mut Dice) {
        let secs = Micros::from_secs;
        let settings = &mut self.settings;
        settings.query_wait_timeout = dice.pick(&[OFF, secs(5), secs(120)]);
        settings.cancel_wait_timeout = dice.pick(&[OFF, secs(2), secs(10)]);
        settings.client_login_timeout = dice.pick(&[OFF, secs(3), secs(60)]);
        settings.server_connect_timeout = dice.pick(&[OFF, secs(2), secs(15)]);
        // Half of the runs have nothing that ends what is going on.
        let harsh = dice.chance(50);
        let mut some = || match harsh && dice.chance(30) {
            true => dice.pick(&[Micros(400_000), SECOND, secs(3), secs(10)]),
            false => OFF,
        };
        settings.query_timeout = some();
        settings.idle_transaction_timeout = some();
        settings.transaction_timeout = some();
        settings.client_idle_timeout = some();
        let mut own = || match harsh && dice.chance(15) {
            true => Some(dice.pick(&[OFF, SECOND, secs(5), Micros(u64::MAX)])),
            false => None,
        };
        for entry in self.entries.values_mut() {
            entry.query_timeout = own();
            entry.idle_transaction_timeout = own();
            entry.transaction_timeout = own();
            entry.client_idle_timeout = own();
            entry.query_wait_timeout = own();
        }
        for database in &mut self.databases {
            database.entry.query_wait_timeout = own();
        }
    }

    /// Nothing ends by itself any more, and nothing that can't be worked off is left: databases
    /// with a forced user can't make way for others of that user (pooling 2.5), and short lives
    /// and min_pool_size keep a pool busy for ever.
    pub fn calm_down(&mut self) {
        let settings = &mut self.settings;
        settings.query_timeout = OFF;
        settings.idle_transaction_timeout = OFF;
        settings.transaction_timeout = OFF;
        settings.client_idle_timeout = OFF;
        settings.query_wait_timeout = OFF;
        settings.client_login_timeout = OFF;
        // A login may take some rounds.
        settings.server_connect_timeout = match settings.server_connect_timeout {
            OFF => OFF,
            _ => Micros::from_secs(15),
        };
        settings.max_client_conn = 1000;
        // Who waits for a client that is not read any more waits for ever.
        settings.suspend_timeout = match settings.suspend_timeout {
            OFF => SECOND,
            limit => limit,
        };
        // A reserve that is in use can leave no room for cancel requests.
        settings.cancel_wait_timeout = match settings.reserve_pool_size {
            0 => settings.cancel_wait_timeout,
            _ => Micros::from_secs(10),
        };
        let forced = self.databases.iter().any(|database| database.entry.user.is_some());
        if forced {
            settings.max_user_connections = 0;
        }
        for entry in self.entries.values_mut() {
            entry.query_timeout = None;
            entry.idle_transaction_timeout = None;
            entry.transaction_timeout = None;
            entry.client_idle_timeout = None;
            entry.query_wait_timeout = None;
            if forced {
                entry.max_user_connections = None;
            }
        }
        let keeps = |database: &DatabasePlan| self.min_size((&database.name, "")) > 0;
        let keeps = self.databases.iter().any(keeps);
        if keeps {
            self.settings.server_lifetime = HOUR;
        }
        for database in &mut self.databases {
            database.entry.query_wait_timeout = None;
            if keeps {
                database.entry.server_lifetime = None;
            }
        }
    }

    /// Something changes, as by an edit of the file. Returns what, for the trace.
    pub fn edit(&mut self, dice: &mut Dice) -> String {
        let at = dice.below(self.databases.len());
        match dice.below(20) {
            0 if self.databases.len() > 1 => {
                let gone = self.databases.remove(at);
                let text = format!("{} is removed", gone.name);
                self.removed.push(gone);
                return text;
            }
            0..=2 if !self.removed.is_empty() => {
                let mut back = self.removed.swap_remove(0);
                edit_entry(&mut back.entry, dice);
                self.databases.push(back);
            }
            3 => {
                let at = dice.below(self.users.len());
                let name = self.users[at].clone();
                if !self.unlisted.remove(&name) {
                    self.unlisted.insert(name);
                }
                return format!("users {:?}", self.user_list());
            }
            4 => self.draw_limits(dice),
            5 => self.draw_timeouts(dice),
            6 => {
                let name = dice.pick(&["ann", "bob", "app"]);
                self.entries.insert(name.into(), user(dice));
            }
            7 => self.settings.default_pool_size = dice.pick(&[0, 1, 1, 2, 4]),
            8 => self.settings.server_round_robin = Flag(dice.below(2) as i32),
            9 => self.settings.pool_mode = mode(dice),
            10 => self.peers = crate::cancels::peers(dice),
            11 => {
                let limit = if dice.chance(30) { 0 } else { dice.pick(self.limits) };
                self.settings.max_prepared_statements = limit;
                return format!("max_prepared_statements {limit}");
            }
            _ => edit_entry(&mut self.databases[at].entry, dice),
        }
        format!("{:?} {:?}", self.databases, self.entries)
    }
}

fn draw_database_limits(entry: &mut DatabaseEntry, calm: bool, dice: &mut Dice) {
    entry.reserve_pool_size = dice.pick(&[None, Some(-1), Some(0), Some(2)]);
    entry.min_pool_size = dice.pick(&[None, Some(-1), Some(0), Some(2)]);
    entry.max_db_connections = dice.pick(&[None, Some(-1), Some(0), Some(1), Some(3)]);
    if !calm {
        entry.max_db_client_connections = dice.pick(&[None, Some(0), Some(2), Some(4)]);
    }
}

/// The place changes that a database's servers are at. A forced user is never taken away: that has no
/// effect.
pub fn edit_place(entry: &mut DatabaseEntry, dice: &mut Dice) {
    match dice.below(4) {
        0 => entry.host = Some(dice.pick(&["h1", "h2", "h1,h2", "h3"]).to_owned()),
        1 => entry.port = Some(dice.pick(&[5432, 5433]).into()),
        2 => entry.dbname = Some(dice.pick(&["one", "two"]).to_owned()),
        _ => entry.user = Some(dice.pick(&["app", "app", "ann"]).to_owned()),
    }
    hosts::fix(entry, dice);
}

/// One thing about a database changes.
fn edit_entry(entry: &mut DatabaseEntry, dice: &mut Dice) {
    match dice.below(12) {
        0..=3 => return edit_place(entry, dice),
        4 => entry.pool_mode = Some(mode(dice)),
        5 => entry.pool_mode = None,
        6 => entry.pool_size = None,
        7 => entry.connect_query = Some(dice.pick(&["SELECT 1", "SELECT 2"]).to_owned()),
        8 => entry.load_balance_hosts = Some(LoadBalance::Disable),
        9 => draw_database_limits(entry, false, dice),
        10 => hosts::draw(entry, dice),
        _ => entry.pool_size = Some(dice.pick(&[0, 1, 1, 2, 4])),
    }
    hosts::fix(entry, dice);
}

fn mode(dice: &mut Dice) -> PoolMode {
    dice.pick(&[
        PoolMode::Session,
        PoolMode::Transaction,
        PoolMode::Transaction,
        PoolMode::Statement,
    ])
}

fn user(dice: &mut Dice) -> UserEntry {
    UserEntry { pool_mode: dice.chance(8).then(|| mode(dice)), ..UserEntry::default() }
}

fn entry(dice: &mut Dice) -> DatabaseEntry {
    let size = dice.pick(&[0, 0, 1, 2, 4]);
    DatabaseEntry {
        dbname: Some("one".into()),
        host: Some(dice.pick(&["h1", "h2", "h1,h2"]).to_owned()),
        port: Some(5432.into()),
        pool_mode: Some(mode(dice)),
        pool_size: (size > 0).then_some(size),
        user: dice.chance(20).then(|| "app".to_owned()),
        connect_query: dice.chance(15).then(|| "SELECT 1".to_owned()),
        application_name: dice.chance(20).then(|| "pooled".to_owned()),
        load_balance_hosts: dice.chance(30).then_some(LoadBalance::Disable),
        server_lifetime: dice.chance(10).then(|| Micros::from_secs(2)),
        ..DatabaseEntry::default()
    }
}

/// What does not depend on the kind of run; timeouts of clients are off.
fn settings(dice: &mut Dice) -> Settings {
    let mut choose = |values: &[Micros]| dice.pick(values);
    let mut settings = Settings {
        auth_type: AuthType::Trust,
        // Where it is not tracked.
        ignore_startup_parameters: STYLE.to_owned(),
        server_login_retry: choose(&[OFF, SECOND, Micros::from_secs(15)]),
        server_lifetime: choose(&[HOUR, HOUR, SECOND, OFF]),
        server_idle_timeout: choose(&[OFF, HOUR, SECOND]),
        server_check_delay: choose(&[OFF, SECOND, Micros::from_secs(30)]),
        suspend_timeout: choose(&[OFF, SECOND, SECOND, Micros::from_secs(10)]),
        query_wait_timeout: OFF,
        client_login_timeout: OFF,
        server_connect_timeout: OFF,
        cancel_wait_timeout: choose(&[OFF, Micros::from_secs(10)]),
        ..Settings::default()
    };
    settings.default_pool_size = dice.pick(&[1, 1, 2, 3, 4]);
    settings.server_reset_query = dice.pick(&["DISCARD ALL", "DISCARD ALL", ""]).to_owned();
    settings.server_reset_query_always = Flag(i32::from(dice.chance(25)));
    settings.server_check_query = dice.pick(&["<empty>", "SELECT 1", ""]).to_owned();
    settings.server_round_robin = Flag(dice.below(2) as i32);
    settings.query_wait_notify = dice.pick(&[0, 1, 5]);
    settings.server_fast_close = Flag(i32::from(dice.chance(30)));
    settings
}
