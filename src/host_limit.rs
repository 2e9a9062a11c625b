//! Limits of the host, or of this process, that an operation may reach while the daemon serves. The
//! caller of that operation learns which limit it was, and everybody else's calls go on.

use std::error::Error;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::model::refusal::{Reason, Refusal};

/// How long a caller is told to wait: other runs free resources as they end.
const RETRY: Duration = Duration::from_secs(1);

/// A limit of the host or the process that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostLimit {
    /// The process has as many files open as it may.
    Descriptors,
    /// The host has as many files open as it may.
    HostDescriptors,
    /// There is no more memory, or no more address space.
    Memory,
    /// No further thread or process can be started.
    Tasks,
    /// A file may grow no further.
    FileSize,
}

impl HostLimit {
    /// Returns the limit that an error, or one of its causes, says was reached.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let errno = error.downcast_ref::<Errno>().copied();
            let errno = errno.or_else(|| {
                error
                    .downcast_ref::<io::Error>()
                    .and_then(Errno::from_io_error)
            });
            if let Some(limit) = errno.and_then(Self::of_errno) {
                return Some(limit);
            }
            // The error that an I/O error wraps is not its `source`.
            let inner = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref);
            cause = match inner {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }

    /// Returns the limit that another process reached, from its message in the standard library's
    /// words ("os error").
    pub fn of_words(words: &str) -> Option<Self> {
        Self::of_errno(Errno::from_raw_os_error(os_error(words)?))
    }

    /// Replaces the standard library's words for an errno ("Too many open files (os error 24)") in
    /// `text` by a sentence about the limit that it stands for, if it stands for one.
    pub fn spell_out(text: &str) -> String {
        let spelt = Self::of_words(text).and_then(|limit| {
            let words = io::Error::from_raw_os_error(os_error(text)?).to_string();
            let (before, after) = text.rsplit_once(&words)?;
            Some(format!("{before}{}{after}", limit.sentence()))
        });
        spelt.unwrap_or_else(|| text.to_owned())
    }

    /// Returns the limit that this errno stands for; `None` for any other error.
    pub fn of_errno(errno: Errno) -> Option<Self> {
        Some(match errno {
            Errno::MFILE => Self::Descriptors,
            Errno::NFILE => Self::HostDescriptors,
            Errno::NOMEM => Self::Memory,
            Errno::AGAIN => Self::Tasks,
            Errno::FBIG => Self::FileSize,
            _ => return None,
        })
    }

    /// Returns the name of the limit, for the detail `limit` of a refusal.
    fn name(self) -> &'static str {
        match self {
            Self::Descriptors => "RLIMIT_NOFILE",
            Self::HostDescriptors => "fs.file-max",
            Self::Memory => "RLIMIT_AS",
            Self::Tasks => "RLIMIT_NPROC",
            Self::FileSize => "RLIMIT_FSIZE",
        }
    }

    /// Describes the limit in a sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Descriptors => {
                "the daemon has as many files open as it may (RLIMIT_NOFILE, ulimit -n)"
            }
            Self::HostDescriptors => "the host has as many files open as it may (fs.file-max)",
            Self::Memory => {
                "the host gives the daemon no more memory or address space (RLIMIT_AS, ulimit -v)"
            }
            Self::Tasks => {
                "the host gives the daemon no more threads or processes (RLIMIT_NPROC, ulimit -u, or the cgroup's pids.max)"
            }
            Self::FileSize => "the daemon may write no file that large (RLIMIT_FSIZE, ulimit -f)",
        }
    }

    /// Creates the refusal of a call that reached the limit while `work` was done.
    pub fn refusal(self, work: &str) -> Refusal {
        let message = format!("{work}: {}", self.sentence());
        let refusal = match self {
            // A retry would reach the same limit.
            Self::FileSize => Refusal::new(Reason::CompileLimitExceeded, message),
            Self::Descriptors | Self::HostDescriptors | Self::Memory | Self::Tasks => {
                Refusal::new(Reason::RuntimeUnavailable, message).retry_after(RETRY)
            }
        };
        refusal.with("limit", self.name())
    }
}

impl Refusal {
    /// Creates the refusal of a call for which the host could not do `work`. It names the limit if
    /// the error says which was reached; otherwise it is an internal error.
    pub fn of_host(work: &str, error: &(dyn Error + 'static)) -> Self {
        match HostLimit::of(error) {
            Some(limit) => {
                tracing::warn!(error = %chain(error), "{work}: {}", limit.sentence());
                limit.refusal(work)
            }
            None => Self::internal(format_args!("{work}: {}", chain(error))),
        }
    }
}

/// Returns the number of the errno in the standard library's words ("os error"), the last of them.
fn os_error(words: &str) -> Option<i32> {
    let (_, after) = words.rsplit_once("(os error ")?;
    after.split(')').next()?.parse().ok()
}

/// Formats an error with its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_found_at_the_bottom_of_an_error() {
        let outer = io::Error::other(io::Error::from_raw_os_error(libc::ENOMEM));
        assert_eq!(HostLimit::of(&outer), Some(HostLimit::Memory));
        assert_eq!(HostLimit::of(&Errno::FBIG), Some(HostLimit::FileSize));
        let words = io::Error::from_raw_os_error(libc::EAGAIN).to_string();
        assert_eq!(HostLimit::of_words(&words), Some(HostLimit::Tasks));
        assert_eq!(HostLimit::of_words("something else"), None);
        let spelt = HostLimit::spell_out(&format!("a thread: {words}; and more"));
        let sentence = HostLimit::Tasks.sentence();
        assert_eq!(spelt, format!("a thread: {sentence}; and more"));
        let other = io::Error::from_raw_os_error(libc::EIO).to_string();
        assert_eq!(HostLimit::spell_out(&other), other);
        let other = io::Error::from_raw_os_error(libc::EIO);
        assert_eq!(HostLimit::of(&other), None);
    }
}
