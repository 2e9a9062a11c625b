//! A key set at a URL, cached with periodic refresh. It is also fetched when a token may be signed
//! by a newer key; all callers that wait then share one fetch (single flight).
//!
//! Only an answer that is a key set replaces the keys that are known, and one without keys revokes
//! all of them. A failure (no answer, an error, something else than a set) leaves the known keys in
//! force for a bounded time. Callers can cause at most one fetch in [`MIN_REFRESH_INTERVAL`], and
//! few of them wait at once.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use reqwest::redirect::Policy;
use tokio::sync::{Notify, Semaphore, watch};

use super::keys::{KeySet, NotAKeySet};
use crate::trust_store::{NoTrustStore, lacks_authorities, no_trust_store};

/// The least time between two fetches: how soon the keys are fetched again after a failure, or when
/// a token may be signed by an unknown key.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// How long a fetch may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer that is accepted, in bytes.
const MOST: usize = 1 << 20;
/// How much longer than [`PATIENCE`] callers wait for a fetch.
const LONGER: Duration = Duration::from_secs(1);
/// The most callers that wait for a fetch at once.
const WAITING: usize = 64;
/// The most redirects that are followed for one fetch, all within one origin.
const REDIRECTS: usize = 3;
/// How often a failure is logged again while it stays the same.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// The cache of a key set at a URL.
pub(super) struct RemoteKeys {
    url: String,
    client: reqwest::Client,
    /// How often the keys are fetched.
    refresh: Duration,
    /// How long the known keys stay in force while they cannot be fetched.
    max_stale: Duration,
    cached: ArcSwap<FetchedKeys>,
    /// The empty set, which is in force if no keys are known, or they are too old.
    none: Arc<KeySet>,
    /// Requests a fetch before its time.
    refresh_requested: Notify,
    /// Publishes each attempt to fetch. Callers only read it, so none of them can affect an
    /// attempt.
    attempts: watch::Sender<Attempt>,
    waiting: Semaphore,
}

/// The keys that were fetched last.
#[derive(Default)]
struct FetchedKeys {
    keys: Arc<KeySet>,
    /// When the keys were received; `None` if they never were.
    at: Option<Instant>,
}

/// The last attempt to fetch the keys: when it ended, and whether it failed.
#[derive(Clone, Copy, Debug, Default)]
struct Attempt {
    at: Option<Instant>,
    failed: bool,
}

/// The outcome of a request to fetch the keys again.
#[derive(Clone, Copy, Debug)]
pub(super) enum RefreshOutcome {
    /// The keys were fetched just now.
    Done,
    /// The keys were fetched a moment ago; they can be fetched again after this time.
    TooSoon(Duration),
    /// The keys cannot be fetched; another attempt is made after this time.
    Failed(Duration),
    /// Too many callers are waiting for a fetch already.
    Busy,
}

/// Why the URL's client cannot be created.
#[derive(Debug, thiserror::Error)]
#[error("auth.jwt.jwks: {0}")]
pub enum RemoteKeysError {
    /// The host has no certificate authorities.
    NoTrustStore(#[source] NoTrustStore),
    /// The client cannot be created for another reason.
    Client(#[source] HttpError),
}

/// The error of an HTTP client, formatted with its causes but without the URL, which may hold a
/// secret.
#[derive(Debug)]
pub struct HttpError(reqwest::Error);

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        Self(error.without_url())
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl Error for HttpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Why the keys were not fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("the answer is {0}")]
    Status(reqwest::StatusCode),
    #[error("the answer is longer than {MOST} bytes")]
    TooLong,
    #[error("the answer {0}")]
    Malformed(#[from] NotAKeySet),
}

impl RemoteKeys {
    /// Creates the cache, with an HTTP client and without keys. [`Self::watch`] fetches them.
    pub(super) fn new(
        url: &str,
        refresh: Duration,
        max_stale: Duration,
    ) -> Result<Self, RemoteKeysError> {
        let mut client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(Policy::custom(redirected))
            .no_proxy();
        if url.starts_with("http://") {
            // Nothing is encrypted, and no redirect leads to another scheme: no trust store is
            // needed.
            client = client.tls_certs_only(std::iter::empty());
        }
        let client = client
            .build()
            .map_err(|error| match lacks_authorities(&error) {
                true => RemoteKeysError::NoTrustStore(no_trust_store()),
                false => RemoteKeysError::Client(error.into()),
            })?;
        Ok(Self {
            url: url.to_owned(),
            client,
            refresh,
            max_stale,
            cached: ArcSwap::default(),
            none: Arc::default(),
            refresh_requested: Notify::new(),
            attempts: watch::Sender::default(),
            waiting: Semaphore::new(WAITING),
        })
    }

    /// Returns the keys that are in force, which is none if the last ones are too old.
    pub(super) fn current(&self) -> Arc<KeySet> {
        let known = self.cached.load();
        match known.at {
            Some(at) if at.elapsed() <= self.max_stale => Arc::clone(&known.keys),
            Some(_) | None => Arc::clone(&self.none),
        }
    }

    /// Requests a fetch, unless one was made a moment ago, and waits for its outcome.
    pub(super) async fn refresh_and_wait(&self) -> RefreshOutcome {
        let mut attempts = self.attempts.subscribe();
        let Attempt { at, failed } = *attempts.borrow();
        let left = at.and_then(|at| MIN_REFRESH_INTERVAL.checked_sub(at.elapsed()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            return match failed {
                true => RefreshOutcome::Failed(left),
                false => RefreshOutcome::TooSoon(left),
            };
        }
        let Ok(_waits) = self.waiting.try_acquire() else {
            return RefreshOutcome::Busy;
        };
        // The fetch runs apart from the callers: no caller that leaves can keep the answer from the
        // others.
        self.refresh_requested.notify_one();
        let answered = tokio::time::timeout(PATIENCE + LONGER, attempts.changed()).await;
        match answered {
            Ok(Ok(())) if !attempts.borrow().failed => RefreshOutcome::Done,
            Ok(Ok(()) | Err(_)) | Err(_) => RefreshOutcome::Failed(MIN_REFRESH_INTERVAL),
        }
    }

    /// Requests a fetch without waiting for it; it is made no sooner than the least interval
    /// allows.
    pub(super) fn want(&self) {
        self.refresh_requested.notify_one();
    }

    /// Fetches the keys periodically and on request, for as long as it is polled.
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
                    self.complain(error.to_string(), &mut told);
                    self.refresh.min(MIN_REFRESH_INTERVAL)
                }
            };
            self.attempts.send_replace(Attempt {
                at: Some(Instant::now()),
                failed,
            });
            let again = tokio::time::sleep(MIN_REFRESH_INTERVAL);
            let wanted = async {
                self.refresh_requested.notified().await;
                // However often it is requested, the next fetch is not made before the least
                // interval is over.
                again.await;
            };
            let _ = tokio::time::timeout(rest, wanted).await;
        }
    }

    /// Puts fetched keys in force, and logs if some or all of them are unusable.
    fn take(&self, keys: KeySet) {
        if keys.is_empty() {
            tracing::error!("auth.jwt.jwks has no key that can be used: no JWT is valid");
        } else if keys.skipped() > 0 {
            tracing::debug!(
                skipped = keys.skipped(),
                "keys of auth.jwt.jwks are passed over"
            );
        }
        self.cached.store(Arc::new(FetchedKeys {
            keys: Arc::new(keys),
            at: Some(Instant::now()),
        }));
    }

    /// Logs a failure if it is new, or was last logged long ago.
    fn complain(&self, error: String, told: &mut Option<(String, Instant)>) {
        if let Some((before, at)) = told
            && *before == error
            && at.elapsed() < TOLD_AGAIN
        {
            return;
        }
        let left = self.cached.load().at.map(|at| {
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

    /// Fetches and parses the key set once.
    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let answer = self.client.get(&self.url).send().await;
        let mut answer = answer.map_err(HttpError::from)?;
        if !answer.status().is_success() {
            return Err(FetchError::Status(answer.status()));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(HttpError::from)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MOST {
                return Err(FetchError::TooLong);
            }
        }
        Ok(KeySet::parse(&bytes)?)
    }
}

/// Follows redirects within the configured origin, scheme and port included: whoever may answer for
/// that origin may say where on it the keys are. Another origin is for the operator to name.
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
