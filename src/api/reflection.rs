//! Serves gRPC reflection, v1 and v1alpha. The descriptors are those of everything that is served,
//! and of what stands in the details of an error (`google.rpc`), so that a client without any file
//! of ours can show why it was refused.

use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::service::RoutesBuilder;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::{Builder, Error};

use super::proto;

/// The names of the files of `google.rpc`: first the name in the crate, then the name by which
/// everybody else imports the file.
const GOOGLE_RPC: [(&str, &str); 2] = [
    ("error_details.proto", "google/rpc/error_details.proto"),
    ("status.proto", "google/rpc/status.proto"),
];

/// Adds the two reflection services to `routes`.
///
/// # Errors
/// If a descriptor is malformed, which is a fault of the program.
pub fn add_reflection(routes: &mut RoutesBuilder) -> Result<(), Error> {
    routes.add_service(builder()?.build_v1()?);
    routes.add_service(builder()?.build_v1alpha()?);
    Ok(())
}

/// Creates a builder over all descriptors. It keeps the first file of each name, because those of
/// protobuf itself are in several of the sets.
fn builder() -> Result<Builder<'static>, Error> {
    Ok(Builder::configure()
        .include_reflection_service(false)
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(v1alpha::FILE_DESCRIPTOR_SET)
        .register_file_descriptor_set(google_rpc()?))
}

/// Returns the descriptors of `google.rpc` and of what they import, under the names that others
/// use.
fn google_rpc() -> Result<FileDescriptorSet, Error> {
    let mut set = FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)?;
    for file in &mut set.file {
        let renamed = GOOGLE_RPC.iter().find(|(from, _)| *from == file.name());
        if let Some((_, name)) = renamed {
            file.name = Some((*name).to_owned());
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Collects the files of all sets by their names.
    fn files() -> BTreeMap<String, prost_types::FileDescriptorProto> {
        let encoded = [
            proto::DESCRIPTORS,
            v1::FILE_DESCRIPTOR_SET,
            v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let sets = encoded.map(|it| FileDescriptorSet::decode(it).unwrap());
        let sets = sets.into_iter().chain([google_rpc().unwrap()]);
        let mut files = BTreeMap::new();
        for file in sets.flat_map(|it| it.file) {
            files.entry(file.name().to_owned()).or_insert(file);
        }
        files
    }

    #[test]
    fn every_import_is_served_and_no_message_is_in_two_files() {
        let files = files();
        let mut homes = BTreeMap::new();
        for (name, file) in &files {
            for import in &file.dependency {
                assert!(files.contains_key(import), "{name} imports {import}");
            }
            for message in &file.message_type {
                let message = format!("{}.{}", file.package(), message.name());
                let other = homes.insert(message.clone(), name);
                assert_eq!(other, None, "{message} is in {name} too");
            }
        }
        for message in [
            "Status",
            "ErrorInfo",
            "BadRequest",
            "RetryInfo",
            "QuotaFailure",
        ] {
            assert!(
                homes.contains_key(&format!("google.rpc.{message}")),
                "{message}"
            );
        }
    }
}
