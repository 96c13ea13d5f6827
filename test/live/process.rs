//! Life of the process: switches, identity, background, pidfile, descriptors (config 1, 7.1 to 7.5).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::rig::pooler::binary;
use crate::rig::run::{is_root, owner, Run, Running};
use crate::rig::scratch::{unprivileged, write};
use crate::rig::wait_until;

fn texts(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|&line| line.to_owned()).collect()
}

/// Waits for the end by this signal; nothing that the process made may be left.
fn end(mut running: Running, signal: Signal) {
    running.signal(signal);
    wait_until("it is gone", || running.exited().is_some() || !running.is_alive());
    assert!(!running.path("pid").exists(), "pidfile is left");
    assert!(!running.socket().exists(), "socket is left");
}

#[test]
fn version_help_and_mistakes_go_past_the_logger() {
    let name = binary().to_str().unwrap();
    let run = |args: &[&str]| {
        let out = Command::new(binary()).args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let (code, out, err) = run(&["-V", "junk", "junk"]);
    assert!(out.starts_with("PgBouncer 1.25.2 (pgturnstile "), "{out}");
    assert_eq!((code, err), (Some(0), String::new()));
    let (code, out, err) = run(&["-qh"]);
    assert!(out.starts_with(&format!("{name} is a connection pooler for PostgreSQL.\n")), "{out}");
    assert_eq!((code, err), (Some(0), String::new()));
    let hint = format!("Try \"{name} --help\" for more information.\n");
    let want = format!("{name}: no configuration file specified\n{hint}");
    assert_eq!(run(&["-q"]), (Some(1), String::new(), want));
    let want = format!("{name}: invalid option -- 'x'\n{hint}");
    assert_eq!(run(&["-qx", "-V"]), (Some(1), String::new(), want));
}

#[test]
fn quiet_start_says_nothing_on_standard_error() {
    let run = Run::new("logfile = log\nlisten_port = x").args(&["-q"]);
    let mut running = run.start();
    assert_eq!((running.code(), running.read("stderr")), (1, String::new()));
    assert!(running.read("log").contains("FATAL cannot load config file"));
    // Neither does it change the verbosity.
    let mut running = Run::new("logfile = log\nlisten_port = x").args(&["-qv"]).start();
    assert_eq!((running.code(), running.read("stderr")), (1, String::new()));
    assert!(running.read("log").contains("DEBUG parse_ini_file: [pgbouncer]"));
}

#[test]
fn verbose_start_tells_what_it_reads() {
    let run = Run::new("%include more\nverbose = 0\npidfile = pid")
        .args(&["-v"])
        .file("more", "max_client_conn = 0x10\n");
    let running = run.up();
    let lines = running.texts();
    let wanted = running.run.filled(
        "DEBUG parse_ini_file: [pgbouncer]
        DEBUG parse_ini_file: 'listen_port' = 'PORT'
        DEBUG parse_ini_file: 'listen_port' = 'PORT' ok:1
        DEBUG processing include: more
        DEBUG parse_ini_file: 'max_client_conn' = '0x10' ok:1
        DEBUG returned to processing file ini
        DEBUG parse_ini_file: 'verbose' = '0'
        LOG kernel file",
    );
    let mut rest = lines.iter();
    for line in wanted.lines().map(str::trim) {
        assert!(rest.any(|other| other.starts_with(line)), "no {line} in order in {lines:#?}");
    }
    assert!(!lines.join("\n").contains("'pidfile'"), "0 in the file replaces -v: {lines:#?}");
}

#[test]
fn start_lines_come_in_order() {
    let settings = "[databases]\none = host=127.0.0.1 pool_size=7\ntwo = user=u pool_size=5\n\
                    three = host=127.0.0.1\n* = host=127.0.0.1\n[users]\nbob =\n";
    let run = Run::through("ulimit -n 1234", &format!("max_client_conn = 50\n{settings}"));
    let running = run.env("NOTIFY_SOCKET", "/nowhere").up();
    // Users: admin, trusty, bob and pgbouncer. 50 + 10 + console 2 + 4 * 7 + 5 + 4 * 20
    let want = "LOG kernel file descriptor limit: 1234 (hard: 1234); max_client_conn: 50, max expected fd use: 175
        LOG listening on 127.0.0.1:PORT
        LOG listening on unix:DIR/.s.PGSQL.PORT
        LOG process up: PgBouncer 1.25.2, ";
    let want = running.run.filled(want);
    let lines = running.texts();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for (line, want) in lines.iter().zip(want.lines().map(str::trim)) {
        assert!(line.starts_with(want), "{line} is not {want}");
    }
}

#[test]
fn root_is_refused_after_the_configuration_was_read() {
    if !is_root() {
        return;
    }
    let want = texts(&["FATAL PgBouncer should not run as root"]);
    assert_eq!(Run::new("").with_root().failure(), (1, want.clone()));
    assert_eq!(Run::new("user = root").with_root().failure(), (1, want.clone()));
    let cancelled = Run::new("user = nobody").with_root().args(&["-u", ""]).failure();
    assert_eq!(cancelled, (1, want));
    let (code, lines) = Run::new("nonsense").with_root().failure();
    assert_eq!((code, lines.last().unwrap().as_str()), (1, "FATAL cannot load config file"));
    let want = texts(&["FATAL could not find user 'no one' to switch to"]);
    assert_eq!(Run::new("user = no one").with_root().failure(), (1, want));
}

#[test]
fn root_becomes_the_user_before_anything_is_made() {
    let Some(user) = unprivileged() else {
        return;
    };
    let settings = "user = root\nlogfile = log\npidfile = pid";
    let mut running = Run::new(settings).with_root().args(&["-d", "-u", &user.name]).start();
    running.follow_to_background();
    running.wait_for("process up: ");
    let id = user.uid.as_raw();
    assert_eq!(running.status("Uid"), format!("{id} {id} {id} {id}"));
    let group = user.gid.as_raw();
    assert_eq!(running.status("Gid"), format!("{group} {group} {group} {group}"));
    assert_eq!(running.status("Groups"), group.to_string(), "the primary group only");
    for file in [running.path("log"), running.path("pid"), running.socket()] {
        assert_eq!(owner(&file), (id, group), "{}", file.display());
    }
    fs::rename(running.path("log"), running.path("log.1")).unwrap();
    running.signal(Signal::SIGHUP);
    wait_until("the old file has the line", || {
        running.read("log.1").contains("got SIGHUP, re-reading config")
    });
    running.command("RELOAD");
    assert_eq!(owner(&running.path("log")), (id, group));
    end(running, Signal::SIGINT);
}

#[test]
fn others_can_only_become_who_they_are() {
    let me = match unprivileged() {
        Some(user) => user.name.clone(),
        None => nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name,
    };
    Run::new("user = root").args(&["-u", &me]).up();
    Run::new(&format!("user = {me}")).up();
    let want = "FATAL failed to assume identity of user 'root': Operation not permitted";
    assert_eq!(Run::new("user = root").failure(), (1, texts(&[want])));
}

#[test]
fn background_process_is_on_its_own() {
    let mut running = Run::new("logfile = log\npidfile = pid").args(&["-d"]).start();
    let caller = running.pid;
    running.follow_to_background();
    running.wait_for("process up: ");
    assert_ne!(running.pid, caller);
    assert_eq!((running.read("stderr"), running.read("stdout")), (String::new(), String::new()));
    assert!(running.read("log").contains(&format!(" [{}] LOG listening on", running.pid)));
    assert_eq!(running.read("pid"), format!("{}\n", running.pid));

    let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid)).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let [_, parent, group, session, terminal, ..] = fields[..] else { panic!("{stat}") };
    assert_ne!(parent, caller.to_string());
    assert_ne!(parent, std::process::id().to_string());
    assert_eq!(terminal, "0");
    let pid = running.pid.to_string();
    assert!(session != pid && group != pid, "it leads nothing: {stat}");
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(link("cwd"), running.run.folder);
    for number in 0..3 {
        assert_eq!(link(&format!("fd/{number}")).to_str(), Some("/dev/null"));
    }
    running.command("SHOW VERSION");
    end(running, Signal::SIGTERM);
}

#[test]
fn caller_of_the_background_sees_what_fails_before_the_fork() {
    let want = texts(&["FATAL daemon needs pidfile configured"]);
    assert_eq!(Run::new("").args(&["-d"]).failure(), (1, want));
    let pid = std::process::id().to_string();
    let run = Run::new("pidfile = pid").args(&["-d"]).file("pid", &pid);
    let want = texts(&["FATAL pidfile 'pid' exists, another instance running?"]);
    assert_eq!(run.failure(), (1, want));
    let other = Run::new("").up();
    let settings = format!(
        "pidfile = pid\nunix_socket_dir = {}\nlisten_port = {}",
        other.run.folder.display(),
        other.run.port
    );
    let want = texts(&["FATAL unix socket is in use, cannot continue"]);
    assert_eq!(Run::new(&settings).args(&["-d"]).failure(), (1, want));
    let run = Run::new("pidfile = pid").args(&["-d"]).file("pid", "99999999");
    let mut running = run.start();
    running.follow_to_background();
    assert_eq!(running.texts(), ["LOG stale pidfile, removing"], "the rest goes nowhere");
}

#[test]
fn caller_of_the_background_misses_what_fails_later() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (settings, want) in [
        (format!("listen_port = {port}"), "FATAL failed to listen on any address"),
        ("unix_socket_dir = missing".to_owned(), "FATAL failed to create unix socket"),
        ("pidfile = missing/pid".to_owned(), "FATAL could not open pidfile 'missing/pid': No such"),
    ] {
        let run = Run::new(&format!("logfile = log\npidfile = pid\n{settings}")).args(&["-d"]);
        let mut running = run.start();
        assert_eq!((running.code(), running.read("stderr")), (0, String::new()));
        running.wait_for(want);
        assert!(!running.socket().exists() && !running.path("pid").exists(), "{settings}");
    }
    // Without a place for its lines nobody hears of it.
    let mut running = Run::new("logfile = missing/log\npidfile = pid").args(&["-d"]).start();
    assert_eq!((running.code(), running.read("stderr")), (0, String::new()));
    assert!(!running.path("pid").exists());
}

#[test]
fn killed_process_leaves_traces_that_the_next_start_removes() {
    let mut running = Run::new("logfile = log\npidfile = pid").up();
    running.signal(Signal::SIGKILL);
    assert_eq!(running.code(), -9);
    assert!(running.path("pid").exists() && running.socket().exists());
    let at = &running.run;
    let settings = format!(
        "pidfile = {0}/pid\nunix_socket_dir = {0}\nlisten_port = {1}",
        at.folder.display(),
        at.port
    );
    let next = Run::new(&settings).up();
    assert_eq!(next.texts()[0], "LOG stale pidfile, removing");
    assert_eq!(running.read("pid"), format!("{}\n", next.pid));
    drop(next);
    // A file that can't be deleted.
    let folder = running.run.folder.join("closed");
    fs::create_dir(&folder).unwrap();
    write(&folder.join("pid"), running.pid.to_string());
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    let (code, lines) = Run::new(&format!("pidfile = {}/pid", folder.display())).failure();
    let want = ["LOG stale pidfile, removing", "FATAL could not remove stale pidfile: "];
    assert_eq!((code, lines.len()), (1, 2), "{lines:?}");
    assert!(lines.iter().zip(want).all(|(line, want)| line.starts_with(want)), "{lines:?}");
}

#[test]
fn pidfile_that_cannot_be_used_is_fatal() {
    let (code, lines) = Run::new("pidfile = DIR").failure();
    let run = Run::new("pidfile = pid").file("pid", "");
    assert_eq!(code, 1);
    let last = lines.last().unwrap();
    assert!(last.starts_with("FATAL could not read pidfile '/"), "{last}");
    assert!(last.ends_with("': Is a directory"), "{last}");
    let want = texts(&["FATAL pidfile 'pid' exists, another instance running?"]);
    assert_eq!(run.failure(), (1, want), "an empty file counts as in use");
    let run = Run::new("pidfile = pid").file("pid", "1");
    fs::set_permissions(run.folder.join("pid"), fs::Permissions::from_mode(0o000)).unwrap();
    let want = texts(&["FATAL could not open pidfile 'pid': Permission denied"]);
    assert_eq!(run.failure(), (1, want));
}

#[test]
fn pidfile_comes_after_the_sockets() {
    let run = Run::new("pidfile = missing/pid");
    let socket = run.folder.join(format!(".s.PGSQL.{}", run.port));
    let mut running = run.start();
    assert_eq!(running.code(), 1);
    let lines = running.texts();
    let want = "FATAL could not open pidfile 'missing/pid': No such file or directory";
    assert_eq!(lines.last().unwrap(), want);
    assert!(lines[lines.len() - 2].starts_with("LOG listening on unix:"), "{lines:?}");
    assert!(!socket.exists());
}

#[test]
fn pidfile_has_its_mode_from_the_umask() {
    for (mask, pid, log) in [("022", 0o644, 0o644), ("027", 0o640, 0o640), ("0", 0o644, 0o666)] {
        let running = Run::through(&format!("umask {mask}"), "pidfile = pid\nlogfile = log").up();
        let bits = |name| fs::metadata(running.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((bits("pid"), bits("log")), (pid, log), "{mask}");
        end(running, Signal::SIGQUIT);
    }
}
