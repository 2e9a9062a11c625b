//! A run's WASI context: nothing inherited, everything from its spec.

use std::net::SocketAddr;
use std::sync::Arc;

use rustix::io::Errno;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder, WasiView};

use super::clock::SteppedClock;
use super::mounts::{Opened, no_descriptors};
use super::preview1::RANDOM_PIECE;
use super::stdin::{GuestInput, Input};
use super::stdio::GuestOutput;
use super::working_dir;
use crate::policy::NetworkGrant;
use crate::refusal::Refusal;
use crate::request::RunSpec;

/// A run's three standard streams.
pub(super) struct Stdio {
    /// Standard input.
    pub(super) input: Arc<Input>,
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
    table_entries: usize,
) -> Result<WasiP1Ctx, Refusal> {
    let mut builder = WasiCtxBuilder::new();
    builder
        .allow_blocking_current_thread(false)
        // Of one piece: a guest's own calls are split into such.
        .max_random_size(u64::from(RANDOM_PIECE))
        .args(args)
        .envs(&spec.env)
        .envs(working_dir::variable(spec).as_slice())
        .stdin(GuestInput(stdio.input))
        .stdout(stdio.stdout)
        .stderr(stdio.stderr)
        .allow_ip_name_lookup(false);
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
            .map_err(not_opened)?;
    }
    if spec.network {
        allow(&mut builder, network);
    } else {
        builder.allow_tcp(false).allow_udp(false);
    }
    let mut context = builder.build_p1();
    context.ctx().table.set_max_capacity(table_entries);
    Ok(context)
}

/// Tells why a directory that is open could not be opened once more.
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
