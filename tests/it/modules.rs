//! The life of modules that are kept: uploads, listings, deletion, what many callers share.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use ringfence::api::proto::upload_module_request::Frame;
use ringfence::api::proto::{
    DeleteModuleRequest, GetModuleRequest, ListModulesRequest, ModuleInfo, ModuleKind,
    UploadModuleRequest, UploadModuleResponse, UploadStart,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::guests;
use crate::harness::{Daemon, Modules, Refused, SpecExt, by_digest, kit, load, spec, until};

const INVALID: Code = Code::InvalidArgument;
const MIB: usize = 1 << 20;

/// A module that says `text`, of `size` bytes.
pub(crate) fn saying(text: &str, size: usize) -> Vec<u8> {
    let length = text.len();
    let module = format!(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
             (memory (export "memory") 1) (data (i32.const 16) "{text}")
             (func (export "_start")
               (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const {length}))
               (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#
    );
    let padding = size.saturating_sub(module.len());
    format!("{module}{}", " ".repeat(padding)).into_bytes()
}

pub(crate) fn frame(frame: Frame) -> UploadModuleRequest {
    UploadModuleRequest { frame: Some(frame) }
}

fn start() -> UploadModuleRequest {
    frame(Frame::Start(UploadStart::default()))
}

fn chunk(bytes: impl Into<Bytes>) -> UploadModuleRequest {
    frame(Frame::Chunk(bytes.into()))
}

/// Uploads frames that are all there.
async fn upload(
    modules: &mut Modules,
    frames: Vec<UploadModuleRequest>,
) -> Result<UploadModuleResponse, Status> {
    let answer = modules.upload_module(tokio_stream::iter(frames)).await?;
    Ok(answer.into_inner())
}

async fn refused(modules: &mut Modules, frames: Vec<UploadModuleRequest>) -> Refused {
    Refused::new(&upload(modules, frames).await.unwrap_err())
}

async fn all(modules: &mut Modules) -> Vec<ModuleInfo> {
    let answer = modules.list_modules(ListModulesRequest::default()).await;
    answer.unwrap().into_inner().modules
}

fn files_in(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test]
async fn an_upload_is_put_together_kept_and_run() {
    let spool = tempfile::tempdir().unwrap();
    let daemon = Daemon::with(&[("store.spool", spool.path().to_str().unwrap())]).await;
    let mut modules = daemon.modules().await;
    // In memory and, past a mebibyte, in a file.
    for size in [MIB - 1, MIB, MIB + 1, 3 * MIB] {
        let module = saying(&format!("{size}"), size);
        let digest = ringfence::model::request::Digest::of(&module);
        let labels = HashMap::from([("size".to_owned(), size.to_string())]);
        let mut frames = vec![frame(Frame::Start(UploadStart {
            name: "said".to_owned(),
            metered: true,
            labels: labels.clone(),
            digest: digest.to_string(),
        }))];
        frames.extend(module.chunks(100_000).map(|piece| chunk(piece.to_vec())));
        let answer = upload(&mut modules, frames.clone()).await.unwrap();
        assert!(!answer.cached && answer.compile_duration.is_some());
        let told = answer.module.unwrap();
        assert_eq!((told.digest, told.labels), (digest.to_string(), labels));
        assert_eq!((told.name.as_str(), told.size), ("said", size as u64));
        assert_eq!(told.cached_in, ["memory"]);
        for fuel in [0, 1_000_000] {
            let run = by_digest(&digest.to_string()).resources(|r| r.fuel_limit = Some(fuel));
            assert_eq!(daemon.ran(run).await.exited(0).out(), size.to_string());
        }
        // Both variants were compiled by the upload.
        assert!(upload(&mut modules, frames).await.unwrap().cached);
    }
    assert_eq!(files_in(spool.path()), 0);
}

#[tokio::test]
async fn uploads_that_are_none_are_refused() {
    let daemon = Daemon::with(&[("compile.max_module", "4KiB")]).await;
    let modules = &mut daemon.modules().await;
    let hello = || saying("hello", 0);
    for frames in [
        vec![],
        vec![chunk(hello())],
        vec![start(), start(), chunk(hello())],
        vec![start(), UploadModuleRequest { frame: None }],
    ] {
        refused(modules, frames)
            .await
            .is(INVALID, "MALFORMED_REQUEST");
    }
    for frames in [vec![start()], vec![start(), chunk("")]] {
        refused(modules, frames)
            .await
            .is(INVALID, "SPEC_INVALID")
            .at("chunk");
    }
    let named = |digest: &str, name: &str| {
        let (digest, name) = (digest.to_owned(), name.to_owned());
        let start = UploadStart {
            digest,
            name,
            ..UploadStart::default()
        };
        vec![frame(Frame::Start(start)), chunk(hello())]
    };
    refused(modules, named("sha256:12", ""))
        .await
        .is(INVALID, "SPEC_INVALID")
        .at("start.digest");
    refused(modules, named("", "line\nbreak"))
        .await
        .is(INVALID, "SPEC_INVALID")
        .at("start.name");
    let other = format!("sha256:{}", "0".repeat(64));
    refused(modules, named(&other, ""))
        .await
        .is(INVALID, "DIGEST_MISMATCH")
        .with("asked", other)
        .with("found", ringfence::model::request::Digest::of(&hello()));
    for (size, fits) in [(4095, true), (4096, true), (4097, false)] {
        let frames = vec![start(), chunk(saying("x", size))];
        match upload(modules, frames).await {
            Ok(_) => assert!(fits),
            Err(status) => {
                assert!(!fits);
                let refused = Refused::new(&status)
                    .is(INVALID, "MODULE_TOO_LARGE")
                    .at("chunk")
                    .with("asked", 4097)
                    .with("allowed", 4096)
                    .with("limit", "compile.max_module");
                // There may be more of it.
                assert!(refused.message.contains("4097 bytes have come so far"));
            }
        }
    }
    // Of one that goes on, what has come is told; of one that is there, what it has.
    let mut frames = vec![start()];
    frames.extend((0..9).map(|_| chunk(vec![b' '; 1000])));
    let endless = refused_for_size(upload(modules, frames).await.unwrap_err());
    assert_eq!(endless.metadata["asked"], "5000");
    assert!(endless.message.contains("5000 bytes have come so far"));
    for size in [5000, 9000] {
        let status = daemon.load(saying("x", size)).await.unwrap_err();
        let large = refused_for_size(status);
        assert_eq!(large.metadata["asked"], size.to_string());
        let whole = format!("the module of {size} bytes is above the maximum of 4096");
        assert!(large.message.starts_with(&whole), "{}", large.message);
    }
    refused(modules, vec![start(), chunk("no module")])
        .await
        .is(INVALID, "MODULE_INVALID");
    assert_eq!(all(modules).await.len(), 2);
}

fn refused_for_size(status: Status) -> Refused {
    Refused::new(&status)
        .is(INVALID, "MODULE_TOO_LARGE")
        .with("allowed", 4096)
        .with("limit", "compile.max_module")
}

#[tokio::test]
async fn a_chunk_is_at_most_a_mebibyte() {
    let daemon = Daemon::start().await;
    let modules = &mut daemon.modules().await;
    for size in [MIB - 1, MIB] {
        let frames = vec![start(), chunk(saying("x", size))];
        upload(modules, frames).await.unwrap();
    }
    refused(modules, vec![start(), chunk(saying("x", MIB + 1))])
        .await
        .is(INVALID, "LIMIT_ABOVE_MAXIMUM")
        .at("chunk");
    refused(modules, vec![start(), chunk(vec![0; 2 * MIB])])
        .await
        .is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing_and_gives_its_place_back() {
    let spool = tempfile::tempdir().unwrap();
    let daemon = Daemon::with(&[
        ("store.uploads", "1"),
        ("store.spool", spool.path().to_str().unwrap()),
    ])
    .await;
    let mut modules = daemon.modules().await;
    let (frames, sent) = mpsc::channel(1);
    let mut other = daemon.modules().await;
    let going =
        tokio::spawn(async move { other.upload_module(ReceiverStream::new(sent)).await.err() });
    frames.send(start()).await.unwrap();
    // More than fits in memory, and a module at every boundary: a stream that is reset is no stream that has ended.
    frames.send(chunk(saying("first", 0))).await.unwrap();
    for _ in 0..3 {
        frames.send(chunk(vec![b' '; MIB])).await.unwrap();
    }
    // Where the machine is busy it has yet to arrive.
    until(&daemon, |_, _| daemon.probe.uploads() == 1).await;
    // While it goes on there is no place for another.
    let again = || vec![start(), chunk(saying("second", 0))];
    let full = refused(&mut modules, again())
        .await
        .is(Code::ResourceExhausted, "QUEUE_FULL");
    assert!(full.retry);
    // Its caller leaves: the stream is reset, not ended.
    going.abort();
    assert!(going.await.unwrap_err().is_cancelled());
    loop {
        match upload(&mut modules, again()).await {
            Ok(_) => break,
            Err(status) => assert_eq!(Refused::new(&status).reason, "QUEUE_FULL"),
        }
        tokio::task::yield_now().await;
    }
    let kept = all(&mut modules).await;
    let second = ringfence::model::request::Digest::of(&saying("second", 0)).to_string();
    assert_eq!((kept.len(), &kept[0].digest), (1, &second));
    assert_eq!(files_in(spool.path()), 0);
}

#[tokio::test]
async fn a_module_that_says_much_of_itself_is_kept_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    // A type of 2,000 values under 480 names: a few kilobytes that would be megabytes if it were told in full.
    let exports: String = (0..480)
        .map(|i| format!("(export \"{i}\" (func 0))"))
        .collect();
    let values = "i64 ".repeat(1000);
    let module = wat::parse_str(format!(
        "(module (func (param {values}) (result {values}) unreachable) (func (export \"_start\")) {exports})"
    ));
    let module = module.unwrap();
    let daemon = Daemon::with(&[("store.url", &url)]).await;
    let digest = daemon.loaded(module).await;
    let mut again = Daemon::with(&[("store.url", &url)]).await;
    again.ran(by_digest(&digest)).await.exited(0);
    let get = GetModuleRequest { digest };
    let told = again.modules().await.get_module(get).await.unwrap();
    let exports = told.into_inner().module.unwrap().exports;
    assert_eq!(exports.len(), 481);
    assert!(exports.iter().all(|export| export.r#type.len() < 200));
    again.drain();
    again.ended().await.unwrap();
}

#[tokio::test]
async fn modules_are_listed_by_page_and_label_in_order() {
    let daemon = Daemon::start().await;
    let modules = &mut daemon.modules().await;
    let mut expected = Vec::new();
    for i in 0..25 {
        let mut request = load(saying(&format!("{i}"), 0));
        request.name = format!("module {i}");
        let labels = [
            ("parity".to_owned(), (i % 2).to_string()),
            ("all".to_owned(), String::new()),
        ];
        request.labels = labels.into_iter().collect();
        let answer = daemon.client.clone().load_module(request).await.unwrap();
        expected.push(answer.into_inner().module.unwrap());
    }
    expected.sort_by(|a, b| a.digest.cmp(&b.digest));
    for (page_size, parity) in [
        (0, None),
        (1, None),
        (7, None),
        (1000, None),
        (4, Some("1")),
    ] {
        let mut request = ListModulesRequest {
            page_size,
            page_token: String::new(),
            labels: parity
                .map(|parity| ("parity".to_owned(), parity.to_owned()))
                .into_iter()
                .collect(),
        };
        let mut listed = Vec::new();
        loop {
            let page = modules.list_modules(request.clone()).await.unwrap();
            let page = page.into_inner();
            assert!(page_size == 0 || page.modules.len() <= page_size as usize);
            listed.extend(page.modules);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let told: Vec<_> = listed.iter().map(|m| (&m.digest, &m.name)).collect();
        let wanted: Vec<_> = expected
            .iter()
            .filter(|m| parity.is_none_or(|parity| m.labels["parity"] == parity))
            .map(|m| (&m.digest, &m.name))
            .collect();
        assert_eq!(told, wanted, "pages of {page_size}");
        assert!(listed.iter().all(|m| m.exports.is_empty() && m.size > 0));
    }
    let refused = |request| {
        let mut modules = modules.clone();
        async move { Refused::new(&modules.list_modules(request).await.unwrap_err()) }
    };
    let too_many = ListModulesRequest {
        page_size: 1001,
        ..ListModulesRequest::default()
    };
    refused(too_many)
        .await
        .is(INVALID, "LIMIT_ABOVE_MAXIMUM")
        .at("page_size");
    let bad_token = ListModulesRequest {
        page_token: "../x".to_owned(),
        ..ListModulesRequest::default()
    };
    refused(bad_token)
        .await
        .is(INVALID, "SPEC_INVALID")
        .at("page_token");
}

#[tokio::test]
async fn a_module_is_described_and_deleted_and_what_runs_keeps_it() {
    let daemon = Daemon::start().await;
    let modules = &mut daemon.modules().await;
    let digest = daemon.loaded(guests::kit()).await;
    let get = GetModuleRequest {
        digest: digest.clone(),
    };
    let told = modules.get_module(get.clone()).await.unwrap().into_inner();
    let told = told.module.unwrap();
    assert_eq!(told.kind(), ModuleKind::Core);
    assert!(told.exports.iter().any(|export| export.name == "_start"));
    assert!(told.imports.iter().any(|import| import.name == "fd_write"));
    let before = told.last_used.unwrap();

    // More than is buffered on the way: it waits for its reader while its module is deleted.
    const FLOOD: usize = 20_000_000;
    let run = by_digest(&digest).args(&["kit", "flood", &FLOOD.to_string()]);
    let stream = daemon.stream(run).await.unwrap();
    let used = modules.get_module(get.clone()).await.unwrap().into_inner();
    let used = used.module.unwrap().last_used.unwrap();
    assert!((used.seconds, used.nanos) > (before.seconds, before.nanos));
    let delete = || DeleteModuleRequest {
        digest: digest.clone(),
    };
    for deleted in [true, false] {
        let answer = modules.delete_module(delete()).await.unwrap();
        assert_eq!(answer.into_inner().deleted, deleted);
    }
    let story = crate::harness::read(stream).await;
    assert_eq!(story.exit.unwrap().exit_code, Some(0));
    assert_eq!(story.stdout.len(), FLOOD);

    daemon
        .refused(by_digest(&digest))
        .await
        .is(Code::NotFound, "MODULE_NOT_FOUND");
    let gone = modules.get_module(get).await.unwrap_err();
    Refused::new(&gone).is(Code::NotFound, "MODULE_NOT_FOUND");
    assert!(all(modules).await.is_empty());
    let bad = DeleteModuleRequest {
        digest: "sha256:".to_owned(),
    };
    let bad = modules.delete_module(bad).await.unwrap_err();
    Refused::new(&bad).is(INVALID, "SPEC_INVALID").at("digest");
    // Nothing of it is left to be found by anybody who still knows the digest.
    assert!(!daemon.load(guests::kit()).await.unwrap().cached);
}

#[tokio::test]
async fn a_module_sent_with_a_run_is_cached_and_not_kept() {
    let daemon = Daemon::start().await;
    let ran = daemon.ran(kit(&["hello"])).await.exited(0);
    daemon
        .refused(by_digest(&ran.result.module_digest))
        .await
        .is(Code::NotFound, "MODULE_NOT_FOUND");
    assert!(all(&mut daemon.modules().await).await.is_empty());
    let compiled = daemon.probe.compilations();
    daemon.ran(kit(&["hello"])).await.exited(0);
    assert_eq!(daemon.probe.compilations(), compiled);
}

#[tokio::test]
async fn many_callers_of_one_new_module_share_one_compilation() {
    let daemon = Daemon::start().await;
    let before = daemon.probe.compilations();
    let mut calls = Vec::new();
    for _ in 0..64 {
        let mut client = crate::harness::connect(&daemon.addr).await;
        calls.push(tokio::spawn(async move {
            client.load_module(load(guests::kit())).await
        }));
    }
    // Whoever came first leaves, and so do some others.
    for call in &calls[..8] {
        call.abort();
    }
    let mut digests = Vec::new();
    for call in calls {
        if let Ok(answer) = call.await {
            digests.push(answer.unwrap().into_inner().module.unwrap().digest);
        }
    }
    assert!(digests.len() >= 56);
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    assert_eq!(daemon.probe.compilations(), before + 1);
    let run = by_digest(&digests[0]).args(&["kit", "hello"]);
    daemon.ran(run).await.exited(0);
}

#[tokio::test]
async fn the_store_takes_what_its_budget_says_and_evicts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = format!("file://{}", dir.path().display());
    for url in ["memory:", &folder] {
        let daemon = Daemon::with(&[("store.url", url), ("store.budget", "1MiB")]).await;
        let modules = &mut daemon.modules().await;
        let half = daemon.loaded(saying("half", MIB / 2)).await;
        let name = url.split_once(':').unwrap().0;
        let over = |size: usize| {
            let module = saying("over", size);
            let daemon = &daemon;
            async move {
                let status = daemon.load(module).await.unwrap_err();
                let full = Refused::new(&status)
                    .is(Code::ResourceExhausted, "STORE_FULL")
                    .with("store", format!("{name}:"));
                let number = |key: &str| full.metadata[key].parse::<usize>().unwrap();
                // What was asked, what there is, and what of that is used and left.
                assert_eq!(number("budget"), MIB);
                assert_eq!(number("used") + number("allowed"), MIB);
                for key in ["asked", "budget", "used", "allowed", "limit"] {
                    let told = &full.metadata[key];
                    assert!(full.message.contains(told), "{key} in {}", full.message);
                }
                assert_eq!(full.metadata["limit"], "store.budget");
                (number("asked"), number("allowed"))
            }
        };
        // A module takes its bytes, and something for what is known of it.
        let (asked, allowed) = over(MIB / 2).await;
        // Nothing of what was loaded, named anew and deleted in between is still counted, or counted as gone.
        for _ in 0..3 {
            for labels in [0, 32, 0] {
                let mut request = load(saying("relabelled", 0));
                request.labels = (0..labels)
                    .map(|i| (format!("{i}"), "x".repeat(100)))
                    .collect();
                daemon.client.clone().load_module(request).await.unwrap();
            }
            let digest =
                ringfence::model::request::Digest::of(&saying("relabelled", 0)).to_string();
            let delete = DeleteModuleRequest { digest };
            modules.delete_module(delete).await.unwrap();
        }
        assert_eq!(over(MIB / 2).await, (asked, allowed));
        assert!(asked > MIB / 2 && asked < MIB / 2 + 4096, "{asked}");
        let fits = MIB / 2 - (asked - allowed);
        assert_eq!(over(fits + 1).await, (allowed + 1, allowed));
        let other = daemon.loaded(saying("over", fits)).await;
        for digest in [&half, &other] {
            daemon.ran(by_digest(digest)).await.exited(0);
        }
        // What is there already takes no more room, and what is deleted gives it back.
        daemon.loaded(saying("half", MIB / 2)).await;
        over(MIB / 2).await;
        let delete = DeleteModuleRequest { digest: half };
        modules.delete_module(delete).await.unwrap();
        daemon.loaded(saying("new", MIB / 2 - 1)).await;
        assert_eq!(all(modules).await.len(), 2);
    }
}

#[tokio::test]
async fn a_small_cache_under_many_modules_stays_within_its_budget() {
    const MODULES: u32 = 10_000;
    const BUDGET: u64 = 64 << 20;
    // In this process: it is the cache that is looked at, and not ten thousand processes.
    let daemon = Daemon::with(&[
        ("engine.cache_budget", "64MiB"),
        ("compile.mode", "in-process"),
        ("compile.concurrency", "2"),
    ])
    .await;
    let module = |i: u32| {
        let text = format!(
            r#"(module (memory 1) (func (export "f") (result i32) (i32.add (i32.const {i}) (i32.const 1))))"#
        );
        wat::parse_str(text).unwrap()
    };
    let mut most = 0;
    for first in (0..MODULES).step_by(50) {
        let runs = (first..first + 50).map(|i| {
            let daemon = &daemon;
            async move {
                let ran = daemon.ran(spec(module(i)).entry("f")).await.exited(0);
                let value = ran.result.values[0].value.unwrap();
                let right = i32::try_from(i + 1).unwrap();
                assert_eq!(value, ringfence::api::proto::value::Value::I32(right));
            }
        });
        futures_util::future::join_all(runs).await;
        most = most.max(daemon.probe.cached_bytes());
        assert!(most <= BUDGET, "{most}");
    }
    // It was full: what went was compiled again when it was asked for again.
    assert!(most > BUDGET / 2, "{most}");
    let compiled = daemon.probe.compilations();
    assert!(compiled > u64::from(MODULES));
    daemon.ran(spec(module(0)).entry("f")).await.exited(0);
    assert_eq!(daemon.probe.compilations(), compiled + 1);
}
