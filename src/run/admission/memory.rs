//! Finds out how much memory is available for runs, from the limits of the cgroup and the memory of
//! the host.

use std::path::Path;

/// Returns `share` of the memory that the daemon may use, in bytes: the limit of its cgroup, or the
/// memory of the host where that is less.
pub fn share_of_memory(share: f64) -> u64 {
    let host = meminfo().unwrap_or(u64::MAX);
    let most = cgroup_limit().map_or(host, |limit| limit.min(host));
    share_of(most, share)
}

/// Returns the fraction `share`, from 0 to 1, of `bytes`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of memory need not be exact, is positive, and less than the whole"
)]
pub fn share_of(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share) as u64
}

fn meminfo() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Returns the lowest memory limit, in bytes, of this process's cgroup and those above it; `None`
/// where there is none.
fn cgroup_limit() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|it| it == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        least(Path::new(root), path, file)
    });
    limits.min()
}

fn least(root: &Path, path: &str, file: &str) -> Option<u64> {
    // In a container the path is the one on the host, while what is mounted is the container's own
    // cgroup: the root itself.
    let own = root.join(path.trim_start_matches('/'));
    let above = own.ancestors().take_while(|it| it.starts_with(root));
    above
        .filter_map(|folder| {
            let text = std::fs::read_to_string(folder.join(file)).ok()?;
            // The text "max" is no number, and no limit.
            text.trim().parse().ok()
        })
        .min()
}
