//! The admin database: commands in, results out (admin 2 to 5). It reads the core through its
//! accessors and has everything done by it.

mod binary;
#[cfg(test)]
mod column_tests;
mod control;
#[cfg(test)]
mod control_tests;
mod dns;
mod extended;
#[cfg(test)]
mod extended_tests;
mod fds;
#[cfg(test)]
mod fixture;
mod grammar;
#[cfg(test)]
mod handoff_tests;
#[cfg(test)]
mod hold_tests;
mod memory;
#[cfg(test)]
mod messages;
mod rows;
mod show;
#[cfg(test)]
mod show_tests;
#[cfg(test)]
mod socket_tests;
mod sockets;
mod statistics;
mod table;
#[cfg(test)]
mod wait_tests;
mod waiting;
#[cfg(test)]
mod waiting_tests;

use crate::base::{Level, Micros, Objects};
use crate::config::Settings;
use crate::core::ask::Ask;
use crate::core::client::Access;
use crate::core::console::Statement;
use crate::core::{Addr, ClientId, Core, Handed, Peer};
use crate::net::conn::Pending;
use crate::net::resolve::{Host, Zone};
use crate::wire::read::lossy;
use crate::wire::write;
use grammar::Malformed;
use std::borrow::Cow;
use std::rc::Rc;
use table::Table;

/// What the console has to ask the process for.
pub trait Around {
    /// A point in time as `YYYY-MM-DD HH:MM:SS ZONE` in the local time zone.
    fn time_text(&self, at: Micros) -> String;
    /// The host names that were asked for, in order.
    fn dns_hosts(&self) -> Vec<Host>;
    /// The zones of these names, in order.
    fn dns_zones(&self) -> Vec<Zone>;
    /// What is pending on a connection.
    fn pending(&self, peer: Peer) -> Pending;
    /// What a connection takes beside what the core has of it, in bytes.
    fn connection_size(&self) -> usize;
    /// What the buffers of connections take.
    fn buffers(&self) -> Objects;
    /// The number of a client's or server's descriptor, if its connection is open.
    fn descriptor(&self, peer: Peer) -> Option<i32>;
    /// Sets TLS up for these settings; it is in force when the console's commands are done. The
    /// error is the text of an ERROR line.
    fn set_up_tls(&self, settings: &Settings) -> Result<(), String>;
    /// The open listening sockets, in the order in which they were opened.
    fn listening(&self) -> Vec<Listening>;
}

/// The ERROR line when a change of TLS settings comes to nothing.
pub const TLS_KEPT: &str = "TLS configuration could not be reloaded, keeping old configuration";

/// A listening socket, for SHOW FDS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Its number among the listening sockets.
    pub number: u32,
    /// The descriptor's number.
    pub fd: i32,
    /// Where it listens.
    pub addr: Addr,
}

/// One command that is being run.
struct Call<'a> {
    core: &'a mut Core,
    around: &'a dyn Around,
    id: ClientId,
    /// Bytes of the packet that it came in.
    asked: usize,
    /// How many rows were made for it.
    rows: usize,
}

/// What a command leads to.
enum Answer {
    /// A result; its tag is SHOW.
    Rows(Table),
    /// As `Rows`, with a descriptor for each row.
    Handed(Table, Vec<Handed>),
    /// The command's tag.
    Done(Cow<'static, str>),
    /// A NoticeResponse in front of the tag.
    Noticed(Vec<u8>, Cow<'static, str>),
    /// The core or `app` will answer, or nobody will.
    Later,
}

impl Answer {
    /// Appends all of it but ReadyForQuery; false if there is nothing to say yet.
    fn write(self, out: &mut Vec<u8>) -> bool {
        match self {
            Answer::Rows(table) | Answer::Handed(table, _) => {
                table.describe(out, &[]);
                table.write_rows(out, &[]);
                write::command_complete(out, "SHOW");
            }
            Answer::Done(tag) => write::command_complete(out, &tag),
            Answer::Noticed(notice, tag) => {
                out.extend(notice);
                write::command_complete(out, &tag);
            }
            Answer::Later => return false,
        }
        true
    }
}

/// Why a command is not run.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It does not exist.
    Invalid,
    /// Anything else, in words.
    Because(Cow<'static, str>),
}

impl Refusal {
    /// What is told about this command.
    fn text(&self, command: &[u8]) -> Vec<u8> {
        match self {
            Refusal::Invalid => [b"invalid command '", command, b"', use SHOW HELP;"].concat(),
            Refusal::Because(text) => text.as_bytes().to_vec(),
        }
    }
}

impl From<&'static str> for Refusal {
    fn from(text: &'static str) -> Refusal {
        Refusal::Because(text.into())
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Refusal {
        Refusal::Because(text.into())
    }
}

impl From<Malformed> for Refusal {
    fn from(how: Malformed) -> Refusal {
        match how {
            Malformed::Invalid => Refusal::Invalid,
            Malformed::BadArguments => "bad arguments".into(),
        }
    }
}

type Outcome = Result<Answer, Refusal>;

/// What a command takes behind its name.
#[derive(Clone, Copy, Debug)]
enum Argument {
    /// Nothing; the command does not exist with an argument.
    None,
    /// Nothing or one of these words in any case; with another one the command does not exist.
    OneOf(&'static [&'static str]),
    /// Something to SHOW; without it, or with something else, the command does not exist.
    Topic,
    /// Whatever; the command looks at it.
    Any,
    /// The name of a database.
    Database,
}

/// One command of the console.
struct Command {
    name: &'static str,
    access: Access,
    argument: Argument,
    /// Its lines of SHOW HELP.
    help: &'static [&'static str],
    run: fn(&mut Call<'_>, &str) -> Outcome,
}

/// Declares commands: name, access, argument, help lines, function.
const fn command(
    name: &'static str,
    access: Access,
    argument: Argument,
    help: &'static [&'static str],
    run: fn(&mut Call<'_>, &str) -> Outcome,
) -> Command {
    Command { name, access, argument, help, run }
}

/// All commands but SET, in the order of SHOW HELP.
#[rustfmt::skip]
static COMMANDS: &[Command] = &[
    command("SHOW", Access::Stats, Argument::Topic, &[], show::run),
    command("SELECT", Access::Stats, Argument::Topic, &[], show::run),
    command("RELOAD", Access::Admin, Argument::None, &["RELOAD"], control::reload),
    command("PAUSE", Access::Admin, Argument::Any, &["PAUSE [<db>]"], control::pause),
    command("RESUME", Access::Admin, Argument::Any, &["RESUME [<db>]"], control::resume),
    command("DISABLE", Access::Admin, Argument::Database, &["DISABLE <db>"], control::disable),
    command("ENABLE", Access::Admin, Argument::Database, &["ENABLE <db>"], control::enable),
    command("RECONNECT", Access::Admin, Argument::Any, &["RECONNECT [<db>]"], control::reconnect),
    command("KILL", Access::Admin, Argument::Any, &["KILL [<db>]"], control::kill),
    command("KILL_CLIENT", Access::Admin, Argument::Any, &["KILL_CLIENT <client_id>"], control::kill_client),
    command("SUSPEND", Access::Admin, Argument::None, &["SUSPEND"], control::suspend),
    command("SHUTDOWN", Access::Admin, Argument::OneOf(control::SHUTDOWN_WORDS),
        &["SHUTDOWN", "SHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS"], control::shutdown),
    command("HANDOFF", Access::Admin, Argument::Any, &[], control::handoff),
    command("WAIT_CLOSE", Access::Admin, Argument::Any, &["WAIT_CLOSE [<db>]"], control::wait_close),
];

/// The command of this name, if there is one with this argument.
fn find(name: &str, argument: &str) -> Option<&'static Command> {
    let command = COMMANDS.iter().find(|command| command.name.eq_ignore_ascii_case(name))?;
    let exists = match command.argument {
        Argument::None => argument.is_empty(),
        Argument::OneOf(words) => {
            let is_argument = |word: &&str| word.eq_ignore_ascii_case(argument);
            argument.is_empty() || words.iter().any(is_argument)
        }
        Argument::Topic => show::exists(argument),
        Argument::Any | Argument::Database => true,
    };
    exists.then_some(command)
}

/// The help line of SET, in front of those of [`COMMANDS`].
const SET_HELP: &str = "SET key = arg";

/// A console that has been given so many rows has to let others have their turn.
const ROWS_MAX: usize = 1000;

/// Runs what a console has asked for; for `Action::Console`. True if that has changed the settings.
pub fn run(core: &mut Core, around: &dyn Around, id: ClientId) -> bool {
    let settings = core.settings().clone();
    let mut rows = 0_usize;
    while let Some(ask) = core.next_ask(id) {
        let mut call = Call { core, around, id, asked: ask.size(), rows: 0 };
        match ask {
            Ask::Query(text) => call.query(&text),
            ask => extended::run(&mut call, ask),
        }
        rows = rows.saturating_add(call.rows);
        if rows >= ROWS_MAX {
            core.leave_console(id);
            break;
        }
    }
    !Rc::ptr_eq(&settings, core.settings())
}

/// Answers the console that asked for a RELOAD.
pub fn reload_done(core: &mut Core, id: ClientId, succeeded: bool) {
    if succeeded {
        core.answer_waiter(id, "RELOAD");
        return;
    }
    let line = "RELOAD Failed, see logs for more details".to_owned();
    core.journal.line(Level::Error, line);
    let text = b"RELOAD failed, see logs for additional details";
    let reply = error(core, id, b"F0000", text);
    core.fail_waiter(id, reply);
}

/// Texts of errors may be so long, in bytes (admin 2.4).
const ERROR_MAX: usize = 484;

/// The packet of an error that a console is told; it is logged as a client's.
fn error(core: &mut Core, id: ClientId, sqlstate: &[u8], text: &[u8]) -> Vec<u8> {
    if core.settings().log_pooler_errors.on() {
        let line = format!("pooler error: {}", lossy(text));
        core.log_about(id, Level::Warning, &line);
    }
    let mut reply = Vec::new();
    write::error(&mut reply, "ERROR", sqlstate, text);
    reply
}

impl Call<'_> {
    /// A simple query, with everything that comes of it.
    fn query(&mut self, text: &[u8]) {
        extended::end_unnamed(self.core, self.id);
        let outcome = grammar::parse(text).map_err(Refusal::from);
        let outcome = outcome.and_then(|statement| self.perform(&statement));
        let mut reply = Vec::new();
        match outcome {
            Ok(Answer::Handed(table, sockets)) => {
                self.core.answered(self.id);
                return fds::hand_over(self.core, self.id, &table, sockets);
            }
            Ok(answer) => {
                if !answer.write(&mut reply) {
                    return;
                }
            }
            Err(refusal) => match self.refuse(b"08P01", &refusal.text(text)) {
                Some(error) => reply = error,
                None => return,
            },
        }
        write::ready(&mut reply, b'I');
        self.core.answered(self.id);
        self.core.answer_console(self.id, reply);
    }

    /// Logs an error; its packet, or `None` if it is too long: then it ends the connection.
    fn refuse(&mut self, sqlstate: &[u8], text: &[u8]) -> Option<Vec<u8>> {
        self.core.journal.line(Level::Error, lossy(text));
        let packet = error(self.core, self.id, sqlstate, text);
        if text.len() > ERROR_MAX {
            self.core.fail_console(self.id);
            return None;
        }
        Some(packet)
    }

    fn perform(&mut self, statement: &Statement) -> Outcome {
        let outcome = match statement {
            Statement::Empty => Err(Refusal::Invalid),
            Statement::Set { key, value } => control::set(self, key, value),
            Statement::Command { name, argument } => self.command(name, argument),
        };
        if let Ok(Answer::Rows(table) | Answer::Handed(table, _)) = &outcome {
            self.rows = self.rows.saturating_add(table.height());
        }
        outcome
    }

    /// Looks a command up and checks in the order of admin 2.3: form, rights, argument.
    fn command(&mut self, name: &str, argument: &str) -> Outcome {
        let command = find(name, argument).ok_or(Refusal::Invalid)?;
        self.check(command.access)?;
        if matches!(command.argument, Argument::Database) && argument.is_empty() {
            return Err("a database is required".into());
        }
        (command.run)(self, argument)
    }

    /// Refuses what this client may not do.
    fn check(&self, needed: Access) -> Result<(), Refusal> {
        let has = self.core.clients().get(self.id).and_then(|c| c.access());
        match (needed, has) {
            (_, Some(Access::Admin)) | (Access::Stats, Some(Access::Stats)) => Ok(()),
            _ => Err("admin access needed".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::Fixture;

    #[test]
    fn what_does_not_exist_is_an_invalid_command() {
        let mut at = Fixture::new();
        let (boss, watcher) = (at.console("boss"), at.console("watcher"));
        for command in [
            "hello",
            "",
            ";",
            " SHOW ",
            "SHOW x",
            "set x",
            "SELECT 1",
            "BEGIN",
            "show all",
            "reload x",
            "suspend x",
            "shutdown x",
        ] {
            let want = format!("invalid command '{command}', use SHOW HELP;");
            assert_eq!(at.refusal(boss, command), want);
            assert_eq!(at.refusal(watcher, command), want);
        }
        assert_eq!(at.refusal(boss, &"x".repeat(16)), "bad arguments");
        assert_eq!(at.refusal(boss, "set \"\"=1"), "bad arguments");
    }

    #[test]
    fn rights_are_checked_before_arguments() {
        let mut at = Fixture::new();
        let watcher = at.console("watcher");
        for command in [
            "reload",
            "suspend",
            "shutdown",
            "shutdown wait_for_servers",
            "pause",
            "pause nowhere",
            "resume",
            "disable",
            "enable",
            "reconnect",
            "kill",
            "kill_client 1",
            "wait_close",
            "show fds",
            "set nothing=1",
        ] {
            assert_eq!(at.refusal(watcher, command), "admin access needed", "{command}");
        }
    }

    #[test]
    fn a_missing_database_is_told() {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        assert_eq!(at.refusal(boss, "disable"), "a database is required");
        assert_eq!(at.refusal(boss, "enable \"\""), "a database is required");
    }

    #[test]
    fn refusals_are_logged_twice() {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        at.log();
        at.refusal(boss, "nonsense");
        let log = at.log();
        let text = "invalid command 'nonsense', use SHOW HELP;";
        assert_eq!(log.len(), 2);
        assert_eq!(log[0], format!("Error {text}"));
        assert!(log[1].starts_with("Warning C-0x"), "{}", log[1]);
        assert!(log[1].ends_with(&format!("pooler error: {text}")));
        at.tag(boss, "set log_pooler_errors=0");
        at.refusal(boss, "nonsense");
        assert_eq!(at.log(), [format!("Error {text}")]);
    }

    #[test]
    fn an_error_that_is_too_long_ends_the_connection() {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        let text = at.refusal(boss, &"-".repeat(450));
        assert_eq!(text.len(), 484);
        at.run(boss, &"-".repeat(451));
        assert!(at.is_closed(boss));
        assert_eq!(at.taken(boss), [("E".into(), "SFATAL C08P01 Mfailure".into())]);
    }

    #[test]
    fn pipelined_commands_are_answered_in_order() {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        for command in ["set timezone='x'", "nonsense", "reconnect"] {
            at.feed(boss, command);
        }
        at.pump();
        let kinds: Vec<String> = at.taken(boss).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds.concat(), "NCZEZCZ");
    }

    #[test]
    fn a_reload_is_answered_when_it_is_over() {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        at.log();
        at.run(boss, "reload;");
        assert_eq!(at.log(), ["Log RELOAD command issued"]);
        assert_eq!((at.reloads.take(), at.taken(boss)), (Some(boss), vec![]));
        super::reload_done(&mut at.core, boss, true);
        assert_eq!(at.answered(boss), "RELOAD");
        super::reload_done(&mut at.core, boss, false);
        at.pump();
        let reply = at.taken(boss);
        let text = "SERROR CF0000 MRELOAD failed, see logs for additional details";
        assert_eq!(reply[0], ("E".into(), text.into()));
        assert_eq!(reply[1].0, "Z");
        assert_eq!(at.log()[0], "Error RELOAD Failed, see logs for more details");
    }
}
