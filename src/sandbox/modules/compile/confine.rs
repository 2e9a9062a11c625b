//! Confines a compile child before it sees a module: by Landlock, resource limits and a seccomp
//! filter.

use std::fs;
use std::io;
use std::time::Duration;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use nix::sys::signal::{SigSet, Signal as Blockable};
use rustix::process::{Resource, Rlimit, Signal};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Value of `oom_score_adj` for what the kernel is to kill first when memory runs out.
const OOM_FIRST: &str = "1000";
/// Seconds of processor time from the signal that says that it is used up to the one that kills.
const LAST_SECOND: u64 = 1;

/// Signals that a process gets for what it does itself: it has used up its processor time, or the
/// program is broken.
const ITS_OWN: [Blockable; 8] = [
    Blockable::SIGXCPU,
    Blockable::SIGABRT,
    Blockable::SIGBUS,
    Blockable::SIGFPE,
    Blockable::SIGILL,
    Blockable::SIGSEGV,
    Blockable::SIGSYS,
    Blockable::SIGTRAP,
];

/// System calls that a compiler makes once it is warm, and those that a panic and an abort make.
/// None of them opens a file, makes a socket, or starts a process or a thread.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendto,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Blocks, on this thread and on those that it starts, the signals that are meant for the daemon
/// and reach its children too, as those of a terminal and of a service manager do. So a compilation
/// ends with the daemon and not before it. A child that such a thread starts has them blocked from
/// its first instruction on. A file that may grow no further is then an error of the call that
/// writes it.
pub(super) fn block_signals() {
    let mut blocked = SigSet::all();
    for signal in ITS_OWN {
        blocked.remove(signal);
    }
    // If they cannot be blocked, a child that such a signal ends is started again.
    let _ = blocked.thread_set_mask();
}

/// Confines the whole process, and closes its file system and network. Has to be called before any
/// other thread is started. Returns the names of what is in force.
pub(super) fn confine_process(nice: i32) -> Vec<String> {
    // Each of these is one wall of several. What the host does not have shows in what the answer
    // lacks.
    let _ = rustix::thread::set_name(c"rf-compile");
    let _ = rustix::process::setpriority_process(None, nice);
    let _ = fs::write("/proc/self/oom_score_adj", OOM_FIRST);
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _ = limit(Resource::Core, 0, 0);
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let _ = rustix::thread::set_no_new_privs(true);
    match landlock() {
        Ok(RulesetStatus::FullyEnforced) => vec!["landlock".to_owned()],
        Ok(RulesetStatus::PartiallyEnforced) => vec!["landlock-partial".to_owned()],
        Ok(RulesetStatus::NotEnforced) | Err(_) => Vec::new(),
    }
}

/// Denies every path, every port, and signals to other processes, as far as the kernel can.
fn landlock() -> Result<RulesetStatus, landlock::RulesetError> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Reads how much address space is in use. It has to be opened before the file system is closed.
pub(super) struct AddressSpace(fs::File);

impl AddressSpace {
    pub(super) fn open() -> io::Result<Self> {
        fs::File::open("/proc/self/statm").map(Self)
    }

    fn bytes(&self) -> io::Result<u64> {
        let text = io::read_to_string(&self.0)?;
        let pages = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
        pages
            .map(|pages| pages * rustix::param::page_size() as u64)
            .ok_or_else(|| io::Error::other("/proc/self/statm is not as expected"))
    }
}

/// Limits memory, processor time and the size of the artefact from here on. Has to be called when
/// all threads are there and warm.
pub(super) fn set_rlimits(
    space: &AddressSpace,
    memory: u64,
    cpu: Duration,
    artifact: u64,
) -> io::Result<()> {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    // The limit has whole seconds, so the time is rounded up.
    let seconds =
        used.tv_sec.unsigned_abs() + 1 + cpu.as_secs() + u64::from(cpu.subsec_nanos() > 0);
    // At the soft limit the process ends with SIGXCPU, which says why.
    limit(Resource::Cpu, seconds, seconds + LAST_SECOND)?;
    limit(Resource::Fsize, artifact, artifact)?;
    let space = space.bytes()?.saturating_add(memory);
    limit(Resource::As, space, space)
}

fn limit(resource: Resource, current: u64, maximum: u64) -> io::Result<()> {
    // The limit under which the daemon itself was started may be lower, and cannot be raised.
    let most = rustix::process::getrlimit(resource).maximum;
    let at_most = |to: u64| most.map_or(to, |most| to.min(most));
    let to = Rlimit {
        current: Some(at_most(current)),
        maximum: Some(at_most(maximum)),
    };
    Ok(rustix::process::setrlimit(resource, to)?)
}

/// Leaves every thread only the system calls that compiling makes; any other fails with EPERM.
/// Returns false where the kernel or the architecture cannot do that.
pub(super) fn seccomp() -> bool {
    filter().is_some_and(|filter| seccompiler::apply_filter_all_threads(&filter).is_ok())
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn filter() -> Option<BpfProgram> {
    #[cfg(target_arch = "x86_64")]
    const ARCH: seccompiler::TargetArch = seccompiler::TargetArch::x86_64;
    #[cfg(target_arch = "aarch64")]
    const ARCH: seccompiler::TargetArch = seccompiler::TargetArch::aarch64;
    // A process may send signals to itself, as an abort does.
    let own = u64::from(
        rustix::process::getpid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs(),
    );
    let to_itself = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own);
    let to_itself = SeccompRule::new(vec![to_itself.ok()?]).ok()?;
    let rules = ALLOWED
        .iter()
        .map(|call| (*call, Vec::new()))
        .chain([(libc::SYS_tgkill, vec![to_itself])])
        .collect();
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, denied, SeccompAction::Allow, ARCH)
        .ok()?
        .try_into()
        .ok()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn filter() -> Option<BpfProgram> {
    None
}
