//! What a run's configuration is: drawn from the seed, changed by RELOAD.

use crate::dice::Dice;
use pgturnstile::base::Micros;
use pgturnstile::config::{
    AuthType, Config, DatabaseEntry, Flag, LoadBalance, PoolMode, Settings, UserEntry,
};
use std::collections::BTreeMap;

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
    /// The databases that clients ask for.
    pub databases: Vec<DatabasePlan>,
    /// The users.
    pub users: Vec<String>,
    /// Nothing goes wrong by itself: no fault, no RELOAD, no timeouts.
    pub calm: bool,
    /// Clients at the same time.
    pub clients: usize,
}

impl Plan {
    /// Draws a configuration.
    pub fn new(dice: &mut Dice) -> Plan {
        let calm = dice.chance(30);
        let databases = (0..1 + dice.below(3))
            .map(|number| DatabasePlan { name: format!("db{number}"), entry: entry(dice) })
            .collect();
        Plan {
            settings: settings(dice, calm),
            databases,
            users: vec!["ann".into(), "bob".into()],
            calm,
            clients: 2 + dice.below(9),
        }
    }

    /// The configuration as the core takes it.
    pub fn config(&self) -> Config {
        let databases = self.databases.iter();
        Config {
            settings: self.settings.clone(),
            databases: databases
                .map(|database| (database.name.clone(), database.entry.clone()))
                .collect(),
            users: BTreeMap::from([("ann".to_owned(), UserEntry::default())]),
            ..Config::default()
        }
    }

    /// Something changes, as by an edit of the file. Returns what, for the trace.
    pub fn edit(&mut self, dice: &mut Dice) -> String {
        let at = dice.below(self.databases.len());
        let entry = &mut self.databases[at].entry;
        match dice.below(6) {
            0 => entry.host = Some(dice.pick(&["h1", "h2", "h1,h2", "h3"]).to_owned()),
            1 => entry.pool_size = Some(1 + dice.below(4) as i32),
            2 => self.settings.default_pool_size = 1 + dice.below(4) as i32,
            3 => entry.dbname = Some(dice.pick(&["one", "two"]).to_owned()),
            4 => self.settings.server_round_robin = Flag(dice.below(2) as i32),
            _ => entry.pool_size = None,
        }
        format!("{:?}", self.databases[at])
    }
}

fn entry(dice: &mut Dice) -> DatabaseEntry {
    let mode = dice.pick(&[
        PoolMode::Session,
        PoolMode::Transaction,
        PoolMode::Transaction,
        PoolMode::Statement,
    ]);
    let size = dice.below(5) as i32;
    DatabaseEntry {
        dbname: Some("one".into()),
        host: Some(dice.pick(&["h1", "h2", "h1,h2"]).to_owned()),
        port: Some(5432),
        pool_mode: Some(mode),
        pool_size: (size > 0).then_some(size),
        user: dice.chance(20).then(|| "app".to_owned()),
        connect_query: dice.chance(15).then(|| "SELECT 1".to_owned()),
        application_name: dice.chance(20).then(|| "pooled".to_owned()),
        load_balance_hosts: dice.chance(30).then_some(LoadBalance::Disable),
        server_lifetime: dice.chance(10).then(|| Micros::from_secs(2)),
        ..DatabaseEntry::default()
    }
}

fn settings(dice: &mut Dice, calm: bool) -> Settings {
    let second = Micros::from_secs(1);
    let hour = Micros::from_secs(3600);
    let off = Micros(0);
    let mut choose = |values: &[Micros]| dice.pick(values);
    let mut settings = Settings {
        auth_type: AuthType::Trust,
        server_login_retry: choose(&[off, second, Micros::from_secs(15)]),
        server_lifetime: choose(&[hour, hour, second, off]),
        server_idle_timeout: choose(&[off, hour, second]),
        server_check_delay: choose(&[off, second, Micros::from_secs(30)]),
        query_wait_timeout: choose(&[off, Micros::from_secs(5), Micros::from_secs(120)]),
        cancel_wait_timeout: choose(&[off, Micros::from_secs(10)]),
        ..Settings::default()
    };
    settings.default_pool_size = 1 + dice.below(4) as i32;
    settings.server_reset_query = dice.pick(&["DISCARD ALL", "DISCARD ALL", ""]).to_owned();
    settings.server_reset_query_always = Flag(i32::from(dice.chance(25)));
    settings.server_check_query = dice.pick(&["<empty>", "SELECT 1", ""]).to_owned();
    settings.server_round_robin = Flag(dice.below(2) as i32);
    settings.server_fast_close = Flag(i32::from(dice.chance(30)));
    settings.max_client_conn = dice.pick(&[5, 100, 100]);
    if calm {
        settings.query_wait_timeout = off;
        settings.client_login_timeout = off;
        settings.server_connect_timeout = off;
        settings.max_client_conn = 100;
    }
    settings
}
