//! Runs on the way into the archive, in a file of the host, so that a daemon which is killed loses
//! none of them: whoever opens the archive next writes what the file has.
//!
//! A file has records, each with its length and a checksum before it. A daemon keeps its file
//! locked, and so knows a file without an owner by its lock. What was written in part is left out.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use prost::Message;

/// What the name of a file ends with.
const EXTENSION: &str = "spool";
/// The mode of a file, since what guests wrote is nobody else's.
const PRIVATE: u32 = 0o600;
/// Bytes before a record: its length, and the beginning of its checksum.
const HEADER: usize = 12;
/// The most bytes of a file that is read back.
const MOST: u64 = 1 << 30;

/// A run on its way into the archive.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SpoolRecord {
    #[prost(string, tag = "1")]
    pub(super) tenant: String,
    #[prost(string, tag = "2")]
    pub(super) instance: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) number: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) summary: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) line: Vec<u8>,
    /// Which of the segments of its tenant and hour in its batch it is in, counted from zero, so
    /// that whoever recovers it makes the same segments of the file.
    #[prost(uint32, optional, tag = "6")]
    pub(super) segment: Option<u32>,
}

/// A file of records, which is locked while it is open.
#[derive(Debug)]
pub(super) struct SpoolFile {
    file: File,
    path: PathBuf,
    /// Bytes of the records that are whole.
    length: u64,
}

impl SpoolFile {
    /// Creates a file in `folder`.
    ///
    /// # Errors
    /// It cannot be created or locked.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let name = uuid::Uuid::now_v7().simple().to_string();
        let path = folder.join(name).with_extension(EXTENSION);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(PRIVATE);
        let file = options.open(&path)?;
        file.try_lock().map_err(io::Error::other)?;
        Ok(Self {
            file,
            path,
            length: 0,
        })
    }

    /// Returns the name of the file, which no other file has.
    pub(super) fn name(&self) -> Cow<'_, str> {
        let name = self.path.file_name();
        name.map(OsStr::to_string_lossy).unwrap_or_default()
    }

    /// Appends a record.
    ///
    /// # Errors
    /// It was not written, and nothing of it is left.
    pub(super) fn append(&mut self, record: &SpoolRecord) -> io::Result<()> {
        let record = record.encode_to_vec();
        let length = u32::try_from(record.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER + record.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&checksum(&record));
        bytes.extend_from_slice(&record);
        if let Err(error) = self.file.write_all_at(&bytes, self.length) {
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Deletes the file, whose records are in the archive.
    ///
    /// # Errors
    /// It stays, and its records will be written once more.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

fn checksum(record: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(record).as_bytes()[..8]);
    sum
}

/// Reads the records of a file up to the first that is not whole.
fn records(bytes: &[u8]) -> Vec<SpoolRecord> {
    let mut rest = bytes;
    let mut records = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
        let (length, sum) = header.split_at(4);
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default());
        let Some((record, after)) = after.split_at_checked(length as usize) else {
            break;
        };
        if checksum(record) != sum {
            break;
        }
        let Ok(record) = SpoolRecord::decode(record) else {
            break;
        };
        records.push(record);
        rest = after;
    }
    records
}

/// Takes over a file of `folder` that no daemon has open, with the records that it has; `None`
/// where there is none. A file that cannot be read is left where it is.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn adopt(folder: &Path) -> io::Result<Option<(SpoolFile, Vec<SpoolRecord>)>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|it| it != EXTENSION) {
            continue;
        }
        match adopt_file(path) {
            Ok(None) => {}
            Ok(adopted) => return Ok(adopted),
            Err(error) => {
                tracing::warn!(%error, "a file of runs that a daemon left cannot be read");
            }
        }
    }
    Ok(None)
}

/// Takes over a file, unless a daemon has it open or has just deleted it.
fn adopt_file(path: PathBuf) -> io::Result<Option<(SpoolFile, Vec<SpoolRecord>)>> {
    let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Its owner may have deleted it between the two.
    if !path.exists() {
        return Ok(None);
    }
    let length = file.metadata()?.len();
    if length > MOST {
        return Err(io::Error::other(
            "it is larger than any that a daemon writes",
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let records = records(&bytes);
    Ok(Some((SpoolFile { file, path, length }, records)))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl SpoolFile {
        /// Lets every later record fail, as a full disk does.
        pub(in crate::archive) fn refuse_more(&mut self) {
            let read_only = File::open(&self.path).unwrap();
            drop(std::mem::replace(&mut self.file, read_only));
            self.file.try_lock().unwrap();
        }
    }

    fn record(number: u128) -> SpoolRecord {
        SpoolRecord {
            tenant: "t".to_owned(),
            instance: "i".to_owned(),
            number: number.to_be_bytes().to_vec(),
            summary: vec![1; 3],
            line: vec![b'x'; 100],
            segment: Some(0),
        }
    }

    #[test]
    fn a_file_is_adopted_once_its_owner_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = SpoolFile::create(folder.path()).unwrap();
        for number in 1..=3 {
            file.append(&record(number)).unwrap();
        }
        assert!(adopt(folder.path()).unwrap().is_none(), "it is in use");
        drop(file);
        let (adopted, records) = adopt(folder.path()).unwrap().unwrap();
        assert_eq!(records, [record(1), record(2), record(3)]);
        assert!(adopt(folder.path()).unwrap().is_none(), "it is taken over");
        adopted.remove().unwrap();
        assert!(adopt(folder.path()).unwrap().is_none());
    }

    #[test]
    fn what_is_not_whole_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = SpoolFile::create(folder.path()).unwrap();
        file.append(&record(1)).unwrap();
        file.append(&record(2)).unwrap();
        let bytes = fs::read(&file.path).unwrap();
        for end in 0..bytes.len() {
            let whole = usize::from(end >= bytes.len() / 2);
            assert_eq!(records(&bytes[..end]).len(), whole, "{end} bytes");
        }
        let mut bytes = bytes;
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(records(&bytes), [record(1)]);
    }
}
