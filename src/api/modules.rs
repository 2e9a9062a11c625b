//! Implements `ModuleService`: decodes each request, hands it to the module library, and encodes
//! the answer.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use super::client_stream::{self, ClientStreamError, malformed, piece};
use super::decode::ModulePage;
use super::layers::auth::tenant_of;
use super::methods::MAX_UPLOAD_CHUNK;
use super::proto::module_service_server::ModuleService;
use super::proto::upload_module_request::Frame;
use super::{decode, encode, proto};
use crate::library::{ModuleLibrary, StoreReceipt};
use crate::model::request::Digest;
use crate::run::with_deadline;

/// The implementation of `ModuleService`.
pub struct ModuleApi {
    library: Arc<ModuleLibrary>,
}

impl ModuleApi {
    /// Creates the service, which hands its requests to `library`.
    pub fn new(library: Arc<ModuleLibrary>) -> Self {
        Self { library }
    }

    /// Receives the module of an upload until its caller's deadline, and stores it.
    async fn upload(
        &self,
        request: Request<Streaming<proto::UploadModuleRequest>>,
    ) -> Result<StoreReceipt, ClientStreamError> {
        let deadline = decode::response_deadline(&request)?;
        let tenant = tenant_of(&request)?;
        let mut frames = request.into_inner();
        let receive = async {
            let (about, expected) = match next(&mut frames).await? {
                Some(Frame::Start(start)) => decode::upload(start)?,
                Some(Frame::Chunk(_)) | None => {
                    return Err(malformed("the first message of an upload is its `start`"));
                }
            };
            // The upload takes its place only once its start is there, so that connections that say
            // nothing hold none.
            let mut arriving = self.library.begin_upload(&tenant)?;
            while let Some(frame) = next(&mut frames).await? {
                match frame {
                    Frame::Chunk(chunk) => {
                        arriving
                            .push(piece("chunk", chunk, MAX_UPLOAD_CHUNK)?)
                            .await?
                    }
                    Frame::Start(_) => return Err(malformed("an upload has one `start`")),
                }
            }
            Ok((arriving, expected, about))
        };
        let (arriving, expected, about) = with_deadline(deadline, receive).await?;
        let library = &self.library;
        let taken = library.store_upload(&tenant, deadline, arriving, expected, about);
        Ok(taken.await?)
    }
}

async fn next(
    frames: &mut Streaming<proto::UploadModuleRequest>,
) -> Result<Option<Frame>, ClientStreamError> {
    let frame = |proto::UploadModuleRequest { frame }| frame;
    client_stream::next(
        frames,
        frame,
        "a message of an upload has a `start` or a `chunk`",
    )
    .await
}

fn digest(text: &str) -> Result<Digest, Status> {
    Digest::parse("digest", text).map_err(Status::from)
}

#[tonic::async_trait]
impl ModuleService for ModuleApi {
    async fn upload_module(
        &self,
        request: Request<Streaming<proto::UploadModuleRequest>>,
    ) -> Result<Response<proto::UploadModuleResponse>, Status> {
        match self.upload(request).await {
            Ok(taken) => {
                let mut response = Response::new(encode::uploaded(&taken));
                response.extensions_mut().insert(taken.pending_response);
                Ok(response)
            }
            Err(ClientStreamError::Refused(refusal)) => Err(Status::from(refusal)),
            Err(ClientStreamError::Broken(status)) => Err(status),
        }
    }

    async fn list_modules(
        &self,
        request: Request<proto::ListModulesRequest>,
    ) -> Result<Response<proto::ListModulesResponse>, Status> {
        let deadline = decode::response_deadline(&request)?;
        let tenant = tenant_of(&request)?;
        let page = decode::page(request.into_inner())?;
        let ModulePage {
            size,
            after,
            labels,
        } = page;
        let listed = self
            .library
            .modules(&tenant, deadline, after, size, &labels);
        let listed = listed.await;
        let (modules, next) = listed?;
        Ok(Response::new(proto::ListModulesResponse {
            modules: modules.iter().map(encode::listed).collect(),
            next_page_token: next.map(|digest| digest.hex()).unwrap_or_default(),
        }))
    }

    async fn get_module(
        &self,
        request: Request<proto::GetModuleRequest>,
    ) -> Result<Response<proto::GetModuleResponse>, Status> {
        let deadline = decode::response_deadline(&request)?;
        let tenant = tenant_of(&request)?;
        let proto::GetModuleRequest { digest } = request.into_inner();
        let digest = self::digest(&digest)?;
        let kept = self.library.module(&tenant, deadline, digest).await;
        Ok(Response::new(proto::GetModuleResponse {
            module: Some(encode::module(&kept?)),
        }))
    }

    async fn delete_module(
        &self,
        request: Request<proto::DeleteModuleRequest>,
    ) -> Result<Response<proto::DeleteModuleResponse>, Status> {
        let deadline = decode::response_deadline(&request)?;
        let tenant = tenant_of(&request)?;
        let proto::DeleteModuleRequest { digest } = request.into_inner();
        let digest = self::digest(&digest)?;
        let deleted = self.library.delete_module(&tenant, deadline, digest).await;
        Ok(Response::new(proto::DeleteModuleResponse {
            deleted: deleted?,
        }))
    }
}
