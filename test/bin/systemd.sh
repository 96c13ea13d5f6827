#!/bin/bash
# systemd as the first process of a container that is made of this machine's own files, with a PostgreSQL and
# target/debug/pgturnstile as units: for trying what the stand-in of test/live/service.rs can't show.
# Needs root, systemd, cgroup v2 and PostgreSQL's server programs (PG_BINDIR, if not in PATH).
#
#   test/bin/systemd.sh up              starts it, or brings the present build and etc/*.service into it
#   test/bin/systemd.sh run COMMAND...  in it: systemctl status pgturnstile, psql -h 127.0.0.1 -p 6432 -U postgres p
#   test/bin/systemd.sh down            ends it
#
# It sees the machine's files through an overlay and writes to none of them; its network is a loopback device.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=/tmp/pgt-systemd
shared=$folder/shared
group=$(findmnt -nt cgroup2 -o TARGET | head -n 1)/pgt-systemd
bin=${PG_BINDIR:-$(dirname "$(realpath "$(command -v postgres)")")}

first_process() { head -n 1 "$group/init.scope/cgroup.procs" 2>/dev/null; }

run() { nsenter -t "$(first_process)" -m -p -n -i -u -C -- "$@"; }

# In namespaces of its own; what is left of it is systemd.
boot() {
    local root=$folder/rw/root device
    mount --make-rprivate /
    mount -t tmpfs none "$folder/rw"
    mkdir "$folder"/rw/{upper,work,root}
    mount -t overlay -o "lowerdir=/,upperdir=$folder/rw/upper,workdir=$folder/rw/work" none "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 none "$root/dev"
    for device in null:3 zero:5 full:7 random:8 urandom:9; do
        mknod -m 666 "$root/dev/${device%:*}" c 1 "${device#*:}"
    done
    mkdir "$root"/dev/{pts,shm} "$root"/{old,shared}
    mount -t devpts devpts "$root/dev/pts"
    mount -t tmpfs none "$root/dev/shm"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=755 none "$root/run"
    mount -t tmpfs -o mode=1777 none "$root/tmp"
    mount --bind "$shared" "$root/shared"
    find "$root/etc/systemd/system" -mindepth 1 -delete
    cat >"$root/etc/systemd/system/first.target" <<END
[Unit]
Requires=systemd-journald.service dbus.service
After=systemd-journald.service dbus.service
END
    cd "$root"
    pivot_root . old
    umount -l /old
    export container=other
    exec /lib/systemd/systemd --unit=first.target --show-status=no </dev/null &>/shared/console
}

# In the container, the first time.
furnish() {
    mkdir /etc/pgturnstile /tmp/pg
    cd /etc/pgturnstile
    openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 9 -subj /CN=localhost 2>/dev/null
    echo '"postgres" ""' >users
    cat >pgturnstile.ini <<END
[databases]
p = host=/tmp dbname=postgres
[pgbouncer]
listen_addr = 127.0.0.1
unix_socket_dir = /run/pgturnstile
pidfile = /run/pgturnstile/pid
auth_type = trust
auth_file = /etc/pgturnstile/users
admin_users = postgres
pool_mode = transaction
client_tls_sslmode = allow
client_tls_key_file = /etc/pgturnstile/key
client_tls_cert_file = /etc/pgturnstile/cert
END
    chown -R postgres . /tmp/pg
    runuser -u postgres -- "$bin/initdb" -D /tmp/pg/data -A trust >/dev/null
    systemd-run -q --unit=pg -p User=postgres -p KillSignal=SIGINT \
        "$bin/postgres" -D /tmp/pg/data -c listen_addresses= -c unix_socket_directories=/tmp
}

# In the container, with what is shared.
refresh() {
    install -m 755 /shared/pgturnstile /usr/local/bin/pgturnstile
    cp /shared/*.service /shared/*.socket /etc/systemd/system/
    systemctl daemon-reload
    [ -e /etc/pgturnstile ] || furnish
    systemctl start pgturnstile
    systemctl status --no-pager pgturnstile
}

case ${1:-} in
    up)
        mkdir -p "$group" "$shared" "$folder/rw"
        install target/debug/pgturnstile etc/*.service etc/*.socket test/bin/systemd.sh "$shared"
        if ! first_process >/dev/null; then
            (echo "$BASHPID" >"$group/cgroup.procs" &&
                exec setsid unshare -C -m -p -n -i -u --fork test/bin/systemd.sh boot) &
            for _ in {1..100}; do
                run systemctl is-active -q dbus.service 2>/dev/null && break
                sleep 0.1
            done
        fi
        run bash /shared/systemd.sh refresh
        ;;
    run) shift && run "$@" ;;
    down)
        kill -KILL "$(first_process)"
        sleep 1
        find "$group" -depth -type d -exec rmdir {} +
        rm -rf "$folder"
        ;;
    boot | refresh) "$1" ;;
    *) sed -n '2,/^$/s/^# \?//p' "$0" ;;
esac
