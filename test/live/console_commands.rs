//! Commands of the console: what they do, when they are refused, what clients see of them (admin 4).

use crate::console::refused;
use crate::rig::pooler::{in_transactions, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{last_error, query, rows, startup, tags, terminate};

/// A command that must be answered with this tag and nothing else.
pub(crate) fn done(console: &mut Raw, command: &str, tag: &str) {
    let answer = console.query(command);
    assert_eq!(tags(&answer), "CZ", "{command}: {answer:?}");
    assert_eq!(answer[0].body, [tag.as_bytes(), b"\0"].concat(), "{command}");
    assert_eq!(answer[1].body, b"I", "{command}");
}

/// The tag of a command that was sent before.
pub(crate) fn tag_of_next(console: &mut Raw) -> String {
    let answer = console.until(b'Z');
    let complete = &answer[answer.len() - 2];
    assert_eq!(complete.tag, b'C', "{answer:?}");
    String::from_utf8(complete.body.clone()).unwrap().trim_end_matches('\0').to_owned()
}

/// The global mode.
pub(crate) fn state(console: &mut Raw) -> String {
    let all = rows(&console.query("SHOW STATE"));
    let mut yes = all.into_iter().filter(|row| row[1].as_deref() == Some("yes"));
    yes.next().unwrap()[0].clone().unwrap()
}

#[test]
fn stats_user_may_look_but_not_touch() {
    let mut setup = Setup::trust("");
    setup.users.push_str("\"stats\" \"stats-pw\"\n");
    let mut pooler = Pooler::start(&setup);
    let (mut console, _) = pooler.login("stats", "pgbouncer", "stats-pw").unwrap();
    for command in [
        "pause",
        "pause nowhere",
        "resume",
        "resume nowhere",
        "suspend",
        "kill",
        "kill nowhere",
        "kill_client",
        "kill_client 1",
        "disable",
        "disable nowhere",
        "enable",
        "reconnect",
        "reconnect nowhere",
        "wait_close",
        "reload",
        "shutdown",
        "shutdown wait_for_clients",
        "shutdown wait_for_servers",
        "set verbose = 1",
        "set nothing = 1",
        "show fds",
    ] {
        assert_eq!(refused(&mut console, command), "admin access needed", "{command}");
    }
    for command in ["reload x", "suspend x", "shutdown x", "pause x y", "show x", "set x"] {
        let text = format!("invalid command '{command}', use SHOW HELP;");
        assert_eq!(refused(&mut console, command), text, "its form is looked at first");
    }
    assert_eq!(tags(&console.query("show version")), "TDCZ");
    assert_eq!(tags(&console.query("set datestyle = 'x'")), "NCZ");
    assert_eq!(pooler.exited(), None);
    assert_eq!(pooler.refusal("trusty", "pgbouncer", ""), "not allowed");
}

#[test]
fn paused_clients_wait_for_resume() {
    let (pooler, database) = in_transactions("");
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    assert_eq!(one.value("begin; select 1"), "1");
    let mut console = pooler.console();
    console.send(&query("PAUSE"));
    pooler.wait_log("PAUSE command issued");
    two.send(&query("select 2"));
    wait_until("the client waits", || pooler.pool(&database, "cl_waiting") == 1);
    assert_eq!(one.value("select 3"), "3", "an open transaction goes on");
    one.query("commit");
    let done = console.until(b'Z');
    assert_eq!((tags(&done).as_str(), &done[0].body[..]), ("CZ", &b"PAUSE\0"[..]));
    let left = format!("select count(*) from pg_stat_activity where datname = '{database}'");
    wait_until("all servers are closed", || postgres().value("postgres", &left) == "0");
    assert_eq!(refused(&mut console, "PAUSE"), "already suspended/paused");
    assert_eq!(console.query("RESUME")[0].body, b"RESUME\0");
    assert_eq!(two.until(b'Z')[1].cells()[0].as_deref(), Some("2"));
}

#[test]
fn one_database_is_paused_while_others_go_on() {
    let (pooler, database) = in_transactions("");
    let other = postgres().new_database();
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&other));
    assert_eq!(one.value("select 1"), "1");
    pooler.command(&format!("PAUSE {database}"));
    assert_eq!(pooler.show("DATABASES", "paused", ("name", &database)), ["1"]);
    one.send(&query("select 10"));
    wait_until("the client waits", || pooler.pool(&database, "cl_waiting") == 1);
    assert_eq!(two.value("select 2"), "2");
    pooler.command(&format!("RESUME {database}"));
    assert_eq!(one.until(b'Z')[1].cells()[0].as_deref(), Some("10"));
    let text = format!("database {database} is not paused");
    assert_eq!(refused(&mut pooler.console(), &format!("RESUME {database}")), text);
}

#[test]
fn consoles_are_answered_each_for_itself() {
    let (pooler, database) = in_transactions("");
    let mut holder = pooler.holder(&database);
    let (mut one, mut two) = (pooler.console(), pooler.console());
    one.send(&[query("PAUSE"), query("SHOW STATE")].concat());
    assert_eq!(tags(&one.until(b'Z')), "TDDDCZ", "PAUSE is not over yet");
    assert_eq!(state(&mut two), "paused");
    assert_eq!(refused(&mut two, "PAUSE"), "already suspended/paused");
    assert_eq!(state(&mut one), "paused");
    holder.query("commit");
    assert_eq!(tag_of_next(&mut one), "PAUSE");
    done(&mut two, "RESUME", "RESUME");
    assert_eq!(refused(&mut one, "RESUME"), "pooler is not paused/suspended");
    assert_eq!(holder.value("select 1"), "1");
}

#[test]
fn a_pause_outlives_its_console() {
    let (mut pooler, database) = in_transactions("");
    let mut holder = pooler.holder(&database);
    let other = postgres().new_database();
    pooler.client(&other).value("select 1");
    for (command, polite) in [("PAUSE".to_owned(), false), (format!("PAUSE {database}"), true)] {
        let mut console = pooler.console();
        console.send(&query(&command));
        pooler.wait_log(&format!(
            "{} command issued",
            command.replace(&database, &format!("'{database}'"))
        ));
        if polite {
            console.bye();
        } else {
            drop(console);
        }
        let mut next = pooler.console();
        if !polite {
            assert_eq!(state(&mut next), "paused");
            done(&mut next, "RESUME", "RESUME");
        } else {
            assert_eq!(pooler.show("DATABASES", "paused", ("name", &database)), ["1"]);
            holder.query("commit");
            holder.send(&query("select 2"));
            wait_until("it waits", || pooler.pool(&database, "cl_waiting") == 1);
            done(&mut next, &format!("RESUME {database}"), "RESUME");
            assert_eq!(tags(&holder.until(b'Z')), "TDCZ");
        }
        assert_eq!(state(&mut next), "active");
    }
    pooler.assert_serves(&other);
}

#[test]
fn who_logs_in_while_paused_gets_in_if_the_pool_is_known() {
    let (pooler, database) = in_transactions("");
    let fresh = postgres().new_database();
    pooler.client(&database).value("select 1");
    for (pause, resume) in [
        ("PAUSE".to_owned(), "RESUME".to_owned()),
        (format!("PAUSE {fresh}"), format!("RESUME {fresh}")),
    ] {
        pooler.command(&pause);
        let known = pooler.client(&database);
        let mut stranger = pooler.tcp();
        stranger.send(&startup(0, &[("user", "trusty"), ("database", &fresh)]));
        wait_until("it waits", || pooler.pool(&fresh, "cl_waiting") == 1);
        pooler.command(&resume);
        assert_eq!(stranger.until(b'Z')[0].tag, b'R');
        stranger.send(&query("select 1"));
        assert_eq!(tags(&stranger.until(b'Z')), "TDCZ");
        known.bye();
        pooler.command(&format!("KILL {fresh}"));
        pooler.command(&format!("RESUME {fresh}"));
    }
}

#[test]
fn a_suspend_ends_with_its_console() {
    let (pooler, database) = in_transactions("suspend_timeout = 1\n");
    let mut half = pooler.client(&database);
    half.send(&query("select 1")[..9]);
    wait_until("it is known", || pooler.pool(&database, "sv_active") == 1);
    let (mut one, mut two) = (pooler.console(), pooler.console());
    one.send(&query("SUSPEND"));
    assert_eq!(state(&mut two), "suspended");
    drop(one);
    assert_eq!(last_error(&half.rest()).2, "suspend_timeout");
    pooler.wait_log("LOG admin disappeared when suspended, doing RESUME");
    assert_eq!(state(&mut two), "active", "another console is there, but it can't know");
    let mut half = pooler.client(&database);
    half.send(&query("select 1")[..9]);
    wait_until("it is known", || pooler.pool(&database, "sv_active") == 1);
    two.send(&[query("SUSPEND"), terminate()].concat());
    assert_eq!(last_error(&half.rest()).2, "suspend_timeout");
    assert_eq!(pooler.client(&database).value("select 2"), "2");
    assert_eq!(pooler.log().matches("admin disappeared").count(), 2);
}

/// Sends the cancel request of a console over a connection that is open already.
fn cancel(mut over: Raw, console: &Raw) {
    over.send(&console.cancel_request());
    assert_eq!(over.rest(), [], "no answer");
}

#[test]
fn a_cancel_request_for_a_console_is_a_resume() {
    let (pooler, database) = in_transactions("tcp_defer_accept = 0\n");
    let mut holder = pooler.holder(&database);
    let mut console = pooler.console();
    let warning = "admin cancel request for non-waiting client?";
    console.send(&query("PAUSE"));
    pooler.wait_log("PAUSE command issued");
    cancel(pooler.tcp(), &console);
    pooler.wait_log("cancel request for console client");
    assert_eq!(state(&mut pooler.console()), "active");
    assert!(!pooler.log().contains(warning), "it did wait");
    assert_eq!(tag_of_next(&mut console), "PAUSE");
    holder.query("commit");
    // Another console's key does as well; nobody waits.
    done(&mut console, "PAUSE", "PAUSE");
    let mut other = pooler.console();
    cancel(pooler.unix(), &other);
    assert_eq!(state(&mut console), "active");
    pooler.wait_log(warning);
    // While suspended nobody new is let in, who has begun goes on.
    let early = pooler.tcp();
    let logging_in = || pooler.show("LISTS", "items", ("list", "login_clients")) == ["1"];
    wait_until("it is accepted", logging_in);
    console.send(&query("SUSPEND"));
    assert_eq!(state(&mut other), "suspended");
    cancel(early, &console);
    assert_eq!(tag_of_next(&mut console), "SUSPEND");
    assert_eq!(state(&mut console), "active");
    // A paused database stays so, and without a pause nothing happens.
    done(&mut console, &format!("PAUSE {database}"), "PAUSE");
    cancel(pooler.tcp(), &console);
    assert_eq!(pooler.show("DATABASES", "paused", ("name", &database)), ["1"]);
    done(&mut console, &format!("RESUME {database}"), "RESUME");
    assert_eq!(holder.value("select 1"), "1");
}

#[test]
fn disabled_database_lets_nobody_in() {
    let (pooler, database) = in_transactions("");
    let mut old = pooler.client(&database);
    pooler.command(&format!("DISABLE {database}"));
    let text = format!("database \"{database}\" is disabled");
    assert_eq!(pooler.refusal("trusty", &database, ""), text);
    assert_eq!(old.value("select 1"), "1", "old clients stay");
    pooler.command(&format!("ENABLE {database}"));
    assert_eq!(pooler.client(&database).value("select 2"), "2");
}

#[test]
fn reconnect_replaces_servers_after_their_transaction() {
    let (pooler, database) = in_transactions("");
    let mut one = pooler.client(&database);
    let pid = one.value("begin; select pg_backend_pid()");
    pooler.command("RECONNECT");
    assert_eq!(one.value("select pg_backend_pid()"), pid, "the transaction keeps its server");
    one.query("commit");
    assert_ne!(one.value("select pg_backend_pid()"), pid);
    pooler.wait_log("closing because: close_needed");
}

#[test]
fn kill_closes_clients_and_servers() {
    let (pooler, database) = in_transactions("default_pool_size = 1\n");
    let mut holder = pooler.holder(&database);
    let mut waiter = pooler.waiter(&database, "select 1");
    let mut idle = pooler.client(&database);
    pooler.command(&format!("KILL {database}"));
    for client in [&mut holder, &mut waiter, &mut idle] {
        let removed = ("FATAL".into(), "08P01".into(), "database removed".into());
        assert_eq!(last_error(&client.rest()), removed);
    }
    pooler.wait_log("closing because: database removed (age=");
    let left = format!("select count(*) from pg_stat_activity where datname = '{database}'");
    wait_until("all servers are closed", || postgres().value("postgres", &left) == "0");
    assert_eq!(pooler.show("POOLS", "user", ("database", &database)), [""; 0]);
    let mut late = pooler.tcp();
    late.send(&startup(0, &[("user", "trusty"), ("database", &database)]));
    wait_until("it waits", || pooler.pool(&database, "cl_waiting") == 1);
    pooler.command(&format!("RESUME {database}"));
    assert_eq!(late.until(b'Z')[0].tag, b'R');
    assert_eq!(pooler.client(&database).value("select 2"), "2");
}

#[test]
fn kill_without_a_name_is_for_all_databases_with_a_pool() {
    let [database, other, unused] = [(); 3].map(|()| postgres().new_database());
    // By name: databases made from `*` are shown as long as somebody uses them only.
    let mut setup = Setup::trust("pool_mode = transaction\n");
    let at = |name| format!("{name} = host=127.0.0.1 port={}\n", postgres().port);
    setup.databases = [&database, &other, &unused].map(at).concat();
    let pooler = Pooler::start(&setup);
    let mut clients = [pooler.client(&database), pooler.client(&other)];
    let mut console = pooler.console();
    done(&mut console, "KILL", "KILL");
    for client in &mut clients {
        assert_eq!(last_error(&client.rest()).2, "database removed");
    }
    assert_eq!(state(&mut console), "active");
    assert_eq!(refused(&mut console, "RESUME"), "pooler is not paused/suspended");
    for (name, paused) in [(&database, "1"), (&other, "1"), (&unused, "0")] {
        assert_eq!(pooler.show("DATABASES", "paused", ("name", name)), [paused], "{name}");
    }
    assert_eq!(refused(&mut console, "SUSPEND"), "cannot suspend with paused databases");
    assert_eq!(pooler.client(&unused).value("select 1"), "1");
    for name in [&database, &other] {
        done(&mut console, &format!("RESUME {name}"), "RESUME");
        assert_eq!(pooler.client(name).value("select 1"), "1");
    }
    done(&mut console, "PAUSE", "PAUSE");
    assert_eq!(refused(&mut console, "KILL"), "already suspended/paused");
}

/// The numbers of a list's members, in its order.
fn ids(pooler: &Pooler, list: &str, filter: (&str, &str)) -> Vec<String> {
    pooler.show(list, "id", filter)
}

#[test]
fn kill_client_closes_one_client() {
    let (pooler, database) = in_transactions("default_pool_size = 1\n");
    let mut holder = pooler.holder(&database);
    let (mut waiter, mut idle) = (pooler.waiter(&database, "select 1"), pooler.client(&database));
    let [waiting, active, other] = ["waiting", "active", "idle"].map(|state| {
        let all = rows(&pooler.command("SHOW CLIENTS"));
        let found = all
            .into_iter()
            .find(|row| row[2].as_deref() == Some(&database) && row[4].as_deref() == Some(state));
        found.unwrap_or_else(|| panic!("nobody is {state}"))[20].clone().unwrap()
    });
    let mut console = pooler.console();
    let forced = ("FATAL".into(), "08P01".into(), "admin forced disconnect".into());
    done(&mut console, &format!("KILL_CLIENT {waiting}"), "KILL_CLIENT");
    assert_eq!(last_error(&waiter.rest()), forced);
    assert_eq!(pooler.pool(&database, "cl_waiting"), 0);
    // A number ends where its digits end.
    done(&mut console, &format!("kill_client {other}abc"), "KILL_CLIENT");
    assert_eq!(last_error(&idle.rest()), forced);
    assert_eq!(holder.value("select 3"), "3");
    done(&mut console, &format!("KILL_CLIENT \" {active}\";"), "KILL_CLIENT");
    assert_eq!(last_error(&holder.rest()), forced);
    pooler.wait_log("closing because: client disconnect while server was not ready (age=");
    assert_eq!(refused(&mut console, &format!("KILL_CLIENT {active}")), "client not found");
    assert_eq!(pooler.client(&database).value("select 4"), "4");
}

#[test]
fn kill_client_leaves_a_server_at_rest_alone() {
    let (pooler, database) = in_transactions("pool_mode = session\n");
    let mut linked = pooler.client(&database);
    let pid = linked.value("select pg_backend_pid()");
    let id = ids(&pooler, "CLIENTS", ("database", &database)).remove(0);
    pooler.command(&format!("KILL_CLIENT {id}"));
    assert_eq!(last_error(&linked.rest()).2, "admin forced disconnect");
    assert_eq!(pooler.client(&database).value("select pg_backend_pid()"), pid);
}

#[test]
fn kill_client_finds_clients_only() {
    let (mut pooler, database) = in_transactions("tcp_defer_accept = 0\n");
    pooler.client(&database).value("select 1");
    let server = ids(&pooler, "SERVERS", ("database", &database)).remove(0);
    let mut console = pooler.console();
    for (argument, text) in [
        ("", "invalid client pointer supplied"),
        ("x", "invalid client pointer supplied"),
        ("x1", "invalid client pointer supplied"),
        ("\"-\"", "invalid client pointer supplied"),
        ("999999", "client not found"),
        ("0", "client not found"),
        ("\"-1\"", "client not found"),
        ("0x1", "client not found"),
        ("99999999999999999999999", "client not found"),
        (&server, "client not found"),
    ] {
        assert_eq!(refused(&mut console, &format!("KILL_CLIENT {argument}")), text, "{argument}");
    }
    // Numbers are given in order; nobody else comes meanwhile.
    let last = |console: &mut Raw| -> u64 {
        let all = rows(&console.query("SHOW CLIENTS"));
        all.iter().map(|row| row[20].as_ref().unwrap().parse().unwrap()).max().unwrap()
    };
    let mut second = pooler.console();
    let number = last(&mut second) + 1;
    let mut newcomer = pooler.tcp();
    newcomer.send(&[0, 0]);
    wait_until("it is accepted", || {
        let lists = rows(&second.query("SHOW LISTS"));
        lists.contains(&vec![Some("login_clients".into()), Some("1".into())])
    });
    assert_eq!(refused(&mut second, &format!("KILL_CLIENT {number}")), "client not found");
    // Consoles are clients, the one that asks included.
    let own = last(&mut second);
    done(&mut console, &format!("KILL_CLIENT {own}"), "KILL_CLIENT");
    assert_eq!(last_error(&second.rest()).2, "admin forced disconnect");
    let own = last(&mut console);
    console.send(&[query(&format!("KILL_CLIENT {own}")), query("SHOW VERSION")].concat());
    let end = console.rest();
    assert_eq!(tags(&end), "E", "{end:?}");
    assert_eq!(last_error(&end).2, "admin forced disconnect");
    pooler.assert_serves(&database);
}
