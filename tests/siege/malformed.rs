//! `malformed`: frames, messages and modules that are none are refused, and nothing else comes of them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use prost::Message;
use ringfence::api::proto::{OutputPolicy, RunRequest, RunSpec};
use tonic::{Code, Status};
use tower::ServiceExt;

use crate::ask::Scale;
use crate::daemon::{Besieged, NO_REASON, ending, loaded, reason, run, side_by_side};
use crate::figures::{Report, Tally, mib};
use crate::harness::{Client, SpecExt, by_digest, channel, spec};
use crate::hostile::{hello, lingering, waits, work};
use crate::raw::{self, Noise, call, call_headers, frame, framed, greeting, header, shout, sized};

const AT_ONCE: usize = 16;
/// What the daemon may have grown by, in KiB.
const GROWTH: u64 = 50 << 10;
/// Of mutated runs, which may be valid and endless.
const TIMEOUT: Duration = Duration::from_millis(100);

pub(crate) async fn row(scale: &Scale, report: &mut Report) {
    // Caches and history may fill to their budgets, which is not what this is about; and modules are compiled on every
    // core.
    let daemon = Besieged::start(&[
        "runs.history=100",
        "engine.cache_budget=8MiB",
        "compile.concurrency=2",
    ])
    .await;
    let each = scale.pick(2_000, 100_000);
    let mut client = daemon.client().await;
    let modules =
        [hello(), lingering()[0].clone(), waits(), work()].map(|wat| wat::parse_str(wat).unwrap());
    let hello = by_digest(&loaded(&mut client, &hello()).await);
    // The one runs as it is; the other is refused, and has what the first has not.
    let messages = [wordy(hello.clone()), refused(hello.clone())]
        .map(|spec| RunRequest { spec: Some(spec) }.encode_to_vec());
    // A little of each first: caches, threads and connections are made when they are first needed.
    frames(&daemon, usize::MAX / 2, 200).await;
    say(&daemon, usize::MAX / 2, 200, &messages).await;
    execute(&daemon, usize::MAX / 2, 200, &modules).await;
    let before = daemon.settled(|_| true).await;

    let start = Instant::now();
    let left_open = frames(&daemon, 0, each).await;
    report.told("malformed frames", since(each, start));
    report.equal("connections that were left open", left_open, 0);
    let start = Instant::now();
    let endings = say(&daemon, 0, each, &messages).await;
    report.told("malformed messages", since(endings.total(), start));
    judge(report, &endings);
    let start = Instant::now();
    let endings = execute(&daemon, 0, each, &modules).await;
    report.told("malformed modules", since(endings.total(), start));
    judge(report, &endings);
    let answer = ending(&run(&mut client, hello).await);
    report.count(
        "a run after all that",
        &answer,
        "EXITED",
        answer == "EXITED",
    );

    let after = daemon
        .settled(|held| held.descriptors <= before.descriptors + 10)
        .await;
    let (was, is) = (before.descriptors, after.descriptors);
    report.count(
        "descriptors",
        is,
        format!("{was} +- 10"),
        is.abs_diff(was) <= 10,
    );
    let grown = after.resident.saturating_sub(before.resident);
    let (told, at_most) = (
        format!("{} more, {} in all", mib(grown), mib(after.resident)),
        format!("at most {} more", mib(GROWTH)),
    );
    if scale.full {
        report.count("resident", told, at_most, grown <= GROWTH);
    } else {
        report.figure("resident", told, &at_most, grown <= GROWTH);
    }
    daemon.end(report).await;
}

fn since(count: usize, start: Instant) -> String {
    format!("{count} in {:.1} s", start.elapsed().as_secs_f64())
}

fn judge(report: &mut Report, endings: &Tally) {
    report.told("their endings", endings);
    report.equal("INTERNAL among them", endings.of("INTERNAL"), 0);
    let lost = endings.of(NO_ANSWER) + endings.ending_with(NO_REASON);
    report.equal("without a reason, or an answer", lost, 0);
}

const NO_ANSWER: &str = "no answer";

/// So many connections, on each of which something is said that HTTP/2 does not allow; how many the daemon did not close.
async fn frames(daemon: &Besieged, seed: usize, count: usize) -> usize {
    let addr = daemon.addr().to_owned();
    let each = side_by_side(daemon.addr(), AT_ONCE, |i, _| {
        let addr = addr.clone();
        async move {
            let mut left_open = 0;
            for n in (i..count).step_by(AT_ONCE) {
                let bytes = malformed_frame(&mut Noise::new(seed + n));
                left_open += usize::from(!shout(&addr, &bytes).await);
            }
            left_open
        }
    });
    each.await.into_iter().sum()
}

/// A connection's bytes: mostly a greeting, perhaps the beginning of a call, and then what must not come.
fn malformed_frame(noise: &mut Noise) -> Vec<u8> {
    const RUN: &str = "/ringfence.v1.SandboxService/Run";
    let junk = noise.bytes(200);
    let stream = u32::try_from(noise.below(9)).unwrap();
    let opened = frame(raw::HEADERS, raw::END_HEADERS, 1, &call_headers(RUN));
    let wrong = match noise.below(18) {
        0 => return junk,
        1 => return noise.mutated(&[greeting(), call(RUN, &junk)].concat()),
        2 => junk,
        3 => frame(noise.byte(), noise.byte(), stream, &junk),
        4 => [header(0x00ff_ffff, noise.byte(), noise.byte(), 1), junk].concat(),
        5 => frame(raw::DATA, noise.byte(), stream, &junk),
        6 => frame(raw::HEADERS, raw::END_HEADERS, 1, &junk),
        7 => frame(raw::CONTINUATION, noise.byte(), stream, &junk),
        8 => frame(raw::SETTINGS, 0, 0, &noise.bytes(12)),
        9 => frame(raw::SETTINGS, 1, 0, &junk),
        10 => frame(raw::WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]).repeat(2),
        11 => frame(raw::WINDOW_UPDATE, 0, stream, &[0; 4]),
        12 => [opened, frame(raw::DATA, raw::PADDED, 1, &[255, 0, 0])].concat(),
        13 => [
            frame(raw::HEADERS, 0, 1, &call_headers(RUN)),
            frame(raw::PING, 0, 0, &[0; 8]),
        ]
        .concat(),
        14 => frame(raw::PING, 0, stream, &noise.bytes(9)),
        15 => [opened, frame(raw::PRIORITY, 0, 1, &[0, 0, 0, 1, 0])].concat(),
        16 => frame(raw::PUSH_PROMISE, raw::END_HEADERS, 1, &junk),
        _ => [opened, frame(raw::RST_STREAM, 0, stream + 2, &junk)].concat(),
    };
    [greeting(), wrong].concat()
}

/// So many calls of Run and its neighbours whose bytes are no message, or a message that went wrong on its way.
async fn say(daemon: &Besieged, seed: usize, count: usize, valid: &[Vec<u8>; 2]) -> Tally {
    let addr = daemon.addr().to_owned();
    let each = side_by_side(daemon.addr(), AT_ONCE, |i, _| {
        let (addr, valid) = (addr.clone(), valid.clone());
        async move {
            let channel = channel(&addr).await;
            let mut endings = Tally::default();
            for n in (i..count).step_by(AT_ONCE) {
                let noise = &mut Noise::new(seed + n);
                let method = ["Run", "Run", "RunStream", "LoadModule"][n / AT_ONCE % 4];
                let body = malformed_message(noise, &valid[n % 2]);
                let request = http::Request::post(format!(
                    "http://{addr}/ringfence.v1.SandboxService/{method}"
                ))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("grpc-timeout", "2S")
                .body(tonic::body::Body::new(Full::new(Bytes::from(body))))
                .unwrap();
                endings.add(match answered(channel.clone(), request).await {
                    Some(status) if status.code() == Code::Ok => "OK".to_owned(),
                    Some(status) => reason(&status),
                    None => NO_ANSWER.to_owned(),
                });
            }
            endings
        }
    });
    together(each.await)
}

/// The status that a call ends with, where it has one.
async fn answered(
    channel: tonic::transport::Channel,
    request: http::Request<tonic::body::Body>,
) -> Option<Status> {
    let (parts, body) = channel.oneshot(request).await.ok()?.into_parts();
    if let Some(status) = Status::from_header_map(&parts.headers) {
        return Some(status);
    }
    let body = body.collect().await.ok()?;
    Status::from_header_map(body.trailers()?)
}

fn malformed_message(noise: &mut Noise, valid: &[u8]) -> Vec<u8> {
    match noise.below(12) {
        0 => noise.bytes(300),
        1 => framed(0, &noise.bytes(300)),
        2 => framed(noise.byte(), valid),
        3 => framed(0, valid).repeat(2),
        4 => {
            let mut cut = framed(0, valid);
            cut.truncate(noise.below(cut.len()));
            cut
        }
        5 => noise.mutated(&framed(0, valid)),
        6 => framed(0, &noise.mutated(valid)),
        7 => framed(0, &noise.protobuf(3)),
        8 | 9 => framed(0, &noise.flipped(valid)),
        _ => {
            // More of the same spec, since protobuf merges a field that comes twice.
            let more = sized(&noise.protobuf(2));
            framed(0, &[valid, &[0x0a], &more].concat())
        }
    }
}

/// So many runs of noise, and of modules that went wrong on their way.
async fn execute(daemon: &Besieged, seed: usize, count: usize, valid: &[Vec<u8>; 4]) -> Tally {
    let each = side_by_side(daemon.addr(), AT_ONCE, |i, mut client: Client| {
        let valid = valid.clone();
        async move {
            let mut endings = Tally::default();
            for n in (i..count).step_by(AT_ONCE) {
                let noise = &mut Noise::new(seed + n);
                let whole = &valid[noise.below(valid.len())];
                let wasm = match noise.below(8) {
                    0 => noise.bytes(500),
                    1 => [&whole[..8], &noise.bytes(500)].concat(),
                    2 | 3 => noise.mutated(whole),
                    _ => noise.flipped(whole),
                };
                let answer = run(&mut client, spec(wasm).timeout(TIMEOUT)).await;
                endings.add(ending(&answer));
            }
            endings
        }
    });
    together(each.await)
}

fn together(each: Vec<Tally>) -> Tally {
    let mut all = Tally::default();
    each.into_iter().for_each(|one| all.extend(one));
    all
}

/// A run that is not refused and says what can be said of one.
fn wordy(hello: RunSpec) -> RunSpec {
    hello
        .args(&["hello", "there"])
        .env(&["KEY=value"])
        .entry("_start")
        .stdin("input")
        .label("key", "value")
        .timeout(TIMEOUT)
        .resources(|asked| {
            asked.memory_pages = Some(64);
            asked.fuel_limit = Some(1_000_000);
            asked.stack_size = Some(1 << 18);
            asked.output_limit = Some(1 << 16);
            asked.set_output_policy(OutputPolicy::Truncate);
        })
        .security(|asked| {
            asked.enable_wasi = Some(true);
            asked.allowed_host_functions = vec!["ringfence.log".to_owned()];
            asked.enable_clock = Some(false);
        })
}

/// The rest.
fn refused(hello: RunSpec) -> RunSpec {
    hello
        .key("once")
        .mount("/nowhere", "/data", true)
        .change(|spec| spec.working_dir = "/data".to_owned())
        .security(|asked| asked.enable_network = true)
}
