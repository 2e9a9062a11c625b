//! Sessions: an interpreter that is kept from program to program. The interpreter here counts the
//! programs that it has executed; `tests/languages` has the real ones.

use std::time::{Duration, Instant};

use ringfence::api::proto::execution_service_client::ExecutionServiceClient;
use ringfence::api::proto::run_service_client::RunServiceClient;
use ringfence::api::proto::{
    CancelRunRequest, CloseSessionRequest, CloseSessionResponse, ExecuteRequest, ExecuteResponse,
    ExecutionSpec, File, ListSessionsRequest, Outcome, Resources, RunResult, RunState, Session,
    SessionState,
};
use tonic::client::GrpcService;
use tonic::codegen::{Body, Bytes, StdError};
use tonic::{Code, Status};

use crate::execution::CAT;
use crate::harness::{Daemon, PATIENCE, Refused, channel};
use crate::tenants::two;

/// The program after which the interpreter never ends.
const SPINS: u64 = 200;
/// The program at which it traps.
const TRAPS: u64 = 220;

/// An interpreter whose exit code is how many programs it has executed. It begins to count where
/// its data says.
fn counter(first: u64) -> String {
    format!(
        r#"(component
            (core module $m
                (memory (export "memory") 2)
                (global $n (mut i32) (i32.const {first}))
                (func (export "execute") (result i32)
                    (global.set $n (i32.add (global.get $n) (i32.const 1)))
                    (if (i32.eq (global.get $n) (i32.const {SPINS})) (then (loop (br 0))))
                    (if (i32.eq (global.get $n) (i32.const {TRAPS})) (then unreachable))
                    (global.get $n))
                (func (export "run") (result i32) (i32.const 0)))
            (core instance $i (instantiate $m))
            (func $execute (result u8) (canon lift (core func $i "execute")))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $session (export "execute" (func $execute)))
            (instance $cli (export "run" (func $run)))
            (export "ringfence:runner/session@1.0.0" (instance $session))
            (export "wasi:cli/run@0.2.0" (instance $cli)))"#
    )
}

/// Writes interpreters to a folder, and returns the setting that makes them languages: "count",
/// "spin" and "trap", which do so in their second program, and "cat", which is not kept.
fn languages(folder: &std::path::Path) -> String {
    let language = |(name, text): (&str, String)| {
        let path = folder.join(format!("{name}.wat"));
        std::fs::write(&path, text).unwrap();
        let path = path.display();
        format!("{name} = {{ module = \"{path}\", file = \"main.{name}\" }}")
    };
    let all = [
        ("count", counter(0)),
        ("spin", counter(SPINS - 2)),
        ("trap", counter(TRAPS - 2)),
        ("cat", CAT.to_owned()),
    ];
    let all = all.map(language).join(", ");
    format!(
        "{{ {all}, wasm-like = {{ module = \"{0}/count.wat\", protocol = \"stdin\", args = [\"x\"] }} }}",
        folder.display()
    )
}

/// A daemon whose interpreters are kept.
struct Keeper {
    daemon: Daemon,
    executions: ExecutionServiceClient<tonic::transport::Channel>,
    _folder: tempfile::TempDir,
}

impl Keeper {
    async fn start(set: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let languages = languages(folder.path());
        let all = [&[("languages", languages.as_str())], set].concat();
        let daemon = Daemon::with(&all).await;
        let executions = ExecutionServiceClient::new(channel(&daemon.addr).await);
        Self {
            daemon,
            executions,
            _folder: folder,
        }
    }

    async fn execute(&self, spec: ExecutionSpec) -> Result<ExecuteResponse, Status> {
        execute(&self.executions, spec).await
    }

    /// Executes a program that is not refused.
    async fn executed(&self, spec: ExecutionSpec) -> RunResult {
        let answer = self.execute(spec).await.expect("it is not refused");
        answer.result.unwrap()
    }

    async fn refused(&self, spec: ExecutionSpec) -> Refused {
        Refused::new(&self.execute(spec).await.expect_err("it is refused"))
    }

    async fn list(&self) -> Vec<Session> {
        list(&self.executions).await
    }

    async fn close(&self, name: &str) -> Result<CloseSessionResponse, Status> {
        let request = CloseSessionRequest {
            name: name.to_owned(),
        };
        let closed = self.executions.clone().close_session(request).await;
        closed.map(tonic::Response::into_inner)
    }

    /// Begins a program that never ends, as the second one of a session. Returns its run's id.
    async fn spinning(&self, session: &str) -> String {
        self.executed(of("spin", session)).await;
        let spins = ExecutionSpec {
            timeout: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
            detach: true,
            ..of("spin", session)
        };
        let request = ringfence::api::proto::ExecuteStreamRequest { spec: Some(spins) };
        let stream = self.executions.clone().execute_stream(request).await;
        let first = stream.unwrap().into_inner().message().await;
        first.unwrap().unwrap().run_id
    }

    /// Waits until the runs hold no memory, by asking.
    async fn until_nothing_is_reserved(&self) {
        let start = Instant::now();
        while self.daemon.probe.reserved_bytes() > 0 {
            assert!(start.elapsed() < PATIENCE, "memory stays reserved");
            tokio::task::yield_now().await;
        }
    }
}

async fn execute<T>(
    client: &ExecutionServiceClient<T>,
    spec: ExecutionSpec,
) -> Result<ExecuteResponse, Status>
where
    T: GrpcService<tonic::body::Body> + Clone,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    let request = ExecuteRequest { spec: Some(spec) };
    Ok(client.clone().execute(request).await?.into_inner())
}

async fn list<T>(client: &ExecutionServiceClient<T>) -> Vec<Session>
where
    T: GrpcService<tonic::body::Body> + Clone,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    let listed = client.clone().list_sessions(ListSessionsRequest {}).await;
    listed.unwrap().into_inner().sessions
}

/// A program of a session.
fn of(language: &str, session: &str) -> ExecutionSpec {
    ExecutionSpec {
        language: language.to_owned(),
        code: "next".to_owned(),
        session: session.to_owned(),
        ..ExecutionSpec::default()
    }
}

/// How many programs a session has executed, and that it goes on.
fn goes_on(executions: u64) -> Option<SessionState> {
    Some(SessionState {
        executions,
        ended: false,
    })
}

#[tokio::test]
async fn an_interpreter_is_kept_from_program_to_program() {
    let keeper = Keeper::start(&[]).await;
    for executions in 1..=5 {
        let result = keeper.executed(of("count", "a")).await;
        let told = (result.exit_code.map(u64::from), result.session);
        assert_eq!(told, (Some(executions), goes_on(executions)));
        // What it tells is kept with the run.
        let run = keeper.daemon.get(&result.run_id).await;
        let end = run.end.unwrap();
        let ringfence::api::proto::run_info::End::Result(kept) = end else {
            panic!("{end:?}");
        };
        assert_eq!(kept.session, result.session);
    }
    // Another session has another interpreter, and so has a program of none.
    assert_eq!(keeper.executed(of("count", "b")).await.exit_code, Some(1));
    let alone = keeper.executed(of("count", "")).await;
    assert_eq!((alone.exit_code, alone.session), (Some(0), None));
    assert_eq!(keeper.executed(of("count", "a")).await.exit_code, Some(6));
}

#[tokio::test]
async fn sessions_are_listed_and_closed() {
    let keeper = Keeper::start(&[]).await;
    assert_eq!(keeper.list().await, []);
    let result = keeper.executed(of("count", "user:1/b")).await;
    keeper.executed(of("count", "user:1/b")).await;
    keeper.executed(of("count", "user:1/a")).await;
    let listed = keeper.list().await;
    let names: Vec<&str> = listed.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["user:1/a", "user:1/b"]);
    let session = &listed[1];
    assert_eq!((session.executions, session.run_id.as_str()), (2, ""));
    assert_eq!(session.language, "count");
    assert_eq!(session.module_digest, result.module_digest);
    let pages = result.granted.unwrap().memory_pages.unwrap();
    let stack = result.granted.unwrap().stack_size.unwrap();
    let least = (u64::from(pages) << 16) + u64::from(stack);
    assert!((least..least + (2 << 20)).contains(&session.memory_bytes));
    let [began, used, expires] =
        [&session.began, &session.used, &session.expires].map(|time| time.unwrap().seconds);
    assert!(began <= used && (599..=601).contains(&(expires - used)));
    // A session holds its memory while it executes nothing.
    let held: u64 = listed.iter().map(|it| it.memory_bytes).sum();
    assert_eq!(keeper.daemon.probe.reserved_bytes(), held);
    let closed = keeper.close("user:1/b").await.unwrap();
    assert_eq!(closed.session.as_ref(), Some(session));
    let refused = Refused::new(&keeper.close("user:1/b").await.unwrap_err());
    refused.is(Code::NotFound, "SESSION_NOT_FOUND");
    let refused = Refused::new(&keeper.close("").await.unwrap_err());
    refused.is(Code::InvalidArgument, "SPEC_INVALID").at("name");
    assert_eq!(keeper.list().await.len(), 1);
    keeper.close("user:1/a").await.unwrap();
    keeper.until_nothing_is_reserved().await;
    // One of the same name begins anew.
    assert_eq!(
        keeper.executed(of("count", "user:1/b")).await.exit_code,
        Some(1)
    );
}

#[tokio::test]
async fn one_program_is_executed_at_a_time() {
    let keeper = Keeper::start(&[]).await;
    let run_id = keeper.spinning("a").await;
    let refused = keeper.refused(of("spin", "a")).await;
    let refused = refused.is(Code::Aborted, "SESSION_BUSY");
    assert!(refused.retry);
    refused.with("run_id", &run_id);
    let listed = keeper.list().await;
    assert_eq!(
        (listed[0].run_id.as_str(), listed[0].executions),
        (run_id.as_str(), 1)
    );
    assert_eq!(listed[0].expires, None);
    // Closing it ends the program too.
    keeper.close("a").await.unwrap();
    let is_over = |run: &ringfence::api::proto::RunInfo| run.state() == RunState::Ended;
    let run = keeper.daemon.until_run(&run_id, is_over).await;
    let Some(ringfence::api::proto::run_info::End::Result(result)) = run.end else {
        panic!("{run:?}");
    };
    assert_eq!(result.outcome(), Outcome::Cancelled);
    let lost = SessionState {
        executions: 2,
        ended: true,
    };
    assert_eq!(result.session, Some(lost));
    keeper.until_nothing_is_reserved().await;
}

#[tokio::test]
async fn a_program_that_is_stopped_ends_its_session_and_says_so() {
    let keeper = Keeper::start(&[]).await;
    let lost = Some(SessionState {
        executions: 2,
        ended: true,
    });
    for (language, outcome) in [("spin", Outcome::TimedOut), ("trap", Outcome::Trapped)] {
        let first = keeper.executed(of(language, "a")).await;
        assert_eq!(first.session, goes_on(1));
        let second = ExecutionSpec {
            timeout: Some(prost_types::Duration {
                seconds: 0,
                nanos: 300_000_000,
            }),
            ..of(language, "a")
        };
        let result = keeper.executed(second).await;
        assert_eq!((result.outcome(), result.session), (outcome, lost));
        assert_eq!(keeper.list().await, []);
        let resumes = ExecutionSpec {
            resume: true,
            ..of(language, "a")
        };
        let refused = keeper.refused(resumes.clone()).await;
        refused.is(Code::NotFound, "SESSION_NOT_FOUND");
        // The next one begins anew, and can be resumed.
        let result = keeper.executed(of(language, "a")).await;
        assert_eq!(
            (result.exit_code, result.session),
            (first.exit_code, goes_on(1))
        );
        keeper.close("a").await.unwrap();
    }
    keeper.executed(of("count", "b")).await;
    let resumed = ExecutionSpec {
        resume: true,
        ..of("count", "b")
    };
    assert_eq!(keeper.executed(resumed).await.session, goes_on(2));
    let run_id = keeper.spinning("c").await;
    let mut runs = RunServiceClient::new(channel(&keeper.daemon.addr).await);
    let request = CancelRunRequest {
        run_id: run_id.clone(),
    };
    runs.cancel_run(request).await.unwrap();
    assert_eq!(keeper.list().await.len(), 1);
}

#[tokio::test]
async fn an_unused_session_ends() {
    let keeper = Keeper::start(&[("sessions.idle_timeout", "1s")]).await;
    keeper.executed(of("count", "a")).await;
    let start = Instant::now();
    while !keeper.list().await.is_empty() {
        assert!(start.elapsed() < PATIENCE, "it stays");
        tokio::task::yield_now().await;
    }
    assert!(start.elapsed() > Duration::from_millis(500));
    keeper.until_nothing_is_reserved().await;
    let resumes = ExecutionSpec {
        resume: true,
        ..of("count", "a")
    };
    let refused = keeper.refused(resumes).await;
    refused.is(Code::NotFound, "SESSION_NOT_FOUND");
    assert_eq!(keeper.executed(of("count", "a")).await.exit_code, Some(1));
}

#[tokio::test]
async fn there_are_so_many_sessions_and_no_more() {
    let tenant = Keeper::start(&[("policy.max_sessions", "2")]).await;
    let daemon = Keeper::start(&[("sessions.max", "2")]).await;
    for (keeper, limit) in [(&tenant, "policy.max_sessions"), (&daemon, "sessions.max")] {
        keeper.executed(of("count", "a")).await;
        keeper.executed(of("count", "b")).await;
        let refused = keeper.refused(of("count", "c")).await;
        let refused = refused.is(Code::ResourceExhausted, "SESSION_LIMIT");
        refused
            .at("spec.session")
            .with("limit", limit)
            .with("allowed", 2);
        // Those that are there go on, and another may begin in place of one.
        assert_eq!(keeper.executed(of("count", "b")).await.exit_code, Some(2));
        keeper.close("a").await.unwrap();
        assert_eq!(keeper.executed(of("count", "c")).await.exit_code, Some(1));
    }
    // A session that is refused holds nothing.
    let none = Keeper::start(&[("policy.max_sessions", "0")]).await;
    let refused = none.refused(of("count", "a")).await;
    refused.is(Code::ResourceExhausted, "SESSION_LIMIT");
    assert_eq!(none.daemon.probe.reserved_bytes(), 0);
}

#[tokio::test]
async fn sessions_that_have_expired_make_room_for_others_at_once() {
    // A quarter of 64 MiB is room for one session of 200 pages.
    let mut keepers = Vec::new();
    for limit in [
        ("policy.max_sessions", "1"),
        ("sessions.max", "1"),
        ("admission.memory", "64MiB"),
    ] {
        keepers.push((
            limit.0,
            Keeper::start(&[limit, ("sessions.idle_timeout", "1s")]).await,
        ));
    }
    for name in ["a", "b", "b"] {
        for (limit, keeper) in &keepers {
            // It has expired, but nobody has looked for those.
            let start = Instant::now();
            while !keeper.list().await.is_empty() {
                assert!(start.elapsed() < PATIENCE, "it stays");
                tokio::task::yield_now().await;
            }
            let spec = ExecutionSpec {
                resources: Some(Resources {
                    memory_pages: Some(200),
                    ..Resources::default()
                }),
                ..of("count", name)
            };
            let result = keeper.executed(spec).await;
            assert_eq!(result.session, goes_on(1), "{limit}: {name}");
            let listed = keeper.list().await;
            assert_eq!((listed.len(), listed[0].name.as_str()), (1, name));
        }
    }
}

#[tokio::test]
async fn all_sessions_together_hold_a_share_of_the_memory() {
    let pages = |pages: u32| ExecutionSpec {
        resources: Some(Resources {
            memory_pages: Some(pages),
            ..Resources::default()
        }),
        ..of("count", "")
    };
    // A quarter of 64 MiB are 256 pages.
    let keeper = Keeper::start(&[("admission.memory", "64MiB")]).await;
    let named = |session: &str, spec: ExecutionSpec| ExecutionSpec {
        session: session.to_owned(),
        ..spec
    };
    keeper.executed(named("a", pages(100))).await;
    // A session holds a stack, too.
    let stack = keeper.list().await[0].memory_bytes - (100 << 16);
    let left = (156 << 16) - stack;
    let fit = u32::try_from((left - stack) >> 16).unwrap();
    let refused = keeper.refused(named("b", pages(fit + 1))).await;
    let refused = refused.is(Code::ResourceExhausted, "SESSION_LIMIT");
    assert!(refused.retry);
    refused
        .with("limit", "sessions.memory_share")
        .with("allowed", left);
    keeper.executed(named("b", pages(fit))).await;
    let refused = keeper.refused(named("c", pages(2))).await;
    refused.is(Code::ResourceExhausted, "SESSION_LIMIT");
    // It does not take from other programs what is not its.
    keeper.executed(pages(600)).await;
}

#[tokio::test]
async fn what_an_interpreter_is_started_with_cannot_change() {
    let keeper = Keeper::start(&[]).await;
    keeper.executed(of("count", "a")).await;
    let resources = |resources: Resources| ExecutionSpec {
        resources: Some(resources),
        ..of("count", "a")
    };
    let others = [
        (of("spin", "a"), "the interpreter"),
        (
            resources(Resources {
                memory_pages: Some(3),
                ..Resources::default()
            }),
            "memory_pages",
        ),
        (
            resources(Resources {
                stack_size: Some(1 << 20),
                ..Resources::default()
            }),
            "stack_size",
        ),
        (
            resources(Resources {
                fuel_limit: Some(1 << 20),
                ..Resources::default()
            }),
            "fuel_limit",
        ),
        (
            ExecutionSpec {
                profile: "hardened".to_owned(),
                ..of("count", "a")
            },
            "the real clock",
        ),
    ];
    for (spec, what) in others {
        let refused = keeper.refused(spec).await;
        let refused = refused
            .is(Code::InvalidArgument, "SPEC_INVALID")
            .at("spec.session");
        assert!(refused.message.contains(what), "{}", refused.message);
    }
    // None of them has touched the session. Time, output and labels are each program's own.
    let spec = ExecutionSpec {
        timeout: Some(prost_types::Duration {
            seconds: 7,
            nanos: 0,
        }),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        ..of("count", "a")
    };
    assert_eq!(keeper.executed(spec).await.exit_code, Some(2));
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused() {
    let keeper = Keeper::start(&[]).await;
    let wat = ExecutionSpec {
        code: "(module)".to_owned(),
        ..of("wat", "a")
    };
    for spec in [of("cat", "a"), of("wasm-like", "a"), wat] {
        let refused = keeper.refused(spec).await;
        refused
            .is(Code::InvalidArgument, "SPEC_INVALID")
            .at("spec.session");
    }
    let long = "n".repeat(129);
    for (name, reason) in [
        ("a b", "SPEC_INVALID"),
        ("\u{e9}", "SPEC_INVALID"),
        (&long, "LIMIT_ABOVE_MAXIMUM"),
    ] {
        let refused = keeper.refused(of("count", name)).await;
        refused.is(Code::InvalidArgument, reason).at("spec.session");
    }
    keeper.executed(of("count", &long[1..])).await;
    let nameless = ExecutionSpec {
        resume: true,
        ..of("count", "")
    };
    let refused = keeper.refused(nameless).await;
    refused
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("spec.resume");
}

#[tokio::test]
async fn one_of_two_tenants_leaves_sessions_to_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let languages = languages(folder.path());
    let set = [("languages", languages.as_str()), ("sessions.max", "8")];
    let (_daemon, a, b, _dir) = two("", "", &set).await;
    for number in 0..7 {
        let begun = execute(&a.executions, of("count", &number.to_string())).await;
        begun.unwrap();
    }
    let refused = execute(&a.executions, of("count", "one more")).await;
    let refused = Refused::new(&refused.unwrap_err());
    refused.is(Code::InvalidArgument, "SPEC_INVALID");
    let refused = execute(&a.executions, of("count", "more")).await;
    let refused = Refused::new(&refused.unwrap_err());
    let refused = refused.is(Code::ResourceExhausted, "SESSION_LIMIT");
    refused.with("limit", "sessions.max").with("allowed", 7);
    execute(&b.executions, of("count", "own")).await.unwrap();
}

#[tokio::test]
async fn files_of_a_session_are_its_own_and_put_all_or_none() {
    let keeper = Keeper::start(&[("server.inflight_request_bytes", "80MiB")]).await;
    let file = |path: &str, bytes: usize| File {
        path: path.to_owned(),
        data: vec![b'x'; bytes].into(),
    };
    let with = |files: Vec<File>, collect: &str| ExecutionSpec {
        files,
        collect: vec![collect.to_owned()],
        resources: Some(Resources {
            memory_pages: Some(300),
            ..Resources::default()
        }),
        ..of("count", "a")
    };
    let sizes = async |spec: ExecutionSpec| {
        let answer = keeper.execute(spec).await.unwrap();
        let sizes: Vec<usize> = answer.files.iter().map(|file| file.data.len()).collect();
        sizes
    };
    // Requests of 120 MiB in all: none is held for the few bytes that the session keeps of it.
    for number in 0..20 {
        let spec = ExecutionSpec {
            stdin: vec![0; 4 << 20].into(),
            ..with(
                vec![file("/big", 2 << 20), file(&format!("/{number}"), 5000)],
                "/big",
            )
        };
        sizes(spec).await;
    }
    assert_eq!(sizes(with(vec![file("/big", 7 << 20)], "/9")).await, [5000]);
    // A file that is sent again takes the place of the first, also where both have no room.
    for _ in 0..3 {
        sizes(with(vec![file("/big", 7 << 20)], "/big")).await;
        sizes(with(vec![file("/else", 7 << 20)], "/big")).await;
    }
    let refused = keeper
        .refused(with(vec![file("/third", 8 << 20)], "/big"))
        .await;
    let refused = refused.is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM");
    refused.at("spec.files[0]");
    // Nothing of a run that is refused is there.
    let both = vec![file("/9", 1), file("/tmp/under", 1), file("/9/under", 1)];
    let refused = keeper.execute(with(both, "/9")).await.unwrap_err();
    Refused::new(&refused).is(Code::InvalidArgument, "SPEC_INVALID");
    let below = with(vec![file("/0", 1), file("/9/under", 1)], "/9");
    let refused = keeper.refused(below).await;
    refused
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("spec.files[1]");
    assert_eq!(sizes(with(Vec::new(), "/0")).await, [5000]);
    assert_eq!(sizes(with(Vec::new(), "/9")).await, [5000]);
}

#[tokio::test]
async fn a_program_that_is_cancelled_before_it_begins_leaves_its_session() {
    let set = [("admission.slots", "1"), ("admission.max_wait", "60s")];
    let keeper = Keeper::start(&set).await;
    keeper.executed(of("count", "a")).await;
    let mut runs = RunServiceClient::new(channel(&keeper.daemon.addr).await);
    let mut done = 1;
    for _ in 0..8 {
        // It waits for the slot, and is cancelled as that comes free.
        let spinning = keeper.spinning("b").await;
        let mut waiting = keeper.executions.clone();
        let request = ExecuteRequest {
            spec: Some(of("count", "a")),
        };
        let waits = tokio::spawn(async move { waiting.execute(request).await });
        let busy = loop {
            let listed = keeper.list().await;
            let busy = listed.iter().find(|it| it.name == "a").unwrap();
            if !busy.run_id.is_empty() {
                break busy.run_id.clone();
            }
            tokio::task::yield_now().await;
        };
        let cancel = |run_id: &str| CancelRunRequest {
            run_id: run_id.to_owned(),
        };
        let mut other = runs.clone();
        let (one, both) = (cancel(&spinning), cancel(&busy));
        let (freed, cancelled) = tokio::join!(runs.cancel_run(one), other.cancel_run(both));
        freed.unwrap();
        cancelled.unwrap();
        if let Ok(answer) = waits.await.unwrap() {
            // It had begun, and may have been stopped in its last moment, which ends the session.
            let told = answer.into_inner().result.unwrap().session.unwrap();
            assert_eq!(told.executions, done + 1);
            done = if told.ended { 0 } else { told.executions };
        }
        let next = keeper.executed(of("count", "a")).await;
        assert_eq!(next.session, goes_on(done + 1));
        done += 1;
    }
}

#[tokio::test]
async fn two_tenants_sessions_of_one_name_are_two() {
    let folder = tempfile::tempdir().unwrap();
    let languages = languages(folder.path());
    let (_daemon, a, b, _dir) = two("", "", &[("languages", &languages)]).await;
    let exit_code = async |tenant: &crate::tenants::Tenant| {
        let answer = execute(&tenant.executions, of("count", "shared")).await;
        answer.unwrap().result.unwrap().exit_code
    };
    assert_eq!(exit_code(&a).await, Some(1));
    assert_eq!(exit_code(&a).await, Some(2));
    assert_eq!(exit_code(&b).await, Some(1));
    assert_eq!(list(&b.executions).await[0].executions, 1);
    let request = CloseSessionRequest {
        name: "shared".to_owned(),
    };
    b.executions.clone().close_session(request).await.unwrap();
    assert_eq!(
        (list(&b.executions).await.len(), exit_code(&a).await),
        (0, Some(3))
    );
}
