//! Replication connections, byte by byte: each client has a server of its own (pooling 9).

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::primary;
use crate::rig::raw::{Login, Raw};
use crate::rig::scratch::{scratch, write};
use crate::rig::wait_until;
use crate::rig::wire::{bind, execute, fatal, last_error, msg, parse, query, rows, startup};
use crate::rig::wire::{sync, tags, terminate, Msg};

/// Pooler in transaction mode, and a database of its own in the PostgreSQL that can be replicated.
pub(crate) fn replicating(settings: &str) -> (Pooler, String) {
    (Pooler::start(&setup(settings)), primary().new_database())
}

fn setup(settings: &str) -> Setup {
    Setup {
        databases: format!("* = host=127.0.0.1 port={}\n", primary().port),
        settings: format!("pool_mode = transaction\n{settings}"),
        users: "\"trusty\" \"\"\n\"plainy\" \"plainy-pw\"\n".to_owned(),
    }
}

fn attempt(pooler: &Pooler, user: &str, database: &str, more: &[(&str, &str)]) -> Login {
    let parameters = [&[("user", user), ("database", database)], more].concat();
    pooler.tcp().login_with(&startup(0, &parameters), user, "")
}

pub(crate) fn connect(pooler: &Pooler, database: &str, more: &[(&str, &str)]) -> (Raw, Vec<Msg>) {
    attempt(pooler, "trusty", database, more).unwrap_or_else(|e| panic!("no login: {e:?}"))
}

const LOGICAL: (&str, &str) = ("replication", "database");
pub(crate) const PHYSICAL: (&str, &str) = ("replication", "true");

fn logical(pooler: &Pooler, database: &str) -> Raw {
    connect(pooler, database, &[LOGICAL]).0
}

/// Starts to stream changes of a table `t`, which is made here, from a slot that goes with the
/// connection.
fn stream(client: &mut Raw, database: &str) {
    primary().value(database, "create table if not exists t (a text)");
    let slot = format!("s{}", scratch().serial());
    let made = client.query(&format!(
        "CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL test_decoding NOEXPORT_SNAPSHOT"
    ));
    assert_eq!(tags(&made), "TDCZ", "{made:?}");
    client.send(&query(&format!("START_REPLICATION SLOT {slot} LOGICAL 0/0")));
    assert_eq!(tags(&client.until(b'W')), "W");
}

/// Reads until a change with this text comes.
fn await_change(client: &mut Raw, text: &str) {
    loop {
        let data = client.recv().expect("the stream ended");
        assert_eq!(data.tag, b'd', "{data:?}");
        if data.body[0] == b'w' && String::from_utf8_lossy(&data.body[25..]).contains(text) {
            return;
        }
    }
}

/// A standby status update, which asks for an answer if `reply`.
pub(crate) fn status(reply: bool) -> Vec<u8> {
    let mut body = vec![b'r'];
    body.extend([0; 32]);
    body.push(reply.into());
    msg(b'd', &body)
}

fn pid(client: &mut Raw) -> String {
    client.value("select pg_backend_pid()")
}

/// Ends a stream by Terminate: what is on its way still comes.
fn leave(mut client: Raw) {
    client.send(&terminate());
    let rest = tags(&client.rest());
    assert_eq!(rest.replace('d', ""), "");
}

fn is_gone(pid: &str) -> bool {
    let sql = format!("select count(*) from pg_stat_activity where pid = {pid}");
    primary().value("postgres", &sql) == "0"
}

#[test]
fn kinds_are_told_apart_logged_and_shown() {
    let (pooler, database) = replicating("");
    for (value, word, shown) in [
        ("database", "database", "logical"),
        ("true", "yes", "physical"),
        ("ON", "yes", "physical"),
        ("1", "yes", "physical"),
        ("off", "no", "none"),
        ("Database", "no", "none"),
        ("nonsense", "no", "none"),
    ] {
        let (mut client, _) = connect(&pooler, &database, &[("replication", value)]);
        let sql = if word == "no" { "begin" } else { "IDENTIFY_SYSTEM" };
        let answer = client.query(sql);
        assert_eq!(tags(&answer), if word == "no" { "CZ" } else { "TDCZ" }, "{value}");
        for table in ["CLIENTS", "SERVERS"] {
            let kinds = pooler.show(table, "replication", ("state", "active"));
            assert!(kinds.contains(&shown.to_owned()), "{value} {table} {kinds:?}");
        }
        pooler.wait_log(&format!("tls=no replication={word}\n"));
        client.bye();
        if word != "no" {
            let line =
                format!("LOG S {database}/trusty closing because: replication client was closed");
            pooler.wait_lines(&[&line]);
        }
        wait_until("no replication server is left", || {
            let kinds = pooler.show("SERVERS", "replication", ("database", &database));
            kinds.iter().all(|kind| kind == "none")
        });
    }
}

#[test]
fn each_client_has_a_fresh_server_that_nobody_else_gets() {
    for mode in ["transaction", "statement", "session"] {
        let (mut pooler, database) = replicating(&format!("pool_mode = {mode}"));
        let mut first = pooler.client(&database);
        let shared = pid(&mut first);
        first.bye();
        let mut clients: Vec<Raw> = (0..3).map(|_| logical(&pooler, &database)).collect();
        wait_until("the first server is idle", || pooler.pool(&database, "sv_idle") == 1);
        assert!(pooler.servers(&database).iter().eq([&shared]), "a welcome takes no server");
        let pids: Vec<String> = clients.iter_mut().map(pid).collect();
        for (place, pid) in pids.iter().enumerate() {
            assert!(*pid != shared && !pids[..place].contains(pid), "{pids:?} {shared}");
        }
        // They keep it, also behind transactions, whatever the pool's mode is.
        assert_eq!(tags(&clients[0].query("begin")), "CZ");
        assert_eq!(tags(&clients[0].query("commit")), "CZ");
        assert_eq!(pid(&mut clients[0]), pids[0]);
        let mut usual = pooler.client(&database);
        assert_eq!(pid(&mut usual), shared);
        assert_eq!(pooler.pool(&database, "sv_active"), if mode == "session" { 4 } else { 3 });
        drop(usual);
        drop(clients);
        wait_until("PostgreSQL sees them go", || pids.iter().all(|pid| is_gone(pid)));
        let line =
            format!("LOG S {database}/trusty closing because: replication client was closed");
        assert_eq!(pooler.count(&line), 3);
        pooler.assert_serves(&database);
    }
}

#[test]
fn server_is_told_the_clients_parameters_and_nothing_of_them_spreads() {
    let (pooler, database) = replicating("");
    let wishes = [
        LOGICAL,
        ("application_name", "streamer"),
        ("datestyle", "German"),
        ("TimeZone", "Asia/Tokyo"),
        ("options", "-c work_mem=777kB  --geqo=off -c extra_float_digits=2"),
    ];
    let (mut client, welcome) = connect(&pooler, &database, &wishes);
    let parameter = |welcome: &[Msg], name: &str| {
        let all = welcome.iter().filter(|m| m.tag == b'S').map(Msg::parameter);
        all.into_iter().find(|(n, _)| n == name).map(|(_, value)| value)
    };
    assert_eq!(parameter(&welcome, "application_name").as_deref(), Some("streamer"));
    assert_eq!(parameter(&welcome, "TimeZone").as_deref(), Some("Asia/Tokyo"));
    assert!(parameter(&welcome, "server_version").is_some());
    for (name, want) in [
        ("application_name", "streamer"),
        ("datestyle", "German, DMY"),
        ("timezone", "Asia/Tokyo"),
        ("work_mem", "777kB"),
        ("geqo", "off"),
        ("extra_float_digits", "2"),
    ] {
        assert_eq!(client.value(&format!("show {name}")), want);
    }
    // The pool's own clients are welcomed by a server of their own.
    let (mut usual, welcome) = connect(&pooler, &database, &[]);
    assert_eq!(parameter(&welcome, "application_name").as_deref(), Some(""));
    assert_eq!(
        usual.value("show timezone"),
        usual.value("select reset_val from pg_settings where name = 'TimeZone'")
    );
    assert_eq!(usual.value("show work_mem"), "4MB");
    assert_eq!(usual.value("show application_name"), "");
    // A client that was welcomed with what the pool knows asks for that, and no SET follows.
    let (mut second, _) = connect(&pooler, &database, &[LOGICAL, ("application_name", "second")]);
    assert_eq!(second.value("show application_name"), "second");
    assert_eq!(second.value("show datestyle"), "ISO, MDY");
    assert_eq!(second.value("select source from pg_settings where name = 'DateStyle'"), "client");
    client.bye();
    second.bye();
    usual.bye();
}

#[test]
fn refused_login_is_one_clients_matter() {
    let (mut pooler, database) = replicating("server_login_retry = 600");
    for (more, message) in [
        (LOGICAL, "must be superuser or replication role to start walsender"),
        (PHYSICAL, "no pg_hba.conf entry for replication connection from host"),
    ] {
        let before = pooler.lines().len();
        let Err(told) = attempt(&pooler, "plainy", &database, &[more]) else {
            panic!("let in: {more:?}")
        };
        assert_eq!(last_error(&told), fatal("login failed"));
        let closed = format!("LOG C {database}/plainy closing because: login failed");
        wait_until("it is logged", || pooler.lines().split_off(before).contains(&closed));
        let lines = pooler.lines().split_off(before);
        let at = |start: &str| lines.iter().position(|line| line.starts_with(start));
        let refused = at(&format!("ERROR S: login failed: FATAL: {message}"));
        let server = at(&format!("LOG S {database}/plainy closing because: login failed"));
        let client = at(&closed);
        assert!(refused.is_some() && refused < server && server < client, "{lines:#?}");
    }
    // What a walsender refuses does not keep others from logging in.
    let mut usual = pooler.login("plainy", &database, "").unwrap_or_else(|e| panic!("{e:?}")).0;
    assert_eq!(usual.value("select 7"), "7");
    // Nor a client that is there from being told at its first packet.
    let (mut late, _) =
        attempt(&pooler, "plainy", &database, &[LOGICAL]).unwrap_or_else(|e| panic!("{e:?}"));
    late.send(&query("IDENTIFY_SYSTEM"));
    assert_eq!(last_error(&late.rest()), fatal("login failed"));
    assert_eq!(usual.value("select 8"), "8");
    pooler.assert_serves(&database);
}

#[test]
fn both_directions_flow_and_the_client_may_end_the_stream() {
    let (mut pooler, database) = replicating("");
    let mut client = logical(&pooler, &database);
    stream(&mut client, &database);
    let mut usual = pooler.client(&database);
    for round in 0..20 {
        usual.query(&format!("insert into t values ('change {round}.')"));
        await_change(&mut client, &format!("change {round}."));
        client.send(&status(true));
        while client.recv().unwrap().body[0] != b'k' {}
    }
    client.send(&msg(b'c', b""));
    assert_eq!(tags(&client.until(b'Z')).replace('d', ""), "cCCZ");
    // Whatever comes too late is for nobody.
    client.send(&status(false));
    assert_eq!(tags(&client.query("IDENTIFY_SYSTEM")), "TDCZ");
    assert_eq!(client.value("select count(*) from t"), "20");
    client.bye();
    let line = format!("LOG S {database}/trusty closing because: replication client was closed");
    pooler.wait_lines(&[&line]);
    usual.bye();
    pooler.assert_serves(&database);
}

#[test]
fn commands_may_be_sent_ahead_of_the_streams_end() {
    let (pooler, database) = replicating("");
    // A second stream on the same connection confuses PostgreSQL 15 itself.
    for _ in 0..2 {
        let mut client = logical(&pooler, &database);
        stream(&mut client, &database);
        let ahead = [status(false), msg(b'c', b""), query("select 'behind'"), query("select 2")];
        client.send(&ahead.concat());
        let first = client.until(b'Z');
        assert_eq!(tags(&first).replace('d', ""), "cCCZ");
        assert_eq!(rows(&client.until(b'Z')), [[Some("behind".to_owned())]]);
        assert_eq!(rows(&client.until(b'Z')), [[Some("2".to_owned())]]);
        client.bye();
    }
}

#[test]
fn errors_inside_the_protocol_leave_the_connection_usable() {
    let (pooler, database) = replicating("");
    let mut client = logical(&pooler, &database);
    let failed = client.query("START_REPLICATION SLOT no_such_slot LOGICAL 0/0");
    assert_eq!(tags(&failed), "EZ");
    // PostgreSQL refuses the extended protocol here, and skips to Sync.
    client.send(&[parse("", "select 1"), bind("", &[]), execute(), sync()].concat());
    assert_eq!(tags(&client.until(b'Z')), "EZ");
    assert_eq!(client.value("select 3"), "3");
    client.bye();
    let (mut client, _) = connect(&pooler, &database, &[PHYSICAL]);
    assert_eq!(tags(&client.query("select 1")), "EZ");
    assert_eq!(tags(&client.query("IDENTIFY_SYSTEM")), "TDCZ");
    client.bye();
}

#[test]
fn base_backup_comes_in_several_result_sets() {
    let (pooler, database) = replicating("");
    let (mut client, _) = connect(&pooler, &database, &[PHYSICAL]);
    let answer = client.query("BASE_BACKUP (CHECKPOINT 'fast', WAIT false)");
    let shape = tags(&answer).replace(['d', 'D', 'N', 'S'], "");
    assert_eq!(shape.matches('H').count(), 1, "{shape}");
    assert!(shape.starts_with("TCT") && shape.ends_with("CCZ"), "{shape}");
    assert_eq!(tags(&client.query("SHOW wal_segment_size")), "TDCZ");
    client.bye();
}

#[test]
fn client_that_goes_takes_its_server_along_at_every_step() {
    let (mut pooler, database) = replicating("");
    primary().value(&database, "create table t (a text)");
    for step in 0..5 {
        let mut client = logical(&pooler, &database);
        let pid = (step > 0).then(|| pid(&mut client));
        match step {
            2 => assert_eq!(tags(&client.query("begin")), "CZ"),
            3 => stream(&mut client, &database),
            4 => client.send(&query("select pg_sleep(5)")),
            _ => {}
        }
        drop(client);
        let reason = match step {
            0 | 1 => "replication client was closed",
            _ => "client disconnect while server was not ready",
        };
        pooler.wait_lines(&[&format!("LOG S {database}/trusty closing because: {reason}")]);
        wait_until("its server is gone", || pooler.servers(&database).is_empty());
        if step != 4 {
            wait_until("PostgreSQL notices", || pid.as_ref().is_none_or(|pid| is_gone(pid)));
        }
    }
    // Half a packet, then nothing.
    let mut client = logical(&pooler, &database);
    stream(&mut client, &database);
    let half = status(true);
    client.send(&half[..10]);
    drop(client);
    wait_until("its server is gone", || pooler.servers(&database).is_empty());
    wait_until("PostgreSQL notices", || {
        let sql = "select count(*) from pg_stat_activity where backend_type = 'walsender'";
        primary().value("postgres", &format!("{sql} and datname = '{database}'")) == "0"
    });
    pooler.assert_serves(&database);
}

#[test]
fn client_of_a_server_that_goes_is_told_why() {
    let (pooler, database) = replicating("");
    let mut client = logical(&pooler, &database);
    let pid = pid(&mut client);
    stream(&mut client, &database);
    primary().value("postgres", &format!("select pg_terminate_backend({pid})"));
    let told = client.rest();
    let errors: Vec<_> = told.iter().filter(|m| m.tag == b'E').map(|m| m.field(b'C')).collect();
    assert_eq!(errors, ["57P01", "08P01"], "{told:?}");
    assert_eq!(last_error(&told), fatal("server conn crashed?"));
}

#[test]
fn full_pool_makes_room_by_its_idle_servers_only() {
    let (pooler, database) = replicating("default_pool_size = 2\nquery_wait_timeout = 3");
    let mut holders = [pooler.holder(&database), pooler.holder(&database)];
    let evicted = format!("LOG S {database}/trusty closing because: evicted");
    let mut waits = logical(&pooler, &database);
    waits.send(&query("IDENTIFY_SYSTEM"));
    wait_until("it waits", || pooler.pool(&database, "cl_waiting") == 1);
    // Nobody is idle; a server that comes free is not for it, but makes room.
    holders[0].query("commit");
    assert_eq!(tags(&waits.until(b'Z')), "TDCZ");
    assert_eq!(pooler.count(&evicted), 1);
    assert_eq!(pooler.servers(&database).len(), 2);
    // Full again, and nothing to evict: it waits in vain.
    let mut refused = logical(&pooler, &database);
    refused.send(&query("IDENTIFY_SYSTEM"));
    assert_eq!(last_error(&refused.rest()), fatal("query_wait_timeout"));
    // The usual clients share what is left.
    holders[1].query("commit");
    assert_eq!(holders[0].value("select 1"), "1");
    assert_eq!(holders[1].value("select 2"), "2");
    assert_eq!(pooler.count(&evicted), 1);
    waits.bye();
}

#[test]
fn replication_counts_for_limits_also_where_nothing_else_does() {
    let (pooler, database) = replicating("default_pool_size = 2\nquery_wait_timeout = 2");
    let mut clients = [logical(&pooler, &database), logical(&pooler, &database)];
    assert_eq!(pooler.servers(&database).len(), 2);
    let Err(told) = attempt(&pooler, "trusty", &database, &[LOGICAL]) else { panic!("let in") };
    assert_eq!(last_error(&told), fatal("query_wait_timeout"));
    assert_eq!(tags(&clients[0].query("IDENTIFY_SYSTEM")), "TDCZ");
    let [first, second] = clients;
    first.bye();
    wait_until("there is room", || pooler.servers(&database).len() == 1);
    let mut third = logical(&pooler, &database);
    assert_eq!(tags(&third.query("IDENTIFY_SYSTEM")), "TDCZ");
    second.bye();
    third.bye();
}

#[test]
fn reconnect_closes_streams_and_idle_ones_at_the_next_tick() {
    let (mut pooler, database) = replicating("");
    let (mut streams, mut idles) = (logical(&pooler, &database), logical(&pooler, &database));
    stream(&mut streams, &database);
    idles.value("select 1");
    pooler.command("RECONNECT");
    assert_eq!(last_error(&streams.rest()), fatal("database configuration changed"));
    assert_eq!(last_error(&idles.rest()), fatal("database configuration changed"));
    pooler.assert_serves(&database);
}

#[test]
fn timeouts_of_queries_and_transactions_end_streams() {
    for (settings, text) in
        [("query_timeout = 2", "query timeout"), ("transaction_timeout = 2", "transaction timeout")]
    {
        let (pooler, database) = replicating(settings);
        let mut client = logical(&pooler, &database);
        stream(&mut client, &database);
        assert_eq!(last_error(&client.rest()), fatal(text));
    }
}

#[test]
fn pause_lets_streams_go_on_and_holds_new_ones() {
    let (pooler, database) = replicating("");
    pooler.client(&database).bye();
    let mut running = logical(&pooler, &database);
    stream(&mut running, &database);
    let mut console = pooler.console();
    console.send(&query(&format!("PAUSE {database}")));
    let mut held = logical(&pooler, &database);
    held.send(&query("IDENTIFY_SYSTEM"));
    wait_until("it waits", || pooler.pool(&database, "cl_waiting") == 1);
    primary().value(&database, "insert into t values ('during the pause')");
    await_change(&mut running, "during the pause");
    leave(running);
    assert_eq!(tags(&console.until(b'Z')), "CZ");
    pooler.command(&format!("RESUME {database}"));
    assert_eq!(tags(&held.until(b'Z')), "TDCZ");
    held.bye();
}

#[test]
fn physical_replication_needs_its_keyword_in_the_hba_file() {
    let folder = scratch().folder();
    let database = primary().new_database();
    let at = folder.join("hba");
    for (rules, logical, physical) in [
        ("host all all 127.0.0.1/32 trust", true, false),
        ("host replication all 127.0.0.1/32 trust", false, true),
        ("host all,replication all 127.0.0.1/32 trust", true, true),
        (&format!("host \"replication\",{database} all 127.0.0.1/32 trust"), true, false),
    ] {
        let rules = format!("host pgbouncer admin 127.0.0.1/32 trust\n{rules}\n");
        write(&at, &rules);
        let settings = format!("auth_type = hba\nauth_hba_file = {}", at.display());
        let pooler = Pooler::start(&setup(&settings));
        for (kind, admitted) in [(LOGICAL, logical), (PHYSICAL, physical)] {
            match attempt(&pooler, "trusty", &database, &[kind]) {
                Ok((mut client, _)) => {
                    assert!(admitted, "{rules} {kind:?}");
                    assert_eq!(tags(&client.query("IDENTIFY_SYSTEM")), "TDCZ");
                }
                Err(told) => {
                    assert!(!admitted, "{rules} {kind:?}");
                    assert_eq!(last_error(&told), fatal("no authentication method is found"));
                }
            }
        }
    }
}

#[test]
fn client_that_reads_nothing_is_still_heard() {
    let (pooler, database) = replicating("");
    let mut client = logical(&pooler, &database);
    let pid = pid(&mut client);
    stream(&mut client, &database);
    let sql = "insert into t select repeat(md5(i::text), 32) from generate_series(1, 40000) i";
    primary().value(&database, sql);
    let state = |column: &str| {
        let sql = format!("select {column} from pg_stat_replication where pid = {pid}");
        primary().value("postgres", &sql)
    };
    // Nobody reads until everything in between is full.
    let mut before = String::new();
    wait_until("the stream is full", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let sent = state("sent_lsn");
        std::mem::replace(&mut before, sent.clone()) == sent
    });
    let mut body = vec![b'r'];
    for _ in 0..3 {
        body.extend(0x123_u64.to_be_bytes());
    }
    body.extend([0; 9]);
    client.send(&msg(b'd', &body));
    wait_until("the status update has arrived", || state("write_lsn") == "0/123");
    let last = "done.";
    primary().value(&database, &format!("insert into t values ('{last}')"));
    await_change(&mut client, last);
    leave(client);
}
