//! Tests of SHOW: names and types of columns against the lists of admin 3.

use super::fixture::Fixture;

/// `name type` per line, as the tables of admin 3 have them.
const COLUMNS: &[(&str, &str)] = &[
    ("version", "version text"),
    ("state", "key text, value text"),
    (
        "databases",
        "name text, host text, port int4, database text, force_user text, pool_size int4, \
         min_pool_size int4, reserve_pool_size int4, server_lifetime int4, pool_mode text, \
         load_balance_hosts text, max_connections int4, current_connections int4, \
         max_client_connections int4, current_client_connections int4, paused int4, disabled int4",
    ),
    (
        "pools",
        "database text, user text, cl_active int4, cl_waiting int4, cl_active_cancel_req int4, \
         cl_waiting_cancel_req int4, sv_active int4, sv_active_cancel int4, \
         sv_being_canceled int4, sv_idle int4, sv_used int4, sv_tested int4, sv_login int4, \
         maxwait int4, maxwait_us int4, pool_mode text, load_balance_hosts text",
    ),
    ("peers", "peer_id int4, host text, port int4, pool_size int4"),
    (
        "peer_pools",
        "peer_id int4, cl_active_cancel_req int4, cl_waiting_cancel_req int4, \
         sv_active_cancel int4, sv_login int4",
    ),
    ("clients", SOCKETS),
    ("servers", SOCKETS),
    (
        "users",
        "name text, pool_size text, reserve_pool_size text, pool_mode text, \
         max_user_connections int4, current_connections int4, max_user_client_connections int4, \
         current_client_connections int4",
    ),
    ("lists", "list text, items int4"),
    ("mem", "name text, size int4, used int4, free int4, memtotal int4"),
    ("dns_hosts", "hostname text, ttl int8, addrs text"),
    ("dns_zones", "zonename text, serial int8, count int4"),
    ("config", "key text, value text, default text, changeable text"),
    (
        "stats",
        "database text, total_server_assignment_count num, total_xact_count num, \
         total_query_count num, total_received num, total_sent num, total_xact_time num, \
         total_query_time num, total_wait_time num, total_client_parse_count num, \
         total_server_parse_count num, total_bind_count num, total_client_login_count num, \
         avg_server_assignment_count num, avg_xact_count num, avg_query_count num, avg_recv num, \
         avg_sent num, avg_xact_time num, avg_query_time num, avg_wait_time num, \
         avg_client_parse_count num, avg_server_parse_count num, avg_bind_count num, \
         avg_client_login_count num",
    ),
    (
        "stats_totals",
        "database text, server_assignment_count num, xact_count num, query_count num, \
         bytes_received num, bytes_sent num, xact_time num, query_time num, wait_time num, \
         client_parse_count num, server_parse_count num, bind_count num, client_login_count num",
    ),
    (
        "stats_averages",
        "database text, server_assignment_count num, xact_count num, query_count num, \
         bytes_received num, bytes_sent num, xact_time num, query_time num, wait_time num, \
         avg_client_parse_count num, avg_server_parse_count num, avg_bind_count num, \
         avg_client_login_count num",
    ),
    ("totals", "name text, value num"),
    ("timezone", "timezone text"),
    ("Client_Encoding", "client_encoding text"),
];

const SOCKETS: &str = "type text, user text, database text, replication text, state text, \
    addr text, port int4, local_addr text, local_port int4, connect_time text, request_time text, \
    wait int4, wait_us int4, close_needed int4, ptr text, link text, remote_pid int4, tls text, \
    application_name text, prepared_statements int4, id int4";

const BUFFER: &str = "recv_pos int4, pkt_pos int4, pkt_remain int4, send_pos int4, \
    send_remain int4, pkt_avail int4, send_avail int4";

#[test]
fn columns_are_those_of_the_contract() {
    let mut at = Fixture::new();
    let watcher = at.console("watcher");
    let with_buffer = format!("{SOCKETS}, {BUFFER}");
    let longer = ["sockets", "active_sockets"].map(|topic| (topic, &*with_buffer));
    for (topic, columns) in COLUMNS.iter().copied().chain(longer) {
        let want: Vec<String> = columns
            .replace(" text", " 25 -1")
            .replace(" int4", " 23 4")
            .replace(" int8", " 20 8")
            .replace(" num", " 1700 -1")
            .split(", ")
            .map(str::to_owned)
            .collect();
        let shown = at.show(watcher, &format!("SHOW {topic}"));
        assert_eq!(shown.columns, want, "{topic}");
        assert!(shown.rows.iter().all(|row| row.len() == want.len()));
        assert_eq!(at.show(watcher, &format!("select {topic};")).columns, want);
    }
}
