//! What ps shows of this process.

use nix::sys::prctl;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// Changes the name (its first 15 bytes) and the command line, as far as the new one fits into where
/// the old one is and the system allows. Nothing depends on it.
pub fn set(name: &str, line: &str) {
    if let Ok(name) = CString::new(name) {
        let _ = prctl::set_name(&name);
    }
    let _ = write_line(line.as_bytes());
}

fn write_line(line: &[u8]) -> io::Result<()> {
    let stat = fs::read("/proc/self/stat")?;
    let Some((start, len)) = arguments(&stat) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mut bytes = vec![0; len];
    // The last byte stays zero: else the kernel looks for more behind it.
    let room = bytes.iter_mut().take(len.saturating_sub(1));
    room.zip(line).for_each(|(to, from)| *to = *from);
    OpenOptions::new().write(true).open("/proc/self/mem")?.write_all_at(&bytes, start)
}

/// Where in memory the arguments are and how many bytes they have, by proc_pid_stat(5).
fn arguments(stat: &[u8]) -> Option<(u64, usize)> {
    /// The numbers of `arg_start` and `state`, the first one behind the name.
    const ARG_START: usize = 48;
    const STATE: usize = 3;
    /// Longer arguments than the system lets a program have are none.
    const MOST: usize = 16 << 20;
    // The name may have anything in it.
    let behind = stat.iter().rposition(|byte| *byte == b')')?.checked_add(1)?;
    let text = std::str::from_utf8(stat.get(behind..)?).ok()?;
    let mut fields = text.split_ascii_whitespace().skip(ARG_START.checked_sub(STATE)?);
    let start: u64 = fields.next()?.parse().ok()?;
    let end: u64 = fields.next()?.parse().ok()?;
    let len = usize::try_from(end.checked_sub(start)?).ok()?;
    Some((start, len)).filter(|_| start > 0 && (1..=MOST).contains(&len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_what_was_set() {
        let before = fs::read("/proc/self/cmdline").unwrap();
        set("keeper-of-a-test", "pgturnstile: a test");
        let line = fs::read("/proc/self/cmdline").unwrap();
        assert_eq!(line.len(), before.len());
        let want = &b"pgturnstile: a test"[..];
        let want = &want[..want.len().min(before.len() - 1)];
        assert!(line.starts_with(want) && line[want.len()..].iter().all(|byte| *byte == 0));
        let name = fs::read("/proc/thread-self/comm").unwrap();
        assert_eq!(name, b"keeper-of-a-tes\n");
    }

    #[test]
    fn arguments_are_found_behind_any_name() {
        let fields = |start: &str, end: &str| {
            let skipped = ["0"; 44].join(" ");
            format!("7 (a) b (c)) S {skipped} {start} {end} 9 9 0\n")
        };
        let found = |start, end| arguments(fields(start, end).as_bytes());
        assert_eq!(found("1000", "1020"), Some((1000, 20)));
        for (start, end) in [("0", "0"), ("9", "9"), ("9", "8"), ("9", "99999999999"), ("x", "y")] {
            assert_eq!(found(start, end), None);
        }
        assert_eq!(arguments(b"7 (a"), None);
    }
}
