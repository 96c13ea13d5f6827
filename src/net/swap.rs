//! A Unix socket that takes the place of another process's at its path: nobody who connects finds
//! nothing there, and the other one can still be reached under another name (`--adopt=soft`).
//!
//! A directory of our own beside it has three links: `next` to our socket, which is moved over the
//! path; `spare` to ours, from which the path is restored when the old process unlinks it at its
//! end; and one with the usual name to the old process's socket.

use super::address::{listening_path, socket_path, PATH_MAX};
use super::handoff;
use super::listen::{listen_unix, set_owner_and_mode, welcome_unix, ListenOptions};
use super::options::reason;
use super::stream::Stream;
use crate::core::Origin;
use mio::net::UnixListener;
use nix::unistd::getuid;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// So many processes may have left a directory behind, or still need theirs.
const NUMBERS: u32 = 100;

/// The place of a Unix socket, and what is kept beside it. Dropping this removes the latter.
#[derive(Debug)]
pub struct Swap {
    path: PathBuf,
    dir: PathBuf,
    /// The old process's socket.
    elder: PathBuf,
}

impl Swap {
    /// Makes a socket that listens for where these options say; somebody else listens there still.
    pub fn prepare(options: &ListenOptions) -> Result<(Swap, OwnedFd), String> {
        let path = listening_path(&options.unix_dir, options.port);
        let dir = make_dir(&path)?;
        let elder = PathBuf::from(socket_path(&dir, options.port));
        let swap = Swap { path: path.into(), dir: dir.into(), elder };
        if swap.elder.as_os_str().len() > PATH_MAX {
            return Err("unix_socket_dir is too long for --adopt=soft".into());
        }
        fs::hard_link(&swap.path, &swap.elder)
            .map_err(|error| swap.failed("linking the old process's Unix socket", &error))?;
        let spare = swap.spare().to_string_lossy().into_owned();
        let (listener, _) = listen_unix(&spare, options.backlog)
            .map_err(|(step, error)| swap.failed(&format!("{step}() for a Unix socket"), &error))?;
        set_owner_and_mode(&spare, options)?;
        Ok((swap, listener))
    }

    fn spare(&self) -> PathBuf {
        self.dir.join("spare")
    }

    fn failed(&self, what: &str, error: &io::Error) -> String {
        format!("{what} in {} failed: {}", self.dir.display(), reason(error))
    }

    /// From now on everybody who connects comes to us.
    pub fn take_place(&self) -> Result<(), String> {
        let next = self.dir.join("next");
        fs::hard_link(self.spare(), &next)
            .and_then(|()| fs::rename(&next, &self.path))
            .map_err(|error| self.failed("putting our Unix socket in place", &error))
    }

    /// From now on everybody who connects comes to the old process again.
    pub fn give_back(self) {
        // If that fails there is nobody who could do more.
        let _ = fs::rename(&self.elder, &self.path);
    }

    /// Puts our socket back if nothing is at its place; true if that has happened.
    pub fn restore(&self) -> bool {
        // Fails if there is something.
        fs::hard_link(self.spare(), &self.path).is_ok()
    }

    /// Where the Unix socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, in which the old process's socket has its usual name.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The old process is gone, so its socket may go.
    pub fn forget_elder(&self) {
        let _ = fs::remove_file(&self.elder);
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// The connections that wait at a Unix socket of another process, which does not accept any at the
/// moment.
pub fn accept_waiting(listener: OwnedFd) -> Vec<(Stream, Origin)> {
    if handoff::set_nonblocking(&listener).is_err() {
        return vec![];
    }
    let listener = UnixListener::from_std(listener.into());
    std::iter::from_fn(|| listener.accept().ok()).map(|(unix, _)| welcome_unix(unix)).collect()
}

/// A new directory that nobody else may enter, named after the socket. Those that dead processes
/// have left behind are removed.
fn make_dir(path: &str) -> Result<String, String> {
    for number in 1..=NUMBERS {
        let dir = format!("{path}.soft-{number}");
        if is_ours(Path::new(&dir)) && is_left(Path::new(&dir)) {
            remove(Path::new(&dir));
        }
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(format!("could not create {dir}: {}", reason(&error))),
        }
    }
    Err(format!("{NUMBERS} processes have a directory beside {path}"))
}

/// True if it is such a directory of this user. Anybody may put something else there if the place is
/// open to all, as /tmp is: a link to where nothing is to be removed.
fn is_ours(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|found| {
        found.is_dir() && found.uid() == getuid().as_raw() && found.mode() & 0o077 == 0
    })
}

/// True if nobody listens at the socket in this directory any more.
fn is_left(dir: &Path) -> bool {
    let there = UnixStream::connect(dir.join("spare"));
    matches!(there, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Removes such a directory.
fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{symlink, PermissionsExt};
    use std::os::unix::net::UnixListener as StdUnixListener;

    /// A directory with a socket at which nobody listens.
    fn dead(dir: &Path, mode: u32) {
        fs::create_dir(dir).unwrap();
        drop(StdUnixListener::bind(dir.join("spare")).unwrap());
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_what_a_dead_process_of_ours_has_left_is_removed() {
        let folder = std::env::temp_dir().join(format!("pgt-swap-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("socket").to_str().unwrap().to_owned();
        let numbered = |number| PathBuf::from(format!("{path}.soft-{number}"));
        // Others put these there: a link to somewhere else, and what they may change at any time.
        let elsewhere = folder.join("elsewhere");
        dead(&elsewhere, 0o700);
        fs::write(elsewhere.join("precious"), "x").unwrap();
        symlink(&elsewhere, numbered(1)).unwrap();
        dead(&numbered(2), 0o777);
        dead(&numbered(3), 0o700);
        assert_eq!(PathBuf::from(make_dir(&path).unwrap()), numbered(3));
        assert!(elsewhere.join("precious").exists() && elsewhere.join("spare").exists());
        assert!(numbered(2).join("spare").exists() && !numbered(3).join("spare").exists());
        // The one that has just been made is in use.
        let _spare = StdUnixListener::bind(numbered(3).join("spare")).unwrap();
        assert_eq!(PathBuf::from(make_dir(&path).unwrap()), numbered(4));
        fs::remove_dir_all(&folder).unwrap();
    }
}
