#!/bin/bash
# Makes sure that what is named on the command line is there; on Debian and its relatives missing
# packages are installed. Names: build, checks, postgresql, pgbouncer,
# exporter, drivers, pam, libldap, ldap, bench, fuzzer. Silent if nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=()

have() { command -v "$1" >/dev/null; }

fail() {
    echo "deps: $*" >&2
    exit 1
}

# The directory with PostgreSQL's server programs, as the tests and the demo look for it.
have_postgresql() {
    if [ -n "${PG_BINDIR:-}" ]; then
        [ -x "$PG_BINDIR/initdb" ]
    else
        compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || have initdb
    fi
}

# Debian's modules belong to Debian's Python, whatever else is called python3.
have_header() { [ -e "/usr/include/$1" ]; }

have_python_module() { /usr/bin/python3 -c "import $1" 2>/dev/null; }

# Where npm puts node-postgres. Debian's package is an alternative to npm, which is not always
# Debian's: the nodejs of other sources conflicts with that package.
node_folder=target/drivers

want() {
    case $1 in
    build)
        have cc || packages+=(build-essential)
        have pkg-config || packages+=(pkg-config)
        [ -n "${OPENSSL_DIR:-}" ] || pkg-config --exists openssl 2>/dev/null || packages+=(libssl-dev)
        pkg-config --exists 'libcares >= 1.18' 2>/dev/null || packages+=(libc-ares-dev)
        have_header security/pam_appl.h || packages+=(libpam0g-dev)
        ;;
    checks) ;;
    postgresql) have_postgresql && have psql || packages+=(postgresql) ;;
    pgbouncer) have pgbouncer || [ -x /usr/sbin/pgbouncer ] || packages+=(pgbouncer) ;;
    exporter) have prometheus-pgbouncer-exporter || packages+=(prometheus-pgbouncer-exporter) ;;
    drivers)
        have_python_module psycopg || packages+=(python3-psycopg)
        have_python_module asyncpg || packages+=(python3-asyncpg)
        [ -e /usr/share/java/postgresql.jar ] || packages+=(libpostgresql-jdbc-java)
        have javac || packages+=(default-jdk-headless)
        have npm || [ -e /usr/share/nodejs/pg ] || packages+=(nodejs node-pg)
        ;;
    pam) compgen -G '/usr/lib/*/libpam_wrapper.so' >/dev/null || packages+=(libpam-wrapper) ;;
    # The program loads it when it is needed. Its package has another name in each release of
    # Debian; that of the headers, which nobody needs, always brings it.
    libldap)
        compgen -G '/usr/lib*/*/libldap*.so.*' >/dev/null ||
            compgen -G '/usr/lib*/libldap*.so.*' >/dev/null || packages+=(libldap-dev)
        ;;
    ldap)
        have slapd || [ -x /usr/sbin/slapd ] || packages+=(slapd)
        have openssl || packages+=(openssl)
        ;;
    bench)
        have ip || packages+=(iproute2)
        have strace || packages+=(strace)
        have pgbench || [ -n "${PG_BINDIR:-}" ] || packages+=(postgresql-client)
        ;;
    fuzzer) have c++ || packages+=(g++) ;;
    *) fail "unknown name $1" ;;
    esac
}

install_packages() {
    have apt-get || fail "please install the equivalent of: ${packages[*]}"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || fail "please install as root: apt-get install ${packages[*]}"
        as_root=(sudo)
    fi
    echo "deps: installing ${packages[*]} (Debian also starts a service of a server it installs)"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}"
}

# Distributions' compilers are often too old, so the compiler is not installed unasked.
check_rust() {
    local cargo=${CARGO:-cargo} least found
    local hint="get it with: curl --proto '=https' -sSf https://sh.rustup.rs | sh"
    least=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have "$cargo" || fail "Rust $least or later is needed (rustup, or apt's cargo if new enough); $hint"
    found=$("$cargo" --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$least" "$found" | sort -V | head -n 1)" = "$least" ] ||
        fail "Rust $least or later is needed, found $found; $hint"
}

# rustfmt and clippy, which rustup's smallest profile lacks.
check_components() {
    local cargo=${CARGO:-cargo}
    "$cargo" fmt --version >/dev/null 2>&1 && "$cargo" clippy --version >/dev/null 2>&1 && return
    have rustup || fail "rustfmt and clippy are needed: rustup component add rustfmt clippy"
    rustup component add rustfmt clippy
}

check_fuzzer() {
    local cargo=${CARGO:-cargo}
    "$cargo" fuzz --version >/dev/null 2>&1 || "$cargo" install --quiet --locked cargo-fuzz
}

check_node() {
    ! have npm || [ -d "$node_folder/node_modules/pg" ] ||
        npm install --silent --no-audit --no-fund --prefix "$node_folder" pg@8
}

for name in "$@"; do
    want "$name"
done
[ ${#packages[@]} -eq 0 ] || install_packages
for name in "$@"; do
    case $name in
    build) check_rust ;;
    checks) check_components ;;
    drivers) check_node ;;
    fuzzer) check_fuzzer ;;
    esac
done
