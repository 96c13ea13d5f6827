//! Clients that get in by their certificate (auth 2.7, 7.5).

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::scratch::{scratch, write};
use crate::rig::tls::{offers, Wishes};
use crate::rig::wire::last_error;

const REFUSED: &str = "certificate authentication failed";

/// Servers are always reached as `trusty`.
pub(crate) fn start(mode: &str, settings: &str) -> Pooler {
    let place = format!("host=127.0.0.1 port={} user=trusty dbname=template1", postgres().port);
    Pooler::start(&Setup {
        databases: format!("shop = {place}\nstore = {place}\n"),
        settings: offers(mode, "server") + settings,
        users: "\"trusty\" \"pw\"\n\"app\" \"app-pw\"\n\"sty\" \"\"\n\"ann\" \"\"\n".to_owned(),
    })
}

/// "in", or why not; the certificate `client` is for the user trusty.
fn attempt(raw: Raw, user: &str, database: &str) -> String {
    match raw.login(user, database, &format!("{user}-pw")) {
        Ok((mut client, _)) => {
            assert_eq!(client.value("select current_user"), "trusty");
            "in".to_owned()
        }
        Err(msgs) => last_error(&msgs).2,
    }
}

#[test]
fn auth_type_cert_wants_the_user_in_the_certificate() {
    let pooler = start("verify-full", "auth_type = cert\n");
    let tls = || Wishes::showing("client").raw(pooler.port);
    assert_eq!(attempt(tls(), "trusty", "shop"), "in");
    assert_eq!(attempt(tls(), "app", "shop"), REFUSED);
    pooler.wait_lines(&["ERROR C shop/app TLS certificate name mismatch"]);
    assert_eq!(attempt(tls(), "nobody", "shop"), REFUSED);
    assert_eq!(attempt(pooler.unix(), "trusty", "shop"), REFUSED);
    pooler.wait_lines(&["ERROR C shop/trusty TLS connection required"]);
}

#[test]
fn rules_ask_for_certificates_and_map_them() {
    let folder = scratch().folder();
    write(
        &folder.join("hba"),
        "hostssl shop all all cert\nhostssl store ann all trust\nhostssl store all all cert map=m\n\
         hostnossl store app all md5\nhost store all all cert\n",
    );
    write(&folder.join("ident"), "m TRUSTY app\nm /^tru(.*)$ \\1\nm other all\n");
    let at = folder.display();
    let pooler = start(
        "prefer",
        &format!("auth_type = hba\nauth_hba_file = {at}/hba\nauth_ident_file = {at}/ident\n"),
    );
    let shown = || Wishes::showing("client").raw(pooler.port);
    let anonymous = || Wishes::default().raw(pooler.port);
    for (raw, user, database, want) in [
        (shown(), "trusty", "shop", "in"),
        (shown(), "app", "shop", REFUSED),
        (anonymous(), "trusty", "shop", REFUSED),
        (pooler.tcp(), "trusty", "shop", "no authentication method is found"),
        (shown(), "app", "store", "in"),
        (shown(), "sty", "store", "in"),
        (shown(), "trusty", "store", REFUSED),
        (shown(), "nobody", "store", REFUSED),
        (anonymous(), "app", "store", REFUSED),
        (anonymous(), "ann", "store", "in"),
        (pooler.tcp(), "app", "store", "in"),
        (pooler.tcp(), "trusty", "store", REFUSED),
    ] {
        assert_eq!(attempt(raw, user, database), want, "{user} {database}\n{}", pooler.log());
    }
    pooler.wait_lines(&[
        "ERROR C shop/app TLS certificate name mismatch",
        "ERROR C shop/trusty TLS client certificate required",
        "ERROR C store/trusty ident map: m does not have a match",
        "ERROR C store/app TLS client certificate required",
        "ERROR C store/trusty TLS connection required",
    ]);
}
