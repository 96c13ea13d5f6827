//! The folder of a run, the user its children run as, and the watcher that ends what a run leaves behind.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use nix::sys::socket::{self, SockaddrIn};
use nix::unistd::{geteuid, User};

/// The watcher reads `+PID:START` and `-PID`; when its input ends (the run is over, whatever the reason), it stops the processes
/// that are left and removes the folder. A process of its own survives even a killed test run. A process that has ended may have
/// left its number to somebody else's; when it was started tells the two apart.
const WATCHER: &str = r#"
trap '' INT TERM HUP QUIT
all=' '
while read -r line; do
  case $line in
    +*) all="$all${line#+} " ;;
    -*) all=$(printf '%s' "$all" | sed "s/ ${line#-}:[0-9]* / /") ;;
  esac
done
lives() {
  start=${1#*:}
  set -- $(sed 's/.*) //' "/proc/${1%:*}/stat" 2>/dev/null)
  [ "${20}" = "$start" ]
}
signal() { lives "$2" && kill "-$1" "${2%:*}" 2>/dev/null; }
for p in $all; do signal QUIT "$p"; done
for p in $all; do
  n=0
  while signal 0 "$p" && [ $n -lt 50 ]; do n=$((n + 1)); sleep 0.1; done
  signal KILL "$p"
done
rm -rf "$1"
"#;

/// Folder and watcher of this test run.
pub(crate) struct Scratch {
    root: PathBuf,
    watcher: Mutex<ChildStdin>,
    serial: AtomicU32,
}

/// The scratch of this process, made on first use.
pub(crate) fn scratch() -> &'static Scratch {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    SCRATCH.get_or_init(Scratch::make)
}

/// The user that children must run as: none unless the tests run as root, which PostgreSQL and poolers refuse.
pub(crate) fn unprivileged() -> Option<&'static User> {
    static USER: OnceLock<Option<User>> = OnceLock::new();
    USER.get_or_init(|| {
        if !geteuid().is_root() {
            return None;
        }
        let known = ["postgres", "nobody"].into_iter();
        let user = known.filter_map(|name| User::from_name(name).ok().flatten()).next();
        Some(user.expect("neither user postgres nor nobody exists"))
    })
    .as_ref()
}

/// A command that runs as the unprivileged user, in a process group of its own, without input.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    if let Some(user) = unprivileged() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.process_group(0).stdin(Stdio::null()).current_dir("/");
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    command
}

/// Gives a file or folder to the user of `command`.
fn hand_over(path: &Path) {
    if let Some(user) = unprivileged() {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

impl Scratch {
    fn make() -> Self {
        let mut serial = 0;
        let root = loop {
            let root = PathBuf::from(format!("/tmp/pgt-{}-{serial}", std::process::id()));
            match std::fs::create_dir(&root) {
                Ok(()) => break root,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => serial += 1,
                Err(e) => panic!("cannot create {}: {e}", root.display()),
            }
        };
        hand_over(&root);
        #[expect(clippy::zombie_processes, reason = "the watcher outlives this process")]
        let mut watcher = Command::new("/bin/sh")
            .args(["-c", WATCHER, "watcher"])
            .arg(&root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = watcher.stdin.take().unwrap();
        Self { root, watcher: Mutex::new(input), serial: AtomicU32::new(0) }
    }

    /// A number that no other caller in this run gets.
    pub(crate) fn serial(&self) -> u32 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// A new folder that the unprivileged user owns; its path is short enough for sockets.
    pub(crate) fn folder(&self) -> PathBuf {
        let path = self.root.join(self.serial().to_string());
        std::fs::create_dir(&path).unwrap();
        hand_over(&path);
        path
    }

    /// Tells the watcher about a process that must not outlive the run.
    pub(crate) fn watch(&self, pid: u32) {
        // The 22nd field (proc(5)); the second is a name, with anything in it.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if let Some(start) = rest.split(' ').nth(19) {
            writeln!(self.watcher.lock().unwrap(), "+{pid}:{start}").unwrap();
        }
    }

    /// Tells the watcher that a child is gone, before its pid can be used again.
    pub(crate) fn forget(&self, pid: u32) {
        writeln!(self.watcher.lock().unwrap(), "-{pid}").unwrap();
    }
}

/// Writes a file that the unprivileged user can read.
pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap();
    hand_over(path);
}

/// A port at which every connection is refused, as long as this lives: it is taken, and nobody
/// listens.
pub(crate) struct DeadPort {
    taken: OwnedFd,
    pub(crate) port: u16,
}

impl DeadPort {
    pub(crate) fn new() -> Self {
        let kind = socket::SockType::Stream;
        let flags = socket::SockFlag::SOCK_CLOEXEC;
        let taken = socket::socket(socket::AddressFamily::Inet, kind, flags, None).unwrap();
        let any = SockaddrIn::new(127, 0, 0, 1, 0);
        socket::bind(taken.as_raw_fd(), &any).unwrap();
        let port = socket::getsockname::<SockaddrIn>(taken.as_raw_fd()).unwrap().port();
        Self { taken, port }
    }

    /// Somebody listens there from now on.
    pub(crate) fn revive(self) -> std::net::TcpListener {
        socket::listen(&self.taken, socket::Backlog::new(8).unwrap()).unwrap();
        self.taken.into()
    }
}

/// A port that was free a moment ago. Callers try again when somebody else was faster.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
