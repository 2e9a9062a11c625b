//! `ModuleService`: thin. Decode, hand over, encode.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use super::auth::tenant_of;
use super::decode::Page;
use super::frames::{self, Failed, malformed, piece};
use super::intake::MAX_CHUNK;
use super::proto::module_service_server::ModuleService;
use super::proto::upload_module_request::Frame;
use super::status::refused;
use super::{decode, encode, proto};
use crate::request::Digest;
use crate::run::{Runner, Taken, before};

/// The service.
pub struct ModuleApi {
    runner: Arc<Runner>,
}

impl ModuleApi {
    /// Over `runner`.
    pub fn new(runner: Arc<Runner>) -> Self {
        Self { runner }
    }

    async fn upload(
        &self,
        request: Request<Streaming<proto::UploadModuleRequest>>,
    ) -> Result<Taken, Failed> {
        let until = decode::until(&request)?;
        let tenant = tenant_of(&request)?;
        let mut frames = request.into_inner();
        let receive = async {
            let (about, expected) = match next(&mut frames).await? {
                Some(Frame::Start(start)) => decode::upload(start)?,
                Some(Frame::Chunk(_)) | None => {
                    return Err(malformed("the first message of an upload is its `start`"));
                }
            };
            // Not before it has begun: connections that say nothing hold no place.
            let mut arriving = self.runner.arrive(&tenant)?;
            while let Some(frame) = next(&mut frames).await? {
                match frame {
                    Frame::Chunk(chunk) => arriving.push(piece("chunk", chunk, MAX_CHUNK)?).await?,
                    Frame::Start(_) => return Err(malformed("an upload has one `start`")),
                }
            }
            Ok((arriving, expected, about))
        };
        let (arriving, expected, about) = before(until, receive).await?;
        let runner = &self.runner;
        let taken = runner.keep_arrived(&tenant, until, arriving, expected, about);
        Ok(taken.await?)
    }
}

async fn next(frames: &mut Streaming<proto::UploadModuleRequest>) -> Result<Option<Frame>, Failed> {
    let frame = |proto::UploadModuleRequest { frame }| frame;
    frames::next(
        frames,
        frame,
        "a message of an upload has a `start` or a `chunk`",
    )
    .await
}

fn digest(text: &str) -> Result<Digest, Status> {
    Digest::parse("digest", text).map_err(refused)
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
                response.extensions_mut().insert(taken.untold);
                Ok(response)
            }
            Err(Failed::Refused(refusal)) => Err(refused(refusal)),
            Err(Failed::Broken(status)) => Err(status),
        }
    }

    async fn list_modules(
        &self,
        request: Request<proto::ListModulesRequest>,
    ) -> Result<Response<proto::ListModulesResponse>, Status> {
        let until = decode::until(&request).map_err(refused)?;
        let tenant = tenant_of(&request).map_err(refused)?;
        let page = decode::page(request.into_inner()).map_err(refused)?;
        let Page {
            size,
            after,
            labels,
        } = page;
        let listed = self.runner.modules(&tenant, until, after, size, &labels);
        let listed = listed.await;
        let (modules, next) = listed.map_err(refused)?;
        Ok(Response::new(proto::ListModulesResponse {
            modules: modules.iter().map(encode::listed).collect(),
            next_page_token: next.map(|digest| digest.hex()).unwrap_or_default(),
        }))
    }

    async fn get_module(
        &self,
        request: Request<proto::GetModuleRequest>,
    ) -> Result<Response<proto::GetModuleResponse>, Status> {
        let until = decode::until(&request).map_err(refused)?;
        let tenant = tenant_of(&request).map_err(refused)?;
        let proto::GetModuleRequest { digest } = request.into_inner();
        let digest = self::digest(&digest)?;
        let kept = self.runner.module(&tenant, until, digest).await;
        Ok(Response::new(proto::GetModuleResponse {
            module: Some(encode::module(&kept.map_err(refused)?)),
        }))
    }

    async fn delete_module(
        &self,
        request: Request<proto::DeleteModuleRequest>,
    ) -> Result<Response<proto::DeleteModuleResponse>, Status> {
        let until = decode::until(&request).map_err(refused)?;
        let tenant = tenant_of(&request).map_err(refused)?;
        let proto::DeleteModuleRequest { digest } = request.into_inner();
        let digest = self::digest(&digest)?;
        let deleted = self.runner.delete_module(&tenant, until, digest).await;
        Ok(Response::new(proto::DeleteModuleResponse {
            deleted: deleted.map_err(refused)?,
        }))
    }
}
