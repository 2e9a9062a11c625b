//! What the sender needs to know of a signal, of which there are two: spans, and log records.

use std::sync::Arc;

use opentelemetry_proto::tonic::resource::v1::Resource;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::export_queue::{ExportQueue, Queued};

/// The most bytes of one request, roughly. Collectors take 4 MiB by default.
pub(super) const BATCH_BYTES: usize = 2 << 20;

/// A request with what it is made of.
#[derive(Debug)]
pub(super) struct ExportBatch<R> {
    pub(super) request: R,
    /// How many spans or log records it has.
    pub(super) records: u64,
    /// Whether more may have waited than it could take.
    pub(super) is_full: bool,
    /// What has been taken out of the queue for it as a whole, and is released once it is over.
    pub(super) charges: Vec<(Arc<str>, u64)>,
}

/// A signal, and the service of the collector that takes it.
pub(super) trait Signal {
    /// What waits in the queue.
    type Thing: Queued;
    /// The message that the collector takes.
    type Request: Clone;
    /// The name of the signal in metrics and in the log.
    const NAME: &'static str;

    /// Takes things out of the queue, and makes one request of them.
    fn collect(queue: &ExportQueue<Self::Thing>, resource: &Resource)
    -> ExportBatch<Self::Request>;

    /// Sends a request, and returns how many of its records the collector has rejected for good.
    async fn send(channel: Channel, request: Request<Self::Request>) -> Result<u64, Status>;
}
