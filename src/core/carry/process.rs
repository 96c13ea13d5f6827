//! The process as a whole, what SET has changed in it, and whether it can be left now.

use super::super::pause::Mode;
use super::super::Core;
use super::{Kind, Row, NUMBER_MAX};
use crate::base::fields::{self, Fields};
use crate::base::Level;
use crate::config::SetError;
use crate::tags;

tags! {
    /// Fields of the process.
    PROCESS_TAGS:
    1 LAST_NUMBER "the last number that was given to a client or server",
    2 PERIOD_BEGAN "age of the statistics' period",
    3 PERIOD_BEFORE "age of the period before it",
    4 STATISTICS_ENDED "with stats_period=0, the only line of statistics has been logged",
    5 PAUSED "PAUSE of everything is in force",
    6 MOCK_KEY "what the challenges for unknown users are made of: they stay the same",
    7 SERVER_TLS "how servers are connected by TLS: mode, files and more, as a text; nothing without TLS",
}

tags! {
    /// Fields of a parameter that SET has changed since the files were read.
    SETTING_TAGS:
    1 PARAMETER "its name",
    2 VALUE "the value as it was written",
}

/// The file that is read at a reload is the one that this process has been started with.
const NOT_REPEATED: &str = "conffile";

impl Core {
    /// Why this process can't be left to a successor now, if it can't. What has come to rest is
    /// about to be somebody else's, and who shuts down wants nobody to go on.
    pub fn refuses_handoff(&self) -> Option<&'static str> {
        if self.shutdown.is_some() {
            return Some("pooler is shutting down");
        }
        if self.elder.is_some() {
            return Some("the process before this one still has clients; use --adopt=soft again");
        }
        (self.is_suspended() || self.mode == Mode::Suspended).then_some("already suspended/paused")
    }

    /// True if nobody is in the midst of something that a successor would have to begin anew, or
    /// can't go on with at all: a job, an answer on the console.
    pub fn is_settled(&self) -> bool {
        let logins = self.login_clients.ids(&self.clients).into_iter();
        let mut logins = logins.filter_map(|id| self.clients.get(id)?.login.as_deref());
        self.left_consoles.is_empty() && logins.all(|login| login.job.is_none())
    }

    /// The rows of the process and of its settings.
    pub(super) fn hand_out_process(&self, rows: &mut Vec<Row>) {
        rows.push(Row { kind: Kind::Process, number: 0, state: self.process_fields() });
        for (name, value) in &self.set_by_hand {
            let mut fields = Fields::default();
            fields.put(PARAMETER, name.as_bytes());
            fields.put(VALUE, value.as_bytes());
            rows.push(Row { kind: Kind::Setting, number: 0, state: fields.into_bytes() });
        }
    }

    /// Everything that a core has is named here: a new field has to be decided about.
    fn process_fields(&self) -> Vec<u8> {
        let Core {
            now,
            journal: _lines_are_printed_here,
            status: _told_to_the_service_manager_of_this_process,
            settings: _read_from_files,
            set_by_hand: _rows_of_their_own,
            tracked: _from_settings,
            shared: _made_while_reading,
            databases: _have_rows_of_their_own,
            database_names: _of_databases,
            autodb: _read_from_files_too,
            users: _rows_of_their_own_too,
            rules: _read_from_other_files,
            user_names: _of_users,
            fetched: _among_users,
            lookups: _begun_anew,
            peers: _read_from_files_as_well,
            pools: _rows,
            pool_names: _of_pools,
            peer_pools: _among_pools,
            clients: _have_rows,
            servers: _have_rows_too,
            login_clients: _the_order_of_clients,
            startup_options: _with_clients,
            some_user_idles: _from_files,
            cancel_keys: _of_clients,
            actions: _done_before_a_turn_ends,
            jobs: _who_waits_for_them_asks_again,
            pending: _all_are_looked_at,
            starved: _try_again,
            exhausted: _of_one_turn,
            mode,
            tls,
            shutdown: _refused,
            is_draining: _only_during_a_shutdown,
            elder: _forgotten_with_its_cancel_requests,
            waiters: _with_their_consoles,
            stalled: _with_their_consoles_too,
            left_consoles: _with_consoles,
            suspension: _refused_too,
            period,
            stats_period,
            // Who knows one process's seed shall not know the next one's keys.
            random: _has_its_own,
            mock_key,
            own_uid: _the_same,
            host_name: _the_same_too,
            last_number,
            statements: _have_their_rows,
        } = self;
        let mut fields = Fields::default();
        fields.number(LAST_NUMBER, *last_number);
        fields.since(PERIOD_BEGAN, period.newer, *now);
        fields.since(PERIOD_BEFORE, period.older, *now);
        fields.flag(STATISTICS_ENDED, *stats_period < 0);
        fields.flag(PAUSED, *mode == Mode::Paused);
        fields.put(MOCK_KEY, mock_key);
        fields.put(SERVER_TLS, tls.way_to_servers.as_bytes());
        fields.into_bytes()
    }

    /// What the process was doing.
    pub(super) fn take_in_process(&mut self, state: &[u8]) {
        for field in fields::read(state) {
            match field.tag {
                LAST_NUMBER => {
                    self.last_number = self.last_number.max(field.number().min(NUMBER_MAX));
                }
                PERIOD_BEGAN => self.period.newer = field.since(self.now),
                PERIOD_BEFORE => self.period.older = field.since(self.now),
                STATISTICS_ENDED if self.stats_period == 0 => self.stats_period = -1,
                PAUSED => self.mode = Mode::Paused,
                MOCK_KEY => self.mock_key = field.value.try_into().unwrap_or(self.mock_key),
                SERVER_TLS => self.tls.way_before = Some(field.text()),
                _ => {}
            }
        }
    }

    /// A parameter that had been changed by SET: so it is here. Values are not logged, there may be
    /// passwords in them.
    pub(super) fn take_in_setting(&mut self, state: &[u8]) {
        let (mut name, mut value) = (String::new(), String::new());
        for field in fields::read(state) {
            match field.tag {
                PARAMETER => name = field.text(),
                VALUE => value = field.text(),
                _ => {}
            }
        }
        if name == NOT_REPEATED {
            return;
        }
        let (level, what) = match self.set_parameter(&name, &value) {
            Ok(()) => (Level::Log, "is as SET in the old process"),
            Err(SetError::Unknown) => (Level::Warning, "was SET in the old process, unknown here"),
            Err(SetError::Refused(_)) => {
                (Level::Warning, "was SET in the old process, the value is refused here")
            }
        };
        self.journal.line(level, format!("{name} {what}"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::face::ClientId;
    use super::super::super::login_scene::Scene;
    use super::super::super::pause::{Shutdown, Signal};
    use super::*;
    use crate::base::Micros;

    fn number(scene: &Scene, id: ClientId) -> u64 {
        scene.core.clients.get(id).unwrap().number()
    }

    #[test]
    fn numbers_periods_and_pause_go_on() {
        let mut first = Scene::new("auth_type = plain\nclient_login_timeout = 0");
        let ids = [(); 3].map(|()| first.beginner("plain", "d"));
        first.core.now = Micros::from_secs(1300);
        first.core.tick();
        first.core.now = Micros::from_secs(1310);
        first.core.signalled(Signal::Pause);
        first.act();
        let period = first.core.period();
        let mut next = Scene::new("auth_type = plain");
        next.core.now = Micros::from_secs(9000);
        let there = first.hand_over(&mut next);
        assert_eq!(ids.map(|id| number(&next, there[&id])), ids.map(|id| number(&first, id)));
        let fresh = next.beginner("plain", "d");
        assert!(number(&next, fresh) > number(&first, ids[2]));
        assert_eq!(next.core.mode(), Mode::Paused);
        let ages =
            |core: &Core| (core.now.since(core.period.newer), core.now.since(core.period.older));
        assert_eq!(ages(&next.core), ages(&first.core));
        assert_eq!(first.core.period().newer, period.newer);
        assert_eq!(next.core.mock_key, first.core.mock_key);
        assert_ne!(next.core.random.bytes::<8>(), [0; 8]);
    }

    #[test]
    fn what_was_set_is_set_again_as_far_as_it_is_known() {
        let mut first = Scene::new("");
        for (name, value) in [
            ("default_pool_size", "7"),
            ("auth_ldap_options", "ldapbindpasswd=x"),
            ("conffile", "elsewhere"),
            ("query_timeout", "1.5"),
        ] {
            first.core.set_parameter(name, value).unwrap();
        }
        let mut next = Scene::new("default_pool_size = 3\nquery_wait_timeout = 9");
        let row = |name: &[u8], value: &[u8]| {
            let mut fields = Fields::default();
            fields.put(PARAMETER, name);
            fields.put(VALUE, value);
            fields.into_bytes()
        };
        next.core.take_in_setting(&row(b"of_tomorrow", b"1"));
        next.core.take_in_setting(&row(b"query_timeout", b"of tomorrow"));
        next.core.take_in_setting(b"");
        first.hand_over(&mut next);
        let settings = next.core.settings();
        assert_eq!(settings.default_pool_size, 7);
        assert_eq!(settings.query_timeout, Micros(1_500_000));
        assert_eq!(settings.query_wait_timeout, Micros::from_secs(9));
        assert_eq!(settings.conffile, None);
        let log = next.log();
        assert!(log.contains("Log default_pool_size is as SET in the old process\n"), "{log}");
        assert!(log.contains("Warning of_tomorrow was SET in the old process, unknown here\n"));
        assert!(!log.contains("ldapbindpasswd"));
        // The one after the next knows it, too.
        let mut third = Scene::new("");
        next.hand_over(&mut third);
        assert_eq!(third.core.settings().default_pool_size, 7);
    }

    #[test]
    fn who_ends_or_is_suspended_is_not_handed_over() {
        let refusal = |change: fn(&mut Core)| {
            let mut scene = Scene::new("");
            change(&mut scene.core);
            scene.core.refuses_handoff()
        };
        assert_eq!(refusal(|_| {}), None);
        assert_eq!(refusal(|core| core.pause_all(None)), None);
        assert_eq!(
            refusal(|core| core.suspend(ClientId::none())),
            Some("already suspended/paused")
        );
        for how in [Shutdown::WaitForClients, Shutdown::WaitForServers] {
            let mut scene = Scene::new("");
            scene.core.begin_shutdown(how);
            assert_eq!(scene.core.refuses_handoff(), Some("pooler is shutting down"));
        }
    }

    #[test]
    fn nonsense_is_survived() {
        let mut scene = Scene::new("");
        let mut fields = Fields::default();
        fields.number(LAST_NUMBER, u64::MAX);
        fields.number(PERIOD_BEGAN, u64::MAX);
        fields.put(MOCK_KEY, b"short");
        fields.put(99, b"of tomorrow");
        scene.core.take_in_process(&fields.into_bytes());
        let id = scene.beginner("plain", "d");
        assert_eq!(number(&scene, id), NUMBER_MAX + 1);
    }
}
