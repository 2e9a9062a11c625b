//! Files, by Landlock: what is configured, what the program is made of, and nothing else.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope,
};
use rustix::process::geteuid;

use super::Besides;
use super::real_paths::{Way, follow};
use crate::config::{Access as MountAccess, Config, StoreUrl, is_of_many_things, listens_by_name};

/// The kernel interface that is asked for; one that has less gives what it has.
const INTERFACE: ABI = ABI::V6;
/// What programs are made of: this one is started again for each module that is compiled.
const PROGRAMS: [&str; 7] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/nix/store",
];
/// What the C library and name resolution read; and what the engine asks the kernel.
const READ: [&str; 16] = [
    "/etc/ld.so.cache",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/etc/localtime",
    "/run/systemd/resolve",
    "/proc",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/dev/urandom",
];
/// The mode of folders that are made because they are configured.
const PRIVATE: u32 = 0o700;

/// Denies every path but those that `config` names, with those `besides`, and every TCP port but those that it needs.
/// Adds to `unreachable` what cannot be let in although it is named, and why.
pub(super) fn restrict(
    config: &Config,
    besides: &Besides,
    unreachable: &mut Vec<String>,
) -> Result<&'static str, String> {
    match rules(config, besides, unreachable) {
        Ok(RulesetStatus::FullyEnforced) => Ok("landlock"),
        Ok(RulesetStatus::PartiallyEnforced) => Ok("landlock-partial"),
        Ok(RulesetStatus::NotEnforced) => Err("the kernel has no Landlock".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn rules(
    config: &Config,
    besides: &Besides,
    unreachable: &mut Vec<String>,
) -> Result<RulesetStatus, RulesetError> {
    let connects = connects(config);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(INTERFACE))?;
    // Of a name with several addresses and no port the first has any, and the others the same, which nobody knows yet.
    if !listens_by_name(&config.listen) {
        ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
    }
    if !connects {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    let ruleset = ruleset.scope(Scope::from_all(INTERFACE))?.create()?;
    let mut rules = Rules(ruleset);
    rules.program()?;
    for path in READ.iter().map(Path::new) {
        rules.allow(path, reading())?;
    }
    // Where it leads, and what is beside it there: it may be replaced by another file.
    rules.file(Path::new("/etc/resolv.conf"))?;
    if connects {
        for path in &besides.trust {
            rules.trusted(path)?;
        }
    }
    for path in &besides.read {
        rules.file(path)?;
    }
    for path in &config.hardening.read {
        rules.allow(path, reading())?;
        if let Err(error) = PathFd::new(path) {
            unreachable.push(format!("hardening.read: {error}"));
        }
    }
    rules.allow(Path::new("/dev/null"), reading() | AccessFs::WriteFile)?;
    if !geteuid().is_root() {
        // Compile children put themselves first in line for when memory runs out. Root could write to /proc/sys too.
        rules.allow(Path::new("/proc"), reading() | AccessFs::WriteFile)?;
    }
    rules.configured(config)?;
    for folder in &besides.write {
        rules.allow(folder, writing())?;
    }
    rules.ports(config)?;
    let status = rules.0.restrict_self()?;
    Ok(status.ruleset)
}

struct Rules(RulesetCreated);

impl Rules {
    /// Allows `access` to a path with all below it; one that is not there needs no rule.
    fn allow(&mut self, path: &Path, access: BitFlags<AccessFs>) -> Result<(), RulesetError> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let Ok(there) = PathFd::new(path) else {
            return Ok(());
        };
        let access = match path.is_dir() {
            true => access,
            false => access & AccessFs::from_file(INTERFACE),
        };
        (&mut self.0).add_rule(PathBeneath::new(there, access))?;
        Ok(())
    }

    /// Allows reading a file by its name, also when another takes it: with its folder, in which a platform swaps it, each
    /// one in which a link leads on to it, and the one that it is in now.
    fn file(&mut self, path: &Path) -> Result<(), RulesetError> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let Way { links_in, end } = follow(path);
        if end.is_dir() {
            self.allow(path, reading())?;
        }
        let own = path.parent().filter(|_| !end.is_dir());
        let folders = own.into_iter().chain(links_in.iter().map(PathBuf::as_path));
        for folder in folders.chain(end.parent().filter(|_| !end.is_dir())) {
            // One in a folder of many things is let in alone.
            match is_of_many_things(folder) {
                true => self.allow(path, reading())?,
                false => self.allow(folder, reading())?,
            }
        }
        Ok(())
    }

    /// Allows reading a file or a folder of certificates, and what the links in it lead to: distributions have the files
    /// themselves elsewhere.
    fn trusted(&mut self, path: &Path) -> Result<(), RulesetError> {
        self.file(path)?;
        let Ok(entries) = std::fs::read_dir(path) else {
            // A file, or nothing.
            return Ok(());
        };
        let links = entries.flatten().filter(|it| {
            let kind = it.file_type();
            kind.is_ok_and(|kind| kind.is_symlink())
        });
        let mut folders = BTreeSet::new();
        for link in links {
            let end = follow(&link.path()).end;
            match end.parent() {
                Some(folder) if !is_of_many_things(folder) => {
                    folders.insert(folder.to_owned());
                }
                Some(_) | None => self.allow(&end, reading())?,
            }
        }
        for folder in folders {
            self.allow(&folder, reading())?;
        }
        Ok(())
    }

    fn program(&mut self) -> Result<(), RulesetError> {
        let execute = reading() | AccessFs::Execute;
        for path in PROGRAMS.iter().map(Path::new) {
            self.allow(path, execute)?;
        }
        self.allow(Path::new("/proc/self/exe"), execute)
    }

    fn configured(&mut self, config: &Config) -> Result<(), RulesetError> {
        if let StoreUrl::Directory(folder) = &config.store.url {
            self.folder(folder)?;
        } else {
            self.allow(&config.store.spool, writing())?;
        }
        self.folder(&config.artifacts.dir)?;
        let key = &config.artifacts.key_file;
        match key.is_file() {
            true => self.allow(key, reading())?,
            // It is made.
            false => key.parent().map_or(Ok(()), |it| self.folder(it))?,
        }
        let tls = &config.tls;
        let files = [
            &tls.cert,
            &tls.key,
            &tls.client_ca,
            &config.auth.tokens_file,
            &config.oci.credentials_file,
        ];
        for file in files {
            self.file(file)?;
        }
        let jwks = Path::new(&config.auth.jwt.jwks);
        if jwks.is_absolute() {
            self.file(jwks)?;
        }
        for address in &config.listen {
            if let Some(socket) = address.strip_prefix("unix:")
                && let Some(folder) = Path::new(socket).parent()
            {
                self.allow(folder, writing() | AccessFs::MakeSock)?;
            }
        }
        for tenant in config.all_tenants() {
            for mount in &config.of(&tenant).policy.mounts {
                let access = match mount.access {
                    MountAccess::Read => reading(),
                    MountAccess::Write => writing(),
                };
                self.allow(&mount.host, access)?;
            }
        }
        Ok(())
    }

    /// Allows writing to a folder, which is made where it is not there.
    fn folder(&mut self, folder: &Path) -> Result<(), RulesetError> {
        if folder.as_os_str().is_empty() {
            return Ok(());
        }
        // Whoever needs it says what is wrong.
        let _ = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE)
            .create(folder);
        self.allow(folder, writing())
    }

    fn ports(&mut self, config: &Config) -> Result<(), RulesetError> {
        let tcp = config.listen.iter().filter(|it| !it.starts_with("unix:"));
        let ports = tcp.filter_map(|it| it.rsplit_once(':')?.1.parse::<u16>().ok());
        // A guest's socket is bound to any free port before it connects.
        let any = connects(config).then_some(0);
        for port in ports.chain(any) {
            (&mut self.0).add_rule(NetPort::new(port, AccessNet::BindTcp))?;
        }
        Ok(())
    }
}

/// Whether the daemon, or a guest, may have to connect to somewhere.
fn connects(config: &Config) -> bool {
    let tenants = config.all_tenants();
    let mut policies = tenants.iter().map(|tenant| config.of(tenant).policy);
    let guests = policies.any(|policy| !policy.network.is_empty());
    guests
        || !config.oci.registries.is_empty()
        || matches!(config.store.url, StoreUrl::Objects(_))
        || config.auth.jwt.jwks.starts_with("http")
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

/// Everything that is done to files and folders; nothing that makes a device, a FIFO or a socket.
fn writing() -> BitFlags<AccessFs> {
    reading()
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer
}
