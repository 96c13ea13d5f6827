//! The process and its surroundings: whose rights it has, whether another instance runs, the
//! pidfile, the limit on descriptors (config 7.1 to 7.5). An error is the text of a FATAL line.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::signal::kill;
use nix::unistd::{self, Pid, User};

use crate::net::options::reason;
use crate::net::sys;

/// Takes the identity of an operating-system user for good; also when not root, where it succeeds
/// only for the user one already is. An empty name changes nothing.
pub fn become_user(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    let unknown = || format!("could not find user '{name}' to switch to");
    let user = User::from_name(name).ok().flatten().ok_or_else(unknown)?;
    if unistd::geteuid().is_root() {
        unistd::setgroups(&[user.gid])
            .map_err(|errno| format!("failed to reset groups: {}", errno_text(errno)))?;
    }
    unistd::setgid(user.gid).and_then(|()| unistd::setuid(user.uid)).map_err(|errno| {
        format!("failed to assume identity of user '{name}': {}", errno_text(errno))
    })?;
    if unistd::getuid() != user.uid || unistd::geteuid() != user.uid {
        return Err("setuid() failed to work".to_string());
    }
    Ok(())
}

/// Refuses to run with root's rights.
pub fn refuse_root() -> Result<(), String> {
    if unistd::getuid().is_root() || unistd::geteuid().is_root() {
        return Err("PgBouncer should not run as root".to_string());
    }
    Ok(())
}

/// `-d` (config 7.4): only a grandchild of the calling process returns from this. It leads no
/// session, has no terminal, and its standard streams are /dev/null, but standard error only if it is
/// not to be kept. With `is_awaited` the calling process ends when a byte is written to what is
/// returned, with exit code 1 if that is closed without one.
pub fn go_to_background(
    pidfile: &str,
    keeps_errors: bool,
    is_awaited: bool,
) -> Result<Option<OwnedFd>, String> {
    if pidfile.is_empty() {
        return Err("daemon needs pidfile configured".to_string());
    }
    let failed = |what: &'static str| move |errno| format!("{what} failed: {}", errno_text(errno));
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| format!("could not open /dev/null: {}", reason(&error)))?;
    unistd::dup2_stdin(&null)
        .and_then(|()| unistd::dup2_stdout(&null))
        .and_then(|()| if keeps_errors { Ok(()) } else { unistd::dup2_stderr(&null) })
        .map_err(failed("dup2"))?;
    let pipe = is_awaited.then(|| unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe")));
    let (awaited, news) = pipe.transpose()?.unzip();
    sys::go_on_in_child(awaited, news.as_ref()).map_err(failed("fork"))?;
    unistd::setsid().map_err(failed("setsid"))?;
    // The leader of a session could come by a terminal again; its child can't.
    sys::go_on_in_child(None, None).map_err(failed("fork"))?;
    Ok(news)
}

/// What a look at the pidfile before the start found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pidfile {
    /// No file.
    Absent,
    /// The file of a dead process. It is to be logged as `STALE`, then removed.
    Stale,
}

/// The LOG line before a stale pidfile is removed.
pub const STALE: &str = "stale pidfile, removing";

/// Looks whether the pidfile names a running process. Whatever can't be understood counts as one.
pub fn check_pidfile(path: &Path) -> Result<Pidfile, String> {
    let name = path.display();
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pidfile::Absent),
        Err(error) => return Err(format!("could not open pidfile '{name}': {}", reason(&error))),
    };
    let mut content = [0; 64];
    let length = file
        .read(&mut content)
        .map_err(|error| format!("could not read pidfile '{name}': {}", reason(&error)))?;
    let stale = leading_pid(content.get(..length).unwrap_or_default())
        .is_some_and(|pid| kill(pid, None) == Err(Errno::ESRCH));
    if stale {
        return Ok(Pidfile::Stale);
    }
    Err(format!("pidfile '{name}' exists, another instance running?"))
}

/// The running process that the pidfile names.
pub fn running_pid(path: &Path) -> Option<i32> {
    let pid = leading_pid(&fs::read(path).ok()?)?;
    (kill(pid, None) != Err(Errno::ESRCH)).then(|| pid.as_raw())
}

/// Removes the pidfile of a dead process.
pub fn remove_stale_pidfile(path: &Path) -> Result<(), String> {
    fs::remove_file(path)
        .map_err(|error| format!("could not remove stale pidfile: {}", reason(&error)))
}

/// The positive number at the start of a pidfile; what follows it doesn't matter.
fn leading_pid(content: &[u8]) -> Option<Pid> {
    let digits = content.trim_ascii_start().split(|byte| !byte.is_ascii_digit()).next()?;
    let number: i32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number > 0).then(|| Pid::from_raw(number))
}

/// This process's pidfile; dropping it removes the file, unless another one is in its place.
#[derive(Debug)]
pub struct OwnPidfile {
    path: PathBuf,
    /// Kept open: nobody else's has its number meanwhile.
    file: fs::File,
}

impl OwnPidfile {
    /// Creates the file, which must not exist, with mode 0644 less the umask.
    pub fn create(path: &Path) -> Result<OwnPidfile, String> {
        let name = path.display();
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o644);
        let file = options
            .open(path)
            .map_err(|error| format!("could not open pidfile '{name}': {}", reason(&error)))?;
        let own = OwnPidfile { path: path.to_path_buf(), file };
        (&own.file)
            .write_all(format!("{}\n", process::id()).as_bytes())
            .map_err(|error| format!("could not write pidfile '{name}': {}", reason(&error)))?;
        Ok(own)
    }

    /// True if the file is still there.
    fn is_there(&self) -> bool {
        let found = (fs::symlink_metadata(&self.path), self.file.metadata());
        let id = |file: &fs::Metadata| (file.dev(), file.ino());
        matches!(&found, (Ok(there), Ok(ours)) if id(there) == id(ours))
    }
}

impl Drop for OwnPidfile {
    fn drop(&mut self) {
        if self.is_there() {
            // At the exit there is nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The first line of a start: limits on descriptors as signed 32-bit numbers, so that "unlimited"
/// is -1, and how many this configuration may need (config 6.7).
pub fn limit_line(max_client_conn: i64, expected: i64) -> String {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    limit_text(soft, hard, max_client_conn, expected)
}

/// Does something that may need more descriptors than this process was meant to have, and so many as
/// it can get. If that succeeds, the limit stays up.
pub fn with_all_descriptors<T, E>(what: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    // Without that, `what` notices itself when there are no more.
    let is_lifted = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let result = what();
    if is_lifted && result.is_err() {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
    }
    result
}

fn limit_text(soft: u64, hard: u64, max_client_conn: i64, expected: i64) -> String {
    let [soft, hard] = [soft, hard].map(|limit| limit as u32 as i32);
    format!(
        "kernel file descriptor limit: {soft} (hard: {hard}); \
         max_client_conn: {max_client_conn}, max expected fd use: {expected}"
    )
}

fn errno_text(errno: Errno) -> String {
    reason(&io::Error::from(errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A new directory below the system's temporary one, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("pgt-daemon-{name}-{}", process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// The id of a process that has ended.
    fn dead_pid() -> u32 {
        let mut child = process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn pidfile_of_a_live_or_unknown_process_stops_the_start() {
        let folder = Folder::new("check");
        let path = folder.0.join("p.pid");
        assert_eq!(check_pidfile(&path), Ok(Pidfile::Absent));
        let (own, dead) = (process::id(), dead_pid());
        let used = Err(format!("pidfile '{}' exists, another instance running?", path.display()));
        for (content, want) in [
            (String::new(), used.clone()),
            ("junk\n".to_string(), used.clone()),
            ("0\n".to_string(), used.clone()),
            ("-5\n".to_string(), used.clone()),
            ("99999999999999999999\n".to_string(), used.clone()),
            (format!("{own}\n"), used.clone()),
            (format!("{dead}\n"), Ok(Pidfile::Stale)),
            (format!(" {dead} and more"), Ok(Pidfile::Stale)),
        ] {
            fs::write(&path, &content).unwrap();
            assert_eq!(check_pidfile(&path), want, "{content:?}");
        }
        remove_stale_pidfile(&path).unwrap();
        assert_eq!(
            remove_stale_pidfile(&path),
            Err("could not remove stale pidfile: No such file or directory".to_string())
        );
        let folder = folder.0.display();
        assert_eq!(
            check_pidfile(Path::new(&folder.to_string())),
            Err(format!("could not read pidfile '{folder}': Is a directory"))
        );
    }

    #[test]
    fn own_pidfile_is_new_and_goes_with_its_owner() {
        let folder = Folder::new("own");
        let path = folder.0.join("p.pid");
        let name = path.display();
        let own = OwnPidfile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o133, 0);
        assert_eq!(
            OwnPidfile::create(&path).unwrap_err(),
            format!("could not open pidfile '{name}': File exists")
        );
        assert!(path.exists());
        drop(own);
        assert!(!path.exists());
        // Removed by somebody, and written by the next process.
        let own = OwnPidfile::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let next = OwnPidfile::create(&path).unwrap();
        drop(own);
        assert!(path.exists());
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn unknown_users_are_refused_and_no_name_changes_nothing() {
        assert_eq!(become_user(""), Ok(()));
        assert_eq!(
            become_user("no such user"),
            Err("could not find user 'no such user' to switch to".to_string())
        );
    }

    #[test]
    fn limits_are_shown_as_signed_numbers() {
        assert_eq!(
            limit_text(1024, u64::MAX, 100, 212),
            "kernel file descriptor limit: 1024 (hard: -1); \
             max_client_conn: 100, max expected fd use: 212"
        );
    }

    #[test]
    fn limit_is_lifted_for_what_needs_many_descriptors() {
        let limits = || getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let (soft, hard) = limits();
        let failed: Result<(), _> = with_all_descriptors(|| Err(limits()));
        assert_eq!((failed, limits()), (Err((hard, hard)), (soft, hard)));
        let done: Result<_, ()> = with_all_descriptors(|| Ok(limits()));
        assert_eq!((done, limits()), (Ok((hard, hard)), (hard, hard)));
    }

    #[test]
    fn switches_that_cannot_be_followed_are_refused() {
        let refused = go_to_background("", false, false).err();
        assert_eq!(refused.as_deref(), Some("daemon needs pidfile configured"));
    }
}
