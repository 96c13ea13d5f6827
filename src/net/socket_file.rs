//! The file of a Unix socket: ours as long as nobody has put another one in its place.

use nix::unistd::getuid;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file that is to go with its process.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and number, by which it is told from a successor's.
    id: (u64, u64),
}

fn id(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl SocketFile {
    /// What is there now; `None` if that is nothing or belongs to another user: a service manager
    /// has made it then.
    pub(super) fn at(path: PathBuf) -> Option<SocketFile> {
        let file = fs::symlink_metadata(&path).ok()?;
        (file.uid() == getuid().as_raw()).then(|| SocketFile { id: id(&file), path })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless it has been replaced.
    pub(super) fn remove(self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| id(&file) == self.id) {
            let _ = fs::remove_file(self.path);
        }
    }
}
