//! Implements `ExecutionService`: decodes each request, hands it to the runner, and encodes the
//! answer.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::layers::auth::tenant_of;
use super::proto::execution_service_server::ExecutionService;
use super::run_event_stream::RunEventStream;
use super::start::{AskedRun, RunCall};
use super::{decode_execution, encode, proto};
use crate::language::{Catalogue, Language};
use crate::model::refusal::Refusal;
use crate::model::request::SessionName;
use crate::run::{RunMethod, Runner};

/// The implementation of `ExecutionService`.
pub struct ExecutionApi {
    runner: Arc<Runner>,
    catalogue: Arc<Catalogue>,
}

impl ExecutionApi {
    /// Creates the service, which hands programs in the languages of `catalogue` to `runner`.
    pub fn new(runner: Arc<Runner>, catalogue: Arc<Catalogue>) -> Self {
        Self { runner, catalogue }
    }
}

#[tonic::async_trait]
impl ExecutionService for ExecutionApi {
    type ExecuteStreamStream = RunEventStream;

    async fn execute(
        &self,
        _: Request<proto::ExecuteRequest>,
    ) -> Result<Response<proto::ExecuteResponse>, Status> {
        // `RunFastPath` answers this method before it reaches the layers around this service.
        let why = "Execute came by way of its service";
        Err(Status::from(Refusal::internal(why)))
    }

    async fn execute_stream(
        &self,
        request: Request<proto::ExecuteStreamRequest>,
    ) -> Result<Response<RunEventStream>, Status> {
        let call = RunCall::from_request(&self.runner, &request, RunMethod::ExecuteStream)?;
        let proto::ExecuteStreamRequest { spec } = request.into_inner();
        let asked = AskedRun::Program(spec, &self.catalogue);
        let attached = call.start(&self.runner, asked, None).await?;
        Ok(RunEventStream::answer(attached))
    }

    async fn list_languages(
        &self,
        request: Request<proto::ListLanguagesRequest>,
    ) -> Result<Response<proto::ListLanguagesResponse>, Status> {
        let tenant = tenant_of(&request)?;
        let provided = self.runner.provided();
        let is_ready = |language: &Language| {
            let digest = language.digest();
            digest.is_none_or(|digest| provided.is_prepared(digest))
        };
        let languages = decode_execution::languages(&self.catalogue, &tenant.policy, is_ready);
        Ok(Response::new(languages))
    }

    async fn list_sessions(
        &self,
        request: Request<proto::ListSessionsRequest>,
    ) -> Result<Response<proto::ListSessionsResponse>, Status> {
        let tenant = tenant_of(&request)?;
        let sessions = self.runner.sessions(&tenant);
        Ok(Response::new(proto::ListSessionsResponse {
            sessions: sessions.iter().map(encode::session).collect(),
        }))
    }

    async fn close_session(
        &self,
        request: Request<proto::CloseSessionRequest>,
    ) -> Result<Response<proto::CloseSessionResponse>, Status> {
        let tenant = tenant_of(&request)?;
        let proto::CloseSessionRequest { name } = request.into_inner();
        let name = SessionName::parse("name", &name).map_err(|it| Status::from(&it))?;
        let closed = self.runner.close_session(&tenant, &name).await;
        let session = closed.map_err(|refusal| Status::from(&refusal))?;
        Ok(Response::new(proto::CloseSessionResponse {
            session: Some(encode::session(&session)),
        }))
    }
}
