//! The names of the records, and what they say of the archive.

use std::collections::HashMap;

use super::Kind;
use super::directory::Listed;
use crate::error::FormatError;

/// Positions by name, as torch looks names up: without regard to ASCII case, so in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names(pub(super) HashMap<String, usize>);

impl Names {
    pub(super) fn new(records: &[Listed]) -> Result<Self, FormatError> {
        let mut names = HashMap::with_capacity(records.len());
        for (position, record) in records.iter().enumerate() {
            let Some(earlier) = names.insert(record.name.to_ascii_lowercase(), position) else {
                continue;
            };
            let first = records.get(earlier).unwrap_or(record);
            return Err(FormatError::DuplicateName {
                first: first.name.clone(),
                first_offset: first.header_offset,
                second: record.name.clone(),
                second_offset: record.header_offset,
            });
        }
        Ok(Self(names))
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let position = self.0.get(name);
        let position = position.or_else(|| self.0.get(&name.to_ascii_lowercase()));
        position.copied()
    }

    pub(super) fn kind(&self) -> Kind {
        let has = |name| self.0.contains_key(name);
        if has("constants.pkl") {
            Kind::TorchScript
        } else if has("data.pkl") {
            Kind::Checkpoint
        } else if has("archive_format") {
            Kind::ExportedProgram
        } else if has(".data/extern_modules") {
            Kind::Package
        } else {
            Kind::Unknown
        }
    }
}
