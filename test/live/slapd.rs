//! A real LDAP server, with certificates of its own.

use crate::rig::scratch::{command, free_port, scratch, write};
use crate::rig::wait_until;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A running slapd; ends when dropped.
pub(crate) struct Slapd {
    pub(crate) port: u16,
    /// The port of ldaps.
    pub(crate) tls_port: u16,
    folder: PathBuf,
    child: Child,
}

const DATA: &str = "dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
o: Example
dc: example

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: uid=ann,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: ann
cn: Ann
sn: A
mail: ann@example.org
userPassword: ann-pw

dn: uid=scramy,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: scramy
cn: Scramy
sn: S
userPassword: scramy-pw

dn: cn=twin1,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: twin
cn: twin1
sn: T
userPassword: twin-pw

dn: cn=twin2,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: twin
cn: twin2
sn: T
userPassword: twin-pw
";

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Slapd {
    /// Starts a server that knows the people of `DATA`; its administrator's password is `admin-pw`.
    pub(crate) fn start() -> Self {
        let folder = scratch().folder();
        let at = folder.display().to_string();
        run(command("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
            .args([
                "-subj",
                "/CN=127.0.0.1",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-keyout",
                &format!("{at}/key"),
                "-out",
                &format!("{at}/cert"),
            ]));
        write(
            &folder.join("conf"),
            format!(
                "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
                 include /etc/ldap/schema/inetorgperson.schema\nmodulepath /usr/lib/ldap\n\
                 moduleload back_mdb\nTLSCertificateFile {at}/cert\nTLSCertificateKeyFile {at}/key\n\
                 database mdb\nsuffix dc=example,dc=org\nrootdn cn=admin,dc=example,dc=org\n\
                 rootpw admin-pw\nmaxsize 10485760\ndirectory {at}\n"
            ),
        );
        write(&folder.join("data"), DATA);
        run(command("/usr/sbin/slapadd").args([
            "-f",
            &format!("{at}/conf"),
            "-l",
            &format!("{at}/data"),
        ]));
        let (port, tls_port) = (free_port(), free_port());
        let places = format!("ldap://127.0.0.1:{port} ldaps://127.0.0.1:{tls_port}");
        let errors = std::fs::File::create(folder.join("stderr")).unwrap();
        let child = command("/usr/sbin/slapd")
            .args(["-f", &format!("{at}/conf"), "-h", &places, "-d", "0"])
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        let slapd = Self { port, tls_port, folder, child };
        scratch().watch(slapd.child.id());
        wait_until("slapd is up", || TcpStream::connect(("127.0.0.1", tls_port)).is_ok());
        slapd
    }

    /// The certificate, which is its own authority.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("cert")
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        scratch().forget(self.child.id());
    }
}
