//! Seccomp filters, one for the threads that serve and one for those that execute guests. Each
//! allows the system calls that its threads make; any other fails as if the kernel did not have it
//! (ENOSYS).

use std::io;
use std::sync::Arc;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The seccomp filters of both kinds of thread.
#[derive(Debug)]
pub(super) struct Filters {
    pub(super) serving: Filter,
    pub(super) guests: Filter,
}

/// Why threads cannot be confined by seccomp.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeccompError {
    #[error(transparent)]
    Build(#[from] seccompiler::BackendError),
    #[error(transparent)]
    Apply(#[from] seccompiler::Error),
    #[error("it is tried on a thread, of which there is none: {0}")]
    NoThread(#[source] io::Error),
    #[error("a thread panicked")]
    Panic,
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    #[error("this architecture is not known")]
    UnknownArchitecture,
}

/// A compiled seccomp filter.
#[derive(Clone, Debug)]
pub(super) struct Filter(Arc<BpfProgram>);

impl Filter {
    /// Applies the filter to the calling thread, for good.
    pub(super) fn apply(&self) -> Result<(), seccompiler::Error> {
        seccompiler::apply_filter(&self.0)
    }
}

/// Reports whether the calling thread has a seccomp filter already.
pub(super) fn is_confined() -> bool {
    use rustix::thread::{SecureComputingMode, secure_computing_mode};
    secure_computing_mode().is_ok_and(|mode| mode == SecureComputingMode::Filter)
}

/// Builds both filters, and tries each on a thread of its own so that the calling thread stays
/// unconfined.
pub(super) fn filters() -> Result<Filters, SeccompError> {
    let filters = Filters {
        serving: filter(&[SHARED, SERVING])?,
        guests: filter(&[SHARED])?,
    };
    for filter in [&filters.serving, &filters.guests] {
        let filter = filter.clone();
        let tried = std::thread::Builder::new()
            .spawn(move || filter.apply())
            .map_err(SeccompError::NoThread)?;
        tried.join().map_err(|_| SeccompError::Panic)??;
    }
    Ok(filters)
}

/// The system calls that both kinds of thread make: memory, time, threads of this process, files,
/// and sockets that connect.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const SHARED: &[libc::c_long] = &[
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    // The requests that are made are PAGEMAP_SCAN and FIONBIO.
    libc::SYS_ioctl,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mlock,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_prlimit64,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setpriority,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_socketpair,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sysinfo,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The system calls that only the threads that serve make.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const SERVING: &[libc::c_long] = &[libc::SYS_accept, libc::SYS_accept4, libc::SYS_listen];

/// The older forms of some of the system calls above.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_unlink,
];
#[cfg(target_arch = "aarch64")]
const OLDER: &[libc::c_long] = &[];

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn filter(lists: &[&[libc::c_long]]) -> Result<Filter, SeccompError> {
    #[cfg(target_arch = "x86_64")]
    const ARCH: seccompiler::TargetArch = seccompiler::TargetArch::x86_64;
    #[cfg(target_arch = "aarch64")]
    const ARCH: seccompiler::TargetArch = seccompiler::TargetArch::aarch64;
    let only = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
        condition.and_then(|it| SeccompRule::new(vec![it]))
    };
    let own = u64::from(
        rustix::process::getpid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs(),
    );
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    // The address families of the internet and of this host. The C library uses netlink to learn
    // which addresses there are.
    let families = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let families = families.map(|it| only(0, SeccompCmpOp::Eq, u64::from(it.unsigned_abs())));
    let families = families.into_iter().collect::<Result<Vec<_>, _>>()?;
    // `clone` may start threads but no processes. The newer clone3 cannot be inspected, and the C
    // library does without it. `tgkill` may send signals to this process only, which an abort does.
    let limited = [
        (
            libc::SYS_clone,
            only(0, SeccompCmpOp::MaskedEq(thread), thread)?,
        ),
        (libc::SYS_tgkill, only(0, SeccompCmpOp::Eq, own)?),
    ];
    let rules = lists
        .iter()
        .chain([&OLDER])
        .flat_map(|list| list.iter())
        .map(|call| (*call, Vec::new()))
        .chain(limited.map(|(call, rule)| (call, vec![rule])))
        .chain([(libc::SYS_socket, families)])
        .collect();
    let denied = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, ARCH)?;
    Ok(Filter(Arc::new(filter.try_into()?)))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const SHARED: &[libc::c_long] = &[];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const SERVING: &[libc::c_long] = &[];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn filter(_lists: &[&[libc::c_long]]) -> Result<Filter, SeccompError> {
    Err(SeccompError::UnknownArchitecture)
}
