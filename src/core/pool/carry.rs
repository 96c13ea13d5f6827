//! Pools in a handoff: statistics, what clients are welcomed with, what has failed, where a pool is
//! in its list of hosts.

use super::{Pool, PoolId, Welcome};
use crate::base::fields::{read, Field, Fields};
use crate::core::carry::parts::{self, Place};
use crate::core::carry::{Kind, Known, Row};
use crate::core::stats::{Counters, PoolStats, COUNTERS};
use crate::core::vars::{Tracked, Vars};
use crate::core::Core;
use crate::tags;
use crate::wire::{read as packets, write, Reader};
use std::rc::Rc;

tags! {
    /// What is told of a pool.
    POOL_TAGS:
    1 PLACE "where it is found",
    2 LEADS_TO "where its servers are: who is told something else by its own files replaces them",
    3 TRACKED "the names of the tracked parameters, each with a zero behind it",
    4 WELCOMING "it knows what clients are told when they log in",
    5 WELCOME "a parameter that they are told: its name, zero, its value",
    6 LAST_LAUNCH "when a connection was last begun",
    7 CONNECT_FAILED "that came to nothing",
    8 LOGIN_FAILED "why the last login failed, if it did",
    9 LAST_ERROR "the same with all that is known",
    10 CANCEL_WENT_LAST "the last new connection took a cancel request",
    11 LAST_LIFETIME_CLOSE "when a server was last closed for its age",
    12 IDLE_SINCE "since when it has had neither clients nor servers",
    13 NEXT_HOST "which element of the list of hosts is next",
    14 NO_STANDBY "when no standby was found the last time that one was looked for",
    15 TOTAL "statistics: a counter since the pool exists; its name, zero, eight bytes",
    16 NEWER "the same at the last snapshot",
    17 OLDER "the same at the snapshot before",
}

impl Core {
    /// The rows of pools.
    pub(in crate::core) fn hand_out_pools(&self, rows: &mut Vec<Row>) {
        for id in self.all_pools() {
            if let Some(pool) = self.pools.get(id) {
                let mut fields = Fields::default();
                self.hand_out_pool(pool, &mut fields);
                rows.push(Row { kind: Kind::Pool, number: 0, state: fields.into_bytes() });
            }
        }
    }

    /// Pools of databases and of peers, in the order of their names.
    pub(in crate::core) fn all_pools(&self) -> Vec<PoolId> {
        self.pool_names.values().chain(self.peer_pools.values()).copied().collect()
    }

    fn hand_out_pool(&self, pool: &Pool, fields: &mut Fields) {
        let Pool {
            // Its place tells these.
            database: _database,
            user: _user,
            names: _names,
            peer: _peer,
            // Their members come in the order of these lists.
            clients: _clients,
            servers: _servers,
            welcome,
            last_launch,
            connect_failed,
            login_failed,
            last_error,
            cancel_went_last,
            last_lifetime_close,
            idle_since,
            hosts,
            stats,
            // All pools are looked at once by who takes them in.
            pending: _pending,
            starved: _starved,
        } = pool;
        let now = self.now;
        parts::put_place(fields, PLACE, pool);
        fields.put(LEADS_TO, &self.leads_to(pool));
        let names = self.tracked.names().flat_map(|name| [name.as_bytes(), b"\0"]);
        fields.put(TRACKED, &names.collect::<Vec<_>>().concat());
        if let Some(welcome) = welcome {
            self.hand_out_welcome(welcome, fields);
        }
        if last_launch.is_set() {
            fields.since(LAST_LAUNCH, *last_launch, now);
        }
        fields.flag(CONNECT_FAILED, *connect_failed);
        fields.put_some(LOGIN_FAILED, login_failed.as_ref().map(String::as_bytes));
        fields.put_some(LAST_ERROR, last_error.as_ref().map(String::as_bytes));
        fields.flag(CANCEL_WENT_LAST, *cancel_went_last);
        if last_lifetime_close.is_set() {
            fields.since(LAST_LIFETIME_CLOSE, *last_lifetime_close, now);
        }
        fields.since_some(IDLE_SINCE, *idle_since, now);
        let (next, no_standby) = hosts.hand_out();
        fields.count(NEXT_HOST, next.into());
        fields.since_some(NO_STANDBY, no_standby, now);
        let PoolStats { total, newer, older } = stats;
        for (tag, counters) in [(TOTAL, total), (NEWER, newer), (OLDER, older)] {
            put_counters(fields, tag, counters);
        }
    }

    fn hand_out_welcome(&self, welcome: &Welcome, fields: &mut Fields) {
        // The third is made of the second.
        let Welcome { untracked, vars, tracked: _tracked } = welcome;
        fields.flag(WELCOMING, true);
        for (name, value) in told(untracked) {
            parts::put_parameter(fields, WELCOME, name, value);
        }
        parts::put_vars(fields, WELCOME, &self.tracked, vars);
    }

    /// What decides whether a RELOAD has the servers of a pool replaced.
    fn leads_to(&self, pool: &Pool) -> Vec<u8> {
        let entry = self.databases.get(pool.database).map(|database| database.entry.place());
        entry.unwrap_or_default().into_bytes()
    }

    /// The pool that is found there, if there is such a database or peer.
    pub(in crate::core) fn pool_at(&mut self, place: &Place) -> Option<PoolId> {
        if let Some(peer) = place.peer {
            return self.peers.contains_key(&peer).then(|| self.pool_of_peer(peer));
        }
        let (database, user) = &place.names;
        let database = self.database_there(database)?;
        self.pool_of(database, user.as_str().into())
    }

    /// What was known of a pool. If its servers would be somewhere else now, nothing is that comes
    /// from them.
    pub(in crate::core) fn take_in_pool(&mut self, state: &[u8], known: &mut Known) {
        let place = read(state).find(|field| field.tag == PLACE);
        let Some(id) = place.and_then(|field| self.pool_at(&Place::read(field.value))) else {
            return;
        };
        let leads_to = self.pools.get(id).map_or_else(Vec::new, |pool| self.leads_to(pool));
        let now = self.now;
        let mut welcome = Welcome { untracked: Vec::new(), vars: Vars::new(), tracked: Vec::new() };
        let (mut is_welcoming, mut next, mut no_standby) = (false, 0, None);
        let Some(pool) = self.pools.get_mut(id) else { return };
        for field in read(state) {
            match field.tag {
                LEADS_TO if pool.peer.is_none() && field.value != leads_to => {
                    known.moved.insert(id);
                }
                TRACKED => {
                    let names = field.value.split(|byte| *byte == 0);
                    let places = names.filter_map(|name| self.tracked.find(name));
                    known.tracked.extend(places);
                }
                WELCOMING => is_welcoming = true,
                WELCOME => take_in_welcome(&mut welcome, field, &self.tracked),
                LAST_LAUNCH => pool.last_launch = field.since(now),
                CONNECT_FAILED => pool.connect_failed = true,
                LOGIN_FAILED => pool.login_failed = Some(field.text()),
                LAST_ERROR => pool.last_error = Some(field.text()),
                CANCEL_WENT_LAST => pool.cancel_went_last = true,
                LAST_LIFETIME_CLOSE => pool.last_lifetime_close = field.since(now),
                IDLE_SINCE => pool.idle_since = Some(field.since(now)),
                NEXT_HOST => next = field.number_u32(),
                NO_STANDBY => no_standby = Some(field.since(now)),
                TOTAL => take_in_counter(&mut pool.stats.total, field),
                NEWER => take_in_counter(&mut pool.stats.newer, field),
                OLDER => take_in_counter(&mut pool.stats.older, field),
                _ => {}
            }
        }
        if known.moved.contains(&id) {
            return;
        }
        pool.hosts.take_in(next, no_standby);
        if is_welcoming {
            welcome.tracked = welcome.vars.packets(&self.tracked);
            self.shared.share(&mut welcome.vars);
            pool.welcome = Some(Rc::new(welcome));
        }
    }
}

impl Welcome {
    /// True if clients are told this value of a parameter that is not tracked.
    pub(in crate::core) fn tells(&self, name: &[u8], value: &[u8]) -> bool {
        told(&self.untracked).any(|told| told == (name, value))
    }
}

/// Names and values in ParameterStatus packets.
fn told(packets: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut reader = Reader::new(packets);
    std::iter::from_fn(move || {
        let (_, len) = (reader.u8()?, reader.u32()?);
        packets::parameter_status(reader.bytes(len.saturating_sub(4) as usize)?)
    })
}

/// Reads a parameter that clients are told; who reads it may track others.
fn take_in_welcome(welcome: &mut Welcome, field: Field<'_>, tracked: &Tracked) {
    let Some((name, value)) = parts::parameter(field) else { return };
    match tracked.find(name) {
        Some(at) => welcome.vars.set(tracked, at, value.into()),
        None => write::parameter_status(&mut welcome.untracked, name, value),
    }
}

fn put_counters(fields: &mut Fields, tag: u16, counters: &Counters) {
    for row in COUNTERS {
        let value = counters.get(row.counter);
        if value != 0 {
            fields.put(tag, &[row.total.as_bytes(), b"\0", &value.to_be_bytes()].concat());
        }
    }
}

/// Reads a counter, if it is known here.
fn take_in_counter(counters: &mut Counters, field: Field<'_>) {
    let Some((rest, value)) = field.value.split_last_chunk::<8>() else { return };
    let row = COUNTERS.iter().find(|row| rest.strip_suffix(b"\0") == Some(row.total.as_bytes()));
    if let Some(row) = row {
        counters.add(row.counter, u64::from_be_bytes(*value));
    }
}
