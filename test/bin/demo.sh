#!/bin/bash
# Starts a throw-away PostgreSQL with pgturnstile in front of it, sends queries through it, shows
# what it says about them, and stops both. Nothing outside one temporary folder is touched.
#
# BINARY=path   the pooler to show instead of the release build (PgBouncer works too)
# PG_BINDIR=dir PostgreSQL's server programs
# LOAD_SECONDS=n how long pgbench runs, 5 unless given
set -euo pipefail
cd "$(dirname "$0")/../.."

binary=${BINARY:-target/release/pgturnstile}
load_seconds=${LOAD_SECONDS:-5}
server=
pooler=

say() { printf '\n== %s\n' "$*"; }

fail() {
    echo "demo: $*" >&2
    for log in "$folder"/{postgres,pooler,pgbench}.log; do
        [ -s "$log" ] && printf -- '--- %s\n' "$log" >&2 && tail -n 20 "$log" >&2
    done
    exit 1
}

# Ends a process that we started: politely, then after ten seconds for certain.
stop() {
    local pid=$1 signal=$2
    [ -n "$pid" ] || return 0
    kill "-$signal" "$pid" 2>/dev/null || true
    for _ in {1..100}; do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

clean_up() {
    stop "$pooler" TERM
    stop "$server" INT
    rm -rf "$folder"
}

# Repeats a command until it succeeds, for at most twenty seconds.
wait_for() {
    local what=$1 pid=$2
    shift 2
    for _ in {1..200}; do
        "$@" >/dev/null 2>&1 && return
        kill -0 "$pid" 2>/dev/null || fail "$what ended unexpectedly"
        sleep 0.1
    done
    fail "$what does not answer"
}

# PostgreSQL and poolers refuse to run as root, so root lends them another identity.
as_user=()
owner=$(id -un)
if [ "$(id -u)" -eq 0 ]; then
    owner=nobody
    id postgres >/dev/null 2>&1 && owner=postgres
    as_user=(setpriv --reuid="$owner" --regid="$(id -g "$owner")" --clear-groups)
fi

programs=${PG_BINDIR:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1 || true)}
programs=${programs:-$(dirname "$(command -v initdb)")}
folder=$(mktemp -d "${TMPDIR:-/tmp}/pgturnstile-demo.XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT TERM

umask 077
cp "$binary" "$folder/pooler"
password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
printf '%s\n' "$password" >"$folder/password"
port=$(perl -MIO::Socket::INET -e \
    'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport')
cat >"$folder/userlist.txt" <<END
"demo" "$password"
END
cat >"$folder/pooler.ini" <<END
[databases]
demo = host=$folder port=5432 dbname=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir = $folder
auth_type = scram-sha-256
auth_file = $folder/userlist.txt
admin_users = demo
pool_mode = transaction
default_pool_size = 5
log_connections = 0
log_disconnections = 0
END
[ ${#as_user[@]} -eq 0 ] || chown -R "$owner:" "$folder"

say "a throw-away PostgreSQL in $folder, as user $owner"
(cd "$folder" && exec "${as_user[@]}" "$programs/initdb" -D "$folder/data" -U demo -N --no-locale \
    --encoding=UTF8 --auth=scram-sha-256 --pwfile="$folder/password") \
    >"$folder/initdb.log" 2>&1 || fail "initdb failed: $(tail -n 1 "$folder/initdb.log")"
(cd "$folder" && exec "${as_user[@]}" "$programs/postgres" -D "$folder/data" -c fsync=off \
    -c listen_addresses= -c port=5432 -c unix_socket_directories="$folder") \
    >"$folder/postgres.log" 2>&1 &
server=$!
export PGPASSWORD=$password PGUSER=demo PGCONNECT_TIMEOUT=5
wait_for PostgreSQL "$server" psql -X -h "$folder" -p 5432 -d postgres -c 'select 1'
"$programs/postgres" --version

say "pgturnstile in front of it, at 127.0.0.1:$port, with 5 server connections"
(cd "$folder" && exec "${as_user[@]}" "$folder/pooler" "$folder/pooler.ini") \
    >"$folder/pooler.log" 2>&1 &
pooler=$!
export PGHOST=127.0.0.1 PGPORT=$port
wait_for pgturnstile "$pooler" psql -X -d demo -c 'select 1'
cat "$folder/pooler.log"

say "psql through it"
psql -X -d demo -c "select current_user, current_database(), pg_backend_pid() as server_process"

say "pgbench through it: 20 clients share 5 servers for $load_seconds seconds"
pgbench=$(command -v pgbench || echo "$programs/pgbench")
"$pgbench" -i -q demo >"$folder/pgbench.log" 2>&1 || fail "pgbench could not make its tables"
"$pgbench" -n -S -c 20 -j 2 -P 1 -T "$load_seconds" demo 2>&1 || fail "pgbench failed"

for command in 'SHOW POOLS' 'SHOW STATS'; do
    say "$command"
    psql -X -x -d pgbouncer -c "$command" || fail "$command failed"
done

say "stopping both, removing $folder"
