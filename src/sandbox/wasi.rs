//! A run's WASI context: nothing inherited, everything from its spec.

use std::net::SocketAddr;
use std::sync::Arc;

use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder, WasiView};

use super::clock::SteppedClock;
use super::mounts::Opened;
use super::stdin::{GuestInput, Input};
use super::stdio::GuestOutput;
use super::working_dir;
use crate::policy::NetworkGrant;
use crate::refusal::Refusal;
use crate::request::RunSpec;

/// The most resources (open files, directories, sockets, streams, pollables) of a run at once.
const MAX_RESOURCES: usize = 256;
/// The most bytes that one call for randomness gives. It cannot be interrupted.
const MAX_RANDOM: u64 = 64 * 1024;

/// A run's three standard streams.
pub(super) struct Stdio {
    /// What comes after the spec's input, where more does.
    pub(super) input: Option<Arc<Input>>,
    /// Standard output.
    pub(super) stdout: GuestOutput,
    /// Standard error.
    pub(super) stderr: GuestOutput,
}

/// Builds the context. `args` is the command line, which is not the spec's where that has an entry point's parameters;
/// `dirs` are the directories that the guest is given.
pub(super) fn context(
    spec: &RunSpec,
    args: &[String],
    dirs: &[Opened],
    network: &[NetworkGrant],
    stdio: Stdio,
    stepped: &SteppedClock,
) -> Result<WasiP1Ctx, Refusal> {
    let mut builder = WasiCtxBuilder::new();
    builder
        .allow_blocking_current_thread(false)
        .max_random_size(MAX_RANDOM)
        .args(args)
        .envs(&spec.env)
        .envs(working_dir::variable(spec).as_slice())
        .stdout(stdio.stdout)
        .stderr(stdio.stderr)
        .allow_ip_name_lookup(false);
    match stdio.input {
        Some(input) => {
            input.begin_with(spec.stdin.clone());
            builder.stdin(GuestInput(input));
        }
        None => {
            builder.stdin(MemoryInputPipe::new(spec.stdin.clone()));
        }
    }
    if !spec.clock {
        builder.wall_clock(stepped.clone());
        builder.monotonic_clock(stepped.clone());
    }
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
            .map_err(|error| Refusal::internal(format_args!("opening a mount: {error}")))?;
    }
    if spec.network {
        allow(&mut builder, network);
    } else {
        builder.allow_tcp(false).allow_udp(false);
    }
    let mut context = builder.build_p1();
    context.ctx().table.set_max_capacity(MAX_RESOURCES);
    Ok(context)
}

fn allow(builder: &mut WasiCtxBuilder, grants: &[NetworkGrant]) {
    use wasmtime_wasi::sockets::SocketAddrUse;
    let grants: Arc<[NetworkGrant]> = grants.into();
    builder
        .allow_tcp(true)
        .allow_udp(true)
        .socket_addr_check(move |addr: SocketAddr, usage| {
            let allowed = match usage {
                // What a client's socket needs before it connects.
                SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
                    addr.port() == 0 && addr.ip().is_unspecified()
                }
                // Nothing may be served.
                SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => false,
                SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
                    grants.iter().any(|grant| grant.covers(addr))
                }
            };
            Box::pin(async move { allowed })
        });
}
