//! A run's WASI context. It inherits nothing from the daemon; everything in it comes from the run's
//! spec. It is built lazily where that cannot fail.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder, WasiView};

use super::mounts::{Preopen, no_descriptors};
use super::session_streams::SessionStreams;
use super::stdin::{GuestInput, Input};
use super::stdio::GuestOutput;
use super::stepped_clock::SteppedClock;
use super::working_dir;
use crate::model::policy::NetworkGrant;
use crate::model::refusal::Refusal;
use crate::model::request::RunSpec;

/// The names of the import modules that make up WASI for core modules.
pub(in crate::sandbox) const WASI_MODULES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

/// The maximum number of random bytes in one piece.
pub(in crate::sandbox) const RANDOM_PIECE: u32 = 64 << 10;

/// What a WASI context is built from beside the run's spec.
pub(in crate::sandbox) struct WasiParts {
    /// The guest's stdin; `None` is an empty one, at its end.
    pub(in crate::sandbox) input: Option<Arc<Input>>,
    /// The guest's stdout stream.
    pub(in crate::sandbox) stdout: GuestOutput,
    /// The guest's stderr stream.
    pub(in crate::sandbox) stderr: GuestOutput,
    /// The streams of the session in place of these three; `None` where the run is of no session.
    pub(in crate::sandbox) session: Option<SessionStreams>,
    /// The deterministic clock; `None` where the guest has the real one.
    pub(in crate::sandbox) stepped: Option<SteppedClock>,
    /// The maximum number of entries in the context's resource table.
    pub(in crate::sandbox) table_entries: usize,
}

/// A run's WASI context. Unless building it may fail, it is built when the guest first calls
/// something that needs it. Building takes some twenty allocations and four random seeds, and many
/// a short guest only writes, which needs none of it.
pub(in crate::sandbox) struct GuestWasi {
    context: Option<WasiP1Ctx>,
    /// What the context is built from later; it is taken when the context is built.
    plan: Option<DeferredContext>,
}

struct DeferredContext {
    command: CommandText,
    given: WasiParts,
}

impl GuestWasi {
    /// Creates the context of a guest that calls nothing.
    pub(in crate::sandbox) fn none() -> Self {
        Self {
            context: None,
            plan: None,
        }
    }

    /// Plans a context without directories and sockets, to be built when it is first needed. `args`
    /// is the command line, which is not the spec's `args` where those are an entry point's
    /// parameters.
    pub(in crate::sandbox) fn plan(
        args: &[String],
        env: &[(String, String)],
        given: WasiParts,
    ) -> Self {
        let command = CommandText::new(args, env);
        Self {
            context: None,
            plan: Some(DeferredContext { command, given }),
        }
    }

    /// Builds the context of `spec` now. `args` is as in [`Self::plan`], and `dirs` are the
    /// directories that the guest is given.
    pub(in crate::sandbox) fn build(
        spec: &RunSpec,
        args: &[String],
        dirs: &[Preopen],
        network: &[NetworkGrant],
        given: WasiParts,
    ) -> Result<Self, Refusal> {
        let table_entries = given.table_entries;
        let mut builder = builder(given);
        builder
            .args(args)
            .envs(&spec.env)
            .envs(working_dir::variable(spec).as_slice());
        if let Some(dir) = &spec.working_dir {
            builder.initial_cwd(dir.as_str());
        }
        for dir in dirs {
            let perms = if dir.read_only {
                FsPerms::ReadOnly
            } else {
                FsPerms::ReadWrite
            };
            builder
                .preopened_dir(dir.path(), &dir.guest, perms)
                .map_err(not_opened)?;
        }
        if spec.network {
            allow(&mut builder, network);
        }
        Ok(Self {
            context: Some(built(&mut builder, table_entries)),
            plan: None,
        })
    }

    /// Returns the context, and builds it if it was only planned.
    pub(in crate::sandbox) fn get(&mut self) -> &mut WasiP1Ctx {
        let plan = &mut self.plan;
        self.context.get_or_insert_with(|| match plan.take() {
            Some(plan) => plan.build(),
            None => WasiCtxBuilder::new().build_p1(),
        })
    }
}

impl DeferredContext {
    fn build(self) -> WasiP1Ctx {
        let table_entries = self.given.table_entries;
        let mut builder = builder(self.given);
        for arg in self.command.args() {
            builder.arg(arg);
        }
        for (name, value) in self.command.env() {
            builder.env(name, value);
        }
        built(&mut builder, table_entries)
    }
}

/// Creates a builder of contexts that can use only the standard streams and the clock.
fn builder(given: WasiParts) -> WasiCtxBuilder {
    let input = given
        .input
        .unwrap_or_else(|| Arc::new(Input::whole(Bytes::new())));
    let mut builder = WasiCtxBuilder::new();
    builder
        .allow_blocking_current_thread(false)
        // This limits one piece: a guest's own calls are split into pieces of this size.
        .max_random_size(u64::from(RANDOM_PIECE))
        .allow_ip_name_lookup(false)
        .allow_tcp(false)
        .allow_udp(false);
    match given.session {
        None => builder
            .stdin(GuestInput(input))
            .stdout(given.stdout)
            .stderr(given.stderr),
        Some(streams) => builder
            .stdin(streams.stdin)
            .stdout(streams.stdout)
            .stderr(streams.stderr),
    };
    if let Some(stepped) = given.stepped {
        builder.wall_clock(stepped.clone()).monotonic_clock(stepped);
    }
    builder
}

fn built(builder: &mut WasiCtxBuilder, table_entries: usize) -> WasiP1Ctx {
    let mut context = builder.build_p1();
    context.ctx().table.set_max_capacity(table_entries);
    context
}

/// A command line and an environment in one string, each part followed by a NUL, which no part can
/// contain. Until they are asked for, they cost only one allocation.
struct CommandText {
    text: String,
    /// The number of parts that belong to the command line; the rest is the environment.
    args: usize,
}

impl CommandText {
    fn new(args: &[String], env: &[(String, String)]) -> Self {
        let pairs = env.iter().flat_map(|(name, value)| [name, value]);
        let parts = args.iter().chain(pairs);
        let bytes = parts.clone().map(|part| part.len() + 1).sum();
        let mut text = String::with_capacity(bytes);
        for part in parts {
            text.push_str(part);
            text.push('\0');
        }
        Self {
            text,
            args: args.len(),
        }
    }

    fn args(&self) -> impl Iterator<Item = &str> {
        self.text.split_terminator('\0').take(self.args)
    }

    fn env(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut parts = self.text.split_terminator('\0').skip(self.args);
        std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
    }
}

/// Returns the refusal for a directory that is open but could not be opened once more.
fn not_opened(error: wasmtime::Error) -> Refusal {
    let errno = error
        .downcast_ref::<std::io::Error>()
        .and_then(Errno::from_io_error);
    match errno {
        Some(Errno::MFILE | Errno::NFILE) => no_descriptors(),
        Some(_) | None => Refusal::of_host("opening a mount", error.as_ref()),
    }
}

fn allow(builder: &mut WasiCtxBuilder, grants: &[NetworkGrant]) {
    use wasmtime_wasi::sockets::SocketAddrUse;
    let grants: Arc<[NetworkGrant]> = grants.into();
    builder
        .allow_tcp(true)
        .allow_udp(true)
        .socket_addr_check(move |addr: SocketAddr, usage| {
            let allowed = match usage {
                // A client's socket has to bind before it connects.
                SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
                    addr.port() == 0 && addr.ip().is_unspecified()
                }
                // Guests may not serve.
                SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => false,
                SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
                    grants.iter().any(|grant| grant.covers(addr))
                }
            };
            Box::pin(async move { allowed })
        });
}

#[cfg(test)]
mod tests {
    use super::CommandText;

    fn owned(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|&part| part.to_owned()).collect()
    }

    #[test]
    fn a_command_and_its_environment_come_back_as_they_were() {
        for args in [
            &["a"][..],
            &["prog", "", "b c", "=", ""],
            &["é\n", "\u{1}"],
            &[],
        ] {
            for env in [
                &[][..],
                &[("A", ""), ("B", "x=y"), ("C", "")],
                &[("é", "1")],
            ] {
                let args = owned(args);
                let env: Vec<(String, String)> = env
                    .iter()
                    .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                    .collect();
                let command = CommandText::new(&args, &env);
                assert_eq!(command.args().collect::<Vec<_>>(), args);
                let told = command
                    .env()
                    .map(|(name, value)| (name.to_owned(), value.to_owned()));
                assert_eq!(told.collect::<Vec<_>>(), env);
                assert_eq!(command.text.len(), command.text.capacity());
            }
        }
    }
}
