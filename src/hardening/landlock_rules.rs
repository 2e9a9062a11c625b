//! Landlock rules: the daemon can reach the files that are configured, those that the program
//! itself needs, and nothing else. TCP ports are restricted too.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope,
};
use rustix::process::geteuid;

use super::real_paths::{ResolvedPath, resolve_links};
use super::{ExtraPaths, WallError};
use crate::config::{Config, MountAccess, StoreUrl, is_shared_folder, listens_by_name};

/// The Landlock ABI that is requested. A kernel with an older one enforces what it can.
const LANDLOCK_ABI: ABI = ABI::V6;
/// The folders that hold programs and libraries. They are needed because this program is started
/// again for each module that is compiled.
const PROGRAMS: [&str; 7] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/nix/store",
];
/// What the C library and name resolution read, and what the engine asks the kernel.
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
/// The port of name servers.
const DNS_PORT: u16 = 53;
/// The mode of folders that the daemon creates because they are configured.
const PRIVATE: u32 = 0o700;

/// Denies every path except those that `config` names and those in `besides`, and every TCP port
/// except those that the daemon needs. Adds to `unreachable` each configured path that cannot be
/// made accessible, with the reason. Returns the name of the protection that is in force.
pub(super) fn restrict(
    config: &Config,
    besides: &ExtraPaths,
    unreachable: &mut Vec<String>,
) -> Result<&'static str, WallError> {
    match rules(config, besides, unreachable)? {
        RulesetStatus::FullyEnforced => Ok("landlock"),
        RulesetStatus::PartiallyEnforced => Ok("landlock-partial"),
        RulesetStatus::NotEnforced => Err(WallError::NoLandlock),
    }
}

/// Builds all rules and applies them to this thread.
fn rules(
    config: &Config,
    besides: &ExtraPaths,
    unreachable: &mut Vec<String>,
) -> Result<RulesetStatus, RulesetError> {
    let connects = tcp_connects(config);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?;
    // If a name has several addresses and no port, the kernel chooses a port for the first and the
    // others use the same. Nobody knows that port yet, so binding is not restricted.
    if !config.all_listeners().any(listens_by_name) {
        ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
    }
    if connects != TcpConnects::Anywhere {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    let ruleset = ruleset.scope(Scope::from_all(LANDLOCK_ABI))?.create()?;
    let mut rules = LandlockRules(ruleset);
    rules.allow_program()?;
    for path in READ.iter().map(Path::new) {
        rules.allow(path, reading())?;
    }
    // The file that it leads to may be replaced by another one beside it.
    rules.allow_replaceable_file(Path::new("/etc/resolv.conf"))?;
    if connects != TcpConnects::Nowhere {
        for path in &besides.trust {
            rules.allow_certificates(path)?;
        }
    }
    for path in &besides.read {
        rules.allow_replaceable_file(path)?;
    }
    for path in &config.hardening.read {
        rules.allow(path, reading())?;
        if let Err(error) = PathFd::new(path) {
            unreachable.push(format!("hardening.read: {error}"));
        }
    }
    rules.allow(Path::new("/dev/null"), reading() | AccessFs::WriteFile)?;
    if !geteuid().is_root() {
        // Compile children make themselves the first victims for when memory runs out, by writing
        // to /proc. Root is not given that, because it could write to /proc/sys too.
        rules.allow(Path::new("/proc"), reading() | AccessFs::WriteFile)?;
    }
    rules.allow_configured(config)?;
    for folder in &besides.write {
        rules.allow(folder, writing())?;
    }
    rules.allow_ports(config)?;
    let status = rules.0.restrict_self()?;
    Ok(status.ruleset)
}

/// A Landlock ruleset under construction.
struct LandlockRules(RulesetCreated);

impl LandlockRules {
    /// Allows `access` to a path and everything below it. A path that does not exist needs no rule.
    fn allow(&mut self, path: &Path, access: BitFlags<AccessFs>) -> Result<(), RulesetError> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let Ok(there) = PathFd::new(path) else {
            return Ok(());
        };
        let access = match path.is_dir() {
            true => access,
            false => access & AccessFs::from_file(LANDLOCK_ABI),
        };
        (&mut self.0).add_rule(PathBeneath::new(there, access))?;
        Ok(())
    }

    /// Allows reading a file by its name, even after another file takes that name. For this it
    /// allows the file's folder, in which a platform swaps it, each folder in which a link leads on
    /// to it, and the folder that it is in now.
    fn allow_replaceable_file(&mut self, path: &Path) -> Result<(), RulesetError> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let ResolvedPath { links_in, end } = resolve_links(path);
        if end.is_dir() {
            self.allow(path, reading())?;
        }
        let own = path.parent().filter(|_| !end.is_dir());
        let folders = own.into_iter().chain(links_in.iter().map(PathBuf::as_path));
        for folder in folders.chain(end.parent().filter(|_| !end.is_dir())) {
            // A file in a folder that other things share is allowed alone.
            match is_shared_folder(folder) {
                true => self.allow(path, reading())?,
                false => self.allow(folder, reading())?,
            }
        }
        Ok(())
    }

    /// Allows reading a file or a folder of certificates, and what the links in that folder lead
    /// to: distributions keep the files themselves elsewhere.
    fn allow_certificates(&mut self, path: &Path) -> Result<(), RulesetError> {
        self.allow_replaceable_file(path)?;
        let Ok(entries) = std::fs::read_dir(path) else {
            // The path is a file, or does not exist.
            return Ok(());
        };
        let links = entries.flatten().filter(|it| {
            let kind = it.file_type();
            kind.is_ok_and(|kind| kind.is_symlink())
        });
        let mut folders = BTreeSet::new();
        for link in links {
            let end = resolve_links(&link.path()).end;
            match end.parent() {
                Some(folder) if !is_shared_folder(folder) => {
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

    /// Allows executing this program and loading its libraries.
    fn allow_program(&mut self) -> Result<(), RulesetError> {
        let execute = reading() | AccessFs::Execute;
        for path in PROGRAMS.iter().map(Path::new) {
            self.allow(path, execute)?;
        }
        self.allow(Path::new("/proc/self/exe"), execute)
    }

    /// Allows the folder of the archive of ended runs, or that of runs on their way into it.
    fn allow_archive(&mut self, config: &Config) -> Result<(), RulesetError> {
        match &config.runs.archive.0 {
            Some(StoreUrl::Directory(folder)) => self.allow_created_folder(folder),
            Some(StoreUrl::Objects(_)) if !config.runs.archive_spool.as_os_str().is_empty() => {
                self.allow_created_folder(&config.runs.archive_spool)
            }
            Some(StoreUrl::Objects(_) | StoreUrl::Memory) | None => Ok(()),
        }
    }

    /// Allows the paths that the configuration names, including the mounts of all tenants.
    fn allow_configured(&mut self, config: &Config) -> Result<(), RulesetError> {
        if let StoreUrl::Directory(folder) = &config.store.url {
            self.allow_created_folder(folder)?;
        } else {
            self.allow(&config.store.spool, writing())?;
        }
        self.allow_archive(config)?;
        self.allow_created_folder(&config.artifacts.dir)?;
        let key = &config.artifacts.key_file;
        match key.is_file() {
            true => self.allow(key, reading())?,
            // The key file will be created.
            false => key
                .parent()
                .map_or(Ok(()), |it| self.allow_created_folder(it))?,
        }
        let tls = &config.tls;
        let files = [
            &tls.cert,
            &tls.key,
            &tls.client_ca,
            &config.auth.tokens_file,
            &config.oci.credentials_file,
            &config.telemetry.otlp_headers_file,
        ];
        for file in files {
            self.allow_replaceable_file(file)?;
        }
        for language in config.languages.values() {
            self.allow(&language.module, reading())?;
        }
        let jwks = Path::new(&config.auth.jwt.jwks);
        if jwks.is_absolute() {
            self.allow_replaceable_file(jwks)?;
        }
        for address in config.all_listeners() {
            if let Some(socket) = address.strip_prefix("unix:")
                && let Some(folder) = Path::new(socket).parent()
            {
                self.allow(folder, writing() | AccessFs::MakeSock)?;
            }
        }
        for tenant in config.all_tenants() {
            for mount in &config.for_tenant(&tenant).policy.mounts {
                let access = match mount.access {
                    MountAccess::Read => reading(),
                    MountAccess::Write => writing(),
                };
                self.allow(&mount.host, access)?;
            }
        }
        Ok(())
    }

    /// Allows writing to a folder, which is created if it does not exist.
    fn allow_created_folder(&mut self, folder: &Path) -> Result<(), RulesetError> {
        if folder.as_os_str().is_empty() {
            return Ok(());
        }
        // A failure is reported by the code that needs the folder.
        let _ = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE)
            .create(folder);
        self.allow(folder, writing())
    }

    /// Allows binding to the configured TCP ports, and to any free port if guests may connect.
    /// Where the daemon connects to nothing but some ports, those are allowed.
    fn allow_ports(&mut self, config: &Config) -> Result<(), RulesetError> {
        let tcp = config.all_listeners().filter(|it| !it.starts_with("unix:"));
        let ports = tcp.filter_map(|it| it.rsplit_once(':')?.1.parse::<u16>().ok());
        let connects = tcp_connects(config);
        // A guest's socket is bound to any free port before it connects.
        let any = (connects == TcpConnects::Anywhere).then_some(0);
        for port in ports.chain(any) {
            (&mut self.0).add_rule(NetPort::new(port, AccessNet::BindTcp))?;
        }
        if let TcpConnects::To(ports) = connects {
            for port in ports {
                (&mut self.0).add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
            }
        }
        Ok(())
    }
}

/// Where the daemon and its guests may connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TcpConnects {
    /// Nothing is configured that has to be connected to.
    Nowhere,
    /// What is configured has these ports.
    To(Vec<u16>),
    /// To any port: guests have grants, or a service is configured whose hosts name others.
    Anywhere,
}

/// Determines where the daemon, or a guest, may have to connect to.
fn tcp_connects(config: &Config) -> TcpConnects {
    if connects_anywhere(config) {
        return TcpConnects::Anywhere;
    }
    let Some(collector) = config.telemetry.otlp_endpoint.url() else {
        return TcpConnects::Nowhere;
    };
    let mut ports: Vec<u16> = collector.port_or_known_default().into_iter().collect();
    if collector.domain().is_some() {
        // A name is looked up over TCP where the answer is too long for UDP.
        ports.push(DNS_PORT);
    }
    TcpConnects::To(ports)
}

/// Reports whether it cannot be told which ports the daemon, or a guest, may have to connect to.
fn connects_anywhere(config: &Config) -> bool {
    let tenants = config.all_tenants();
    let mut policies = tenants
        .iter()
        .map(|tenant| config.for_tenant(tenant).policy);
    let guests = policies.any(|policy| !policy.network.is_empty());
    guests
        || !config.oci.registries.is_empty()
        || matches!(config.store.url, StoreUrl::Objects(_))
        || matches!(config.runs.archive.0, Some(StoreUrl::Objects(_)))
        || config.auth.jwt.jwks.starts_with("http")
}

/// Returns the rights to read files and list folders.
fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

/// Returns all rights that files and folders need, but none to create a device, a FIFO or a socket.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app;
    use crate::config::Overrides;

    fn connects(set: &[(&str, &str)]) -> TcpConnects {
        let owned = set
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        let overrides = Overrides {
            set: owned.collect(),
            ..Overrides::default()
        };
        tcp_connects(&app::load_config(&overrides).unwrap().0)
    }

    #[test]
    fn only_the_ports_of_the_collector_are_connected_to() {
        const KEY: &str = "telemetry.otlp_endpoint";
        assert_eq!(connects(&[]), TcpConnects::Nowhere);
        for (url, ports) in [
            ("http://127.0.0.1:4317", &[4317][..]),
            ("http://[::1]:4318", &[4318]),
            ("https://10.0.0.1", &[443]),
            ("http://collector:4317", &[4317, 53]),
        ] {
            let expected = TcpConnects::To(ports.to_vec());
            assert_eq!(connects(&[(KEY, url)]), expected, "{url}");
        }
        let registries = ("oci.registries", "[\"registry.example.com\"]");
        let both = [(KEY, "http://127.0.0.1:4317"), registries];
        assert_eq!(connects(&both), TcpConnects::Anywhere);
    }
}
