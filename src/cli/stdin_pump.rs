//! Live input for a guest: it is read when the guest waits for it, and not before.
//!
//! The daemon tells when the guest waits, and for how much (`stdin_demand`). So a guest that reads
//! nothing takes nothing from whoever reads the same input after this command, as in `while read
//! line; do ringfence run x.wasm; done`. A file is read further ahead, and the rest is given back
//! at the end. From any other source, exactly what is demanded is read at first, and later about as
//! much again as the guest has read, so that large input needs few round trips.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, mpsc as threads};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::Failure;
use super::stdin_source::StdinSource;
use crate::api::proto::interact_request::Frame;
use crate::api::proto::{InteractRequest, StdinDemand, StdinEof, TellStdinDemand};
use crate::sandbox::MAX_STDIN_CHUNK;
use crate::sync::lock;

/// Most bytes of a file that are read for one demand.
const AHEAD_OF_FILE: u64 = 1 << 20;
/// Most bytes that are read ahead from any other source for one demand.
const AHEAD_OF_PIPE: u64 = 256 << 10;
/// Number of demands up to which the guest gets exactly what it asks for, as long as it has read
/// less than [`EXACT_BYTES`]. A guest that leaves the input that it does not want reads little at a
/// time. Beyond that, saving round trips matters more.
const EXACT_DEMANDS: u32 = 64;
/// Bytes that a guest may read before demands are no longer met exactly.
const EXACT_BYTES: u64 = 4 << 10;
/// Capacity of the message channel: the first two messages are queued before anybody receives them.
const MESSAGES: usize = 2;

/// Feeds input to the guest of an interaction, for as long as the run goes on.
pub(super) struct StdinPump {
    demands: threads::Sender<StdinDemand>,
    taken: Arc<PumpedInput>,
    broken: Option<oneshot::Receiver<BrokenInput>>,
}

/// What the feeding thread leaves when it cannot read its source.
struct BrokenInput {
    error: io::Error,
    /// Keeps the messages open until the failure is told: their end would be the end of the input
    /// to the guest, which could then end well before this command has said what is wrong.
    _messages: mpsc::Sender<InteractRequest>,
}

/// The source of the input, and how much has been taken from it.
struct PumpedInput {
    source: StdinSource,
    state: Mutex<PumpState>,
}

#[derive(Default)]
struct PumpState {
    bytes: u64,
    demands: u32,
    /// Whether the run has ended, so that nothing more may be taken from the source.
    over: bool,
}

/// Whether there may be more input.
#[derive(PartialEq, Eq)]
enum FeedState {
    Open,
    Ended,
}

impl StdinPump {
    /// Creates the pump for a run that `first` starts, and returns it with the messages of the
    /// interaction.
    pub(super) fn start(
        first: Frame,
        source: StdinSource,
    ) -> Result<(Self, ReceiverStream<InteractRequest>), Failure> {
        let (say, said) = mpsc::channel(MESSAGES);
        for frame in [first, Frame::TellStdinDemand(TellStdinDemand {})] {
            // The channel has room for both messages.
            let _ = say.try_send(InteractRequest { frame: Some(frame) });
        }
        let (demands, demanded) = threads::channel();
        let (tell_broken, broken) = oneshot::channel();
        let taken = Arc::new(PumpedInput {
            source,
            state: Mutex::default(),
        });
        let feeds = Arc::clone(&taken);
        // The source has a thread of its own, because nothing else can wait for a terminal and be
        // left behind when the run has ended.
        let thread = std::thread::Builder::new().name("stdin".to_owned());
        let started = thread.spawn(move || {
            for demand in demanded {
                match feeds.feed(&demand, &say) {
                    Ok(FeedState::Open) => {}
                    Ok(FeedState::Ended) => break,
                    Err(error) => {
                        let _messages = say;
                        let _ = tell_broken.send(BrokenInput { error, _messages });
                        return;
                    }
                }
            }
        });
        started.map_err(|error| Failure::new(format!("cannot start threads: {error}")))?;
        let pump = Self {
            demands,
            taken,
            broken: Some(broken),
        };
        Ok((pump, ReceiverStream::new(said)))
    }

    /// Passes on what the guest waits for, as soon as it is there.
    pub(super) fn demand(&self, demand: StdinDemand) {
        // Nobody receives demands after the end of the input.
        let _ = self.demands.send(demand);
    }

    /// Ends the feeding. Of a file, what was taken but not read by the guest, which has read `read`
    /// bytes, is given back.
    pub(super) fn finish(&self, read: u64) {
        let mut state = self.taken.lock();
        state.over = true;
        let source = &self.taken.source;
        source.give_back(state.bytes.saturating_sub(read));
    }

    /// Returns a future that resolves with the failure if the input cannot be read. It may be taken
    /// once; a second one never resolves.
    pub(super) fn take_broken(&mut self) -> impl Future<Output = Failure> + use<> {
        let (broken, taken) = (self.broken.take(), Arc::clone(&self.taken));
        async move {
            if let Some(broken) = broken
                && let Ok(broken) = broken.await
            {
                return taken.source.unreadable(&broken.error);
            }
            std::future::pending().await
        }
    }
}

impl PumpedInput {
    /// Sends the input that is available for one demand.
    fn feed(
        &self,
        demand: &StdinDemand,
        frames: &mpsc::Sender<InteractRequest>,
    ) -> io::Result<FeedState> {
        let send = |frame| {
            let message = InteractRequest { frame: Some(frame) };
            match frames.blocking_send(message) {
                Ok(()) => FeedState::Open,
                // The run has ended before its input did.
                Err(_) => FeedState::Ended,
            }
        };
        let mut budget = self.budget(demand);
        let mut piece = vec![0; MAX_STDIN_CHUNK];
        let mut waits = true;
        while budget > 0 {
            if !self.source.wait(waits)? {
                break;
            }
            let most = usize::try_from(budget).map_or(piece.len(), |it| it.min(piece.len()));
            let Some(n) = self.take(&mut piece[..most])? else {
                return Ok(FeedState::Ended);
            };
            let frame = match n {
                None => continue,
                Some(0) => {
                    send(Frame::StdinEof(StdinEof {}));
                    return Ok(FeedState::Ended);
                }
                Some(n) => {
                    budget -= n as u64;
                    Frame::Stdin(Bytes::copy_from_slice(&piece[..n]))
                }
            };
            if send(frame) == FeedState::Ended {
                return Ok(FeedState::Ended);
            }
            // Input that arrives later is for the next demand, if there is one.
            waits = false;
        }
        Ok(FeedState::Open)
    }

    fn budget(&self, demand: &StdinDemand) -> u64 {
        if self.source.is_seekable() {
            return AHEAD_OF_FILE;
        }
        let wanted = u64::from(demand.wanted_bytes);
        let mut state = self.lock();
        state.demands = state.demands.saturating_add(1);
        if state.demands <= EXACT_DEMANDS && demand.read_bytes < EXACT_BYTES {
            return wanted;
        }
        wanted.max(demand.read_bytes.min(AHEAD_OF_PIPE))
    }

    /// Reads a piece. The outer `None` means that the run is over, and the inner one that another
    /// reader took the input.
    fn take(&self, piece: &mut [u8]) -> io::Result<Option<Option<usize>>> {
        let mut state = self.lock();
        if state.over {
            return Ok(None);
        }
        if !self.source.is_seekable() {
            // The read may take long, if another reader took what was there, so the lock is
            // released first.
            drop(state);
            return self.source.read(piece).map(Some);
        }
        let n = self.source.read(piece)?;
        state.bytes += n.unwrap_or_default() as u64;
        Ok(Some(n))
    }

    fn lock(&self) -> MutexGuard<'_, PumpState> {
        lock(&self.state)
    }
}
