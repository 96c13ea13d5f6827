//! Commands that do something (admin 4).

use super::show::parameter;
use super::table::{long, Table};
use super::{Answer, Call, Outcome, Refusal, TLS_KEPT};
use crate::base::Level;
use crate::config::SetError;
use crate::core::client::Access;
use crate::core::database::{DatabaseId, Source};
use crate::core::pause::{Mode, Shutdown};
use crate::net::handoff::FORMAT;
use crate::wire::write;
use std::borrow::Cow;

/// What SHUTDOWN may be followed by.
pub(super) const SHUTDOWN_WORDS: &[&str] = &["WAIT_FOR_SERVERS", "WAIT_FOR_CLIENTS"];

fn complete(tag: impl Into<Cow<'static, str>>) -> Outcome {
    Ok(Answer::Done(tag.into()))
}

impl Call<'_> {
    /// Logs that a command is about to be carried out.
    fn log_issued(&mut self, command: &str, argument: &str) {
        let line = match argument {
            "" => format!("{command} command issued"),
            name => format!("{command} '{name}' command issued"),
        };
        self.core.journal.line(Level::Log, line);
    }

    /// Refuses if everything is paused already.
    fn check_active(&self) -> Result<(), Refusal> {
        match self.core.mode() {
            Mode::Active => Ok(()),
            Mode::Paused | Mode::Suspended => Err("already suspended/paused".into()),
        }
    }

    /// The database of this name, made from `*` if need be; the admin database can't be `verb`ed.
    fn database(&mut self, name: &str, verb: &str) -> Result<DatabaseId, Refusal> {
        self.database_but(name, format!("cannot {verb} admin db: {name}"))
    }

    /// The same; what is said if it is the admin database.
    fn database_but(&mut self, name: &str, admin: String) -> Result<DatabaseId, Refusal> {
        let id = self.core.database_named(name, self.id);
        self.not_admin(id, name, admin)
    }

    /// The database of this name if it exists already.
    fn existing_database(&mut self, name: &str, verb: &str) -> Result<DatabaseId, Refusal> {
        let admin = format!("cannot {verb} admin db: {name}");
        let id = self.core.existing_database(name);
        self.not_admin(id, name, admin)
    }

    fn not_admin(
        &self,
        id: Option<DatabaseId>,
        name: &str,
        admin: String,
    ) -> Result<DatabaseId, Refusal> {
        let id = id.ok_or_else(|| no_such_database(name))?;
        match self.core.database(id).map(|database| database.source()) {
            Some(Source::Console) => Err(admin.into()),
            _ => Ok(id),
        }
    }
}

fn no_such_database(name: &str) -> Refusal {
    format!("no such database: {name}").into()
}

/// PAUSE: the core answers when all is quiet.
pub(super) fn pause(call: &mut Call<'_>, name: &str) -> Outcome {
    call.check_active()?;
    call.log_issued("PAUSE", name);
    if name.is_empty() {
        call.core.pause_all(Some(call.id));
    } else {
        let database = call.database(name, "pause")?;
        if call.core.pause_database(database, call.id) {
            return complete("PAUSE");
        }
    }
    Ok(Answer::Later)
}

/// RESUME.
pub(super) fn resume(call: &mut Call<'_>, name: &str) -> Outcome {
    call.log_issued("RESUME", name);
    if name.is_empty() {
        if call.core.shutdown().is_some() {
            return Err("pooler is shutting down".into());
        }
        if call.core.mode() == Mode::Active {
            return Err("pooler is not paused/suspended".into());
        }
        call.core.resume_all();
    } else {
        let database = call.core.existing_database(name);
        let database = database.ok_or_else(|| no_such_database(name))?;
        if !call.core.resume_database(database) {
            return Err(format!("database {name} is not paused").into());
        }
    }
    complete("RESUME")
}

/// SUSPEND: the core answers when everything is at rest.
pub(super) fn suspend(call: &mut Call<'_>, _: &str) -> Outcome {
    call.check_active()?;
    if call.core.databases().any(|(_, database)| !database.is_idle() && database.is_paused()) {
        return Err("cannot suspend with paused databases".into());
    }
    call.log_issued("SUSPEND", "");
    call.core.suspend(call.id);
    Ok(Answer::Later)
}

/// WAIT_CLOSE: the core answers when no server is left that has to be replaced.
pub(super) fn wait_close(call: &mut Call<'_>, name: &str) -> Outcome {
    call.log_issued("WAIT_CLOSE", name);
    let database = match name {
        "" => None,
        name => Some(call.database_but(name, format!("cannot wait in admin db: {name}"))?),
    };
    match call.core.wait_close(database, call.id) {
        true => complete("WAIT_CLOSE"),
        false => Ok(Answer::Later),
    }
}

/// DISABLE db.
pub(super) fn disable(call: &mut Call<'_>, name: &str) -> Outcome {
    call.log_issued("DISABLE", name);
    let database = call.database(name, "disable")?;
    call.core.set_disabled(database, true);
    complete("DISABLE")
}

/// ENABLE db.
pub(super) fn enable(call: &mut Call<'_>, name: &str) -> Outcome {
    call.log_issued("ENABLE", name);
    let database = call.existing_database(name, "enable")?;
    call.core.set_disabled(database, false);
    complete("ENABLE")
}

/// RECONNECT.
pub(super) fn reconnect(call: &mut Call<'_>, name: &str) -> Outcome {
    call.log_issued("RECONNECT", name);
    let database = match name {
        "" => None,
        name => Some(call.database(name, "reconnect")?),
    };
    call.core.reconnect(database);
    complete("RECONNECT")
}

/// KILL.
pub(super) fn kill(call: &mut Call<'_>, name: &str) -> Outcome {
    call.check_active()?;
    call.log_issued("KILL", name);
    let database = match name {
        "" => None,
        name => Some(call.database(name, "kill")?),
    };
    call.core.kill(database);
    complete("KILL")
}

/// KILL_CLIENT id.
pub(super) fn kill_client(call: &mut Call<'_>, argument: &str) -> Outcome {
    let number = leading_number(argument).ok_or("invalid client pointer supplied")?;
    if !call.core.kill_client(number) {
        return Err("client not found".into());
    }
    complete("KILL_CLIENT")
}

/// The number at the start of a text, as C's `%llu` reads it: clamped first, negated then.
fn leading_number(text: &str) -> Option<u64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let len = digits.bytes().take_while(u8::is_ascii_digit).count();
    let digits = digits.get(..len).filter(|digits| !digits.is_empty())?;
    match digits.parse::<u64>() {
        Ok(number) if negative => Some(number.wrapping_neg()),
        Ok(number) => Some(number),
        Err(_) => Some(u64::MAX),
    }
}

/// RELOAD: `app` does it and answers.
pub(super) fn reload(call: &mut Call<'_>, _: &str) -> Outcome {
    call.log_issued("RELOAD", "");
    call.core.request_reload(call.id);
    Ok(Answer::Later)
}

/// HANDOFF 0: which format of a handoff is known. HANDOFF n: hands over everything (doc/handoff.md).
/// For anybody but the process's own user there is no such command.
pub(super) fn handoff(call: &mut Call<'_>, format: &str) -> Outcome {
    if !call.core.is_own_user(call.id) {
        return Err(Refusal::Invalid);
    }
    match format {
        "0" => Ok(Answer::Rows(Table::new(&[long("format", |format| *format)], [FORMAT]))),
        format if format.parse() == Ok(FORMAT) => {
            if let Some(text) = call.core.refuses_handoff() {
                return Err(text.into());
            }
            call.log_issued("HANDOFF", "");
            call.core.request_handoff(call.id);
            Ok(Answer::Later)
        }
        other => Err(format!("unknown format of a handoff: {other}").into()),
    }
}

/// SHUTDOWN: at once there is no answer, as nobody is left to give it.
pub(super) fn shutdown(call: &mut Call<'_>, how: &str) -> Outcome {
    let how = match how.to_ascii_uppercase().as_str() {
        "WAIT_FOR_SERVERS" => Shutdown::WaitForServers,
        "WAIT_FOR_CLIENTS" => Shutdown::WaitForClients,
        _ => {
            call.log_issued("SHUTDOWN", "");
            call.core.exit_now(0);
            return Ok(Answer::Later);
        }
    };
    call.log_issued(
        match how {
            Shutdown::WaitForServers => "SHUTDOWN WAIT_FOR_SERVERS",
            Shutdown::WaitForClients => "SHUTDOWN WAIT_FOR_CLIENTS",
        },
        "",
    );
    call.core.begin_shutdown(how);
    complete("SHUTDOWN")
}

/// SET key = value (admin 4.8).
pub(super) fn set(call: &mut Call<'_>, key: &str, value: &str) -> Outcome {
    if parameter(key).is_some() {
        let mut reply = Vec::new();
        write::notice(&mut reply, b"SET ignored");
        return Ok(Answer::Noticed(reply, "SET".into()));
    }
    call.check(Access::Admin)?;
    let complaint = match call.core.set_parameter(key, value) {
        Ok(()) => return changed(call, key, format!("SET {key}={value}")),
        Err(SetError::Unknown) => Some(format!("unknown parameter: pgbouncer/{key}")),
        Err(SetError::Refused(complaint)) => complaint.map(str::to_owned),
    };
    if let Some(line) = complaint {
        call.core.journal.line(Level::Error, line);
    }
    Err("SET failed".into())
}

/// The answer to SET; TLS is set up again if that was the subject.
fn changed(call: &mut Call<'_>, key: &str, tag: String) -> Outcome {
    if !key.contains("_tls_") && !key.contains("_tls13_") {
        return complete(tag);
    }
    let settings = call.core.settings().clone();
    match call.around.set_up_tls(&settings) {
        Ok(()) => complete(tag),
        Err(text) => {
            call.core.journal.line(Level::Error, text);
            call.core.journal.line(Level::Error, TLS_KEPT.to_owned());
            let mut reply = Vec::new();
            let text = b"TLS settings could not be applied, still using old configuration";
            write::notice(&mut reply, text);
            Ok(Answer::Noticed(reply, tag.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_numbers_are_read_as_in_c() {
        for (text, want) in [
            ("12", Some(12)),
            (" \t+12abc", Some(12)),
            ("-1", Some(u64::MAX)),
            ("99999999999999999999", Some(u64::MAX)),
            ("", None),
            ("-", None),
            ("x1", None),
        ] {
            assert_eq!(leading_number(text), want, "{text}");
        }
    }
}
