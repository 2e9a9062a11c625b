//! A set of keys at a URL, which is asked for now and then, and when a token may be of a newer key.
//!
//! Only an answer that is a set replaces the keys that are known, and one without keys revokes all. A
//! failure (no answer, an error, something else than a set) leaves them in force for a bounded time.
//! How often is asked does not depend on callers beyond one time in [`ASKED_AGAIN`], and few of them
//! wait at once.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use reqwest::redirect::Policy;
use tokio::sync::{Notify, Semaphore, watch};

use super::keys::KeySet;
use crate::config::{lacks_authorities, no_trust_store};

/// How soon keys are asked for again where they could not be had, or where a token may be of one that
/// is not known.
const ASKED_AGAIN: Duration = Duration::from_secs(10);
/// How long the answer may take, and how long it may be.
const PATIENCE: Duration = Duration::from_secs(5);
const MOST: usize = 1 << 20;
/// How much longer than that callers wait for it.
const LONGER: Duration = Duration::from_secs(1);
/// Callers that wait for it at once.
const WAITING: usize = 64;
/// Redirects that are followed for one answer, within one origin.
const REDIRECTS: usize = 3;
/// How often a failure is told again while it stays the same.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// Keys at a URL.
pub(super) struct RemoteKeys {
    url: String,
    client: reqwest::Client,
    /// How often they are asked for.
    refresh: Duration,
    /// How long those that are known stay in force while they cannot be asked for.
    max_stale: Duration,
    known: ArcSwap<Known>,
    /// What is in force where none are known, or not any more.
    none: Arc<KeySet>,
    /// Asks for the keys before it is time.
    wanted: Notify,
    /// What callers do or leave has no part in it.
    attempts: watch::Sender<Attempt>,
    waiting: Semaphore,
}

#[derive(Default)]
struct Known {
    keys: Arc<KeySet>,
    /// When they came.
    at: Option<Instant>,
}

/// When the keys were asked for last, and whether that failed.
#[derive(Clone, Copy, Debug, Default)]
struct Attempt {
    at: Option<Instant>,
    failed: bool,
}

/// What came of asking for the keys once more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refresh {
    /// They came just now.
    Done,
    /// They came a moment ago, and are asked for again after so long.
    TooSoon(Duration),
    /// They cannot be had; they are asked for again after so long.
    Failed(Duration),
    /// Too many wait for them.
    Busy,
}

impl RemoteKeys {
    pub(super) fn new(url: &str, refresh: Duration, max_stale: Duration) -> Result<Self, String> {
        let mut client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(Policy::custom(redirected))
            .no_proxy();
        if url.starts_with("http://") {
            // Nothing is encrypted, and no redirect leads to where it is: no authority is needed.
            client = client.tls_certs_only(std::iter::empty());
        }
        let client = client.build().map_err(|error| {
            let why = match lacks_authorities(&error) {
                true => no_trust_store(),
                false => told(error),
            };
            format!("auth.jwt.jwks: {why}")
        })?;
        Ok(Self {
            url: url.to_owned(),
            client,
            refresh,
            max_stale,
            known: ArcSwap::default(),
            none: Arc::default(),
            wanted: Notify::new(),
            attempts: watch::Sender::default(),
            waiting: Semaphore::new(WAITING),
        })
    }

    /// The keys that are in force.
    pub(super) fn current(&self) -> Arc<KeySet> {
        let known = self.known.load();
        match known.at {
            Some(at) if at.elapsed() <= self.max_stale => Arc::clone(&known.keys),
            Some(_) | None => Arc::clone(&self.none),
        }
    }

    /// Asks for the keys once more, unless that was done a moment ago, and waits for what comes of it.
    pub(super) async fn refreshed(&self) -> Refresh {
        let mut attempts = self.attempts.subscribe();
        let Attempt { at, failed } = *attempts.borrow();
        let left = at.and_then(|at| ASKED_AGAIN.checked_sub(at.elapsed()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            return match failed {
                true => Refresh::Failed(left),
                false => Refresh::TooSoon(left),
            };
        }
        let Ok(_waits) = self.waiting.try_acquire() else {
            return Refresh::Busy;
        };
        // It is asked beside the callers: none of them can keep the others from the answer by leaving.
        self.wanted.notify_one();
        let answered = tokio::time::timeout(PATIENCE + LONGER, attempts.changed()).await;
        match answered {
            Ok(Ok(())) if !attempts.borrow().failed => Refresh::Done,
            Ok(Ok(()) | Err(_)) | Err(_) => Refresh::Failed(ASKED_AGAIN),
        }
    }

    /// Has the URL asked once more, not sooner than it may be.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Asks now and then, and where somebody wants it.
    pub(super) async fn watch(&self) -> ! {
        let mut told: Option<(String, Instant)> = None;
        loop {
            let fetched = self.fetch().await;
            let failed = fetched.is_err();
            let rest = match fetched {
                Ok(keys) => {
                    told = None;
                    self.take(keys);
                    self.refresh
                }
                Err(error) => {
                    self.complain(error, &mut told);
                    self.refresh.min(ASKED_AGAIN)
                }
            };
            self.attempts.send_replace(Attempt {
                at: Some(Instant::now()),
                failed,
            });
            let again = tokio::time::sleep(ASKED_AGAIN);
            let wanted = async {
                self.wanted.notified().await;
                // Not sooner than that, however much it is wanted.
                again.await;
            };
            let _ = tokio::time::timeout(rest, wanted).await;
        }
    }

    fn take(&self, keys: KeySet) {
        if keys.is_empty() {
            tracing::error!("auth.jwt.jwks has no key that can be used: no JWT is valid");
        } else if keys.skipped() > 0 {
            tracing::debug!(
                skipped = keys.skipped(),
                "keys of auth.jwt.jwks are passed over"
            );
        }
        self.known.store(Arc::new(Known {
            keys: Arc::new(keys),
            at: Some(Instant::now()),
        }));
    }

    /// Tells a failure that is new, or told long ago.
    fn complain(&self, error: String, told: &mut Option<(String, Instant)>) {
        if let Some((before, at)) = told
            && *before == error
            && at.elapsed() < TOLD_AGAIN
        {
            return;
        }
        let left = self.known.load().at.map(|at| {
            let left = self.max_stale.saturating_sub(at.elapsed());
            left.as_secs()
        });
        match left {
            Some(left @ 1..) => tracing::error!(
                error,
                "auth.jwt.jwks cannot be read; the keys that are known stay in force for {left} s"
            ),
            Some(0) | None => tracing::error!(
                error,
                "auth.jwt.jwks cannot be read, and no key is in force: no JWT is valid"
            ),
        }
        *told = Some((error, Instant::now()));
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let mut answer = self.client.get(&self.url).send().await.map_err(told)?;
        if !answer.status().is_success() {
            return Err(format!("the answer is {}", answer.status()));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(told)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MOST {
                return Err(format!("the answer is longer than {MOST} bytes"));
            }
        }
        KeySet::parse(&bytes).map_err(|error| format!("the answer {error}"))
    }
}

/// An error with its causes. The URL may hold a secret.
fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Follows redirects within the origin that was configured, scheme and port included: whoever may
/// answer for that may say where on it the keys are. Another origin is for the operator to name.
fn redirected(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let origin = attempt.url().origin();
    let first = attempt.previous().first().map(url::Url::origin);
    if first.as_ref() != Some(&origin) {
        let to = origin.ascii_serialization();
        return attempt.error(format!(
            "it redirects to another origin, {to}, which is not followed: set auth.jwt.jwks to the URL that answers"
        ));
    }
    if attempt.previous().len() > REDIRECTS {
        return attempt.error(format!("it redirects more than {REDIRECTS} times"));
    }
    attempt.follow()
}
