# What a developer or packager runs. `make help` lists the targets.

prefix  ?= /usr/local
bindir  ?= $(prefix)/bin
datadir ?= $(prefix)/share
mandir  ?= $(datadir)/man
unitdir ?= $(prefix)/lib/systemd/system
CARGO   ?= $(or $(shell command -v cargo),$(HOME)/.cargo/bin/cargo)
BUILT    = target/release/pgturnstile
MANUALS  = $(wildcard doc/*.1 doc/*.5)
UNITS    = $(wildcard etc/*.service etc/*.socket)
SAMPLES  = $(wildcard etc/*.ini) etc/userlist.txt

export CARGO
.DEFAULT_GOAL := build
.PHONY: build check test sim fuzz live compat bench demo doc install deps build-deps demo-deps help

build: build-deps ## release binary: target/release/pgturnstile (default)
	$(CARGO) build --release --locked

check: deps ## everything a change must pass; installs what is missing
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked

test: build-deps ## unit tests
	@test/bin/deps.sh libldap
	$(CARGO) test --locked --lib --bins

sim: build-deps ## simulation of the core; SEEDS=5000 sweeps, SEED=17 replays one with a trace
	$(CARGO) test --locked --test sim -- --nocapture

# Any compiler that builds the rest will do: without a sanitizer cargo-fuzz needs no nightly one.
fuzz: build-deps ## looks for inputs that break a target of test/fuzz: T=startup SECONDS=60
	@test/bin/deps.sh fuzzer
	@test -d test/fuzz/corpus/$(or $(T),none) || { echo "T is one of:" $$(ls test/fuzz/corpus); exit 1; }
	@mkdir -p target/fuzz/corpus/$(T) target/fuzz/found
	@cp Cargo.lock test/fuzz/
	cd test/fuzz && $(CARGO) fuzz run --fuzz-dir . --target-dir $(CURDIR)/target/fuzz -s none $(T) \
		$(CURDIR)/target/fuzz/corpus/$(T) corpus/$(T) -- -max_total_time=$(or $(SECONDS),60) \
		-max_len=2000 -timeout=10 -artifact_prefix=$(CURDIR)/target/fuzz/found/$(T)-

live: deps ## against a real PostgreSQL
	$(CARGO) test --locked --test live

compat: deps ## same sessions through PgBouncer and through us, results compared
	$(CARGO) test --locked --test compat

bench: deps ## speed and memory beside PgBouncer; as root; QUICK=1, ONLY=simple,login, ROUNDS=5, SECONDS=2
	@test/bin/deps.sh bench
	$(CARGO) bench --locked --bench bench

demo: demo-deps $(if $(BINARY),,build) ## PostgreSQL, pgturnstile, psql and pgbench in a temporary folder
	test/bin/demo.sh

doc: build-deps ## rewrite the sample ini and the manual pages from the settings table
	$(CARGO) run --quiet --locked --example manual

install: ## copy to $(DESTDIR)$(prefix) what `make` has built; changes no running service
	@test -x $(BUILT) || { echo "run 'make' first"; exit 1; }
	install -d $(DESTDIR)$(bindir) $(DESTDIR)$(datadir)/pgturnstile $(DESTDIR)$(unitdir)
	install -m 755 $(BUILT) $(DESTDIR)$(bindir)/pgturnstile
	install -m 644 $(SAMPLES) $(DESTDIR)$(datadir)/pgturnstile
	$(foreach unit,$(UNITS),sed 's|/usr/local/bin|$(bindir)|' $(unit) \
		> $(DESTDIR)$(unitdir)/$(notdir $(unit));)
	$(foreach page,$(MANUALS),install -D -m 644 $(page) \
		$(DESTDIR)$(mandir)/man$(subst .,,$(suffix $(page)))/$(notdir $(page));)

deps: ## install what build and tests need: compiler, PostgreSQL, PgBouncer to compare with, drivers
	@test/bin/deps.sh build checks postgresql pgbouncer exporter drivers pam libldap ldap

build-deps:
	@test/bin/deps.sh build

demo-deps:
	@test/bin/deps.sh build postgresql

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10
