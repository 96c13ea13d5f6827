//! `-R --adopt=soft`: the old process goes on with its clients, new ones come to the new process, and
//! whatever is refused leaves the old one as it was.

use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;

use crate::rig::old::{self, Old};
use crate::rig::pooler::{binary, in_transactions, Pooler};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::run::{Run, Running};
use crate::rig::scratch::{command, unprivileged};
use crate::rig::tls::{setup, Wishes};
use crate::rig::wait_until;
use crate::rig::wire::{bind, error, execute, last_error, msg, parse, query, sync, tags};

const SOFT: [&str; 2] = ["-R", "--adopt=soft"];

fn pidfile(pooler: &Pooler) -> String {
    std::fs::read_to_string(pooler.folder.join("pid")).unwrap_or_default().trim().to_owned()
}

fn socket(pooler: &Pooler) -> PathBuf {
    pooler.folder.join(format!(".s.PGSQL.{}", pooler.port))
}

/// What is left beside the Unix socket.
fn beside(pooler: &Pooler) -> Vec<String> {
    let names = std::fs::read_dir(&pooler.folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".soft-")).collect()
}

/// How many clients of a database the process that answers over TCP has.
fn clients(pooler: &Pooler, database: &str) -> usize {
    pooler.show("CLIENTS", "state", ("database", database)).len()
}

/// Runs a query for a minute, then has it canceled over TCP; its SQLSTATE.
fn canceled(client: &mut Raw, pooler: &Pooler, database: &str) -> String {
    client.send(&query("select pg_sleep(60)"));
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = '{database}' and state = 'active' \
         and query like '%pg_sleep(60)%'"
    );
    wait_until("it runs", || postgres().value("postgres", &sql) == "1");
    let mut request = pooler.tcp();
    request.send(&client.cancel_request());
    assert_eq!(request.rest(), []);
    client.until(b'Z').iter().find(|msg| msg.tag == b'E').unwrap().field(b'C')
}

/// Everything is the successor's: the socket, the pidfile, and what was beside them for the old one.
fn assert_alone(pooler: &Pooler) {
    wait_until("the pidfile is ours", || pidfile(pooler) == pooler.pid().to_string());
    assert!(pooler.unix().login("trusty", "postgres", "").is_ok());
    for dir in beside(pooler) {
        let link = pooler.folder.join(dir).join(format!(".s.PGSQL.{}", pooler.port));
        wait_until("the old process's socket is forgotten", || !link.exists());
    }
}

#[test]
fn the_old_process_finishes_with_its_clients_while_new_ones_come_to_us() {
    let mut pooler = Pooler::start(&setup("allow", "pool_mode = transaction\n"));
    let database = postgres().new_database();
    let mut encrypted =
        Wishes::default().raw(pooler.port).login("trusty", &database, "").unwrap().0;
    encrypted.query("begin; create temp table t (x int)");
    let mut prepared = pooler.client(&database);
    prepared.send(&[parse("s", "select 7"), sync()].concat());
    prepared.until(b'Z');
    let mut local = pooler.unix().login("trusty", &database, "").unwrap().0;
    let mut old = pooler.adopt();
    // New ones are ours, over TCP, TLS and the Unix socket.
    let mut new = pooler.client(&database);
    let mut over_tls = Wishes::default().raw(pooler.port).login("trusty", &database, "").unwrap().0;
    let mut by_file = pooler.unix().login("trusty", &database, "").unwrap().0;
    for client in [&mut new, &mut over_tls, &mut by_file] {
        assert_eq!(client.value("select 1"), "1");
    }
    assert_eq!(clients(&pooler, &database), 3);
    // Old ones go on with all that they have.
    assert_eq!(encrypted.query("insert into t values (5)").len(), 2);
    assert_eq!(encrypted.value("select x from t; commit"), "5");
    prepared.send(&[bind("s", &[]), execute(), sync()].concat());
    assert_eq!(prepared.until(b'Z')[1].cells()[0].as_deref(), Some("7"));
    assert_eq!(local.value("select 2"), "2");
    assert_eq!(canceled(&mut prepared, &pooler, &database), "57014", "by way of us");
    assert_eq!(canceled(&mut new, &pooler, &database), "57014");
    assert_eq!(pidfile(&pooler), old.pid().to_string(), "it is the old process's still");
    for client in [encrypted, prepared, local] {
        assert_eq!(old.exited(), None);
        client.bye();
    }
    assert_eq!(old.wait_exit().code(), Some(0));
    assert_alone(&pooler);
    assert_eq!(new.value("select 3"), "3");
    // All of it can go on from here as ever.
    let mut keeper = pooler.succeed(binary());
    assert_eq!(new.value("select 4"), "4");
    assert_eq!(over_tls.value("select 5"), "5");
    over_tls.bye();
    wait_until("the keeper ends", || keeper.try_wait().unwrap().is_some());
    assert_alone(&pooler);
    pooler.signal(Signal::SIGTERM);
    for client in [new, by_file] {
        client.bye();
    }
    assert_eq!(pooler.wait_exit().code(), Some(0));
    assert!(!pooler.folder.join("pid").exists() && !socket(&pooler).exists());
    assert_eq!(beside(&pooler), [""; 0]);
}

/// pgbench that connects anew for each transaction.
fn bench(pooler: &Pooler, database: &str, host: &str) -> Child {
    let mut tool = postgres().tool("pgbench");
    tool.args(["-n", "-C", "-S", "-c", "4", "-T", "4", "-U", "trusty", "-h", host]);
    tool.args(["-p", &pooler.port.to_string(), database]);
    tool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn nobody_who_connects_meanwhile_is_refused() {
    let (mut pooler, _) = in_transactions("");
    let database = postgres().new_bench_database();
    let folder = pooler.folder.to_str().unwrap().to_owned();
    let runs = [bench(&pooler, &database, "127.0.0.1"), bench(&pooler, &database, &folder)];
    for _ in 0..4 {
        let logins = || pooler.show("STATS", "total_xact_count", ("database", &database));
        let before = logins();
        wait_until("clients come", || logins() != before);
        let mut old = pooler.adopt();
        assert_eq!(old.wait_exit().code(), Some(0), "{}", pooler.log());
        assert_alone(&pooler);
    }
    for run in runs {
        let done = run.wait_with_output().unwrap();
        let [out, errors] = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(done.status.success(), "{out}\n{errors}");
        assert!(out.contains("number of failed transactions: 0 (0.000%)"), "{out}\n{errors}");
    }
}

#[test]
fn one_after_the_other_may_be_left_with_its_clients() {
    let (mut pooler, database) = in_transactions("");
    let mut first = pooler.client(&database);
    let mut oldest = pooler.adopt();
    let mut second = pooler.client(&database);
    // Who is replaced has no pidfile yet, which a full restart would wait for.
    assert_eq!(pooler.fail_to_replace(), Some(1));
    pooler.wait_log(&format!("is that of process {}, but the one to replace is", oldest.pid()));
    let mut middle = pooler.adopt();
    let mut third = pooler.client(&database);
    for client in [&mut first, &mut second, &mut third] {
        assert_eq!(canceled(client, &pooler, &database), "57014");
    }
    first.bye();
    assert_eq!(oldest.wait_exit().code(), Some(0));
    // The pidfile goes to the last of them.
    wait_until("the pidfile is ours", || pidfile(&pooler) == pooler.pid().to_string());
    assert!(pooler.unix().login("trusty", &database, "").is_ok());
    assert_eq!(second.value("select 2"), "2");
    second.bye();
    assert_eq!(middle.wait_exit().code(), Some(0));
    assert_alone(&pooler);
    assert_eq!(third.value("select 3"), "3");
}

#[test]
fn a_dead_old_process_leaves_nothing_in_the_way() {
    let (mut pooler, database) = in_transactions("");
    let mut client = pooler.client(&database);
    let mut old = pooler.adopt();
    old.signal(Signal::SIGKILL);
    assert_eq!(client.rest(), []);
    old.wait_exit();
    pooler.wait_log("old process has ended");
    assert_alone(&pooler);
    // A successor that dies leaves a directory behind, which the next one removes.
    pooler.signal(Signal::SIGKILL);
    pooler.wait_exit();
    assert_eq!(beside(&pooler).len(), 1);
}

#[test]
fn the_successor_may_go_to_the_background() {
    let run = Run::new("pidfile = DIR/pid\nlogfile = DIR/log");
    let folder = run.folder.clone();
    let mut old = run.args(&["-d"]).start();
    old.follow_to_background();
    let console = old.console();
    let mut start = command(binary());
    let status = start.args(SOFT).args(["-d", "ini"]).current_dir(&folder).status();
    assert!(status.unwrap().success(), "{}", old.all());
    wait_until("the successor is up", || old.all().matches("process up: ").count() == 2);
    assert_eq!(old.read("pid").trim(), old.pid.to_string());
    console.bye();
    wait_until("the pidfile is the successor's", || {
        !["", &old.pid.to_string()].contains(&old.read("pid").trim())
    });
    old.pid = old.read("pid").trim().parse().unwrap();
    old.command("show version");
    old.signal(Signal::SIGTERM);
    wait_until("all files are gone", || !old.path("pid").exists() && !old.socket().exists());
}

/// The place of an old process that the test plays, and a successor to start there.
fn place(settings: &str) -> (Run, UnixListener) {
    let run = Run::new(settings);
    let listener = old::listen(&run.folder, run.port);
    let owner = unprivileged().map(|user| user.uid.as_raw());
    chown(run.folder.join(format!(".s.PGSQL.{}", run.port)), owner, None).unwrap();
    (run.args(&SOFT), listener)
}

/// Up to the row that answers SHOW FDS.
fn suspended(listener: &UnixListener) -> Old {
    let mut old = Old::accept(listener);
    old.welcome();
    old.version("PgBouncer 1.25.2");
    old.hear("SUSPEND;");
    old.complete("SUSPEND");
    old.hear("SHOW FDS;");
    old
}

/// A row of a listening socket or a client.
fn row(task: &str) -> [Option<&str>; 8] {
    let name = Some("x").filter(|_| task == "client");
    [Some("7"), Some(task), name, name, Some("127.0.0.1"), Some("1"), Some("0"), Some("0")]
}

/// The successor has hung up and ended; everybody who connects comes to the old process.
fn assert_given_up(mut running: Running, mut old: Old, listener: &UnixListener, want: &str) {
    assert!(old.is_left());
    assert_eq!(running.code(), 1);
    assert_eq!(running.texts().last().unwrap(), want);
    let mut client = Raw::unix(&running.run.folder, running.run.port);
    client.send(b"x");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_ok(), "the path is not the old process's");
    let left: Vec<_> = std::fs::read_dir(&running.run.folder).unwrap().collect();
    assert!(left.iter().all(|e| !format!("{e:?}").contains(".soft-")), "{left:?}");
}

#[test]
fn refusals_leave_the_old_process_as_it_was() {
    let refusal = error(&[(b'S', "ERROR"), (b'C', "08P01"), (b'M', "no")]);
    let ready = msg(b'Z', b"I");
    for (at, want) in [
        (0, "FATAL server login failed: ERROR no"),
        (
            1,
            "FATAL old process is PgBouncer 1.18.0, which does not know SHUTDOWN \
             WAIT_FOR_CLIENTS (PgBouncer does since 1.23); use -R without --adopt=soft",
        ),
        (2, "FATAL old bouncer sent: ERROR: no"),
        (3, "FATAL old bouncer sent: ERROR: no"),
        (4, "FATAL got row without fd info"),
        (5, "FATAL old bouncer sent: ERROR: no"),
    ] {
        let (run, listener) = place("");
        let running = run.start();
        let mut old = Old::accept(&listener);
        if at == 0 {
            old.say(&refusal);
            assert_given_up(running, old, &listener, want);
            continue;
        }
        old.welcome();
        old.version(["PgBouncer 1.25.2", "PgBouncer 1.18.0"][usize::from(at == 1)]);
        if at > 1 {
            old.hear("SUSPEND;");
        }
        if at > 2 {
            old.complete("SUSPEND");
            old.hear("SHOW FDS;");
        }
        match at {
            1 => {}
            4 => old.say(&old::row(&row("pooler"))),
            5 => {
                old.row(&row("pooler"), &listener);
                let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                old.row(&row("pooler"), &tcp);
                old.complete("SHOW");
                old.hear("RESUME;");
                old.complete("RESUME");
                old.hear("SHUTDOWN WAIT_FOR_CLIENTS;");
                old.say(&[refusal.clone(), ready.clone()].concat());
            }
            _ => old.say(&refusal),
        }
        assert_given_up(running, old, &listener, want);
    }
}

#[test]
fn a_pgbouncer_that_unlinks_its_socket_and_pidfile_at_its_end_is_no_obstacle() {
    let (run, listener) = place("pidfile = DIR/pid\nunix_socket_mode = 0700");
    crate::rig::scratch::write(&run.folder.join("pid"), "1\n");
    let tcp = std::net::TcpListener::bind(("127.0.0.1", run.port)).unwrap();
    let folder = run.folder.clone();
    let running = run.start();
    let mut old = suspended(&listener);
    old.row(&row("pooler"), &tcp);
    old.row(&row("pooler"), &listener);
    let kept = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    let (mut end, _) = tcp.accept().unwrap();
    old.row(&row("client"), &end);
    old.complete("SHOW");
    // Who waits at its socket while it is suspended is ours, too.
    let waiting = Raw::unix(&folder, running.run.port);
    old.hear("RESUME;");
    old.hear("SHUTDOWN WAIT_FOR_CLIENTS;");
    old.complete("RESUME");
    old.complete("SHUTDOWN");
    assert!(old.is_left(), "a console would keep it alive");
    drop(tcp);
    running.wait_for("process up: ");
    let mut waiting = waiting.login("admin", "pgbouncer", "").unwrap().0;
    assert_eq!(tags(&waiting.query("show version")), "TDCZ");
    // The client's connection is the old process's alone.
    std::io::Write::write_all(&mut end, b"R").unwrap();
    assert_eq!(Raw::over(kept).byte(), Some(b'R'));
    running.command("show version");
    std::fs::remove_file(running.socket()).unwrap();
    std::fs::remove_file(folder.join("pid")).unwrap();
    wait_until("both are back", || {
        running.socket().exists() && running.read("pid").trim() == running.pid.to_string()
    });
    let mode = std::fs::metadata(running.socket()).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o700);
    drop(listener);
    let mut console = Raw::unix(&folder, running.run.port);
    console = console.login("admin", "pgbouncer", "").unwrap().0;
    assert_eq!(tags(&console.query("show version")), "TDCZ");
}

#[test]
fn a_paused_process_refuses_and_without_an_old_one_it_is_an_ordinary_start() {
    let (mut pooler, database) = in_transactions("");
    pooler.command("PAUSE");
    assert_eq!(pooler.fail_to_start(&SOFT), Some(1));
    pooler.wait_log("FATAL old bouncer sent: ERROR: already suspended/paused");
    pooler.command("RESUME");
    pooler.assert_serves(&database);
    let running = Run::new("").args(&SOFT).up();
    running.wait_for("LOG old process not found, try to continue normally");
    let refused = pooler.unix().login("trusty", "nowhere", "");
    assert_ne!(last_error(&refused.err().unwrap()).2, "");
}
