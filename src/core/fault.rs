//! Why connections are closed: one table of texts. The text is the log line's reason and, unless
//! the fault is silent, the client's error message (config 11).

use std::borrow::Cow;

/// A reason to close a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happened.
    pub text: Cow<'static, str>,
    /// SQLSTATE that the client gets: `08P01` for all that the pooler finds out itself.
    pub sqlstate: Cow<'static, [u8]>,
    /// True if the client is told.
    pub told: bool,
}

/// The SQLSTATE of everything that the pooler itself says.
pub const PROTOCOL_VIOLATION: &str = "08P01";

/// Formatted reasons are cut to this many bytes (pooling 0.1).
const TEXT_MAX: usize = 127;

impl Fault {
    const fn fixed(text: &'static str, told: bool) -> Fault {
        Fault {
            text: Cow::Borrowed(text),
            sqlstate: Cow::Borrowed(PROTOCOL_VIOLATION.as_bytes()),
            told,
        }
    }

    /// A fault whose text is made up at run time, cut as the contract says.
    pub fn formatted(text: String) -> Fault {
        let text = match crate::base::text::cut(&text, TEXT_MAX) {
            cut if cut.len() < text.len() => cut.to_owned(),
            _ => text,
        };
        Fault { text: Cow::Owned(text), ..Fault::fixed("", true) }
    }

    /// A server's own words at login, passed on uncut (pooling 10.5).
    pub fn relayed(text: &[u8], sqlstate: Option<&[u8]>) -> Fault {
        let fallback = Fault::fixed("", true);
        Fault {
            text: Cow::Owned(String::from_utf8_lossy(text).into_owned()),
            sqlstate: sqlstate.map_or(fallback.sqlstate, |code| Cow::Owned(code.to_vec())),
            told: true,
        }
    }

    /// The same reason without a word to the client.
    pub fn silently(&self) -> Fault {
        Fault { told: false, ..self.clone() }
    }
}

macro_rules! faults {
    ($($how:ident $name:ident $text:literal)*) => {
        $(#[doc = concat!("`", $text, "`")]
        pub const $name: Fault = Fault::fixed($text, faults!(@$how));)*
        /// Every fault with a fixed text, for the manual's list of messages.
        pub const ALL: &[(&str, Fault)] = &[$((stringify!($name), $name)),*];
    };
    (@told) => { true };
    (@silent) => { false };
}

faults! {
    silent CLIENT_CLOSE_REQUEST "client close request"
    silent CLIENT_EOF "client unexpected eof"
    silent CLIENT_WRITE_FAILED "unexpected eof"
    silent CONSOLE_CLOSE_REQUEST "close req"
    told ADMIN_FORCED_DISCONNECT "admin forced disconnect"
    told DATABASE_REMOVED "database removed"
    told WAIT_CANCELED "canceling wait due to cancel request"
    told SHUTTING_DOWN "pooler is shutting down"
    told SERVER_SHUTTING_DOWN "server shutting down"

    told CLIENT_IDLE_TIMEOUT "client_idle_timeout"
    told CLIENT_LOGIN_TIMEOUT "client_login_timeout"
    told CLIENT_LOGIN_TIMEOUT_SERVER_DOWN "client_login_timeout (server down)"
    told QUERY_TIMEOUT_WAITING "query_timeout"
    told QUERY_WAIT_TIMEOUT "query_wait_timeout"
    silent CANCEL_WAIT_TIMEOUT "cancel_wait_timeout"

    told TOO_MANY_CLIENTS "no more connections allowed (max_client_conn)"
    told TOO_MANY_DATABASE_CLIENTS "client connections exceeded (max_db_client_connections)"
    told TOO_MANY_USER_CLIENTS "client connections exceeded (max_user_client_connections)"

    told PASSWORD_FAILED "password authentication failed"
    told SASL_FAILED "SASL authentication failed"
    told TRUST_FAILED "\"trust\" authentication failed"
    told CERT_FAILED "certificate authentication failed"
    told PAM_FAILED "PAM authentication failed"
    told LDAP_FAILED "LDAP authentication failed"
    told LDAP_OPTIONS_MISSING "auth_ldap_options is null"
    told PEER_FAILED "unix socket login rejected"
    told REJECTED "login rejected"
    told NO_METHOD "no authentication method is found"
    told EMPTY_PASSWORD "empty password returned by client"
    told USER_NAME_TOO_LONG "username too long"
    told NOT_ALLOWED "not allowed"
    told NO_USER_NAME "no username supplied"
    told SSL_REQUIRED "SSL required"
    silent SSL_INSIDE_SSL "SSL req inside SSL"
    told OLD_PROTOCOL "old V2 protocol not supported"
    told BAD_OPTIONS "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed"
    told BAD_STARTUP_LAYOUT "invalid startup packet layout: expected terminator as last byte"
    told PASSWORD_BEFORE_STARTUP "client password pkt before startup packet"
    told STARTUP_AGAIN "client re-sent startup pkt"
    told BAD_MECHANISM "client selected an invalid SASL authentication mechanism"
    told DATA_BEHIND_SSL_REQUEST "received unencrypted data after SSL request"
    told DATA_BEHIND_GSS_REQUEST "received unencrypted data after GSSAPI encryption request"
    told BOUNCER_CONFIG_ERROR "bouncer config error"
    told NO_SUCH_USER "no such user"
    told REPLICATION_MISSING "replication connections are not supported by this version of pgturnstile"

    told PQEXEC_DISALLOWED "PQexec disallowed"
    told STATEMENT_NAME_TAKEN "prepared statement name is already in use"
    told STATEMENT_MISSING "prepared statement did not exist"
    told STATEMENT_UNREADABLE "failed to parse packet"
    told BROKEN_PARSE "broken Parse packet"
    told UNKNOWN_PACKET "unknown pkt"
    silent BAD_PACKET "bad packet"
    told FAILURE "failure"
    told INCOMPLETE_QUERY "incomplete query"
    told CONSOLE_BAD_PACKET "bad packet"

    silent BAD_CANCEL_REQUEST "bad cancel request"
    silent CANCEL_UNKNOWN_KEY "failed cancel request"
    silent CANCEL_IDLE_CLIENT "cancel request for idle client"
    silent CANCEL_CONSOLE "cancel request for console client"
    silent CANCEL_DURING_ALIGN "ignoring cancel request for server that is setting vars"
    silent CANCEL_NOW_IDLE "not sending cancel request for client that is now idle"
    silent CANCEL_GIVEN_UP "client gave up on cancel request, so we also give up forwarding to server"
    silent CANCEL_SENT "successfully sent cancel request"

    told SERVER_CONN_CRASHED "server conn crashed?"
    told SERVER_WRITE_FAILED "server connection closed"
    told SERVER_BAD_HEADER "bad pkt header"
    told UNEXPECTED_REPLY "unexpected reply from server"
    told NO_TRANSACTIONS "transaction blocks not allowed in statement pooling mode"
    told INVALID_PARAMETER "invalid server parameter"
    told BROKEN_PARAMETER_STATUS "broken ParameterStatus packet"
    told CONFIGURATION_CHANGED "database configuration changed"
    told CONNECT_STRING_CHANGED "connect string changed"
    told CLOSE_NEEDED "close_needed"
    told OBSOLETE "obsolete connection"
    told PAUSE_MODE "pause mode"
    told EVICTED "evicted"
    told SUSPEND_TIMEOUT "suspend_timeout"
    told UNSAFE_ON_SUSPEND "close unsafe file descriptors on suspend"
    told TOO_MANY_SERVERS "too many servers in the pool"
    told IDLE_GOT_DIRTY "idle server got dirty"
    told IDLE_LIST_GOT_DIRTY "SV_IDLE server got dirty"
    told USED_LIST_GOT_DIRTY "SV_USED server got dirty"
    told RESET_FAILED "reset query failed"
    told CHECK_FAILED "test query failed"
    told SERVER_IDLE_TIMEOUT "server idle timeout"
    told QUERY_TIMEOUT "query timeout"
    told IDLE_TRANSACTION_TIMEOUT "idle transaction timeout"
    told TRANSACTION_TIMEOUT "transaction timeout"
    told SERVER_LIFETIME "server lifetime over"
    told AUTH_QUERY_ERROR "error response from auth_query"
    told AUTH_QUERY_UNEXPECTED "unexpected response from auth_query"
    told AUTH_QUERY_NULL_NAME "auth_query response contained null user name"
    told CONNECT_TIMEOUT "connect timeout"
    told CONNECT_FAILED "connect failed"
    told CANNOT_CONNECT "cannot connect"
    told DNS_FAILED "server DNS lookup failed"
    told SERVER_REFUSED_SSL "server refused SSL"
    told BAD_SSL_ANSWER "bad sslreq answer"
    told DATA_BEHIND_SSL_ANSWER "received unencrypted data after SSL response"
    told SSL_SETUP_FAILED "sslreq processing failed"
    told LOGIN_FAILED "login failed"
    told AUTH_ANSWER_FAILED "failed to answer authreq"
    told BAD_CANCEL_KEY "bad cancel key"
    told UNKNOWN_LOGIN_PACKET "unknown pkt from server"
    told CONNECT_QUERY_TOO_LONG "exec_on_connect query failed"
    told CLIENT_LEFT_NOT_READY "client disconnect while server was not ready"
    told CLIENT_LEFT_IN_QUERY "client disconnected with query in progress"
    told CLIENT_LEFT_IN_QUERIES "client disconnected with queries in progress"
    told CLIENT_LEFT_UNDELIVERED "client disconnect before everything was sent to the server"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_texts_are_cut() {
        assert_eq!(Fault::formatted("x".repeat(200)).text.len(), 127);
        assert_eq!(Fault::formatted("short".into()).text, "short");
        assert_eq!(Fault::relayed(&[b'x'; 300], None).text.len(), 300);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
